"""A run: a paper, its data and a trainer in a folder.  The command line and the lessons begin theirs here."""
import inspect
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from .. import papers
from ..data import sources
from ..data.captions import tokens
from ..data.images import Images
from ..recipe import Recipe, preset_name
from . import checkpoints, container
from .container import CheckpointError
from .trainer import Trainer


def begin(name: str, folder: str | Path, preset: str | None = None, data: str | None = None, *,
          resume: bool = False, init: str | None = None, recipe: dict[str, Any] | None = None,
          numbers: dict[str, Any] | None = None, cpu: bool = False, seed: int = 0, compiled: bool = False,
          **options) -> tuple[Trainer, Any]:
    """A trainer for a paper at a preset, and its batches; with resume it goes on with what is in the folder.

    init names a model whose weights it starts from, "none" is none, and "a,b" is a with the weights of b laid
    over; recipe and numbers take the place of the preset's own arguments; options are the trainer's.  On data
    of one's own a preset does not begin with models of the course.  compiled: see compile_networks.
    """
    module, preset, folder = papers.module(name), preset_name(preset), Path(folder)
    begun = (state := folder / "state.safetensors").exists()
    if begun and not resume:
        raise ValueError(f"{folder} already holds a run; add --resume to go on with it, or choose another "
                         "--out")
    plan = replace(module.PRESETS[preset], **(numbers or {}))
    own = data is not None and data not in sources.SPLIT       # the course's models know digits only
    usual = {name: value for name, value in plan.recipe.items() if not own or name not in parts(module)}
    init = init or (None if own else plan.init)
    torch.manual_seed(seed)
    made = recipe_of(name, {**usual, **(recipe or {})})
    with PartialState(cpu=cpu).main_process_first():           # one process fetches, the others find
        source = data_of(made, data)
    check(made, source)
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()                 # refused now if it cannot be written to
    facts = {"data": source.name, "preset": preset, "batch_size": plan.batch_size}
    for model in (init or "none").split(",") if not begun else ():
        if model != "none":                                    # what several have, the last one gives
            over = {"over": facts["init"]} if "init" in facts else {}
            renamed = {"renamed": module.renamed} if hasattr(module, "renamed") else {}
            facts["init"] = checkpoints.start_from(made.model, checkpoints.locate(model), **renamed) | over
    options.setdefault("samples", 16 if len(made.item) == 3 else max(1, min(16, 256 // made.item[1])))
    trainer = Trainer(made, folder, steps=plan.steps, lr=plan.lr, ema=plan.ema, seed=seed, cpu=cpu,
                      facts=facts, **options)
    asked = {name: value.to(trainer.device) for name, value in
             made.asked(source[torch.arange(trainer.samples) % len(source)]).items()}
    trainer.sample_options = made.quick(trainer.samples) | asked
    if compiled:
        compile_networks(trainer)
    if begun:
        try:
            trainer.resume()
            trainer.facts |= {key: value for key, value in container.read_header(state).items()
                              if key == "init"}
        except CheckpointError as error:
            raise CheckpointError(f"{error}; move {folder} away to train at the preset {preset}") from error
    return trainer, source.batches(plan.batch_size, seed)


def compile_networks(trainer: Trainer) -> None:
    """Have torch.compile make the denoiser's network faster, and the encoder before it.

    It takes a minute or two at the first step.  Where there is no compiler that works, they run as ever.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=trainer.device))
    except Exception as error:                                 # every system lacks something else
        trainer.accelerator.print(f"not compiled: {str(error).splitlines()[0]:.200}", flush=True)
        return
    recipe = trainer.recipe
    for net in getattr(recipe.model, "net", None), getattr(recipe.autoencoder, "encoder", None):
        if net is not None:
            net.compile()


def data_of(recipe: Recipe, name: str | None, split: str = "train") -> Any:
    """Data of that name, or its own, as the recipe wants them: the shape of its items, as many words."""
    own = None if recipe.data == "mnist" else recipe.data      # None: MNIST, or what stands in for it
    source = sources.load(name or own, recipe.item, split)
    return replace(source, **language(recipe)) if isinstance(source, Images) else source


def language(recipe: Recipe) -> dict[str, int]:
    """How many words a recipe's captions are made of, and how many they have: options of captions.tokens."""
    kwargs = recipe.origin.kwargs
    return {name: kwargs[name] for name in ("words", "length") if kwargs.get(name)}


def recipe_of(paper: str, kwargs: dict[str, Any]) -> Recipe:
    """A paper's recipe, where kwargs have the names of models that must be trained first."""
    module, made = papers.module(paper), dict(kwargs)
    for name, value in kwargs.items():
        if name in parts(module) and isinstance(value, str):
            made[name] = None if value == "none" else checkpoints.load_model(checkpoints.locate(value))
    return module.recipe(**made)


def parts(module) -> set[str]:
    """Which arguments of a paper's recipe are models that were trained before."""
    return {name for name, p in inspect.signature(module.recipe).parameters.items()
            if p.annotation == Recipe | None}


def check(recipe: Recipe, source: Any) -> None:
    """A ValueError unless the items of a data set are what the recipe makes."""
    if tuple(source.shape) != tuple(recipe.item):
        raise ValueError(f"{source.name} holds items of {list(source.shape)}, but {recipe.origin.paper} "
                         f"makes samples of {list(recipe.item)}; choose other --data")
    if recipe.takes("text") and "text" not in source[slice(1)]:
        try:
            tokens(getattr(source, "captions", None) or [], source.words, source.length)
        except ValueError as error:
            raise ValueError(f"{error}. For captions of your own choose --words 1000, or --length 30 for "
                             "longer ones") from error
        raise ValueError(f"{recipe.origin.paper} learns from captions, and {source.name} has none; choose "
                         "--data mnist or moving_mnist")
    classes = recipe.origin.kwargs.get("classes")
    labels = getattr(source, "labels", None)
    if classes and (labels is None or labels.max() >= classes):
        found = "has no labels" if labels is None else f"has the labels 0 ... {labels.max()}"
        raise ValueError(f"classes={classes} does not fit the data: {source.name} {found}")
