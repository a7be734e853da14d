"""Is this machine ready for the course?  Every line is OK or FAIL, and a FAIL says what to do."""
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Iterator

import torch
from packaging.requirements import Requirement

from ..data.download import cache_folder, offline
from ..data.mnist import FILES, find

Finding = tuple[bool, str, str]  # passed, what was found, what to do if it failed


def python_version() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return sys.version_info >= (3, 10), f"Python {found}", "install Python 3.10 or newer"


def packages() -> Iterator[Finding]:
    try:
        needs = [Requirement(line) for line in metadata.requires("diffusion-course") or []]
    except metadata.PackageNotFoundError:
        yield False, "diffusion-course is not installed", "pip install -e . in the folder of the clone"
        return
    for need in needs:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield False, f"{need.name} is missing", f'pip install "{need}"'
            continue
        yield need.specifier.contains(version, prereleases=True), f"{need.name} {version}", f'pip install -U "{need}"'


def device() -> Finding:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (free > 2e9, f"GPU {torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
                "close other programs on the GPU")
    return True, f"no GPU: training on {torch.get_num_threads()} CPU threads, preset laptop", ""


def memory() -> Finding:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = pages * size / 2**30
    return free > 2, f"{free:.1f} GiB of memory free", "close other programs; lessons need about 2 GiB"


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return free > 1, f"{free:.1f} GiB of disk free in {Path.cwd()}", "free some disk space; a run needs up to 1 GiB"


def writable() -> Finding:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True, f"downloads are kept in {folder}", ""
    except OSError as error:
        return False, f"{folder} cannot be written to ({error})", "set XDG_CACHE_HOME to a folder of yours"


def data() -> Finding:
    try:
        missing = [name for name, _ in FILES.values() if find(name) is None]
    except ValueError as error:
        return False, str(error), "unset DIFFUSION_COURSE_DATA or point it at a folder"
    if not missing:
        return True, f"MNIST is in {find(FILES['train', 'images'][0]).parent}", ""
    how = "DIFFUSION_COURSE_OFFLINE is set, so the built-in digits are used" if offline() else \
        "it will be fetched when it is first needed, else the built-in digits are used"
    return True, f"MNIST is not here; {how}", ""


def examine() -> Iterator[Finding]:
    """All findings, in the order in which they should be mended."""
    yield python_version()
    yield from packages()
    yield device()
    for check in (memory, disk, writable, data):
        try:
            yield check()
        except (OSError, ValueError, AttributeError) as error:  # not every system can be asked
            yield True, f"{check.__name__}: unknown on this system ({error})", ""
