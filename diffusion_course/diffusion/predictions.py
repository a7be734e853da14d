"""What the network is asked to predict, and how its output becomes an estimate of x0.

Given x_t = alpha * x0 + sigma * noise, knowing x_t and any one of {x0, noise, v, flow} gives all the
others.  `target` says what to regress on; `to_x0` inverts it, exactly, at both ends of time too.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedules import Schedule


class Prediction:
    """Base class; all methods take alpha and sigma shaped to multiply x."""

    def check(self, schedule: Schedule) -> None:
        """Raise if to_x0 is undefined anywhere on the schedule."""

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor | float:
        """What x is multiplied with before it enters the network."""
        return 1.0

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def to_x0(self, out: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError


class Clean(Prediction):
    """The data itself."""

    def target(self, x0, noise, alpha, sigma):
        return x0

    def to_x0(self, out, x, alpha, sigma):
        return out


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (DDPM eq. 11).

    sigma_data, that of the data, lets the network see x with unit variance: needed where x grows with sigma.
    """

    sigma_data: float | None = None

    def check(self, schedule):
        alpha, _ = schedule(torch.tensor([float(schedule.t_max)]))
        if alpha.item() == 0:
            raise ValueError("Epsilon() says nothing about x0 where alpha = 0, and "
                             f"{type(schedule).__name__} ends there; predict V(), Flow() or Clean(), "
                             "or use a schedule that keeps some signal "
                             "(linear_beta, cosine_beta, VariancePreserving)")

    def c_in(self, alpha, sigma):
        return 1.0 if self.sigma_data is None else 1 / torch.hypot(alpha * self.sigma_data, sigma)

    def target(self, x0, noise, alpha, sigma):
        return noise

    def to_x0(self, out, x, alpha, sigma):
        return (x - sigma * out) / alpha


class V(Prediction):
    """The velocity alpha * noise - sigma * x0 (Salimans & Ho 2022, app. D)."""

    def target(self, x0, noise, alpha, sigma):
        return alpha * noise - sigma * x0

    def to_x0(self, out, x, alpha, sigma):
        return (alpha * x - sigma * out) / (alpha**2 + sigma**2)


class Flow(Prediction):
    """Rectified flow, eq. 1: the velocity dx/dt of the straight path, noise - x0."""

    def target(self, x0, noise, alpha, sigma):
        return noise - x0

    def to_x0(self, out, x, alpha, sigma):
        return (x - sigma * out) / (alpha + sigma)


@dataclass(frozen=True)
class EDM(Prediction):
    """Karras et al. 2022, table 1: D = c_skip x + c_out F(c_in x); unit weight on F is EDM's loss (eq. 8)."""

    sigma_data: float = 0.5

    def check(self, schedule):
        alpha, _ = schedule(torch.tensor([float(schedule.t_max)]))
        if alpha.item() != 1:
            raise ValueError(f"EDM() is written for alpha = 1, and {type(schedule).__name__} is not; "
                             "use VarianceExploding()")

    def c_in(self, alpha, sigma):
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def target(self, x0, noise, alpha, sigma):
        # (x0 - c_skip x) / c_out, with the sigma that both contain divided out
        scale = (sigma**2 + self.sigma_data**2).sqrt()
        return (sigma * x0 / self.sigma_data - self.sigma_data * noise) / scale

    def to_x0(self, out, x, alpha, sigma):
        return self.c_skip(sigma) * x + self.c_out(sigma) * out
