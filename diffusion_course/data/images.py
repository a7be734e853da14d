"""Images in memory, and the batches that training takes from them."""
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import LENGTH, VOCABULARY, tokens

LARGEST = 1 << 26  # pixels; a small file may promise any number of them
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=generator)


@dataclass(frozen=True)
class Images:
    """A data set of images: pixels uint8 [N, C, H, W], labels int64 [N] or None, captions or None."""

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    captions: list[str] | None = None
    words: int = len(VOCABULARY)               # of which captions are made, and how many of them at most
    length: int = LENGTH

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one item."""
        return tuple(self.pixels.shape[1:])

    @cached_property
    def text(self) -> Tensor | None:
        """The captions as tokens [N, L]; None if there are none, or if tokens() refuses one."""
        try:
            return None if self.captions is None else tokens(self.captions, self.words, self.length)
        except ValueError:
            return None

    def __getitem__(self, index: Tensor | slice) -> dict[str, Tensor]:
        """At index, [B] or a slice: x float [B, C, H, W] in [-1, 1], and label [B] and text [B, L] if any."""
        if isinstance(index, Tensor) and (index.is_floating_point() or index.is_complex() or index.ndim > 1):
            raise IndexError(f"index must be a row of whole numbers, not {index.dtype} {tuple(index.shape)}")
        if isinstance(index, Tensor) and index.dtype != torch.bool and index.numel() and not (
                -len(self) <= index.min() and index.max() < len(self)):
            raise IndexError(f"index goes from {index.min()} to {index.max()}; there are {len(self)} items")
        batch = {"x": self.pixels[index].float() / 127.5 - 1}
        named = {"label": self.labels, "text": self.text}
        return batch | {name: values[index] for name, values in named.items() if values is not None}

    def batches(self, batch_size: int, seed: int = 0) -> "Batches":
        return Batches(self, batch_size, seed)


@dataclass(frozen=True)
class Batches:
    """Batch number n, for any n: a pure function of (seed, n).  Every epoch is a new order of all items."""

    data: Images
    batch_size: int
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.batch_size <= 1_000_000:
            raise ValueError(f"batch_size={self.batch_size} must be from 1 to a million")

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        place = torch.arange(n * self.batch_size, (n + 1) * self.batch_size)
        epochs = place // len(self.data)
        index = torch.cat([shuffled(len(self.data), self.seed, epoch)[place[epochs == epoch] % len(self.data)]
                           for epoch in epochs.unique().tolist()])
        return self.data[index]


def squared(x: Tensor, size: int) -> Tensor:
    """The centre of an image [C, H, W] of 0 ... 255, resized: uint8 [C, size, size]."""
    side = min(x.shape[1:])
    top, left = (x.shape[1] - side) // 2, (x.shape[2] - side) // 2
    x = x[:, top:top + side, left:left + side]
    return F.interpolate(x[None], (size, size), mode="bilinear", antialias=True)[0].round().byte()


def check_picture(path: Path) -> None:
    """A ValueError if a picture, or the first one of a GIF, is of more than 8 bits, or not to be unpacked."""
    import imageio.v3 as imageio

    found = imageio.improps(path, plugin="pillow", index=0)    # read from the header only
    if found.dtype not in ("uint8", "bool"):
        raise ValueError(f"its pixels are {found.dtype}; convert it to 8 bits")
    check_size(*found.shape[:2])


def check_size(height: int, width: int) -> None:
    if height * width > LARGEST:
        raise ValueError(f"{height} x {width} pixels are more than {LARGEST}; make it smaller")


def image_folder(folder: str | Path, size: int = 32, channels: int = 1) -> Images:
    """Every image below a folder, centre-cropped and resized to size x size; subfolders are the labels."""
    import imageio.v3 as imageio

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not files:
        raise ValueError(f"{folder}: no images in it ({', '.join(EXTENSIONS)})")
    classes = sorted({p.parent for p in files})
    pixels = []
    for path in files:
        try:
            check_picture(path)
            image = imageio.imread(path, plugin="pillow", mode="L" if channels == 1 else "RGB", rotate=True)
        except Exception as error:                             # every format raises its own kind
            raise ValueError(f"{path}: not a readable image ({error})") from error
        x = torch.from_numpy(image.copy()).float()
        x = x.reshape(*image.shape[:2], -1).permute(2, 0, 1)   # [C, H, W]
        pixels.append(squared(x, size))
    labels = torch.tensor([classes.index(p.parent) for p in files]) if len(classes) > 1 else None
    return Images(folder.resolve().name, torch.stack(pixels), labels)
