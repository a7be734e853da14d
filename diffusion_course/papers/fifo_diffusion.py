"""FIFO-Diffusion: Generating Infinite Videos from Text without Training.  Kim et al., 2024.  arXiv:2405.11473

Keep a queue of frames, the head nearly clean, the tail pure noise.  One diagonal pass cleans every frame a
little: pop the finished head, push fresh noise, repeat for ever.  Works on any denoiser of clips, guided or
latent.
"""
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from ..diffusion.samplers import ddim_step
from ..recipe import Recipe, paper

PRESETS = {}  # training-free


@torch.no_grad()
def fifo(denoiser, clip: Tensor, partitions: int = 4, lookahead: bool = True, eta: float = 1.0,
         **cond) -> Iterator[Tensor]:
    """Yield frames [B, C, H, W] without end; clip [B, C, f, H, W] is an ordinary sample to start from.

    The queue has partitions * f places, one for each step of the sampler, and is denoised in windows of f
    (latent partitioning, sec. 4.2); with lookahead, in windows that begin f/2 earlier and keep their later
    half (sec. 4.3), for twice the evaluations.
    """
    batch, f = len(clip), clip.shape[2]
    places, before = partitions * f, f // 2 if lookahead else 0
    times = denoiser.schedule.times(places).flip(0).to(clip)   # [places + 1], from 0 up
    t, s = times[1:], times[:-1]                               # level of every place, and that after a pass
    t, s = (torch.cat([v[:1].expand(before), v]).expand(batch, -1) for v in (t, s))
    source = (torch.arange(-before, places) - (places - f)).clamp_min(0)       # first ones: copies of frame 0
    queue = denoiser.add_noise(clip[:, :, source], t, torch.randn_like(clip[:, :, source]))
    stride = f - before
    for n in range(10**18):
        passed = queue.clone()
        for i in range(0, places, stride):
            window, kept = slice(i, i + f), slice(i + before, i + f)
            x = ddim_step(denoiser, queue[:, :, window], t[:, window], s[:, window], eta, **cond)
            passed[:, :, kept] = x[:, :, before:]
        if n >= places - f:                                    # what left earlier were copies of frame 0
            yield passed[:, :, before]
        fresh = denoiser.schedule.at(t[:, -1], clip[:, :, 0])[1] * torch.randn_like(clip[:, :, 0])
        queue = torch.cat([passed[:, :, 1:], fresh[:, :, None]], dim=2)


@paper
def recipe(base: Recipe, length: int = 64, partitions: int = 4, lookahead: bool = True) -> Recipe:
    """length frames from a recipe of clips; latents stay latents until they are drawn."""
    def draw(noise, **cond):
        frames = fifo(base.model, base.sample(noise, **cond), partitions, lookahead, **cond)
        return torch.stack(list(islice(frames, length)), dim=2)

    return replace(base, loss=None, sample=draw)
