"""The command for forks: a small copy of the course is pointed elsewhere and back."""
import shutil
from pathlib import Path

import pytest
from test_cli import call, done, fails, files

from diffusion_course.data.download import REF, REPOSITORY
from diffusion_course.instructor import badges

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "lessons/01_ddpm.ipynb", "lessons/toolbox_metrics.ipynb")
COLAB = "https://colab.research.google.com/github"
FOREIGN = f"""
{COLAB}/someone/{REPOSITORY.split("/")[1]}/blob/{REF}/lessons/01_ddpm.ipynb
{COLAB}/{REPOSITORY}-2/blob/{REF}/lessons/01_ddpm.ipynb
https://github.com/{REPOSITORY}/blob/{REF}.5/README.md and https://github.com/{REPOSITORY}/blob/other/README.md
git+https://github.com/{REPOSITORY}-2 git+https://github.com/{REPOSITORY}.js git+https://github.com/{REPOSITORY}@1.0
REPOSITORY = "{REPOSITORY}"
"""


@pytest.fixture
def course(tmp_path):
    """A checkout with two lessons, a page with a link to a file and a line's end of its own."""
    for name in (*PAGES, badges.CONSTANTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    page = f"[code](https://github.com/{REPOSITORY}/blob/{REF}/diffusion_course/recipe.py) é\r\n"
    (tmp_path / "lessons" / "INSTRUCTORS.md").write_bytes(page.encode())
    return tmp_path


def command(folder, repo, ref="main"):
    return done("badges", "--repo", repo, "--ref", ref, "--folder", folder)


def refused(folder, *args, code=2):
    """What the command says is wrong, having changed nothing."""
    before = files(folder)
    error = fails("badges", *args, "--folder", folder, code=code)
    assert files(folder) == before
    return error


def test_to_a_fork_and_back(course):
    before = files(course)
    changed = badges.point_to("me/my.fork", REF, course)
    assert {str(path.relative_to(course)) for path in changed} == set(before) == set(files(course))
    for name, content in files(course).items():
        assert content == before[name].replace(REPOSITORY.encode(), b"me/my.fork")
    badges.point_to("another/one", "v1", course)               # what is there is read anew each time
    badges.point_to(REPOSITORY, REF, course)
    assert files(course) == before


def test_the_second_time_nothing_changes(course):
    first = command(course, "me/fork", "autumn/2025")
    assert f"{course / PAGES[1]}: 2 changed" in first and f"{course / badges.CONSTANTS}: 2 changed" in first
    before = {path: path.stat().st_mtime_ns for path in course.rglob("*")}
    assert command(course, "me/fork", "autumn/2025") == \
        "all addresses point to me/fork at autumn/2025 already\n"
    assert {path: path.stat().st_mtime_ns for path in course.rglob("*")} == before


def test_a_branch_is_in_the_badge_and_in_what_is_installed(course):
    command(course, "me/fork")
    before = files(course)
    command(course, "me/fork", "v1.0")
    for name in PAGES[1:]:
        text = (course / name).read_text()
        assert text.count(f"]({COLAB}/me/fork/blob/v1.0/{name})") == 1
        assert text.count(r'source = \"git+https://github.com/me/fork@v1.0\"') == 1
    assert f"]({COLAB}/me/fork/blob/v1.0/lessons/" in (course / "README.md").read_text()
    page = course / "lessons" / "INSTRUCTORS.md"
    assert "(https://github.com/me/fork/blob/v1.0/diffusion_course/recipe.py)" in page.read_text()
    constants = (course / badges.CONSTANTS).read_text()
    assert '\nREPOSITORY = "me/fork"  # ' in constants and '\nREF = "v1.0"  # ' in constants
    command(course, "me/fork")
    assert files(course) == before and rb'source = \"git+https://github.com/me/fork\"' in before[PAGES[1]]


def test_other_links_stay(course):
    readme = course / "README.md"
    readme.write_text(readme.read_text() + FOREIGN)
    command(course, "me/fork", "v1")
    assert readme.read_text().endswith(FOREIGN) and REPOSITORY not in readme.read_text().removesuffix(FOREIGN)


def test_an_interrupted_run_can_be_repeated(course, monkeypatch):
    def full(path, data, write=Path.write_bytes):
        write(path, data[:10])
        raise OSError("no space left")

    def full_later(path, data, write=Path.write_bytes):
        return (full if "toolbox" in path.name else write)(path, data)

    command(course, "me/fork")
    before = files(course)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert "no space left" in refused(course, "--repo=me/fork", "--ref=v1", code=1)
        patch.setattr(Path, "write_bytes", full_later)
        fails("badges", "--repo=me/fork", "--ref=v1", "--folder", course, code=1)
    assert [name for name in before if files(course)[name] == before[name]] == [PAGES[2], badges.CONSTANTS]
    command(course, "me/fork", "v1")
    command(course, "me/fork")
    assert files(course) == before


@pytest.mark.parametrize("repo", [
    "", "fork", "me/", "/fork", "me/my/fork", "me/..", "../fork", "-me/fork", "me/fork.git", "me/fo rk",
    "mé/fork", "https://github.com/me/fork", 'me/"', "me/fork\n"])
def test_a_repository_that_is_none(course, repo):
    error = refused(course, f"--repo={repo}")
    assert "--repo" in error and "must be OWNER/NAME" in error


@pytest.mark.parametrize("ref", [
    "", "-b", "/b", "b/", "a//b", "a..b", "a/.b", "b.", "a b", "a@b", "a~1", "ü", "b\n"])
def test_a_branch_that_is_none(course, ref):
    error = refused(course, "--repo=me/fork", f"--ref={ref}")
    assert "--ref" in error and "must be a branch or tag" in error


@pytest.mark.parametrize("lost", ["lessons", badges.CONSTANTS])
def test_a_folder_that_is_no_checkout(course, lost):
    (course / lost).rename(course / "lost")
    error = refused(course, "--repo=me/fork")
    assert "--folder" in error and f"{course} is no checkout of the course" in error


def test_a_checkout_of_before_there_was_a_branch(course):
    path = course / badges.CONSTANTS
    path.write_text(path.read_text().replace("\nREF = ", "\nBRANCH = "))
    assert f"{path} needs one line REPOSITORY = and one line REF =" in refused(course, "--repo=me/fork")


def test_the_folder_is_the_clone_that_runs(course, monkeypatch):
    monkeypatch.chdir(course / "lessons")
    monkeypatch.setattr(badges, "repository_data", lambda: course / "data")
    assert f"{course / 'README.md'}: " in done("badges", "--repo", "me/fork")
    monkeypatch.setattr(badges, "repository_data", lambda: None)
    monkeypatch.chdir(course)
    assert "already" in done("badges", "--repo", "me/fork")


def test_the_fork_has_to_be_named():
    assert "--repo" in call("badges").err
