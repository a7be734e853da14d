import json
import pickle
import shutil

import pytest
import torch
from conftest import wake
from safetensors.torch import save_file
from torch import nn

from diffusion_course.papers import ddpm
from diffusion_course.recipe import Recipe
from diffusion_course.training import checkpoints, container
from diffusion_course.training.checkpoints import load_model, save_model
from diffusion_course.training.container import CheckpointError, read, read_header, write

TINY = {"width": 8, "size": 16, "num_steps": 20}


@pytest.fixture
def saved(tmp_path):
    recipe = ddpm.recipe(**TINY)
    wake(recipe.model)
    path = tmp_path / "model.safetensors"
    return recipe, save_model(path, recipe, step=3, data="digits", metrics={"loss": 0.5})


def test_a_checkpoint_is_all_one_needs(saved):
    recipe, path = saved
    loaded = load_model(path)
    assert loaded.origin == recipe.origin and not loaded.model.training
    # half precision
    torch.testing.assert_close(loaded.draw(2, seed=0), recipe.draw(2, seed=0), rtol=2e-2, atol=2e-2)
    header = read_header(path)
    assert header["step"] == 3 and header["data"] == "digits" and header["metrics"] == {"loss": 0.5}
    assert header["versions"]["torch"] == torch.__version__


def test_weights_are_kept_in_half_precision(saved):
    assert {x.dtype for x in read(saved[1])[0].values()} == {torch.float16}


def test_the_card_names_the_sha256(saved):
    import hashlib
    card = json.loads(checkpoints.write_card(saved[1], minutes=1.5).read_text())
    assert card["sha256"] == hashlib.sha256(saved[1].read_bytes()).hexdigest()
    assert card["minutes"] == 1.5 and card["paper"] == "ddpm"


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors: no such checkpoint"):
        load_model(tmp_path / "nowhere.safetensors")


@pytest.mark.fault
def test_a_file_cut_anywhere(saved):
    whole = saved[1].read_bytes()
    for cut in [0, 1, 7, 8, 100, *range(1000, len(whole), len(whole) // 10), len(whole) - 1]:
        saved[1].write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="model.safetensors: truncated, or not a safetensors file"):
            load_model(saved[1])


class Bomb:
    def __reduce__(self):
        import os
        return os.mkdir, ("exploded",)


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["pickle", "torch", "pickle 2"])
def test_a_pickle_is_refused_and_never_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    if kind == "torch":
        torch.save({"weights": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol=2 if kind == "pickle 2" else None))
    with pytest.raises(CheckpointError, match="this is a pickle"):
        load_model(path)
    assert not (tmp_path / "exploded").exists()


def test_a_foreign_safetensors_file(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not written by diffusion_course"):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize("metadata", ["no json", "[1]", '{"paper": "ddpm"}', '{"kwargs": {}}'])
def test_a_broken_header(tmp_path, metadata):
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors", metadata={container.KEY: metadata})
    with pytest.raises(CheckpointError, match="a.safetensors"):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.hostile
@pytest.mark.parametrize("paper, kwargs, message", [
    ("os", {}, "there is no paper 'os'"), ("os.system", {}, "there is no paper"),
    ("../cli", {}, "there is no paper"), ("ddpm", {"widht": 8}, "widht"),
    ("ddpm", {"width": 30}, "multiple of 8"), ("ddpm", {"width": "8"}, "cannot be made")])
def test_a_header_that_makes_no_recipe(tmp_path, paper, kwargs, message):
    path = write(tmp_path / "a.safetensors", {"w": torch.zeros(2)}, {"paper": paper, "kwargs": kwargs})
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_weights_that_do_not_fit(saved):
    recipe, path = saved
    tensors, header = read(path)
    name = "net.conv_in.weight"
    cases = {"is missing": {k: x for k, x in tensors.items() if k != name},
             "is not in the model": tensors | {"extra": torch.zeros(1)},
             "the model's is": tensors | {name: torch.zeros(3)}}
    for message, case in cases.items():
        write(path, case, header)
        with pytest.raises(CheckpointError, match=message):
            load_model(path)
    write(path, tensors, header | {"kwargs": header["kwargs"] | {"width": 16}})
    with pytest.raises(CheckpointError, match="and .* more"):
        load_model(path)


@pytest.mark.fault
def test_a_write_that_fails_leaves_what_was_there(saved, monkeypatch):
    recipe, path = saved
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container, "save_file", full)
    with pytest.raises(OSError, match="could not be written .*No space left.* unchanged"):
        save_model(path, recipe)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_averaged_weights_are_saved(tmp_path):
    from diffusion_course.diffusion.ema import EMA
    recipe = ddpm.recipe(**TINY)
    recipe.ema = EMA(recipe.model)
    recipe.ema.average.net.conv_in.weight.data.fill_(0.25)
    loaded = load_model(save_model(tmp_path / "m.safetensors", recipe))
    assert (loaded.model.net.conv_in.weight == 0.25).all()


def test_a_recipe_of_ones_own_cannot_be_stored(tmp_path):
    with pytest.raises(ValueError, match="was not made by a paper"):
        save_model(tmp_path / "a.safetensors", Recipe(nn.Linear(1, 1), None, None, (1,)))


def test_a_checkpoint_can_be_moved(saved, tmp_path):
    moved = tmp_path / "elsewhere" / "other name.safetensors"
    moved.parent.mkdir()
    shutil.copy(saved[1], moved)
    assert load_model(moved).origin.kwargs["width"] == 8


# ---- starting from other weights

def test_a_model_may_start_from_anothers_weights(saved):
    recipe, path = saved
    new = ddpm.recipe(**TINY, classes=10)
    embedding = new.model.net.doors.embed["label"].weight.clone()
    found = checkpoints.start_from(new.model, path)
    assert found == {**checkpoints.identity(path), "steps": 3} and len(found["sha256"]) == 64
    own = new.model.state_dict()
    for name, x in recipe.model.state_dict().items():
        torch.testing.assert_close(own[name], x, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(new.model.net.doors.embed["label"].weight, embedding)


def test_weights_that_do_not_fit_are_refused_and_change_nothing(saved):
    new = ddpm.recipe(width=16, size=16, num_steps=20)
    before = {name: x.clone() for name, x in new.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"only [\d,]+ of the [\d,]+ weights of this model are in it"):
        checkpoints.start_from(new.model, saved[1])
    assert all(torch.equal(x, before[name]) for name, x in new.model.state_dict().items())


def test_steps_add_up_over_models():
    assert checkpoints.steps_in_all({"step": 5, "init": {"steps": 8}}) == 13
    assert checkpoints.steps_in_all({"step": 5}) == 5 and checkpoints.steps_in_all({}) == 0
