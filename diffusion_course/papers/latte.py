"""Latte: Latent Diffusion Transformer for Video Generation.  Ma et al., 2024.  arXiv:2401.03048

A video is too many tokens for every one to look at every other.  Four ways to take space and time apart, with
everything else equal; the plainest, whole blocks over space and over time in turn, is the best in the paper.

Scaled down: 16 frames as latents of 4 x 8 x 8, 1.4 M weights.  Text is pooled and added to the time, as a
label is.  Left out: the learned variance.
"""
import re

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.guidance import CFG, drop_condition
from ..diffusion.predictions import Epsilon
from ..diffusion.random import randn_like
from ..diffusion.samplers import ddim_step, sample
from ..diffusion.schedules import linear_beta
from ..layers.attention import Attention, attend
from ..layers.embeddings import rotate
from ..layers.spacetime import Frames, numbers
from ..networks.dit import BLOCKS, Block, DiT, look, modulate
from ..networks.text import null_of, tokens_for, vectors_for
from ..recipe import Count, Preset, Recipe, asking, paper
from .autoencoder_kl import first_stage
from .video_diffusion_models import with_images

LATENTS = {"autoencoder": "vae-mm", "patch": 2, "classes": 10}
VIDEO = LATENTS | {"dim": 128, "depth": 12, "images": 2}       # whose half over space begins as dit-mm
PRESETS = {
    "smoke": Preset(steps=20, batch_size=4, lr=1e-3, recipe=LATENTS | {"dim": 32, "depth": 2, "frames": 8}),
    "laptop": Preset(steps=3000, batch_size=8, lr=1e-3, init="dit-mm", recipe=VIDEO),
    "t4": Preset(steps=30_000, batch_size=32, lr=5e-4, init="dit-mm", recipe=VIDEO),
}
VARIANTS = ("interleaved", "late", "serial", "parallel", "joint")   # 1 to 4 of the paper, and all to all


class SerialBlock(Block):
    """Variant 3: attention over space, attention over time, one MLP; each modulated and gated."""

    modulated = 9

    def __init__(self, dim: int, heads: int, layout: str, mlp_ratio: int = 4):
        super().__init__(dim, heads, layout, mlp_ratio)
        self.norm3 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.time = Attention(dim, heads)

    def forward(self, h, e, tokens=None, angles=None):
        shift, scale, gate = rearrange(self.modulation(F.silu(e)), "b f n (k i d) -> i k b f n d", i=3, k=3)
        h = h + gate[0] * look(self.attention, "space", modulate(self.norm1, h, shift[0], scale[0]))
        h = h + gate[1] * look(self.time, "time", modulate(self.norm3, h, shift[1], scale[1]), angles)
        return h + gate[2] * self.mlp(modulate(self.norm2, h, shift[2], scale[2]))


class ParallelBlock(Block):
    """Variant 4: half of the heads attend over space, the others over time."""

    def attend(self, h: Tensor, angles: Tensor | None) -> Tensor:
        """h [B, F, N, D] -> same."""
        heads = "b f n (h d) -> b f n h d"
        q = rearrange(self.attention.q(h), heads, h=self.attention.heads)
        k, v = (rearrange(x, heads, h=self.attention.heads) for x in self.attention.kv(h).chunk(2, dim=-1))
        (q1, q2), (k1, k2), (v1, v2) = (x.chunk(2, dim=3) for x in (q, k, v))
        space = attend(*(rearrange(x, "b f n h d -> b f h n d") for x in (q1, k1, v1)))
        q2, k2, v2 = (rearrange(x, "b f n h d -> b n h f d") for x in (q2, k2, v2))
        if angles is not None:
            q2, k2 = (rotate(x, angles[:, None, None]) for x in (q2, k2))
        time = rearrange(attend(q2, k2, v2), "b n h f d -> b f n (h d)")
        return self.attention.out(torch.cat([rearrange(space, "b f h n d -> b f n (h d)"), time], dim=-1))


def layouts(variant: str, depth: int) -> tuple[str, ...]:
    """Which tokens attend to one another in each block."""
    if variant == "interleaved":
        return "space", "time"
    if variant == "late":
        return ("space",) * (depth - depth // 2) + ("time",) * (depth // 2)
    return ("spacetime",)


def renamed(name: str, paper: str) -> str:
    """What a weight of an image DiT is called here: its blocks become those over space (sec. 3.4)."""
    if paper != "dit":
        return name
    return re.sub(r"(?<=blocks\.)\d+", lambda number: str(2 * int(number[0])), name)


@paper
def recipe(variant: str = "interleaved", dim: int = 96, depth: int = 8, heads: int = 4, frames: int = 16,
           patch: int = 4, tube: int = 1, time: str = "sinusoidal", condition: str = "adaln_zero",
           images: Count = 0, classes: Count = 0, words: Count = 0, length: int = 12, channels: int = 1,
           size: int = 32, autoencoder: Recipe | None = None) -> Recipe:
    """Clips for a `label` if classes > 0, for a `text` of so many words if words > 0.

    variant     one of VARIANTS
    patch, tube pixels or latents of a token, and frames: 1 is uniform frame patch embedding, more compression
    time        how tokens know their frame: sinusoidal, rotary or none
    condition   adaln_zero (the paper's S-AdaLN), or in_context (all tokens): how time, label and text get in
    images      how many frames are appended to every clip of a batch, each alone (8 in the paper)
    """
    if variant not in VARIANTS or condition not in ("adaln_zero", "in_context"):
        raise ValueError(f"variant={variant!r} must be one of {', '.join(VARIANTS)}, and "
                         f"condition={condition!r} adaln_zero or in_context")
    own = {"serial": SerialBlock, "parallel": ParallelBlock}.get(variant)
    if own and condition == "in_context":
        raise ValueError(f"variant={variant!r} has no use for condition='in_context'; choose adaln_zero")
    first, shape, item = first_stage(autoencoder, (channels, size, size))
    null = null_of(classes, words, length)
    door = {"tokens": tokens_for(classes, words, length, dim)} if condition == "in_context" else \
        {"embed": vectors_for(classes, words, length)}
    net = DiT(shape[0], dim=dim, depth=depth, heads=heads, patch=(tube, patch, patch), time=time,
              layouts=layouts(variant, depth), block=own or BLOCKS[condition], **door)
    schedule = linear_beta()
    denoiser = Denoiser(net, schedule, Epsilon(), stratified(schedule))

    def loss(batch):
        z = with_images(first.encode(batch["x"], randn_like), images, own=bool(null))
        frames = Frames(z.shape[2], numbers(z, fps=batch.get("fps")))
        cond = drop_condition({name: batch[name] for name in null}, null, p=0.1)
        return denoiser.loss(z, frames=frames, images=images, **cond)

    def draw(noise, cond, steps=50, step=ddim_step, scale=2.0 if null else 1.0, bar=False):
        return sample(CFG(denoiser, scale, null), noise, steps, step, bar, **cond)

    return Recipe(denoiser, loss, asking(draw, null), (shape[0], frames, *shape[1:]), autoencoder=first,
                  data="bouncing_mnist", item=(item[0], frames, *item[1:]))
