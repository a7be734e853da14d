import pytest
import torch
from torch import nn

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.predictions import EDM, Clean, Epsilon, Flow, V
from diffusion_course.diffusion.rescaled import Shifted, ZeroTerminalSNR
from diffusion_course.diffusion.schedules import (
    Cosine,
    Geometric,
    Straight,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    broadcast,
    cosine_beta,
    linear_beta,
)

SCHEDULES = [linear_beta(), cosine_beta(), Cosine(), Straight(), VariancePreserving(), VarianceExploding(),
             SubVariancePreserving(), Geometric(), ZeroTerminalSNR(linear_beta()),
             Shifted(linear_beta(), 2.0), Shifted(Straight(), 3.0)]
PREDICTIONS = [Clean(), Epsilon(), Epsilon(sigma_data=0.97), V(), Flow(), EDM()]


def name(value):
    return type(value).__name__


def allowed(schedule, prediction):
    try:
        prediction.check(schedule)
    except ValueError:
        return False
    return True


PAIRS = [(s, p) for s in SCHEDULES for p in PREDICTIONS if allowed(s, p)]
REFUSED = [(s, p) for s in SCHEDULES for p in PREDICTIONS if not allowed(s, p)]


def test_exactly_these_pairs_are_refused():
    """Noise says nothing about x0 where no signal is left; EDM is written for alpha = 1."""
    found = {(name(s) + name(getattr(s, "schedule", None)), name(p)) for s, p in REFUSED}
    none = name(None)
    epsilon = {"Cosine" + none, "Straight" + none, "ZeroTerminalSNRDiscreteVP", "ShiftedStraight"}
    edm = epsilon | {"DiscreteVP" + none, "VariancePreserving" + none, "ShiftedDiscreteVP",
                     "SubVariancePreserving" + none}
    assert found == {(s, "Epsilon") for s in epsilon} | {(s, "EDM") for s in edm}


@pytest.mark.parametrize("schedule, prediction", REFUSED, ids=name)
def test_refused_pairs_raise_at_construction(schedule, prediction):
    with pytest.raises(ValueError, match=r"use|predict"):
        Denoiser(nn.Identity(), schedule, prediction)


def all_times(schedule):
    """Both ends, their neighbours, and the inside."""
    near = 1 / getattr(schedule, "num_steps", 1000)
    return schedule.t_max * torch.tensor([0, near, 0.1, 0.5, 0.9, 1 - near, 1])


@pytest.mark.parametrize("schedule, prediction", PAIRS, ids=name)
def test_target_and_to_x0_are_inverse_at_all_times(schedule, prediction):
    """A trap of the prototype: only t = 0.1, 0.5, 0.9 were visited, and the ends gave 6e7 and NaN."""
    t = all_times(schedule)
    x0, noise = torch.randn(2, len(t), 3, 8, 8)
    alpha, sigma = (broadcast(v, x0) for v in schedule(t))
    x = alpha * x0 + sigma * noise
    back = prediction.to_x0(prediction.target(x0, noise, alpha, sigma), x, alpha, sigma)
    # x itself is rounded to 1e-7 of its size; where alpha is small, that is what can be known of x0
    tolerance = 1e-5 + 5e-7 * (sigma / alpha.clamp_min(1e-9) if isinstance(prediction, Epsilon) else sigma)
    assert ((back - x0).abs() <= tolerance * 4).all(), (back - x0).abs().amax((1, 2, 3))


@pytest.mark.parametrize("schedule, prediction", PAIRS, ids=name)
def test_clean_data_stays_as_it_is(schedule, prediction):
    if isinstance(prediction, Clean):
        pytest.skip("the network itself answers")
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(Denoiser(Noise(), schedule, prediction)(x, torch.zeros(2)), x)


class Noise(nn.Module):
    def forward(self, x, t):
        return torch.randn_like(x)


def test_edm_target_has_unit_variance_at_every_sigma():
    """Card 06: within 1 % at sigma = 0.002, 0.1, 1, 80; and the weight 1 / c_out^2 makes it the EDM loss."""
    edm = EDM(0.5)
    for s in (0.002, 0.1, 1.0, 80.0):
        x0, noise, sigma = 0.5 * torch.randn(200_000), torch.randn(200_000), torch.tensor(s)
        assert edm.target(x0, noise, 1.0, sigma).var() == pytest.approx(1, rel=0.01)
        assert (edm.c_in(1.0, sigma) * (x0 + sigma * noise)).var() == pytest.approx(1, rel=0.01)


def test_edm_loss_is_the_weighted_denoising_error():
    from conftest import Toy
    denoiser = Denoiser(Toy(), VarianceExploding(), EDM())
    x0, noise, sigma = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.rand(4) * 5 + 0.1
    s = broadcast(sigma, x0)
    weight = (s**2 + 0.25) / (s * 0.5) ** 2                    # eq. 8
    expected = (weight * (denoiser(x0 + s * noise, sigma) - x0) ** 2).mean()
    torch.testing.assert_close(denoiser.loss(x0, sigma, noise), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", [VarianceExploding(), Geometric(), VariancePreserving()], ids=name)
def test_epsilon_can_scale_its_input_to_unit_variance(schedule):
    t = schedule.t_max * torch.tensor([0.05, 0.3, 1.0])
    alpha, sigma = schedule(t)
    x = alpha[:, None] * 0.7 * torch.randn(3, 50_000) + sigma[:, None] * torch.randn(3, 50_000)
    seen = Epsilon(sigma_data=0.7).c_in(alpha, sigma)[:, None] * x
    torch.testing.assert_close(seen.std(1), torch.ones(3), rtol=0.02, atol=0)
    assert Epsilon().c_in(alpha, sigma) == 1
