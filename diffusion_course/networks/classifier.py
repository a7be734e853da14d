"""A classifier that knows noisy images, to guide a denoiser."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.embeddings import ScalarEmbedding
from .unet import ResBlock


class NoisyClassifier(nn.Module):
    """x_t [B, C, H, W], t [B] -> logits [B, classes]: the way down of a U-Net.

    Dhariwal & Nichol 2021, sec. 4; their attention pooling is a mean over the quarters of the image here.
    """

    def __init__(self, classes: int = 10, channels: int = 1, width: int = 16,
                 multipliers: tuple[int, ...] = (1, 2, 4), patch: int = 2):
        super().__init__()
        self.channels, self.patch, dim = channels, patch, 4 * width
        widths = [width * m for m in multipliers]
        self.embed_time = ScalarEmbedding(dim)
        self.conv_in = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResBlock(a, b, dim) for a, b in zip([width, *widths], widths))
        self.norm, self.head = nn.GroupNorm(8, widths[-1]), nn.Linear(4 * widths[-1], classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"expected images [B, {self.channels}, H, W], got shape {tuple(x.shape)}")
        e = F.silu(self.embed_time(t))                                         # [B, D]
        h = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = self.conv_in(h)                                                    # [B, width, H/2, W/2]
        for block in self.blocks:
            h = F.avg_pool2d(block(h, e, frames=1), 2)
        h = F.adaptive_avg_pool2d(F.silu(self.norm(h)), 2)                     # [B, C, 2, 2]
        return self.head(h.flatten(1))
