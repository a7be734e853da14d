"""Files that are whole or not there at all."""
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


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


def lock(path: Path, wait: float = 0) -> BaseFileLock | None:
    """Hold a lock until its release(), or the end of this process; None on a file system that has none.

    A Timeout, which is an OSError, where another process holds it for longer than `wait` seconds.  What this
    process holds already it may hold once more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, timeout=wait, thread_local=False, is_singleton=True)
    try:
        held.acquire()
    except Timeout:
        raise
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return None
    return held


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """No other process reads and writes path in such a block meanwhile."""
    held = lock(path.with_name(f".{path.name}.lock"), wait=10)
    try:
        yield
    finally:
        if held is not None:
            held.release()


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed left half written; no other may be writing there."""
    for part in folder.glob(".*.part*"):
        if part.is_file():
            part.unlink(missing_ok=True)
