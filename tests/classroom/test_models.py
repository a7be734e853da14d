import json
from pathlib import Path

import pytest
import torch

from diffusion_course.classroom import load_or_train, results
from diffusion_course.data import mnist
from diffusion_course.papers import ddpm
from diffusion_course.recipe import Preset, Recipe
from diffusion_course.training import checkpoints
from diffusion_course.training.checkpoints import save_model
from diffusion_course.training.container import CheckpointError, read, read_header
from diffusion_course.training.shipped import SHIPPED
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "size": 16, "num_steps": 20}
RUN = Path("runs/ddpm_improved")


@pytest.fixture
def absent(tmp_path, monkeypatch):
    """No checkpoint is to be had, and the smoke preset takes two steps."""
    def unobtainable(slug):
        raise FileNotFoundError(f"the checkpoint {slug} cannot be had: it is not there")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    monkeypatch.setattr(mnist, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("DIFFUSION_COURSE_PRESET", "smoke")
    monkeypatch.setitem(ddpm.PRESETS, "smoke", Preset(steps=2, batch_size=4, lr=1e-3, recipe=TINY))
    monkeypatch.setattr(checkpoints, "obtain", unobtainable)


def test_the_shipped_model_at_once(tmp_path, monkeypatch, capsys):
    shipped = ddpm.recipe(**TINY)
    path = save_model(tmp_path / "a.safetensors", shipped, step=7, batch_size=3, data="mnist")
    monkeypatch.setattr(checkpoints, "obtain", {"ddpm": path}.__getitem__)
    recipe = load_or_train("ddpm")
    assert capsys.readouterr().out == "ddpm: the shipped checkpoint; 7 steps of 3 on mnist\n"
    assert recipe.origin == shipped.origin and not recipe.model.training
    readings = {"ancestral 1000": {"n": 256, "confident": 0.789}, "ddim 50": {"n": 256, "confident": 0.5}}
    checkpoints.write_card(path, readings=readings)
    load_or_train("ddpm", "cpu")
    line = "ddpm: the shipped checkpoint; 7 steps of 3 on mnist, 79% of 256 samples can be read"
    assert capsys.readouterr().out == f"{line} (ancestral 1000 steps)\n"
    assert next(load_or_train("ddpm", torch.device("meta")).model.parameters()).device.type == "meta"
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "a.json"}


def test_it_is_trained_where_it_cannot_be_had(absent, capsys):
    recipe = load_or_train("ddpm_improved")
    first, last = capsys.readouterr().out.splitlines()
    assert first == ("the checkpoint ddpm_improved cannot be had: it is not there; "
                     "so it is trained here, at the preset smoke")
    assert last == f"ddpm_improved: trained here and kept in {RUN}; 2 steps of 4 on digits"
    assert recipe.origin.kwargs["cosine"] and recipe.origin.kwargs["learned_variance"]
    assert recipe.origin.kwargs["width"] == 8 and not recipe.model.training
    assert recipe.draw(1, steps=2).isfinite().all()
    header = read_header(RUN / "model.safetensors")
    assert (header["step"], header["preset"], header["data"]) == (2, "smoke", "digits")


def test_the_next_call_finds_it(absent, capsys):
    one = load_or_train("ddpm_improved")
    made = (RUN / "model.safetensors").stat().st_mtime_ns
    other = load_or_train("ddpm_improved")
    assert (RUN / "model.safetensors").stat().st_mtime_ns == made
    for a, b in zip(one.model.parameters(), other.model.parameters()):
        assert torch.equal(a, b)


def test_what_was_interrupted_is_gone_on_with(absent, monkeypatch):
    began = []
    load_or_train("ddpm_improved")
    whole = read(RUN / "model.safetensors")[0]
    RUN.rename("whole")

    def interrupted(self, batches, *args, **kwargs):
        began.append(self.step)
        for progress in run(self, batches, *args, **kwargs):
            if len(began) == 1:
                raise KeyboardInterrupt
            yield progress

    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_or_train("ddpm_improved")
    assert read_header(RUN / "state.safetensors")["step"] == 1
    load_or_train("ddpm_improved")
    assert began == [0, 1]
    resumed = read(RUN / "model.safetensors")[0]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_of_another_preset_is_not_mixed_up(absent, monkeypatch):
    load_or_train("ddpm")
    monkeypatch.setitem(ddpm.PRESETS, "smoke", Preset(steps=3, batch_size=4, lr=1e-3, recipe=TINY))
    with pytest.raises(CheckpointError, match="planned_steps was 2 and is now 3; move runs/ddpm away"):
        load_or_train("ddpm")


@pytest.mark.parametrize("slug", ["nothing", "digit_probe", ""])
def test_a_name_that_is_no_model(slug):
    with pytest.raises(ValueError, match=f"slug='{slug}' must be one of ddpm, ddpm_improved"):
        load_or_train(slug)


def test_a_fault_is_not_trained_over(absent, monkeypatch, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not whole")
    monkeypatch.setattr(checkpoints, "obtain", lambda slug: tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match="broken.safetensors: truncated"):
        load_or_train("ddpm")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", "/no/such/folder")
    monkeypatch.setattr(checkpoints, "shipped", lambda slug: tmp_path / "absent")
    with pytest.raises(ValueError, match="/no/such/folder: no such folder"):
        load_or_train("ddpm")
    assert not Path("runs").exists()


@pytest.mark.parametrize("slug", [slug for slug, shipped in SHIPPED.items() if shipped.paper])
def test_what_is_in_the_clone_loads(slug, capsys):
    path = checkpoints.shipped(slug)
    if path.exists():
        recipe = load_or_train(slug)
        card = json.loads(path.with_suffix(".json").read_text())
        assert f"{card['step']} steps of {card['batch_size']} on {card['data']}" in capsys.readouterr().out
        plain = {name: value.checkpoint["checkpoint"] if isinstance(value, Recipe) else value
                 for name, value in recipe.origin.kwargs.items()}
        assert plain == plain | SHIPPED[slug].kwargs


def test_results_are_read_from_the_study(tmp_path, monkeypatch):
    path = tmp_path / "ddpm_variants.json"
    path.write_text('{"runs": [1, 2]}')
    monkeypatch.setattr(checkpoints, "obtain", {"ddpm_variants": path}.__getitem__)
    assert results("ddpm_variants") == {"runs": [1, 2]}
