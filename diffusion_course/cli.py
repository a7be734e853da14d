"""The same recipes from a terminal: diffusion-course, or python -m diffusion_course."""
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

from . import __version__, papers

PLAIN = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
app = typer.Typer(name="diffusion-course", no_args_is_help=True, **PLAIN,
                  help="Diffusion models for images and videos, rebuilt paper by paper.")
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
SAMPLERS = ("ancestral", "ddim", "euler", "heun", "dpm++")


def stepper(sampler: str):
    """The step of that name, made afresh if it has a memory."""
    from .diffusion import samplers
    return samplers.DPMSolver() if sampler == "dpm++" else getattr(samplers, f"{sampler}_step")


def say(facts: list[dict[str, Any]], as_json: bool, lines: Iterable[str]) -> None:
    """Print facts as JSON, or the lines that tell them to a reader."""
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines))


# ---- papers, data, doctor, lessons

@app.command("papers")
def show_papers(as_json: Json = False):
    """List the papers that can be trained."""
    from .training.shipped import SHIPPED
    rows = [{"paper": name, "citation": papers.citation(name),
             "checkpoint": name in SHIPPED} for name in papers.names()]
    width = max(len(row["paper"]) for row in rows)
    say(rows, as_json, (f"{row['paper']:{width}}  {'checkpoint' if row['checkpoint'] else '':10}  "
                        f"{row['citation']}" for row in rows))


@app.command("data")
def show_data(
        name: Annotated[Optional[str], typer.Argument(help="mnist, digits, or a folder of images.")] = None,
        out: Annotated[Optional[Path], typer.Option(help="Write a picture of the first 64 items.")] = None,
        as_json: Json = False):
    """Fetch a data set if need be, and say what is in it."""
    from .data import media
    from .data.mnist import load

    if out is not None:
        media.check_format(out, video=False)
    splits = {"train": load(name)}
    if name in (None, "mnist", "digits"):                      # a folder has no splits
        splits["test"] = load(splits["train"].name, "test")
    facts = [{"name": data.name, "split": split, "items": len(data), "shape": list(data.pixels.shape[1:]),
              "per_label": None if data.labels is None else data.labels.bincount().tolist()}
             for split, data in splits.items()]
    if out is not None:
        media.write(out, splits["train"][slice(64)]["x"])
    say(facts, as_json, (f"{row['name']} {row['split']}: {row['items']} items of {row['shape']}"
                         + (f", per label {row['per_label']}" if row["per_label"] else "") for row in facts))


@app.command()
def doctor(as_json: Json = False):
    """Check versions, device, memory, disk and data; say how to mend what fails."""
    from .classroom.doctor import examine
    findings = [{"ok": ok, "found": found, "fix": fix} for ok, found, fix in examine()]
    say(findings, as_json, (f"OK    {row['found']}" if row["ok"] else
                            f"FAIL  {row['found']}\n      -> {row['fix']}" for row in findings))
    raise typer.Exit(0 if all(row["ok"] for row in findings) else 1)


@app.command("lessons")
def show_lessons(as_json: Json = False, markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of the README.")] = False):
    """List the lessons of the course, and say which are ready."""
    from .classroom.curriculum import LESSONS, facts, markdown_table, text_table
    say([facts(lesson) for lesson in LESSONS], as_json, [markdown_table() if markdown else text_table()])


@app.command("run")
def run_lesson(
        lesson: Annotated[str, typer.Argument(metavar="LESSON", help="Its number or name: 1, 01, ddpm.")],
        preset: Annotated[Optional[str], typer.Option(help="smoke, laptop, t4; default: by device.")] = None,
        out: Annotated[Path, typer.Option(help="Folder of the executed notebook.")] = Path("runs/lessons"),
        timeout: Annotated[Optional[int], typer.Option(min=1, help="Seconds for each cell.")] = None):
    """Run a lesson's notebook without a browser, and keep its pictures as files."""
    from .classroom.curriculum import find, notebook
    from .classroom.runner import run
    print(run(notebook(find(lesson)), out, preset, timeout))


# ---- train: one command per paper, its options made from the signature of its recipe

def train_options(
        preset: Annotated[Optional[str], typer.Option(help="smoke, laptop, t4; default: by device.")] = None,
        steps: Annotated[Optional[int], typer.Option(min=1, help="Default: the preset's.")] = None,
        batch_size: Annotated[Optional[int], typer.Option(min=1, help="Over all processes.")] = None,
        lr: Annotated[Optional[float], typer.Option(help="Default: the preset's.")] = None,
        data: Annotated[Optional[str], typer.Option(help="mnist, digits, or a folder of images.")] = None,
        out: Annotated[Optional[Path], typer.Option(help="Folder of the run; default: runs/PAPER.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out if any.")] = False,
        save_and_sample_every: Annotated[int, typer.Option(min=1, help="Steps from save to save.")] = 500,
        accumulate: Annotated[int, typer.Option(min=1, help="Parts of a batch, to save memory.")] = 1,
        precision: Annotated[Optional[str], typer.Option(help="no, fp16, bf16; default: by device.")] = None,
        cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False, seed: int = 0,
        tracker: Annotated[Optional[str], typer.Option(help="tensorboard or wandb.")] = None):
    """The options that every paper has."""


def train(name: str, recipe_kwargs: dict[str, Any], *, preset, steps, batch_size, lr, data, out, resume,
          save_and_sample_every, accumulate, precision, cpu, seed, tracker) -> None:
    import torch
    from accelerate import PartialState

    from .classroom.figures import loss_curve
    from .data.mnist import load
    from .recipe import preset_name
    from .training import checkpoints
    from .training.trainer import Trainer

    module, preset = papers.module(name), preset_name(preset)
    if not module.PRESETS:
        raise BadParameter(f"{name} is training-free: it samples from the model of another paper")
    numbers = replace(module.PRESETS[preset], **given(steps=steps, batch_size=batch_size, lr=lr))
    out = out or Path("runs") / name
    begun = (out / "state.safetensors").exists()
    if begun and not resume:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    torch.manual_seed(seed)
    recipe = module.recipe(**{**numbers.recipe, **recipe_kwargs})
    with PartialState(cpu=cpu).main_process_first():           # one process fetches, the others find
        images = load(data or (None if recipe.data == "mnist" else recipe.data), size=recipe.shape[-1],
                      channels=recipe.shape[0])
    if images.pixels.ndim != len(recipe.shape) + 1:
        raise ValueError(f"{images.name} holds items of {list(images.pixels.shape[1:])}, and {name} makes "
                         f"samples of {list(recipe.shape)}; choose other --data")
    classes = recipe.origin.kwargs.get("classes")
    if classes and (images.labels is None or images.labels.max() >= classes):
        found = "has no labels" if images.labels is None else f"has the labels 0 ... {images.labels.max()}"
        raise BadParameter(f"{classes} do not fit the data: {images.name} {found}", param_hint="--classes")
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()                    # refused now if it cannot be written to
    trainer = Trainer(recipe, out, steps=numbers.steps, lr=numbers.lr, ema=numbers.ema, accumulate=accumulate,
                      seed=seed, precision=precision, cpu=cpu, tracker=tracker,
                      save_every=save_and_sample_every, sample_every=save_and_sample_every,
                      facts={"data": images.name, "preset": preset, "batch_size": numbers.batch_size})
    trainer.sample_options = quick_options(recipe, trainer.samples)
    if begun:
        trainer.resume()
    if trainer.main:
        if begun:
            print(f"going on from step {trainer.step} of {out}")
        weights = sum(p.numel() for p in trainer.weights.values())
        print(f"{name} ({preset}): {weights / 1e6:.2f} M weights, {numbers.steps} steps of "
              f"{numbers.batch_size} on {images.name}, {trainer.device}, {torch.get_num_threads()} threads "
              f"-> {out}", flush=True)
    for _ in trainer.run(images.batches(numbers.batch_size, seed), bar=True):
        pass
    trainer.accelerator.end_training()
    if trainer.main:
        loss_curve(trainer.losses, out / "loss.png")
        card = checkpoints.write_card(out / "model.safetensors")
        loss = trainer.summary()["metrics"]["loss"]
        print(f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes, loss {loss:.4f}\nmodel    "
              f"{card.with_suffix('.safetensors')}\nsamples  {out / 'samples'}\nlosses   {out / 'loss.png'}")


def given(**options) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def quick_options(recipe, num: int) -> dict[str, Any]:
    """50 DDIM steps (or all there are) where the recipe offers that; labels in turn where it takes them."""
    offered, options = inspect.signature(recipe.sample).parameters, {}
    if {"steps", "step"} <= set(offered):
        options = {"steps": min(50, offered["steps"].default), "step": stepper("ddim")}
    if classes := recipe.origin.kwargs.get("classes"):
        import torch
        options["label"] = torch.arange(num, device=next(recipe.model.parameters()).device) % classes
    return options


def train_command(name: str) -> TyperCommand:
    """The command of one paper: the common options and those of its recipe."""
    recipe = papers.module(name).recipe
    common = list(inspect.signature(train_options).parameters.values())
    taken = {p.name for p in common}
    own = [inspect.Parameter(p.name, p.KEYWORD_ONLY, default=None, annotation=Annotated[
               Optional[p.annotation], typer.Option(help=f"Default: the preset's, else {p.default}.")])
           for p in inspect.signature(recipe).parameters.values()
           if p.name not in taken and p.annotation in (int, float, str, bool)]

    def command(**kwargs):
        train(name, given(**{p.name: kwargs.pop(p.name) for p in own}), **kwargs)

    command.__doc__ = f"Train {name}: {papers.citation(name)}"
    command.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in common] + own)
    command.__annotations__ = {p.name: p.annotation for p in (*common, *own)}
    single = typer.Typer(**PLAIN)
    single.command(name)(command)
    return typer.main.get_command(single)


class Papers(TyperGroup):
    """A group with a subcommand per paper, imported only when it is asked for."""

    def list_commands(self, ctx):
        return papers.names()

    def get_command(self, ctx, name):
        return train_command(name) if name in papers.names() else None

    def resolve_command(self, ctx, args):
        if args and args[0] not in papers.names():
            raise BadParameter(f"there is no paper {args[0]!r}; there are: {', '.join(papers.names())}", ctx,
                               param_hint="PAPER")
        return super().resolve_command(ctx, args)


training = typer.Typer(cls=Papers, rich_markup_mode=None, help="Train a paper: train PAPER [options]; "
                       "train PAPER --help lists the options of its recipe.", no_args_is_help=True)
training.callback()(lambda: None)
app.add_typer(training, name="train")


# ---- sample

@app.command()
def sample(what: Annotated[str, typer.Argument(metavar="CHECKPOINT|PAPER",
                                               help="A model file, the folder of a run, or a paper.")],
           num: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
           steps: Annotated[Optional[int], typer.Option(min=1, help="Default: 50, or all there are.")] = None,
           sampler: Annotated[Optional[str], typer.Option(help=", ".join(SAMPLERS))] = None,
           scale: Annotated[Optional[float], typer.Option(help="Guidance; 1 = none.")] = None,
           label: Annotated[Optional[int], typer.Option(help="The class; default: all in turn.")] = None,
           seed: int = 0,
           out: Annotated[Optional[Path], typer.Option(help=".png, .gif, .mp4 or .npy.")] = None):
    """Draw samples from a checkpoint, a run or a paper's shipped checkpoint."""
    import torch

    from .data import media
    from .training.checkpoints import load_model, locate

    if sampler not in (None, *SAMPLERS):
        raise BadParameter(f"{sampler!r} must be one of {', '.join(SAMPLERS)}", param_hint="--sampler")
    path = locate(what)
    recipe = load_model(path, "cuda" if torch.cuda.is_available() else "cpu")
    video = len(recipe.shape) == 4
    out = media.check_format(out or ("samples.gif" if video else "samples.png"), video)
    classes = recipe.origin.kwargs.get("classes", 0)
    if not classes and (label is not None or scale is not None):
        raise BadParameter(f"{path} was trained without labels", param_hint="--label or --scale")
    chosen = given(steps=steps, step=sampler and stepper(sampler), scale=scale)
    offered = set(inspect.signature(recipe.sample).parameters)
    if surplus := set(chosen) - offered:
        raise BadParameter(f"{recipe.origin.paper} does not let one choose the {' and '.join(surplus)}")
    options = quick_options(recipe, num) | chosen | ({"bar": True} if "bar" in offered else {})
    if label is not None:
        if not 0 <= label < classes:
            raise BadParameter(f"{label} must be in 0 ... {classes - 1}", param_hint="--label")
        options["label"].fill_(label)
    began = time.monotonic()
    written = media.write(out, recipe.draw(num, seed, **options))
    print(f"{num} samples of {recipe.origin.paper} in {time.monotonic() - began:.1f} s -> {written}")


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
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if "--traceback" in sys.argv or not str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
