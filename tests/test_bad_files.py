"""Files whose bytes were changed, and commands with odd words: a result, or one error that names the file."""
import gzip
import io
import json
import re
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from command import call
from hypothesis import given
from hypothesis import strategies as st
from promises import CASES, judged, many
from safetensors import safe_open
from safetensors.torch import save_file

from diffusion_course import exercises, papers
from diffusion_course.data import mnist, sources
from diffusion_course.data.videos import film, moving_mnist_file, video_folder
from diffusion_course.evaluation import leaderboard
from diffusion_course.papers import ddpm
from diffusion_course.training import checkpoints, container, shipped, state
from diffusion_course.training.trainer import Trainer

pytestmark = pytest.mark.bad_input


@st.composite
def broken(draw, whole: bytes):
    """The bytes of a good file, some of them changed, cut out, doubled, put in or left off."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        # the beginning is where a file says what it is, so half of the changes are there
        at = draw(st.integers(0, draw(st.sampled_from([min(64, len(found)), len(found)]))))
        match draw(st.sampled_from("change cut remove double insert".split())):
            case "change":
                found[at:at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del found[at:]
            case "remove":
                del found[at:at + draw(st.integers(1, 100))]
            case "double":
                found[at:at] = found[at:at + draw(st.integers(1, 100))]
            case "insert":
                found[at:at] = draw(st.binary(max_size=20))
    return bytes(found)


def gif(frames=3):
    file = io.BytesIO()
    pixels = np.arange(frames * 64, dtype=np.uint8).reshape(frames, 8, 8)
    imageio.imwrite(file, pixels, extension=".gif", plugin="pillow")
    return file.getvalue()


def picture(extension):
    file = io.BytesIO()
    imageio.imwrite(file, np.arange(192, dtype=np.uint8).reshape(8, 8, 3), extension=extension)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros((3, 4, 8, 8), np.uint8))
    return file.getvalue()


def idx(*shape):
    return b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes() + bytes(int(np.prod(shape)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    list(trainer(folder).run([{"x": torch.zeros(2, 1, 8, 8)}] * 2))
    return folder


def trainer(folder):
    return Trainer(ddpm.recipe(width=8, size=8, num_steps=4), folder, steps=2, cpu=True)


def row():
    return json.dumps(leaderboard.read(shipped.shipped("leaderboard"))[0]).encode()


def resume(folder):
    trainer(folder).resume()


FILES = {  # name: a good file, and what reads it
    "a.safetensors": (lambda run: (run / "model.safetensors").read_bytes(), checkpoints.load_model),
    "state.safetensors": (lambda run: (run / "state.safetensors").read_bytes(),
                          lambda path: resume(path.parent)),
    "log.jsonl": (lambda run: (run / "log.jsonl").read_bytes(), state.read_log),
    "images-idx": (lambda run: idx(3, 28, 28), partial(mnist.read_idx, ndim=3)),
    "labels-idx.gz": (lambda run: gzip.compress(idx(30)), partial(mnist.read_idx, ndim=1)),
    "clip.gif": (lambda run: gif(), partial(film, size=8)),
    "clip.mp4": (lambda run: imageio.imwrite("<bytes>", np.zeros((3, 32, 32, 3), np.uint8), extension=".mp4",
                                             plugin="FFMPEG", fps=8), partial(film, size=8)),
    "picture.png": (lambda run: picture(".png"), lambda path: sources.load(str(path.parent), (1, 8, 8))),
    "picture.jpg": (lambda run: picture(".jpg"), lambda path: sources.load(str(path.parent), (3, 8, 8))),
    "clips.npy": (lambda run: npy(), moving_mnist_file),
    "board.jsonl": (lambda run: row() + b"\n" + row(),
                    lambda path: leaderboard.table(leaderboard.read(path))),
}


@pytest.mark.parametrize("name", FILES)
def test_changed_bytes(name, run, tmp_path):
    good, read = FILES[name]
    path = tmp_path / name

    @many
    @given(broken(good(run)))
    def holds(content):
        path.write_bytes(content)
        judged(lambda: read(path), str(path), str(tmp_path))

    path.write_bytes(good(run))
    read(path)
    holds()


@pytest.mark.parametrize("name", ["a.txt", "progress.json"])
def test_changed_texts(name, tmp_path, monkeypatch):
    """Captions are refused by name; a file of progress that cannot be read counts as none."""
    (tmp_path / "a.gif").write_bytes(gif())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(exercises, "progress_file", lambda: tmp_path / name)

    @many
    @given(st.one_of(st.binary(max_size=40), broken(b'{"solved": ["1.1", "1.2"]}')))
    def holds(content):
        (tmp_path / name).write_bytes(content)
        judged(lambda: video_folder(tmp_path, 8, 2) if name == "a.txt" else exercises.solved(), str(tmp_path))

    holds()


SIMPLE = st.none() | st.booleans() | st.integers(-10**12, 10**12) | st.floats() | st.text(max_size=9)
VALUES = st.recursive(SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=9), inner, max_size=3), max_leaves=5)
NAMES = "paper kwargs kind step settings ema_updates minutes init scaler data seed".split()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["model", "state"])
def test_changed_headers(name, file, run, tmp_path):
    """A checkpoint whose header says something else than what fits."""
    with safe_open(run / f"{file}.safetensors", "pt") as opened:
        header = json.loads(opened.metadata()[container.KEY])
    tensors, _ = container.read(run / f"{file}.safetensors")
    path = tmp_path / f"{file}.safetensors"
    values = VALUES
    if name == "kwargs":                                       # of the recipe: one that is there, or another
        values = st.dictionaries(st.sampled_from([*header["kwargs"], "os", "__class__"]), VALUES, max_size=3)

    @many
    @given(values)
    def holds(value):
        changed = header["kwargs"] | value if name == "kwargs" else value
        save_file(tensors, path, metadata={container.KEY: json.dumps(header | {name: changed})})
        judged(lambda: checkpoints.load_model(path) if file == "model" else resume(tmp_path), str(path))
        judged(lambda: checkpoints.steps_in_all(container.read_header(path)), str(path))

    holds()


# ---- commands

WORD = st.one_of(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
                 st.sampled_from(["-1", "0", "1e9", "nan", "inf", "..", "/", "nosuch", "a.gif", "ddpm", "--",
                                  "-h", "digits", "1,2", "x" * 300, "digits/..", "smoke"]))
OPTIONS = {
    "papers": ["--json"], "data": ["--out", "--json"], "lessons": ["--json", "--markdown"],
    "leaderboard": ["--board", "--plot", "--json"], "badges": ["--repo", "--ref", "--folder"],
    "run": ["--preset", "--out", "--timeout"], "assignment": ["--out"],
    "evaluate": ["--n", "--seed", "--steps", "--sampler", "--data", "--board"],
    "sample": ["--num", "--steps", "--sampler", "--scale", "--label", "--text", "--frames", "--start",
               "--scheme", "--seed", "--out"],
    "train": ["--preset", "--steps", "--batch-size", "--lr", "--data", "--out", "--init", "--accumulate",
              "--precision", "--seed", "--tracker", "--width", "--size", "--num-steps", "--dropout"],
}


@st.composite
def commands(draw, name):
    """Up to two options with odd words, after what is short and right."""
    words = {"train": ["train", draw(st.sampled_from([*papers.names(), "x", ""])), "--preset", "smoke",
                       "--steps", "1", "--batch-size", "2", "--width", "8", "--size", "8", "--data", "digits",
                       "--cpu"],
             "sample": ["sample", draw(st.sampled_from(["made", "made", "nosuch", "edm"])), "--num", "1",
                        "--steps", "1"],
             "evaluate": ["evaluate", "made", "--n", "4", "--steps", "1"],
             "run": ["run", draw(st.sampled_from(["99", "x", "", "7.5"]))],
             "assignment": ["assignment", draw(st.sampled_from(["99", "x", ""])), "--out", "course"],
             "badges": ["badges", "--folder", "nowhere"]}.get(name, [name])
    for option in draw(st.lists(st.sampled_from(OPTIONS[name]), min_size=1, max_size=2)):
        words += [option] if option in ("--json", "--markdown") else [option, draw(WORD)]
    return words


@pytest.mark.parametrize("name", OPTIONS)
def test_odd_commands(name, tmp_path, monkeypatch, run):
    """Exit status 0, 1 or 2, one line that begins with error where it is not 0, and nothing half written."""
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    Path("made/model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    monkeypatch.setattr(checkpoints, "obtain", lambda slug: run / "model.safetensors")

    @many
    @given(commands(name))
    def holds(words):
        CASES["bad_input"] += 1
        result = call(*words)
        assert result.code in (0, 1, 2), result
        assert "Traceback" not in result.err, result.err
        if result.code:
            assert len(re.findall(r"(?:^|\r)(?:usage|error): ?", result.err, re.I | re.M)) >= 1, result
            assert len(result.err) < 3000, result.err
        assert not [path for path in Path(".").rglob("*") if ".part" in path.name]

    holds()
