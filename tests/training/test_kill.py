"""A run killed at any moment leaves a readable folder, and resumes to the same losses and weights."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffusion_course.training import checkpoints
from diffusion_course.training.state import read_log

SCRIPT = Path(__file__).with_name("runs.py")


def start(folder, **options):
    arguments = [f"{key}={value}" for key, value in options.items()]
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), *arguments],
                            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return out


def state(folder):
    tensors, header = checkpoints.read(folder / "state.safetensors")
    return tensors, header["step"], read_log(folder / "log.jsonl")


def readable(folder):
    """Every file under its own name can be read; a half-written one has another name."""
    for path in folder.glob("*.safetensors"):
        checkpoints.load_model(path)
    read_log(folder / "log.jsonl")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder))
    return state(folder)


def assert_equal(found, expected):
    (tensors, step, log), (other, other_step, other_log) = found, expected
    assert step == other_step and log == other_log
    assert tensors.keys() == other.keys()
    for name in tensors:
        assert torch.equal(tensors[name], other[name]), name


@pytest.mark.parametrize("seed", range(int(os.environ.get("DIFFUSION_COURSE_KILLS", "3"))))
def test_killed_at_random_moments(tmp_path, unbroken, seed):
    chance, kills = random.Random(seed), 0
    while kills < 2:
        process = start(tmp_path)
        while process.poll() is None and process.stdout.readline().strip() != "start":
            pass
        time.sleep(chance.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        readable(tmp_path)
        kills += 1
    finish(start(tmp_path))
    assert_equal(state(tmp_path), unbroken)


@pytest.mark.parametrize("die", ["5:half", "5:whole", "6:half", "6:whole", "1:half"])
def test_killed_while_a_checkpoint_is_written(tmp_path, unbroken, die):
    """Model and state are written in turn: odd writes are models, even ones states."""
    process = start(tmp_path, die=die)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    readable(tmp_path)
    out = finish(start(tmp_path))
    if not die.startswith("1"):                                # neither the third model nor state counts
        assert "resumed at 4" in out
    assert_equal(state(tmp_path), unbroken)
    assert not list(tmp_path.glob(".*part")), "a half-written file was left behind"
