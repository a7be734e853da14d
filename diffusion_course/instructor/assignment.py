"""A lesson's exercises as a notebook for nbgrader: stubs, locked checks with points, a question in words.

The first line of a cell says what it is, since cells lose their metadata where a notebook is edited in Colab.
"""
import re
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .. import __version__, exercises
from ..classroom.curriculum import Lesson, find
from ..classroom.exercise import Exercise, Question
from ..data.download import REF, REPOSITORY
from ..data.files import whole

MARK = re.compile(r"(?:# (exercise|check)|<!-- (question)) (\d+\.\w+)")
CONFIG = '''"""How nbgrader grades in this folder: written by `diffusion-course assignment`."""
from diffusion_course.instructor.grading import configure

configure(get_config())  # noqa: F821 (nbgrader provides it)
'''
SETUP = f'''# Where the package is missing (Colab), install it; torch and numpy stay as they are.
import importlib.util, os, subprocess, sys
if importlib.util.find_spec("diffusion_course") is None:
    source = "git+https://github.com/{REPOSITORY}{'' if REF == 'main' else f'@{REF}'}"
    source = os.environ.get("DIFFUSION_COURSE_SOURCE", source)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

import torch
from diffusion_course.exercises import check, hint'''


def mark(source: str) -> tuple[str, str] | None:
    """What the first line of a cell says it is: ("check", "13.2"), or nothing."""
    found = MARK.match(source.lstrip())
    return (found[1] or found[2], found[3]) if found else None


def name_of(kind: str, key: str) -> str:
    """What nbgrader calls a cell: check-13-2."""
    return f"{kind}-{key.replace('.', '-')}"


def identity(kind: str, key: str, points: float | None) -> dict:
    """The metadata by which nbgrader knows a cell."""
    graded = {"points": points} if kind != "exercise" else {}
    return {"schema_version": 3, "grade_id": name_of(kind, key), "grade": kind != "exercise",
            "solution": kind != "check", "locked": kind == "check", "task": False, **graded}


def assignment(lesson: Lesson) -> NotebookNode:
    """The notebook that an instructor gives to `nbgrader generate_assignment`; it holds no solution."""
    key = f"{lesson.number:02}"
    if key not in exercises.lessons():
        raise ValueError(f"lesson {key} has no exercises yet; lessons with exercises: "
                         f"{', '.join(exercises.lessons())}")
    question = exercises.question(key)
    points = sum(task.points for task in (*exercises.of_lesson(key), question))
    cells = [nbformat.v4.new_markdown_cell(
        f"# Lesson {key}: {lesson.name}\n\nExercises, {points} points. Write each function where it says so "
        "and run the cell below it. Leave the check cells as they are, and the first line of every cell.\n\n"
        f"(diffusion_course {__version__})"), nbformat.v4.new_code_cell(SETUP)]
    for exercise in exercises.of_lesson(key):
        cells += of_exercise(exercise)
    cells += of_question(question)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nb = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    for n, cell in enumerate(nb.cells):
        cell.id = f"lesson-{key}-{n}"                          # the same at every writing
    return nb


def of_exercise(exercise: Exercise) -> list[NotebookNode]:
    key, name, worth = exercise.key, exercise.solution.__name__, exercise.points
    stub = exercise.stub.replace("    ...  # your code\n", "    ### BEGIN SOLUTION\n    ### END SOLUTION")
    return [
        nbformat.v4.new_markdown_cell(f"## {key} {exercise.title} ({worth} point{'s' * (worth > 1)})"),
        nbformat.v4.new_code_cell(f"# exercise {key}\n{stub}",
                                  metadata={"nbgrader": identity("exercise", key, worth)}),
        nbformat.v4.new_code_cell(f'# check {key}\nassert check("{key}", {name}), "not solved yet"',
                                  metadata={"nbgrader": identity("check", key, worth)})]


def of_question(question: Question) -> list[NotebookNode]:
    """The rubric is for the instructor: generate_assignment takes out what stands between the marks."""
    key, worth = question.key, question.points
    rubric = "\n".join(f"- 1 point: {line}" for line in question.rubric)
    return [
        nbformat.v4.new_markdown_cell(f"## {key} {question.title} ({worth} points)\n\n{question.prompt} "
                                      "Answer in words, in the cell below."),
        nbformat.v4.new_markdown_cell(
            f"<!-- question {key} -->\n### BEGIN SOLUTION\n{rubric}\n### END SOLUTION",
            metadata={"nbgrader": identity("question", key, worth)})]


def write(lessons: Iterable[str], out: Path) -> list[Path]:
    """An nbgrader course in the folder `out` with an assignment for each lesson; nothing is written over."""
    chosen = {f"lesson-{lesson.number:02}": lesson for lesson in map(find, lessons)}
    notebooks = {out / "source" / name / f"{name}.ipynb": assignment(lesson)
                 for name, lesson in chosen.items()}
    for path in notebooks:
        if path.exists():
            raise ValueError(f"{path} is there already; move it away, or choose another --out")
    for path, nb in notebooks.items():
        with whole(path) as part:
            nbformat.write(nb, part)
    config = out / "nbgrader_config.py"
    if not config.exists():
        with whole(config) as part:
            part.write_text(CONFIG)
    return [*notebooks, config]
