"""The lessons as a site: it is built once, its links are followed, and Chromium opens it."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from browser import LARGE, wait
from bs4 import BeautifulSoup
from selenium.webdriver.common.by import By

from diffusion_course.classroom import curriculum
from diffusion_course.classroom.curriculum import LESSONS, TRACKS
from diffusion_course.data.download import REF, REPOSITORY

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "lessons").glob("*.ipynb"))
GITHUB = f"https://github.com/{REPOSITORY}/blob/{REF}/"
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{REF}/lessons/"
PHONE = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}


def build(source, out) -> subprocess.CompletedProcess:
    """`make site`, elsewhere."""
    return subprocess.run([sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going",
                           "-d", f"{out}-trees", source, out],
                          capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site's folder, and what Sphinx said."""
    out = tmp_path_factory.mktemp("site") / "html"
    return out, build(ROOT / "lessons", out)


@pytest.fixture(scope="module")
def site(built) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def pages(site):
    """Name -> the parsed page, for every page but that of the search."""
    return {path.name: BeautifulSoup(path.read_text(), "html.parser")
            for path in sorted(site.glob("*.html")) if path.name != "search.html"}


def at(page: str, tag: str, name: str, pages) -> list[str]:
    return [unquote(found[name]) for found in pages[page].find_all(tag, **{name: True})]


# ---- what is in the pages

def test_the_site_is_built_without_a_warning(built):
    assert (built[1].returncode, built[1].stderr) == (0, "")


def test_the_table_of_contents_has_every_lesson_by_its_track(pages):
    links = [link["href"] for link in pages["index.html"].select("nav.bd-links a")]
    ready = [lesson.file.replace("ipynb", "html") for track in TRACKS for lesson in LESSONS
             if lesson.track == track and curriculum.ready(lesson)]
    assert links == [*ready, "INSTRUCTORS.html"]
    assert set(ready) == {f"{path.stem}.html" for path in NOTEBOOKS}


def test_every_page_has_one_title(pages):
    assert not [page for page, soup in pages.items() if len(soup.select("article h1")) != 1]


def test_every_link_leads_somewhere(pages, site):
    anchors = {page: {tag["id"] for tag in soup.find_all(id=True)} for page, soup in pages.items()}
    assert not [f"{page}: {link}" for page in pages for link in at(page, "a", "href", pages)
                if not leads(link, page, anchors, site)]


def leads(link: str, page: str, anchors, site: Path) -> bool:
    """Whether a link of a page leads to something; of addresses elsewhere only ours are known."""
    path, _, anchor = link.partition("#")
    for address, folder in ((COLAB, ROOT / "lessons"), (GITHUB, ROOT)):
        if path.startswith(address):
            return (folder / path.removeprefix(address).partition("?")[0]).is_file()
    if re.match("https?:", path):
        return path == f"https://github.com/{REPOSITORY}" or f"github.com/{REPOSITORY}" not in path
    page = path or page
    return (site / page).is_file() and (not anchor or anchor in anchors[page])


def test_every_picture_is_there_and_described(pages, site):
    for page, soup in pages.items():
        for picture in soup.find_all(["img", "video"]):
            assert picture.get("alt" if picture.name == "img" else "aria-label"), (page, str(picture)[:200])
            source = picture["src"]
            assert re.match("data:|https:", source) or (site / source).is_file(), (page, source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_shows_its_outputs_and_opens_in_colab(path, pages, site):
    nb, page = nbformat.read(path, as_version=4), f"{path.stem}.html"
    shown = "".join(output.get("data", {}).get("text/html", "")
                    for cell in nb.cells for output in cell.get("outputs", ()))
    kinds = [re.findall(r"src=[\"'](data:\w+/\w+);", html) for html in (shown, str(pages[page]))]
    assert kinds[0] and kinds[0] == kinds[1]
    assert COLAB + path.name in nb.cells[0].source
    links = at(page, "a", "href", pages)
    assert links.count(COLAB + path.name) == 2                   # the badge, and the button at the top
    assert f"{GITHUB}lessons/{path.name}?plain=1" in links
    assert f"_sources/{path.name}" in links
    assert (site / "_sources" / path.name).read_bytes() == path.read_bytes()


# ---- in a browser

@pytest.fixture
def see(driver, site, shots):
    """Open a page by its name; see.shoot(name) keeps a picture of what is seen."""
    def see(page):
        driver.get((site / page).as_uri())
        wait(lambda: driver.execute_script("return document.readyState") == "complete", page)
        return driver

    def shoot(name):
        shots.mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(shots / f"site_{name}.png"))

    see.shoot = shoot
    driver.set_window_size(*LARGE)
    driver.get("about:blank")
    driver.get_log("browser")                                    # what other pages said is forgotten
    yield see
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_script("localStorage.clear()")


def test_a_lesson_opens_without_a_network(see):
    driver = see("13_video_diffusion_models.html")
    count = lambda selector: len(driver.find_elements(By.CSS_SELECTOR, selector))
    wait(lambda: count("mjx-container"), "the formulas")
    assert count("mjx-container") == count(".math") and not count("mjx-merror")
    driver.execute_script("document.querySelector('#what-is-wrong-so-far').scrollIntoView()")
    see.shoot("lesson")
    severe = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("colab-badge.svg" in message for message in severe), severe


def test_its_animations_move(see):
    driver = see("13_video_diffusion_models.html")
    gif = driver.find_element(By.CSS_SELECTOR, "img[src^='data:image/gif']")
    assert gif.get_property("naturalWidth") > 0
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", gif)
    first = gif.screenshot_as_png
    wait(lambda: gif.screenshot_as_png != first, "another frame", 10)


def test_it_can_be_read_in_the_dark(see):
    driver = see("01_ddpm.html")
    theme = lambda: driver.execute_script("return document.documentElement.dataset.theme")
    assert theme() == "light"
    for button in (".theme-switch-button", ".theme-change-button[data-mode=dark]"):
        driver.find_element(By.CSS_SELECTOR, button).click()
    see("01_ddpm.html")
    assert theme() == "dark"                                     # and stays so
    driver.execute_script("document.querySelector('#step-1-a-chain-that-destroys').scrollIntoView()")
    see.shoot("dark")


def test_no_page_is_wider_than_a_phone(see, pages, driver):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    for page in pages:
        see(page)
        width, room = driver.execute_script("const page = document.documentElement;"
                                            "return [page.scrollWidth, page.clientWidth]")
        assert width <= room + 1 and room == PHONE["width"], page
        see.shoot(f"phone_{page.removesuffix('.html')}")


# ---- what breaks it

@pytest.fixture
def course(tmp_path):
    """A site of two small lessons, and a function that builds it and returns what Sphinx says."""
    lessons = tmp_path / "lessons"
    lessons.mkdir()
    for name in ("conf.py", "site.css"):
        shutil.copy(ROOT / "lessons" / name, lessons)
    (lessons / "index.md").write_text("# Course\n<!-- contents -->\n")
    (lessons / "INSTRUCTORS.md").write_text("# Teaching\n[locked](../requirements.lock)\n")
    write(lessons / "00_start_here.ipynb", "# 00\n[next](01_ddpm.ipynb#recap)")
    write(lessons / "01_ddpm.ipynb", "# 01\n## Recap\n[above](#recap)")

    def said():
        result = build(lessons, tmp_path / "html")
        assert (result.returncode == 0) == (result.stderr == ""), result
        return result.stderr
    return lessons, said


def write(path: Path, *cells: str) -> None:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(cell) for cell in cells],
                                            metadata={"kernelspec": {"name": "python3", "display_name": ""}}),
                   path)


def test_a_small_course_is_a_site_and_links_out_of_it_lead_to_github(course, tmp_path):
    assert course[1]() == ""
    assert f'href="{GITHUB}requirements.lock"' in (tmp_path / "html" / "INSTRUCTORS.html").read_text()


@pytest.mark.parametrize("name, text, warning", [
    ("00_start_here", "[lost](99_none.ipynb)", "99_none.ipynb' [myst.xref_missing]"),
    ("00_start_here", "[lost](01_ddpm.ipynb#no-such)", "no-such' [myst.xref_missing]"),
    ("00_start_here", "[lost](#no-such)", "no-such' [myst.xref_missing]"),
    ("00_start_here", "![lost](none.png)", "image file not readable: none.png"),
    ("00_start_here", "### Too deep", "Non-consecutive header level increase"),
    ("42_of_no_lesson", "## Lost", "document isn't included in any toctree"),
])
def test_a_fault_fails_the_build_and_is_named(course, name, text, warning):
    lessons, said = course
    write(lessons / f"{name}.ipynb", f"# Lesson\n{text}")
    complaint = said()
    assert warning in complaint and f"{name}.ipynb" in complaint
