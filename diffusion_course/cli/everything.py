"""train-all: every model of the course, each after those it needs, in the time there is."""
import time
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from .. import papers

RUNS = Path("runs")  # where references to models that were trained here are looked up, too
TRAINING = 0.85  # part of the time; the rest is for measuring what was trained
TRIED = 4  # steps that tell how long a step takes; the first is slower, and does not count


def models() -> dict[str, Any]:
    """What ships of models, by name."""
    from ..training.shipped import SHIPPED
    return {slug: shipped for slug, shipped in SHIPPED.items() if shipped.paper}


def needs(slug: str, preset: str) -> dict[str, str]:
    """The models of the course that a training needs: argument (or init) -> name."""
    shipped = models()[slug]
    plan = papers.module(shipped.paper).PRESETS[preset]
    asked = plan.recipe | shipped.kwargs | {"init": shipped.init or plan.init}
    return {name: value for name, value in asked.items() if isinstance(value, str)
            and set(value.split(",")) <= set(models())}


def in_order(slugs: Iterable[str], preset: str) -> list[str]:
    """These models, each after those of them that it needs."""
    chosen = set(slugs)
    graph = {slug: {name for value in needs(slug, preset).values() for name in value.split(",")}
             for slug in models()}
    return [slug for slug in TopologicalSorter(graph).static_order() if slug in chosen]


def arguments(slug: str, preset: str, fresh: Iterable[str]) -> dict[str, Any]:
    """What `begin` gets for a model: those of the fresh ones that it needs are taken from their runs."""
    found = {name: ",".join(str(RUNS / part) if part in fresh else part for part in value.split(","))
             for name, value in needs(slug, preset).items()}
    init = found.pop("init", None)
    return {"recipe": models()[slug].kwargs | found, "init": init, "preset": preset}


def shorten(trainer, batches, seconds: float) -> None:
    """Plan a run that begins to be as long as its preset says, or as fits into the time."""
    steps = trainer.run(batches, TRIED - trainer.step)
    next(steps)
    first = trainer.seconds
    for step in steps:
        step.tensor.isfinite().item()                          # a GPU has done it now
    pace = (trainer.seconds - first) / max(1, TRIED - 1)
    trainer.total = max(trainer.step, min(trainer.total, int(seconds / pace)))


def train_all(slugs: list[str], preset: str, minutes: float, n: int, board: Path, **options: Any) -> None:
    """Train, evaluate and put on the board; what stands in runs/NAME goes on, or is kept if it is finished.

    Each model gets an equal part of the time that is left, and no more than its preset takes.
    """
    import torch

    from ..evaluation import leaderboard, measure
    from ..training import checkpoints
    from ..training.container import read_header
    from ..training.runs import begin, data_of

    end, slugs = time.monotonic() + 60 * minutes, in_order(slugs, preset)
    device = "cpu" if options.get("cpu") or not torch.cuda.is_available() else "cuda"
    for number, slug in enumerate(slugs):
        folder = RUNS / slug
        state, model = folder / "state.safetensors", folder / "model.safetensors"
        fresh = {other for other in slugs[:number] if (RUNS / other / "model.safetensors").exists()}
        given = arguments(slug, preset, fresh)
        if state.exists():                                     # it keeps the length that it was planned with
            given["numbers"] = {"steps": read_header(state)["settings"]["planned_steps"]}
        trainer, batches = begin(models()[slug].paper, folder, resume=True, **given, **options)
        part = TRAINING * max(0.0, end - time.monotonic()) / (len(slugs) - number)
        if trainer.step < TRIED < trainer.total:
            shorten(trainer, batches, part)
        usual = papers.module(models()[slug].paper).PRESETS[preset].steps
        print(f"{slug} ({number + 1} of {len(slugs)}): step {trainer.step} of {trainer.total} "
              f"(preset: {usual}), {part / 60:.1f} minutes", flush=True)
        trained = trainer.step < trainer.total
        for _ in trainer.run(batches, bar=True):
            if time.monotonic() > end:
                break                                          # leaving the loop saves the run
        if trainer.step < trainer.total:
            print(f"the time is up before {', '.join(slugs[number:])}; the same command goes on")
            return
        rows = leaderboard.read(board) if board.exists() else []
        if trained or slug not in {row["model"] for row in rows}:
            checkpoints.write_card(model)
            most = len(data_of(trainer.recipe, trainer.facts["data"], "test")) // 2
            leaderboard.add(measure.evaluate(model, min(n, most), device=device), board)
    print(leaderboard.table([row for row in leaderboard.read(board) if row["model"] in slugs]))
    print(f"-> {board}")
