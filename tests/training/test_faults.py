"""A disk that is full, a folder that may not be written to, two runs in one, no memory, no network."""
import errno
import multiprocessing.connection
import os
import re
import resource
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from command import call, fails
from filelock import FileLock
from runs import images
from test_kill import Run, assert_equal, finish, state

from diffusion_course import exercises
from diffusion_course.data import download, media, mnist
from diffusion_course.evaluation import leaderboard
from diffusion_course.papers import ddpm
from diffusion_course.recipe import OutOfMemory
from diffusion_course.training import checkpoints, container, runs, shipped
from diffusion_course.training.trainer import Trainer

pytestmark = pytest.mark.fault
TINY = "--preset smoke --steps 4 --batch-size 4 --width 8 --size 8 --num-steps 5 --data digits --cpu".split()


def trainer(folder, **options):
    torch.manual_seed(0)
    return Trainer(ddpm.recipe(width=8, size=8, num_steps=5), folder, steps=8, save_every=2, cpu=True,
                   **options)


def batches():
    return [{"x": torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(n))} for n in range(8)]


@pytest.fixture
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    list(trainer(folder).run(batches()))
    return state(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file() and not path.name.endswith(".lock")}


# ---- a full disk

@contextmanager
def room_for(size):
    """No file can grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder, size):
    """A disk of that many bytes, where one may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("size", [0, 100, 50_000, 300_000])
def test_a_disk_that_is_full_in_mid_training_loses_nothing(tmp_path, unbroken, size):
    """Whether it is the log, the model or the state that has no room."""
    list(trainer(tmp_path).run(batches(), 2))
    before = contents(tmp_path)
    run = trainer(tmp_path)
    run.resume()
    with pytest.raises(OSError, match=f"{tmp_path}.* could not be written .*was there before is unchanged"):
        with room_for(size):
            list(run.run(batches()))
    after = contents(tmp_path)
    assert after.keys() == before.keys() and after["state.safetensors"] == before["state.safetensors"]
    again = trainer(tmp_path)
    assert again.resume() == 2
    list(again.run(batches()))
    assert_equal(state(tmp_path), unbroken)


def test_a_small_disk(tmp_path, unbroken):
    with small_disk(tmp_path, 1 << 22):
        list(trainer(tmp_path).run(batches(), 2))
        filler = tmp_path / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1000))
        run = trainer(tmp_path)
        run.resume()
        with pytest.raises(OSError, match="No space left on device.*what was there before is unchanged"):
            list(run.run(batches()))
        filler.unlink()
        again = trainer(tmp_path)
        assert again.resume() == 2
        list(again.run(batches()))
        assert_equal(state(tmp_path), unbroken)


def write_card(path):
    path.with_suffix(".json").unlink(missing_ok=True)
    checkpoints.write_card(path)


ROW = leaderboard.read(shipped.shipped("leaderboard"))[0]
WRITERS = {  # what is written elsewhere than in a run, and how
    "x.png": lambda path: media.write(path, torch.zeros(4, 1, 32, 32).uniform_(-1, 1)),
    "x.gif": lambda path: media.write(path, torch.zeros(4, 1, 4, 32, 32).uniform_(-1, 1)),
    "x.mp4": lambda path: media.write(path, torch.zeros(4, 1, 4, 32, 32).uniform_(-1, 1)),
    "x.npy": lambda path: media.write(path, torch.zeros(4, 1, 32, 32)),
    "board.jsonl": lambda path: leaderboard.add(ROW, path),
    "model.safetensors": lambda path: checkpoints.save_model(path, ddpm.recipe(width=8, size=8)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("old", [None, b"what was there"])
def test_what_is_written_elsewhere(tmp_path, name, old):
    path = tmp_path / name
    if old is not None and name != "board.jsonl":
        path.write_bytes(old)
    with pytest.raises((OSError, ValueError), match="could not be written|unchanged"), room_for(200):
        WRITERS[name](path)
    assert contents(tmp_path) == ({} if not path.exists() else {name: old})


def test_progress_that_cannot_be_stored_does_not_hide_the_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exercises, "progress_file", lambda: tmp_path / "progress.json")
    with room_for(3):
        exercises.check("1.1", exercises.find("1.1").solution)
    said = capsys.readouterr()
    assert "correct" in (said.out + said.err).lower() and not contents(tmp_path)


# ---- folders that may not be written to

@contextmanager
def read_only(folder):
    """A folder that may not be written to; root needs a file system that says so."""
    before, root = folder.stat().st_mode, os.geteuid() == 0
    commands = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]]
    if root and any(subprocess.run(command, capture_output=True).returncode for command in commands):
        pytest.skip("nothing can be mounted here")
    if not root:
        folder.chmod(0o555)
    try:
        yield
    finally:
        if root:
            subprocess.run(["umount", "--lazy", folder], check=True)
        folder.chmod(before)


REFUSED = "(Permission denied|Read-only file system)"


def test_a_folder_that_becomes_read_only(tmp_path, unbroken):
    list(trainer(tmp_path).run(batches(), 2))
    before = contents(tmp_path)
    run = trainer(tmp_path)
    run.resume()
    with pytest.raises(OSError, match=f"{REFUSED}: '{tmp_path}"), read_only(tmp_path):
        list(run.run(batches()))
    assert contents(tmp_path) == before
    again = trainer(tmp_path)
    assert again.resume() == 2
    list(again.run(batches()))
    assert_equal(state(tmp_path), unbroken)


@pytest.mark.parametrize("args", [
    ["train", "ddpm", *TINY, "--out", "{}"], ["train", "ddpm", *TINY, "--out", "{}/new"],
    ["sample", "made", "--num", 1, "--steps", 1, "--out", "{}/x.png"],
    ["data", "digits", "--out", "{}/x.png"], ["leaderboard", "--plot", "{}/x.png"],
    ["evaluate", "made", "--n", 4, "--steps", 1, "--data", "digits", "--board", "{}/board.jsonl"]])
def test_commands_into_a_read_only_folder(tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    list(trainer("made").run(batches(), 2))
    with read_only(folder):
        line = fails(*[str(word).format(folder) for word in args], code=1)
    assert str(folder) in line and re.search(REFUSED, line) and not contents(folder)


# ---- two runs in one folder

def same_as_runs(folder):
    return Trainer(ddpm.recipe(width=8, size=16, num_steps=20), folder, steps=400, cpu=True, warmup=1)


def test_two_processes_in_one_folder(tmp_path):
    first = Run(tmp_path, steps=400, save_every=5).started()
    try:
        while not (tmp_path / "state.safetensors").exists() and first.process.is_alive():
            time.sleep(0.02)
        os.kill(first.process.pid, signal.SIGSTOP)             # it holds the folder for as long as we like
        out, status = Run(tmp_path, steps=400, save_every=5).end()
        assert status == 1 and "step" not in out.split("start\n")[-1]
        line = fails("train", "ddpm", *TINY, "--out", tmp_path, code=1)
        assert "already holds a run" in line
        other = same_as_runs(tmp_path)
        other.resume()
        with pytest.raises(ValueError, match=f"{tmp_path}: another process is training there; wait for it"):
            next(other.run(images().batches(8), 1))
    finally:
        first.process.kill()
        first.end()
    finish(Run(tmp_path, steps=400, save_every=200))           # the lock does not outlive its holder


def test_what_another_has_saved_since_is_not_gone_back_on(tmp_path):
    list(trainer(tmp_path).run(batches(), 2))
    first, second = trainer(tmp_path), trainer(tmp_path)
    first.resume(), second.resume()
    list(first.run(batches()))
    with pytest.raises(ValueError, match="another process went on to step 8 since; resume"):
        next(second.run(batches(), 1))
    assert container.read_header(tmp_path / "state.safetensors")["step"] == 8


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    none = OSError(errno.EOPNOTSUPP, "Operation not supported")
    monkeypatch.setattr(FileLock, "acquire", lambda self: (_ for _ in ()).throw(none))
    assert len(list(trainer(tmp_path).run(batches()))) == 8


def test_two_begin_at_once(tmp_path):
    """Only one of them trains, and what it writes is whole."""
    both = [Run(tmp_path, steps=100_000, save_every=1) for _ in range(2)]
    try:
        multiprocessing.connection.wait([run.process.sentinel for run in both], timeout=300)
        assert sorted((run.process.exitcode for run in both), key=str) == [1, None]
        while not (tmp_path / "state.safetensors").exists() and any(run.process.is_alive() for run in both):
            time.sleep(0.02)
    finally:
        for run in both:
            run.process.kill()
            run.end()
    checkpoints.load_model(tmp_path / "state.safetensors")


def test_one_process_may_begin_again_in_its_folder(tmp_path):
    """As when a cell of a notebook is run once more after an error left the first loop hanging."""
    run = trainer(tmp_path)
    hanging = run.run(batches())
    next(hanging)
    run.save()
    again = trainer(tmp_path)
    again.resume()
    list(again.run(batches(), 2))
    hanging.close()


# ---- memory

@pytest.mark.parametrize("error", [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")])
def test_no_memory_left_in_training(tmp_path, monkeypatch, unbroken, error):
    run = trainer(tmp_path)
    list(run.run(batches(), 2))
    loss = run.recipe.loss
    run.recipe.loss = lambda batch: (_ for _ in ()).throw(error)
    with pytest.raises(OutOfMemory, match="smaller batch, or accumulate=2 .* smaller model; step 2 is saved"):
        list(run.run(batches()))
    run.recipe.loss = loss
    again = trainer(tmp_path, accumulate=2)                    # as advised
    assert again.resume() == 2
    list(again.run(batches()))
    torch.testing.assert_close(state(tmp_path)[2], unbroken[2], rtol=1e-3, atol=1e-3)


def test_no_memory_left_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "advance", lambda *args: (_ for _ in ()).throw(
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")))
    line = fails("train", "ddpm", *TINY, "--out", tmp_path, code=1)
    assert "out of memory: choose a smaller batch, or accumulate=2" in line and "20.00 MiB" in line


def test_really_no_memory_left_for_samples():
    with pytest.raises(OutOfMemory, match="n=1000000000000 samples of .* are too many; draw fewer"):
        ddpm.recipe(width=8, size=8, num_steps=5).draw(10**12, steps=1)


def test_other_errors_stay_as_they_are(tmp_path):
    run = trainer(tmp_path)
    run.recipe.loss = lambda batch: (_ for _ in ()).throw(RuntimeError("a fault of one's own"))
    with pytest.raises(RuntimeError, match="^a fault of one's own$"):
        list(run.run(batches()))


# ---- logs and networks

@pytest.mark.parametrize("lost", ["all", "some"])
def test_a_lost_log_does_not_keep_a_run_from_going_on(tmp_path, unbroken, lost):
    list(trainer(tmp_path).run(batches(), 4))
    log = tmp_path / "log.jsonl"
    log.write_text("" if lost == "all" else "".join(log.read_text().splitlines(True)[:3]))
    run = trainer(tmp_path)
    assert run.resume() == 4
    list(run.run(batches()))
    (tensors, step, losses), (expected, _, known) = state(tmp_path), unbroken
    assert all(torch.equal(tensors[name], expected[name]) for name in expected) and step == 8
    assert losses[4:] == known[4:] and len(losses) == 8


def test_no_network_at_all(tmp_path, monkeypatch):
    """The first command of the README works, on the built-in digits, and says so in one line."""
    def unreachable(*args):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.delenv("DIFFUSION_COURSE_OFFLINE", raising=False)
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for module in (mnist, download):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    plain = [word for word in TINY if word not in ("--data", "digits")]
    result = call("train", "ddpm", *plain, "--out", "run")
    assert result.code == 0 and "4 steps of 4 on digits" in result.out
    said, = [line for line in result.err.splitlines() if "scikit-learn's 1,797 digits instead" in line]
    assert "Traceback" not in result.err
    monkeypatch.setattr(download, "repository_data", lambda: None)
    line = fails("sample", "edm", code=1)
    assert "there is no checkpoint of edm yet" in line and "Network is unreachable" in line


def test_begin_refuses_before_it_trains(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        runs.begin("ddpm", tmp_path / "file", "smoke", "digits", cpu=True)
