"""The diffusion transformer.  One class for images and videos; papers choose the layouts."""
from collections.abc import Callable
from itertools import cycle, islice

import torch
from einops import rearrange
from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.conditions import Doors
from ..layers.embeddings import ScalarEmbedding, sinusoidal

LAYOUTS = {  # which tokens attend to one another; tokens are [B, F, N, D]
    "space": "b f n d -> (b f) n d",
    "time": "b f n d -> (b n) f d",
    "spacetime": "b f n d -> b (f n) d",
}


def modulate(norm: nn.LayerNorm, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, norm(h), 1 + scale)


class Block(nn.Module):
    """Transformer block with adaLN-Zero (DiT sec. 3.2): h [B, F, N, D], e [B, 1 or F, 1, D] -> like h."""

    def __init__(self, dim: int, heads: int, layout: str, mlp_ratio: int = 4):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention, self.layout = Attention(dim, heads), LAYOUTS[layout]
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(approximate="tanh"),
                                 nn.Linear(mlp_ratio * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight), nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(e).chunk(6, dim=-1)
        h = h + gate1 * self.attend(modulate(self.norm1, h, shift1, scale1))
        return h + gate2 * self.mlp(modulate(self.norm2, h, shift2, scale2))

    def attend(self, h: Tensor) -> Tensor:
        back = " -> ".join(reversed(self.layout.split(" -> ")))
        b, f, n, _ = h.shape
        return rearrange(self.attention(rearrange(h, self.layout)), back, b=b, f=f, n=n)


class DiT(nn.Module):
    """x [B, C, (F,) H, W], t [B] or [B, F], conditions through the first and third door -> like x.

    patch    frames, height and width of a token
    layouts  which tokens attend to one another, block by block, repeated to the depth
    """

    def __init__(self, channels: int = 1, out_channels: int | None = None, dim: int = 64, depth: int = 4,
                 heads: int = 4, patch: tuple[int, int, int] = (1, 4, 4),
                 layouts: tuple[str, ...] = ("space",),
                 embed: dict[str, Callable[[int], nn.Module]] | None = None,
                 stack: dict[str, int] | None = None):
        super().__init__()
        self.patch, self.channels, self.doors = patch, channels, Doors(dim, embed, stack=stack)
        numel = patch[0] * patch[1] * patch[2]
        self.patchify = nn.Linear((channels + sum(self.doors.stack.values())) * numel, dim)
        self.embed_time = ScalarEmbedding(dim)
        self.blocks = nn.ModuleList([Block(dim, heads, layout) for layout in islice(cycle(layouts), depth)])
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim)              # the final adaLN
        self.out = nn.Linear(dim, (out_channels or channels) * numel)
        for last in (self.modulation, self.out):
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.doors.check(cond)
        frames = x.shape[2] if x.ndim == 5 else 1
        pf, ph, pw = self.patch
        if (x.ndim not in (4, 5) or x.shape[1] != self.channels
                or frames % pf or x.shape[-2] % ph or x.shape[-1] % pw):
            raise ValueError(f"expected [B, {self.channels}, (F,) H, W] in whole patches of {self.patch}, "
                             f"got shape {tuple(x.shape)}")
        h = rearrange(self.doors.stacked(x, cond), "(b f pf) c (h ph) (w pw) -> b f (h w) (c pf ph pw)",
                      b=len(x), pf=pf, ph=ph, pw=pw)           # [B, F, N, C patch]
        height = x.shape[-2] // ph
        h = self.patchify(h)                                   # [B, F, N, D]
        h = h + position(h.shape[1], height, x.shape[-1] // pw, h.shape[-1], h.device)
        e = self.doors.added(self.embed_time(t if t.ndim == 1 else t[:, ::pf]), cond)
        # [B, 1 or F, 1, D], not per token
        e = nn.functional.silu(e[:, None, None] if e.ndim == 2 else e[:, :, None])
        for block in self.blocks:
            h = block(h, e)
        h = self.out(modulate(self.norm, h, *self.modulation(e).chunk(2, dim=-1)))
        out = rearrange(h, "b f (h w) (c pf ph pw) -> b c (f pf) (h ph) (w pw)",
                        h=height, pf=pf, ph=ph, pw=pw)
        return out if x.ndim == 5 else out[:, :, 0]


def position(frames: int, height: int, width: int, dim: int, device=None) -> Tensor:
    """Sinusoidal position of every token, [F, H W, D].

    Half the channels are for time, a quarter for each axis of space.
    """
    axes = [torch.arange(n, device=device) for n in (frames, height, width)]
    f, h, w = torch.meshgrid(*axes, indexing="ij")
    parts = [sinusoidal(f, dim // 2), sinusoidal(h, dim // 4), sinusoidal(w, dim // 4)]
    return rearrange(torch.cat(parts, dim=-1), "f h w d -> f (h w) d")
