"""The same recipes from a terminal: diffusion-course, or python -m diffusion_course."""
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import click
import typer
from typer.core import TyperGroup

from . import __version__, papers

app = typer.Typer(name="diffusion-course", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
                  pretty_exceptions_enable=False, help="Diffusion models for images and videos, rebuilt paper by paper.")
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def samplers() -> dict[str, Any]:
    from .diffusion import samplers as s
    return {"ancestral": s.ancestral_step, "ddim": s.ddim_step, "euler": s.euler_step, "heun": s.heun_step,
            "dpm++": s.DPMSolver()}


def checkpoint_folder() -> Path:
    from .data.download import repository_data
    return (repository_data() or Path("data")) / "checkpoints"


# ---- papers, data, doctor

@app.command("papers")
def show_papers(as_json: Json = False):
    """List the papers that can be trained."""
    rows = [{"paper": name, "citation": papers.citation(name),
             "checkpoint": (checkpoint_folder() / f"{name}.safetensors").exists()} for name in papers.names()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["paper"]) for row in rows)
    for row in rows:
        print(f"{row['paper']:{width}}  {'checkpoint' if row['checkpoint'] else '':10}  {row['citation']}")


@app.command("data")
def show_data(name: Annotated[Optional[str], typer.Argument(help="mnist, digits, or a folder of images.")] = None,
              out: Annotated[Optional[Path], typer.Option(help="Write a picture of the first 64 items.")] = None,
              as_json: Json = False):
    """Fetch a data set if need be, and say what is in it."""
    from .data import media
    from .data.mnist import load

    facts = []
    for split in ("train", "test"):
        data = load(name, split)
        counts = data.labels.bincount().tolist() if data.labels is not None else None
        facts.append({"name": data.name, "split": split, "items": len(data), "shape": list(data.pixels.shape[1:]),
                      "per_label": counts})
        if name not in (None, "mnist", "digits"):              # a folder has no splits
            break
    if out is not None:
        import torch
        data = load(name)
        media.write(out, data[torch.arange(min(64, len(data)))]["x"])
    for row in facts:
        if not as_json:
            print(f"{row['name']} {row['split']}: {row['items']} items of {row['shape']}"
                  + (f", per label {row['per_label']}" if row["per_label"] else ""))
    if as_json:
        print(json.dumps(facts, indent=2))


@app.command()
def doctor(as_json: Json = False):
    """Check versions, device, memory, disk and data; say how to mend what fails."""
    from .classroom.doctor import examine

    findings = list(examine())
    if as_json:
        print(json.dumps([{"ok": ok, "found": found, "fix": fix} for ok, found, fix in findings], indent=2))
    else:
        for ok, found, fix in findings:
            print(f"{'OK  ' if ok else 'FAIL'}  {found}" + ("" if ok else f"\n      -> {fix}"))
    raise typer.Exit(0 if all(ok for ok, _, _ in findings) else 1)


# ---- train: one command per paper, its options made from the signature of its recipe

def train_options(
        preset: Annotated[Optional[str], typer.Option(help="smoke, laptop or t4; default: by device.")] = None,
        steps: Annotated[Optional[int], typer.Option(help="Default: the preset's.")] = None,
        batch_size: Annotated[Optional[int], typer.Option(help="Over all processes; default: the preset's.")] = None,
        lr: Annotated[Optional[float], typer.Option(help="Default: the preset's.")] = None,
        data: Annotated[Optional[str], typer.Option(help="mnist, digits, or a folder of images.")] = None,
        out: Annotated[Optional[Path], typer.Option(help="Folder of the run; default: runs/PAPER.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped, if any.")] = False,
        save_and_sample_every: Annotated[int, typer.Option(help="Steps between saves and pictures.")] = 500,
        accumulate: Annotated[int, typer.Option(help="Parts of a batch, to save memory.")] = 1,
        precision: Annotated[Optional[str], typer.Option(help="no, fp16 or bf16; default: by device.")] = None,
        cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
        seed: int = 0,
        tracker: Annotated[Optional[str], typer.Option(help="tensorboard or wandb.")] = None):
    """The options that every paper has."""


def train(name: str, recipe_kwargs: dict[str, Any], *, preset, steps, batch_size, lr, data, out, resume,
          save_and_sample_every, accumulate, precision, cpu, seed, tracker) -> None:
    import torch

    from .classroom.figures import loss_curve
    from .data.mnist import load
    from .recipe import preset_name
    from .training import checkpoints
    from .training.trainer import Trainer

    module, preset = papers.module(name), preset_name(preset)
    numbers = module.PRESETS[preset]
    steps, batch_size, lr = steps or numbers.steps, batch_size or numbers.batch_size, lr or numbers.lr
    out = out or Path("runs") / name
    begun = (out / "state.safetensors").exists()
    if begun and not resume:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    torch.manual_seed(seed)
    recipe = module.recipe(**{**numbers.recipe, **recipe_kwargs})
    images = load(data, size=recipe.shape[-1], channels=recipe.shape[0])
    facts = {"data": images.name, "preset": preset, "batch_size": batch_size}
    trainer = Trainer(recipe, out, steps=steps, lr=lr, ema=numbers.ema, accumulate=accumulate, seed=seed,
                      precision=precision, cpu=cpu, save_every=save_and_sample_every,
                      sample_every=save_and_sample_every, sample_options=quick_options(recipe), tracker=tracker,
                      facts=facts)
    if begun:
        print(f"going on from step {trainer.resume()} of {out}")
    if trainer.main:
        weights = sum(p.numel() for p in trainer.weights.values())
        print(f"{name} ({preset}): {weights / 1e6:.2f} M weights, {steps} steps of {batch_size} on {images.name}, "
              f"{trainer.device}, {torch.get_num_threads()} threads -> {out}", flush=True)
    for _ in trainer.run(images.batches(batch_size, seed), bar=True):
        pass
    trainer.accelerator.end_training()
    if trainer.main:
        loss_curve(trainer.losses, out / "loss.png")
        card = checkpoints.write_card(out / "model.safetensors")
        last = sorted((out / "samples").glob("step_*"))[-1]
        print(f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes, loss {trainer.summary()['metrics']['loss']:.4f}\n"
              f"model    {card.with_suffix('.safetensors')}\nsamples  {last}\nlosses   {out / 'loss.png'}")


def quick_options(recipe, steps: int = 50) -> dict[str, Any]:
    """50 DDIM steps, where the recipe lets one choose."""
    options = inspect.signature(recipe.sample).parameters
    quick = {"steps": steps, "step": samplers()["ddim"]} if {"steps", "step"} <= set(options) else {}
    classes = recipe.origin.kwargs.get("classes")
    if classes:
        import torch
        quick["label"] = torch.arange(16) % classes
    return quick


def train_command(name: str) -> click.Command:
    """The command of one paper: the common options and those of its recipe."""
    recipe = papers.module(name).recipe
    common = list(inspect.signature(train_options).parameters.values())
    taken = {p.name for p in common}
    own = [inspect.Parameter(p.name, p.KEYWORD_ONLY, default=None, annotation=Annotated[
               Optional[p.annotation], typer.Option(help=f"Default: the preset's, else {p.default}.")])
           for p in inspect.signature(recipe).parameters.values()
           if p.name not in taken and p.annotation in (int, float, str, bool)]

    def command(**kwargs):
        given = {p.name: kwargs.pop(p.name) for p in own}
        train(name, {key: value for key, value in given.items() if value is not None}, **kwargs)

    command.__doc__ = f"Train {name}: {papers.citation(name)}"
    command.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in common] + own)
    command.__annotations__ = {p.name: p.annotation for p in (*common, *own)}
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
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
            raise click.UsageError(f"there is no paper {args[0]!r}; there are: {', '.join(papers.names())}", ctx)
        return super().resolve_command(ctx, args)


training = typer.Typer(cls=Papers, rich_markup_mode=None, help="Train a paper: train PAPER [options]; "
                       "train PAPER --help lists the options of its recipe.", no_args_is_help=True)
training.callback()(lambda: None)
app.add_typer(training, name="train")


# ---- sample

@app.command()
def sample(what: Annotated[str, typer.Argument(metavar="CHECKPOINT|PAPER", help="A model file, the folder of a run, or a paper.")],
           num: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
           steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 50,
           sampler: Annotated[str, typer.Option(help="ancestral, ddim, euler, heun or dpm++.")] = "ddim",
           scale: Annotated[Optional[float], typer.Option(help="Guidance; 1 = none.")] = None,
           label: Annotated[Optional[int], typer.Option(help="Draw only this class; default: all in turn.")] = None,
           seed: int = 0,
           out: Annotated[Path, typer.Option(help=".png, .gif, .mp4 or .npy.")] = Path("samples.png")):
    """Draw samples from a checkpoint, a run or a paper's shipped checkpoint."""
    import torch

    from .data import media
    from .training.checkpoints import load_model

    if sampler not in samplers():
        raise ValueError(f"--sampler {sampler!r} must be one of {', '.join(samplers())}")
    path = find_checkpoint(what)
    recipe = load_model(path, "cuda" if torch.cuda.is_available() else "cpu")
    media.check_format(out, video=len(recipe.shape) == 4)
    options: dict[str, Any] = {"steps": steps, "step": samplers()[sampler], "bar": True}
    if scale is not None:
        options["scale"] = scale
    classes = recipe.origin.kwargs.get("classes", 0)
    if not classes and (label is not None or scale is not None):
        raise ValueError(f"{path} was trained without labels, so --label and --scale mean nothing to it")
    if classes:
        if label is not None and not 0 <= label < classes:
            raise ValueError(f"--label {label} must be in 0 ... {classes - 1}")
        labels = torch.arange(num) % classes if label is None else torch.full((num,), label)
        options["label"] = labels.to(next(recipe.model.parameters()).device)
    offered = inspect.signature(recipe.sample).parameters
    began = time.monotonic()
    x = recipe.draw(num, seed, **{key: value for key, value in options.items()
                                  if key in offered or key in ("label",)})
    written = media.write(out, x)
    print(f"{num} samples of {recipe.origin.paper} in {time.monotonic() - began:.1f} s -> {written}")


def find_checkpoint(what: str) -> Path:
    """A model file, the model of a run's folder, or the checkpoint of a paper: shipped, else of its last run."""
    path = Path(what)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix or path.exists():
        return path
    if what not in papers.names():
        raise ValueError(f"{what!r} is neither a checkpoint, nor the folder of a run, nor a paper "
                         f"({', '.join(papers.names())})")
    places = [checkpoint_folder() / f"{what}.safetensors", Path("runs") / what / "model.safetensors"]
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"there is no checkpoint of {what} yet ({' or '.join(map(str, places))}); "
                     f"train one: diffusion-course train {what}")


def version(show: bool):
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(_: Annotated[bool, typer.Option("--version", callback=version, is_eager=True)] = False):
    pass


def main() -> None:
    """Run a command.  Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if "-v" in sys.argv or not str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
