"""The table of lessons: it is whole, it can be followed from top to bottom, and the README has it."""
import json
import re
from pathlib import Path

import pytest
from test_cli import done, fails

from diffusion_course.classroom import curriculum
from diffusion_course.classroom.curriculum import LESSONS, TRACKS

README = Path(__file__).parents[2] / "README.md"


def all_needs(number: int) -> set[int]:
    """The lessons that one needs, and theirs."""
    return set().union(*({need} | all_needs(need) for need in LESSONS[number].needs))


def test_every_lesson_is_there_once():
    assert [lesson.number for lesson in LESSONS] == list(range(51))
    assert len({lesson.slug for lesson in LESSONS}) == len({lesson.title for lesson in LESSONS}) == 51
    assert all(re.fullmatch("[a-z][a-z0-9_]*", lesson.slug) for lesson in LESSONS)
    assert all(lesson.title and lesson.authors and 2015 <= lesson.year <= 2024 for lesson in LESSONS[1:])


def test_arxiv_numbers_are_well_formed_and_of_the_year():
    first = {lesson.number: lesson.arxiv for lesson in LESSONS if lesson.arxiv}
    assert set(range(51)) - set(first) == {0, 12}              # FLUX.1 has no paper
    everything = [number for lesson in LESSONS for number in (lesson.arxiv, *lesson.also) if number]
    assert len(set(everything)) == len(everything) == 56
    assert all(re.fullmatch(r"\d\d(0[1-9]|1[0-2])\.\d{5}", number) for number in everything)
    assert all(number.startswith(str(LESSONS[lesson].year)[2:]) for lesson, number in first.items())


def test_needs_come_before_and_are_no_more_than_that():
    for lesson in LESSONS:
        assert all(need < lesson.number for need in lesson.needs) or lesson.number == 49   # of the toolbox
        assert list(lesson.needs) == sorted(set(lesson.needs))
        for need in lesson.needs:                              # none that another brings along
            assert not any(need in all_needs(other) for other in lesson.needs), (lesson.slug, need)
        assert lesson.number == 0 or 0 in all_needs(lesson.number)


@pytest.mark.parametrize("number, needs", [
    (13, {1, 2}), (23, {4, 13, 15, 16}), (42, {9, 24, 37}), (44, {6, 8, 29, 31}), (48, {2, 13})])
def test_needs_reach_what_the_paper_builds_on(number, needs):
    assert needs <= all_needs(number)


def test_every_lesson_is_in_a_track_and_every_track_has_lessons():
    assert 6 <= len(TRACKS) <= 9
    assert {lesson.track for lesson in LESSONS} == set(TRACKS)


@pytest.mark.parametrize("what", [
    1, "1", "01", "ddpm", "01_ddpm", "01_ddpm.ipynb", "lessons/01_ddpm.ipynb", Path("/else/01_ddpm.ipynb")])
def test_a_lesson_is_found_by_number_name_or_path(what):
    assert curriculum.find(what) is LESSONS[1]


@pytest.mark.parametrize("what", [51, "-1", "", "DDPM", "02_ddpm.ipynb", "dd"])
def test_a_lesson_that_is_not_there(what):
    with pytest.raises(ValueError, match="there is no lesson .*0 to 50.* start_here, ddpm,.* metrics, mov"):
        curriculum.find(what)


def test_the_ready_lessons_are_those_whose_notebook_is_there():
    assert curriculum.READY == {lesson.number for lesson in LESSONS if curriculum.notebook(lesson).exists()}


def test_the_table_links_what_is_ready(monkeypatch):
    monkeypatch.setattr(curriculum, "READY", {8})
    rows = curriculum.markdown_table().splitlines()
    assert rows[2 + 8] == "| 08 | [DiT: Scalable Diffusion Models with Transformers]" \
        "(https://arxiv.org/abs/2212.09748) | Foundations | 02 | [notebook](lessons/08_dit.ipynb) |"
    assert "[notebook](08_dit.ipynb)" in curriculum.markdown_table(folder="")
    assert rows[2 + 11].endswith("| Text to image | 04, 07, 08 | planned |")


def test_the_readme_has_the_table():
    block = re.search("<!-- lessons -->\n(.*?)\n<!-- /lessons -->", README.read_text(), re.DOTALL)
    assert block and block[1].strip() == curriculum.markdown_table(), \
        "put what `diffusion-course lessons --markdown` prints into the README"


def test_lessons_from_the_command_line():
    text = done("lessons").splitlines()
    assert len(text) == 52
    assert re.match(r"13  (ready  |planned)  02 +First video models +Video Diffusion Models", text[14])
    assert done("lessons", "--markdown").strip() == curriculum.markdown_table()
    rows = json.loads(done("lessons", "--json"))
    assert [row["number"] for row in rows] == list(range(51))
    assert rows[13]["needs"] == [2] and rows[13]["ready"] == Path(rows[13]["notebook"]).exists()
    assert "there is no lesson 'nosuch'" in fails("run", "nosuch", code=1)
