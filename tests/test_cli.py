"""The command line as its user meets it: what is printed, what is written, and the exit status."""
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from command import call, done, fails
from conftest import wake

from diffusion_course import __version__, cli, papers
from diffusion_course.classroom import doctor
from diffusion_course.data import mnist, sources
from diffusion_course.data.captions import tokens
from diffusion_course.data.videos import film
from diffusion_course.diffusion import schemes
from diffusion_course.diffusion.ema import EMA
from diffusion_course.evaluation import leaderboard
from diffusion_course.papers import autoencoder_kl, ddpm, latent_diffusion, video_diffusion_models
from diffusion_course.recipe import Recipe
from diffusion_course.training import checkpoints, container
from diffusion_course.training.state import read_log

TINY = "--preset smoke --steps 3 --batch-size 8 --width 8 --size 16 --data digits".split()


def train(*args):
    return done("train", "ddpm", *TINY, *args)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != ".lock"}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """An empty folder, no network, no data and no settings of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    for name in ("DIFFUSION_COURSE_DATA", "DIFFUSION_COURSE_PRESET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mnist, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without labels, of all 1000 steps of noise."""
    folder = tmp_path_factory.mktemp("plain")
    train("--out", folder)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run with labels and every option of DDPM's, of 20 steps of noise."""
    folder = tmp_path_factory.mktemp("labelled")
    train("--cosine", "--learned-variance", "--classes", 10, "--num-steps", 20, "--dropout", 0.1,
          "--out", folder)
    return folder


@pytest.fixture(scope="module")
def awake(tmp_path_factory):
    """A model whose output depends on everything: three steps are too few for that."""
    recipe = ddpm.recipe(width=8, size=16, num_steps=20, classes=10)
    wake(recipe.model)
    return checkpoints.save_model(tmp_path_factory.mktemp("awake") / "model.safetensors", recipe)


# ---- in a process of its own

PYTHON_M = [sys.executable, "-m", "diffusion_course"]


def python_m(*args):
    return subprocess.run([*PYTHON_M, *args], capture_output=True, text=True, timeout=300)


def test_python_m():
    version = python_m("--version")
    assert (version.returncode, version.stdout.strip()) == (0, __version__)
    wrong, failed = python_m("sample", "--num", "0", "x"), python_m("sample", "nowhere")
    assert wrong.returncode == 2 and "--num" in wrong.stderr
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1 and "nowhere" in failed.stderr


def test_ctrl_c_saves_and_exits_with_130():
    args = "--steps 100000 --num-steps 5 --save-and-sample-every 3 --out run".split()
    process = subprocess.Popen([*PYTHON_M, "train", "ddpm", *TINY, *args], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not Path("run/samples").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    step = int(re.search(r"stopped after step (\d+); step \1 is saved in run; resume to go on", out)[1])
    assert container.read_header("run/state.safetensors")["step"] == step >= 3
    assert len(read_log("run/log.jsonl")) == step
    assert "Traceback" not in err and "Aborted" not in err


# ---- help, papers, data, doctor

def test_help_names_all_commands_and_options():
    text = done("--help")
    assert all(name in text for name in ("papers", "data", "doctor", "train", "sample", "--version"))
    text = done("train", "ddpm", "--help")
    for name in ("preset", "steps", "resume", "learned-variance", "num-steps", "classes"):
        assert f"--{name}" in text
    assert "Ho, Jain & Abbeel" in text
    assert all(name in done("train", "--help") for name in papers.names())
    assert done("--version").strip() == __version__


def test_papers():
    table = done("papers").splitlines()
    assert [line.split()[0] for line in table] == papers.names()
    rows = json.loads(done("papers", "--json"))
    assert [row["paper"] for row in rows] == papers.names()
    row, = (row for row in rows if row["paper"] == "ddpm")
    assert "arXiv:2006.11239" in row["citation"] and isinstance(row["checkpoint"], bool)


def test_data(tmp_path):
    assert "digits train: 12000 items of [1, 32, 32], per label [1208," in done("data", "digits")
    train, test = json.loads(done("data", "digits", "--json", "--out", "new/picture.png"))
    assert (train["split"], train["items"], test["split"], test["items"]) == ("train", 12_000, "test", 297)
    assert sum(test["per_label"]) == 297 and test["shape"] == [1, 32, 32]
    assert imageio.imread("new/picture.png").shape == (8 * 34 * 2, 8 * 34 * 2, 3)
    row, = json.loads(done("data", tmp_path / "new", "--json"))
    assert row == {"name": "new", "split": "train", "items": 1, "shape": [1, 32, 32], "per_label": None}


def test_data_says_once_that_digits_stand_in():
    result = call("data", "--json", "--out", "x.png")
    assert result.err.count("\n") == 1 and "scikit-learn" in result.err
    assert {row["name"] for row in json.loads(result.out)} == {"digits"}


@pytest.mark.parametrize("args, message", [
    (["nowhere"], "data='nowhere' is neither mnist, nor digits, nor moving_mnist"),
    (["mnist"], "OFFLINE is set"),
    (["digits", "--out", "x.gif"], "x.gif: images can be written as .png, .npy"), (["."], "no images in it")])
def test_data_that_cannot_be_had(args, message):
    assert message in fails("data", *args, code=1)


def test_doctor_finds_nothing_wrong_here():
    lines = done("doctor").splitlines()
    assert all(line.startswith("OK    ") for line in lines)
    assert any("MNIST is not here" in line for line in lines) and any("Python" in line for line in lines)
    findings = json.loads(done("doctor", "--json"))
    assert len(findings) == len(lines) and all(finding["ok"] for finding in findings)


def test_doctor_says_what_is_wrong_and_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", "/no/such/folder")
    needs = ["torch>=999", "no-such-package>=2", 'x; extra == "lab"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path / "cache")
    result = call("doctor")
    assert result.code == 1
    assert f"FAIL  torch {metadata.version('torch')}\n      -> pip install -U \"torch>=999\"" in result.out
    assert 'FAIL  no-such-package is missing\n      -> pip install "no-such-package>=2"' in result.out
    assert "cannot be written to" in result.out and "-> set XDG_CACHE_HOME" in result.out
    assert "FAIL  DIFFUSION_COURSE_DATA=/no/such/folder: no such folder\n      -> " in result.out
    failed = [finding for finding in json.loads(call("doctor", "--json").out) if not finding["ok"]]
    assert len(failed) == 4 and all(finding["fix"] for finding in failed)


def test_doctor_reads_the_data_it_finds(tmp_path):
    (tmp_path / "cache").mkdir()
    for name, _ in mnist.FILES.values():
        (tmp_path / "cache" / name).write_bytes(b"\0\0\x08\x03" + bytes(13))
    result = call("doctor")
    assert result.code == 1 and f"FAIL  {tmp_path}/cache/train-images-idx3-ubyte: too long" in result.out


def test_doctor_works_without_torch():
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['x', 'doctor']\n" \
           "from diffusion_course.cli import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.returncode == 1 and "FAIL  PyTorch cannot be loaded" in found.stdout, found.stderr
    assert "https://download.pytorch.org/whl/cpu" in found.stdout


# ---- train

def test_train_writes_the_whole_run(plain):
    assert set(files(plain)) == {"model.safetensors", "model.json", "state.safetensors", "log.jsonl",
                                 "loss.png", "samples/step_000003.png"}
    card = json.loads((plain / "model.json").read_text())
    expected = {"kind": "model", "paper": "ddpm", "step": 3, "data": "digits", "preset": "smoke",
                "batch_size": 8, "seed": 0}
    assert expected.items() <= card.items()
    assert {"width": 8, "size": 16, "num_steps": 1000}.items() <= card["kwargs"].items()
    assert len(read_log(plain / "log.jsonl")) == 3
    assert imageio.imread(plain / "samples" / "step_000003.png").shape == (4 * 18 * 2, 4 * 18 * 2, 3)
    assert imageio.imread(plain / "loss.png").std() > 1


def test_options_of_the_recipe_arrive(labelled):
    kwargs = container.read_header(labelled / "model.safetensors")["kwargs"]
    assert kwargs == {"width": 8, "channels": 1, "size": 16, "num_steps": 20, "cosine": True,
                      "learned_variance": True, "classes": 10, "dropout": 0.1}


def test_train_says_what_it_does_and_where_it_went():
    out = train("--num-steps", 5)
    assert re.match(r"ddpm \(smoke\): 0.08 M weights, 3 steps of 8 on digits, cpu, \d+ threads "
                    "-> runs/ddpm\n", out)
    for place in ("runs/ddpm/model.safetensors", "runs/ddpm/samples", "runs/ddpm/loss.png"):
        assert place in out and Path(place).exists()
    assert "checkpoint of ddpm" not in done("sample", "ddpm", "--num", 1)              # it finds the run


def test_the_same_seed_gives_the_same_model(plain):
    train("--out", "again")
    train("--out", "other", "--seed", 1)
    a, b, c = (container.read(Path(run) / "model.safetensors")[0] for run in (plain, "again", "other"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_run_is_not_overwritten(plain):
    before = files(plain)
    args = ["train", "ddpm", *TINY, "--out", plain]
    assert "already holds a run; add --resume" in fails(*args, code=1)
    assert "lr was 0.004 and is now 0.1" in fails(*args, "--resume", "--lr", 0.1, code=1)
    assert files(plain) == before


def test_resuming_a_finished_run_does_nothing(tmp_path):
    train("--num-steps", 5, "--out", "run", "--resume")        # nothing to resume: it starts
    before = files(tmp_path / "run")
    assert "going on from step 3 of run" in train("--num-steps", 5, "--out", "run", "--resume")
    assert files(tmp_path / "run") == before
    shutil.rmtree("run/samples")                               # as if killed before it was drawn
    assert "3 steps in" in train("--num-steps", 5, "--out", "run", "--resume")


def test_a_stopped_run_is_resumed_to_the_same_end(tmp_path, monkeypatch):
    from diffusion_course.training.trainer import Trainer
    args = ["--num-steps", 5, "--steps", 6, "--save-and-sample-every", 2]
    train(*args, "--out", "whole")
    advance = Trainer.advance

    def interrupted(self, batch):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        result = call("train", "ddpm", *TINY, *args, "--out", "halves")
    assert result.code == 130 and "step 3 is saved in halves" in result.out
    assert "going on from step 3" in train(*args, "--out", "halves", "--resume")
    whole, halves = (container.read(f"{folder}/model.safetensors")[0] for folder in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert files(tmp_path / "whole" / "samples") == files(tmp_path / "halves" / "samples")


def test_a_folder_of_images_with_and_without_labels(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        imageio.imwrite(tmp_path / "pets" / name / "a.png", np.full((20, 30, 3), 99, np.uint8))
    train("--data", "pets", "--channels", 3, "--classes", 2, "--num-steps", 5, "--out", "run")
    header = container.read_header("run/model.safetensors")
    assert header["data"] == "pets" and header["kwargs"]["channels"] == 3
    assert "classes=2 does not fit the data: cat has no labels" in fails(
        "train", "ddpm", *TINY, "--data", "pets/cat", "--classes", 2, code=1)


def test_the_digits_stand_in_for_mnist():
    result = call("train", "ddpm", *TINY[:-2], "--num-steps", 5, "--out", "run")
    assert result.code == 0 and "3 steps of 8 on digits" in result.out
    assert "scikit-learn's 1,797 digits" in result.err


@pytest.mark.parametrize("args, message", [
    (["nosuch"], "there is no paper 'nosuch'; there are: autoencoder_kl, ddim_guidance"),
    (["ddpm", "--nosuch"], "No such option"), (["ddpm", "--steps", "0"], "--steps"),
    (["ddpm", "--steps", "-3"], "--steps"), (["ddpm", "--steps", "x"], "--steps"),
    (["ddpm", "--batch-size", "0"], "--batch-size"), (["ddpm", "--accumulate", "0"], "--accumulate"),
    (["ddpm", "--save-and-sample-every", "0"], "--save-and-sample-every"),
    (["fifo_diffusion"], "fifo_diffusion is training-free")])
def test_wrong_usage_of_train(tmp_path, args, message):
    assert message in fails("train", *args, code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args, message", [
    (["--preset", "huge"], "preset='huge' must be smoke, laptop or t4"),
    (["--classes", "5"], "classes=5 does not fit the data: digits has the labels 0 ... 9"),
    (["--data", "/no/such"], "data='/no/such' is neither mnist, nor digits, nor moving_mnist"),
    (["--data", "mnist"], "DIFFUSION_COURSE_OFFLINE is set"), (["--width", "9"], "width=9 must be"),
    (["--channels", "2"], "channels=2 must be 1 or 3"),
    (["--lr", "-1"], "lr=-1.0 must be a number, 0 at least"),
    (["--precision", "fp17"], "fp17"), (["--tracker", "nosuch"], "nosuch"),
    (["--out", "/proc/run"], "/proc/run"), (["--out", "/proc"], "/proc"),
    (["--out", "/dev/null/run"], "/dev/null/run"), (["--out", "/dev/null"], "/dev/null"),
    (["--accumulate", "3"], "a batch of 8 cannot be shared by 1 processes in 3 parts")])
def test_train_fails_with_one_clear_line_and_before_the_first_step(tmp_path, monkeypatch, args, message):
    monkeypatch.setattr(EMA, "update", lambda self: pytest.fail("it began to train"))
    assert message in fails("train", "ddpm", *TINY, "--out", tmp_path / "run", *args, code=1)
    assert not files(tmp_path)


def test_images_cannot_train_a_model_of_videos():
    line = fails("train", "video_diffusion_models", "--preset", "smoke", "--data", "digits", code=1)
    assert "digits holds items of [1, 16, 16], but video_diffusion_models makes samples of [1" in line


def test_an_error_can_be_traced():
    with pytest.raises(ValueError, match="nowhere"):
        sys_argv, sys.argv = sys.argv, ["x", "--traceback", "sample", "nowhere"]
        try:
            cli.main()
        finally:
            sys.argv = sys_argv


# ---- sample

def drawn(*args):
    out = done("sample", *args, "--out", "x.npy")
    assert re.fullmatch(r"\d+ samples of \w+ in [\d.]+ s -> x.npy\n", out)
    return np.load("x.npy")


def test_sample_from_a_file_a_run_or_a_state(plain):
    x = drawn(plain, "--num", 3, "--steps", 4)
    assert x.shape == (3, 1, 16, 16) and np.isfinite(x).all() and abs(x).max() <= 1
    assert np.array_equal(drawn(plain / "model.safetensors", "--num", 3, "--steps", 4), x)
    np.testing.assert_allclose(drawn(plain / "state.safetensors", "--num", 3, "--steps", 4), x, atol=0.02)


def test_a_seed_gives_the_same_samples(plain):
    args = [plain, "--num", 2, "--steps", 4, "--sampler", "ancestral"]
    x = drawn(*args, "--seed", 5)
    torch.manual_seed(1)
    assert np.array_equal(drawn(*args, "--seed", 5), x) and not np.array_equal(drawn(*args, "--seed", 6), x)


def test_every_sampler_is_its_own(awake):
    x = {name: drawn(awake, "--num", 2, "--steps", 6, "--sampler", name) for name in cli.models.SAMPLERS}
    assert all(np.isfinite(y).all() for y in x.values())
    assert list(x) == ["ancestral", "ddim", "euler", "heun", "dpm++", "reverse-diffusion",
                       "predictor-corrector"]
    assert np.array_equal(x["ddim"], x["euler"])               # they are the same step
    assert np.array_equal(x["ancestral"], drawn(awake, "--num", 2, "--steps", 6))      # its own, being quick
    different = [y for name, y in x.items() if name != "euler"]
    assert all(not np.allclose(a, b, atol=1e-6) for k, a in enumerate(different) for b in different[:k])


def test_a_picture(plain):
    done("sample", plain, "--num", 3, "--steps", 2)
    assert imageio.imread("samples.png").shape == (2 * 18 * 2, 2 * 18 * 2, 3)
    done("sample", plain, "--num", 1, "--steps", 2, "--out", "new/folder/x.PNG")
    assert Path("new/folder/x.PNG").exists()


def test_labels(awake):
    by_turns = drawn(awake, "--num", 12)                    # 20 steps: all that this schedule has
    threes = drawn(awake, "--num", 12, "--label", 3)
    assert np.allclose(by_turns[3], threes[3], atol=1e-5)
    assert not np.allclose(by_turns[4], threes[4], atol=1e-4)
    guided = drawn(awake, "--num", 12, "--label", 3, "--scale", 4)
    assert not np.allclose(guided, threes, atol=1e-4)
    assert np.allclose(drawn(awake, "--num", 12, "--label", 3, "--scale", 1), threes, atol=1e-6)


@pytest.mark.parametrize("args, message", [
    (["--label", "10"], "--label: 10 must be in 0 ... 9"), (["--label", "-1"], "--label: -1 must be in 0"),
    (["--sampler", "magic"], "--sampler: 'magic' must be one of ancestral, ddim, euler, heun, dpm++"),
    (["--num", "0"], "--num"), (["--steps", "0"], "--steps"), (["--steps", "-1"], "--steps")])
def test_wrong_usage_of_sample(labelled, tmp_path, args, message):
    assert message in fails("sample", labelled, *args, code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", [["--label", "3"], ["--scale", "2"]])
def test_labels_mean_nothing_to_a_model_without(plain, args):
    assert f"{plain}/model.safetensors was trained without labels" in fails("sample", plain, *args, code=2)


def test_videos():
    recipe = video_diffusion_models.recipe(width=8, frames=4, size=16)
    path = checkpoints.save_model("clips.safetensors", recipe)
    assert done("sample", path, "--num", 4, "--steps", 2).strip().endswith("-> samples.gif")
    assert imageio.imread("samples.gif").shape == (4, 2 * 18 * 2, 2 * 18 * 2, 3)
    assert drawn(path, "--num", 2, "--steps", 2, "--sampler", "heun").shape == (2, 1, 4, 16, 16)
    line = fails("sample", path, "--out", "x.png", code=1)
    assert "x.png: videos can be written as .gif, .mp4, .npy" in line


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A model of captions, awake."""
    recipe = latent_diffusion.recipe(width=8, size=16)
    wake(recipe.model)
    path = tmp_path_factory.mktemp("captioned") / "model.safetensors"
    return checkpoints.save_model(path, recipe, data="moving_digits")


def test_captions(captioned):
    args = [captioned, "--num", 3, "--steps", 2]
    seven, two = (drawn(*args, "--text", text) for text in ("a seven", "a two and an eight"))
    assert seven.shape == (3, 1, 16, 16) and not np.allclose(seven, two, atol=1e-4)
    recipe = checkpoints.load_model(captioned)
    expected = recipe.draw(3, 0, text=tokens(["a seven"] * 3), steps=2)
    np.testing.assert_allclose(seven, expected, atol=1e-4)
    texts = sources.load("moving_digits", (1, 16, 16), "test")[slice(3)]["text"]
    by_default = recipe.draw(3, 0, text=texts, steps=2)        # those of test data
    np.testing.assert_allclose(drawn(*args), by_default, atol=1e-4)
    assert not np.allclose(drawn(*args, "--text", "a seven", "--scale", 1), seven, atol=1e-4)
    assert "--text" in done("sample", "--help")


@pytest.mark.parametrize("args, code, message", [
    (["--text", "a seventeen"], 1, "'seventeen' in 'a seventeen' is not one of the words"),
    (["--text", " ".join(["a"] * 13)], 1, "has 13 words; a caption has 12 at most"),
    (["--label", "3"], 2, "was trained without labels")])
def test_captions_that_cannot_be_drawn(captioned, args, code, message):
    assert message in fails("sample", captioned, *args, code=code)


def test_captions_mean_nothing_to_a_model_without(plain, awake):
    for path in (plain, awake):
        assert "was trained without captions" in fails("sample", path, "--text", "a seven", code=2)


def test_an_autoencoder_draws_test_images_as_it_sees_them():
    path = checkpoints.save_model("auto.safetensors", autoencoder_kl.recipe(width=8, size=16),
                                  data="moving_digits")
    x, auto = drawn(path, "--num", 3), checkpoints.load_model(path).model.autoencoder
    shown = sources.load("moving_digits", (1, 16, 16), "test")[slice(3)]["x"]
    np.testing.assert_allclose(x, auto.decode(auto.encode(shown)).detach(), atol=1e-4)
    assert "autoencoder_kl does not let one choose the steps" in fails("sample", path, "--steps", 2, code=2)
    for args in (["--scale", 2], ["--label", 1], ["--text", "a seven"]):
        assert "was trained without" in fails("sample", path, *args, code=2)


def test_what_a_recipe_does_not_offer_cannot_be_chosen(monkeypatch, tmp_path):
    recipe = ddpm.recipe(width=8, size=16)
    path = checkpoints.save_model("one_step.safetensors", recipe)
    monkeypatch.setattr(checkpoints, "load_model", lambda *args: recipe)
    recipe.sample = lambda noise: noise.clamp(-1, 1)
    line = fails("sample", path, "--steps", 2, code=2)
    assert "ddpm does not let one choose the steps" in line
    assert drawn(path, "--num", 2).shape == (2, 1, 16, 16)


def test_more_steps_than_the_schedule_has(labelled):
    assert "steps=21 is more than the 20 " in fails("sample", labelled, "--steps", 21, code=1)


def test_formats_are_refused_before_sampling(plain, monkeypatch):
    monkeypatch.setattr(Recipe, "draw", lambda *args, **kwargs: pytest.fail("it began to sample"))
    for name in ("x.gif", "x.mp4", "x.jpg", "x"):
        assert f"{name}: images can be written as .png, .npy" in fails("sample", plain, "--out", name, code=1)


def test_a_folder_that_cannot_be_written_to(plain):
    for name in ("/proc/x.png", "/dev/null/x.png"):
        line = fails("sample", plain, "--num", 1, "--steps", 1, "--out", name, code=1)
        assert os.path.dirname(name) in line


@pytest.mark.parametrize("what, message", [
    ("nowhere", "'nowhere' is neither a checkpoint, nor the folder of a run, nor a paper (autoencoder_kl"),
    ("nowhere.safetensors", "nowhere.safetensors: no such checkpoint"),
    (".", "model.safetensors: no such checkpoint"),
    ("runs/nowhere/model.safetensors", "runs/nowhere/model.safetensors: no such checkpoint")])
def test_a_checkpoint_that_is_not_there(what, message):
    assert message in fails("sample", what, code=1)


def test_a_paper_without_a_checkpoint_says_how_to_train_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "shipped", lambda name: tmp_path / "nowhere" / name)
    monkeypatch.setattr(checkpoints.download, "cache_folder", lambda: tmp_path)
    line = fails("sample", "ddpm", code=1)
    assert "there is no checkpoint of ddpm yet" in line and "diffusion-course train ddpm" in line


def test_a_shipped_checkpoint_goes_before_a_run(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "shipped", lambda name: tmp_path / f"{name}.safetensors")
    (tmp_path / "ddpm.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    assert checkpoints.locate("ddpm") == tmp_path / "ddpm.safetensors"
    assert json.loads(done("papers", "--json"))[papers.names().index("ddpm")]["checkpoint"]


def test_files_that_are_no_checkpoints(plain, tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weights": 1}))
    assert "a.pt: this is a pickle" in fails("sample", "a.pt", code=1)
    (tmp_path / "b.safetensors").write_bytes((plain / "model.safetensors").read_bytes()[:1000])
    assert "b.safetensors: truncated" in fails("sample", "b.safetensors", code=1)


# ---- evaluate, leaderboard

def test_a_run_is_measured_and_stands_on_a_board(plain, monkeypatch):
    text = done("evaluate", plain, "--n", 6, "--steps", 2, "--seed", 1)
    assert re.search(r"^frechet +[\d.]+ ± .* \([\d.]+\)$", text, re.MULTILINE), text
    assert text.endswith("-> runs/leaderboard.jsonl\n") and "ddim 2, 2 evaluations" in text
    row, = json.loads(done("leaderboard", "--board", "runs/leaderboard.jsonl", "--json"))
    assert row["n"] == 6 and row["seed"] == 1 and row["model"] == Path(plain).name
    assert row["training"]["steps"] == 3 and row["training"]["flops"] > 1e8
    again, = json.loads(done("evaluate", plain, "--n", 6, "--steps", 2, "--seed", 1, "--json"))
    assert again == row
    done("evaluate", plain, "--n", 6, "--steps", 2, "--sampler", "heun", "--board", "other.jsonl")
    assert len(leaderboard.read("runs/leaderboard.jsonl")) == 1
    assert leaderboard.read("other.jsonl")[0]["evaluations"] == 3
    board = done("leaderboard", "--board", "other.jsonl", "--markdown", "--plot", "board.png")
    assert board.startswith("| model |") and imageio.imread("board.png").shape[2] in (3, 4)
    monkeypatch.setattr(leaderboard.checkpoints, "obtain", lambda slug: Path("other.jsonl"))
    assert len(json.loads(done("leaderboard", "--json"))) == 2             # the course's and one's own


@pytest.mark.parametrize("args, code, message", [
    (["evaluate", "nowhere"], 1, "'nowhere' is neither a checkpoint"),
    (["evaluate", "ddpm", "--sampler", "x"], 2, "'x' must be one of ancestral"),
    (["evaluate", "ddpm", "--n", "1"], 2, "--n"),
    (["leaderboard", "--board", "no.jsonl"], 1, "no.jsonl: no such leaderboard")])
def test_what_cannot_be_evaluated_or_shown(args, code, message):
    assert message in fails(*args, code=code)


def test_data_that_moves():
    text = done("data", "moving_digits", "--out", "clips.gif")
    assert "moving_digits train: 100000 items of [1, 16, 32, 32]" in text and "moving_digits test" in text
    assert imageio.imread("clips.gif").shape[0] == 16
    row, = json.loads(done("data", ".", "--json"))             # a folder of videos
    assert row["items"] == 1 and row["shape"] == [1, 16, 32, 32]
    assert "x.png: videos can be written as" in fails("data", "moving_digits", "--out", "x.png", code=1)
    assert "OFFLINE" in fails("data", "mnist_test_seq", code=1)


def test_a_model_of_videos_trains_on_moving_digits():
    train_videos = ("train", "video_diffusion_models", "--preset", "smoke", "--steps", 2, "--batch-size", 2,
                    "--width", 8, "--cpu", "--out", "film")
    assert "2 steps of 2 on bouncing_digits" in done(*train_videos)
    assert container.read_header("film/model.safetensors")["data"] == "bouncing_digits"
    text = done("evaluate", "film", "--n", 4, "--steps", 2)
    assert "bouncing_digits 8x16x16" in text and re.search(r"^runs +", text, re.MULTILINE)


def my_films(folder="mine", channels=3):
    """GIFs and a film of 5, 12 and 20 frames, with captions of words of one's own."""
    Path(folder).mkdir()
    for n, (name, count) in enumerate({"a.gif": 5, "b.mp4": 12, "c.gif": 20}.items()):
        frames = np.full((count, 32, 24, 3), 40 * n, np.uint8)
        frames[:, 8:16, :, n] = 250 - 5 * np.arange(count)[:, None, None]      # equal frames would become one
        more = {"plugin": "FFMPEG", "fps": 8} if name.endswith("mp4") else {}
        imageio.imwrite(f"{folder}/{name}", frames, **more)
        Path(folder, name).with_suffix(".txt").write_text(f"A {('red', 'green', 'blue')[n]} Flag, waving.")


@pytest.mark.parametrize("channels", [1, 3])
def test_ones_own_films_and_captions_from_the_first_step_to_the_last_frame(channels):
    """What users of the first repositories of video diffusion kept asking for."""
    my_films()
    args = ["train", "video_diffusion_models", "--preset", "smoke", "--data", "mine", "--channels", channels,
            "--width", 8, "--batch-size", 3, "--cpu", "--out", "film", "--save-and-sample-every", 2]
    text = done(*args, "--words", 500, "--steps", 4)
    assert "4 steps of 3 on mine" in text
    header = container.read_header("film/model.safetensors")
    assert header["kwargs"]["words"] == 500 and header["kwargs"]["channels"] == channels
    assert imageio.imread("film/samples/step_000002.gif").shape[0] == 8
    done(*args, "--words", 500, "--steps", 4, "--resume")
    clip = ["film", "--num", 2, "--steps", 2]
    red = drawn(*clip, "--text", "a red flag waving")
    assert red.shape == (2, channels, 8, 16, 16)
    assert drawn(*clip, "--text", "waving", "--frames", 3).shape == (2, channels, 3, 16, 16)
    long = drawn(*clip, "--text", "waving", "--frames", 19, "--start", "mine/a.gif", "--scheme", "hierarchy")
    assert long.shape == (2, channels, 19, 16, 16)
    first = film("mine/a.gif", 16, channels).numpy()
    np.testing.assert_allclose(long[:, :, :5], np.broadcast_to(first, (2, *first.shape)), atol=1e-5)
    assert "was trained on captions of your own" in fails("sample", *clip, code=2)
    Path("mine").rename("moved")
    assert "data='mine' is neither" in fails("evaluate", "film", "--n", 2, code=1)
    assert "has 3, enough for n up to 1" in fails("evaluate", "film", "--n", 4, "--data", "moved", code=1)
    for copy in "defgh":
        for suffix in (".gif", ".txt"):
            shutil.copy(f"moved/a{suffix}", f"moved/{copy}{suffix}")
    assert "n=3 must be 4 at least" in fails("evaluate", "film", "--n", 3, "--data", "moved", code=1)
    assert "frechet" in done("evaluate", "film", "--n", 4, "--data", "moved", "--steps", 2)
    Path("moved").rename("mine")
    message = fails(*args[:-4], "--out", "other", "--words", 21, "--steps", 2, code=1)
    assert "'A' in 'A red Flag, waving.' is not one of the words" in message and "--words 1000" in message


def test_a_preset_of_the_courses_digits_does_not_reach_ones_own_data(monkeypatch):
    my_films()
    monkeypatch.setattr(Recipe, "quick", lambda self, n: {"steps": 1})
    tiny = "--width 8 --frames 4 --size 16 --batch-size 2 --steps 1 --cpu --out film".split()
    done("train", "video_diffusion_models", "--preset", "laptop", "--data", "mine", *tiny)
    header = container.read_header("film/model.safetensors")
    assert header["kwargs"]["autoencoder"] is None and "init" not in header


def test_the_command_line_knows_all_schemes():
    assert cli.models.SCHEMES == tuple(schemes.SCHEMES)


def test_wrong_usage_of_videos(plain):
    path = checkpoints.save_model("clips.safetensors", video_diffusion_models.recipe(8, 4, 16))
    assert "makes images" in fails("sample", plain, "--frames", 4, code=2)
    line = fails("sample", path, "--scheme", "magic", code=2)
    assert "--scheme: 'magic' must be one of autoregressive, long-range" in line
    assert "nothing.gif: no such file" in fails("sample", path, "--start", "nothing.gif", code=2)
    Path("no.gif").write_text("no")
    assert "no.gif: not a readable video or frame" in fails("sample", path, "--start", "no.gif", code=1)
    assert "does not let one choose the scheme" in fails("sample", plain, "--scheme", "hierarchy", code=2)


# ---- models that begin with others

def test_a_model_begins_with_the_weights_of_another(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    done("train", "ddpm", *TINY, "--out", first)
    done("train", "ddim_guidance", *TINY, "--out", second, "--init", first, "--steps", 2)
    expected = {**checkpoints.identity(first / "model.safetensors"), "steps": 3}
    assert container.read_header(second / "model.safetensors")["init"] == expected
    assert expected["checkpoint"] == "first" and read_log(second / "log.jsonl")[0] > 0
    done("train", "ddim_guidance", *TINY, "--out", second, "--init", first, "--steps", 2, "--resume")
    assert container.read_header(second / "state.safetensors")["init"] == expected
    assert "neither a checkpoint, nor the folder of a run, nor a paper" in fails(
        "train", "ddpm", *TINY, "--out", tmp_path / "third", "--init", "nothing", code=1)
    assert not (tmp_path / "third" / "state.safetensors").exists()


def test_a_model_is_taught_by_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("train", "rectified_flow", *TINY, "--out", "runs/teacher")
    done("train", "rectified_flow", *TINY, "--out", "runs/pupil", "--teacher", "runs/teacher", "--pairs", 4)
    header = container.read_header("runs/pupil/model.safetensors")
    assert header["kwargs"]["teacher"] == checkpoints.identity("runs/teacher/model.safetensors")
    done("sample", "runs/pupil", "--num", 2, "--out", "pupil.png")
    assert Path("pupil.png").exists()
    message = fails("train", "rectified_flow", *TINY, "--out", "runs/wider", "--teacher", "runs/teacher",
                    "--width", 16, code=1)
    assert "its pupil would be a rectified_flow with {'width': 16" in message


def test_latents_are_those_of_a_model_that_was_trained_first(monkeypatch):
    monkeypatch.setattr(Recipe, "quick", lambda self, n: {"steps": 2} if self.takes("steps") else {})
    tiny = "--preset smoke --steps 2 --batch-size 4 --width 8 --size 16 --data moving_digits --cpu".split()
    done("train", "autoencoder_kl", *tiny, "--out", "runs/first")
    done("train", "latent_diffusion", *tiny, "--out", "runs/second", "--autoencoder", "runs/first")
    header = container.read_header("runs/second/model.safetensors")
    assert header["kwargs"]["autoencoder"] == checkpoints.identity("runs/first/model.safetensors")
    assert Path("runs/first/samples/step_000002.png").exists()
    assert drawn("runs/second", "--num", 2, "--steps", 2, "--text", "a two").shape == (2, 1, 16, 16)
    Path("pets").mkdir()
    imageio.imwrite("pets/a.png", np.full((20, 30, 3), 99, np.uint8))
    message = fails("train", "latent_diffusion", *tiny, "--data", "pets", "--autoencoder", "runs/first",
                    "--out", "runs/third", code=1)
    assert "latent_diffusion learns from captions, and pets has none; choose --data mnist or" in message
