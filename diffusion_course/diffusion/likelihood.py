"""The reverse process as a distribution: posterior, variance and the variational bound in bits per dimension.

DDPM sec. 2-3, Improved DDPM sec. 3.
"""
import math

import torch
from torch import Tensor

from .random import randn_like
from .schedules import Schedule, broadcast


def posterior(schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor,
              s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q(x_s | x_t, x0), DDPM eq. 6-7, for any two times s < t, per sample or per frame.

    Returns its mean (like x), its variance (beta tilde) and the variance of q(x_t | x_s) (beta), which
    are the lower and the upper bound of the variance of the true reverse step.  Where s = t, it is x itself.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    ratio = alpha_t / alpha_s
    beta = (sigma_t**2 - ratio**2 * sigma_s**2).clamp_min(0)
    total = torch.where(sigma_t > 0, sigma_t**2, 1)
    mean = ratio * sigma_s**2 / total * x + alpha_s * beta / total * x0
    return torch.where(sigma_t > 0, mean, x), beta * sigma_s**2 / total, beta


def mix_variance(small: Tensor, large: Tensor, v: Tensor | float) -> Tensor:
    """exp(v log large + (1 - v) log small): Improved DDPM eq. 15; 0 where small is 0 (the last step)."""
    safe = small.clamp_min(torch.finfo(small.dtype).tiny)
    return torch.where(small > 0, safe * (large / safe) ** v, 0)


def normal_kl(mean1: Tensor, var1: Tensor, mean2: Tensor, var2: Tensor) -> Tensor:
    """KL( N(mean1, var1) || N(mean2, var2) ) in nats, elementwise."""
    return 0.5 * (torch.log(var2 / var1) + var1 / var2 + (mean1 - mean2) ** 2 / var2 - 1)


def discretized_nll(x0: Tensor, mean: Tensor, std: Tensor, levels: int = 256) -> Tensor:
    """-log of the Gaussian mass in the bin of each pixel (DDPM eq. 13), in nats; x0 in [-1, 1]."""
    if levels < 2:
        raise ValueError(f"levels={levels} must be at least 2")
    half = 1 / (levels - 1)
    cdf = torch.special.ndtr
    above = torch.where(x0 > 1 - half / 2, 1.0, cdf((x0 + half - mean) / std))
    below = torch.where(x0 < -1 + half / 2, 0.0, cdf((x0 - half - mean) / std))
    return -(above - below).clamp_min(1e-12).log()


def vlb_term(schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor, x0_hat: Tensor,
             v: Tensor | float) -> Tensor:
    """One term of the bound, L_{n-1} with n = t N, per sample [B], in bits per dimension (DDPM eq. 5).

    v places the model's log-variance between log beta tilde (0) and log beta (1).
    """
    steps = schedule.num_steps
    s = t - 1 / steps
    mean, small, large = posterior(schedule, x0, x, t, s)
    mean_hat, _, _ = posterior(schedule, x0_hat, x, t, s)
    # n = 1: decoder; beta tilde is 0, take that of n = 2
    first = broadcast(t * steps < 1.5, x)
    two = torch.full_like(t, 2 / steps)
    small = torch.where(first, posterior(schedule, x0, x, two, two - 1 / steps)[1], small)
    var = mix_variance(small, large, v)
    decoder, kl = discretized_nll(x0, mean_hat, var.sqrt()), normal_kl(mean, small, mean_hat, var)
    nats = torch.where(first, decoder, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """KL( q(x_T | x0) || N(0, I) ), per sample [B], in bits per dimension (L_T of DDPM eq. 5)."""
    alpha, sigma = schedule.at(torch.full((len(x0),), float(schedule.t_max), device=x0.device), x0)
    kl = normal_kl(alpha * x0, sigma**2, torch.zeros_like(x0), torch.ones_like(sigma))
    return kl.flatten(1).mean(1) / math.log(2)


@torch.no_grad()
def bits_per_dim(denoiser, x0: Tensor, v: float = 0.0, **cond) -> Tensor:
    """The variational bound on -log p(x0), per sample [B], in bits per dimension: all N terms and the prior.

    Takes N network evaluations.  v is used where the denoiser has not learned its own.
    """
    schedule = denoiser.schedule
    total = prior_term(schedule, x0)
    for n in range(1, schedule.num_steps + 1):
        t = torch.full((len(x0),), n / schedule.num_steps, device=x0.device)
        x = denoiser.add_noise(x0, t, randn_like(x0))
        x0_hat, learned = denoiser.estimate(x, t, **cond)
        total = total + vlb_term(schedule, x0, x, t, x0_hat, v if learned is None else learned)
    return total
