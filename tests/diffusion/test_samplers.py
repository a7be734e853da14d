"""Samplers against diffusers, EDM's algorithm and analytic Gaussians."""
from functools import partial

import pytest
import torch
from conftest import Gaussian, Toy
from torch import nn

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.predictions import EDM, Clean, Epsilon, Flow, V
from diffusion_course.diffusion.rescaled import Shifted, ZeroTerminalSNR
from diffusion_course.diffusion.samplers import (
    DPMSolver,
    ancestral_step,
    churn_step,
    ddim_step,
    euler_step,
    heun_step,
    noise_of,
    renoise_step,
    sample,
    trajectory,
)
from diffusion_course.diffusion.schedules import (
    Cosine,
    Straight,
    VarianceExploding,
    VariancePreserving,
    cosine_beta,
    linear_beta,
)

SCHEDULES = [linear_beta(), cosine_beta(), Cosine(), Straight(), VariancePreserving(), VarianceExploding(),
             ZeroTerminalSNR(linear_beta()), Shifted(Straight(), 3.0)]
STEPS = [ddim_step, partial(ddim_step, eta=0.5), partial(ddim_step, eta=1), ancestral_step,
         partial(ancestral_step, v=1.0), heun_step, DPMSolver(), renoise_step]


def name(value):
    return getattr(value, "__name__", None) or type(value).__name__


# ---- diffusers

@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("prediction, theirs", [
    (Epsilon(), "epsilon"), (Clean(), "sample"), (V(), "v_prediction")])
def test_ddim_is_diffusers(steps, prediction, theirs):
    from diffusers import DDIMScheduler
    denoiser = Denoiser(Toy(), linear_beta(), prediction)
    reference = DDIMScheduler(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
                              prediction_type=theirs)
    reference.set_timesteps(steps)
    noise = torch.randn(2, 1, 8, 8)
    x = noise * denoiser.schedule(torch.ones(1))[1]
    for t in reference.timesteps:
        x = reference.step(denoiser.net(x, torch.full((2,), (t.item() + 1) / 1000)), t, x).prev_sample
    torch.testing.assert_close(sample(denoiser, noise, steps), x, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("v, variance_type", [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_ancestral_is_diffusers_ddpm(v, variance_type):
    from diffusers import DDPMScheduler
    denoiser = Denoiser(Toy(), linear_beta(100), Epsilon())
    betas = 1 - (denoiser.schedule.alpha[1:].double() / denoiser.schedule.alpha[:-1].double()) ** 2
    reference = DDPMScheduler(100, trained_betas=betas.tolist(), clip_sample=False,
                              variance_type=variance_type)
    reference.set_timesteps(100)
    noise = torch.randn(2, 1, 8, 8)
    torch.manual_seed(1)
    ours = sample(denoiser, noise, 100, partial(ancestral_step, v=v))
    torch.manual_seed(1)
    x = noise * denoiser.schedule(torch.ones(1))[1]
    for t in reference.timesteps:
        x = reference.step(denoiser.net(x, torch.full((2,), (t.item() + 1) / 100)), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3)


class TwoHeads(nn.Module):
    def forward(self, x, t):
        return torch.cat([Toy()(x, t), torch.cos(x)], dim=1)


def test_learned_variance_is_diffusers_learned_range():
    from diffusers import DDPMScheduler
    denoiser = Denoiser(TwoHeads(), cosine_beta(100), Epsilon(), learned_variance=True)
    reference = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=False,
                              variance_type="learned_range")
    reference.set_timesteps(100)
    noise = torch.randn(2, 1, 8, 8)
    times = denoiser.schedule.times(100)[20:]                  # where x0 is not amplified a thousandfold
    torch.manual_seed(1)
    *_, ours = trajectory(denoiser, noise, times, ancestral_step)
    torch.manual_seed(1)
    x = noise
    for t in reference.timesteps[20:]:
        x = reference.step(denoiser.net(x, torch.full((2,), (t.item() + 1) / 100)), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3)


def test_eta_one_is_the_ancestral_step(double):
    denoiser = Denoiser(Toy(), linear_beta(), Epsilon())
    x = torch.randn(3, 1, 4, 4)
    t, s = torch.tensor([1.0, 0.5, 0.02]), torch.tensor([0.9, 0.499, 0.001])
    zero, one = torch.zeros_like, torch.ones_like
    for randn in (zero, one):                                  # the mean, and the mean plus one deviation
        torch.testing.assert_close(ddim_step(denoiser, x, t, s, eta=1, randn=randn),
                                   ancestral_step(denoiser, x, t, s, v=0.0, randn=randn),
                                   rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step, scheduler", [(euler_step, "FlowMatchEulerDiscreteScheduler"),
                                             (heun_step, "FlowMatchHeunDiscreteScheduler")])
def test_steps_on_the_straight_path_are_diffusers_flow_matching(step, scheduler):
    import diffusers
    denoiser = Denoiser(Toy(), Straight(), Flow())
    reference = getattr(diffusers, scheduler)()
    noise = x = torch.randn(2, 1, 8, 8)
    if scheduler.startswith("FlowMatchEuler"):
        reference.set_timesteps(sigmas=torch.linspace(1, 0, 21)[:-1].numpy())
        times = torch.linspace(1, 0, 21)
    else:
        reference.set_timesteps(20)
        times = torch.cat([reference.sigmas[:1], reference.sigmas[1::2]])
    for t in reference.timesteps:
        x = reference.step(denoiser.net(x, (t / 1000).expand(2)), t, x).prev_sample
    torch.testing.assert_close(sample(denoiser, noise, times, step), x * 1.0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [5, 12, 30])
@pytest.mark.parametrize("prediction, theirs", [(Epsilon(), "epsilon"), (V(), "v_prediction")])
def test_dpm_solver_is_diffusers(double, steps, prediction, theirs):
    from diffusers import DPMSolverMultistepScheduler
    denoiser = Denoiser(Toy(), linear_beta(), prediction)
    reference = DPMSolverMultistepScheduler(timestep_spacing="trailing", prediction_type=theirs,
                                            final_sigmas_type="zero", algorithm_type="dpmsolver++",
                                            solver_order=2)
    reference.set_timesteps(steps)
    noise = torch.randn(2, 1, 8, 8)
    x = noise * denoiser.schedule(torch.ones(1))[1]
    for t in reference.timesteps:
        x = reference.step(denoiser.net(x, torch.full((2,), (t.item() + 1) / 1000)), t, x).prev_sample
    torch.testing.assert_close(sample(denoiser, noise, steps, DPMSolver()), x, rtol=1e-3, atol=1e-3)


def test_a_solver_may_be_used_again():
    denoiser, solver = Denoiser(Toy(), linear_beta(), Epsilon()), DPMSolver()
    noise = torch.randn(2, 1, 8, 8)
    first = sample(denoiser, noise, 10, solver)
    next(trajectory(denoiser, noise, denoiser.schedule.times(10), solver))     # left after one step
    torch.testing.assert_close(sample(denoiser, noise, 10, solver), first, rtol=0, atol=0)
    assert not torch.allclose(first, sample(denoiser, noise, 10))


# ---- EDM

def edm_algorithm_1(denoise, latents, steps=18, low=0.002, high=80.0, rho=7.0):
    """Written from the paper: Heun, with an Euler step at the end; counts its evaluations."""
    i = torch.arange(steps)
    times = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    times, x, calls = torch.cat([times, torch.zeros(1)]), latents * high, 0
    for i in range(steps):
        slope, calls = (x - denoise(x, times[i])) / times[i], calls + 1
        euler = x + (times[i + 1] - times[i]) * slope
        if times[i + 1] != 0:
            slope_2, calls = (euler - denoise(euler, times[i + 1])) / times[i + 1], calls + 1
            euler = x + (times[i + 1] - times[i]) * (slope + slope_2) / 2
        x = euler
    return x, calls


def test_heun_is_edm_algorithm_1(double):
    calls = []

    class Counted(Toy):
        def forward(self, x, t):
            calls.append(t)
            return super().forward(x, t)

    denoiser = Denoiser(Counted(), VarianceExploding(), EDM())
    noise = torch.randn(2, 1, 8, 8)
    expected, count = edm_algorithm_1(lambda x, s: denoiser(x, s.expand(2)), noise)
    calls.clear()
    ours = sample(denoiser, noise, 18, heun_step)
    assert len(calls) == count == 2 * 18 - 1
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_euler_is_diffusers_edm():
    from diffusers import EDMEulerScheduler
    denoiser = Denoiser(Toy(), VarianceExploding(), EDM())
    reference = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    reference.set_timesteps(18)
    noise = torch.randn(2, 1, 8, 8)
    x = noise * 80
    for i, t in enumerate(reference.timesteps):
        sigma = reference.sigmas[i]
        out = denoiser.net(reference.scale_model_input(x, t), (sigma.log() / 4).expand(2))
        x = reference.step(out, t, x).prev_sample
    torch.testing.assert_close(sample(denoiser, noise, 18), x, rtol=1e-3, atol=1e-3)


# ---- analytic Gaussians

@pytest.mark.parametrize("schedule", [
    Cosine(), Straight(), VariancePreserving(), VarianceExploding(), Shifted(Cosine(), 2.0)], ids=name)
@pytest.mark.parametrize("make, order", [(lambda: euler_step, 1), (lambda: heun_step, 2), (DPMSolver, 2)],
                         ids=["euler", "heun", "dpm++"])
def test_order_of_convergence(double, schedule, make, order):
    """Halving the steps' length divides the error by 2 for Euler and by 4 for Heun and DPM-Solver++(2M)."""
    exact = Gaussian(schedule)
    start, end = (torch.tensor([v]) for v in ((20.0, 0.5) if schedule.t_max > 1 else (0.9, 0.1)))
    x = torch.randn(1, 1, 4, 4)
    errors = []
    for n in (64, 128):
        ramp = torch.linspace(0, 1, n + 1)
        times = (start ** 0.25 + ramp * (end ** 0.25 - start ** 0.25)) ** 4
        *_, y = trajectory(exact, x, times, make())
        errors.append((y - exact.flow(x, start, end)).abs().max())
    assert (errors[0] / errors[1]).log2().item() == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("step", [
    ddim_step, partial(ddim_step, eta=1), ancestral_step, heun_step, DPMSolver()], ids=name)
def test_samples_of_a_gaussian_have_its_mean_and_deviation(schedule, step):
    exact = Gaussian(schedule, mean=0.3, std=0.6)
    x = sample(exact, torch.randn(20_000, 1, 1, 1), 200, step)
    assert x.mean().item() == pytest.approx(0.3, abs=0.03)
    assert x.std().item() == pytest.approx(0.6, abs=0.04)


# ---- the ends of time

@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("step", STEPS, ids=name)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_from_noise_to_data_are_exact_for_an_oracle(schedule, step, steps):
    """Visits t_max and 0.  Traps of the prototype: NaN on Straight, 1.7e5 on Cosine."""
    class Oracle(Gaussian):
        def estimate(self, x, t):
            return torch.full_like(x, 0.3), None

    x = sample(Oracle(schedule), torch.randn(2, 1, 4, 4), steps, step)
    torch.testing.assert_close(x, torch.full_like(x, 0.3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("step", STEPS, ids=name)
def test_every_frame_has_its_own_time_and_may_reach_the_end_alone(schedule, step):
    """Frames at t_max, inside, one step from the end, and finished; each as if it were alone."""
    # a finished frame stays, whatever the denoiser answers
    class WrongAtZero(Gaussian):
        def estimate(self, x, t):
            x0, v = super().estimate(x, t)
            return torch.where((t == 0).reshape(1, 1, *t.shape[1:], 1, 1), 7.0, x0), v

    exact = WrongAtZero(schedule)
    near = 1 / getattr(schedule, "num_steps", 1000)
    t = schedule.t_max * torch.tensor([[1.0, 0.5, near, 0.0]])
    s = schedule.t_max * torch.tensor([[1 - near, 0.5 - near, 0.0, 0.0]])
    x = exact.add_noise(torch.randn(1, 1, 4, 2, 2), t, torch.randn(1, 1, 4, 2, 2))
    options = {} if step is heun_step or isinstance(step, DPMSolver) else {"randn": torch.ones_like}
    y = step(exact, x, t, s, **options)
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, :, 3], x[:, :, 3], rtol=0, atol=0)         # finished
    for f in range(3):
        alone = step(exact, x[:, :, f], t[:, f], s[:, f], **options)
        torch.testing.assert_close(y[:, :, f], alone, rtol=1e-4, atol=1e-5)


def test_changing_the_time_of_one_frame_changes_only_that_frame():
    exact, x = Gaussian(Cosine()), torch.randn(2, 1, 4, 4, 4)
    t = torch.full((2, 4), 0.6)
    moved = t.clone()
    moved[1, 2] = 0.7
    changed = ddim_step(exact, x, t, t - 0.1) != ddim_step(exact, x, moved, t - 0.1)
    changed = changed.flatten(3).any(-1)[:, 0]
    expected = torch.zeros(2, 4, dtype=torch.bool)
    expected[1, 2] = True
    assert torch.equal(changed, expected)


def test_noise_of_inverts_add_noise():
    exact, x0, noise = Gaussian(Cosine()), *torch.randn(2, 3, 1, 4, 4)
    t = torch.tensor([0.0, 0.3, 1.0])
    found = noise_of(exact.schedule, exact.add_noise(x0, t, noise), x0, t)
    torch.testing.assert_close(found[1:], noise[1:], rtol=1e-4, atol=1e-5)
    assert not found[0].any()


def test_one_seed_gives_one_sample():
    denoiser, noise = Denoiser(Toy(), Cosine(), V()), torch.randn(2, 1, 8, 8)
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(sample(denoiser, noise, 10, ancestral_step))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_the_bar_counts_every_step_and_goes_away(monkeypatch):
    import tqdm
    bars = []

    class Bar(tqdm.tqdm):
        def close(self):
            bars.append((self.n, self.total, self.leave))
            super().close()

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    sample(Gaussian(Cosine()), torch.randn(1, 1, 2, 2), 7)
    assert not bars                                            # only on request
    sample(Gaussian(Cosine()), torch.randn(1, 1, 2, 2), 7, bar=True)
    assert bars[0] == (7, 7, False)


# ---- churn

def algorithm_2(D, x, sigmas, churn, low, high, inflate, draws):
    """EDM's algorithm 2, line by line."""
    N = len(sigmas) - 1
    for i in range(N):
        gamma = min(churn / N, 2**0.5 - 1) if low <= sigmas[i] <= high else 0.0
        epsilon = inflate * next(draws)
        hat = sigmas[i] + gamma * sigmas[i]
        x_hat = x + (hat**2 - sigmas[i]**2) ** 0.5 * epsilon
        d = (x_hat - D(x_hat, hat)) / hat
        x = x_hat + (sigmas[i + 1] - hat) * d
        if sigmas[i + 1] != 0:
            d2 = (x - D(x, sigmas[i + 1])) / sigmas[i + 1]
            x = x_hat + (sigmas[i + 1] - hat) * (d + d2) / 2
    return x


@pytest.mark.parametrize("churn, low, high, inflate", [
    (0.0, 0.05, 50.0, 1.003), (4.0, 0.05, 50.0, 1.003), (40.0, 0.05, 50.0, 1.003), (5.0, 0.0, 80.0, 1.1)])
def test_churn_is_algorithm_2(double, churn, low, high, inflate):
    schedule = VarianceExploding()
    denoiser, times = Denoiser(Toy(), schedule, EDM()), schedule.times(9)
    draws = [torch.randn(2, 1, 4, 4) for _ in range(9)]
    x = 80 * torch.randn(2, 1, 4, 4)
    again = iter(draws)
    step = churn_step(9, churn, low, high, inflate, randn=lambda x: next(again))
    *_, ours = trajectory(denoiser, x, times, step)
    expected = algorithm_2(lambda x, sigma: denoiser(x, sigma.expand(2)), x, times, churn, low, high, inflate,
                           iter(draws))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    *_, heun = trajectory(denoiser, x, times, heun_step)
    assert torch.allclose(ours, heun) == (churn == 0)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_heun_looks_2n_minus_1_times(steps):
    calls = []

    def counting(x, t, **cond):
        calls.append(t)
        return denoiser(x, t)

    denoiser = Gaussian(VarianceExploding())
    counting.schedule = denoiser.schedule
    sample(counting, torch.randn(1, 1, 2, 2), steps, heun_step)
    assert len(calls) == 2 * steps - 1


def rms_error(modes, steps, step, rho, x, reference):
    times = modes.schedule.times(steps, rho=rho)
    return (sample(modes, x, times, step) - reference).square().sum(1).mean().sqrt().item()


def test_figures_of_the_edm_card(double):
    """Three modes in 2-D, against 2000 Heun steps: rho = 7 is best; at 17 evaluations Euler wins."""
    modes, x = Modes(), torch.randn(1000, 2)
    reference = sample(modes, x, 2000, heun_step)
    found = [rms_error(modes, n, step, rho, x, reference) for n, step, rho in (
        (18, heun_step, 7.0), (35, euler_step, 7.0), (18, heun_step, 3.0), (18, heun_step, 1.0),
        (9, heun_step, 7.0), (17, euler_step, 7.0))]
    assert found == pytest.approx([0.024, 0.046, 0.047, 3.22, 0.15, 0.074], rel=0.25)
    assert found[0] < found[1] < found[3] and found[5] < found[4]


class Modes:
    """The exact denoiser of three narrow Gaussians in the plane (card of EDM)."""

    def __init__(self):
        self.schedule = VarianceExploding()
        self.means = torch.tensor([[0.5, 0.5], [-0.5, 0.3], [0, -0.6]])

    def __call__(self, x, t):
        var, own = t[:, None] ** 2, 0.05**2
        w = (-(x[:, None] - self.means).square().sum(2) / (2 * (own + var))).softmax(1)
        return (own * x + var * (w @ self.means)) / (own + var)
