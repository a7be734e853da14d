"""Scalable Diffusion Models with Transformers.  Peebles & Xie, 2022.  arXiv:2212.09748

Cut the image into patches and let a plain transformer do what the U-Net did.  The condition scales and shifts
the normalisations, and every block starts as the identity.  Quality follows compute.

Scaled down: digits, as latents of 4 x 8 x 8 (without an autoencoder: as pixels), 2 M weights.  Left out: the
learned variance.
"""
from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.guidance import CFG, drop_condition
from ..diffusion.predictions import Epsilon
from ..diffusion.random import randn_like
from ..diffusion.samplers import ddim_step, sample
from ..diffusion.schedules import linear_beta
from ..networks.dit import BLOCKS, DiT
from ..networks.text import null_of, tokens_for, vectors_for
from ..recipe import Preset, Recipe, paper
from .autoencoder_kl import first_stage

LATENTS = {"autoencoder": "vae-mm", "patch": 2}
PRESETS = {
    "smoke": Preset(steps=40, batch_size=32, lr=1e-3, recipe=LATENTS | {"dim": 64, "depth": 2}),
    "laptop": Preset(steps=3000, batch_size=64, lr=1e-3, recipe=LATENTS),
    "t4": Preset(steps=30_000, batch_size=128, lr=5e-4, recipe=LATENTS | {"dim": 256, "depth": 8}),
}


@paper
def recipe(dim: int = 128, depth: int = 6, heads: int = 4, patch: int = 4, block: str = "adaln_zero",
           classes: int = 10, channels: int = 1, size: int = 32, autoencoder: Recipe | None = None) -> Recipe:
    """Images for a `label`; block is how it gets in (sec. 3.2).

    adaln_zero, adaln, cross_attention or in_context.
    """
    if block not in BLOCKS:
        raise ValueError(f"block={block!r} must be one of {', '.join(BLOCKS)}")
    first, shape, item = first_stage(autoencoder, (channels, size, size))
    kind, null = BLOCKS[block], null_of(classes)
    label = {"embed": vectors_for(classes)} if kind.modulated else {"tokens": tokens_for(classes, dim=dim)}
    net = DiT(shape[0], dim=dim, depth=depth, heads=heads, patch=(1, patch, patch), block=kind, **label)
    schedule = linear_beta()
    denoiser = Denoiser(net, schedule, Epsilon(), stratified(schedule))

    def loss(batch):
        z = first.encode(batch["x"], randn_like)
        return denoiser.loss(z, **drop_condition({"label": batch["label"]}, null, p=0.1))

    def draw(noise, label, steps=50, step=ddim_step, scale=1.0, bar=False):
        return sample(CFG(denoiser, scale, null), noise, steps, step, bar, label=label)

    return Recipe(denoiser, loss, draw, shape, autoencoder=first, item=item)
