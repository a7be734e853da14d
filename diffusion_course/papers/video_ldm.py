"""Align your Latents: High-Resolution Video Synthesis with Latent Diffusion Models.  Blattmann et al., 2023.
arXiv:2304.08818

Freeze an image latent diffusion model and teach only new layers to align its frames.  Told which frames are
known, the same network goes on with a video, or fills in the frames between others.

Scaled down: 16 frames of 32 x 32 pixels as latents of 4 x 8 x 8.  One network does what three do in the
paper; it knows the frame rate by how far apart frames are, where the paper has a label.  Left out: the
upsampler, the fine-tuning of the image model on frames of the videos (it was trained on such frames).
"""
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from ..diffusion.guidance import CFG, drop_condition
from ..diffusion.random import rand, randn_like
from ..diffusion.samplers import ddim_step, sample
from ..diffusion.schemes import follow, latest
from ..layers.spacetime import Frames, fold_frames, numbers
from ..networks.text import null_of
from ..recipe import Preset, Recipe, asking, paper
from .video_autoencoder import LAYERS, Aligner, same_latents

PARTS = {"image": "img-mm"}
PRESETS = {
    "smoke": Preset(steps=20, batch_size=4, recipe=PARTS),
    "laptop": Preset(steps=3000, batch_size=8, lr=3e-3, recipe=PARTS),
    "t4": Preset(steps=30_000, batch_size=32, lr=1e-3, recipe=PARTS),
}
NOTHING = {"context": torch.zeros(())}  # known
TASKS = {"generate": 0.4, "from one": 0.1, "from two": 0.25, "between": 0.25}  # how often each is trained


class VideoNet(nn.Module):
    """An image network with aligners between its layers; context [B, C + 1, F, H, W] is what is known."""

    def __init__(self, net: nn.Module, layers: str = "both"):
        super().__init__()
        self.net = net
        net.add_temporal(partial(Aligner, known=net.channels + 1, layers=layers))

    @property
    def aligners(self) -> nn.ModuleList:
        """The new layers, phi: they can be loaded into the network of another image model."""
        return nn.ModuleList([layer for layer in self.net.modules() if isinstance(layer, Aligner)])

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, index: Tensor | None = None,
                **cond: Tensor) -> Tensor:
        if context is None:                                    # nothing is known, and the layers are told so
            context = torch.zeros_like(x[:, :1]).expand(-1, x.shape[1] + 1, -1, -1, -1)
        return self.net(x, t, frames=Frames(x.shape[2], index, known=fold_frames(context)[0]), **cond)


def context(z: Tensor, seen: Tensor) -> Tensor:
    """What is known of latents [B, C, F, H, W] of which the frames seen [B, F] are given: (m z, m)."""
    m = seen[:, None, :, None, None].to(z).expand(-1, 1, -1, *z.shape[3:])
    return torch.cat([m * z, m], dim=1)


def given(batch: int, frames: int, device: torch.device | None = None) -> Tensor:
    """Which frames are known, by lot: none, the first, the first two, or every fourth.  [B, F]"""
    place = torch.arange(frames, device=device)
    ways = torch.stack([place < 0, place < 1, place < 2, place % 4 == 0])
    which = torch.tensor([*TASKS.values()], device=device).cumsum(0)[:-1]
    return ways[torch.bucketize(rand(batch, device=device), which)]


def interpolate(denoiser, keys: Tensor, stride: int = 1, steps: int = 25, step: Callable = ddim_step,
                guidance: float = 1.0, bar: bool = False, **cond: Tensor) -> Tensor:
    """Three frames between every two: keys [B, C, T, H, W] -> [B, C, 4T - 3, H, W], `stride` frames apart.

    Up to four neighbouring keys, and what is between them, are made in one call; windows share their ends.
    """
    if keys.shape[2] < 2:
        raise ValueError(f"keys of shape {tuple(keys.shape)} must have two frames at least")
    batch, n = len(keys), next(n for n in (4, 3, 2) if (keys.shape[2] - 1) % (n - 1) == 0)
    keys = rearrange(keys.unfold(2, n, n - 1), "b c w h x n -> (b w) c n h x")
    z = torch.zeros_like(keys).repeat_interleave(4, dim=2)[:, :, :-3]
    z[:, :, ::4] = keys
    place = torch.arange(z.shape[2], device=z.device).expand(len(z), -1)
    cond = {name: c.repeat_interleave(len(z) // batch, dim=0) for name, c in cond.items()}
    cond |= {"context": context(z, place % 4 == 0), "index": place * stride}
    made = sample(CFG(denoiser, guidance, NOTHING), torch.randn_like(z), steps, step, bar, **cond)
    z = torch.where((place % 4 == 0)[:, None, :, None, None], z, made)
    first, rest = (rearrange(part, "(b w) c n h x -> b c (w n) h x", b=batch)
                   for part in (z[:, :, :1], z[:, :, 1:]))
    return torch.cat([first[:, :, :1], rest], dim=2)


@paper
def recipe(image: Recipe | None = None, frames: int = 16, layers: str = "both",
           autoencoder: Recipe | None = None) -> Recipe:
    """Clips from a trained image model of latent_diffusion, for what that is asked for.

    layers        what goes between those of the image model: both kinds, or only "conv" or "attention"
    autoencoder   with the image model's latents, to decode what is drawn; by default the image model's own
    """
    if layers not in LAYERS:
        raise ValueError(f"layers={layers!r} must be one of {', '.join(LAYERS)}")
    if image is None or image.origin.paper != "latent_diffusion" or not image.origin.kwargs["autoencoder"]:
        raise ValueError("image=... must be a trained model of latent_diffusion, such as img-mm")
    first = same_latents(image.autoencoder, autoencoder)
    with image.ema.swapped() if image.ema else nullcontext():
        denoiser = deepcopy(image.model).requires_grad_(False)                 # theta
    denoiser.net = VideoNet(denoiser.net, layers)              # with phi, which alone is trained
    null = null_of(**{name: image.origin.kwargs[name] for name in ("classes", "words", "length")})

    def loss(batch):
        z = first.encode(batch["x"], randn_like)               # [B, C, F, H, W]
        index = numbers(z, fps=batch.get("fps"))
        cond = drop_condition({name: batch[name] for name in null}, null, p=0.1)
        known = context(z, given(len(z), z.shape[2], z.device))
        return denoiser.loss(z, context=known, index=index, **cond)

    def draw(noise, cond, steps=25, step=ddim_step, scale=2.0, start=None, guidance=1.0,
             seen=2, stride=1, bar=False):
        if seen not in (1, 2):
            raise ValueError(f"seen={seen} must be 1 or 2, the frames from which it learned to go on")
        start = None if start is None else first.encode(start)

        def make(noise, index, known, at):
            z, there = torch.zeros_like(noise), torch.zeros(len(noise), len(index), device=noise.device)
            z[:, :, at], there[:, at] = known, 1
            given = {"context": context(z, there), "index": index.expand(len(noise), -1) * stride}
            guide = CFG(CFG(denoiser, scale, null), guidance if len(at) else 1.0, NOTHING)
            return sample(guide, noise, steps, step, bar, **given, **cond)

        return follow(latest, make, noise, start, frames, frames - seen)

    return Recipe(denoiser, loss, asking(draw, null), (image.shape[0], frames, *image.shape[1:]),
                  autoencoder=first, data="timelapse_mnist", item=(image.item[0], frames, *image.item[1:]))
