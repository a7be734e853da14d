"""train-all: the order of the models, the time that each gets, and what a second call finds."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import done, fails

from diffusion_course.cli import everything
from diffusion_course.data import mnist
from diffusion_course.data.download import sha256_of
from diffusion_course.training.container import read_header

TRAIN = ("train-all", "--preset", "smoke", "--n", "8", "--cpu")
CHAINS = ["vae-mm img-mm vid-mm vid-mm-text", "vid-mm fdm-mm", "vae-mm dit-class",
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
    order, chain = everything.in_order(reversed(everything.models()), preset), chain.split()
    assert sorted(order) == sorted(everything.models())
    assert sorted(chain, key=order.index) == chain


def test_what_was_trained_before_is_what_a_model_begins_with():
    given = everything.arguments("vid-mm-text", "laptop", {"vae-mm", "vid-mm"})
    assert given["init"] == "img-mm,runs/vid-mm"
    assert given["recipe"] == {"words": 21, "autoencoder": "runs/vae-mm"}
    assert everything.arguments("vid-mm-text", "laptop", ())["recipe"]["autoencoder"] == "vae-mm"


@pytest.mark.parametrize("seconds, steps", [(1e9, 1000), (50.0, 100), (0.0, 4)])
def test_a_run_is_as_long_as_fits(seconds, steps):
    """Steps take half a second, the first of them ten."""
    trainer = SimpleNamespace(step=0, seconds=0.0, total=1000)

    def run(batches, count):
        for _ in range(count):
            trainer.step, trainer.seconds = trainer.step + 1, trainer.seconds + (0.5 if trainer.step else 10)
            yield SimpleNamespace(tensor=__import__("torch").zeros(()))

    trainer.run = run
    everything.shorten(trainer, None, seconds)
    assert trainer.total == steps


def test_everything_is_trained_measured_and_kept():
    said = done(*TRAIN, "--only", "dit-class,vae-mm", "--budget", "5")
    assert said.index("vae-mm (1 of 2)") < said.index("dit-class (2 of 2)")
    board = [json.loads(line) for line in Path("runs/leaderboard.jsonl").read_text().splitlines()]
    assert [row["model"] for row in board] == ["vae-mm", "dit-class"]
    header = read_header("runs/dit-class/model.safetensors")
    assert header["step"] == board[1]["training"]["steps"] == 40
    assert header["kwargs"]["autoencoder"] == {"checkpoint": "vae-mm",
                                               "sha256": sha256_of(Path("runs/vae-mm/model.safetensors"))}
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.safetensors")}
    assert "step 40 of 40" in done(*TRAIN, "--only", "dit-class,vae-mm", "--budget", "5")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_that_the_time_did_not_suffice_for_goes_on(monkeypatch):
    monkeypatch.setattr(everything, "TRAINING", 50)            # it is planned to be longer than there is time
    assert "the time is up before ddpm" in done(*TRAIN, "--only", "ddpm", "--budget", "0.04")
    step = read_header("runs/ddpm/state.safetensors")["step"]
    assert 0 < step < 60 and not Path("runs/leaderboard.jsonl").exists()
    planned = read_header("runs/ddpm/state.safetensors")["settings"]["planned_steps"]
    assert f"step {step} of {planned}" in done(*TRAIN, "--only", "ddpm", "--budget", "5")
    assert read_header("runs/ddpm/model.safetensors")["step"] == planned


def test_an_unknown_model_is_named():
    assert "nothing: there are ddpm, " in fails("train-all", "--budget", 1, "--only", "ddpm,nothing", code=2)
