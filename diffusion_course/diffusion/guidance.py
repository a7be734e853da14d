"""Steering a denoiser.  A guide is a denoiser wrapped around a denoiser, so guides nest."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .random import rand
from .schedules import Schedule, broadcast


def drop_condition(cond: dict[str, Tensor], null: dict[str, Tensor], p: float) -> dict[str, Tensor]:
    """Training half of classifier-free guidance.

    A fraction p of the samples gets the null conditions, all at once.
    """
    unknown = set(null) - set(cond)
    if unknown:
        raise ValueError(f"null names {sorted(unknown)}, but the conditions are {sorted(cond)}")
    if not null:
        return cond
    check_null(cond, null)
    some = next(iter(cond.values()))
    drop = rand(len(some), device=some.device) < p             # [B]
    return {name: torch.where(drop.reshape(-1, *[1] * (c.ndim - 1)), null[name].to(c), c)
                  if name in null else c
            for name, c in cond.items()}


def check_null(cond: dict[str, Tensor], null: dict[str, Tensor]) -> None:
    """A ValueError unless every null value can take the place of each item of its condition."""
    for name, value in null.items():
        if not cond[name].ndim or value.shape not in ((), cond[name].shape[1:], (1, *cond[name].shape[1:])):
            raise ValueError(f"{name} is {tuple(cond[name].shape)}, but its null, and so each item, must be "
                             f"{tuple(value.shape)}")


class Guide:
    """Offers what a denoiser offers; a subclass overrides `estimate`."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, **cond) -> Tensor:
        return self.estimate(x, t, **cond)[0]

    def estimate(self, x: Tensor, t: Tensor, **cond) -> tuple[Tensor, Tensor | None]:
        return self.denoiser.estimate(x, t, **cond)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.schedule.add_noise(x0, t, noise)


class CFG(Guide):
    """Classifier-free guidance: x0 = null + scale * (cond - null); 1 = no guidance, and no second evaluation.

    scale is a number, or [F] or [B, F] to vary over the frames of a video, or [B, 1] over samples.  The paper
    (Ho & Salimans 2022, eq. 6) writes w = scale - 1.
    """

    def __init__(self, denoiser, scale: float | Tensor, null: dict[str, Tensor]):
        super().__init__(denoiser)
        self.scale, self.null = scale, null

    def estimate(self, x, t, **cond):
        if not self.null or not isinstance(self.scale, Tensor) and self.scale == 1:
            return self.denoiser.estimate(x, t, **cond)
        unknown = set(self.null) - set(cond)
        if unknown:
            raise ValueError(f"guidance needs the conditions {sorted(unknown)}, got {sorted(cond)}")
        check_null(cond, self.null)
        null = {name: self.null[name].to(c).expand_as(c) for name, c in cond.items() if name in self.null}
        with_cond, v = self.denoiser.estimate(x, t, **cond)
        without, _ = self.denoiser.estimate(x, t, **{**cond, **null})
        scale = self.scale
        if isinstance(scale, Tensor) and scale.ndim:
            scale = broadcast(scale[None] if scale.ndim == 1 else scale, x).to(x)
        return without + scale * (with_cond - without), v


class ClassifierGuidance(Guide):
    """Dhariwal & Nichol 2021: add scale times the gradient of log p(label | x_t) to the score.

    classifier(x, t) -> logits [B, K] must know noisy images.  In terms of x0 the score's share is sigma^2 /
    alpha, so any sampler may follow: DDIM then is algorithm 2; ancestral steps are algorithm 1 with beta in
    place of Sigma.  `label` is not passed on, unless the denoiser takes it too (conditional=True).
    """

    def __init__(self, denoiser, classifier: Callable[[Tensor, Tensor], Tensor], scale: float,
                 conditional: bool = False):
        super().__init__(denoiser)
        self.classifier, self.scale, self.conditional = classifier, scale, conditional

    def estimate(self, x, t, *, label, **cond):
        outer = torch.is_grad_enabled() and x.requires_grad    # another guide differentiates through this one
        x0, v = self.denoiser.estimate(x, t, **cond, **({"label": label} if self.conditional else {}))
        with torch.enable_grad():
            y = x if outer else x.detach().requires_grad_()
            log_p = -F.cross_entropy(self.classifier(y, t), label, reduction="sum")
            grad, = torch.autograd.grad(log_p, y, create_graph=outer)
        alpha, sigma = self.schedule.at(t, x)
        return x0 + self.scale * sigma**2 / alpha * grad, v


class Retimed(Guide):
    """A denoiser on another schedule: x is scaled to where the denoiser has the same ratio alpha / sigma.

    All schedules add noise in another order and at another size, so one trained network serves them all (EDM
    sec. 2): DDPM's as D(x; sigma), Score SDE's VP as VE, either as a straight path.
    """

    def __init__(self, denoiser, schedule: Schedule):
        super().__init__(denoiser)
        self.schedule = schedule

    def estimate(self, x, t, **cond):
        alpha, sigma = self.schedule(t)
        its = self.denoiser.schedule.when(alpha, sigma)
        its_alpha, its_sigma = self.denoiser.schedule(its)
        scale = torch.hypot(alpha, sigma) / torch.hypot(its_alpha, its_sigma)
        return self.denoiser.estimate(x / broadcast(scale, x), its, **cond)


class Clip(Guide):
    """x0_hat kept in [-limit, limit], as pixels are (DDPM's sampler; Imagen's static thresholding)."""

    def __init__(self, denoiser, limit: float = 1.0):
        super().__init__(denoiser)
        self.limit = limit

    def estimate(self, x, t, **cond):
        x0, v = self.denoiser.estimate(x, t, **cond)
        return x0.clamp(-self.limit, self.limit), v


def dynamic_threshold(x0: Tensor, percentile: float = 0.995) -> Tensor:
    """x0 [B, ...] in [-1, 1]: a sample whose percentile s of |x0| is over 1 is clipped to [-s, s] and divided
    by s (Imagen sec. 2.3); the others are clipped."""
    if not 0 <= percentile <= 1:
        raise ValueError(f"percentile={percentile} must be in [0, 1]")
    s = x0.abs().flatten(1).quantile(percentile, dim=1).clamp_min(1)           # [B]
    s = s.reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


class DynamicThreshold(Guide):
    """x0_hat squeezed into [-1, 1] sample by sample instead of cut off, so that guidance saturates less."""

    def __init__(self, denoiser, percentile: float = 0.995):
        super().__init__(denoiser)
        self.percentile = percentile

    def estimate(self, x, t, **cond):
        x0, v = self.denoiser.estimate(x, t, **cond)
        return dynamic_threshold(x0, self.percentile), v


class Known(Guide):
    """Frames `at` of x are known: the network gets them clean, at time 0 (Flexible Diffusion, sec. 3).

    It must have learned from frames with times of their own.
    """

    def __init__(self, denoiser, seen: Tensor, at: Tensor):
        super().__init__(denoiser)
        self.seen, self.at = seen, at

    def estimate(self, x, t, **cond):
        t = (t if t.ndim == 2 else t[:, None].expand(-1, x.shape[2])).index_fill(1, self.at, 0)
        x0, v = self.denoiser.estimate(x.index_copy(2, self.at, self.seen), t, **cond)
        return x0.index_copy(2, self.at, self.seen), v


class ReconstructionGuidance(Guide):
    """Video Diffusion Models, eq. 7: pull x0 towards agreeing with what was observed of it.

    observe maps x0 to what is seen of it; the error is summed, not averaged, over everything.
    """

    def __init__(self, denoiser, observe: Callable[[Tensor], Tensor], seen: Tensor, scale: float):
        super().__init__(denoiser)
        self.observe, self.seen, self.scale = observe, seen, scale

    def estimate(self, x, t, **cond):
        outer = torch.is_grad_enabled() and x.requires_grad    # another guide differentiates through this one
        with torch.enable_grad():
            x = x if outer else x.detach().requires_grad_()
            x0, v = self.denoiser.estimate(x, t, **cond)
            error = (self.observe(x0) - self.seen).square().sum()
            grad, = torch.autograd.grad(error, x, create_graph=outer, retain_graph=outer)
            alpha, _ = self.schedule.at(t, x)
            x0 = x0 - self.scale * alpha / 2 * grad
        return (x0, v) if outer else (x0.detach(), v if v is None else v.detach())
