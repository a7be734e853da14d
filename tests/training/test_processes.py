"""Two processes train the model that one trains with the same batch."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_course.training import checkpoints
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
    return read_log(folder / "log.jsonl"), checkpoints.read(folder / "state.safetensors")[0]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run([], tmp_path_factory.mktemp("one"), steps=8)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_equal_one(tmp_path, one, launcher):
    port = str(free_port())
    command = {"torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"],
               "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2",
                              "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
                              "--multi_gpu", f"--main_process_port={port}"]}
    if launcher == "accelerate":
        command["accelerate"].remove("--multi_gpu")
    losses, tensors = run(command[launcher], tmp_path, steps=8)
    expected, other = one
    assert len(losses) == 8 and losses[0] == pytest.approx(expected[0], rel=1e-5)
    assert losses == pytest.approx(expected, rel=3e-3)
    for name, x in other.items():
        if name.startswith("model."):
            assert (tensors[name] - x).abs().mean() <= 0.02 * x.abs().mean() + 1e-4, name


def test_other_random_numbers_would_be_noticed(tmp_path, one):
    """The comparison above is sharp: a batch in another order differs by more."""
    losses, _ = run([], tmp_path, steps=8, batch_size=10)
    assert abs(losses[0] - one[0][0]) > 1e-3 * one[0][0]
    assert not torch.tensor(losses).allclose(torch.tensor(one[0]), rtol=3e-3)
