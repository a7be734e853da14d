"""Two processes train the model that one trains with the same batch."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_course.papers import ddpm
from diffusion_course.training import container
from diffusion_course.training.state import read_log

SCRIPT = Path(__file__).with_name("runs.py")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(launcher, folder, **options):
    arguments = [f"{key}={value}" for key, value in options.items()]
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    tensors, _ = container.read(folder / "state.safetensors")
    weights = torch.cat([x.flatten() for name, x in sorted(tensors.items()) if name.startswith("model.")])
    return read_log(folder / "log.jsonl"), weights, done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run([], tmp_path_factory.mktemp("one"), steps=8)


@pytest.mark.parametrize("launcher", [
    ["torch.distributed.run", "--nproc_per_node=2", "--master_port={port}"],
    ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
     "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port={port}"]],
    ids=["torchrun", "accelerate"])
def test_two_processes_equal_one(tmp_path, one, launcher):
    """The same random numbers and gradients, up to rounding, which Adam's first steps magnify."""
    port = free_port()
    losses, weights, out = run(["-m", *(word.format(port=port) for word in launcher)], tmp_path, steps=8)
    expected, others, alone = one
    assert "processes 2" in out and "processes 1" in alone
    assert len(losses) == 8 and losses[0] == pytest.approx(expected[0], rel=1e-5)
    assert losses == pytest.approx(expected, rel=3e-3)
    torch.manual_seed(0)
    start = ddpm.recipe(width=8, size=16, num_steps=20).model.state_dict()
    start = torch.cat([x.flatten() for _, x in sorted(start.items())])
    assert (weights - others).norm() < 0.1 * (others - start).norm()


def test_other_random_numbers_would_be_noticed(tmp_path, one):
    """The comparison above is sharp: with another batch the losses differ by more."""
    losses, _, _ = run([], tmp_path, steps=8, batch_size=10)
    assert abs(losses[0] - one[0][0]) > 1e-3 * one[0][0]
    assert not torch.tensor(losses).allclose(torch.tensor(one[0]), rtol=3e-3)
