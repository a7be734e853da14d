"""The solver against scipy's, the flow and its likelihood against Gaussians."""
import math

import numpy as np
import pytest
import torch
from conftest import Gaussian
from scipy.integrate import solve_ivp

from diffusion_course.diffusion.ode import bits, dequantize, flow, log_likelihood, rademacher, solve, velocity
from diffusion_course.diffusion.predictions import Flow
from diffusion_course.diffusion.schedules import (
    Cosine,
    Geometric,
    Straight,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from diffusion_course.diffusion.sde import drift_and_diffusion, score

SDES = [VariancePreserving(), SubVariancePreserving(), Geometric()]


def name(value):
    return type(value).__name__


@pytest.mark.parametrize("start, end", [(0.0, 10.0), (10.0, 0.0)])
def test_the_solver_is_scipys(double, start, end):
    """The same pair of methods, the same error norm: so the same steps, to rounding."""
    def slope(t, x):
        return torch.stack([x[:, 1], math.cos(t) - torch.sin(3 * x[:, 0])], dim=1)

    x = torch.tensor([[2.0, 0.0], [0.5, -1.0]])
    ours = solve(slope, x, start, end, rtol=1e-6, atol=1e-8)
    theirs = solve_ivp(lambda t, y: slope(t, torch.from_numpy(y).reshape(2, 2)).numpy().ravel(), (start, end),
                       x.numpy().ravel(), method="RK45", rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.x.numpy().ravel(), theirs.y[:, -1], rtol=1e-6, atol=1e-7)
    assert ours.evaluations == pytest.approx(theirs.nfev, rel=0.05)


def test_an_equation_with_a_known_answer(double):
    found = [solve(lambda t, x: -x, torch.ones(1, 1), 0.0, 3.0, rtol=tol, atol=tol) for tol in (1e-4, 1e-8)]
    errors = [abs(s.x.item() - math.exp(-3)) for s in found]
    assert errors[1] < 1e-8 < errors[0] < 1e-3 and found[0].evaluations < found[1].evaluations
    assert solve(lambda t, x: 0 * x, torch.ones(1, 1), 0.0, 3.0).x == 1
    assert solve(lambda t, x: -x, torch.ones(1, 1), 2.0, 2.0).x == 1


def test_a_slope_that_jumps_about_is_given_up():
    """A new random probe at every call would do this."""
    with pytest.raises(RuntimeError, match="needs more than 500 slopes"):
        solve(lambda t, x: torch.randn_like(x), torch.zeros(4, 4), 0.0, 1.0, most=500)


@pytest.mark.parametrize("schedule", SDES, ids=name)
def test_the_velocity_is_eq_13(double, schedule):
    exact, x, t = Gaussian(schedule), torch.randn(2, 1, 2, 2), torch.tensor([0.3, 0.8])
    f, g2 = drift_and_diffusion(schedule, t, x)
    torch.testing.assert_close(velocity(exact, x, t), f * x - g2 / 2 * score(exact, x, t))


def test_on_straight_paths_the_velocity_is_the_flow(double):
    exact, x, t = Gaussian(Straight()), torch.randn(2, 1, 2, 2), torch.tensor([0.3, 1.0])
    alpha, sigma = exact.schedule.at(t, x)
    x0 = exact(x, t)
    expected = Flow().target(x0, (x - alpha * x0) / sigma, alpha, sigma)
    torch.testing.assert_close(velocity(exact, x, t), expected)


@pytest.mark.parametrize("schedule", [*SDES, Cosine(), Straight(), VarianceExploding()], ids=name)
def test_the_flow_of_a_gaussian_both_ways(double, schedule):
    exact, x = Gaussian(schedule), torch.randn(4, 1, 2, 2)
    start = 1e-3
    there = flow(exact, x, start, schedule.t_max, 1e-8, 1e-8).x
    t, s = torch.full((4,), start), torch.full((4,), float(schedule.t_max))
    torch.testing.assert_close(there, exact.flow(x, t, s), rtol=1e-5, atol=1e-5)
    back = flow(exact, there, schedule.t_max, start, 1e-8, 1e-8).x
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)


class Diagonal:
    """The exact denoiser of N(0, variances) in the plane."""

    def __init__(self, schedule, variances=(0.3, 1.7)):
        self.schedule, self.variances = schedule, torch.tensor(variances)

    def __call__(self, x, t):
        alpha, sigma = self.schedule.at(t, x)
        return alpha * self.variances * x / (alpha**2 * self.variances + sigma**2)

    def log_p(self, x):
        return torch.distributions.Normal(torch.zeros(2), self.variances.sqrt()).log_prob(x).sum(1)


@pytest.mark.parametrize("schedule, tolerance", list(zip(SDES, (4e-4, 4e-4, 4e-3))), ids=name)
def test_the_likelihood_of_a_gaussian_is_the_closed_form(double, schedule, tolerance):
    """The figures of the card.  The error is the prior's: at the end a little of the data remains."""
    exact = Diagonal(schedule)
    x = torch.randn(300, 2) * exact.variances.sqrt()
    log_p, solution = log_likelihood(exact, x, rtol=1e-8, atol=1e-8)
    error = log_p - exact.log_p(x)
    assert 1e-5 < error.abs().max() < tolerance
    assert solution.x.shape == x.shape and 20 < solution.evaluations < 600
    alpha, sigma = schedule(torch.tensor(1.0))
    normal = torch.distributions.Normal
    prior = normal(0, sigma).log_prob(solution.x)
    true_end = normal(0, (alpha**2 * exact.variances + sigma**2).sqrt()).log_prob(solution.x)
    left = error - (prior - true_end).sum(1)
    # VE begins at sigma_min = 0.01, a thousandth of the data's variance
    assert left.abs().max() < (2e-3 if isinstance(schedule, Geometric) else 3e-5)


def test_hutchinson_is_unbiased_and_signs_vary_less_than_normals(double):
    """The exact denoiser of a correlated Gaussian: the divergence is not diagonal, so one probe errs."""
    S = torch.tensor([[1.0, 0.4], [0.4, 1.5]])

    class Correlated(Diagonal):
        def __call__(self, x, t):
            alpha, sigma = self.schedule(t[:1])
            return x @ (alpha * S @ torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(2))).T

    exact, x = Correlated(VariancePreserving()), torch.tensor([[0.5, -0.3]]).expand(4000, -1)
    truth = torch.distributions.MultivariateNormal(torch.zeros(2), S).log_prob(x[:1]).item()
    spread = []
    for probe in (rademacher, torch.randn_like):
        log_p, _ = log_likelihood(exact, x, rtol=1e-3, atol=1e-3, probe=probe)
        spread.append(log_p.std().item())
        assert log_p.mean().item() == pytest.approx(truth, abs=4 * log_p.std().item() / 4000**0.5 + 0.01)
    assert 0 < spread[0] < 0.8 * spread[1]


def test_bits_of_uniform_pixels_are_eight():
    """Dequantized, 256 equally likely levels have density 1/2 on [-1, 1]: 8 bits."""
    assert bits(torch.tensor([10 * math.log(0.5)]), 10).item() == pytest.approx(8)
    levels = torch.arange(256).float() / 255 * 2 - 1
    x = dequantize(levels.repeat(200))
    assert x.min() >= -1 and x.max() <= 1
    place = ((x.reshape(200, 256) + 1) * 128).floor()
    assert torch.equal(place[0], torch.arange(256.0))          # every pixel stays in its bin
    assert (x.reshape(200, 256)[:, 7] - x.reshape(200, 256)[:, 7].mean()).std() > 0.001
