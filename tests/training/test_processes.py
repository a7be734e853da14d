"""Two processes train the model that one trains with the same batch."""
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import pytest
import torch
from torch import nn

from diffusion_course.diffusion.ema import EMA
from diffusion_course.papers import autoencoder_kl, ddpm
from diffusion_course.training import container
from diffusion_course.training.processes import share_out
from diffusion_course.training.state import read_log

SCRIPT = Path(__file__).with_name("runs.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
ACCELERATE_FSDP = [*ACCELERATE[:2], "--use_fsdp", "--fsdp_version=2", *ACCELERATE[3:]]


def run(launcher, folder, **options):
    """The losses, the weights and averages, and what was printed."""
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), *(f"{key}={value}" for key, value in
                                                                      options.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    tensors, _ = container.read(folder / "state.safetensors")
    return read_log(folder / "log.jsonl"), *(flat(tensors, part) for part in ("model.", "ema.")), done.stdout


def flat(tensors, part=""):
    return torch.cat([x.flatten() for name, x in sorted(tensors.items()) if name.startswith(part)])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run in one process, and its folder."""
    folder = tmp_path_factory.mktemp("one")
    return *run([], folder, steps=8, sample_every=4), folder


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return flat(ddpm.recipe(width=8, size=16, num_steps=20).model.state_dict())


def check(found, one, start):
    """The same random numbers and gradients, up to rounding, which Adam's first steps magnify."""
    losses, expected = found[0], one[0]
    assert len(losses) == 8 and losses[0] == pytest.approx(expected[0], rel=1e-5)
    assert losses == pytest.approx(expected, rel=3e-3)
    for weights, others in zip(found[1:3], one[1:3]):
        assert (weights - others).norm() < 0.1 * (others - start).norm()


def drawn(folder):
    return torch.from_numpy(imageio.imread(folder / "samples" / "step_000008.png")).float()


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_equal_one(tmp_path, one, start, launcher):
    found = run(launcher, tmp_path, steps=8)
    check(found, one, start)
    assert "processes 2" in found[3] and "processes 1" in one[3]


@pytest.mark.parametrize("launcher, options", [(TORCHRUN, {"shard": 1}), (ACCELERATE_FSDP, {})],
                         ids=["torchrun", "accelerate"])
def test_two_processes_that_share_the_weights_out_equal_one(tmp_path, one, start, launcher, options):
    """Each holds half of the weights; what they save is whole, and they draw from the averages."""
    found = run(launcher, tmp_path, steps=8, sample_every=4, **options)
    check(found, one, start)
    held = [int(line.split()[1]) for line in found[3].splitlines() if line.startswith("holds")]
    assert len(held) == 2 and sum(held) == len(start) and max(held) < 0.6 * len(start)
    assert (drawn(tmp_path) - drawn(one[4])).abs().mean() < 2


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)], ids=["shared then alone", "alone then shared"])
def test_a_run_may_go_on_with_another_number_of_processes(tmp_path, one, start, first, second):
    launchers = [(TORCHRUN, {"shard": 1}), ([], {})]
    for number, until in (first, 4), (second, 4):
        launcher, options = launchers[number]
        found = run(launcher, tmp_path, steps=8, until=until, **options)
    assert "resumed at 4" in found[3]
    check(found, one, start)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.net.gate = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("make, message", [
    (lambda: autoencoder_kl.recipe(width=8).model, "only the networks of denoisers"),
    (Gated, "net.gate is a single number")])
def test_what_cannot_be_shared_out_is_refused(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        share_out(model, EMA(model))


def test_one_process_has_nobody_to_share_with(tmp_path, one):
    found = run([], tmp_path, steps=8, shard=1)
    assert found[0] == one[0] and "a single process keeps all weights" in found[3]


def test_other_random_numbers_would_be_noticed(tmp_path, one):
    """The comparison above is sharp: with another batch the losses differ by more."""
    losses = run([], tmp_path, steps=8, batch_size=10)[0]
    assert abs(losses[0] - one[0][0]) > 1e-3 * one[0][0]
    assert not torch.tensor(losses).allclose(torch.tensor(one[0]), rtol=3e-3)
