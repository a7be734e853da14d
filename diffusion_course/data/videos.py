"""Videos from files: folders of GIFs, films and numbered frames, and the original Moving MNIST."""
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .download import DownloadError, cache_folder, fetch, given_folder
from .images import EXTENSIONS, LARGEST, Images, check_picture, check_size, squared

FILMS = (".mp4", ".mov", ".avi", ".webm")                      # ffmpeg reads these, Pillow the rest
GRAY = torch.tensor([0.299, 0.587, 0.114])                     # as bright as red, green and blue seem
URL = "http://www.cs.toronto.edu/~nitish/unsupervised_video/mnist_test_seq.npy"
SHA256 = "c2a3e8d3939c001ab77bf543f130157424efa486bb4d0974d2cebb773b13f8b3"    # as TensorFlow Datasets has it
SHAPE = (20, 10_000, 64, 64)


@dataclass(frozen=True)
class Videos(Images):
    """A data set of clips: pixels uint8 [N, C, F, H, W], labels int64 [N] or None, captions or None."""

    def __getitem__(self, index: Tensor | slice) -> dict[str, Tensor]:
        """The clips at index: x float [B, C, F, H, W] in [-1, 1], and label [B] and text [B, L] if any."""
        batch = super().__getitem__(index)
        return batch | {"x": batch["x"].contiguous()}          # pixels may be a file with time first


def video_folder(folder: str | Path, size: int = 32, frames: int = 16, channels: int = 1, stride: int = 1,
                 short: str = "loop") -> Videos:
    """Every GIF, film (.mp4, .mov, .avi, .webm) and folder of numbered frames below a folder, as clips.

    A clip is every stride-th frame from the first, its centre resized to size x size; what is transparent is
    black.  A short one begins again (loop) or rests on its last frame (pad).  Subfolders are the labels.  The
    caption of clip.gif, or of a folder of frames named clip, is in clip.txt.
    """
    from tqdm import tqdm

    for name, value in {"size": size, "frames": frames, "stride": stride}.items():
        if not 1 <= value <= 100_000:
            raise ValueError(f"{name}={value} must be from 1 to 100,000")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 1 or 3")
    if short not in ("loop", "pad"):
        raise ValueError(f"short={short!r} must be loop or pad")
    folder = Path(folder).resolve()
    clips, pixels = clips_in(folder), []
    for files in tqdm(clips.values(), folder.name, leave=False, disable=len(clips) <= 50):
        x = pictures_of(files, frames, stride, size, channels)
        place = [i % len(x) if short == "loop" else min(i, len(x) - 1) for i in range(frames)]
        pixels.append(torch.stack([x[i] for i in place], dim=1))               # [C, F, H, W]
    classes = sorted({path.parent for path in clips})
    labels = torch.tensor([classes.index(path.parent) for path in clips]) if len(classes) > 1 else None
    return Videos(folder.name, torch.stack(pixels), labels, captions_of(list(clips)))


def film(path: str | Path, size: int = 32, channels: int = 1, most: int = 16) -> Tensor:
    """The first frames, at most so many, of a picture, a GIF or a film: [C, F, size, size] in [-1, 1]."""
    x = pictures_of([Path(path)], most, 1, size, channels)
    return torch.stack(x, dim=1).float() / 127.5 - 1


def natural(path: Path) -> tuple:
    """A key that sorts 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))], str(path)


def clips_in(folder: Path) -> dict[Path, list[Path]]:
    """The files of each clip below a folder, or in it: itself, or its frames; all in natural order."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of videos")
    clips = {}
    for path in sorted(folder.rglob("*"), key=natural):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            if path.suffix.lower() in (".gif", *FILMS):
                clips[path] = [path]
            elif path.suffix.lower() in EXTENSIONS:
                clips.setdefault(path.parent, []).append(path)
                if not re.search(r"\d", path.stem):
                    raise ValueError(f"{path}: frames have numbers in their names, like 12.png; move it away")
    if not clips:
        raise ValueError(f"{folder}: no videos in it (.gif, {', '.join(FILMS)}, folders of numbered frames)")
    above = {parent for path in clips for parent in path.parents}
    for path in clips.keys() & above:
        raise ValueError(f"{clips[path][0]}: an image among clips; frames need a folder of their own")
    return {path: clips[path] for path in sorted(clips, key=natural)}


def pictures_of(files: list[Path], count: int, stride: int, size: int, channels: int) -> list[Tensor]:
    """Every stride-th picture, count at most, of a film or of files that have one each; all of one size.

    Each is made small as it comes: the large ones of a clip may not fit into memory.
    """
    if len(files) == 1:
        chosen = islice(pictures(files[0]), 0, (count - 1) * stride + 1, stride)
        of = repeat(files[0])
    else:
        of = files[::stride][:count]
        chosen = (next(pictures(file)) for file in of)
    found, first = [], None
    for file, picture in zip(of, chosen):
        if len(found) * picture.size > 16 * LARGEST:
            raise ValueError(f"{file}: more than {4 * LARGEST} pixels in all; make it smaller or shorter")
        first = first or picture.shape[:2]
        if picture.shape[:2] != first:
            raise ValueError(f"{file}: its height and width are {picture.shape[:2]}, those of "
                             f"{files[0].name} {first}; the frames of a clip need one size")
        found.append(prepared(picture, size, channels))
    if not found:
        raise ValueError(f"{files[0]}: no frames in it; get it again or remove it")
    return found


def pictures(path: Path) -> Iterator[np.ndarray]:
    """The pictures in a file, uint8 [H, W, 3 or 4], one after the other; a ValueError names a bad file."""
    import imageio.v3 as imageio
    from imageio_ffmpeg import read_frames
    from PIL import Image, ImageOps, ImageSequence

    try:
        if path.suffix.lower() in FILMS:
            kind = ["-f", kind_of_film(path)]                  # else ffmpeg may follow a list to other files
            if cut_off(path):
                raise ValueError("truncated; get it again")
            with closing(read_frames(path, input_params=kind)) as found:
                check_size(*next(found)["size"])
            yield from imageio.imiter(path, plugin="FFMPEG", input_params=kind)
        else:
            check_picture(path)
            with Image.open(path) as image:                    # imageio fails where palettes differ
                for frame in ImageSequence.Iterator(image):
                    yield np.asarray(ImageOps.exif_transpose(frame).convert("RGBA"))
    except Exception as error:                                 # every format raises its own kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable video or frame ({reason})") from error


def kind_of_film(path: Path) -> str:
    """How ffmpeg is to read it, by what it begins with: an AVI, a WebM, or boxes as of an MP4."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        return "avi"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    raise ValueError("it begins like no film")


def cut_off(path: Path) -> bool:
    """Whether an MP4 ends before its pixels do: ffmpeg would show what there is and say nothing."""
    place = 0
    with path.open("rb") as file:
        while len(head := file.read(16)) == 16:                # a box begins with its length and its kind
            length = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
            if head[4:8] == b"mdat" or length < 8:
                return place + length > path.stat().st_size
            place += length
            file.seek(place)
    return False


def prepared(picture: np.ndarray, size: int, channels: int) -> Tensor:
    """The centre of a picture [H, W, 3 or 4], on black, gray if C is 1: uint8 [C, size, size]."""
    # strips that a cache holds: whole, a large picture takes gigabytes as floats, and twice as long
    strips = [on_black(picture[top:top + 256], channels) for top in range(0, len(picture), 256)]
    return squared(torch.cat(strips, dim=1), size)


def on_black(picture: np.ndarray, channels: int) -> Tensor:
    """A picture's pixels [H, W, 3 or 4] as float [C, H, W]."""
    x = torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)
    x = x[:3] * (x[3:] / 255 if len(x) == 4 else 1)
    return torch.tensordot(GRAY, x, 1)[None] if channels == 1 else x


def captions_of(clips: list[Path]) -> list[str] | None:
    """What the .txt files beside the clips say; None if there are none."""
    files = [path.with_name((path.name if path.is_dir() else path.stem) + ".txt") for path in clips]
    captions = []
    for file in files if any(file.is_file() for file in files) else ():
        try:
            if file.exists() and not file.is_file() or file.is_file() and file.stat().st_size > 100_000:
                raise OSError("it is no file of a caption's length")
            captions.append(" ".join(file.read_text(encoding="utf-8-sig").split()))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: no readable caption ({error}); all clips need one, or none") from error
        if not captions[-1]:
            raise ValueError(f"{file}: an empty caption; all clips need one, or none")
    return captions or None


def moving_mnist_file(path: str | Path | None = None, download: bool = False) -> Videos:
    """The original Moving MNIST (Srivastava et al., 2015): 10,000 clips [1, 20, 64, 64], mapped, not read.

    It is looked for in DIFFUSION_COURSE_DATA, then in the cache, and fetched (819 MB) only if `download`.  A
    path may name a file of other sequences: uint8, time first [F, N, H, W], no more frames than clips.
    """
    expected = "[F, N, H, W]" if path else SHAPE
    path = Path(path) if path else sequences(download)
    try:
        array = np.lib.format.open_memmap(path, mode="c")      # never unpickles, never writes to the file
    except Exception as error:                                 # a broken header raises whatever it means
        raise ValueError(f"{path}: not a whole .npy file of numbers ({error}); get it again") from error
    if array.dtype != np.uint8:
        raise ValueError(f"{path}: its numbers are {array.dtype}; pixels must be uint8 from 0 to 255")
    if array.ndim != 4 or len(array) > array.shape[1] or not array.size or (
            expected == SHAPE and array.shape != SHAPE):
        raise ValueError(f"{path}: its shape is {array.shape}, expected {expected}: time first, and no more "
                         "frames than clips; array.swapaxes(0, 1) exchanges them")
    return Videos(path.stem, torch.from_numpy(array).transpose(0, 1)[:, None])


def sequences(download: bool) -> Path:
    """Where mnist_test_seq.npy is, or has been fetched to."""
    cache, name = cache_folder(), URL.rsplit("/", 1)[-1]
    for folder in filter(None, (given_folder(), cache)):
        for sub in ("moving_mnist", ".", "MovingMNIST"):
            if (path := folder / sub / name).is_file():
                return path
    if not download:
        raise DownloadError(f"{name} is neither in DIFFUSION_COURSE_DATA nor in {cache / 'moving_mnist'}; "
                            f"put it there, or let moving_mnist_file(download=True) fetch 819 MB from {URL}")
    return fetch([URL], cache / "moving_mnist" / name, sha256=SHA256)
