"""Elucidating the Design Space of Diffusion-Based Generative Models.  Karras et al., 2022.  arXiv:2206.00364

The noise level sigma is the only time there is.  The network sees unit variance and predicts a target of unit
variance, at every sigma; which sigmas to train on, which to step through, and with which solver, are separate
choices.

Scaled down: 32 x 32 images, the U-Net of lesson 01.  Left out: non-leaking augmentation, float64 samplers.
"""
from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.predictions import EDM
from ..diffusion.samplers import heun_step, sample
from ..diffusion.schedules import VarianceExploding
from ..networks.unet import image_unet
from ..recipe import Recipe, paper
from . import ddpm

PRESETS = ddpm.PRESETS  # the same network on the same data


@paper
def recipe(width: int = 32, channels: int = 1, size: int = 32, sigma_data: float = 0.55,
           p_mean: float = 0.4, p_std: float = 1.2) -> Recipe:
    """sigma_data is the standard deviation of the data: 0.55 for MNIST on 32 x 32, 0.5 in the paper.

    p_mean and p_std are of log sigma in training.  The paper's p_mean is -1.2, for photographs; which digit
    it will be is decided at larger sigmas.
    """
    net = image_unet(channels, width=width)
    schedule = VarianceExploding()
    denoiser = Denoiser(net, schedule, EDM(sigma_data),                    # table 1, last column
                        stratified(schedule, mean=p_mean, std=p_std))

    def loss(batch):
        return denoiser.loss(batch["x"])

    def draw(noise, steps=18, step=heun_step, bar=False):                          # algorithm 1
        return sample(denoiser, noise, steps, step, bar)

    return Recipe(denoiser, loss, draw, (channels, size, size))
