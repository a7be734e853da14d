"""Write samples to files: grids, animations, arrays."""
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .files import whole


def grid(x: Tensor, columns: int | None = None, scale: int = 1) -> np.ndarray:
    """Images [N, C, H, W] or videos [N, C, F, H, W] in [-1, 1] -> uint8 [(F,) H', W', 3], one pixel apart."""
    if x.ndim not in (4, 5) or x.shape[1] not in (1, 3) or not x.numel() or x.is_complex():
        raise ValueError(f"x of shape {tuple(x.shape)} must be images [N, 1 or 3, H, W] or videos "
                         "[N, 1 or 3, F, H, W], one at least")
    if columns is not None and columns < 1:
        raise ValueError(f"columns={columns} must be at least 1")
    columns = columns or int(np.ceil(len(x) ** 0.5))
    x = x.detach().float().cpu().clamp(-1, 1)
    x = F.pad(x, (1, 1, 1, 1), value=-0.5)
    empty = -len(x) % columns
    if empty:
        x = F.pad(x, (0, 0) * (x.ndim - 1) + (0, empty), value=-0.5)
    video = x if x.ndim == 5 else x[:, :, None]
    out = rearrange(video, "(r k) c f h w -> f (r h) (k w) c", k=columns)
    out = ((out + 1) * 127.5).round().byte().numpy()
    out = np.repeat(out, 3, axis=-1) if out.shape[-1] == 1 else out
    out = out.repeat(scale, axis=1).repeat(scale, axis=2)
    return out if x.ndim == 5 else out[0]


def check_format(path: str | Path, video: bool) -> Path:
    """The path, if samples of this kind can be written to it."""
    path = Path(path)
    allowed = (".gif", ".mp4", ".npy") if video else (".png", ".npy")
    if path.suffix.lower() not in allowed:
        raise ValueError(f"{path}: {'videos' if video else 'images'} can be written as {', '.join(allowed)}")
    return path


def check_fps(fps: float) -> None:
    """A ValueError unless frames can follow one another as fast."""
    if not 0.01 <= fps <= 1000:
        raise ValueError(f"fps={fps} must be from 0.01 to 1000")


def write(path: str | Path, x: Tensor, fps: int = 8, scale: int = 2) -> Path:
    """Samples in [-1, 1] to a .png grid of images, a .gif or .mp4 grid of videos, or as numbers to .npy."""
    import imageio.v3 as imageio

    path = check_format(path, video=x.ndim == 5)
    check_fps(fps)
    suffix = path.suffix.lower()
    with whole(path) as part:
        if suffix == ".npy":
            np.save(part, x.detach().cpu().numpy())
        elif suffix == ".png":
            imageio.imwrite(part, grid(x, scale=scale))
        elif suffix == ".gif":
            imageio.imwrite(part, grid(x, scale=scale), duration=1000 / fps, loop=0)
        else:
            imageio.imwrite(part, grid(x, scale=scale), plugin="FFMPEG", fps=fps, codec="libx264",
                            macro_block_size=2)
            imageio.immeta(part, plugin="FFMPEG")              # ffmpeg says nothing of a disk that is full
    return path
