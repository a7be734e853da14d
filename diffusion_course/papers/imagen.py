"""Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding.  Saharia et al., 2022.
arXiv:2205.11487

Divide the work by resolution: a small model draws what the text says on few pixels, another enlarges it.  The
second learns from small images as imperfect as those it will get, and is told how imperfect they are.
Strong guidance needs thresholds that move (DynamicThreshold); the default is a fixed one, since a black
background is at the end of its range, and would turn grey.

Scaled down: MNIST with the captions "a zero" to "a nine" (those of Moving MNIST say more, but on 8 x 8
pixels its digits are three wide); 8 x 8 to 32 x 32 pixels, two stages or as many as `sizes` has; an encoder
of captions that learns with the base, or, with text_dim, encodings of a frozen large one (PretrainedText).
All stages predict v on a cosine schedule and train at once, each with its own weights.  Left out: training
on crops.
"""
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.guidance import CFG, Clip, drop_condition
from ..diffusion.predictions import V
from ..diffusion.random import rand, randn_like
from ..diffusion.samplers import ddim_step, sample
from ..diffusion.schedules import Cosine
from ..layers.embeddings import ScalarEmbedding
from ..networks.text import Pooled, Projected, TextEncoder
from ..networks.unet import UNet
from ..recipe import Count, Preset, Recipe, paper

PRESETS = {
    "smoke": Preset(steps=20, batch_size=16, recipe={"width": 16}),
    "laptop": Preset(steps=1500, batch_size=64),
    "t4": Preset(steps=20_000, batch_size=128, lr=1e-3, recipe={"width": 64}),
}


@paper
def recipe(width: int = 32, channels: int = 1, sizes: tuple[int, ...] = (8, 32), words: int = 21,
           length: int = 12, text_dim: Count = 0, augment: bool = True) -> Recipe:
    """A cascade for captions.  augment=False trains on clean small images, to see what that breaks.

    The null caption is all padding: the token 0, or encodings of zeros.
    """
    def text():
        return Projected(text_dim, 64) if text_dim else TextEncoder(64, words, length)

    def doors(**embed):                                        # attended to as tokens, added as one vector
        encoder = text()
        pooled = partial(Pooled, encoder, shared=True)
        return {"tokens": {"text": encoder}, "embed": {"text": pooled, **embed}}

    def stage(net):
        return Denoiser(net, schedule, V(), stratified(schedule))

    sizes, schedule = tuple(sizes), Cosine()
    null = torch.zeros(length, text_dim) if text_dim else torch.zeros(length).long()
    wider = 3 * width // 16 * 8                                # few pixels cost little
    base = stage(UNet(channels, width=wider, multipliers=(1, 2), attend=(True, True), **doors()))
    enlarge = [stage(UNet(channels, width=width, multipliers=(1, 2, 2), units=(1, 1, 2), efficient=True,
                          attend=(False, False, True), stack={"small": channels},
                          **doors(noised=ScalarEmbedding))) for _ in sizes[1:]]
    model = nn.ModuleList([base, *enlarge])

    def loss(batch):
        images = [F.interpolate(batch["x"], size, mode="area") for size in sizes]
        text = drop_condition({"text": batch["text"]}, {"text": null}, p=0.1)
        total = base.loss(images[0], **text)
        for denoiser, (small, large) in zip(enlarge, pairwise(images)):
            level = rand(len(large), device=large.device) * augment
            total = total + denoiser.loss(large, **degraded(schedule, small, level), **text)
        return total

    def draw(noise, text=None, steps=32, step=ddim_step, scale=2.0, noised=0.2, threshold=Clip, small=None,
             bar=False):                                       # small: what to enlarge instead of the base's
        text = null.to(noise.device).expand(len(noise), *null.shape) if text is None else text

        def run(denoiser, noise, **cond):
            guided = CFG(denoiser, scale, {"text": null})
            guided = threshold(guided) if threshold else guided
            return sample(guided, noise, steps, step, bar, text=text, **cond)

        x = run(base, noise) if small is None else small
        for denoiser, size in zip(enlarge, sizes[1:]):
            level = noise.new_full((len(x),), noised * augment)
            x = run(denoiser, torch.randn(len(x), channels, size, size).to(x), **degraded(schedule, x, level))
        return x

    return Recipe(model, loss, draw, (channels, sizes[0], sizes[0]), item=(channels, sizes[-1], sizes[-1]))


def degraded(schedule, small: Tensor, level: Tensor) -> dict[str, Tensor]:
    """Noise conditioning augmentation (sec. 2.4): small images with a `level` [B] of noise, and the level."""
    return {"small": schedule.add_noise(small, level, randn_like(small)), "noised": level}
