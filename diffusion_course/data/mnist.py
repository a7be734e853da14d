"""MNIST (LeCun, Cortes & Burges), and handwritten digits that are there without a network.

The four official files are looked for in DIFFUSION_COURSE_DATA, then in the cache, then fetched.  Where they
cannot be had, the 1,797 digits that scikit-learn ships stand in, and one line says so.
"""
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import Actor, caption
from .download import DownloadError, cache_folder, decompressed, fetch, given_folder
from .images import Images, image_folder

SAID: set[str] = set()
MIRRORS = ["https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"]
FILES = {  # (split, kind): name and MD5 of the decompressed bytes
    ("train", "images"): ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
    ("train", "labels"): ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
    ("test", "images"): ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
    ("test", "labels"): ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
}


def read_idx(path: str | Path, ndim: int) -> Tensor:
    """An IDX file of unsigned bytes with ndim axes, gzipped or not; a ValueError names path and fault."""
    path = Path(path)
    data = decompressed(path)
    if len(data) < 4 + 4 * ndim:
        raise ValueError(f"{path}: {len(data)} bytes are too few for an IDX header of {ndim} axes")
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes (it starts with {data[:4]!r})")
    if data[3] != ndim:
        raise ValueError(f"{path}: has {data[3]} axes, expected {ndim}; images and labels exchanged?")
    shape = np.frombuffer(data, ">u4", ndim, offset=4).tolist()
    expected, found = int(np.prod(shape, dtype=object)), len(data) - 4 - 4 * ndim
    if found != expected:
        fault = "truncated" if found < expected else "too long"
        raise ValueError(f"{path}: {fault}; its header promises {expected} bytes of shape {shape}, "
                         f"it holds {found}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def find(name: str) -> Path | None:
    """The file in DIFFUSION_COURSE_DATA or the cache, gzipped or not."""
    for folder in filter(None, (given_folder(), cache_folder())):
        for sub in ("mnist", ".", "MNIST/raw"):
            for suffix in (".gz", ""):
                if (path := folder / sub / (name + suffix)).is_file():
                    return path
    return None


def mnist(split: str = "train", size: int = 32) -> Images:
    """The official MNIST: 60,000 training or 10,000 test images, padded from 28x28 to size x size.

    Raises DownloadError where it is neither at hand nor to be had, ValueError for a broken file.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be train or test")
    parts = {}
    for kind, ndim in (("images", 3), ("labels", 1)):
        name, md5 = FILES[split, kind]
        path = find(name) or fetch([mirror + name + ".gz" for mirror in MIRRORS],
                                   cache_folder() / "mnist" / (name + ".gz"), md5)
        parts[kind] = read_idx(path, ndim)
        if ndim == 3 and tuple(parts[kind].shape[1:]) != (28, 28):
            raise ValueError(f"{path}: images must be 28 x 28, got {tuple(parts[kind].shape[1:])}")
        if len(parts[kind]) != len(parts["images"]):
            raise ValueError(f"{path}: {len(parts[kind])} labels for {len(parts['images'])} images")
    if len(parts["labels"]) and parts["labels"].max() > 9:
        raise ValueError(f"{path}: a label is {parts['labels'].max()}, expected 0 ... 9")
    return Images("mnist", resized(parts["images"][:, None], size), parts["labels"].long(),
                  said_of(parts["labels"]))


def said_of(labels: Tensor) -> list[str]:
    """The captions of labels [N], "a zero" to "a nine"."""
    names = [caption([Actor(digit)]) for digit in range(10)]
    return [names[label] for label in labels.tolist()]


def resized(pixels: Tensor, size: int) -> Tensor:
    """uint8 [N, 1, 28, 28], padded with black if size is larger, averaged down if it is smaller."""
    if not 1 <= size <= 1024:
        raise ValueError(f"size={size} must be from 1 to 1024 pixels")
    if size >= 28:
        before = (size - 28) // 2
        return F.pad(pixels, (before, size - 28 - before, before, size - 28 - before))
    return torch.cat([F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True).round().byte()
                      for x in pixels.split(10_000)])


def builtin_digits(split: str = "train", size: int = 32, copies: int = 8) -> Images:
    """scikit-learn's 8 x 8 digits, enlarged, sharpened, warped: 1,500 x copies to train, 297 to test."""
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be train or test")
    if copies < 1:
        raise ValueError(f"copies={copies} must be at least 1")
    bunch = load_digits()
    keep = slice(0, 1500) if split == "train" else slice(1500, None)
    x = torch.from_numpy(bunch.images[keep]).float()[:, None] / 16                     # [N, 1, 8, 8]
    label = torch.from_numpy(bunch.target[keep]).long()
    copies = copies if split == "train" else 1
    x, label = x.repeat(copies, 1, 1, 1), label.repeat(copies)
    x = F.interpolate(x, (22, 22), mode="bicubic").clamp(0, 1)
    x = F.pad(((x - 0.35) / 0.35).clamp(0, 1), (3, 3, 3, 3))   # strokes as sharp as MNIST's
    generator = torch.Generator().manual_seed(0)
    u = lambda scale: scale * (2 * torch.rand(len(x), generator=generator) - 1)
    angle, zoom, slant, dx, dy = u(0.15), 1 + u(0.08), u(0.12), u(0.08), u(0.08)
    rows = [angle.cos() * zoom, slant - angle.sin(), dx, angle.sin(), angle.cos() * zoom, dy]
    grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    return Images("digits", resized((x * 255).round().byte(), size), label, said_of(label))


def say_once(what: str, why: str) -> None:
    """On stderr, unless this process has said it before."""
    if what not in SAID:
        print(f"{what} ({why})", file=sys.stderr)
        SAID.add(what)


def load(name: str | None = None, split: str = "train", size: int = 32, channels: int = 1) -> Images:
    """mnist, digits, or a folder of images; None is mnist if it can be had, else digits, and says so."""
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 1 or 3")
    if name in (None, "mnist"):
        try:
            data = mnist(split, size)
        except DownloadError as error:
            if name is not None:
                raise
            say_once("MNIST is not here and could not be fetched; using scikit-learn's 1,797 digits instead.",
                     str(error).splitlines()[0].rstrip(":"))
            data = builtin_digits(split, size)
    elif name == "digits":
        data = builtin_digits(split, size)
    elif Path(name).is_dir():
        return image_folder(name, size, channels)
    else:
        raise ValueError(f"data={name!r} is neither mnist, nor digits, nor a folder")
    return data if channels == 1 else replace(data, pixels=data.pixels.expand(-1, 3, -1, -1))
