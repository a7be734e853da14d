"""The diffusion transformer.  One class for images and videos; papers choose the layouts."""
from collections.abc import Callable
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.conditions import Doors
from ..layers.embeddings import ScalarEmbedding, rotary_angles, sinusoidal
from ..layers.spacetime import Frames, check_input

LAYOUTS = {  # which tokens attend to one another; tokens are [B, F, N, D]
    "space": "b f n d -> (b f) n d",
    "time": "b f n d -> (b n) f d",
    "spacetime": "b f n d -> b (f n) d",
}
TIMES = ("sinusoidal", "rotary", "none")  # how tokens know their frame


def look(attention: Attention, layout: str, h: Tensor, angles: Tensor | None = None) -> Tensor:
    """Attention of tokens h [B, F, N, D] to one another, as the layout says; angles [B, F, d] of frames."""
    b, f, n, _ = h.shape
    there, back = LAYOUTS[layout], " -> ".join(reversed(LAYOUTS[layout].split(" -> ")))
    if angles is not None and layout != "space":               # like the tokens, and the same for all heads
        angles = rearrange(repeat(angles, "b f d -> b f n d", n=n), there)[:, None]
    else:
        angles = None
    return rearrange(attention(rearrange(h, there), angles=angles), back, b=b, f=f, n=n)


def modulate(norm: nn.LayerNorm, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, norm(h), 1 + scale)


class Block(nn.Module):
    """Transformer block with adaLN-Zero (DiT sec. 3.2): h [B, F, N, D], e [B, 1 or F, 1, D] -> like h.

    Its GELU is exact: the released code's approximation by tanh takes two to four times as long on a CPU.

    Other blocks let the condition in elsewhere.  They say how many vectors modulate them, whether these start
    as zero (and the block, with its gates shut, as the identity), whether they use tokens [B, L, D], and
    whether these and e are put among the patches.
    """

    modulated, zero, uses_tokens, in_context = 6, True, False, False

    def __init__(self, dim: int, heads: int, layout: str, mlp_ratio: int = 4):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=not self.modulated, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=not self.modulated, eps=1e-6)
        self.attention, self.layout = Attention(dim, heads), layout
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        if self.modulated:
            self.modulation = nn.Linear(dim, self.modulated * dim)

    def forward(self, h: Tensor, e: Tensor, tokens: Tensor | None = None, angles: Tensor | None = None
                ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(e)).chunk(6, dim=-1)
        h = h + gate1 * self.attend(modulate(self.norm1, h, shift1, scale1), angles)
        return h + gate2 * self.mlp(modulate(self.norm2, h, shift2, scale2))

    def attend(self, h: Tensor, angles: Tensor | None) -> Tensor:
        return look(self.attention, self.layout, h, angles)


class AdaLNBlock(Block):
    """The same without gates, and so without a start as the identity."""

    modulated, zero = 4, False

    def forward(self, h, e, tokens=None, angles=None):
        shift1, scale1, shift2, scale2 = self.modulation(F.silu(e)).chunk(4, dim=-1)
        h = h + self.attend(modulate(self.norm1, h, shift1, scale1), angles)
        return h + self.mlp(modulate(self.norm2, h, shift2, scale2))


class InContextBlock(Block):
    """An ordinary block: the time and the tokens [B, L, D] are among the patches in h."""

    modulated, zero, uses_tokens, in_context = 0, False, True, True

    def forward(self, h, e, tokens=None, angles=None):
        h = h + self.attend(self.norm1(h), angles)
        return h + self.mlp(self.norm2(h))


class CrossAttentionBlock(Block):
    """An ordinary block that, in between, attends to the time and the tokens [B, L, D]."""

    modulated, zero, uses_tokens = 0, False, True

    def __init__(self, dim: int, heads: int, layout: str, mlp_ratio: int = 4):
        super().__init__(dim, heads, layout, mlp_ratio)
        self.norm, self.cross = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)

    def forward(self, h, e, tokens=None, angles=None):
        h = h + self.attend(self.norm1(h), angles)
        seen = rearrange(among(h, e, tokens), "b f l d -> (b f) l d")
        h = h + self.cross(rearrange(self.norm(h), "b f n d -> (b f) n d"), seen).reshape(h.shape)
        return h + self.mlp(self.norm2(h))


BLOCKS = {"adaln_zero": Block, "adaln": AdaLNBlock, "cross_attention": CrossAttentionBlock,
          "in_context": InContextBlock}


def among(h: Tensor, e: Tensor, tokens: Tensor | None) -> Tensor:
    """e [B, 1 or F, 1, D] and the tokens [B, L, D], if any, for each frame of h: [B, F, 1 + L, D]."""
    e = e.expand(-1, h.shape[1], -1, -1)
    return e if tokens is None else torch.cat([e, tokens[:, None].expand(-1, h.shape[1], -1, -1)], dim=2)


def apart(block: Block, h: Tensor, e: Tensor, tokens: Tensor | None, angles: Tensor | None,
          images: int) -> Tensor:
    """A block's work on h [B, F + images, N, D], where images stand behind a video.

    A block over time leaves them alone; others take each for a video of one frame.
    """
    if not images or block.layout == "space":
        return block(h, e, tokens, angles)
    e = e.expand(-1, h.shape[1], -1, -1)
    clip, single = block(h[:, :-images], e[:, :-images], tokens, angles), h[:, -images:]
    if block.layout != "time":
        single, e = (rearrange(part, "b k n d -> (b k) 1 n d") for part in (single, e[:, -images:]))
        tokens = None if tokens is None else tokens.repeat_interleave(images, dim=0)
        single = rearrange(block(single, e, tokens), "(b k) 1 n d -> b k n d", k=images)
    return torch.cat([clip, single], dim=1)


class DiT(nn.Module):
    """x [B, C, (F,) H, W], t [B] or [B, F], named conditions -> like x.

    patch    frames, height and width of a token
    layouts  which tokens attend to one another, block by block, repeated to the depth
    block    how the condition enters: a class of BLOCKS, or one like them
    time     how tokens know their frame: sinusoidal, added before the first block over time (Latte's released
             code); rotary, in every attention over time; none
    embed, tokens, stack   the three doors for conditions, see layers/conditions.py
    """

    def __init__(self, channels: int = 1, out_channels: int | None = None, dim: int = 64, depth: int = 4,
                 heads: int = 4, patch: tuple[int, int, int] = (1, 4, 4),
                 layouts: tuple[str, ...] = ("space",), block: type[Block] = Block, time: str = "sinusoidal",
                 embed: dict[str, Callable[[int], nn.Module]] | None = None,
                 tokens: dict[str, nn.Module] | None = None, stack: dict[str, int] | None = None):
        super().__init__()
        if dim < 1 or min(patch) < 1:
            raise ValueError(f"dim={dim} and each side of patch={patch} must be at least 1")
        if time not in TIMES:
            raise ValueError(f"time={time!r} must be one of {', '.join(TIMES)}")
        if time == "rotary" and heads > 0 and dim % (2 * heads):
            raise ValueError(f"dim={dim} must be a multiple of 2 x heads={heads}, for rotary turns pairs")
        self.patch, self.channels, self.doors = patch, channels, Doors(dim, embed, tokens, stack)
        self.block, self.time, self.heads = block, time, heads
        if tokens and not block.uses_tokens:
            raise ValueError(f"{block.__name__} has no use for the tokens {sorted(tokens)}; choose another "
                             "block or the first door")
        numel = patch[0] * patch[1] * patch[2]
        self.patchify = nn.Linear((channels + sum(self.doors.stack.values())) * numel, dim)
        self.embed_time = ScalarEmbedding(dim)
        self.blocks = nn.ModuleList([block(dim, heads, layout) for layout in islice(cycle(layouts), depth)])
        self.norm = nn.LayerNorm(dim, elementwise_affine=not block.modulated, eps=1e-6)
        self.modulation = nn.Linear(dim, 2 * dim) if block.modulated else None      # the final adaLN
        self.out = nn.Linear(dim, (out_channels or channels) * numel)
        self.apply(xavier)
        for linear in (self.embed_time.mlp[0], self.embed_time.mlp[2]):
            nn.init.normal_(linear.weight, std=0.02)
        shut = [each.modulation for each in self.blocks] if block.zero else []
        for last in (*shut, self.modulation, self.out):        # zeros last, or xavier would draw over them
            if last is not None:
                nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, t: Tensor, frames: Frames | None = None, images: int = 0,
                **cond: Tensor) -> Tensor:
        """The last `images` frames of x are no part of the video, each alone."""
        self.doors.check(cond)
        count = x.shape[2] if x.ndim == 5 else 1
        pf, ph, pw = self.patch
        check_input(x, t, self.channels, self.patchify.weight)
        frames = (frames or Frames(count)).check(count)
        if not 0 <= images < count or images and pf > 1:
            raise ValueError(f"images={images} of {count} frames, in patches of {pf}: there must be a video "
                             "before them, and a patch of theirs is one frame")
        if count % pf or x.shape[-2] % ph or x.shape[-1] % pw:
            raise ValueError(f"expected [B, {self.channels}, (F,) H, W] in whole patches of {self.patch}, "
                             f"got shape {tuple(x.shape)}")
        h = rearrange(self.doors.stacked(x, cond), "(b f pf) c (h ph) (w pw) -> b f (h w) (c pf ph pw)",
                      b=len(x), pf=pf, ph=ph, pw=pw)           # [B, F, N, C patch]
        height = x.shape[-2] // ph
        h = self.patchify(h)                                   # [B, F, N, D]
        h = h + position(height, x.shape[-1] // pw, h.shape[-1], h.device)
        index = frames.index if frames.index is not None else torch.arange(count, device=h.device)[None]
        index = index[:, :count - images:pf].to(h.device)      # [B or 1, F of the video]
        e = self.doors.added(self.embed_time(t if t.ndim == 1 else t[:, ::pf]), cond)
        # [B, 1 or F, 1, D], not per token
        e = e[:, None, None] if e.ndim == 2 else e[:, :, None]
        tokens, places = self.doors.attended(cond), h.shape[2]                 # [B, L, D]
        if self.block.in_context:
            h = torch.cat([h, among(h, e, tokens)], dim=2)     # [B, F, N + 1 + L, D]
        angles, placed = None, index.shape[1] == 1             # a video of one frame is an image
        if self.time == "rotary":
            angles = rotary_angles(index, h.shape[-1] // self.heads).expand(len(h), -1, -1)
        for block in self.blocks:
            if self.time == "sinusoidal" and block.layout != "space" and not placed:
                place = sinusoidal(index, h.shape[-1])[:, :, None]             # [B or 1, F, 1, D]
                h, placed = h + F.pad(place, (0, 0, 0, 0, 0, images)), True
            h = apart(block, h, e, tokens, angles, images)
        h = h[:, :, :places]
        if self.modulation is None:
            h = self.out(self.norm(h))
        else:
            h = self.out(modulate(self.norm, h, *self.modulation(F.silu(e)).chunk(2, dim=-1)))
        out = rearrange(h, "b f (h w) (c pf ph pw) -> b c (f pf) (h ph) (w pw)",
                        h=height, pf=pf, ph=ph, pw=pw)
        return out if x.ndim == 5 else out[:, :, 0]


def xavier(module: nn.Module) -> None:
    """Start of every linear layer and of every table of labels, unless it is frozen (DiT's released code)."""
    if not all(p.requires_grad for p in module.parameters(recurse=False)):
        return
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def position(height: int, width: int, dim: int, device=None) -> Tensor:
    """Sinusoidal position in a frame of every token, [H W, D]: half the channels for each axis."""
    h, w = torch.meshgrid(*[torch.arange(n, device=device) for n in (height, width)], indexing="ij")
    return torch.cat([sinusoidal(h, dim // 2), sinusoidal(w, dim // 2)], dim=-1).flatten(0, 1)
