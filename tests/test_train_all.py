"""train-all: the order of the models, the time that each gets, and what a second call finds."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import call, done, fails

from diffusion_course.cli import everything
from diffusion_course.data import mnist
from diffusion_course.data.download import sha256_of
from diffusion_course.training.container import read_header
from diffusion_course.training.shipped import SHIPPED, models
from diffusion_course.training.trainer import Trainer

TRAIN = ("train-all", "--preset", "smoke", "--n", "8", "--cpu")
CHAINS = ["vae-mm img-mm vid-mm vid-mm-text", "vae-mm video-vae-mm", "vae-mm img-mm video-ldm-mm",
          "vae-mm dit-mm latte-mm", "vid-mm fdm-mm", "vae-mm dit-class",
          "rectified_flow rectified_flow_2 rectified_flow_distilled",
          "rectified_flow rectified_flow_distilled_1"]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    monkeypatch.setattr(mnist, "cache_folder", lambda: tmp_path / "cache")


@pytest.mark.parametrize("preset", ["laptop", "t4"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_model_comes_after_those_that_it_needs(chain, preset):
    order, chain = everything.in_order(reversed(models()), preset), chain.split()
    assert sorted(order) == sorted(models())
    assert sorted(chain, key=order.index) == chain


def test_what_was_trained_before_is_what_a_model_begins_with():
    given = everything.arguments("vid-mm-text", "laptop", {"vae-mm", "vid-mm"})
    assert given["init"] == "img-mm,runs/vid-mm"
    assert given["recipe"] == {"words": 21, "autoencoder": "runs/vae-mm"}
    assert everything.arguments("vid-mm-text", "laptop", ())["recipe"]["autoencoder"] == "vae-mm"


def test_what_is_no_model_is_handed_on():
    """Data that are not the recipe's own, and that a model begins with nothing."""
    given = everything.arguments("dit-mm", "laptop", ())
    assert given["data"] == "bouncing_mnist" and given["init"] is None
    assert everything.arguments("latte-late", "laptop", ())["init"] == "none"
    assert everything.arguments("latte-late", "smoke", ())["init"] is None
    assert everything.arguments("latte-mm", "laptop", {"dit-mm"})["init"] == "runs/dit-mm"


class Slow:
    """A trainer whose steps take half a second by its own clock, the first of them ten."""

    def __init__(self):
        self.step, self.total, self.folder, self.now = 0, 1000, Path("runs/slow"), 0.0

    def run(self, batches, count):
        for _ in range(count):
            assert self.folder is None                         # so none of these steps is saved
            self.step, self.now = self.step + 1, self.now + (0.5 if self.step else 10)
            yield SimpleNamespace(tensor=torch.zeros(()))


@pytest.mark.parametrize("seconds, steps", [(1e9, 1000), (math.inf, 1000), (11.5 + 50, 104), (11.5 + 5, 14)])
def test_a_run_is_as_long_as_fits(seconds, steps, monkeypatch):
    trainer = Slow()
    monkeypatch.setattr(everything.time, "monotonic", lambda: trainer.now)
    everything.shorten(trainer, None, seconds)
    assert trainer.total == steps and trainer.folder == Path("runs/slow")


def test_a_run_is_not_begun_for_nothing(monkeypatch):
    trainer = Slow()
    monkeypatch.setattr(everything.time, "monotonic", lambda: trainer.now)
    with pytest.raises(ValueError, match="its 13 seconds hold 7 of 1000 steps; it needs a larger --budget"):
        everything.shorten(trainer, None, 13)


def rows():
    return [json.loads(line) for line in Path("runs/leaderboard.jsonl").read_text().splitlines()]


def test_everything_is_trained_measured_and_kept(monkeypatch):
    said = done(*TRAIN, "--only", "dit-class,vae-mm", "--budget", "9")
    assert said.index("vae-mm (1 of 2)") < said.index("dit-class (2 of 2)")
    assert [row["model"] for row in rows()] == ["vae-mm", "dit-class"]
    header = read_header("runs/dit-class/model.safetensors")
    assert header["step"] == rows()[1]["training"]["steps"] == 40
    parts = {"checkpoint": "vae-mm", "sha256": sha256_of(Path("runs/vae-mm/model.safetensors"))}
    assert header["kwargs"]["autoencoder"] == parts
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()}
    for only in "dit-class", "dit-class,vae-mm":               # nothing is done again
        done(*TRAIN, "--only", only, "--budget", "0")
        assert before == {path: path.stat().st_mtime_ns for path in before}
    Path("runs/leaderboard.jsonl").unlink()                    # what is finished is measured if it is not yet
    done(*TRAIN, "--only", "dit-class", "--budget", "0")
    assert [row["model"] for row in rows()] == ["dit-class"]


def test_what_the_time_did_not_suffice_for_goes_on_with_its_own_parts(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(everything.time, "monotonic", lambda: clock.now)
    took = Trainer.advance

    def advance(self, batch):                                  # a minute for each step
        clock.now += 60
        return took(self, batch)

    monkeypatch.setattr(Trainer, "advance", advance)
    monkeypatch.setattr(everything, "TRAINING", 50)            # runs are planned longer than there is time
    assert "the time is up before dit-class" in done(*TRAIN, "--only", "dit-class", "--budget", "20")
    assert read_header("runs/dit-class/state.safetensors")["step"] == 21
    assert "the time is up before vae-mm" in done(*TRAIN, "--only", "vae-mm,dit-class", "--budget", "9")
    assert "step 10 of 40" in done(*TRAIN, "--only", "vae-mm", "--budget", "99")
    assert "step 21 of 40" in done(*TRAIN, "--only", "vae-mm,dit-class", "--budget", "99")
    assert {row["model"] for row in rows()} == {"vae-mm", "dit-class"}
    assert read_header("runs/dit-class/model.safetensors")["kwargs"]["autoencoder"]["sha256"] == \
        SHIPPED["vae-mm"].sha256                               # with which it began


def test_what_fails_is_left_out_with_what_needs_it(monkeypatch):
    Path("runs/vae-mm").mkdir(parents=True)
    Path("runs/vae-mm/state.safetensors").write_text("no state")
    result = call(*TRAIN, "--only", "vae-mm,dit-class,ddpm", "--budget", "9")
    assert result.code == 1 and "error: not trained: vae-mm, dit-class; their errors are above" in result.err
    assert "runs/vae-mm/state.safetensors: truncated" in result.out
    assert "dit-class (3 of 3): it needs vae-mm" in result.out
    assert [row["model"] for row in rows()] == ["ddpm"]


def test_the_smallest_models_begin_with_no_other():
    """Those that ship are larger."""
    assert not any("init" in everything.needs(slug, "smoke") for slug in models())
    assert everything.needs("vid-mm-text", "laptop")["init"] == "img-mm,vid-mm"


def test_an_unknown_model_is_named():
    assert "nothing: there are ddpm, " in fails("train-all", "--budget", 1, "--only", "ddpm,nothing", code=2)
