"""Moving pictures for notebooks: small GIFs that play anywhere, or MP4."""
import io
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data import media
from .figures import Picture, rasterized, styled

LARGEST = 500_000  # bytes; a notebook holds several animations and must stay below 3 MB


def animate(x: Tensor, alt: str, columns: int | None = None, fps: float = 8, zoom: float = 3,
            format: str = "gif") -> Picture:
    """Videos [N, C, F, H, W] in [-1, 1], playing side by side; format is gif or mp4."""
    if x.ndim != 5:
        raise ValueError(f"expected videos [N, C, F, H, W], got shape {tuple(x.shape)}; grid() shows images")
    return encoded(media.grid(x, columns, scale=3 if format == "mp4" else 1), alt, fps, zoom, format)


def denoising(states: Sequence[Tensor], guesses: Sequence[Tensor], alt: str, fps: float = 8,
              zoom: float = 2) -> Picture:
    """What x becomes on its way (left) beside what x0 is guessed to be (right); each [N, C, H, W] per time.

    The last state is held for a second and a half.
    """
    if len(states) != len(guesses):
        raise ValueError(f"{len(states)} states and {len(guesses)} guesses: each time needs one of both")
    left, right = (media.grid(torch.stack(list(x), dim=2)) for x in (states, guesses))
    gap = np.full((*left.shape[:2], 12, 3), 255, np.uint8)
    frames = np.concatenate([left, gap, right], axis=2) // 16 * 17      # 16 levels: noise is dear in a GIF
    return encoded(held(frames, fps), alt, fps, zoom)


def movie(draw: Callable, times: Sequence, alt: str, fps: float = 10, width: float = 4.0,
          height: float = 4.0) -> Picture:
    """A matplotlib animation: draw(axes, time) draws one frame on empty axes; sizes are inches."""
    frames = []
    for time in times:
        with styled(width, height, **{"figure.dpi": 80}) as fig:
            draw(fig.subplots(), time)
            frames.append(rasterized(fig))
    return encoded(held(np.stack(frames), fps), alt, fps)


def held(frames: np.ndarray, fps: float, seconds: float = 1.5) -> np.ndarray:
    """Repeat the last frame, so that one sees where it ended."""
    media.check_fps(fps)
    return np.concatenate([frames, frames[-1:].repeat(round(seconds * fps), axis=0)])


def encoded(frames: np.ndarray, alt: str, fps: float, zoom: float = 1, format: str = "gif") -> Picture:
    """uint8 frames [F, H, W, 3] as an animation that repeats for ever."""
    import imageio.v3 as imageio

    if format not in ("gif", "mp4"):
        raise ValueError(f"format={format!r} must be gif or mp4")
    media.check_fps(fps)
    out = io.BytesIO()
    if format == "gif":
        imageio.imwrite(out, frames, extension=".gif", duration=1000 / fps, loop=0)
    else:
        imageio.imwrite(out, frames, extension=".mp4", plugin="FFMPEG", fps=fps, codec="libx264",
                        macro_block_size=2)
    if len(out.getvalue()) > LARGEST:
        warnings.warn(f"this animation takes {len(out.getvalue()) / 1e6:.1f} MB of the notebook; show fewer "
                      "frames or samples", stacklevel=3)
    return Picture(out.getvalue(), alt, format, zoom)
