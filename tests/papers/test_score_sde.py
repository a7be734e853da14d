import pytest
import torch
from conftest import Gaussian, wake

from diffusion_course.diffusion.samplers import ddim_step, sample
from diffusion_course.diffusion.schedules import VariancePreserving
from diffusion_course.diffusion.sde import euler_maruyama_step, reverse_diffusion_step
from diffusion_course.papers import score_sde
from diffusion_course.papers.score_sde import inpainting
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "size": 16}


@pytest.mark.parametrize("sde", ["vp", "subvp", "ve"])
def test_it_trains_and_draws(sde):
    recipe = score_sde.recipe(**TINY, sde=sde)
    batch = {"x": torch.randn(8, 1, 16, 16).clamp(-1, 1)}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([batch] * 3, 3)]
    assert torch.tensor(losses).isfinite().all() and 0.3 < losses[0] < 3
    for options in ({"steps": 3}, {"steps": 5, "step": ddim_step}, {"steps": 4, "step": euler_maruyama_step}):
        x = recipe.draw(2, seed=0, **options)
        assert x.shape == (2, 1, 16, 16) and x.isfinite().all()


def test_an_unknown_equation_is_refused():
    with pytest.raises(ValueError, match="sde='vpsde' must be one of vp, subvp, ve"):
        score_sde.recipe(sde="vpsde")


def test_the_network_of_ve_sees_unit_variance():
    seen, recipe = [], score_sde.recipe(**TINY, sde="ve", sigma_data=1.0)
    wake(recipe.model)
    net = recipe.model.net
    net.conv_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].std().item()))
    for t in (0.1, 0.5, 1.0):
        x0 = torch.randn(8, 1, 16, 16)
        times = torch.full((8,), t)
        recipe.model(recipe.model.add_noise(x0, times, torch.randn_like(x0)), times)
    assert seen == pytest.approx([1, 1, 1], abs=0.1)


@pytest.mark.parametrize("step", [reverse_diffusion_step, ddim_step])
def test_inpainting_keeps_what_is_seen_and_fits_the_rest(step):
    """Pixels of one image share their mean; half of them are seen, and the others follow."""
    class Equal(Gaussian):                                     # all pixels of an image are one number
        def estimate(self, x, t):
            alpha, sigma = self.schedule.at(t, x)
            n, mean = x[0].numel(), x.mean((1, 2, 3), keepdim=True)
            pull = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2 / n)
            return (self.mean + pull * (mean - alpha * self.mean)).expand_as(x), None

    exact = Equal(VariancePreserving())
    seen = torch.tensor([-0.4, 0.2, 0.9]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    mask = torch.zeros(3, 1, 4, 4)
    mask[..., :2] = 1
    x = sample(exact, torch.randn(3, 1, 4, 4), 300, inpainting(seen, mask, step))
    torch.testing.assert_close(x[..., :2], seen[..., :2])
    torch.testing.assert_close(x[..., 2:], seen[..., 2:], atol=0.15, rtol=0)
    free = sample(exact, torch.randn(3, 1, 4, 4), 300, inpainting(seen, 0 * mask, step))
    assert not torch.allclose(free, seen, atol=0.15)
