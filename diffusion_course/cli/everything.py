"""train-all: every model of the course, each after those it needs, in the time there is."""
import time
from collections.abc import Iterable
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .. import papers
from ..training.shipped import models

RUNS = Path("runs")  # where references to models that were trained here are looked up, too
TRAINING = 0.8  # part of the time; the rest is for measuring what was trained
TRIED = 4  # steps that tell how long a step takes
LEAST = 0.01  # part of a preset's steps; a model is not worth beginning that gets fewer


def needs(slug: str, preset: str) -> dict[str, str]:
    """The models of the course that a training needs: argument (or init) -> their names."""
    shipped = models()[slug]
    plan = papers.module(shipped.paper).PRESETS[preset]
    asked = plan.recipe | shipped.kwargs | {"init": shipped.begins_with(plan.init)}
    return {name: value for name, value in asked.items() if isinstance(value, str)
            and set(value.split(",")) <= set(models())}


def needed(slug: str, preset: str) -> set[str]:
    return {name for value in needs(slug, preset).values() for name in value.split(",")}


def in_order(slugs: Iterable[str], preset: str) -> list[str]:
    """These models, each after those of them that it needs."""
    chosen = set(slugs)
    graph = {slug: needed(slug, preset) for slug in models()}
    return [slug for slug in TopologicalSorter(graph).static_order() if slug in chosen]


def arguments(slug: str, preset: str, fresh: Iterable[str]) -> dict[str, Any]:
    """What `begin` gets for a model: those of the fresh ones that it needs are taken from their runs."""
    found = {name: ",".join(str(RUNS / part) if part in fresh else part for part in value.split(","))
             for name, value in needs(slug, preset).items()}
    shipped = models()[slug]
    usual = papers.module(shipped.paper).PRESETS[preset].init
    init = found.pop("init", shipped.begins_with(usual))       # "none" is no model
    return {"recipe": shipped.kwargs | found, "init": init, "preset": preset, "data": shipped.data}


def header(slug: str) -> dict[str, Any] | None:
    """What is written of a run in its state, if there is one."""
    from ..training.container import read_header
    state = RUNS / slug / "state.safetensors"
    return read_header(state) if state.exists() else None


def finished(slug: str) -> bool:
    found = header(slug)
    return found is not None and found["step"] == found["settings"]["planned_steps"]


def begun(slug: str, preset: str, seconds: float, **options: Any):
    """The trainer and the batches of a run: as it was left, or new and as long as fits into the time."""
    from ..data.download import sha256_of
    from ..training.runs import begin

    fresh, found, numbers = set(filter(finished, needed(slug, preset))), header(slug), {}
    if found is not None:                                      # it keeps its length and its parts
        numbers = {"steps": found["settings"]["planned_steps"]}
        fresh = {other for other in fresh
                 if sha256_of(RUNS / other / "model.safetensors") in str(found["kwargs"])}
    trainer, batches = begin(models()[slug].paper, RUNS / slug, resume=True, numbers=numbers,
                             **arguments(slug, preset, fresh), **options)
    if found is None:
        shorten(trainer, batches, seconds)
    return trainer, batches


def shorten(trainer, batches, seconds: float) -> None:
    """Plan a run to be as long as its preset says, or as fits into the time; a ValueError if hardly any does.

    The steps that tell are the first ones of the run.  None of them is saved.
    """
    folder, trainer.folder, marks = trainer.folder, None, [time.monotonic()]
    for step in trainer.run(batches, min(TRIED, trainer.total)):
        step.tensor.isfinite().item()                          # a GPU has done it now
        marks.append(time.monotonic())
    trainer.folder = folder
    pace = median(after - before for before, after in pairwise(marks))
    fits = trainer.step + max(0.0, seconds - (marks[-1] - marks[0])) / pace
    if fits < LEAST * trainer.total:
        raise ValueError(f"its {seconds:.0f} seconds hold {fits:.0f} of {trainer.total} steps; it needs a "
                         "larger --budget, or --only")
    trainer.total = int(min(trainer.total, fits))


def train_all(slugs: list[str], preset: str, minutes: float, n: int, board: Path, **options: Any) -> None:
    """Train, evaluate and put on the board; what stands in runs/NAME goes on, or is kept if it is finished.

    Each model gets an equal part of the time that is left, and no more than its preset takes.  What fails is
    said and left out, with what needs it; a RuntimeError names it at the end.
    """
    from accelerate import PartialState

    if PartialState(cpu=options.get("cpu", False)).num_processes > 1:
        raise ValueError("train-all runs in one process; start several, each with models of its own (--only)")
    end, slugs, failed = time.monotonic() + 60 * minutes, in_order(slugs, preset), {}
    for number, slug in enumerate(slugs):
        name = f"{slug} ({number + 1} of {len(slugs)})"
        part = TRAINING * (end - time.monotonic()) / (len(slugs) - number)
        try:
            if wanting := failed.keys() & needed(slug, preset):
                raise ValueError(f"it needs {', '.join(wanting)}")
            if not finished(slug) and not train(slug, name, preset, part, end, **options):
                print(f"the time is up before {', '.join(slugs[number:])}; the same command goes on")
                break
            measured(RUNS / slug / "model.safetensors", n, board, cpu=options.get("cpu", False))
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            failed[slug] = error
            print(f"{name}: {error}", flush=True)
    if failed:
        raise RuntimeError(f"not trained: {', '.join(failed)}; their errors are above")


def train(slug: str, name: str, preset: str, seconds: float, end: float, **options: Any) -> bool:
    """Train a model, or the rest of it, until the time `end` at most; whether it is finished."""
    if seconds <= 0:
        return False
    trainer, batches = begun(slug, preset, seconds, **options)
    usual = papers.module(models()[slug].paper).PRESETS[preset].steps
    print(f"{name}: step {trainer.step} of {trainer.total} (preset: {usual}), {seconds / 60:.1f} minutes",
          flush=True)
    for _ in trainer.run(batches, bar=True):
        if time.monotonic() > end:
            break                                              # leaving the loop saves the run
    return trainer.step == trainer.total


def measured(model: Path, n: int, board: Path, cpu: bool) -> None:
    """Put a model on the board if it is not there; of little data fewer than n samples are compared."""
    import torch

    from ..data.download import sha256_of
    from ..evaluation import leaderboard, measure
    from ..training import checkpoints, container
    from ..training.runs import data_of

    if board.exists() and sha256_of(model) in {row["sha256"] for row in leaderboard.read(board)}:
        return
    checkpoints.write_card(model)
    device = "cpu" if cpu or not torch.cuda.is_available() else "cuda"
    data = container.read_header(model).get("data")
    most = len(data_of(checkpoints.load_model(model), data, "test")) // 2
    row = measure.evaluate(model, min(n, most), device=device)
    leaderboard.add(row, board)
    print(f"{leaderboard.table([row])}\n-> {board}", flush=True)
