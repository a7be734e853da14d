import math

import pytest
import torch

from diffusion_course.diffusion.rescaled import Shifted, ZeroTerminalSNR
from diffusion_course.diffusion.schedules import (
    Cosine,
    DiscreteVP,
    Geometric,
    Straight,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    broadcast,
    cosine_beta,
    linear_beta,
)

ALL = [linear_beta(), linear_beta(50), cosine_beta(), Cosine(), Straight(), VariancePreserving(),
       SubVariancePreserving(), Geometric(), VarianceExploding(), ZeroTerminalSNR(linear_beta()),
       ZeroTerminalSNR(VariancePreserving()),
       Shifted(Straight(), 3.0), Shifted(Cosine(), 2.0), Shifted(linear_beta(), 2.0),
       Shifted(VarianceExploding(), 2.0), Shifted(ZeroTerminalSNR(linear_beta()), 2.0)]


def ids(schedule):
    return type(schedule).__name__ + type(getattr(schedule, "schedule", None)).__name__


@pytest.mark.parametrize("schedule", ALL, ids=ids)
def test_time_runs_from_data_to_noise(schedule):
    t = torch.linspace(0, schedule.t_max, 1001)
    alpha, sigma = schedule(t)
    assert alpha[0] == 1 and sigma[0] == 0
    assert (alpha.diff() <= 0).all() and (sigma.diff() >= 0).all()
    if not hasattr(schedule, "num_steps"):                     # a table has fewer levels than times asked for
        assert ((sigma / alpha).diff() > 0).all()
    torch.testing.assert_close(schedule.unit(alpha, sigma), torch.ones_like(t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", ALL, ids=ids)
def test_training_times_are_times(schedule):
    t = schedule.draw(10_000)
    assert t.shape == (10_000,) and (t > 0).all() and (t <= schedule.t_max).all()
    if hasattr(schedule, "num_steps"):
        n = t * schedule.num_steps
        torch.testing.assert_close(n, n.round())
        assert n.min().round() == 1 and n.max().round() == schedule.num_steps
    elif schedule.t_max == 1:
        assert abs(t.mean() - 0.5) < 0.02                      # uniform
    else:
        assert abs(t.log().mean() + 1.2) < 0.05 and abs(t.log().std() - 1.2) < 0.05    # EDM's log-normal


@pytest.mark.parametrize("schedule", ALL, ids=ids)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_sampling_times_end_at_data(schedule, steps):
    times = schedule.times(steps)
    assert times.shape == (steps + 1,) and times[-1] == 0
    assert torch.isclose(times[0], torch.tensor(float(schedule.t_max))) and (times.diff() < 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=ids)
def test_no_steps_are_refused(schedule):
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        schedule.times(0)


def test_more_steps_than_a_table_has_are_refused():
    with pytest.raises(ValueError, match="steps=60 is more than the 50"):
        linear_beta(50).times(60)


def test_linear_table_is_ddpm(double):
    """The numbers of card 01, computed there with numpy."""
    alpha_bar = linear_beta().alpha ** 2
    expected = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    torch.testing.assert_close(alpha_bar[1:], expected, rtol=1e-6, atol=0)
    assert alpha_bar[-1] == pytest.approx(4.0e-5, rel=0.02)
    assert alpha_bar[500] == pytest.approx(0.079, abs=0.001)


def test_cosine_table_is_improved_ddpm(double):
    alpha_bar = cosine_beta().alpha ** 2
    f = [math.cos((n / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(1001)]
    expected = torch.cumprod(torch.tensor([1 - min(1 - f[n + 1] / f[n], 0.999) for n in range(1000)]), 0)
    torch.testing.assert_close(alpha_bar[1:], expected)
    assert alpha_bar[-1] == pytest.approx(2.4e-9, rel=0.02)
    assert alpha_bar[500] == pytest.approx(0.494, abs=0.001)


@pytest.mark.parametrize("steps", [1, 10, 100, 250, 333, 4000])
def test_a_table_of_any_length_ends_in_the_same_noise(double, steps):
    """A trap of the prototype: alpha_bar at the end was 0.90, 0.36, 0.08 for 10, 100, 250 steps."""
    short, full = linear_beta(steps), linear_beta()
    assert short.num_steps == steps
    torch.testing.assert_close(short.alpha[-1], full.alpha[-1])
    if 1000 % steps == 0:
        torch.testing.assert_close(short.alpha, full.alpha[::1000 // steps])


def test_continuous_vp_is_the_limit_of_the_table(double):
    t = torch.linspace(0, 1, 11)
    torch.testing.assert_close(VariancePreserving()(t)[0], linear_beta()(t)[0], rtol=0.02, atol=1e-3)


def test_zero_terminal_snr_is_algorithm_1():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
    ours = ZeroTerminalSNR(linear_beta())(torch.arange(1, 1001) / 1000)[0]
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(torch.linspace(1e-4, 0.02, 1000)), 0).sqrt()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert ours[-1] == 0


@pytest.mark.parametrize("schedule", [Straight(), VarianceExploding()])
def test_zero_terminal_snr_needs_preserved_variance(schedule):
    with pytest.raises(ValueError, match="variance-preserving"):
        ZeroTerminalSNR(schedule)


def test_shift_of_the_straight_path_is_sd3():
    t = torch.linspace(0, 1, 11)
    torch.testing.assert_close(Shifted(Straight(), 3.0)(t)[1], 3 * t / (1 + 2 * t))


def test_shift_adds_to_the_log_snr():
    t = torch.linspace(0.1, 0.9, 9)
    for schedule in (Cosine(), linear_beta(), Straight(), VarianceExploding()):
        (a, s), (a2, s2) = schedule(t), Shifted(schedule, 2.0)(t)
        torch.testing.assert_close(2 * (a2 / s2).log(), 2 * (a / s).log() - 2 * math.log(2))


def test_karras_times():
    """EDM eq. 5."""
    n = 18
    top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(top + i / (n - 1) * (bottom - top)) ** 7 for i in range(n)] + [0]
    torch.testing.assert_close(VarianceExploding().times(n), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_broadcast():
    image, video = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 8, 8)
    assert broadcast(torch.zeros(2), image).shape == (2, 1, 1, 1)
    assert broadcast(torch.zeros(2, 1), image).shape == (2, 1, 1, 1)     # a trap: it became five-dimensional
    assert broadcast(torch.zeros(2), video).shape == (2, 1, 1, 1, 1)
    assert broadcast(torch.zeros(2, 4), video).shape == (2, 1, 4, 1, 1)
    for x in (image, video):
        with pytest.raises(ValueError, match="per frame"):
            broadcast(torch.zeros(2, 8), x)


def test_a_table_follows_its_betas(double):
    betas = torch.rand(20) * 0.1
    table = DiscreteVP(betas)
    torch.testing.assert_close(table(torch.arange(1, 21) / 20)[0] ** 2, torch.cumprod(1 - betas, 0))


@pytest.mark.parametrize("schedule", ALL, ids=ids)
def test_when_finds_the_time_of_a_ratio(schedule):
    t = schedule.t_max * torch.tensor([0.01, 0.1, 0.5, 0.9, 0.999])
    if hasattr(schedule, "num_steps"):
        t = (t * schedule.num_steps).ceil() / schedule.num_steps
    alpha, sigma = schedule(t)
    size = torch.tensor([0.5, 1.0, 7.0, 2.0, 1.0])             # the ratio counts, not the size
    torch.testing.assert_close(schedule.when(size * alpha, size * sigma), t, rtol=2e-5, atol=1e-6)
    assert schedule.when(torch.ones(1), torch.zeros(1)) == 0
    end = schedule.when(torch.full((1,), 1e-9), torch.ones(1))
    assert end == schedule.t_max or schedule(end)[0] < 1e-8


def test_a_ratio_between_two_steps_of_a_table_goes_to_the_nearer():
    schedule = linear_beta(10)
    alpha, sigma = schedule(torch.tensor([0.4, 0.5]))
    ratio = sigma / alpha
    for weight, n in ((0.1, 4), (0.45, 4), (0.55, 5), (0.9, 5)):
        between = ratio[0] ** (1 - weight) * ratio[1] ** weight
        assert schedule.when(torch.ones(1), between[None]).item() == pytest.approx(n / 10)


def test_sub_vp_has_less_noise_and_the_same_drift():
    """Its std is VP's variance (Score SDE eq. 29), so equal at the ends only."""
    t = torch.linspace(0, 1, 101)
    (alpha, sigma), (alpha_vp, sigma_vp) = SubVariancePreserving()(t), VariancePreserving()(t)
    torch.testing.assert_close(alpha, alpha_vp)
    assert (sigma[1:-1] < sigma_vp[1:-1]).all() and sigma[0] == sigma_vp[0]
    assert sigma[-1] == pytest.approx(sigma_vp[-1].item(), abs=1e-4)


def test_geometric_levels_grow_by_one_factor():
    _, sigma = Geometric(0.01, 50)(torch.linspace(0, 1, 11)[1:])
    torch.testing.assert_close((sigma[1:] / sigma[:-1]), torch.full((9,), 5000**0.1))
    assert sigma[-1] == pytest.approx(50)
    assert Geometric()(torch.tensor(1e-6))[1] == pytest.approx(0.01, rel=1e-4)
