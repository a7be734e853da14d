"""Ways to spoil videos by a known amount: a metric must notice, before it may judge a model.

Videos [N, C, F, H, W] in [-1, 1] come back in the same shape; noise and blur take images [N, C, H, W], too.
Strength 0 changes nothing.  Moving MNIST may as well run backwards: `reverse` a good metric must NOT notice.
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def noise(x: Tensor, std: float, seed: int = 0) -> Tensor:
    """Gaussian noise added to every pixel, not clamped; std in the units of x, where black to white is 2."""
    if std < 0:
        raise ValueError(f"std={std} must not be negative")
    generator = torch.Generator().manual_seed(seed)
    return x + std * torch.randn(x.shape, generator=generator).to(x)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Every frame convolved with a Gaussian of sigma pixels; beyond the border it is black."""
    if not 0 <= sigma <= 1000:
        raise ValueError(f"sigma={sigma} must be from 0 to 1000 pixels")
    if sigma == 0:
        return x
    radius = int(4 * sigma + 0.5)
    kernel = (-torch.arange(-radius, radius + 1).to(x).square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    ink = x.reshape(-1, 1, *x.shape[-2:]) + 1                  # black is 0, as the padding is
    ink = F.conv2d(ink, kernel[None, None, :, None], padding=(radius, 0))
    return (F.conv2d(ink, kernel[None, None, None], padding=(0, radius)) - 1).reshape(x.shape)


def length(x: Tensor) -> int:
    """How many frames videos have."""
    if x.ndim != 5:
        raise ValueError(f"x of shape {tuple(x.shape)} must be videos [N, C, F, H, W]")
    return x.shape[2]


def reordered(x: Tensor, index: Tensor) -> Tensor:
    """The frames at index, [F] for all videos or [N, F] for each of its own."""
    clip = torch.arange(len(x))[:, None]
    return x.transpose(1, 2)[clip, index.expand(len(x), -1)].transpose(1, 2)


def share(x: Tensor, fraction: float) -> int:
    """How many frames that is."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} must be between 0 and 1")
    return round(fraction * length(x))


def shuffle(x: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """A random fraction of each video's frames change places; none of these stays where it was."""
    generator, count = torch.Generator().manual_seed(seed), length(x)
    chosen = torch.rand(len(x), count, generator=generator).argsort(1)[:, :share(x, fraction)]
    index = torch.arange(count).repeat(len(x), 1)              # chosen frames go round in a circle
    return reordered(x, index.scatter(1, chosen, chosen.roll(1, 1)))


def freeze(x: Tensor, fraction: float) -> Tensor:
    """The last fraction of the frames are the one before them; at 1 all are the first."""
    last = max(length(x) - share(x, fraction), 1) - 1
    return reordered(x, torch.arange(length(x)).clamp_max(last))


def reverse(x: Tensor) -> Tensor:
    """From the last frame to the first."""
    return reordered(x, torch.arange(length(x)).flip(0))


def repeat(x: Tensor) -> Tensor:
    """Every other frame, each twice: as fast on the whole, at half the frame rate."""
    return reordered(x, torch.arange(length(x)) // 2 * 2)


def swap(x: Tensor) -> Tensor:
    """Frames exchanged in pairs: 1, 0, 3, 2 ..., and an odd last one where it was."""
    pairs = torch.arange(length(x)) ^ 1
    return reordered(x, pairs.where(pairs < length(x), pairs - 1))


CORRUPTIONS = {  # name: the function and strengths at which a metric must rise steadily
    "noise": (noise, (0, 0.05, 0.1, 0.2, 0.4)),                # in units of x
    "blur": (blur, (0, 0.5, 1, 2)),                            # pixels
    "shuffle": (shuffle, (0, 0.25, 0.5, 1)),                   # of the frames
    "freeze": (freeze, (0, 0.25, 0.5, 1)),
}
