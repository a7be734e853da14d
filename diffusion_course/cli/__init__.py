"""The same recipes from a terminal: diffusion-course, or python -m diffusion_course."""
import re
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer import BadParameter

from .. import __version__, papers
from .common import PLAIN, Compiled, Cpu, Json, Precision, say
from .models import evaluate, sample
from .train import training

app = typer.Typer(name="diffusion-course", no_args_is_help=True, **PLAIN,
                  help="Diffusion models for images and videos, rebuilt paper by paper.")


# ---- papers, data, doctor, lessons

@app.command("papers")
def show_papers(as_json: Json = False):
    """List the papers that can be trained."""
    from ..training.shipped import SHIPPED
    rows = [{"paper": name, "citation": papers.citation(name),
             "checkpoint": name in SHIPPED} for name in papers.names()]
    width = max(len(row["paper"]) for row in rows)
    say(rows, as_json, (f"{row['paper']:{width}}  {'checkpoint' if row['checkpoint'] else '':10}  "
                        f"{row['citation']}" for row in rows))


@app.command("data")
def show_data(
        name: Annotated[Optional[str], typer.Argument(
            help="mnist, moving_mnist, slow_mnist, bouncing_mnist, hiding_mnist; digits for mnist in these; "
                 "mnist_test_seq (819 MB); or a folder.")] = None,
        out: Annotated[Optional[Path], typer.Option(help="Write 64 items: .png, .gif, .mp4.")] = None,
        as_json: Json = False):
    """Fetch a data set if need be, and say what is in it."""
    from ..data import media, sources

    shape = sources.usual_shape(name)
    if out is not None:
        media.check_format(out, video=len(shape) == 4)
    splits = {"train": sources.load(name, shape, download=True)}
    if name is None or name in sources.SPLIT:                  # files have no splits
        splits["test"] = sources.load(splits["train"].name, shape, "test")
    facts = []
    for split, data in splits.items():
        labels = getattr(data, "labels", None)
        facts.append({"name": data.name, "split": split, "items": len(data), "shape": list(data.shape),
                      "per_label": None if labels is None else labels.bincount().tolist()})
    if out is not None:
        media.write(out, splits["train"][slice(64)]["x"])
    say(facts, as_json, (f"{row['name']} {row['split']}: {row['items']} items of {row['shape']}"
                         + (f", per label {row['per_label']}" if row["per_label"] else "") for row in facts))


@app.command()
def doctor(as_json: Json = False):
    """Check versions, device, memory, disk and data; say how to mend what fails."""
    from ..classroom.doctor import examine
    findings = [{"ok": ok, "found": found, "fix": fix} for ok, found, fix in examine()]
    say(findings, as_json, (f"OK    {row['found']}" if row["ok"] else
                            f"FAIL  {row['found']}\n      -> {row['fix']}" for row in findings))
    raise typer.Exit(0 if all(row["ok"] for row in findings) else 1)


@app.command("lessons")
def show_lessons(as_json: Json = False, markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of the README.")] = False):
    """List the lessons of the course, and say which are ready."""
    from ..classroom.curriculum import LESSONS, facts, markdown_table, text_table
    say([facts(lesson) for lesson in LESSONS], as_json, [markdown_table() if markdown else text_table()])


@app.command("badges")
def point_badges(
        repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Your fork on GitHub.")],
        ref: Annotated[str, typer.Option(help="A branch or tag of it.")] = "main",
        folder: Annotated[Optional[Path], typer.Option(help="Default: the clone this runs from.")] = None):
    """Point the Colab badges and install lines of the lessons to your fork of the course."""
    from ..instructor import badges
    if not re.fullmatch(badges.NAME, repo):
        raise BadParameter(f"{repo!r} must be OWNER/NAME of letters, digits, . _ -", param_hint="--repo")
    if not re.fullmatch(badges.REF, ref):
        raise BadParameter(f"{ref!r} must be a branch or tag of letters, digits, . _ - /", param_hint="--ref")
    try:
        badges.point_to(repo, ref, folder)
    except ValueError as error:
        raise BadParameter(str(error), param_hint="--folder") from error


@app.command("run")
def run_lesson(
        lesson: Annotated[str, typer.Argument(metavar="LESSON", help="Its number or name: 1, 01, ddpm.")],
        preset: Annotated[Optional[str], typer.Option(help="smoke, laptop, t4; default: by device.")] = None,
        out: Annotated[Path, typer.Option(help="Folder of the executed notebook.")] = Path("runs/lessons"),
        timeout: Annotated[Optional[int], typer.Option(min=1, help="Seconds for each cell.")] = None,
        costs: Annotated[Optional[Path], typer.Option(help="A file to keep minutes and memory in.")] = None):
    """Run a lesson's notebook without a browser, and keep its pictures as files."""
    from ..classroom.curriculum import find, notebook
    from ..classroom.runner import run
    done = run(notebook(find(lesson)), out, preset, timeout)
    print(done)
    if costs is not None:
        from ..classroom.costs import keep
        from ..recipe import preset_name
        keep(find(lesson), preset_name(preset), done, costs)


@app.command("costs")
def show_costs(
        file: Annotated[Optional[Path], typer.Option(help="Default: the course's own.")] = None,
        as_json: Json = False):
    """Show the minutes and the memory that each lesson takes at each preset."""
    from ..classroom import costs
    found = costs.read(file)
    say(found, as_json, [costs.markdown_table(found)])


@app.command("assignment")
def write_assignment(
        lessons: Annotated[list[str], typer.Argument(metavar="LESSON...", help="Numbers or names: 02 13.")],
        out: Annotated[Path, typer.Option(help="Folder of an nbgrader course, new or begun before.")]):
    """Write the exercises of lessons as notebooks for nbgrader: stubs, checks, points, no solutions."""
    try:
        from ..instructor.assignment import write
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'diffusion-course[instructor]'") from error
    for path in write(lessons, out):
        print(path)
    print(f"next: cd {out}; nbgrader generate_assignment NAME (see lessons/INSTRUCTORS.md)")


app.add_typer(training, name="train")


@app.command("train-all")
def train_everything(
        budget: Annotated[float, typer.Option(min=0, help="Minutes for all of it.")],
        only: Annotated[Optional[str], typer.Option(help="Names of models: a,b; default: all.")] = None,
        preset: Annotated[Optional[str], typer.Option(help="smoke, laptop, t4; default: by device.")] = None,
        n: Annotated[int, typer.Option("--n", min=4, help="Samples that a model is measured by.")] = 256,
        board: Annotated[Path, typer.Option(help="Leaderboard that gets the rows.")] = Path(
            "runs/leaderboard.jsonl"),
        precision: Precision = None, compiled: Compiled = False, cpu: Cpu = False):
    """Train and measure the models of the course in the time there is.

    What stands in runs/NAME goes on, or is kept if it is finished; delete it to train it anew.
    """
    from ..recipe import preset_name
    from ..training.shipped import models
    from .everything import train_all
    chosen = list(models()) if only is None else only.split(",")
    if unknown := set(chosen) - set(models()):
        raise BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(models())}",
                           param_hint="--only")
    train_all(chosen, preset_name(preset), budget, n, board, precision=precision, compiled=compiled,
              cpu=cpu)


# ---- models

app.command()(sample)
app.command()(evaluate)


@app.command("leaderboard")
def show_leaderboard(
        board: Annotated[Optional[Path], typer.Option(help="Default: the course's own, and yours.")] = None,
        plot: Annotated[Optional[Path], typer.Option(help="Write quality against compute to a .png.")] = None,
        markdown: Annotated[bool, typer.Option("--markdown", help="Print tables for a page.")] = False,
        as_json: Json = False):
    """Show what was measured of every model, and what it cost."""
    from ..evaluation import leaderboard

    rows = leaderboard.read(board)
    if board is None and leaderboard.OWN.exists():
        rows += leaderboard.read(leaderboard.OWN)
    if plot is not None:
        from ..classroom.board import quality_against_compute
        quality_against_compute(rows).save(plot)
    say(rows, as_json, [leaderboard.table(rows, markdown)])


def version(show: bool):
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(_: Annotated[bool, typer.Option("--version", callback=version, is_eager=True)] = False,
            _traceback: Annotated[bool, typer.Option("--traceback", help="Of an error.")] = False):
    pass


def main() -> None:
    """Run a command.  Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, ImportError, OverflowError, MemoryError) as error:
        if "--traceback" in sys.argv or not str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
