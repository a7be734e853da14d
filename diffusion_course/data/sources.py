"""Data by name: what a recipe names as its data, or what a user asks for on the command line."""
import os
from pathlib import Path

from . import mnist

SLOW = {"counts": 1, "speeds": (0.25, 0.5)}
BOUNCING = SLOW | {"mode": "bounce"}
KINDS = {  # of moving digits; to train, every fourth bouncing one is shown at every fourth frame
    "moving": {"train": {}, "test": {}},
    "slow": {"train": SLOW, "test": SLOW},
    "bouncing": {"train": BOUNCING | {"stride": (1, 1, 1, 4)}, "test": BOUNCING},
    "timelapse": {"train": BOUNCING | {"stride": (1, 1, 4, 16)}, "test": BOUNCING},
    "hiding": {"train": BOUNCING | {"hidden": 20}, "test": BOUNCING | {"hidden": 20}},
}
CLIPS = tuple(f"{kind}_{images}" for kind in KINDS for images in ("mnist", "digits"))
SPLIT = ("mnist", "digits", *CLIPS)                            # these have items to train and others to test


def usual_shape(name: str | None) -> tuple[int, ...]:
    """Of an item, where nobody asks for another: 32 x 32 pixels, and 16 frames if these are videos."""
    if name == "mnist_test_seq" or Path(name or "").suffix == ".npy":
        return (1, 20, 64, 64)
    return (1, 16, 32, 32) if name in CLIPS or is_of_videos(name) else (1, 32, 32)


def is_of_videos(name: str | None) -> bool:
    """Whether that is a folder with videos in it."""
    from .videos import FILMS
    return bool(name) and name not in SPLIT and any(
        path.suffix.lower() in (".gif", *FILMS) for path in Path(name).rglob("*"))


def load(name: str | None, shape: tuple[int, ...], split: str = "train", download: bool = False):
    """Images of shape [C, H, W] or videos of shape [C, F, H, W].

    name is one of SPLIT, a folder, or mnist_test_seq, the original Moving MNIST, which is only fetched if
    `download`; None is mnist or moving_mnist.  slow_mnist has one slow digit; in bouncing_mnist it goes in
    any direction and is mirrored by the walls; in hiding_mnist it cannot be seen for 20 frames as well, and
    timelapse_mnist has every frame, every fourth or every sixteenth.
    Where MNIST cannot be had and was not asked for by name, scikit-learn's digits stand in (`digits`,
    `moving_digits` and so on), and one line says so.
    """
    channels, *frames, size = shape[:-1]
    if name not in (None, *SPLIT, "mnist_test_seq") and not os.path.exists(name):
        raise ValueError(f"data={name!r} is neither {', nor '.join(SPLIT)}, nor mnist_test_seq, nor a folder")
    if name == "mnist_test_seq" or Path(name or "").suffix == ".npy":
        from .videos import moving_mnist_file
        return moving_mnist_file(None if name == "mnist_test_seq" else name, download)
    if name and name not in SPLIT and frames and Path(name).is_dir():
        from .videos import video_folder
        return video_folder(name, size, frames[0], channels)
    if name in CLIPS or name is None and frames:
        from .moving_mnist import MovingMNIST
        kind, _, digits = (name or "moving_mnist").partition("_")
        images = None
        if digits == "digits":
            images = mnist.load("digits", "test" if split == "test" else "train", size=28)
        return MovingMNIST(split, frames=frames[0] if frames else None, size=size, channels=channels,
                           kind=kind, images=images, **KINDS[kind]["test" if split == "test" else "train"])
    return mnist.load(name, split, size, channels)
