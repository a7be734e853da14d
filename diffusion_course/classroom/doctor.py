"""Is this machine ready for the course?  Every line is OK or FAIL, and a FAIL says what to do."""
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from ..data.download import cache_folder, offline

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
        fits = need.specifier.contains(version, prereleases=True)
        yield fits, f"{need.name} {version}", f'pip install -U "{need}"'


def device() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return (False, f"PyTorch cannot be loaded ({error})",
                "pip install --force-reinstall torch; without a GPU, on Linux, also "
                "--index-url https://download.pytorch.org/whl/cpu")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name, free, total = torch.cuda.get_device_name(), free / 2**30, total / 2**30
        return free > 2, f"GPU {name}, {free:.1f} of {total:.1f} GiB free", "close other programs on the GPU"
    return True, f"no GPU: training on {torch.get_num_threads()} CPU threads, preset laptop", ""


def memory() -> Finding:
    free = int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1]) / 2**20
    return free > 2, f"{free:.1f} GiB of memory free", "close other programs; lessons need about 2 GiB"


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return free > 1, f"{free:.1f} GiB of disk free in {Path.cwd()}", "free some; a run needs up to 1 GiB"


def writable() -> Finding:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True, f"downloads are kept in {folder}", ""
    except OSError as error:
        return False, f"{folder} cannot be written to ({error})", "set XDG_CACHE_HOME to a folder of yours"


def data() -> Finding:
    from ..data.mnist import FILES, find, mnist
    try:
        if all(find(name) for name, _ in FILES.values()):
            mnist("train"), mnist("test")
            return True, f"MNIST is in {find(FILES['train', 'images'][0]).parent}", ""
    except ValueError as error:
        return False, str(error), "mend or delete what it names, or unset DIFFUSION_COURSE_DATA"
    how = "DIFFUSION_COURSE_OFFLINE is set, so the built-in digits are used" if offline() else \
        "it will be fetched when it is first needed, else the built-in digits are used"
    return True, f"MNIST is not here; {how}", ""


def examine() -> Iterator[Finding]:
    """All findings, in the order in which they should be mended."""
    yield python_version()
    yield from packages()
    for check in (device, memory, disk, writable, data):
        try:
            yield check()
        except (OSError, ImportError) as error:                # not every system can be asked
            yield True, f"{check.__name__}: unknown on this system ({error})", ""
