"""Sampling: a list of times, a step from x_t to x_s, and a loop.

A step is a callable (denoiser, x, t, s, **cond) -> x_s.  t and s are [B], or [B, F] to give every frame its
own time; a frame whose t is 0 is finished and stays as it is.
"""
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .likelihood import mix_variance, posterior
from .schedules import broadcast, check_steps

Step = Callable[..., Tensor]


def noise_of(schedule, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The noise in x that goes with x0; 0 where t is 0 and there is none."""
    alpha, sigma = schedule.at(t, x)
    return torch.where(sigma > 0, (x - alpha * x0) / torch.where(sigma > 0, sigma, 1), 0)


def ddim_step(denoiser, x: Tensor, t: Tensor, s: Tensor, eta: float = 0.0, randn=torch.randn_like,
              **cond) -> Tensor:
    """DDIM eq. 12: keep the noise that x0_hat implies, and renew a part of it if eta > 0.

    eta = 0 is deterministic: for Straight it is Euler on the flow, for VarianceExploding Euler on EDM's ODE.
    eta = 1 is DDPM's ancestral step with the smaller variance.
    """
    x0 = denoiser(x, t, **cond)
    if eta == 0:
        return toward(denoiser.schedule, x, x0, t, s)
    alpha_s, sigma_s = denoiser.schedule.at(s, x)
    _, var, _ = posterior(denoiser.schedule, x0, x, t, s)
    var = eta**2 * var
    kept = (sigma_s**2 - var).clamp_min(0).sqrt() * noise_of(denoiser.schedule, x, x0, t)
    return finished(t, x, alpha_s * x0 + kept + var.sqrt() * randn(x))


# Euler's method in (alpha, sigma): x_s = x + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) noise
euler_step = ddim_step


def toward(schedule, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Move x from t to s as if x0 were the truth.  Exact where alpha or sigma is 0."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    ratio = torch.where(sigma_t > 0, sigma_s / torch.where(sigma_t > 0, sigma_t, 1), 1)
    return ratio * x + (alpha_s - ratio * alpha_t) * x0


def finished(t: Tensor, x: Tensor, x_s: Tensor) -> Tensor:
    """x_s, but x where t is 0 already."""
    return torch.where(broadcast(t == 0, x), x, x_s)


def ancestral_step(denoiser, x: Tensor, t: Tensor, s: Tensor, v: float | None = None, randn=torch.randn_like,
                   **cond) -> Tensor:
    """DDPM algorithm 2: draw from q(x_s | x_t, x0_hat), with the variance between its two bounds.

    v = 0 is beta tilde, v = 1 is beta; None takes what the network learned (Improved DDPM eq. 15), else 0.
    """
    x0, learned = denoiser.estimate(x, t, **cond)
    v = v if v is not None else 0.0 if learned is None else learned
    mean, small, large = posterior(denoiser.schedule, x0, x, t, s)
    return mean + mix_variance(small, large, v).sqrt() * randn(x)


def heun_step(denoiser, x: Tensor, t: Tensor, s: Tensor, **cond) -> Tensor:
    """Euler, then once more with the mean of the slopes at both ends (EDM algorithm 1).

    The slope is dx = x0 dalpha + noise dsigma, so nothing is divided by alpha; where s is 0 the noise at the
    end is undefined and the Euler step stands.
    """
    schedule = denoiser.schedule
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    x0 = denoiser(x, t, **cond)
    x_s = toward(schedule, x, x0, t, s)
    if not s.any():
        return x_s
    x0_s = denoiser(x_s, s, **cond)
    noise, noise_s = noise_of(schedule, x, x0, t), noise_of(schedule, x_s, x0_s, s)
    better = x + (alpha_s - alpha_t) * (x0 + x0_s) / 2 + (sigma_s - sigma_t) * (noise + noise_s) / 2
    return torch.where((sigma_s > 0) & (sigma_t > 0), better, x_s)


def churn_step(steps: int, churn: float = 40.0, low: float = 0.05, high: float = 50.0,
               inflate: float = 1.003, randn=torch.randn_like) -> Step:
    """EDM algorithm 2: before each of `steps` Heun steps from a sigma in [low, high], go back to more noise.

    They are S_churn, S_tmin, S_tmax and S_noise of the paper.  For VarianceExploding, where t is sigma.
    """
    gamma = min(churn / check_steps(steps), 2**0.5 - 1)

    def step(denoiser, x, t, s, **cond):
        t_hat = torch.where((t >= low) & (t <= high), t * (1 + gamma), t)
        added = broadcast((t_hat**2 - t**2).sqrt(), x)
        return heun_step(denoiser, x + added * inflate * randn(x), t_hat, s, **cond)

    return step


class DPMSolver:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: a DDIM step towards an extrapolated x0.

    It remembers the x0 of the step before, and only uses it if this step continues that one; so a solver
    may be used again, and the first step of a trajectory is first order.
    """

    def __init__(self):
        self.last = None                                       # (t, s, x0) of the step before

    def __call__(self, denoiser, x: Tensor, t: Tensor, s: Tensor, **cond) -> Tensor:
        schedule, x0 = denoiser.schedule, denoiser(x, t, **cond)
        better = x0
        if self.last is not None and self.last[2].shape == x0.shape and torch.equal(self.last[1], t):
            before, _, x0_before = self.last
            levels = [schedule.at(time, x) for time in (before, t, s)]
            log_snr = [alpha.log() - sigma.log() for alpha, sigma in levels]
            ratio = (log_snr[2] - log_snr[1]) / (log_snr[1] - log_snr[0])      # this step over the one before
            second = ratio.isfinite() & (ratio > 0)            # the last step (s = 0) is first order
            better = x0 + torch.where(second, ratio, 0) / 2 * (x0 - x0_before)
        self.last = (t, s, x0)
        return toward(schedule, x, better, t, s)


def renoise_step(denoiser, x: Tensor, t: Tensor, s: Tensor, randn=torch.randn_like, **cond) -> Tensor:
    """Consistency models, algorithm 1: jump to x0, then noise it afresh to time s."""
    alpha_s, sigma_s = denoiser.schedule.at(s, x)
    return finished(t, x, alpha_s * denoiser(x, t, **cond) + sigma_s * randn(x))


@torch.no_grad()
def trajectory(denoiser, x: Tensor, times: Tensor, step: Step = ddim_step, bar: bool = False,
               **cond) -> Iterator[Tensor]:
    """Walk x, which is at times[0], through the given times; yield it after every step."""
    steps = list(pairwise(times.to(x.device)))
    if bar:
        from tqdm import tqdm
        steps = tqdm(steps, desc="sampling", unit="step", leave=False)
    for t, s in steps:
        x = step(denoiser, x, t.expand(len(x)), s.expand(len(x)), **cond)
        yield x


def sample(denoiser, noise: Tensor, times: int | Tensor = 50, step: Step = ddim_step, bar: bool = False,
           **cond) -> Tensor:
    """From pure noise [B, C, (F,) H, W] to the end of the trajectory.

    An int asks for that many default steps.
    """
    times = denoiser.schedule.times(times) if isinstance(times, int) else times
    if times.ndim != 1 or len(times) < 2 or not times.is_floating_point():
        raise ValueError(f"times must be a list of two at least, from noise to data; got {times.dtype} of "
                         f"shape {tuple(times.shape)}")
    _, sigma = denoiser.schedule.at(times[:1].to(noise.device), noise)
    return last(trajectory(denoiser, sigma * noise, times, step, bar, **cond))


def last(states: Iterator[Tensor]) -> Tensor:
    """The end of a trajectory, without keeping the way there."""
    return deque(states, maxlen=1).pop()
