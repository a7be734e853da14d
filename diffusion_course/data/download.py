"""Fetch a file from the first mirror that has it: resumable, checked, under its name only when whole."""
import gzip
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

REPOSITORY = "diffusion-course/diffusion-course"  # of the course, on GitHub
REF = "main"  # its branch; a fork changes both by `diffusion-course badges`
CHUNK = 1 << 16
LARGEST = 1 << 30  # bytes; no file of the course is larger
UNPACKED = 1 << 28  # bytes of such a file when it is gunzipped
SLOWEST = 1000  # bytes per second; a mirror that is slower counts as dead


class DownloadError(OSError):
    """No mirror delivered the file; the message says what each of them did."""


def repository_data() -> Path | None:
    """The data/ folder of a clone that the package runs from, or None when it was installed elsewhere."""
    root = Path(__file__).parents[2]
    return root / "data" if (root / "pyproject.toml").exists() and (root / "data").is_dir() else None


def repository_url(path: str) -> str:
    """Where a file of the repository is to be had without a clone; path is relative to its root."""
    return f"https://raw.githubusercontent.com/{REPOSITORY}/{REF}/{path}"


def given_folder() -> Path | None:
    """The folder that DIFFUSION_COURSE_DATA names, if it names one; a ValueError if it is not there."""
    given = os.environ.get("DIFFUSION_COURSE_DATA")
    if given and not Path(given).is_dir():
        raise ValueError(f"DIFFUSION_COURSE_DATA={given}: no such folder")
    return Path(given) if given else None


def cache_folder() -> Path:
    """Where downloads are kept: data/ of the clone if it can be written to, else the user's cache."""
    here = repository_data()
    if here is not None and os.access(here, os.W_OK):
        return here
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion_course"


def offline() -> bool:
    return os.environ.get("DIFFUSION_COURSE_OFFLINE", "") not in ("", "0")


def blocks(path: Path, unzip: bool = True) -> Iterator[bytes]:
    """The bytes of a file, a few at a time, gunzipped if it is gzipped; a ValueError names a broken one."""
    with path.open("rb") as file:
        zipped = unzip and file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source = gzip.GzipFile(fileobj=file) if zipped else file
        total = 0
        try:
            while block := source.read(CHUNK):
                total += len(block)
                if zipped and total > UNPACKED:
                    raise ValueError(f"{path}: more than {UNPACKED} bytes when unpacked; none here has that")
                yield block
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            fault = f"not a whole gzip file ({error}); delete it to fetch it again"
            raise ValueError(f"{path}: {fault}") from error


def decompressed(path: Path) -> bytes:
    """The bytes of a file, gunzipped if it is gzipped; a ValueError names a file broken or huge."""
    return b"".join(blocks(path))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as it is."""
    return hashed(hashlib.sha256(), blocks(path, unzip=False))


def md5_of(path: Path) -> str:
    """The MD5 of the content of a file, decompressed if it is gzipped."""
    return hashed(hashlib.md5(), blocks(path))


def hashed(total, parts: Iterator[bytes]) -> str:
    for part in parts:
        total.update(part)
    return total.hexdigest()


def fetch(urls: list[str], path: Path, md5: str | None = None, *, sha256: str | None = None,
          timeout: float = 10.0) -> Path:
    """Download to path from the first of urls that works, and check it.

    md5 is that of the decompressed bytes, sha256 that of the file as it is; one of them must be given.  An
    interrupted download stays beside path as a .part file and is continued the next time.
    """
    if (md5 is None) == (sha256 is None):
        raise ValueError(f"{path.name}: give md5= or sha256=, one of them; nothing is fetched unchecked")
    what, expected, digest = (("the MD5 of its content", md5, md5_of) if sha256 is None else
                              ("its SHA-256", sha256, sha256_of))
    if offline():
        raise DownloadError(f"{path.name} was not fetched: DIFFUSION_COURSE_OFFLINE is set")
    part, failures = path.with_name(path.name + ".part"), []
    for url in urls:
        try:
            receive(url, part, timeout)
            found = digest(part)
        except (OSError, ValueError, HTTPException) as error:
            failures.append(f"{url}: {' '.join(str(error).split())}")
            if isinstance(error, ValueError):                  # whole by its length, yet broken: start afresh
                part.unlink(missing_ok=True)
            continue
        if found == expected:
            part.replace(path)
            return path
        failures.append(f"{url}: {what} is {found}, expected {expected}")
        part.unlink()
    raise DownloadError(f"{path.name} could not be fetched:\n  " + "\n  ".join(failures))


def receive(url: str, part: Path, timeout: float) -> None:
    """Append what is missing of url to part; an OSError if that comes too slowly.

    In a thread of its own, as a server may keep the reading of its answer's head from ever ending.
    """
    failed, stop = [], threading.Event()

    def work():
        try:
            append(url, part, timeout, stop)
        except Exception as error:
            failed.append(error)

    part.parent.mkdir(parents=True, exist_ok=True)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        size, window = -1, 2 * timeout                         # a silence is told by itself, after one
        while thread.is_alive():
            thread.join(window)
            before, size = size, part.stat().st_size if part.exists() else 0
            if thread.is_alive() and size - max(before, 0) < SLOWEST * window:
                raise OSError(f"too slow: {size} bytes after {size - max(before, 0)} in {window:g} seconds")
    finally:
        stop.set()                                             # also when the user interrupts it
    if failed:
        raise failed[0]


def append(url: str, part: Path, timeout: float, stop: threading.Event) -> None:
    """The same, until stop is set."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "diffusion-course"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code == 416 and have:                         # nothing is missing
            return
        raise
    with response:
        if response.status != 206:                             # the server starts from the beginning
            have = 0
        length = int(response.headers.get("Content-Length") or 0)
        bar = tqdm(total=have + length or None, initial=have, unit="B", unit_scale=True, desc=part.stem)
        if stop.is_set():
            return
        with bar, part.open("ab" if have else "wb") as file:
            while not stop.is_set() and (block := response.read1(CHUNK)) and not stop.is_set():
                file.write(block)
                file.flush()
                bar.update(len(block))
                if bar.n > LARGEST:
                    raise ValueError(f"it goes on after {bar.n} bytes; no file of the course is that large")
            os.fsync(file.fileno())
    if length and part.stat().st_size < have + length:
        raise OSError(f"the connection closed after {part.stat().st_size} of {have + length} bytes")
