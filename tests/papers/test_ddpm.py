import pytest
import torch
from conftest import wake

from diffusion_course.diffusion.samplers import DPMSolver, ddim_step, heun_step
from diffusion_course.papers import citation, ddpm, module, names
from diffusion_course.recipe import Preset
from diffusion_course.training.runs import recipe_of
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "size": 16, "num_steps": 20}
VARIANTS = [{}, {"cosine": True}, {"learned_variance": True}, {"cosine": True, "learned_variance": True},
            {"classes": 10}, {"channels": 3}]


def batch(n=8, channels=1):
    return {"x": torch.randn(n, channels, 16, 16).clamp(-1, 1), "label": torch.arange(n) % 10}


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_it_trains_and_draws(kwargs):
    recipe = ddpm.recipe(**TINY, **kwargs)
    before = {name: p.clone() for name, p in recipe.model.named_parameters()}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([batch(channels=recipe.shape[0])] * 3, 3)]
    assert all(torch.tensor(losses).isfinite())
    assert any(not torch.equal(p, before[name]) for name, p in recipe.model.named_parameters())
    cond = {"label": torch.tensor([1, 2]), "scale": 3.0} if kwargs.get("classes") else {}
    for options in ({}, {"steps": 5, "step": ddim_step}, {"steps": 3, "step": heun_step},
                    {"steps": 4, "step": DPMSolver()}):
        x = recipe.draw(2, seed=0, **options, **cond)
        assert x.shape == (2, *recipe.shape) and x.isfinite().all() and x.abs().max() <= 1.5


@pytest.mark.parametrize("kwargs", [{}, {"cosine": True, "learned_variance": True}], ids=str)
def test_one_batch_can_be_overfitted(kwargs):
    recipe = ddpm.recipe(**{**TINY, "width": 16}, **kwargs)
    x = torch.zeros(16, 1, 16, 16) - 1
    x[:8, :, 4:12, 4:12] = 1
    losses = [p.loss for p in Trainer(recipe, lr=5e-3, warmup=10).run([{"x": x}] * 120, 120)]
    assert sum(losses[-20:]) < 0.35 * sum(losses[:20])


def test_dropping_the_label_teaches_the_null():
    """Some rows of every label are trained as null, so both embeddings get a gradient."""
    recipe = ddpm.recipe(**TINY, classes=10)
    wake(recipe.model)
    recipe.loss({"x": torch.randn(64, 1, 16, 16), "label": torch.zeros(64).long()}).backward()
    grad = recipe.model.net.doors.embed["label"].weight.grad.abs().sum(1)
    assert grad[0] > 0 and grad[10] > 0 and not grad[1:10].any()


def test_a_conditional_model_needs_its_label():
    with pytest.raises(ValueError, match="takes the conditions"):
        ddpm.recipe(**TINY, classes=10).draw(1)


def test_every_paper_keeps_the_contract():
    for name in names():
        presets = module(name).PRESETS
        assert "arXiv:" in citation(name)
        if not presets:                                        # training-free
            continue
        assert {"smoke", "laptop", "t4"} == set(presets)
        assert all(isinstance(preset, Preset) for preset in presets.values())
        recipe = recipe_of(name, presets["smoke"].recipe)
        assert recipe.origin.paper == name and recipe.loss is not None


def test_only_papers_are_imported():
    for name in ("os", "os.system", "../cli", "..cli", "ddpm.recipe", ""):
        with pytest.raises(ValueError, match="there is no paper"):
            module(name)
