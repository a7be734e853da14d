"""Score-Based Generative Modeling through Stochastic Differential Equations.  Song et al., 2020.
arXiv:2011.13456

With ever more levels of noise, noising becomes a stochastic differential equation and generation its time
reversal, whose only unknown is the score.  The same score drives an ODE with the same marginals: few steps,
codes for images, and exact likelihoods.  What is known of an image may steer it without training.

Scaled down: 32 x 32 images, the U-Net of lesson 01 for all three equations.  Left out: the networks NCSN++
and DDPM++.
"""
import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.predictions import Epsilon
from ..diffusion.samplers import Step, sample
from ..diffusion.schedules import Geometric, SubVariancePreserving, VariancePreserving
from ..diffusion.sde import predictor_corrector, reverse_diffusion_step
from ..networks.unet import image_unet
from ..recipe import Recipe, paper
from . import ddpm

PRESETS = ddpm.PRESETS  # the same network on the same data
SDES = {"vp": VariancePreserving, "subvp": SubVariancePreserving, "ve": Geometric}


@paper
def recipe(width: int = 32, channels: int = 1, size: int = 32, sde: str = "vp",
           sigma_data: float = 0.97) -> Recipe:
    """sde is vp, subvp or ve; sigma_data, the root mean square of a pixel, scales the input of ve only."""
    if sde not in SDES:
        raise ValueError(f"sde={sde!r} must be one of {', '.join(SDES)}")
    net = image_unet(channels, width=width)
    schedule = SDES[sde]()
    # the network predicts noise = -sigma score, so this loss is eq. 7 with lambda = sigma^2
    denoiser = Denoiser(net, schedule, Epsilon(sigma_data if sde == "ve" else None), stratified(schedule))

    def loss(batch):
        return denoiser.loss(batch["x"])

    def draw(noise, steps=500, step=None, bar=False):          # half of the 1000 evaluations correct
        return sample(denoiser, noise, steps, step or predictor_corrector(), bar)

    return Recipe(denoiser, loss, draw, (channels, size, size))


def inpainting(seen: Tensor, mask: Tensor, step: Step = reverse_diffusion_step) -> Step:
    """A step that keeps x true to what is seen where mask is 1, noised as x is (app. I.2)."""
    def known(denoiser, x, t):
        return torch.where(mask > 0, denoiser.add_noise(seen, t, torch.randn_like(x)), x)

    def masked(denoiser, x, t, s, **cond):
        return known(denoiser, step(denoiser, known(denoiser, x, t), t, s, **cond), s)

    return masked
