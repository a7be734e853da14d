"""Autoencoders: pixels to a small, smooth latent and back; and the judge that keeps them sharp.

A video is encoded frame by frame, and decoded so, too, unless the time slots of the decoder are filled.  The
first halving of the resolution loses nothing: patches of 2 x 2 pixels become channels.
"""
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor, nn

from ..layers.spacetime import Frames, Temporal, check_dtype, fold_frames, unfold_frames


class Residual(nn.Module):
    """Two convolutions round a residual, a look across time: h [(B F), C, H, W] -> [(B F), c_out, H, W]."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.body = nn.Sequential(nn.GroupNorm(8, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1),
                                  nn.GroupNorm(8, c_out), nn.SiLU(), nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.time, self.channels = Temporal(), c_out           # a free slot; see Autoencoder.add_temporal

    def forward(self, h: Tensor, frames: Frames | None = None) -> Tensor:
        return self.time(self.skip(h) + self.body(h), frames or Frames(1))


def widths(width: int, factor: int) -> list[int]:
    """Of the levels at 1/2, 1/4, ... 1/factor of the resolution."""
    if factor < 2 or factor & (factor - 1):
        raise ValueError(f"factor={factor} must be a power of two, 2 at least")
    if width < 8 or width % 8:
        raise ValueError(f"width={width} must be a multiple of 8 (the groups of its normalisation)")
    return [width * min(2**level, 4) for level in range(factor.bit_length() - 1)]


def encoder(channels: int, out: int, width: int, factor: int) -> nn.Sequential:
    """[B, channels, H, W] -> [B, out, H / factor, W / factor]."""
    first, *others = widths(width, factor)
    layers = [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, first, 3, padding=1), Residual(first, first)]
    for c_in, c in zip([first, *others], others):
        layers += [nn.Conv2d(c_in, c_in, 3, stride=2, padding=1), Residual(c_in, c)]
    last = [first, *others][-1]
    return nn.Sequential(*layers, Residual(last, last), nn.GroupNorm(8, last), nn.SiLU(),
                         nn.Conv2d(last, out, 3, padding=1)).to(memory_format=torch.channels_last)


def decoder(latent: int, channels: int, width: int, factor: int) -> nn.Sequential:
    """[B, latent, H, W] -> [B, channels, H factor, W factor]."""
    first, *others = reversed(widths(width, factor))
    layers = [nn.Conv2d(latent, first, 3, padding=1), Residual(first, first), Residual(first, first)]
    for c_in, c in zip([first, *others], others):
        layers += [nn.Upsample(scale_factor=2.0), Residual(c_in, c)]
    last = [first, *others][-1]
    return nn.Sequential(*layers, nn.GroupNorm(8, last), nn.SiLU(),
                         nn.Conv2d(last, 4 * channels, 3, padding=1),
                         nn.PixelShuffle(2)).to(memory_format=torch.channels_last)


class Autoencoder(nn.Module):
    """Images [B, C, H, W] or videos <-> latents [B, latent, (F,) H / factor, W / factor] of unit scale.

    The variational autoencoder of latent diffusion (Rombach et al. sec. 3.1): the encoder says a mean and a
    log-variance.  `std`, measured in training, is what latents are divided by, as noise schedules expect.
    """

    def __init__(self, channels: int = 1, latent: int = 4, width: int = 32, factor: int = 4):
        super().__init__()
        self.channels, self.latent, self.factor = channels, latent, factor
        self.encoder = encoder(channels, 2 * latent, width, factor)
        self.decoder = decoder(latent, channels, width, factor)
        self.register_buffer("std", torch.ones(()))

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents of images [B, C, H, W], not yet divided by std."""
        check(frames, self.channels, self.factor, self.encoder)
        mean, logvar = self.encoder(frames).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    @torch.no_grad()
    def encode(self, x: Tensor, randn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Latents of unit scale, without gradient: the mean, or, with randn (torch.randn_like), a sample."""
        mean, logvar = (unfold_frames(part, like=x) for part in self.moments(fold_frames(x)[0]))
        return (mean if randn is None else mean + (logvar / 2).exp() * randn(mean)) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """Images or videos of latents of unit scale."""
        h, frames = fold_frames(z)                             # [(B F), latent, H / factor, W / factor]
        h = h * self.std
        for layer in self.decoder:
            h = layer(h, Frames(frames)) if isinstance(layer, Residual) else layer(h)
        return unfold_frames(h, like=z)

    def add_temporal(self, make: Callable[[int], Temporal]) -> list[nn.Module]:
        """Fill the time slots of the decoder; return the new layers."""
        blocks = [layer for layer in self.decoder if isinstance(layer, Residual)]
        for block in blocks:
            block.time = make(block.channels)
        return [block.time for block in blocks]


class Pixels(nn.Module):
    """The autoencoder that does nothing, so that diffusion of pixels is latent diffusion, too."""

    def encode(self, x: Tensor, randn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


def check(frames: Tensor, channels: int, factor: int, encoder: nn.Module) -> None:
    check_dtype(frames, next(encoder.parameters()))
    if (frames.ndim != 4 or frames.shape[1] != channels or any(side % factor for side in frames.shape[2:])
            or not frames.numel()):
        raise ValueError(f"expected {channels} channels, height and width multiples of {factor}; images, or "
                         f"frames of videos, are {tuple(frames.shape)}")


class PatchDiscriminator(nn.Module):
    """Says of every patch of images [B, C, H, W] whether it is real: logits [B, 1, H / 4, W / 4], and how.

    With video=True, of every patch of videos [B, C, F, H, W], F >= 4: logits [B, 1, F / 4, H / 4, W / 4].
    Returns what each of its layers sees, the logits last.
    """

    def __init__(self, channels: int = 1, width: int = 32, video: bool = False):
        super().__init__()
        conv, layout = ((nn.Conv3d, torch.channels_last_3d) if video else (nn.Conv2d, torch.channels_last))
        self.layers = nn.ModuleList([
            nn.Sequential(conv(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
            nn.Sequential(conv(width, 2 * width, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * width),
                          nn.LeakyReLU(0.2)),
            conv(2 * width, 1, 3, padding=1)]).to(memory_format=layout)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(accumulate(self.layers, lambda h, layer: layer(h), initial=x))[1:]
