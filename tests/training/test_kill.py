"""A run killed at any moment leaves a readable folder, and resumes to the same losses and weights."""
import os
import random
import signal
import time
from multiprocessing import Pipe, get_context

import pytest
import runs
import torch
from promises import CASES

from diffusion_course.training import checkpoints, container
from diffusion_course.training.state import read_log

pytestmark = pytest.mark.fault
SERVER = get_context("forkserver")                             # it imports torch once, and forks for each run
SERVER.set_forkserver_preload(["diffusion_course.papers.ddpm", "diffusion_course.training.trainer",
                               "torch._dynamo", "pytest"])


class Run:
    """A training run in a process of its own; `lines` is what it prints."""

    def __init__(self, folder, **options):
        ours, theirs = Pipe(duplex=False)
        self.process = SERVER.Process(target=runs.printing_to, args=(theirs, folder), kwargs=options)
        self.process.start()
        theirs.close()
        self.lines = os.fdopen(os.dup(ours.fileno()))
        ours.close()

    def started(self):
        """Wait for the first step, or the end."""
        while self.lines.readline() not in ("start\n", ""):
            pass
        return self

    def end(self) -> tuple[str, int]:
        """What was printed in all, and the exit status."""
        with self.lines:
            out = self.lines.read()
        self.process.join()
        return out, self.process.exitcode


def finish(run):
    out, status = run.end()
    assert status == 0, out
    return out


def state(folder):
    tensors, header = container.read(folder / "state.safetensors")
    return tensors, header["step"], read_log(folder / "log.jsonl")


def readable(folder):
    """Every file under its own name can be read; a half-written one has another name."""
    for path in folder.glob("[!.]*.safetensors"):
        checkpoints.load_model(path)
    read_log(folder / "log.jsonl")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run = Run(folder).started()
    began = time.monotonic()
    finish(run)
    return state(folder), time.monotonic() - began


def assert_equal(found, expected):
    (tensors, step, log), (other, other_step, other_log) = found, expected
    assert step == other_step and log == other_log
    assert tensors.keys() == other.keys()
    for name in tensors:
        assert torch.equal(tensors[name], other[name]), name


@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_moments(tmp_path, unbroken, seed):
    """Fifty kills in all, anywhere from the first step to the last."""
    (expected, seconds), chance = unbroken, random.Random(seed)
    for _ in range(5):
        run = Run(tmp_path).started()
        time.sleep(chance.uniform(0, 0.5 * seconds))
        run.process.kill()
        run.end()
        CASES["fault"] += 1
        readable(tmp_path)
    finish(Run(tmp_path))
    assert_equal(state(tmp_path), expected)
    assert not list(tmp_path.glob(".*.part*")), "a half-written file was left behind"


@pytest.mark.parametrize("die", ["5:half", "5:whole", "6:half", "6:whole", "1:half"])
def test_killed_while_a_checkpoint_is_written(tmp_path, unbroken, die):
    """Model and state are written in turn: odd writes are models, even ones states."""
    CASES["fault"] += 1
    assert Run(tmp_path, die=die).end()[1] == -signal.SIGKILL
    assert list(tmp_path.glob(".*.part*")), "it was killed too late"
    readable(tmp_path)
    out = finish(Run(tmp_path))
    if not die.startswith("1"):                                # neither the third model nor state counts
        assert "resumed at 4" in out
    assert_equal(state(tmp_path), unbroken[0])
    assert not list(tmp_path.glob(".*.part*")), "a half-written file was left behind"
