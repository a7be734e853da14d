"""train: one command per paper, its options made from the signature of its recipe."""
import inspect
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

from .. import papers
from .common import PLAIN, Compiled, Cpu, Precision, given


def train_options(
        preset: Annotated[Optional[str], typer.Option(help="smoke, laptop, t4; default: by device.")] = None,
        steps: Annotated[Optional[int], typer.Option(min=1, help="Default: the preset's.")] = None,
        batch_size: Annotated[Optional[int], typer.Option(min=1, help="Over all processes.")] = None,
        lr: Annotated[Optional[float], typer.Option(help="Default: the preset's.")] = None,
        data: Annotated[Optional[str], typer.Option(help="A name, as for `data`, or a folder.")] = None,
        out: Annotated[Optional[Path], typer.Option(help="Folder of the run; default: runs/PAPER.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out if any.")] = False,
        init: Annotated[Optional[str], typer.Option(help="Weights to begin with: a, or a,b; none.")] = None,
        save_and_sample_every: Annotated[int, typer.Option(min=1, help="Steps from save to save.")] = 500,
        accumulate: Annotated[int, typer.Option(min=1, help="Parts of a batch, to save memory.")] = 1,
        shard: Annotated[bool, typer.Option("--shard", help="Share the weights out over processes.")] = False,
        precision: Precision = None, compiled: Compiled = False, cpu: Cpu = False, seed: int = 0,
        tracker: Annotated[Optional[str], typer.Option(help="tensorboard or wandb.")] = None):
    """The options that every paper has."""


def train(name: str, recipe_kwargs: dict[str, Any], *, preset, steps, batch_size, lr, data, out, resume, init,
          save_and_sample_every, accumulate, shard, precision, compiled, cpu, seed, tracker) -> None:
    import torch

    from ..classroom.figures import loss_curve
    from ..training import checkpoints
    from ..training.runs import begin

    if not papers.module(name).PRESETS:
        raise BadParameter(f"{name} is training-free: it samples from the model of another paper")
    out = out or Path("runs") / name
    trainer, batches = begin(
        name, out, preset, data, resume=resume, init=init, recipe=recipe_kwargs, cpu=cpu, seed=seed,
        tracker=tracker, numbers=given(steps=steps, batch_size=batch_size, lr=lr), accumulate=accumulate,
        shard=shard, precision=precision, compiled=compiled, save_every=save_and_sample_every,
        sample_every=save_and_sample_every)
    if trainer.main:
        if trainer.step:
            print(f"going on from step {trainer.step} of {out}")
        weights = sum(p.numel() for p in trainer.weights.values())
        facts = trainer.facts
        print(f"{name} ({facts['preset']}): {weights / 1e6:.2f} M weights, {trainer.total} steps of "
              f"{facts['batch_size']} on {facts['data']}, {trainer.device}, {torch.get_num_threads()} "
              f"threads -> {out}", flush=True)
    for _ in trainer.run(batches, bar=True):
        pass
    trainer.accelerator.end_training()
    if trainer.main:
        loss_curve(trainer.losses, out / "loss.png")
        card = checkpoints.write_card(out / "model.safetensors")
        loss, count = trainer.summary()["metrics"]["loss"], trainer.accelerator.num_processes
        pace = trainer.step * facts["batch_size"] / count / max(trainer.seconds, 1e-9)
        print(f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes, {pace:.3g} items per second"
              f"{f' in each of {count} processes' if count > 1 else ''}, loss {loss:.4f}\nmodel    "
              f"{card.with_suffix('.safetensors')}\nsamples  {out / 'samples'}\nlosses   {out / 'loss.png'}")


def train_command(name: str) -> TyperCommand:
    """The command of one paper: the common options and those of its recipe."""
    from ..recipe import Count, Recipe
    recipe = papers.module(name).recipe
    kinds = {int: int, Count: int, float: float, str: str, bool: bool, Recipe | None: str}   # its name
    common = list(inspect.signature(train_options).parameters.values())
    taken = {p.name for p in common}
    own = [inspect.Parameter(p.name, p.KEYWORD_ONLY, default=None, annotation=Annotated[
               Optional[kinds[p.annotation]], typer.Option(help=f"Default: the preset's, else {p.default}.")])
           for p in inspect.signature(recipe).parameters.values()
           if p.name not in taken and p.annotation in kinds]

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
