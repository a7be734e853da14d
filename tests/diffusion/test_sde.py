"""SDEs against closed forms, simulation and each other."""
import pytest
import torch
from conftest import Gaussian

from diffusion_course.diffusion.guidance import Clip
from diffusion_course.diffusion.samplers import ancestral_step, sample
from diffusion_course.diffusion.schedules import (
    Cosine,
    Geometric,
    Straight,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    linear_beta,
)
from diffusion_course.diffusion.sde import (
    drift_and_diffusion,
    euler_maruyama_step,
    langevin_step,
    predictor_corrector,
    rates,
    reverse_diffusion_step,
    score,
)

CONTINUOUS = [VariancePreserving(), SubVariancePreserving(), Geometric(), Cosine(), VarianceExploding()]


def name(value):
    return getattr(value, "__name__", None) or type(value).__name__


def closed_form(schedule, t):
    """f and g^2 of Score SDE, eq. 9, 11 and 12."""
    if isinstance(schedule, Geometric):
        sigma = schedule(t)[1]
        return 0 * t, sigma**2 * 2 * torch.log(torch.tensor(schedule.sigma_max / schedule.sigma_min))
    beta = 0.1 + t * 19.9
    if isinstance(schedule, SubVariancePreserving):
        return -beta / 2, beta * (1 - torch.exp(-2 * (0.1 * t + 19.9 * t**2 / 2)))
    return -beta / 2, beta


@pytest.mark.parametrize("schedule", CONTINUOUS[:3], ids=name)
def test_drift_and_diffusion_are_those_of_the_paper(double, schedule):
    t = torch.tensor([0.001, 0.1, 0.5, 0.9, 1.0])
    x = torch.zeros(5, 1)
    f, g2 = drift_and_diffusion(schedule, t, x)
    expected_f, expected_g2 = closed_form(schedule, t)
    torch.testing.assert_close(f[:, 0], expected_f)
    torch.testing.assert_close(g2[:, 0], expected_g2)


@pytest.mark.parametrize("schedule", CONTINUOUS[:3], ids=name)
def test_simulated_forwards_it_has_the_schedules_marginals(double, schedule):
    """Euler-Maruyama over 500 steps: mean and deviation at three times, within two percent."""
    x0 = torch.full((20_000, 1), 1.5)
    x = x0 + schedule(torch.tensor(1e-9))[1] * torch.randn_like(x0)            # VE begins at sigma_min
    times = torch.linspace(1e-5, 1, 501)
    for n, (t, s) in enumerate(zip(times, times[1:]), start=1):
        f, g2 = drift_and_diffusion(schedule, t[None], x)
        x = x + f * x * (s - t) + (g2 * (s - t)).sqrt() * torch.randn_like(x)
        if n in (150, 300, 500):
            alpha, sigma = schedule(s)
            assert x.std().item() == pytest.approx(sigma.item(), rel=0.02)
            assert x.mean().item() == pytest.approx(1.5 * alpha.item(), abs=0.03 * max(1, sigma.item()))


def test_rates_of_per_frame_times_and_of_expanded_ones():
    t = torch.tensor([[0.1, 0.5, 0.9]])
    alone = rates(Cosine(), t[0])
    for got, expected in zip(rates(Cosine(), t.expand(2, -1)), alone):
        torch.testing.assert_close(got, expected.expand(2, -1))


def test_a_table_has_no_derivatives_and_a_dead_end_no_drift():
    with pytest.raises(ValueError, match="use a continuous schedule"):
        rates(linear_beta(), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="begin a little earlier"):
        sample(Gaussian(Straight()), torch.randn(1, 1, 2, 2), 5, euler_maruyama_step)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=name)
def test_the_score_of_a_gaussian(double, schedule):
    exact, t = Gaussian(schedule), torch.tensor([0.2, 0.7])
    x = torch.randn(2, 1, 2, 2)
    alpha, sigma = schedule.at(t, x)
    expected = -(x - alpha * exact.mean) / (alpha**2 * exact.std**2 + sigma**2)
    torch.testing.assert_close(score(exact, x, t), expected)


PREDICTORS = [euler_maruyama_step, reverse_diffusion_step, predictor_corrector(snr=0.1),
              predictor_corrector(euler_maruyama_step, 2, 0.05), predictor_corrector(ancestral_step, snr=0.1)]


@pytest.mark.parametrize("schedule", CONTINUOUS[:3], ids=name)
@pytest.mark.parametrize("step", PREDICTORS, ids=name)
def test_samples_of_a_gaussian_have_its_mean_and_deviation(schedule, step):
    exact = Gaussian(schedule)
    x = sample(exact, torch.randn(3000, 1, 2, 2), 200, step)
    assert x.mean().item() == pytest.approx(exact.mean, abs=0.04)
    assert x.std().item() == pytest.approx(exact.std, rel=0.06)


def test_reverse_diffusion_is_the_papers_for_vp_and_ve(double):
    """App. E: (2 - sqrt(1 - beta)) x + beta s, and x + (sigma_i^2 - sigma_{i-1}^2) s."""
    t, s, x = torch.tensor([0.6]), torch.tensor([0.59]), torch.randn(1, 1, 2, 2)
    for schedule in (VariancePreserving(), Geometric()):
        exact = Gaussian(schedule)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        if isinstance(schedule, Geometric):
            keep, G2 = 1, sigma_t**2 - sigma_s**2
        else:
            beta = 1 - (alpha_t / alpha_s) ** 2
            keep, G2 = 2 - (1 - beta).sqrt(), beta
        z = torch.randn_like(x)
        expected = keep * x + G2 * score(exact, x, t) + G2.sqrt() * z
        found = reverse_diffusion_step(exact, x, t, s, randn=lambda x, z=z: z)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("step", PREDICTORS[:3], ids=name)
def test_the_last_step_adds_no_noise(step):
    """It returns the mean: two draws from one x agree, where those of an earlier step do not."""
    exact, x = Gaussian(VariancePreserving()), torch.randn(2, 1, 4, 4)
    quiet = predictor_corrector(snr=0.0) if step is PREDICTORS[2] else step
    t = torch.full((2,), 0.01)
    torch.testing.assert_close(quiet(exact, x, t, 0 * t), quiet(exact, x, t, 0 * t))
    assert not torch.allclose(quiet(exact, x, t, t / 2), quiet(exact, x, t, t / 2))


def test_langevin_leaves_the_marginal_and_mends_another(double):
    exact = Gaussian(VariancePreserving())
    t = torch.full((20_000,), 0.4)
    alpha, sigma = exact.schedule(torch.tensor(0.4))
    goal = (alpha * exact.mean).item(), (alpha**2 * exact.std**2 + sigma**2).sqrt().item()
    for start in (goal, (goal[0] + 1, 0.5 * goal[1])):
        x = start[0] + start[1] * torch.randn(20_000, 1)
        for _ in range(200):
            x = langevin_step(exact, x, t, snr=0.16)
        assert x.mean().item() == pytest.approx(goal[0], abs=0.03)
        assert x.std().item() == pytest.approx(goal[1], rel=0.03)


def test_the_size_of_a_langevin_step_is_algorithm_5s(double):
    exact, x, t = Gaussian(VariancePreserving()), torch.randn(3, 1, 2, 2), torch.full((3,), 0.5)
    z = torch.randn_like(x)
    s = score(exact, x, t)
    length = [a.flatten(1).norm(dim=1).mean() for a in (z, s)]
    size = 2 * 0.9 * (0.2 * length[0] / length[1]) ** 2
    found = langevin_step(exact, x, t, snr=0.2, shrink=0.9, randn=lambda x: z)
    torch.testing.assert_close(found, x + size * s + (2 * size).sqrt() * z)


def test_a_corrector_shrinks_its_step_by_the_signal_kept():
    """alpha of algorithm 5 is 1 - beta of the step, and 1 where variance explodes."""
    seen = []

    def watch(denoiser, x, t, s, **options):
        return x

    x, draws = torch.randn(64, 1, 2, 2), torch.randn(64, 1, 2, 2)
    t, s = torch.full((64,), 0.8), torch.full((64,), 0.7)
    for schedule in (VariancePreserving(), Geometric()):
        exact = Gaussian(schedule)
        step = predictor_corrector(watch, snr=0.1, randn=lambda x: draws)
        kept = (schedule(t)[0] / schedule(s)[0])[0] ** 2
        expected = langevin_step(exact, x, t, 0.1, kept, lambda x: draws)
        torch.testing.assert_close(step(exact, x, t, s), expected)
        seen.append(kept.item())
    assert seen[1] == 1 and seen[0] < 0.5


def test_conditions_reach_the_network():
    class Labelled(Gaussian):
        def __call__(self, x, t, label):
            return super().__call__(x, t) + label

    exact = Labelled(VariancePreserving())
    for step in (*PREDICTORS[:2], predictor_corrector()):
        assert sample(exact, torch.randn(2, 1, 2, 2), 3, step, label=0.1).isfinite().all()


def test_guides_may_be_followed():
    guided = Clip(Gaussian(VariancePreserving()), 0.5)
    assert sample(guided, torch.randn(2, 1, 2, 2), 20, reverse_diffusion_step).abs().max() < 0.7
