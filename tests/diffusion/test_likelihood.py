import math

import pytest
import torch
from conftest import Gaussian

from diffusion_course.diffusion.likelihood import (
    bits_per_dim,
    discretized_nll,
    mix_variance,
    normal_kl,
    posterior,
    prior_term,
    vlb_term,
)
from diffusion_course.diffusion.schedules import cosine_beta, linear_beta


@pytest.mark.parametrize("n, m", [(2, 1), (500, 499), (1000, 999), (500, 400), (1000, 1)])
def test_posterior_is_bayes(double, n, m):
    """Against q(x_s | x0) q(x_t | x_s) on a grid, for neighbouring and for strided steps (DDPM eq. 6-7)."""
    schedule = linear_beta()
    t, s = torch.tensor([n / 1000]), torch.tensor([m / 1000])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    x0, x = torch.tensor(0.4), alpha_t * 0.4 + sigma_t * 0.7
    xs = torch.linspace(-6, 6, 2_000_001)
    ratio = alpha_t / alpha_s
    log = (-(xs - alpha_s * x0) ** 2 / (2 * sigma_s**2)
           - (x - ratio * xs) ** 2 / (2 * (sigma_t**2 - (ratio * sigma_s) ** 2)))
    p = (log - log.max()).exp()
    p = p / p.sum()
    mean, small, large = posterior(schedule, x0.reshape(1, 1), x.reshape(1, 1), t, s)
    torch.testing.assert_close(mean.squeeze(), (p * xs).sum(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(small.squeeze(), (p * (xs - mean.squeeze()) ** 2).sum(), rtol=1e-5, atol=1e-9)
    if m == n - 1:
        beta = torch.linspace(1e-4, 0.02, 1000)[n - 1]
        torch.testing.assert_close(large.squeeze(), beta, rtol=1e-6, atol=0)


def test_mixed_variance_is_equation_15():
    small, large = torch.tensor([0.1, 0.0]), torch.tensor([0.4, 0.4])
    torch.testing.assert_close(mix_variance(small, large, 0.5), torch.tensor([0.2, 0.0]))
    torch.testing.assert_close(mix_variance(small, large, 0.0), small)
    torch.testing.assert_close(mix_variance(small, large, 1.0), torch.tensor([0.4, 0.0]))


def test_normal_kl_is_torchs():
    a, b = torch.distributions.Normal(0.3, 0.5), torch.distributions.Normal(-0.1, 1.5)
    ours = normal_kl(a.mean, a.variance, b.mean, b.variance)
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(a, b))


def test_the_bins_of_a_pixel_hold_all_the_mass(double):
    x0 = torch.arange(256) / 127.5 - 1
    for mean, std in [(0.2, 0.1), (-0.99, 0.02), (0.0, 3.0)]:
        mass = (-discretized_nll(x0, torch.full_like(x0, mean), torch.full_like(x0, std))).exp()
        assert mass.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("table, expected", [(linear_beta, 2.9e-5), (cosine_beta, 1.8e-9)])
def test_prior_term(double, table, expected):
    """Card 01: bits per dimension at x0 = 1."""
    assert prior_term(table(), torch.ones(1, 1, 4, 4)).item() == pytest.approx(expected, rel=0.03)


def test_the_bound_is_the_entropy_for_an_exact_denoiser(double):
    """For Gaussian data the reverse steps are Gaussian: the bound is tight up to the length of the steps."""
    mean, std = 0.0, 0.3
    x0 = (mean + std * torch.randn(64, 1, 16, 16))
    x0 = ((x0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    schedule = linear_beta(200)
    bits = bits_per_dim(Gaussian(schedule, mean, std), x0, v=1.0).mean().item()
    true = math.log2(std * math.sqrt(2 * math.pi * math.e)) + math.log2(127.5)     # entropy in units of a bin
    assert true < bits + 0.02 and bits == pytest.approx(true, abs=0.15)
    finer = bits_per_dim(Gaussian(linear_beta(1000), mean, std), x0, v=1.0).mean().item()
    assert abs(finer - true) < abs(bits - true)                # more steps, a tighter bound


def test_a_worse_denoiser_has_a_larger_bound(double):
    x0 = 0.3 * torch.randn(8, 1, 8, 8)
    good, bad = (bits_per_dim(Gaussian(linear_beta(100), 0.0, std), x0, v=1.0).mean() for std in (0.3, 0.6))
    assert bad > good + 0.05


def test_vlb_term_is_zero_for_the_truth(double):
    """With x0_hat = x0 and the smaller variance, model and posterior agree."""
    schedule, x0 = linear_beta(), torch.randn(4, 1, 4, 4)
    t = torch.tensor([2, 10, 500, 1000]) / 1000
    alpha, sigma = schedule.at(t, x0)
    x = alpha * x0 + sigma * torch.randn_like(x0)
    torch.testing.assert_close(vlb_term(schedule, x0, x, t, x0, 0.0), torch.zeros(4), rtol=0, atol=1e-12)
    assert (vlb_term(schedule, x0, x, t, x0 + 0.1, 0.0) > 0).all()
