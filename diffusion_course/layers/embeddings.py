"""Turn numbers into vectors."""
import math

import torch
from torch import Tensor, nn


def sinusoidal(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """Cosines, then sines, of t at geometrically spaced frequencies: [...] -> [..., dim]."""
    angles = rotary_angles(t, dim, max_period)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary_angles(index: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """By what angles a head of width dim turns its queries and keys at a place: [...] -> [..., dim / 2].

    RoFormer (Su et al. 2021, arXiv:2104.09864, eq. 15).  Scores then depend on the distance of places only.
    """
    freqs = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=index.device) / (dim // 2))
    return index[..., None].float() * freqs


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of numbers (x_i, x_{i + d / 2}) of x [..., d] by its angle [..., d / 2]."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class ScalarEmbedding(nn.Module):
    """Embed a time, a frame rate, a noise level: [...] -> [..., dim].

    Sinusoids were designed for integers 0 ... 1000 (DDPM), so times in [0, 1] are scaled to that.
    """

    def __init__(self, dim: int, scale: float = 1000.0):
        super().__init__()
        self.dim, self.scale = dim, scale
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoidal(t * self.scale, self.dim))


class LabelToken(nn.Embedding):
    """A label [B] as a token [B, 1, dim], for the second door; label = classes is the null."""

    def __init__(self, classes: int, dim: int):
        super().__init__(classes + 1, dim)
        self.dim = dim

    def forward(self, label: Tensor) -> Tensor:
        return super().forward(label)[:, None]
