"""Images and videos through the same layers.

Inside a network, features are [(B F), C, H, W] and an image has F = 1.  Spatial layers never notice
frames; temporal layers unfold them, mix them, and fold them back.
"""
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class Frames:
    """The geometry of a video: how many frames, where in time they stand, which may see which; and what is
    known of each, for temporal layers that look at it."""

    count: int
    index: Tensor | None = None   # [B, F] frame numbers; None: 0 ... F-1
    mask: Tensor | None = None    # [B, F, F] bool, True where frame i may look at frame j; None: everywhere
    known: Tensor | None = None   # [(B F), K, H, W]

    def check(self, count: int) -> "Frames":
        for name, value, shape in [("index", self.index, (count,)), ("mask", self.mask, (count, count))]:
            if value is not None and tuple(value.shape[1:]) != shape:
                raise ValueError(f"Frames.{name} must be [B, {', '.join(map(str, shape))}] for a video of "
                                 f"{count} frames, got {tuple(value.shape)}")
        if self.count != count:
            raise ValueError(f"Frames.count={self.count}, but the input has {count} frames")
        return self


def check_dtype(x: Tensor, weight: Tensor) -> None:
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x is {x.dtype}, the network {weight.dtype}; convert one of them")


def check_input(x: Tensor, t: Tensor, channels: int, weight: Tensor) -> None:
    """A ValueError unless x is images or videos for a network with such weights, and t their times."""
    if x.ndim not in (4, 5) or x.shape[1] != channels or not x.numel():
        raise ValueError(f"expected images [B, {channels}, H, W] or videos [B, {channels}, F, H, W], "
                         f"got shape {tuple(x.shape)}")
    check_dtype(x, weight)
    frames = x.shape[2] if x.ndim == 5 else 1
    if t.ndim not in (1, 2) or len(t) != len(x) or t.ndim == 2 and t.shape[1] not in (1, frames):
        raise ValueError(f"t must be [B] or [B, F] with B={len(x)}, and the input has {frames} frames; got "
                         f"shape {tuple(t.shape)}")


def fold_frames(x: Tensor) -> tuple[Tensor, int]:
    """[B, C, H, W] or [B, C, F, H, W] -> [(B F), C, H, W] and F."""
    if x.ndim == 4:
        return x, 1
    if x.ndim != 5:
        raise ValueError("expected images [B, C, H, W] or videos [B, C, F, H, W], "
                         f"got shape {tuple(x.shape)}")
    return rearrange(x, "b c f h w -> (b f) c h w"), x.shape[2]


def unfold_frames(h: Tensor, like: Tensor) -> Tensor:
    """Undo fold_frames."""
    return h if like.ndim == 4 else rearrange(h, "(b f) c h w -> b c f h w", b=len(like))


def per_frame(e: Tensor, frames: int) -> Tensor:
    """A vector per sample [B, D] or per frame [B, F, D] -> [(B F), D]."""
    if e.ndim == 2:
        return e.repeat_interleave(frames, dim=0)
    if e.shape[1] not in (1, frames):
        raise ValueError(f"time or condition given for {e.shape[1]} frames, but the input has {frames}")
    return rearrange(e.expand(-1, frames, -1), "b f d -> (b f) d")


class Temporal(nn.Module):
    """Base class of all that mixes frames: h [(B F), C, H, W] -> same shape.  This one does nothing.

    made with  channels of h, and dim of e
    e          the embedded time, and what is added to it: [B, dim] or [B, F, dim]
    """

    def forward(self, h: Tensor, frames: Frames, e: Tensor | None = None) -> Tensor:
        return h


class TemporalConv(Temporal):
    """A residual convolution over 3 frames and, of each, space x space places; starts as the identity."""

    def __init__(self, channels: int, dim: int | None = None, space: int = 1):
        super().__init__()
        # not a GroupNorm: on CPUs its backward pass crashes where the layers below are frozen (PyTorch 2.13)
        self.norm, padding = nn.LayerNorm(channels), (1, space // 2, space // 2)
        self.conv = nn.Conv3d(channels, channels, (3, space, space), padding=padding)
        nn.init.zeros_(self.conv.weight), nn.init.zeros_(self.conv.bias)

    def forward(self, h, frames, e=None):
        x = nn.functional.silu(self.norm(rearrange(h, "bf c h w -> bf h w c")))
        x = self.conv(rearrange(x, "(b f) h w c -> b c f h w", f=frames.count))
        x = rearrange(x, "b c f h w -> (b f) h w c")
        return h + rearrange(x, "bf h w c -> bf c h w")        # a view: channels stay last in memory


def numbers(clip: Tensor, more: int = 0, fps: Tensor | None = None) -> Tensor:
    """Numbers [B, F + more] of the frames of clips [B, C, F, H, W], of which fps [B] of 8 are shown.

    They are 0, 1, 2 ... at fps = 8, or where nobody says it, and 0, 4, 8 ... at 2.
    """
    index = torch.arange(clip.shape[2] + more, device=clip.device).expand(len(clip), -1)
    return index if fps is None else index * (8 / fps)[:, None]


def relative_index(frames: Frames, device: torch.device) -> Tensor:
    """index_j - index_i for every pair of frames: [F, F], or [B, F, F] where frames have their own index."""
    index = torch.arange(frames.count, device=device) if frames.index is None else frames.index.to(device)
    return index[..., None, :] - index[..., :, None]
