"""One attention function, used by every network."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .embeddings import rotate
from .spacetime import Frames, Temporal, relative_index


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, with q [..., N, d], k and v [..., M, d], bias [..., N, M].

    Over a handful of keys on a CPU the fused kernel costs more than it saves; plain products are used there.
    In half precision its backward pass takes five times as long as theirs.
    """
    if q.device.type == "cpu" and k.shape[-2] <= (32 if q.dtype == torch.float32 else 64):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores if bias is None else scores + bias).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, bias)


class Attention(nn.Module):
    """Self-attention x [B, N, D] -> same; or cross-attention, if given tokens [B, M, token_dim]."""

    def __init__(self, dim: int, heads: int = 4, token_dim: int | None = None):
        super().__init__()
        if heads < 1 or dim < 1:
            raise ValueError(f"dim={dim} and heads={heads} must be at least 1")
        if dim % heads:
            near = dim // heads * heads
            raise ValueError(f"dim={dim} must be a multiple of heads={heads}; "
                             f"choose {near or heads} or {near + heads}")
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(token_dim or dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tokens: Tensor | None = None, bias: Tensor | None = None,
                angles: Tensor | None = None) -> Tensor:
        # bias [..., N, M] is added to the scores: a relative position, or a mask of 0 and -inf
        # angles [..., N, D / heads / 2] turn queries and keys: a rotary position
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.kv(x if tokens is None else tokens), "b m (two h d) -> two b h m d",
                         two=2, h=self.heads)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(rearrange(attend(q, k, v, bias), "b h n d -> b n (h d)"))


class SpatialAttention(nn.Module):
    """Residual attention of the pixels of a frame to one another or to tokens: h [(B F), C, H, W] -> same."""

    def __init__(self, channels: int, heads: int = 4, token_dim: int | None = None):
        super().__init__()
        self.norm, self.attention = nn.GroupNorm(8, channels), Attention(channels, heads, token_dim)

    def forward(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        x = rearrange(self.norm(h), "bf c h w -> bf (h w) c")
        return h + rearrange(self.attention(x, tokens), "bf (h w) c -> bf c h w", h=h.shape[2])


class OffsetBias(nn.Module):
    """A learned number for every head and every distance in frames, up to a largest one.

    The table is in tens: Adam moves a weight by the learning rate at most, and scores must move by several
    units before a head looks at one frame only.  It starts at random, so that heads look at different ones.
    """

    def __init__(self, heads: int, dim: int | None = None, farthest: int = 64):
        super().__init__()
        self.farthest, self.table = farthest, nn.Parameter(0.1 * torch.randn(heads, 2 * farthest + 1))

    def forward(self, offset: Tensor, e: Tensor | None = None) -> Tensor:
        """offset [F, F] or [B, F, F] -> what is added to the scores: [heads, F, F] or [B, heads, F, F]."""
        bias = 10 * self.table[:, (offset.clamp(-self.farthest, self.farthest) + self.farthest).long()]
        return rearrange(bias, "h b i j -> b h i j") if bias.ndim == 4 else bias


class FrameAttention(Temporal):
    """Residual attention across frames, at every pixel, with a bias that knows how far apart two frames are.

    Video Diffusion Models, sec. 3.  Starts as the identity (zero_init).  bias makes, of heads and dim, a
    module from offsets and the embedded time to what is added to the scores.
    """

    def __init__(self, channels: int, dim: int | None = None, heads: int = 4,
                 bias: Callable[..., nn.Module] = OffsetBias, zero_init: bool = True):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(channels), Attention(channels, heads)
        self.bias = bias(heads, dim)
        if zero_init:
            nn.init.zeros_(self.attention.out.weight), nn.init.zeros_(self.attention.out.bias)

    def position_bias(self, frames: Frames, device: torch.device, e: Tensor | None = None) -> Tensor:
        """[heads, F, F], or [B, heads, F, F] where frames have their own index or mask; -inf is not seen."""
        bias = self.bias(relative_index(frames, device), e)
        if frames.mask is not None:
            bias = bias.masked_fill(~frames.mask.to(device)[:, None], float("-inf"))
        return bias

    def forward(self, h, frames, e=None):
        height, width = h.shape[2:]
        x = rearrange(h, "(b f) c h w -> (b h w) f c", f=frames.count)
        bias = self.position_bias(frames, h.device, e)
        if bias.ndim == 4:
            bias = bias.repeat_interleave(height * width, dim=0)            # [(B H W), heads, F, F]
        x = x + self.attention(self.norm(x), bias=bias.to(x.dtype))
        x = rearrange(x, "(b h w) f c -> (b f) h w c", h=height, w=width)
        return rearrange(x, "bf h w c -> bf c h w")            # a view: channels stay last in memory
