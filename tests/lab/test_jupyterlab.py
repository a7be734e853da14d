"""Lessons as a learner meets them: a real JupyterLab in a real browser, run, moved, watched and solved."""
import inspect
import time
from pathlib import Path

import nbformat
import pytest
from browser import LARGE, NARROW, Notebook, wait
from selenium.webdriver import ActionChains

from diffusion_course import exercises

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
LESSONS = {"00": "00_start_here.ipynb", "01": "01_ddpm.ipynb", "13": "13_video_diffusion_models.ipynb"}
HEIGHTS = """
    const cell = cells[arguments[0]], heights = window.heights = [];
    (function look() {
        const now = cell.outputArea?.node.offsetHeight;
        if (window.heights !== heights) return;
        if (now !== heights.at(-1)) heights.push(now);
        requestAnimationFrame(look);
    })();"""
OVERFLOWING = """
    const right = panel.content.node.getBoundingClientRect().right;
    return cells.flatMap((cell, number) => [...cell.node.querySelectorAll(
            '.jp-RenderedMarkdown, .jp-OutputArea-output, .jp-OutputArea-output img')]
        .filter(part => part.getBoundingClientRect().right > right
                        || part.tagName != 'IMG' && part.scrollWidth > part.clientWidth + 4)
        .map(part => `cell ${number}: ${part.className} ${part.textContent.trim().slice(0, 60)}`));"""
STEPS = """\
import time, torch
from tqdm import tqdm
from diffusion_course.classroom import watch

def steps():
    for n in range(1, 31):
        time.sleep(0.05)
        yield torch.tensor(1 / n)

for loss in watch(steps(), 30, lambda: torch.rand(4, 1, 8, 8), stages=3, every=0.1):
    pass"""
BAR = "for step in tqdm(range(60)):\n    time.sleep(0.02)"


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request, driver, lab, shots):
    """A lesson after Run All Cells."""
    opened = Notebook(driver, lab.url, LESSONS[request.param])
    opened.key = request.param
    opened.command("application:toggle-left-area")
    opened.shoot(shots / f"{opened.key}_opened.png")
    opened.command("notebook:clear-all-cell-outputs")
    opened.run_all()
    yield opened
    opened.close()


def test_every_cell_runs(lesson):
    for number, source in enumerate(lesson.sources()):
        for output in lesson.outputs(number):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr" or "Traceback" not in output["text"], source


def test_a_slider_moves_the_picture(lesson, shots):
    number, knob = lesson.find("explore("), 1 if lesson.key == "13" else 0     # 13: another clip
    handle, picture = lesson.inside(number, ".noUi-handle")[knob], lesson.inside(number, "img")[0]
    before, seen = picture.get_attribute("src"), picture.screenshot_as_png
    lesson.shoot(shots / f"{lesson.key}_slider.png")
    ActionChains(lesson.driver).drag_and_drop_by_offset(handle, 60, 0).perform()

    def after():
        now = lesson.inside(number, "img")
        return now and now[0].get_attribute("src") != before and now[0]

    moved = wait(after, "another picture")
    assert moved.screenshot_as_png != seen and moved.get_attribute("alt")
    lesson.shoot(shots / f"{lesson.key}_slider_moved.png")


def test_an_animation_plays(lesson, shots):
    gif = "img[src^='data:image/gif']"
    number = next(n for n, cell in enumerate(lesson.sources()) if any(
        "data:image/gif" in output.get("data", {}).get("text/html", "") for output in lesson.outputs(n)))
    picture = lesson.inside(number, gif)[0]
    first = picture.screenshot_as_png
    wait(lambda: picture.screenshot_as_png != first, "the animation to show another frame", 10)
    lesson.shoot(shots / f"{lesson.key}_animation.png")


def test_a_solved_exercise_gets_its_tick(lesson, shots):
    exercise = exercises.of_lesson(lesson.key)[0]
    number, call = lesson.find(f'check("{exercise.key}"'), f'check("{exercise.key}", answer)'
    assert "not solved yet" in said(lesson, number)
    lesson.answer(number, f"def answer({', '.join(exercise.arguments)}):\n"
                          f"    return {exercise.arguments[0]} * 2.0\n\n{call}")
    assert "wrong" in said(lesson, number) and "✓" not in said(lesson, number)
    code = inspect.getsource(exercise.solution) + f"\nanswer = {exercise.solution.__name__}\n{call}"
    lesson.answer(number, f"import math\n\n{code}")
    assert said(lesson, number).startswith(f"✓ {exercise.key}") and "correct" in said(lesson, number)
    assert len(lesson.outputs(number)) == 1
    lesson.shoot(shots / f"{lesson.key}_exercise.png")


def said(lesson, number):
    """What a cell has printed."""
    return "".join(output.get("text", "") for output in lesson.outputs(number))


@pytest.mark.parametrize("theme, size", [("Light", LARGE), ("Dark", NARROW)])
def test_nothing_is_wider_than_the_page(lesson, theme, size, shots):
    try:
        assert not overflowing(lesson, theme, size)
        for place in (0, lesson.find("same("), lesson.find("check(")):
            lesson.cell(place)
            lesson.shoot(shots / f"{lesson.key}_{theme.lower()}_{size[0]}_{place}.png")
    finally:
        lesson.theme("Light")
        lesson.size(*LARGE)


def overflowing(lesson, theme, size):
    """What is wider than the page, of all cells that JupyterLab has laid out by then."""
    lesson.theme(theme)
    lesson.size(*size)
    lesson.js("panel.content.notebookConfig = {...panel.content.notebookConfig, windowingMode: 'none'}")
    time.sleep(1)                                              # JupyterLab makes cells when it is idle
    return lesson.js(OVERFLOWING)


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("lessons/*.ipynb")
                                        if path.name not in LESSONS.values()))
def test_what_is_stored_fits_a_narrow_page(name, driver, lab, shots):
    opened = Notebook(driver, lab.url, name)
    opened.command("application:toggle-left-area")
    try:
        assert not overflowing(opened, "Dark", NARROW)
        opened.shoot(shots / f"{name.removesuffix('.ipynb')}_stored.png")
    finally:
        opened.theme("Light")
        opened.size(*LARGE)
        opened.close()


def test_what_runs_is_redrawn_in_its_place(driver, lab):
    """A cell that trains never shrinks while it runs, and its progress bar stays one line."""
    cells = [nbformat.v4.new_code_cell(source) for source in (STEPS, BAR)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3"}}), lab.folder / "steps.ipynb")
    opened = Notebook(driver, lab.url, "steps.ipynb")
    opened.js(HEIGHTS, 0)
    opened.run_all()
    heights = [height for height in opened.js("return window.heights") if height]
    assert len(opened.outputs(0)) == 1 and "step 30 of 30" in str(opened.outputs(0))
    assert heights == sorted(heights) and len(heights) <= 2 and heights[-1] < 500
    assert opened.inside(1, ".jp-OutputArea")[0].size["height"] < 40
    assert "60/60" in opened.inside(1, ".jp-OutputArea")[0].text
    opened.close()
