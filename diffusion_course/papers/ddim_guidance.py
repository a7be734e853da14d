"""Denoising Diffusion Implicit Models.  Song, Meng & Ermon, 2020.  arXiv:2010.02502
Diffusion Models Beat GANs on Image Synthesis.  Dhariwal & Nichol, 2021.  arXiv:2105.05233
Classifier-Free Diffusion Guidance.  Ho & Salimans, 2022.  arXiv:2207.12598

One trained network, many ways to walk back: in few steps, none of them random, and so also upwards, from an
image to its noise.  Each step may be bent, by the gradient of a classifier that knows noisy images, or by
extrapolating from what the network says without a label past what it says with one.

Scaled down: digits and their ten labels on 32 x 32.  Left out: the wider network of the second paper.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.random import randn_like
from ..diffusion.samplers import ddim_step, last, noise_of, toward, trajectory
from ..diffusion.schedules import DiscreteVP, Schedule
from ..recipe import Recipe, paper
from . import ddpm

PRESETS = ddpm.PRESETS  # the same network on the same data


@paper
def recipe(width: int = 32, channels: int = 1, size: int = 32, num_steps: int = 1000,
           classes: int = 10) -> Recipe:
    """DDPM with a `label`; label = classes is the null, which a tenth of the training images get."""
    made = ddpm.recipe(width, channels, size, num_steps, classes=classes)
    nn.init.zeros_(made.model.net.doors.embed["label"].weight)                 # it starts without labels
    ancestral = made.sample

    def draw(noise, steps=50, step=ddim_step, scale=1.0, bar=False, **cond):   # scale = 1 + w of the paper
        return ancestral(noise, steps, step, scale, bar, **cond)

    made.sample = draw
    return made


def quadratic_times(schedule: DiscreteVP, steps: int) -> Tensor:
    """[steps + 1] times of the table, the closer the nearer to the data (DDIM app. D.2)."""
    even = torch.linspace(1, 0, steps + 1)
    return (even**2 * schedule.num_steps).round() / schedule.num_steps


def invert_step(denoiser, x: Tensor, t: Tensor, s: Tensor, **cond) -> Tensor:
    """DDIM backwards, from t up to the noisier s, with the noise that is found at t (DDIM sec. 4.3).

    Exact as the step goes to 0.  Clean data (t = 0) has no noise to find, so it is looked for at s.
    """
    alpha_s, sigma_s = denoiser.schedule.at(s, x)
    if t.any():
        return toward(denoiser.schedule, x, denoiser(x, t, **cond), t, s)
    noise = noise_of(denoiser.schedule, x, denoiser(x, s, **cond), s)
    return alpha_s * x + sigma_s * noise


def invert(denoiser, x0: Tensor, times: int | Tensor = 50, **cond) -> Tensor:
    """The noise from which DDIM makes x0; times fall, as for a sampler.  Invert without guidance."""
    times = denoiser.schedule.times(times) if isinstance(times, int) else times
    return last(trajectory(denoiser, x0, times.flip(0), invert_step, **cond))


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From a (weight 0) to b (1) on the sphere, sample by sample, so that noise keeps its norm (app. D.5)."""
    cos = F.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = cos.arccos().clamp_min(1e-6).reshape(-1, *[1] * (a.ndim - 1))
    return (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / angle.sin()


def noisy_classifier_loss(classifier: nn.Module, schedule: Schedule, x0: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy on images at all levels of noise (Dhariwal & Nichol sec. 4)."""
    t = schedule.draw(len(x0), device=x0.device)
    return F.cross_entropy(classifier(schedule.add_noise(x0, t, randn_like(x0)), t), label)
