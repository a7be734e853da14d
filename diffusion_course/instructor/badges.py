"""For a fork of the course: its badges, links and install lines name its repository, and a branch or tag."""
import re
from pathlib import Path

from ..data.download import repository_data
from ..data.files import whole

NAME = r"(?a)\w[\w.-]*/(?!\.{1,2}$|.*\.git$)[\w.-]+"           # of a repository on GitHub
REF = r"(?a)(?!-|.*\.\.)[\w-][\w.-]*(/[\w-][\w.-]*)*(?<!\.)"   # a branch, a tag or a commit
CONSTANTS = "diffusion_course/data/download.py"
PAGES = ("README.md", "lessons/*.md", "lessons/*.ipynb")


def point_to(repository: str, ref: str = "main", folder: Path | None = None) -> list[Path]:
    """Rewrite where a checkout names its own repository, print what changed, and return those files.

    repository and ref match NAME and REF.  What they were is read from CONSTANTS; it is written last, so that
    what was interrupted can be run again.
    """
    folder = folder or (repository_data() or Path("data")).parent
    constants = folder / CONSTANTS
    if not (folder / "lessons").is_dir() or not constants.is_file():
        raise ValueError(f"{folder.resolve()} is no checkout of the course: no lessons/ or no {CONSTANTS}")
    found = re.findall(r'^(?:REPOSITORY|REF) = "([^"]+)"', constants.read_text(), re.MULTILINE)
    if len(found) != 2:
        raise ValueError(f"{constants.resolve()} needs one line REPOSITORY = and one line REF = after it")
    pages = [path for pattern in PAGES for path in sorted(folder.glob(pattern))]
    changed = [path for path in pages if rewrite(path, addresses(*found), addresses(repository, ref))]
    if rewrite(constants, lines(*found), lines(repository, ref)):
        changed.append(constants)
    if not changed:
        print(f"all addresses point to {repository} at {ref} already")
    return changed


def addresses(repository: str, ref: str) -> tuple[str, ...]:
    """The beginnings of a badge's address, of a link to a file, and of what pip installs."""
    return (f"https://colab.research.google.com/github/{repository}/blob/{ref}",
            f"https://github.com/{repository}/blob/{ref}",
            f"git+https://github.com/{repository}" + (f"@{ref}" if ref != "main" else ""))


def lines(repository: str, ref: str) -> tuple[str, ...]:
    return f'REPOSITORY = "{repository}"', f'REF = "{ref}"'


def rewrite(path: Path, old: tuple[str, ...], new: tuple[str, ...]) -> int:
    """Put new for old in a file and leave every other byte; return how many were changed, and print it."""
    text, total = path.read_bytes().decode(), 0
    for before, after in zip(old, new):
        if before != after:                                    # and not where a longer name begins alike
            text, count = re.subn(rf"(?<!\w){re.escape(before)}(?![\w@-]|\.\w)", after, text)
            total += count
    if total:
        with whole(path) as part:
            part.write_bytes(text.encode())
        print(f"{path}: {total} changed")
    return total
