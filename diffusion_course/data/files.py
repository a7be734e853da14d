"""Files that are whole or not there at all."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A name beside path to write to in this block, at whose end the file gets its own name.

    An OSError names path, and what was there before is unchanged.  The folder is made if need be.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("r+b") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error}); "
                      "what was there before is unchanged") from error


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """No other process reads and writes path in such a block meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=10):
        yield


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed left half written; no other may be writing there."""
    for part in folder.glob(".*.part*"):
        if part.is_file():
            part.unlink(missing_ok=True)
