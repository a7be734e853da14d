"""The U-Net.  One class for images and videos."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import SpatialAttention
from ..layers.conditions import Doors
from ..layers.embeddings import ScalarEmbedding
from ..layers.spacetime import Frames, Temporal, check_input, per_frame, unfold_frames


class ResBlock(nn.Module):
    """Two convolutions round a residual, modulated by e: h [(B F), C, H, W], e [B, D] or [B, F, D]."""

    def __init__(self, c_in: int, c_out: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.modulation = nn.Linear(dim, 2 * c_out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight), nn.init.zeros_(self.conv2.bias)

    def forward(self, h: Tensor, e: Tensor, frames: int) -> Tensor:
        scale, shift = per_frame(self.modulation(e), frames)[:, :, None, None].chunk(2, dim=1)
        x = self.conv1(F.silu(self.norm1(h)))
        x = torch.addcmul(shift, self.norm2(x), 1 + scale)
        return self.skip(h) + self.conv2(self.dropout(F.silu(x)))


class Unit(nn.Module):
    """What a U-Net repeats: convolve, look across space, look at the tokens, look across time."""

    def __init__(self, c_in: int, c_out: int, dim: int, attend: bool, heads: int, token_dim: int | None,
                 dropout: float):
        super().__init__()
        self.conv = ResBlock(c_in, c_out, dim, dropout)
        self.space = SpatialAttention(c_out, heads) if attend else None
        self.tokens = SpatialAttention(c_out, heads, token_dim) if attend and token_dim else None
        self.time = Temporal()                                 # a free slot; see UNet.add_temporal
        self.channels = c_out

    def forward(self, h: Tensor, e: Tensor, frames: Frames, tokens: Tensor | None) -> Tensor:
        h = self.conv(h, e, frames.count)
        if self.space is not None:
            h = self.space(h)
        if self.tokens is not None:
            h = self.tokens(h, tokens)
        return self.time(h, frames, e)


class Upsample(nn.Module):
    """Twice the height and width, then a convolution to the width of the next level."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """x [B, C, (F,) H, W], t [B] or [B, F], named conditions -> [B, out_channels, (F,) H, W].

    multipliers  width of each level over `width`; every level halves the resolution
    units        units per level on the way down, one number or one for each; one more on the way up
    attend       at which levels pixels attend to one another and to the tokens
    patch        fold patches of patch x patch pixels into channels first (1: the papers' network)
    efficient    halve before the units of a level and double after them, skips by 1/sqrt(2) (Imagen app. B)
    embed, tokens, stack   the three doors for conditions, see layers/conditions.py
    temporal     fills the time slot of every unit: (channels, dim of the embedded time) -> Temporal
    """

    def __init__(self, channels: int = 1, out_channels: int | None = None, width: int = 32,
                 multipliers: tuple[int, ...] = (1, 2, 4), units: int | tuple[int, ...] = 1,
                 attend: tuple[bool, ...] = (False, True, True), heads: int = 4, dropout: float = 0.0,
                 patch: int = 1, efficient: bool = False,
                 embed: dict[str, Callable[[int], nn.Module]] | None = None,
                 tokens: dict[str, nn.Module] | None = None, stack: dict[str, int] | None = None,
                 temporal: Callable[[int, int], Temporal] | None = None):
        super().__init__()
        units = (units,) * len(multipliers) if isinstance(units, int) else units
        for name, value in ("attend", attend), ("units", units):
            if len(value) != len(multipliers):
                raise ValueError(f"{name}={value} needs one entry for each of the {len(multipliers)} levels "
                                 f"of multipliers={multipliers}")
        if width < 8 or width % 8 or min(multipliers, default=0) < 1:
            raise ValueError(f"width={width} must be a multiple of 8 (the groups of its normalisation), and "
                             f"multipliers={multipliers} whole numbers of it")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        dim, widths = 4 * width, [width * m for m in multipliers]
        self.doors = Doors(dim, embed, tokens, stack)
        halvings = len(widths) - (not efficient)
        self.channels, self.patch, self.factor = channels, patch, patch * 2**halvings
        self.skip_scale = 0.5**0.5 if efficient else 1.0

        def unit(c_in, c_out, attend):
            return Unit(c_in, c_out, dim, attend, heads, self.doors.token_dim, dropout)

        self.embed_time = ScalarEmbedding(dim)
        self.conv_in = nn.Conv2d((channels + sum(self.doors.stack.values())) * patch**2, width, 3, padding=1)
        self.down, self.up, c = nn.ModuleList(), nn.ModuleList(), width
        skips = [] if efficient else [width]
        for level, w in enumerate(widths):
            if level or efficient:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
            for _ in range(units[level]):
                self.down.append(unit(c, w, attend[level]))
                skips.append(c := w)
        self.middle = nn.ModuleList([unit(c, c, True), unit(c, c, False)])
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(units[level] + 1):
                self.up.append(unit(c + skips.pop(), w, attend[level]))
                c = w
            if level or efficient:
                self.up.append(Upsample(c, c := widths[max(level - 1, 0)]))
        self.out = nn.Sequential(nn.GroupNorm(8, c), nn.SiLU(),
                                 nn.Conv2d(c, (out_channels or channels) * patch**2, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight), nn.init.zeros_(self.out[-1].bias)
        self.to(memory_format=torch.channels_last)             # convolutions run up to twice as fast
        if temporal:
            self.add_temporal(temporal)

    def add_temporal(self, make: Callable[[int, int], Temporal]) -> list[nn.Module]:
        """Fill the time slot of every unit; return the new layers."""
        units = [m for m in self.modules() if isinstance(m, Unit)]
        for u in units:
            u.time = make(u.channels, self.embed_time.dim)
        return [u.time for u in units]

    def add_stack(self, name: str, channels: int) -> None:
        """Give a trained network one more condition on its input channels; it starts out ignoring it."""
        old = self.conv_in
        c_in = old.in_channels + channels * self.patch**2
        new = nn.Conv2d(c_in, old.out_channels, 3, padding=1).to(old.weight)
        with torch.no_grad():
            new.weight.zero_()[:, :old.in_channels] = old.weight
            new.bias.copy_(old.bias)
        self.conv_in, self.doors.stack[name] = new.to(memory_format=torch.channels_last), channels

    def forward(self, x: Tensor, t: Tensor, frames: Frames | None = None, **cond: Tensor) -> Tensor:
        self.doors.check(cond)
        self.check(x, t)
        h = self.doors.stacked(x, cond)                        # [(B F), C + stacked, H, W]
        frames = (frames or Frames(len(h) // len(x))).check(len(h) // len(x))
        e = F.silu(self.doors.added(self.embed_time(t), cond))  # [B, D] or [B, F, D]
        tokens = self.doors.attended(cond)                     # [B, L, D]
        if tokens is not None:
            tokens = tokens.repeat_interleave(frames.count, dim=0)

        h = F.pixel_unshuffle(h, self.patch).contiguous(memory_format=torch.channels_last)
        skips = [h := self.conv_in(h)]
        for layer in self.down:
            skips.append(h := layer(h, e, frames, tokens) if isinstance(layer, Unit) else layer(h))
        for layer in self.middle:
            h = layer(h, e, frames, tokens)
        for layer in self.up:
            if isinstance(layer, Unit):
                h = layer(torch.cat([h, self.skip_scale * skips.pop()], dim=1), e, frames, tokens)
            else:
                h = layer(h)
        return unfold_frames(F.pixel_shuffle(self.out(h), self.patch), like=x)

    def check(self, x: Tensor, t: Tensor) -> None:
        check_input(x, t, self.channels, self.conv_in.weight)
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"height and width must be multiples of {self.factor}, "
                             f"got {tuple(x.shape[-2:])}")


def image_unet(channels: int = 1, out_channels: int | None = None, width: int = 32, **options) -> UNet:
    """The U-Net of the first image papers: patches of 2 x 2 pixels, attention at the two coarser levels."""
    return UNet(channels, out_channels, width, (1, 2, 2), attend=(False, True, True), patch=2, **options)


def unet_for(shape: tuple[int, ...], latents: bool, width: int, **options) -> UNet:
    """For images or frames of shape [C, H, W]: image_unet if they are pixels, latent_unet if they are not."""
    if latents:
        return latent_unet(shape[0], shape[1], width, **options)
    return image_unet(shape[0], width=width, **options)


def latent_unet(channels: int, side: int, width: int = 48, **options) -> UNet:
    """The same for latents of side x side, which were halved before: 8 x 8 leave room for two levels."""
    deep = side > 8
    return UNet(channels, width=width, multipliers=(1, 2, 2) if deep else (1, 2),
                attend=(False, True, True) if deep else (True, True), **options)
