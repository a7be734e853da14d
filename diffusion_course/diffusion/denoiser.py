"""The one object every diffusion paper in this course defines."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .likelihood import vlb_term
from .predictions import Prediction
from .random import randn, randn_like, strata
from .schedules import Schedule

DrawTimes = Callable[..., Tensor]  # (batch, device) -> times [B]


def logit_normal(mean: float = 0.0, std: float = 1.0) -> DrawTimes:
    """Training times sigmoid(N(mean, std)): more of them in the middle (SD3, sec. 3.1)."""
    return lambda batch, device=None: torch.sigmoid(mean + std * randn(batch, device=device))


def stratified(schedule: Schedule, **options) -> DrawTimes:
    """The schedule's training times, spread evenly over a batch: the same mean loss, with less variance.

    options go to the schedule's quantile, such as mean and std of VarianceExploding.
    """
    return lambda batch, device=None: schedule.quantile(strata(batch, device), **options)


class Denoiser(nn.Module):
    """x0_hat = D(x_t, t, **cond): a network, a schedule and a prediction.

    Samplers, guides, distillation and cascades see only `schedule`, `estimate` and `__call__`.
    `draw_t` is the distribution of training times (by default the schedule's own).  With `learned_variance`
    the network has twice the output channels, and the loss is Improved DDPM's hybrid (eq. 16).
    """

    def __init__(self, net: nn.Module, schedule: Schedule, prediction: Prediction,
                 draw_t: DrawTimes | None = None, learned_variance: bool = False, vlb_weight: float = 1e-3):
        super().__init__()
        prediction.check(schedule)
        if learned_variance and getattr(schedule, "num_steps", 0) < 2:
            raise ValueError("learned_variance=True needs a schedule with steps, two at least, "
                             "such as linear_beta or cosine_beta")
        self.net, self.schedule, self.prediction = net, schedule, prediction
        self.draw_t = draw_t or schedule.draw
        self.learned_variance, self.vlb_weight = learned_variance, vlb_weight

    def forward(self, x: Tensor, t: Tensor, **cond) -> Tensor:
        return self.estimate(x, t, **cond)[0]

    def estimate(self, x: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor | None]:
        """x [B, C, (F,) H, W], t [B] or [B, F] -> x0_hat and, if learned, v (Improved DDPM eq. 15), like x.

        v places the log-variance of a step between its bounds; a log-variance would not survive strided
        steps.
        """
        alpha, sigma = self.schedule.at(t, x)
        out, v = self.run(x, t, alpha, sigma, cond)
        return self.prediction.to_x0(out, x, alpha, sigma), v

    def run(self, x, t, alpha, sigma, cond) -> tuple[Tensor, Tensor | None]:
        """What the network says: what it predicts and, if learned, v."""
        out = self.net(self.prediction.c_in(alpha, sigma) * x, self.schedule.label(t), **cond).float()
        if not self.learned_variance:
            return out, None
        out, v = out.chunk(2, dim=1)
        return out, (v + 1) / 2

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t; t is [B] or [B, F]."""
        return self.schedule.add_noise(x0, t, noise)

    def loss(self, x0: Tensor, t: Tensor | None = None, noise: Tensor | None = None,
             weight: Tensor | None = None, **cond) -> Tensor:
        """Mean squared error of what is predicted, plus vlb_weight times the bound if variance is learned.

        weight of each place, broadcast to x0, such as 0 for frames that do not count.
        """
        if x0.ndim < 2 or not x0.is_floating_point():
            raise ValueError(f"x0 must be points [B, D] or images, got {x0.dtype} {tuple(x0.shape)}")
        t = self.draw_t(len(x0), device=x0.device) if t is None else t
        noise = randn_like(x0) if noise is None else noise
        alpha, sigma = self.schedule.at(t, x0)
        x = alpha * x0 + sigma * noise
        out, v = self.run(x, t, alpha, sigma, cond)
        error = (out - self.prediction.target(x0, noise, alpha, sigma)).square()
        loss = (error if weight is None else weight * error).mean()
        if v is None:
            return loss
        # The bound teaches the variance only: no gradient reaches the mean (Improved DDPM, sec. 3.1).  Its
        # weight is meant for the sum over 1000 steps, of which this is one.
        x0_hat = self.prediction.to_x0(out.detach(), x, alpha, sigma)
        bound = vlb_term(self.schedule, x0, x, t, x0_hat, v)
        return loss + self.vlb_weight * self.schedule.num_steps * bound.mean()
