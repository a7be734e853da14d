"""Moving MNIST: a program that makes videos of moving digits, and knows everything about each of them.

Srivastava, Mansimov & Salakhutdinov, 2015, "Unsupervised Learning of Video Representations using LSTMs".
arXiv:1502.04681.  Their rule is mode="srivastava"; the other modes have seeds, labels and true captions.

Item i is a pure function of (seed, split, i), whoever asks for it and in whatever order.  Positions are (row,
column) in pixels, so "up" is a decreasing row.  Where digits overlap, the brighter pixel is seen.
"""
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import mnist, motion
from .captions import DIRECTIONS, Actor, caption, tokens
from .images import Batches, Images

VERSION = 1  # raised when the same (seed, split, i) becomes another clip
FPS = 8      # frames per second at stride 1
MODES = ("straight", "wrap", "bounce", "srivastava")
SPLITS = {"train": 0, "validation": 1, "test": 2}
STEPS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)])  # of DIRECTIONS, as (row, column)
DIGIT = {16: 8, 32: 14, 64: 28}                               # side of a digit by the size of the canvas
PALETTE = np.array([(255, 80, 80), (80, 255, 80), (110, 110, 255), (255, 255, 60), (60, 255, 255),
                    (255, 90, 255)], np.uint8)

PAIRS = tuple((digit, direction) for digit in range(10) for direction in DIRECTIONS)
HELD_OUT = tuple((digit, DIRECTIONS[3 * digit % 5]) for digit in range(10))     # each direction twice
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


@dataclass(eq=False)
class MovingMNIST:
    """n clips [C, F, H, W] of one or two moving digits, whose images are in one split only.

    frames    None makes single images [C, H, W]; their captions, and those of one frame, name digits only
    size      16, 32 or 64 have digits of 8, 14 and 28 pixels; others need `digit`, the side of a digit
    counts    how many digits a clip may have; default: one on 16 pixels, one or two on more
    mode      straight    along an axis or not at all, from a start that never leads to a wall; captioned
              wrap        the same on a torus, for clips of any length; captioned
              bounce      in any direction, mirrored by the walls
              srivastava  the original: step, then clamp to the wall; 0.1 of the room per frame
    speeds    pixels per frame; those below the fastest are "slowly" in captions
    pairs     the (digit, direction) that occur, as often one as the other; PAIRS is SEEN and HELD_OUT
    seed      of all clips; the digits of validation are others for every seed
    channels  3 gives the digits of a clip different colours
    stride    show every such frame only; a tuple: one of these, drawn for each clip (1, 1, 4: mostly all)
    smooth    show positions between pixels (bilinear) instead of rounded ones
    hidden    for so many frames in a row, from one on that is drawn for each clip, nothing can be seen
    kind      what it is called by: moving_mnist; sources.py knows some by name
    images    where the digits come from: square Images with labels; default: MNIST if it can be had
    """

    split: str = "train"
    n: int = 100_000
    frames: int | None = 16
    size: int = 32
    digit: int | None = None
    counts: int | tuple[int, ...] | None = None
    mode: str = "straight"
    speeds: float | tuple[float, ...] | None = None
    pairs: Iterable[tuple[int, str]] = PAIRS
    seed: int = 0
    channels: int = 1
    stride: int | tuple[int, ...] = 1
    smooth: bool = False
    hidden: int = 0
    kind: str = "moving"
    images: Images | None = field(default=None, repr=False)

    def __post_init__(self):
        self.digit = DIGIT.get(self.size, 0) if self.digit is None else self.digit
        if self.counts is None:
            self.counts = 1 if self.size <= 16 else (1, 2)
        if self.speeds is None:
            self.speeds = 0.1 * self.room if self.mode == "srivastava" else (0.5, 1.0)
        self.counts, self.speeds = several(self.counts), several(self.speeds)
        self.strides = tuple(sorted(self.stride)) if isinstance(self.stride, Iterable) else (self.stride,)
        self.pairs = tuple(self.pairs)
        for fault in faults(self):
            raise ValueError(fault)
        self.pairs = tuple(pair for pair in PAIRS if pair in self.pairs)       # in whatever order they came
        self.table = [divmod(PAIRS.index(pair), len(DIRECTIONS)) for pair in self.pairs]
        images = self.images or mnist.load(split="test" if self.split == "test" else "train", size=28)
        self.name = f"{self.kind}_{images.name}"
        self.glyphs, labels = glyphs(images, self.digit)                       # [N, d, d]
        keep = np.arange(len(labels))
        if self.split != "test":                               # 8 copies of a built-in digit share i % 12
            keep = keep[(keep % 12 == 11) == (self.split == "validation")]
        self.drawers = [keep[labels[keep] == digit] for digit in range(10)]    # the images of each digit
        for digit, _ in self.pairs:
            if not len(self.drawers[digit]):
                raise ValueError(f"images={images.name} have no {digit} for split={self.split!r}; give more "
                                 "of them, or pairs without it")

    @property
    def room(self) -> int:
        """The largest coordinate of a digit's upper left corner."""
        return self.size - self.digit

    @property
    def labels(self) -> Tensor | None:
        """Which there are, if clips have one digit each: the ten digits."""
        return torch.arange(10) if self.counts == (1,) else None

    @property
    def directed(self) -> bool:
        """Whether a caption that says where digits go is true in every frame."""
        return self.frames not in (None, 1) and self.mode in ("straight", "wrap")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one item."""
        return (self.channels, *([self.frames] if self.frames else []), self.size, self.size)

    def __len__(self) -> int:
        return self.n

    def batches(self, batch_size: int, seed: int = 0) -> Batches:
        return Batches(self, batch_size, seed)

    def __getitem__(self, index: Tensor | slice | int) -> dict[str, Tensor]:
        """Items as a batch: x in [-1, 1], text [B, 12], and the truth about them; an int gives one item.

        Of each of K = 2 digits: digits, instances (the image it came from), directions (of DIRECTIONS),
        slow and colours, all [B, K]; starts (the corner, in srivastava one step before frame 0) and
        velocities (at first, per frame as shown) [B, K, 2]; centres [B, F, K, 2]; bounced [B, F - 1, K], on
        the way to the next frame.  Of the clip: overlaps and hidden [B, F], fps [B], and its label [B] where
        all clips have one digit.  An image is one frame.
        Where there is no second digit, no colour or no direction to speak of, whole numbers are -1 and others
        NaN.
        """
        place = self.place(index)
        clips = self.drawn(np.atleast_1d(place))
        corners, clips["bounced"] = motion.paths(self.mode, clips["starts"], clips["velocities"],
                                                 self.frames or 1, self.room, self.size)
        pixels, clips["overlaps"] = self.rendered(clips, corners)
        clips["hidden"] = self.curtain(np.atleast_1d(place))
        pixels *= ~clips["hidden"][:, None, :, None, None]
        there = clips["digits"] >= 0                           # [B, K]
        centres = corners + (self.digit - 1) / 2
        clips["centres"] = np.where(there[:, None, :, None], centres % self.size if self.mode == "wrap" else
                                    centres, np.nan)
        for name in ("starts", "velocities"):
            clips[name] = np.where(there[..., None], clips[name], np.nan)
        clips["bounced"] &= there[:, None]
        x = torch.from_numpy(pixels).float().div_(127.5).sub_(1)
        batch = {"x": x if self.frames else x[:, :, 0], "text": tokens(self.said(clips))}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(clips["digits"][:, 0].copy())
        for name, value in clips.items():
            value = torch.from_numpy(np.ascontiguousarray(value))
            batch[name] = value.float() if value.is_floating_point() else value
        return batch if np.ndim(place) else {name: value[0] for name, value in batch.items()}

    def captions(self, index: Tensor | slice | int) -> list[str] | str:
        """What the captions of these items say."""
        place = self.place(index)
        said = self.said(self.drawn(np.atleast_1d(place)))
        return said if np.ndim(place) else said[0]

    def place(self, index: Tensor | slice | int) -> np.ndarray:
        """Numbers of items from 0 to n - 1; negative ones count from the end."""
        place = np.arange(*index.indices(self.n)) if isinstance(index, slice) else np.asarray(index)
        if place.ndim > 1 or place.size and (
                place.dtype.kind not in "iu" or not -self.n <= place.min() <= place.max() < self.n):
            raise IndexError(f"index={index!s:.60} must be a whole number less than n={self.n}, a row "
                             "of them or a slice; a mask becomes a row by mask.nonzero()[:, 0]")
        return place.astype(int) % self.n

    def drawn(self, place: np.ndarray) -> dict[str, np.ndarray]:
        """What is drawn by lot for each item, [B] or [B, K, ...]: from 16 uniform numbers of its own."""
        key = (self.seed, SPLITS[self.split])
        u = np.array([np.random.default_rng((*key, i)).random(16) for i in place.tolist()]).reshape(-1, 16)
        pair, drawer, speed, row, column, angle, colour = u[:, 2:].reshape(-1, 2, 7).transpose(2, 0, 1)
        stride = pick(self.strides, u[:, 1])
        digits, ways = np.moveaxis(pick(self.table, pair), -1, 0)              # [B, K]
        many = np.array([len(drawers) for drawers in self.drawers])
        before = many.cumsum() - many
        instances = np.concatenate(self.drawers)[before[digits] + (drawer * many[digits]).astype(int)]
        speed = pick(self.speeds, speed)
        step = STEPS[ways] if self.mode in ("straight", "wrap") else np.stack(
            [np.sin(2 * np.pi * angle), np.cos(2 * np.pi * angle)], -1)
        velocities = step * (speed * stride[:, None])[..., None]               # per frame as shown
        way = velocities * ((self.frames or 1) - 1) if self.mode == "straight" else 0 * velocities
        high = self.size if self.mode == "wrap" else self.room
        low, high = np.maximum(0, -way), high - np.maximum(0, way)             # where it may start
        there = np.arange(2) < pick(self.counts, u[:, 0])[:, None]
        or_none = lambda numbers, known=True: np.where(there & known, numbers, -1)
        first = (colour[:, :1] * len(PALETTE)).astype(int)     # and the second has another one
        other = (first + 1 + (colour[:, 1:] * (len(PALETTE) - 1)).astype(int)) % len(PALETTE)
        return {"digits": or_none(digits), "instances": or_none(instances),
                "directions": or_none(ways, self.directed), "velocities": velocities,
                "slow": there & (speed < self.speeds[-1]) & velocities.any(-1),
                "starts": low + np.stack([row, column], -1) * (high - low),
                "colours": or_none(np.concatenate([first, other], 1), self.channels == 3),
                "fps": FPS / stride}

    def curtain(self, place: np.ndarray) -> np.ndarray:
        """In which frames nothing can be seen: [B, F] of bool."""
        frames, u = self.frames or 1, np.zeros(len(place))
        if self.hidden:
            u = np.array([np.random.default_rng((self.seed, SPLITS[self.split], i, 1)).random()
                          for i in place.tolist()])
        begin = (u * (frames - self.hidden + 1)).astype(int)[:, None]
        return (np.arange(frames) >= begin) & (np.arange(frames) < begin + self.hidden)

    def rendered(self, clips: dict[str, np.ndarray], corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels, uint8 [B, C, F, H, W], and where both digits have ink in one place [B, F]."""
        canvas = np.zeros((len(corners), self.channels, corners.shape[1], self.size, self.size), np.uint8)
        overlaps = np.zeros(corners.shape[:2], bool)
        for k in range(2):
            b = np.flatnonzero(clips["digits"][:, k] >= 0)
            ink = self.glyphs[clips["instances"][b, k]][:, None]               # [b, C, d, d]
            if self.channels == 3:
                ink = (ink * (PALETTE[clips["colours"][b, k]] / 255)[..., None, None]).astype(np.uint8)
            where = corners[b, :, k]
            if not self.smooth:                                # the original truncates
                where = np.floor(where + (0 if self.mode == "srivastava" else 0.5))
            overlaps[b] = motion.paint(canvas, b, ink, where)
        return canvas, overlaps

    def said(self, clips: dict[str, np.ndarray]) -> list[str]:
        """The caption of each clip."""
        table = np.stack([clips["digits"], clips["directions"], clips["slow"] & self.directed], -1).tolist()
        return [caption([Actor(digit, DIRECTIONS[way] if self.directed else None, bool(slow))
                         for digit, way, slow in both if digit >= 0]) for both in table]


def faults(data: MovingMNIST) -> Iterator[str]:
    """What is wrong with the arguments."""
    for name, least in ("n", 1), ("frames", 1), ("size", 1), ("digit", 0), ("channels", 1), ("seed", 0):
        value = getattr(data, name)
        if not (isinstance(value, Integral) and least <= value < 2**32 or name == "frames" and value is None):
            yield (f"{name}={value!r} must be a whole number from {least} to 2**32 - 1"
                   f"{', or None for images' if name == 'frames' else ''}")
    if not (isinstance(data.hidden, Integral) and 0 <= data.hidden < (data.frames or 1)):
        yield (f"hidden={data.hidden!r} must be a whole number less than frames={data.frames}, or there is "
               "nothing to see")
    if data.split not in SPLITS:
        yield f"split={data.split!r} must be one of {', '.join(SPLITS)}"
    if data.mode not in MODES:
        yield f"mode={data.mode!r} must be one of {', '.join(MODES)}"
    if not 4 <= data.digit < data.size:
        yield (f"digit={data.digit} must be at least 4 and less than size={data.size}; only for the sizes "
               f"{', '.join(map(str, DIGIT))} it is chosen for you")
    if data.counts not in ((1,), (2,), (1, 2)):
        yield f"counts={data.counts} must be (1,), (2,) or (1, 2)"
    if data.channels not in (1, 3):
        yield f"channels={data.channels} must be 1 or 3"
    if not data.strides or not all(isinstance(stride, Integral) and stride > 0 for stride in data.strides):
        yield f"stride={data.stride} must be a whole number, or several, of at least 1"
    if not data.speeds or not all(isinstance(speed, Real) and 0 < speed < np.inf for speed in data.speeds):
        yield f"speeds={data.speeds} must be positive numbers; a digit that stays is one of the pairs"
    if data.mode == "srivastava" and (data.speeds, data.strides) != ((0.1 * data.room,), (1,)):
        yield (f"speeds={data.speeds} and stride={data.stride} cannot be chosen in mode='srivastava': a "
               "digit moves a tenth of the room in every frame; leave both out")
    for pair in data.pairs or ("nothing",):
        if pair not in PAIRS:
            yield f"{pair!r} in pairs must be a digit and one of {', '.join(DIRECTIONS)}, like (7, 'up')"
    steps, fast = (data.frames or 1) - 1, data.speeds[-1] * data.strides[-1]
    if data.mode == "straight" and fast * steps > data.room:
        yield (f"a digit at {fast:g} pixels per frame goes {fast * steps:g} in frames={data.frames} and has "
               f"room for {data.room}; choose at most {int(data.room / fast) + 1} frames, speeds up to "
               f"{int(100 * data.room / steps / data.strides[-1]) / 100:g}, or mode='wrap' or 'bounce'")


def glyphs(images: Images, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits [N, side, side], averaged down from images, and their labels [N]."""
    channels, height, width = images.shape
    if images.labels is None or (channels, height) != (1, width):
        raise ValueError(f"images={images.name} of {channels} x {height} x {width} must be square, with "
                         "labels and one channel, like those of mnist.load")
    margin = height // 14 if side < 10 else 0                  # on 28 pixels 4 are free, and here each counts
    pixels = images.pixels[..., margin:height - margin, margin:width - margin]
    parts = [F.interpolate(x.float(), (side, side), mode="area") for x in pixels.split(10_000)]
    return torch.cat(parts).round().byte()[:, 0].numpy(), images.labels.numpy()


def several(options: Iterable | Real) -> tuple:
    """One option or several as a sorted tuple of those that differ."""
    return tuple(sorted(set(options if isinstance(options, Iterable) else (options,))))


def pick(options: Sequence, u: np.ndarray) -> np.ndarray:
    """One of the options for each u in [0, 1), all equally likely."""
    return np.asarray(options)[(u * len(options)).astype(int)]
