"""Schedules made from others: no signal left at the end, or more noise at every time."""
import math

import torch

from .schedules import Schedule


class Wrapper(Schedule):
    """A schedule made from another; it keeps the other's times."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule, self.t_max = schedule, schedule.t_max
        if hasattr(schedule, "num_steps"):
            self.num_steps = schedule.num_steps

    def unit(self, alpha, sigma):
        return self.schedule.unit(alpha, sigma)

    def times(self, steps):
        return self.schedule.times(steps)

    def quantile(self, u):
        return self.schedule.quantile(u)

    def label(self, t):
        return self.schedule.label(t)


class ZeroTerminalSNR(Wrapper):
    """Rescale alpha so that nothing of the data is left at t_max (Lin et al. 2023, algorithm 1)."""

    def __init__(self, schedule: Schedule):
        super().__init__(schedule)
        middle = schedule(torch.tensor(schedule.t_max / 2))
        if not math.isclose(torch.hypot(*middle).item(), 1, rel_tol=1e-4):
            raise ValueError("ZeroTerminalSNR is for variance-preserving schedules, "
                             f"not {type(schedule).__name__}")
        ends = torch.tensor([1 / getattr(schedule, "num_steps", math.inf), 1.0])
        self.first, self.last = (alpha.item() for alpha in schedule(ends)[0])  # after one step, and after all

    def forward(self, t):
        alpha, _ = self.schedule(t)
        alpha = (alpha - self.last) * self.first / (self.first - self.last)
        alpha = torch.where(t == 0, 1.0, alpha.clamp(0, 1))
        return alpha, (1 - alpha**2).sqrt()


class Shifted(Wrapper):
    """Multiply sigma/alpha by `factor` at every time: more noise for larger images or longer videos.

    On Straight this is the shift of SD3 (eq. 23, factor = sqrt(pixels / pixels before)); on a
    variance-preserving schedule that of simple diffusion (factor = side / side before).
    """

    def __init__(self, schedule: Schedule, factor: float):
        super().__init__(schedule)
        if not factor > 0:
            raise ValueError(f"factor={factor} must be positive")
        self.factor = factor

    def forward(self, t):
        alpha, sigma = self.schedule(t)
        unit = self.unit(alpha, self.factor * sigma)
        return alpha / unit, self.factor * sigma / unit
