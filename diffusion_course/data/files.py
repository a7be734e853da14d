"""Files that are whole or not there at all."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed left half written; no other may be writing there."""
    for part in folder.glob(".*.part*"):
        part.unlink(missing_ok=True)
