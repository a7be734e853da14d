import shutil

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import wake

from diffusion_course.data import sources
from diffusion_course.data.captions import words
from diffusion_course.papers import autoencoder_kl, latent_diffusion, video_diffusion_models
from diffusion_course.recipe import Preset
from diffusion_course.training import checkpoints, runs

SMALL = {"width": 16, "size": 16, "autoencoder": None}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)


def begin(name, recipe, data="moving_digits", **options):
    return runs.begin(name, "run", "smoke", data, cpu=True, recipe=recipe, numbers={"batch_size": 4},
                      samples=5, **options)


def test_an_autoencoder_is_shown_images_of_its_data_and_draws_them():
    trainer, batches = begin("autoencoder_kl", {"width": 8, "size": 16})
    recipe, source = trainer.recipe, sources.load("moving_digits", (1, 16, 16))
    assert recipe.shape == (4, 4, 4) and batches[0]["x"].shape == (4, 1, 16, 16)
    assert set(trainer.sample_options) == {"x"}
    torch.testing.assert_close(trainer.sample_options["x"], source[slice(5)]["x"])
    x = recipe.draw(5, seed=0, **trainer.sample_options)
    auto = recipe.model.autoencoder
    torch.testing.assert_close(x, auto.decode(auto.encode(source[slice(5)]["x"])))


def test_a_model_of_captions_is_asked_for_those_of_its_data():
    trainer, _ = begin("latent_diffusion", SMALL)
    source = sources.load("moving_digits", (1, 16, 16))
    assert {"text", "steps", "step"} == set(trainer.sample_options)
    assert torch.equal(trainer.sample_options["text"], source[slice(5)]["text"])
    assert all(text.startswith("a") and "moves" not in text for text in words(source[slice(5)]["text"]))


def test_data_are_asked_for_in_the_shape_of_items(tmp_path):
    """Not in that of noise: latents, or the small images of a cascade."""
    path = checkpoints.save_model(tmp_path / "auto.safetensors", autoencoder_kl.recipe(width=8, size=16))
    trainer, batches = begin("latent_diffusion", {**SMALL, "autoencoder": str(path)})
    assert trainer.recipe.shape == (4, 4, 4) and batches[0]["x"].shape == (4, 1, 16, 16)
    assert trainer.recipe.origin.kwargs["autoencoder"].checkpoint == checkpoints.identity(path)
    assert trainer.recipe.draw(5, **trainer.sample_options | {"steps": 1}).shape == (5, 1, 16, 16)


def test_a_cascade_is_given_large_images_of_its_own_data():
    trainer, batches = begin("imagen", {"sizes": (8, 16)}, data=None)
    assert trainer.facts["data"] == "digits"
    assert trainer.recipe.shape == (1, 8, 8) and batches[0]["x"].shape == (4, 1, 16, 16)
    assert trainer.sample_options["text"].shape == (5, 12)


@pytest.mark.parametrize("name, recipe, data, message", [
    ("latent_diffusion", {**SMALL, "channels": 2}, "digits", "channels=2 must be 1 or 3"),
    ("latent_diffusion", {"classes": 10, "width": 16}, "moving_digits", "moving_digits has no labels"),
    ("dit", {}, "moving_digits", "classes=10 does not fit the data: moving_digits has no labels")])
def test_data_that_do_not_fit(name, recipe, data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        begin(name, recipe, data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, recipe", [("latent_diffusion", SMALL), ("imagen", {"sizes": (8, 16)})])
def test_data_without_captions(name, recipe, tmp_path):
    for kind in "ab":                                          # labels, but no words for them
        (tmp_path / "pets" / kind).mkdir(parents=True)
        imageio.imwrite(tmp_path / "pets" / kind / "a.png", np.full((20, 30, 3), 99, np.uint8))
    with pytest.raises(ValueError, match=f"{name} learns from captions, and pets has none; "
                                         "choose --data mnist or moving_mnist"):
        begin(name, recipe, "pets")
    assert not (tmp_path / "run").exists()


def test_items_of_another_shape_are_refused():
    class Wide:
        name, shape = "wide", (1, 16, 32)

    made = autoencoder_kl.recipe(width=8, size=16)
    message = r"wide holds items of \[1, 16, 32\], but autoencoder_kl makes samples of \[1, 16, 16\]"
    with pytest.raises(ValueError, match=message):
        runs.check(made, Wide())


# ---- videos, and models of the course to begin with

def presets(monkeypatch, **options):
    """video_diffusion_models with a preset that begins with models of the course."""
    kwargs = {"width": 8, "frames": 4, "size": 16, **options.pop("recipe", {})}
    preset = Preset(steps=2, batch_size=4, recipe=kwargs, **options)
    monkeypatch.setitem(video_diffusion_models.PRESETS, "smoke", preset)


def test_a_preset_may_begin_with_a_model(tmp_path, monkeypatch):
    image = latent_diffusion.recipe(width=8, size=16)
    wake(image.model)
    path = checkpoints.save_model(tmp_path / "image.safetensors", image, step=7)
    presets(monkeypatch, init=str(path))
    trainer, _ = begin("video_diffusion_models", {}, None)
    assert trainer.facts["init"] == {**checkpoints.identity(path), "steps": 7}
    own, others = trainer.recipe.model.state_dict(), image.model.state_dict()
    assert torch.equal(own["net.conv_in.weight"], others["net.conv_in.weight"].half().float())
    assert not any("tokens" in name for name in own)
    trainer.save()
    trainer, _ = begin("video_diffusion_models", {}, None, resume=True)
    assert trainer.facts["init"]["steps"] == 7
    shutil.rmtree("run")
    trainer, _ = begin("video_diffusion_models", {}, None, init="none")
    assert "init" not in trainer.facts


def test_a_model_may_begin_with_two_others(tmp_path, monkeypatch):
    """A video model for captions: the video model's weights, and what only the image model has."""
    image, video = latent_diffusion.recipe(width=16, size=16), video_diffusion_models.recipe(16, 4, 16)
    wake(image.model), wake(video.model)
    names = [str(checkpoints.save_model(tmp_path / f"{name}.safetensors", model, step=step))
             for name, model, step in (("image", image, 7), ("video", video, 5))]
    presets(monkeypatch, recipe={"width": 16, "words": 21})
    trainer, _ = begin("video_diffusion_models", {}, None, init=",".join(names))
    own, image, video = (recipe.model.state_dict() for recipe in (trainer.recipe, image, video))
    for name, weight in own.items():
        given = video.get(name, image.get(name))
        if given is not None and given.shape == weight.shape:
            assert torch.equal(weight, given.half().float()), name
    assert set(own) == set(image) | set(video)
    assert trainer.facts["init"]["checkpoint"] == "video" and trainer.facts["init"]["steps"] == 5
    assert trainer.facts["init"]["over"]["checkpoint"] == "image"
    assert checkpoints.steps_in_all({"init": trainer.facts["init"]}) == 5


def test_models_of_the_course_are_for_its_data(tmp_path, monkeypatch):
    first = checkpoints.save_model(tmp_path / "first.safetensors", autoencoder_kl.recipe(width=8, size=16))
    presets(monkeypatch, init="nowhere", recipe={"autoencoder": str(first)})
    (tmp_path / "mine").mkdir()
    imageio.imwrite(tmp_path / "mine" / "a.gif", np.arange(1200, dtype=np.uint8).reshape(3, 20, 20))
    trainer, batches = begin("video_diffusion_models", {}, "mine")
    assert trainer.recipe.shape == (1, 4, 16, 16) and "init" not in trainer.facts
    assert batches[0]["x"].shape == (4, 1, 4, 16, 16)
    shutil.rmtree("run")
    trainer, _ = begin("video_diffusion_models", {"autoencoder": str(first)}, "mine")      # unless asked for
    assert trainer.recipe.shape == (4, 4, 4, 4)
    shutil.rmtree("run")
    with pytest.raises(ValueError, match="'nowhere' is neither a checkpoint"):
        begin("video_diffusion_models", {}, "mine", init="nowhere")            # asked for, so not dropped
    shutil.rmtree("run")
    trainer, _ = begin("video_diffusion_models", {"autoencoder": "none"}, "moving_digits", init="none")
    assert trainer.recipe.shape == (1, 4, 16, 16)


def test_a_folder_with_few_clips_still_asks_for_all_samples(tmp_path):
    (tmp_path / "mine").mkdir()
    imageio.imwrite(tmp_path / "mine" / "a.gif", np.arange(1200, dtype=np.uint8).reshape(3, 20, 20))
    (tmp_path / "mine" / "a.txt").write_text("my very own cat")
    trainer, batches = begin("video_diffusion_models", {"width": 8, "words": 300, "length": 5}, "mine")
    assert trainer.sample_options["text"].shape == (5, 5) and batches[0]["text"].shape == (4, 5)
    assert (trainer.sample_options["text"] == batches[0]["text"][:1]).all()
    with pytest.raises(ValueError, match="'my' in 'my very own cat' is not one of the words.*--words 1000"):
        begin("video_diffusion_models", {"width": 8, "words": 21}, "mine", resume=True)


@pytest.mark.parametrize("kind", sources.KINDS)
def test_kinds_of_moving_digits(kind):
    frames = 32 if kind == "hiding" else 16
    train, test = (sources.load(f"{kind}_digits", (1, frames, 32, 32), split) for split in ("train", "test"))
    assert train.name == test.name == f"{kind}_digits"
    batch = test[slice(50)]
    assert batch["hidden"].sum(1).unique().tolist() == [20 if kind == "hiding" else 0]
    assert (batch["fps"] == 8).all()
    dark = (batch["x"].amax((1, 3, 4)) == -1)
    assert torch.equal(dark, batch["hidden"])
    assert train.mode == ("straight" if kind in ("moving", "slow") else "bounce")
    if kind != "moving":
        assert (batch["digits"][:, 1] == -1).all() and max(train.speeds) <= 0.5


def first_losses(**options):
    torch._dynamo.reset()
    trainer, batches = begin("dit", {"dim": 16, "depth": 1, "size": 16, "autoencoder": None}, **options)
    with torch._inductor.config.patch(force_disable_caches=True):
        return [step.loss for step in trainer.run(batches, 3)]


def test_a_compiled_network_trains_as_the_other():
    graphs = torch._dynamo.utils.counters["stats"]
    plain, before = first_losses(), graphs["unique_graphs"]
    shutil.rmtree("run")
    assert first_losses(compiled=True) == pytest.approx(plain, rel=1e-4)
    assert graphs["unique_graphs"] > before


def test_without_a_compiler_a_network_runs_as_ever(tmp_path, capsys):
    plain = first_losses()
    shutil.rmtree("run")
    with torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "nosuch"),), "force_disable_caches": True}):
        assert first_losses(compiled=True) == plain
    assert "not compiled: " in capsys.readouterr().out
