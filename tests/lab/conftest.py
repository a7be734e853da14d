"""One Chromium for all tests, and one JupyterLab on a copy of the lessons."""
import os
import shutil
from pathlib import Path

import pytest
from browser import LARGE, Server, chromium

LESSONS = Path(__file__).parents[2] / "lessons"


@pytest.fixture(scope="session")
def shots(tmp_path_factory) -> Path:
    """The folder of the screenshots, to be looked at; DIFFUSION_COURSE_SCREENSHOTS names another."""
    given = os.environ.get("DIFFUSION_COURSE_SCREENSHOTS")
    return Path(given) if given else tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium; apt-get install chromium chromium-driver")
    driver = chromium(tmp_path_factory.mktemp("profile"))
    driver.set_window_size(*LARGE)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab's address and folder: every lesson, in smoke, with the course's data and no network."""
    folder, home = tmp_path_factory.mktemp("lessons"), tmp_path_factory.mktemp("home")
    for path in LESSONS.glob("*.ipynb"):
        shutil.copy(path, folder)
    server = Server(folder, home, DIFFUSION_COURSE_PRESET="smoke", DIFFUSION_COURSE_OFFLINE="1")
    yield server
    server.close()
