"""The leaderboard: a line of JSON per trained model, written by `evaluate` and `train-all`, nothing else."""
import json
import math
from pathlib import Path
from typing import Any

from ..data.files import alone_with, whole
from ..training import checkpoints

Row = dict[str, Any]
OWN = Path("runs/leaderboard.jsonl")  # of what the user has evaluated; the course's own ships with it


def read(path: str | Path | None = None) -> list[Row]:
    """The rows of a board, by default the one that ships with the course; a bad line is a ValueError."""
    path = Path(path or checkpoints.obtain("leaderboard"))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such leaderboard; `diffusion-course evaluate` makes one")
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            rows.append(json.loads(line))
            if not math.isfinite(rows[-1]["metrics"]["frechet"]["value"]):
                raise TypeError("its Frechet distance is no number")
            if not all(word.isprintable() for word in (rows[-1]["model"], rows[-1]["data"])):
                raise TypeError("its names cannot be printed")
            cells(rows[-1]), [int(side) for side in rows[-1]["shape"]]         # all that a table needs
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path}, line {number}: not a row of a leaderboard ({error}); delete the line "
                             "and evaluate that model again") from error
    return rows


def add(row: Row, path: str | Path) -> Path:
    """Put a row in the place of that of the same model, data and sampling, or at the end."""
    path = Path(path)
    key = lambda row: [row.get(name) for name in ("model", "data", "sampling", "n", "seed")]
    with alone_with(path):
        rows = read(path) if path.exists() else []
        place = next((i for i, other in enumerate(rows) if key(other) == key(row)), len(rows))
        rows[place:place + 1] = [row]
        with whole(path) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(metric: dict[str, float]) -> str:
    """0.79 +- 0.01 (0.99): the value, its standard error, and the real one in brackets."""
    spread = f" ± {metric['spread']:.2g}" if metric.get("spread") else ""
    return f"{metric['value']:.3g}{spread} ({metric['real']:.3g})"


def cells(row: Row) -> dict[str, str]:
    """A row as words."""
    training, metrics = row["training"], row["metrics"]
    minutes = "" if training["minutes"] is None else f"{training['minutes']:.0f} min {training['device']}"
    steps = " ".join(str(value).removesuffix("_step") for _, value in sorted(row["sampling"].items()))
    return {"model": row["model"], "data": f"{row['data']} {'x'.join(map(str, row['shape'][1:]))}",
            "weights": f"{row['parameters'] / 1e6:.2f} M",
            "training": f"{training['flops'] / 1e15:.2f} PFLOP, {minutes}".removesuffix(", "),
            "sampling": f"{steps}, {row['evaluations']:.0f} evaluations" if row["evaluations"] else
                        "reconstructions", "n": str(row["n"]),  # of autoencoders
            **{name: score(metric) for name, metric in metrics.items()}}


def table(rows: list[Row], markdown: bool = False) -> str:
    """Boards of images and of videos, best first; every number stands before that of real items."""
    boards = []
    for length in (3, 4):
        own = sorted((row for row in rows if len(row["shape"]) == length),
                     key=lambda row: (row["data"], row["shape"], row["metrics"]["frechet"]["value"]))
        lines = [cells(row) for row in own]
        names = list(dict.fromkeys(name for line in lines for name in line))
        if not lines:
            continue
        body = [names, *([line.get(name, "") for name in names] for line in lines)]
        if markdown:
            body.insert(1, ["---"] * len(names))
            boards.append("\n".join(f"| {' | '.join(line)} |" for line in body))
        else:                                                  # on its side: there are many metrics
            width = max(map(len, names))
            boards.append("\n\n".join("\n".join(f"{name:{width}}  {line[name]}" for name in line)
                                      for line in lines))
    if not boards:
        return "nothing has been evaluated yet"
    return "\n\n".join([*boards, "In brackets: what as many real items get; ± is a standard error."])
