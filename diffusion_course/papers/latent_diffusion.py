"""High-Resolution Image Synthesis with Latent Diffusion Models.  Rombach et al., 2021.  arXiv:2112.10752

Let a frozen autoencoder take away the detail that costs many bits and means little; diffuse the small latents
that are left.  Any condition enters as tokens that every place of the latent may attend to.

Scaled down: 32 x 32 images, latents of 4 x 8 x 8, captions of 21 words, read by a transformer of two layers
that learns with the network.  Left out: the feed-forward layer behind each cross-attention.
"""
from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.guidance import CFG, drop_condition
from ..diffusion.predictions import Epsilon
from ..diffusion.random import randn_like
from ..diffusion.samplers import ddim_step, sample
from ..diffusion.schedules import linear_beta
from ..networks.text import null_of, tokens_for
from ..networks.unet import unet_for
from ..recipe import Count, Preset, Recipe, asking, paper
from .autoencoder_kl import first_stage

PRESETS = {
    "smoke": Preset(steps=40, batch_size=32, recipe={"width": 32, "autoencoder": "vae-mm"}),
    "laptop": Preset(steps=2500, batch_size=64, recipe={"autoencoder": "vae-mm"}),
    "t4": Preset(steps=30_000, batch_size=128, lr=1e-3, recipe={"width": 128, "autoencoder": "vae-mm"}),
}


@paper
def recipe(width: int = 48, autoencoder: Recipe | None = None, channels: int = 1, size: int = 32,
           classes: Count = 0, words: Count = 21, length: int = 12) -> Recipe:
    """Images for captions of at most `length` of so many `words`, or with classes > 0 for a `label`.

    Without an autoencoder it works on pixels.
    """
    first, shape, item = first_stage(autoencoder, (channels, size, size))
    tokens, null = tokens_for(classes, words, length), null_of(classes, words, length)
    net = unet_for(shape, autoencoder is not None, width, tokens=tokens)
    schedule = linear_beta()
    denoiser = Denoiser(net, schedule, Epsilon(), stratified(schedule))

    def loss(batch):                                           # eq. 3
        z = first.encode(batch["x"], randn_like)
        return denoiser.loss(z, **drop_condition({name: batch[name] for name in null}, null, p=0.1))

    def draw(noise, cond, steps=50, step=ddim_step, scale=3.0, bar=False):
        return sample(CFG(denoiser, scale, null), noise, steps, step, bar, **cond)

    return Recipe(denoiser, loss, asking(draw, null), shape, autoencoder=first,
                  data="mnist" if classes else "moving_mnist", item=item)
