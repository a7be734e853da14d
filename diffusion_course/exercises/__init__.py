"""Self-checking exercises, one small file per lesson.

    check("1.2", linear_betas)     not solved yet, correct, or wrong with a hint aimed at the mistake
    hint("1.2")                    the next hint
    solution("1.2")                the reference solution
    progress()                     what you have solved so far
"""
import dis
import importlib
import inspect
import json
import os
import pkgutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..classroom.exercise import Exercise, Question, judge
from ..classroom.panel import in_notebook
from ..data.files import alone_with, whole

_hints_given: Counter = Counter()


def lessons() -> list[str]:
    """The numbers of the lessons that have exercises: '00', '01' ..."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.removeprefix("lesson_") for name in names if name.startswith("lesson_"))


def of_lesson(lesson: str) -> tuple[Exercise, ...]:
    """The exercises of a lesson, easy ones first."""
    return importlib.import_module(f"{__name__}.lesson_{lesson}").EXERCISES


def question(lesson: str) -> Question:
    """The question of a lesson that is answered in words."""
    return importlib.import_module(f"{__name__}.lesson_{lesson}").QUESTION


def find(key: str) -> Exercise:
    """The exercise of that key; a ValueError names the keys there are."""
    lesson = str(key).partition(".")[0].zfill(2)
    if lesson not in lessons():
        raise ValueError(f"there is no exercise {key!r}; lessons with exercises: {', '.join(lessons())}")
    for exercise in of_lesson(lesson):
        if exercise.key == key:
            return exercise
    keys = ", ".join(f'"{exercise.key}"' for exercise in of_lesson(lesson))
    raise ValueError(f"there is no exercise {key!r}; lesson {lesson} has {keys}")


def check(key: str, function: Callable, seconds: float = 20.0) -> bool | None:
    """Print whether the function solves the exercise; True if so, False if not, None if not written yet.

    In a notebook, which would show what is returned below what is printed, nothing is.
    """
    exercise = find(key)
    verdict, text = judge(exercise, function, seconds)
    said = {True: "correct", False: "wrong", None: "not solved yet"}[verdict]
    if verdict:
        text = reward(exercise)
    elif "\n" not in text:                                     # no hint aimed at the mistake
        text += f'\nhint("{key}") may help.'
    print(f"{'✓ ' if verdict and in_notebook() else ''}{key} {exercise.title}: {said}. {text}")
    return None if in_notebook() else verdict


def reward(exercise: Exercise) -> str:
    """Keep that the exercise is solved, and say what it was worth."""
    points = f"{exercise.points} point{'s' if exercise.points > 1 else ''}."
    try:
        remember(exercise.key)
    except OSError as error:
        return f"{points} (Your progress could not be stored: {error})"
    return points


def hint(key: str) -> None:
    """Print the next hint."""
    hints, given = find(key).hints, _hints_given[key]
    if given == len(hints):
        print(f'{key}: there are no more hints. solution("{key}") shows the reference solution.')
        return
    print(f"{key}, hint {given + 1} of {len(hints)}: {hints[given]}")
    _hints_given[key] += 1


def solution(key: str) -> None:
    """Print the reference solution, which runs where torch is imported, and why it is right."""
    exercise = find(key)
    print("\n\n".join([*whole_source(exercise.solution).values(), exercise.why]))


def whole_source(function: Callable, seen: tuple[Callable, ...] = ()) -> dict[str, str]:
    """The code of a function after the imports, numbers and functions of its file that it uses, by name."""
    module, code, parts = inspect.getmodule(function), [function.__code__], {}
    for inner in code:                                         # it grows: functions hold the code of others
        code += [part for part in inner.co_consts if inspect.iscode(part)]
    names = [line.argval for inner in code for line in dis.get_instructions(inner)
             if line.opname == "LOAD_GLOBAL"]
    for name in dict.fromkeys(names):
        used = vars(module).get(name)
        if inspect.ismodule(used) and name != "torch":
            parts[name] = f"import {used.__name__}" + (f" as {name}" if used.__name__ != name else "")
        elif isinstance(used, (int, float)):
            parts[name] = f"{name} = {used}"
        elif getattr(used, "__module__", module.__name__) != module.__name__:
            parts[name] = f"from {used.__module__} import {name}"
        elif inspect.isfunction(used) and used not in (function, *seen):
            parts |= whole_source(used, (function, *seen))
    return parts | {function.__name__: inspect.getsource(function).strip()}


def progress(width: int = 12) -> None:
    """Print a bar for each lesson: exercises and points so far, of all there are."""
    done = solved()
    for lesson in lessons():
        exercises = of_lesson(lesson)
        mine = [exercise for exercise in exercises if exercise.key in done]
        bar = "#" * round(width * len(mine) / len(exercises))
        points, total = (sum(exercise.points for exercise in some) for some in (mine, exercises))
        print(f"lesson {lesson}  [{bar:.<{width}}]  {len(mine)} of {len(exercises)} exercises, "
              f"{points} of {total} points")


def progress_file() -> Path:
    """Where the keys of solved exercises are kept, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "diffusion_course" / "progress.json"


def solved() -> set[str]:
    """The keys of the exercises solved so far; a file that cannot be read counts as none."""
    try:
        keys = json.loads(progress_file().read_text())["solved"]
        return {key for key in keys if isinstance(key, str)}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return set()


def remember(key: str) -> None:
    """Add a key to those solved; an OSError says why that could not be stored."""
    try:
        path = progress_file()
    except RuntimeError as error:                              # there is no home folder
        raise OSError(str(error)) from error
    with alone_with(path):                                     # several notebooks may be open
        if path.exists():
            path.read_bytes()                                  # what cannot be read is not written over
        with whole(path) as part:
            part.write_text(json.dumps({"solved": sorted(solved() | {key})}))
