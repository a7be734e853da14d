"""The probability-flow ODE: a solver that chooses its own steps, codes for images, and exact likelihoods.

Song et al. 2020 (arXiv:2011.13456), eq. 13 and app. D.2.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .random import randn_like
from .samplers import noise_of
from .schedules import broadcast
from .sde import rates

# Dormand & Prince 1980: when a stage is taken, from which slopes, and how orders 5 and 4 differ
STAGES = ((1 / 5, (1 / 5,)), (3 / 10, (3 / 40, 9 / 40)), (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
          (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
          (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
          (1.0, (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)))
ERROR = (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)


@dataclass(frozen=True)
class Solution:
    """Where the solver arrived, and how often it looked at the slope."""

    x: Tensor
    evaluations: int


def solve(slope: Callable[[float, Tensor], Tensor], x: Tensor, start: float, end: float, rtol: float = 1e-5,
          atol: float = 1e-5, most: int = 10_000) -> Solution:
    """dx/dt = slope(t, x) from x at start to end, by Dormand and Prince's pair of orders 5 and 4.

    One step size serves the whole batch: the root mean square of error / (atol + rtol |x|) stays below 1.
    A RuntimeError where that takes more than `most` evaluations.
    """
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf and rtol + atol):
        raise ValueError(f"rtol={rtol} and atol={atol} must be finite, and one of them more than 0")
    if start == end:
        return Solution(x, 0)
    t, span = start, end - start
    k, count = slope(t, x), 2
    step, growth = first_step(slope, t, x, k, span, rtol, atol), 10.0
    while abs(end - t) > 1e-9 * abs(span):
        if count > most:
            raise RuntimeError(f"the ODE needs more than {most} slopes; it stands at t={t:.4g} between "
                               f"{start} and {end}. Raise rtol={rtol} or atol={atol}")
        step = math.copysign(min(abs(step), abs(end - t)), span)
        slopes = [k]
        for place, row in STAGES:
            moved = x + step * sum(a * k for a, k in zip(row, slopes) if a)
            slopes.append(slope(t + place * step, moved))
        count += len(STAGES)
        error = step * sum(e * k for e, k in zip(ERROR, slopes) if e)
        size = rms(error / (atol + rtol * torch.maximum(x.abs(), moved.abs())))
        factor = min(growth, max(0.2, 0.9 * size**-0.2)) if size > 0 else growth
        growth = 10.0 if size < 1 else 1.0                     # none just after a step that failed
        if size < 1:
            t, x, k = t + step, moved, slopes[-1]              # the last slope is the next one's first
        step *= factor
    return Solution(x, count)


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def first_step(slope, t: float, x: Tensor, k: Tensor, span: float, rtol: float, atol: float) -> float:
    """Hairer, Norsett & Wanner, sec. II.4: a step over which neither x nor its slope changes much."""
    scale = atol + rtol * x.abs()
    d0, d1 = rms(x / scale), rms(k / scale)
    h = min(0.01 * d0 / d1, abs(span)) if d0 > 1e-5 and d1 > 1e-5 else min(1e-6, abs(span))
    d2 = rms((slope(t + math.copysign(h, span), x + math.copysign(h, span) * k) - k) / scale) / h
    most = max(d1, d2)
    guess = (0.01 / most) ** 0.2 if most > 1e-15 else max(1e-6, h * 1e-3)
    return math.copysign(min(100 * h, guess, abs(span)), span)


def velocity(denoiser, x: Tensor, t: Tensor, **cond) -> Tensor:
    """dx/dt of eq. 13, which for any schedule is alpha' x0_hat + sigma' noise_hat."""
    dalpha, dsigma = (broadcast(a, x) for a in rates(denoiser.schedule, t))
    x0 = denoiser(x, t, **cond)
    return dalpha * x0 + dsigma * noise_of(denoiser.schedule, x, x0, t)


@torch.no_grad()
def flow(denoiser, x: Tensor, start: float, end: float, rtol: float = 1e-5, atol: float = 1e-5,
         **cond) -> Solution:
    """Follow the ODE from time start to end, either way: noise to image, or image to its code."""
    def slope(t, x):
        return velocity(denoiser, x, x.new_full((len(x),), t), **cond)

    return solve(slope, x, float(start), float(end), rtol, atol)


def rademacher(x: Tensor) -> Tensor:
    """Random signs of the shape of x."""
    return randn_like(x).sign()


@torch.no_grad()
def log_likelihood(denoiser, x0: Tensor, t_min: float = 1e-5, rtol: float = 1e-5, atol: float = 1e-5,
                   probe: Callable[[Tensor], Tensor] = rademacher, **cond) -> tuple[Tensor, Solution]:
    """log p(x0) in nats, per sample [B], and the solution: codes of x0 and its cost (app. D.2).

    The density changes along the flow by the divergence of the velocity v, here probe^T (dv/dx) probe
    (Hutchinson); one probe serves the whole way, or the solver would chase its own noise.
    """
    schedule, n, shape = denoiser.schedule, x0[0].numel(), x0.shape
    e = probe(x0)

    def slope(t, state):
        x, t = state[:, :n].reshape(shape), state.new_full((len(state),), t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(denoiser, x, t, **cond)
            grad, = torch.autograd.grad((v * e).sum(), x)
        return torch.cat([v.detach().flatten(1), (grad * e).flatten(1).sum(1, keepdim=True)], dim=1)

    start = torch.cat([x0.flatten(1), x0.new_zeros(len(x0), 1)], dim=1)
    end = solve(slope, start, t_min, float(schedule.t_max), rtol, atol)
    code, grown = end.x[:, :n], end.x[:, n]
    _, sigma = schedule(torch.tensor(float(schedule.t_max)))
    prior = -(code / sigma).square().sum(1) / 2 - n * math.log(sigma.item() * math.sqrt(2 * math.pi))
    return prior + grown, Solution(code.reshape(shape), end.evaluations)


def dequantize(x0: Tensor, levels: int = 256) -> Tensor:
    """Pixels in [-1, 1] moved to a random place in their bin, so that they have a density."""
    width = 2 / levels
    pixel = ((x0 + 1) / 2 * (levels - 1)).round()
    return (pixel + torch.rand_like(x0)) * width - 1


def bits(log_p: Tensor, n: int, levels: int = 256) -> Tensor:
    """log p of n dequantized pixels in [-1, 1], in nats -> bits per dimension of the pixels."""
    return -(log_p / n + math.log(2 / levels)) / math.log(2)
