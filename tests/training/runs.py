"""A small training run in a process of its own, for tests that kill it or spread it.

python runs.py FOLDER [options]
"""
import os
import signal
import sys
from pathlib import Path

import torch

from diffusion_course.data.images import Images
from diffusion_course.papers import ddpm
from diffusion_course.training import container
from diffusion_course.training.trainer import Trainer


def images():
    generator = torch.Generator().manual_seed(0)
    return Images("noise", torch.randint(0, 256, (50, 1, 16, 16), generator=generator).byte())


def say(*words):
    """A line in one write; print may write word by word, and the words of two processes mix."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def die_at(call: int, when: str):
    """SIGKILL this process at the n-th write of a checkpoint: half-way, or before the file has its name."""
    calls, save_file = [], container.save_file

    def deadly(tensors, path, metadata):
        calls.append(path)
        save_file(tensors, path, metadata=metadata)
        if len(calls) == call:
            if when == "half":
                whole = Path(path).read_bytes()
                Path(path).write_bytes(whole[:len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    container.save_file = deadly


def printing_to(pipe, folder, **options):
    """main(folder) in a process that was forked, with its standard output in a pipe."""
    os.dup2(pipe.fileno(), 1)
    main(folder, **options)


def main(folder, steps=30, save_every=2, batch_size=8, accumulate=1, shard=False, sample_every=0, until=None,
         die=None):
    torch.set_num_threads(1)
    sys.setswitchinterval(100)                                 # threads get the interpreter at waits only
    if die:
        die_at(int(die.split(":")[0]), die.split(":")[1])
    torch.manual_seed(0)
    trainer = Trainer(ddpm.recipe(width=8, size=16, num_steps=20), folder, steps=int(steps),
                      save_every=int(save_every), accumulate=int(accumulate), cpu=True, warmup=1,
                      shard=bool(shard), sample_every=int(sample_every), samples=2)
    if (Path(folder) / "state.safetensors").exists():
        say("resumed at", trainer.resume())
    say("processes", trainer.accelerator.num_processes)
    say("holds", sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in trainer.weights.values()))
    say("start")
    for progress in trainer.run(images().batches(int(batch_size)), until and int(until)):
        say("step", progress.step)


if __name__ == "__main__":
    main(sys.argv[1], **dict(option.split("=") for option in sys.argv[2:]))
