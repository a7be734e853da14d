"""Tokenizers: images and videos as a grid of whole numbers, which name the entries of a learned codebook."""
import torch
from einops import rearrange
from torch import Tensor, nn

from ..layers.spacetime import fold_frames
from .autoencoder import check, decoder, encoder


class Codebook(nn.Module):
    """The nearest of `size` codes for every vector: z [B, D, H, W] -> z_q like z, index [B, H, W].

    Codes follow the mean of what chose them (van den Oord et al. 2017, app. A.1).  One that hardly anything
    chooses moves to where codes fit worst.  With several processes, the first one's batch decides.

    use   running average of how many vectors chose each code, as a share of all
    """

    def __init__(self, size: int, dim: int, decay: float = 0.97):
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.randn(size, dim))
        self.register_buffer("sums", torch.zeros(size, dim))   # of what chose a code; its mean is sums / use
        self.register_buffer("use", torch.zeros(size))

    def nearest(self, z: Tensor) -> Tensor:
        """index [B, H, W] of the codes nearest to z [B, D, H, W]."""
        flat = rearrange(z.float(), "b d h w -> (b h w) d")
        with torch.autocast(z.device.type, enabled=False):     # half precision confuses neighbours
            distance = self.codes.square().sum(1) - 2 * flat @ self.codes.T    # and |z|^2, the same for all
        return rearrange(distance.argmin(1), "(b h w) -> b h w", b=len(z), h=z.shape[2])

    def look_up(self, index: Tensor) -> Tensor:
        """z_q [B, D, H, W] of index [B, H, W]."""
        return rearrange(self.codes[index], "b h w d -> b d h w")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        index = self.nearest(z.detach())
        z_q = self.look_up(index)
        if self.training:
            self.follow(rearrange(z.detach(), "b d h w -> (b h w) d"), index.flatten(), z_q)
        return z + (z_q - z).detach(), index                   # straight through: z gets the gradient of z_q

    @torch.no_grad()
    def follow(self, z: Tensor, index: Tensor, z_q: Tensor) -> None:
        """Move each code to the running mean of those of z [N, D] that chose it; revive the dead."""
        share = z.new_full((len(z),), 1 / len(z))
        self.use.lerp_(torch.zeros_like(self.use).index_add_(0, index, share), 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, index, z / len(z)), 1 - self.decay)
        alive = self.use > 0.02 / len(self.codes)
        error = (z - rearrange(z_q, "b d h w -> (b h w) d")).square().sum(1)
        worst = z[error.topk(min(len(z), len(self.codes))).indices]            # [K, D], if there are so many
        fresh = worst[(~alive).cumsum(0).sub(1).clamp(0, len(worst) - 1)]      # one for each that is dead
        even = 1 / len(self.codes)                             # a revived code starts with an average share
        self.sums.copy_(torch.where(alive[:, None], self.sums, even * fresh))
        self.use.copy_(torch.where(alive, self.use, even))
        self.codes.copy_(self.sums / self.use[:, None])

    def perplexity(self) -> Tensor:
        """How many codes would be in use, were all used equally: exp of the entropy of their use."""
        p = self.use / self.use.sum().clamp_min(1e-9)
        return torch.special.entr(p).sum().exp()


class VQAutoencoder(nn.Module):
    """Images [B, C, H, W] or videos <-> tokens int64 [B, (F,) H / factor, W / factor], less than `size`."""

    def __init__(self, channels: int = 1, latent: int = 8, width: int = 32, factor: int = 4, size: int = 256):
        super().__init__()
        self.channels, self.latent, self.factor = channels, latent, factor
        self.encoder = encoder(channels, latent, width, factor)
        self.decoder = decoder(latent, channels, width, factor)
        self.codebook = Codebook(size, latent)

    def encode(self, x: Tensor) -> Tensor:
        """Tokens of images or videos."""
        frames, count = fold_frames(x)
        check(frames, self.channels, self.factor, self.encoder)
        index = self.codebook.nearest(self.encoder(frames))
        return index if x.ndim == 4 else rearrange(index, "(b f) h w -> b f h w", f=count)

    def decode(self, index: Tensor) -> Tensor:
        """Images of tokens [B, h, w], or videos of tokens [B, F, h, w]."""
        size = len(self.codebook.codes)
        if index.dtype != torch.int64 or index.ndim not in (3, 4) or not index.numel() or not (
                0 <= index.min() and index.max() < size):
            raise ValueError(f"tokens must be int64 [B, (F,) h, w] from 0 to {size - 1}, got {index.dtype} "
                             f"{tuple(index.shape)}")
        frames = index if index.ndim == 3 else rearrange(index, "b f h w -> (b f) h w")
        x = self.decoder(self.codebook.look_up(frames))
        return x if index.ndim == 3 else rearrange(x, "(b f) c h w -> b c f h w", b=len(index))
