"""Every schedule as a stochastic differential equation, and the steps that follow it back.

Song et al. 2020, arXiv:2011.13456:  dx = f(t) x dt + g(t) dw  noises (eq. 5); with the score it runs
backwards (eq. 6), and an ODE, which diffusion/ode.py solves, has the same marginals (eq. 13).
"""
import torch
from torch import Tensor

from .samplers import Step
from .schedules import Schedule, broadcast


def rates(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """d alpha / dt and d sigma / dt at t, of its shape."""
    if hasattr(schedule, "num_steps"):
        raise ValueError(f"{type(schedule).__name__} is a table, which has no derivatives; "
                         "use a continuous schedule, such as VariancePreserving for linear_beta")
    with torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        return tuple(torch.autograd.grad(a.sum(), t, retain_graph=True)[0] if a.requires_grad
                     else torch.zeros_like(t) for a in schedule(t))


def drift_and_diffusion(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(t), and g(t)^2, shaped to multiply x: dx = f x dt + g dw has the schedule's alpha and sigma."""
    (alpha, sigma), (dalpha, dsigma) = schedule(t), rates(schedule, t)
    if (alpha == 0).any():
        raise ValueError(f"{type(schedule).__name__} has no signal left at its end, where its drift is "
                         "infinite; begin a little earlier, or use reverse_diffusion_step")
    f = dalpha / alpha
    return broadcast(f, x), broadcast(2 * sigma * (dsigma - f * sigma), x)


def score(denoiser, x: Tensor, t: Tensor, **cond) -> Tensor:
    """The gradient of log p_t at x, which is (alpha x0_hat - x) / sigma^2 (Tweedie's formula)."""
    alpha, sigma = denoiser.schedule.at(t, x)
    return (alpha * denoiser(x, t, **cond) - x) / sigma**2


def euler_maruyama_step(denoiser, x: Tensor, t: Tensor, s: Tensor, randn=torch.randn_like, **cond) -> Tensor:
    """The reverse SDE (eq. 6) with f, g and the score of time t kept until s; no noise in the last step."""
    f, g2 = drift_and_diffusion(denoiser.schedule, t, x)
    dt = broadcast(t - s, x)
    mean = x - (f * x - g2 * score(denoiser, x, t, **cond)) * dt
    return mean + broadcast(s > 0, x) * (g2 * dt).sqrt() * randn(x)


def reverse_diffusion_step(denoiser, x: Tensor, t: Tensor, s: Tensor, randn=torch.randn_like,
                           **cond) -> Tensor:
    """The forward step x_t = ratio x_s + G z, turned round (app. E); the last step adds no noise."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule.at(t, x), denoiser.schedule.at(s, x)
    ratio = alpha_t / alpha_s
    G2 = (sigma_t**2 - ratio**2 * sigma_s**2).clamp_min(0)
    mean = (2 - ratio) * x + G2 * score(denoiser, x, t, **cond)
    return mean + broadcast(s > 0, x) * G2.sqrt() * randn(x)


def langevin_step(denoiser, x: Tensor, t: Tensor, snr: float = 0.16, shrink: Tensor | float = 1.0,
                  randn=torch.randn_like, **cond) -> Tensor:
    """One step of Langevin dynamics at time t: it leaves p_t as it is, and mends what is not p_t (alg. 4, 5).

    The step's size makes its noise 1 / snr times as long as its drift, on the average of the batch; shrink is
    alpha of algorithm 5, and 1 where variance explodes.
    """
    s, z = score(denoiser, x, t, **cond), randn(x)
    lengths = [a.flatten(1).norm(dim=1).mean() for a in (z, s)]
    size = 2 * shrink * (snr * lengths[0] / lengths[1]) ** 2
    return x + size * s + (2 * size) ** 0.5 * z


def predictor_corrector(predictor: Step = reverse_diffusion_step, correctors: int = 1, snr: float = 0.16,
                        randn=torch.randn_like) -> Step:
    """A step that corrects x at t, so many times, then predicts x at s: algorithm 1, its halves exchanged.

    It takes correctors + 1 network evaluations.
    """
    def step(denoiser, x, t, s, **cond):
        (alpha_t, _), (alpha_s, _) = denoiser.schedule.at(t, x), denoiser.schedule.at(s, x)
        for _ in range(correctors):
            x = langevin_step(denoiser, x, t, snr, (alpha_t / alpha_s) ** 2, randn, **cond)
        return predictor(denoiser, x, t, s, randn=randn, **cond)

    return step
