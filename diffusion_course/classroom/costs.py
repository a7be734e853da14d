"""What a lesson costs: minutes and peak memory at each preset, as they were measured or computed.

`diffusion-course run NN --preset laptop --costs FILE` measures; tests/benchmarks/t4.py computes the T4's.
"""
import json
import platform
from pathlib import Path
from typing import Any

import torch

from ..data.files import alone_with, whole
from ..training.checkpoints import obtain
from .curriculum import LESSONS, Lesson, ready
from .runner import Run

Costs = dict[str, dict[str, dict[str, Any]]]  # number of the lesson -> preset -> {"minutes": ...}


def read(path: str | Path | None = None) -> Costs:
    """The costs in a file; by default those of the course, data/results/costs.json."""
    return json.loads(Path(path or obtain("costs")).read_text())


def keep(lesson: Lesson, preset: str, run: Run, path: Path) -> None:
    """Put what a run has cost into a file, in place of what an earlier one did.

    The minutes are those of one core, for a clock also counts what else the machine does.
    """
    if not run.usage or torch.cuda.is_available():
        raise ValueError("what a lesson costs is measured on Linux without a GPU (CUDA_VISIBLE_DEVICES=)")
    add(lesson, preset, {"minutes": run.usage["processor"], "memory": run.usage["memory"],
                         "how": "measured", "device": f"one core, {platform.machine()}"}, path)


def add(lesson: Lesson, preset: str, row: dict[str, Any], path: Path) -> None:
    """Put a row of a lesson and preset into a file."""
    with alone_with(path):
        costs = read(path) if path.exists() else {}
        costs.setdefault(f"{lesson.number:02}", {})[preset] = row
        with whole(path) as part:
            part.write_text(json.dumps(dict(sorted(costs.items())), indent=1) + "\n")


def markdown_table(costs: Costs | None = None, folder: str = "lessons/") -> str:
    """Minutes and memory of every lesson at every preset; folder leads to the notebooks."""
    costs = read() if costs is None else costs
    rows = ["| lesson | smoke | laptop | Colab T4, computed |", "|---|---|---|---|"]
    for lesson in filter(ready, LESSONS):
        own = costs.get(f"{lesson.number:02}", {})
        cells = [said(own[preset]) if preset in own else "" for preset in ("smoke", "laptop", "t4")]
        rows.append(f"| [{lesson.number:02} · {lesson.name}]({folder}{lesson.file}) | {' | '.join(cells)} |")
    totals = [sum(own[preset]["minutes"] for own in costs.values() if preset in own)
              for preset in ("smoke", "laptop", "t4")]
    return "\n".join([*rows, f"| all | {' | '.join(map(duration, totals))} |"])


def said(row: dict[str, Any]) -> str:
    return f"{duration(row['minutes'])}, {row['memory']:.1f} GB"


def duration(minutes: float) -> str:
    """25 s, 4.2 min or 12 min"""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 9.5 else f"{minutes:.0f} min"


def summary(lesson: Lesson, costs: Costs | None = None) -> str:
    """The costs of a lesson in a line, as its title says them."""
    own = (read() if costs is None else costs)[f"{lesson.number:02}"]
    return f"laptop: {said(own['laptop'])} (one CPU core, measured); Colab T4: {said(own['t4'])} (computed)"
