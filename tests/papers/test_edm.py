import pytest
import torch
from conftest import wake

from diffusion_course.diffusion.predictions import EDM
from diffusion_course.diffusion.samplers import churn_step, heun_step
from diffusion_course.diffusion.schedules import VarianceExploding
from diffusion_course.papers import edm
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "size": 16}


def test_it_trains_and_draws():
    recipe = edm.recipe(**TINY)
    batch = {"x": torch.randn(8, 1, 16, 16).clamp(-1, 1)}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([batch] * 3, 3)]
    assert torch.tensor(losses).isfinite().all()
    for options in ({}, {"steps": 5}, {"steps": 5, "step": churn_step(5)}):
        x = recipe.draw(2, seed=0, **options)
        assert x.shape == (2, 1, 16, 16) and x.isfinite().all()
    torch.testing.assert_close(recipe.draw(2, seed=0), recipe.draw(2, seed=0, steps=18, step=heun_step))


@pytest.mark.parametrize("sigma_data", [0.5, 0.55])
def test_input_and_target_have_unit_variance_at_every_sigma(sigma_data):
    """The card's evidence; with another deviation of the data they have not."""
    prediction = EDM(sigma_data)
    x0, noise = sigma_data * torch.randn(200_000), torch.randn(200_000)
    for sigma in torch.tensor([0.002, 0.1, 1.0, 80.0]):
        alpha = torch.ones(())
        seen = prediction.c_in(alpha, sigma) * (x0 + sigma * noise)
        target = prediction.target(x0, noise, alpha, sigma)
        assert seen.var().item() == pytest.approx(1, abs=0.01) == target.var().item()
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2        # eq. 8
        torch.testing.assert_close(weight * prediction.c_out(sigma) ** 2, torch.ones(()))
    assert (EDM(0.3).c_in(alpha, torch.tensor(0.1)) * x0).var() > 2


def test_the_loss_is_eq_8():
    """lambda |D - y|^2 is |F - target|^2."""
    recipe = edm.recipe(**TINY)
    wake(recipe.model)
    denoiser, sigma_data = recipe.model, 0.55
    x0, noise, t = torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16), torch.tensor([0.01, 0.3, 1.0, 20.0])
    sigma = t.reshape(4, 1, 1, 1)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    expected = (weight * (denoiser(x0 + sigma * noise, t) - x0) ** 2).mean()
    torch.testing.assert_close(denoiser.loss(x0, t, noise), expected, rtol=1e-4, atol=1e-4)


def test_it_trains_on_log_normal_sigmas():
    for options, mean, std in (({}, 0.4, 1.2), ({"p_mean": -1.2, "p_std": 0.8}, -1.2, 0.8)):
        t = edm.recipe(**TINY, **options).model.draw_t(4000).log()
        assert t.mean().item() == pytest.approx(mean, abs=0.02)
        assert t.std().item() == pytest.approx(std, abs=0.02)


def test_the_schedule_is_eq_5():
    sigma = VarianceExploding().times(18)
    i = torch.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma[:-1], expected, rtol=1e-4, atol=1e-6)
    assert sigma[0] == pytest.approx(80) and sigma[-2] == pytest.approx(0.002, rel=1e-3) and sigma[-1] == 0
