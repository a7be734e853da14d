"""Flexible Diffusion Modeling of Long Videos.  Harvey et al., 2022.  arXiv:2205.11495

A network sees few frames at once, but they may be far apart.  Train one model on random subsets of a long
video, some frames given, others to be made; then any plan of which frames to look at makes a video of any
length.

Scaled down: 16 of 64 frames of 32 x 32 pixels, or latents of them.  The position network makes a bias of the
scores only, not vectors for keys, queries and values.  A given frame is known by its time, 0, where the paper
adds a channel that flags it.  Left out: schemes optimised offline, hierarchy-3.
"""
from functools import partial

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.guidance import Known
from ..diffusion.predictions import V
from ..diffusion.random import rand, randn_like, whole_batch
from ..diffusion.samplers import ancestral_step, sample
from ..diffusion.schedules import Cosine
from ..diffusion.schemes import follow, hierarchy
from ..layers.attention import FrameAttention
from ..layers.spacetime import Frames
from ..networks.unet import unet_for
from ..recipe import Preset, Recipe, paper
from .autoencoder_kl import first_stage

LATENTS = {"autoencoder": "vae-mm", "width": 48}
PRESETS = {
    "smoke": Preset(steps=20, batch_size=8, recipe={"width": 16, "frames": 24, "window": 8, "size": 16}),
    "laptop": Preset(steps=3000, batch_size=4, lr=3e-3, init="vid-mm", recipe=LATENTS),
    "t4": Preset(steps=30_000, batch_size=32, lr=1e-3, init="vid-mm", recipe=LATENTS),
}


class DistanceBias(nn.Module):
    """What is added to the scores when one frame looks at another: from their distance and the first's time.

    Logarithms of the distance let it go on beyond what was trained.  Starts as 0.
    """

    def __init__(self, heads: int, dim: int, width: int = 64):
        super().__init__()
        self.distance, self.time = nn.Linear(3, width), nn.Linear(dim, width)
        self.out = nn.Linear(width, heads, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, offset: Tensor, e: Tensor) -> Tensor:    # offset [(B,) F, F], e [B, D] or [B, F, D]
        d = offset.to(e.dtype)
        features = torch.stack([d.clamp_min(0).log1p(), (-d).clamp_min(0).log1p(), (d == 0).to(d)], dim=-1)
        time = self.time(e if e.ndim == 3 else e[:, None])[:, :, None]         # [B, F or 1, 1, width]
        bias = self.out(nn.functional.silu(self.distance(features) + time))    # [B, F, F, heads]
        return bias.permute(0, 3, 1, 2)


@paper
def recipe(width: int = 32, frames: int = 64, window: int = 16, size: int = 32, channels: int = 1,
           given: float = 0.5, autoencoder: Recipe | None = None) -> Recipe:
    """Videos of which the network sees at most `window` of so many frames at a time.

    given: how likely a group of frames after the first is given (one half in the paper).
    """
    if frames < window or not 0 <= given <= 1:
        raise ValueError(f"frames={frames} must be window={window} at least, and given={given} a share of 1")
    first, shape, item = first_stage(autoencoder, (channels, size, size))
    net = unet_for(shape, autoencoder is not None, width, temporal=partial(FrameAttention, bias=DistanceBias))
    schedule = Cosine()
    denoiser = Denoiser(net, schedule, V(), stratified(schedule))

    def loss(batch):
        x = batch["x"]
        with whole_batch(len(x)) as (total, mine):
            drawn = subsets(total, x.shape[2], window, x.device, given)        # [B, K]
        share = (drawn[2] & ~drawn[1]).to(x).mean()            # of frames to be made
        index, seen, valid = (of_all[mine] for of_all in drawn)
        place = index[:, None, :, None, None].expand(-1, x.shape[1], -1, *x.shape[3:])
        z = first.encode(x.gather(2, place), randn_like)
        t = denoiser.draw_t(len(x), device=x.device)[:, None] * ~seen          # given frames are clean
        made = (valid & ~seen).to(z)[:, None, :, None, None]                   # and only the others count
        return denoiser.loss(z, t, weight=made / share, frames=among(index, valid))

    def draw(noise, steps=25, step=ancestral_step, start=None, scheme=hierarchy, advance=window // 2,
             bar=False):
        def make(noise, index, seen, at):
            geometry = Frames(len(index), index.expand(len(noise), -1))
            known = Known(denoiser, seen, at) if len(at) else denoiser
            return sample(known, noise, steps, step, bar, frames=geometry)

        return follow(scheme, make, noise, None if start is None else first.encode(start), window, advance)

    return Recipe(denoiser, loss, draw, (shape[0], frames, *shape[1:]), autoencoder=first,
                  data="hiding_mnist", item=(item[0], frames, *item[1:]))


def among(index: Tensor, valid: Tensor) -> Frames:
    """Frames with numbers index [B, K], of which the valid ones see one another, and the rest themselves."""
    alone = torch.eye(index.shape[1], dtype=torch.bool, device=index.device)
    return Frames(index.shape[1], index, valid[:, None] & valid[:, :, None] | alone)


def subsets(batch: int, length: int, window: int, device=None, given: float = 0.5,
            rounds: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """What to train on: at most `window` frames of a video, of which some are given.

    Groups of frames at one spacing, drawn until no more fit; the first is to be made, of the others a share
    `given` is not.  Returns index, seen and valid [B, window]; where fewer frames were drawn the others are
    not valid.
    """
    u = rand(batch, rounds, 4, device=device)
    state = torch.zeros(batch, length, dtype=torch.long, device=device)        # 1 to be made, 2 given
    room = torch.ones(batch, 1, dtype=torch.bool, device=device)
    j = torch.arange(window, device=device)
    for n, (size, spacing, offset, coin) in enumerate(u.permute(1, 2, 0)[..., None]):       # each [B, 1]
        size = (size * window).long() + 1
        spacing = (length / size) ** spacing                   # log-uniform between 1 and length / size
        offset = offset * (length - (size - 1) * spacing)
        place = (offset + j * spacing).long().clamp(max=length - 1)            # [B, window]
        member = torch.zeros_like(state).scatter(1, place.where(j < size, place[:, :1]), 1)
        new = (member == 1) & (state == 0)
        room = room & ((state > 0) | new).sum(1, keepdim=True).le(window)
        state = torch.where(new & room, 1 if n == 0 else 1 + (coin < given).long(), state)
    place = torch.arange(length, device=device) + length * (state == 0)        # what was drawn comes first
    index = place.argsort(1)[:, :window]
    drawn = state.gather(1, index)
    return index, drawn == 2, drawn > 0
