"""Noise schedules: how much signal and how much noise is in x_t.

Every process in this course is   x_t = alpha(t) * x0 + sigma(t) * noise.
A schedule is the pair (alpha, sigma).  Time runs from 0 (data) to t_max (noise).
"""
import math

import torch
from torch import Tensor, nn

from .random import rand


def broadcast(a: Tensor, x: Tensor) -> Tensor:
    """Reshape a, one value per sample [B] or per frame [B, F], to multiply x [B, C, (F,) H, W]."""
    if a.ndim and x.ndim and len(a) not in (1, len(x)):
        raise ValueError(f"expected one value for each sample of x of shape {tuple(x.shape)}, got shape "
                         f"{tuple(a.shape)}")
    if a.ndim <= 1:
        return a.reshape(-1, *[1] * (x.ndim - 1))
    frames = x.shape[2] if x.ndim == 5 else 1
    if a.ndim > 2 or a.shape[1] not in (1, frames):
        raise ValueError(f"expected one value per sample [B] or per frame [B, {frames}] for x of shape "
                         f"{tuple(x.shape)}, got shape {tuple(a.shape)}")
    return a[:, None, :, None, None] if x.ndim == 5 else a.reshape(-1, *[1] * (x.ndim - 1))


class Schedule(nn.Module):
    """Map times t (any shape) to alpha(t) and sigma(t) of the same shape."""

    t_max = 1.0

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), shaped to multiply x."""
        if t.dtype == torch.bool or t.is_complex():
            raise ValueError(f"t must be times, not {t.dtype}")
        alpha, sigma = self(t)
        return broadcast(alpha, x), broadcast(sigma, x)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t; t is [B] or [B, F]."""
        if noise.shape != x0.shape:
            raise ValueError(f"noise of shape {tuple(noise.shape)} must have that of x0, {tuple(x0.shape)}")
        alpha, sigma = self.at(t, x0)
        return alpha * x0 + sigma * noise

    def unit(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What this family of schedules keeps at one; by default the variance, alpha^2 + sigma^2."""
        return torch.hypot(alpha, sigma)

    def times(self, steps: int) -> Tensor:
        """The times a sampler visits by default, from noise to data: [steps + 1]."""
        return torch.linspace(self.t_max, 0, check_steps(steps) + 1)

    def when(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The time at which this schedule has the ratio alpha / sigma; its end, if it never has."""
        steps = getattr(self, "num_steps", None)
        slack = 1e-5 if steps else 0                           # an entry of a table is to find itself
        low, high = torch.zeros_like(sigma).double(), torch.full_like(sigma, self.t_max).double()
        for _ in range(60):
            middle = (low + high) / 2
            a, s = self(middle)
            less = s * alpha < a * sigma * (1 - slack)         # less noise than asked for
            low, high = torch.where(less, middle, low), torch.where(less, high, middle)
        high = (high * steps).ceil() / steps if steps else high
        return torch.where(sigma == 0, 0, high).to(sigma.dtype)

    def draw(self, batch: int, device=None) -> Tensor:
        """Times to train on, [B]."""
        return self.quantile(rand(batch, device=device))

    def quantile(self, u: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) -> times distributed as in training: uniform over (0, t_max]."""
        return self.t_max * (1 - u)

    def label(self, t: Tensor) -> Tensor:
        """What the network is told about t; of order one, so embeddings are shared."""
        return t


def check_steps(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    return steps


class DiscreteVP(Schedule):
    """A table of betas (DDPM eq. 4).  t = n/N means 'n noising steps out of N'; t = 0 is clean data."""

    def __init__(self, betas: Tensor):
        super().__init__()
        if betas.ndim != 1 or not len(betas) or betas.is_complex() or not ((betas >= 0) & (betas <= 1)).all():
            raise ValueError(f"betas of shape {tuple(betas.shape)} must be a list of numbers from 0 to 1")
        log_bar = torch.cat([torch.zeros(1).double(), torch.log1p(-betas.double()).cumsum(0)])
        dtype = torch.get_default_dtype()
        self.register_buffer("alpha", (log_bar / 2).exp().to(dtype), persistent=False)       # [N + 1]
        self.register_buffer("sigma", (-torch.expm1(log_bar)).sqrt().to(dtype), persistent=False)

    @property
    def num_steps(self) -> int:
        return len(self.alpha) - 1

    def forward(self, t):
        n = (t * self.num_steps).round().long()
        try:
            return self.alpha[n], self.sigma[n]
        except IndexError as error:                            # asked for here, as on a GPU a look would wait
            raise ValueError(f"t must be from 0 to 1; it reaches from {t.min():g} to {t.max():g}") from error

    def times(self, steps):
        """Every time of the table, or an evenly spaced subsequence of them."""
        if steps > self.num_steps:
            raise ValueError(f"steps={steps} is more than the {self.num_steps} this schedule has")
        return (super().times(steps) * self.num_steps).round() / self.num_steps

    def when(self, alpha, sigma):
        """The nearest time of the table, by its log ratio."""
        table = (self.sigma / self.alpha).log()                # -inf, then rising
        ratio = (sigma / alpha).log()
        n = torch.searchsorted(table, ratio.contiguous()).clamp(1, self.num_steps)
        n = n - (ratio - table[n - 1] < table[n] - ratio).long()
        return torch.where(sigma == 0, 0, n / self.num_steps)

    def quantile(self, u):
        """Uniform over 1/N, 2/N, ..., 1 (DDPM algorithm 1)."""
        return (1 + (u * self.num_steps).floor()) / self.num_steps


def linear_beta(num_steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> DiscreteVP:
    """DDPM, sec. 4: betas evenly spaced from start to end over 1000 steps.

    A table of another length cuts the *same* process into num_steps pieces: alpha_bar runs over the same
    curve, so that the last step is noise for any length.  (Multiplying betas by 1000/N does so to first
    order.)
    """
    log_bar = torch.log1p(-torch.linspace(start, end, 1000).double()).cumsum(0)
    log_bar = torch.cat([log_bar.new_zeros(1), log_bar])
    place = torch.linspace(0, 1000, check_steps(num_steps) + 1).double()
    below = place.floor().clamp(max=999).long()
    log_bar = torch.lerp(log_bar[below], log_bar[below + 1], place - below)
    return DiscreteVP(-torch.expm1(log_bar.diff()))


def cosine_beta(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> DiscreteVP:
    """Improved DDPM, eq. 17: alpha_bar is a squared cosine; betas are clipped at the end."""
    n = torch.arange(check_steps(num_steps) + 1).double() / num_steps
    alpha_bar = torch.cos((n + offset) / (1 + offset) * math.pi / 2) ** 2
    return DiscreteVP((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


class Cosine(Schedule):
    """Continuous cosine: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def forward(self, t):
        return torch.sin((1 - t) * math.pi / 2), torch.sin(t * math.pi / 2)   # exact at both ends


class VariancePreserving(Schedule):
    """Score SDE, eq. 29: the continuous limit of the linear table."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        self.beta_min, self.beta_max = beta_min, beta_max

    def forward(self, t):
        log_bar = -(t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2)
        return (log_bar / 2).exp(), (-torch.expm1(log_bar)).sqrt()


class SubVariancePreserving(VariancePreserving):
    """Score SDE, eq. 12: the drift of VariancePreserving with less noise, its variance squared."""

    def forward(self, t):
        alpha, sigma = super().forward(t)
        return alpha, sigma**2

    def unit(self, alpha, sigma):
        return (sigma + (sigma**2 + 4 * alpha**2).sqrt()) / 2          # alpha^2 + sigma = 1


class Geometric(Schedule):
    """Score SDE, eq. 9: x_t = x0 + sigma noise, sigma growing evenly in its logarithm.

    Just after t = 0, which is data, it jumps to sigma_min (app. C).
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        super().__init__()
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def forward(self, t):
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return torch.ones_like(t), torch.where(t == 0, 0, sigma)

    def unit(self, alpha, sigma):
        return alpha


class Straight(Schedule):
    """Rectified flow: x_t moves on a straight line from data to noise."""

    def forward(self, t):
        return 1 - t, t

    def unit(self, alpha, sigma):
        return alpha + sigma


class VarianceExploding(Schedule):
    """EDM: x_t = x0 + t * noise.  Time *is* the noise level sigma, from 0 to t_max = 80."""

    t_max = 80.0

    def forward(self, t):
        return torch.ones_like(t), t

    def unit(self, alpha, sigma):
        return alpha

    def times(self, steps, t_min=0.002, rho=7.0):
        """EDM eq. 5, then 0."""
        ramp = torch.linspace(0, 1, check_steps(steps))
        times = (self.t_max ** (1 / rho) + ramp * (t_min ** (1 / rho) - self.t_max ** (1 / rho))) ** rho
        return torch.cat([times, times.new_zeros(1)])

    def quantile(self, u, mean=-1.2, std=1.2):
        """Log-normal (EDM table 1): most training where there is most to learn."""
        return (mean + std * torch.special.ndtri(u.clamp_min(1e-6))).exp().clamp(max=self.t_max)

    def label(self, t):
        return t.clamp_min(1e-8).log() / 4                     # c_noise
