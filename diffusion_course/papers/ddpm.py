"""Denoising Diffusion Probabilistic Models.  Ho, Jain & Abbeel, 2020.  arXiv:2006.11239
Improved Denoising Diffusion Probabilistic Models.  Nichol & Dhariwal, 2021.  arXiv:2102.09672

Add a little Gaussian noise a thousand times; teach a U-Net to name the noise; walk back.  The second paper
bends the schedule (cosine=True) and learns the variance of each step (learned_variance=True).

Scaled down: 32 x 32 images, a U-Net of 1-5 M weights that works on patches of 2 x 2 pixels, 1000 steps for
both.  Left out: importance-sampled times for training on the bound alone (eq. 18).
"""
from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.guidance import CFG, Clip, drop_condition
from ..diffusion.predictions import Epsilon
from ..diffusion.samplers import ancestral_step, sample
from ..diffusion.schedules import cosine_beta, linear_beta
from ..networks.text import null_of, vectors_for
from ..networks.unet import image_unet
from ..recipe import Count, Preset, Recipe, paper

PRESETS = {
    "smoke": Preset(steps=60, batch_size=32, lr=4e-3, recipe={"width": 16}),
    "laptop": Preset(steps=2200, batch_size=64, lr=4e-3),
    "t4": Preset(steps=20_000, batch_size=128, lr=2e-3, recipe={"width": 64}),
}


@paper
def recipe(width: int = 32, channels: int = 1, size: int = 32, num_steps: int = 1000, cosine: bool = False,
           learned_variance: bool = False, classes: Count = 0, dropout: float = 0.0) -> Recipe:
    """num_steps is N of the schedule; with classes > 0 it takes a `label` (as Improved DDPM on ImageNet)."""
    net = image_unet(channels, channels * (2 if learned_variance else 1), width, dropout=dropout,
                     embed=vectors_for(classes))
    schedule = cosine_beta(num_steps) if cosine else linear_beta(num_steps)
    denoiser = Denoiser(net, schedule, Epsilon(), stratified(schedule), learned_variance=learned_variance)
    null = null_of(classes)

    def loss(batch):                                           # algorithm 1
        return denoiser.loss(batch["x"], **drop_condition({name: batch[name] for name in null}, null, p=0.1))

    def draw(noise, steps=num_steps, step=ancestral_step, scale=1.0, bar=False, **cond):   # algorithm 2
        return sample(Clip(CFG(denoiser, scale, null)), noise, steps, step, bar, **cond)

    return Recipe(denoiser, loss, draw, (channels, size, size))
