import pytest
import torch
from conftest import Gaussian, Toy, wake

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.predictions import Epsilon
from diffusion_course.diffusion.samplers import ddim_step, sample, trajectory
from diffusion_course.diffusion.schedules import Cosine, linear_beta
from diffusion_course.networks.classifier import NoisyClassifier
from diffusion_course.papers import ddim_guidance, ddpm
from diffusion_course.papers.ddim_guidance import invert, noisy_classifier_loss, quadratic_times, slerp

TINY = {"width": 8, "size": 16, "num_steps": 20}


def test_it_draws_with_a_scale_and_starts_without_labels():
    recipe, label = ddim_guidance.recipe(**TINY), torch.tensor([3, 7])
    assert recipe.origin.paper == "ddim_guidance" and recipe.origin.kwargs["classes"] == 10
    assert not recipe.model.net.doors.embed["label"].weight.any()
    wake(recipe.model)
    one, same, two = (recipe.draw(2, seed=0, label=label, steps=5, **options)
                      for options in ({}, {"scale": 1.0}, {"scale": 3.0}))
    assert torch.equal(one, same) and not torch.allclose(one, two)
    other = recipe.draw(2, seed=0, label=label.flip(0), steps=5)
    assert not torch.allclose(one, other)
    assert recipe.loss({"x": torch.randn(4, 1, 16, 16), "label": torch.arange(4)}).isfinite()


def test_it_begins_as_the_unconditional_model_with_its_weights():
    old = ddpm.recipe(**TINY)
    wake(old.model)
    new = ddim_guidance.recipe(**TINY)
    new.model.load_state_dict(old.model.state_dict(), strict=False)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 0.9])
    torch.testing.assert_close(new.model(x, t, label=torch.tensor([1, 10])), old.model(x, t))


def test_quadratic_times_crowd_near_the_data():
    times = quadratic_times(linear_beta(), 10)
    assert times[0] == 1 and times[-1] == 0 and len(times) == 11
    torch.testing.assert_close(times, torch.linspace(1, 0, 11) ** 2, atol=6e-4, rtol=0)
    assert (times.diff().abs().diff() < 0).all()


def test_a_step_up_keeps_the_noise_that_is_found_below():
    exact, x = Gaussian(linear_beta()), torch.randn(2, 1, 4, 4)
    t, s = torch.full((2,), 0.3), torch.full((2,), 0.31)
    up = ddim_guidance.invert_step(exact, x, t, s)
    (alpha, sigma), (alpha_s, sigma_s) = exact.schedule.at(t, x), exact.schedule.at(s, x)
    x0 = exact(x, t)
    torch.testing.assert_close(up, alpha_s * x0 + sigma_s * (x - alpha * x0) / sigma)


def test_reconstructions_get_better_with_steps(double):
    exact, x0 = Gaussian(linear_beta().double()), 0.3 + 0.6 * torch.randn(64, 1, 2, 2)
    errors = []
    for steps in (10, 20, 50, 100):
        noise = invert(exact, x0, steps)
        errors.append((sample(exact, noise, steps) - x0).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05 * errors[0]
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_inverting_starts_where_there_is_no_noise_yet():
    """The first step looks for the noise at the next level, since t = 0 has none; nothing is divided by 0."""
    denoiser = Denoiser(Toy(), linear_beta(), Epsilon())
    x0 = torch.randn(2, 1, 4, 4)
    states = list(trajectory(denoiser, x0, torch.tensor([0.0, 0.001, 0.5, 1.0]), ddim_guidance.invert_step))
    assert all(x.isfinite().all() for x in states)
    alpha, sigma = denoiser.schedule.at(torch.tensor([0.001]), x0)
    expected = alpha * x0 + sigma * denoiser.net(x0, torch.full((2,), 0.001))
    torch.testing.assert_close(states[0], expected)


def test_slerp_keeps_the_norm_of_noise_where_lerp_does_not():
    a, b = torch.randn(4, 1, 32, 32), torch.randn(4, 1, 32, 32)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.3), a, rtol=1e-3, atol=1e-3)
    middle, straight = slerp(a, b, 0.5).flatten(1).norm(dim=1), ((a + b) / 2).flatten(1).norm(dim=1)
    assert (middle > 30).all() and (straight < 25).all()       # sqrt(1024) = 32
    orthogonal = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)
    torch.testing.assert_close(orthogonal, torch.tensor([[3**0.5 / 2, 0.5]]))


def test_the_classifiers_loss_is_of_noisy_images():
    seen = []

    class Spy(NoisyClassifier):
        def forward(self, x, t):
            seen.append((x, t))
            return super().forward(x, t)

    x0, label, schedule = torch.ones(256, 1, 16, 16), torch.arange(256) % 10, Cosine()
    loss = noisy_classifier_loss(wake(Spy(width=8)), schedule, x0, label)
    (x, t), = seen
    alpha, sigma = schedule(t)
    assert t.min() < 0.1 and t.max() > 0.9 and loss.requires_grad
    torch.testing.assert_close(x.mean((1, 2, 3)), alpha, atol=0.3, rtol=0)
    torch.testing.assert_close(x.std((1, 2, 3)), sigma, atol=0.15, rtol=0)


def test_eta_one_is_ddpms_posterior(double):
    """The mean of the step and its variance, to 1e-12 (the card's evidence)."""
    from diffusion_course.diffusion.likelihood import posterior
    exact, x = Gaussian(linear_beta().double()), torch.randn(3, 1, 4, 4)
    t, s, z = torch.full((3,), 0.5), torch.full((3,), 0.499), torch.randn(3, 1, 4, 4)
    mean, variance, _ = posterior(exact.schedule, exact(x, t), x, t, s)
    found = ddim_step(exact, x, t, s, eta=1.0, randn=lambda x: 0 * x)
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-12)
    noisy = ddim_step(exact, x, t, s, eta=1.0, randn=lambda x: z)
    torch.testing.assert_close((noisy - found) / z, variance.sqrt().expand_as(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_with_the_true_noise_every_eta_keeps_the_marginals(double, eta):
    """DDIM lemma 1: x_s is alpha_s x0 + sigma_s noise, whatever eta."""
    schedule, x0 = linear_beta().double(), torch.full((40_000, 1), 0.8)

    class Truth:
        def __call__(self, x, t):
            return x0

        def estimate(self, x, t):
            return x0, None

    truth = Truth()
    truth.schedule = schedule
    alpha, sigma = schedule(torch.tensor(0.9))
    x = alpha * x0 + sigma * torch.randn_like(x0)
    for t, s in ((0.9, 0.5), (0.5, 0.2)):
        x = ddim_step(truth, x, torch.full((len(x),), t), torch.full((len(x),), s), eta=eta)
        alpha, sigma = schedule(torch.tensor(s))
        assert x.mean().item() == pytest.approx(0.8 * alpha.item(), abs=0.02)
        assert x.std().item() == pytest.approx(sigma.item(), rel=0.02)
