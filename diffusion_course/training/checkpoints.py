"""Checkpoints: where they are, and the recipes that are made from them.

The JSON in the file says which paper file and which keyword arguments make the recipe, so that a file is all
one needs.
"""
import inspect
import json
import math
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import papers
from ..data import download, files
from ..recipe import Recipe
from .container import CheckpointError, read_averaged, read_header, write
from .processes import part_of
from .shipped import SHIPPED, file_of, shipped

LARGEST = 1 << 26  # numbers in a table that a header may ask for


def frozen(model: nn.Module) -> set[str]:
    """The names of the weights that do not train: they are of a part that was trained first."""
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def own_weights(model: nn.Module, others: set[str]) -> dict[str, Tensor]:
    """What is saved of a model: all but the frozen weights of others, which are saved with these."""
    return {name: x for name, x in model.state_dict().items() if name not in others}


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: str | Path,
                 others: set[str] = frozenset()) -> None:
    """Copy tensors into model, all but the weights of others; a CheckpointError names what is missing,
    surplus or of another shape."""
    own = own_weights(model, others)
    faults = [f"{name} is missing" for name in own if name not in tensors]
    faults += [f"{name} is not in the model" for name in tensors if name not in own]
    faults += [f"{name} is {tensors[name].dtype}" for name in own if name in tensors
               and tensors[name].is_complex() != own[name].is_complex()]
    faults += [f"{name} is {tuple(tensors[name].shape)}, the model's is {tuple(own[name].shape)}"
               for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if faults:
        raise CheckpointError(f"{path} does not fit its model: " + "; ".join(faults[:5]) +
                              (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""))
    model.load_state_dict({name: part_of(x, own[name]) for name, x in tensors.items()},
                          strict=False)                        # others have theirs


def start_from(model: nn.Module, path: str | Path,
               renamed: Callable[[str, str], str] = lambda name, paper: name) -> dict[str, Any]:
    """Give model those weights of a checkpoint that fit by name and shape; say whose, after how many steps.

    The others, of what only the new model has, stay as they are.  renamed(name, paper) says what a weight of
    that name, in models of that paper, is called here.
    """
    tensors, header = read_averaged(path)
    tensors = {renamed(name, header.get("paper", "")): t for name, t in tensors.items()}
    own = own_weights(model, frozen(model))
    fit = {name: t for name, t in tensors.items() if name in own and own[name].shape == t.shape}
    weights, total = (sum(own[name].numel() for name in names) for names in (fit, own))
    if 2 * weights < total:
        raise CheckpointError(f"{path}: only {weights:,} of the {total:,} weights of this model are in it; "
                              "begin with another (--init), or with none (--init none)")
    model.load_state_dict(fit, strict=False)
    return {**identity(path), "steps": steps_in_all(header)}


def steps_in_all(header: dict[str, Any]) -> int:
    """The steps of a model and of the one that it began with."""
    before = header.get("init", {}).get("steps", 0)
    return header.get("step", 0) + (before if isinstance(before, int) else 0)


def identity(path: str | Path) -> dict[str, str]:
    """The name of a checkpoint, or of the run that it belongs to, and its SHA-256."""
    path = Path(path)
    name = path.resolve().parent.name if path.stem in ("model", "state") else path.stem
    return {"checkpoint": name, "sha256": download.sha256_of(path)}


def obtain(slug: str) -> Path:
    """A shipped checkpoint or study: of the clone, of DIFFUSION_COURSE_DATA, of the cache, else fetched.

    The clone's file is trusted, as it may be a new one; others must have the table's SHA-256.  A
    FileNotFoundError says what was tried.
    """
    if slug not in SHIPPED:
        raise FileNotFoundError(f"no {slug!r} is shipped; there are: {', '.join(SHIPPED)}")
    if download.repository_data() and shipped(slug).is_file():
        return shipped(slug)
    name, expected, tried = file_of(slug), SHIPPED[slug].sha256, []
    places = [folder / name for folder in (download.given_folder(), download.cache_folder()) if folder]
    for path in places:
        if not path.is_file():
            tried.append(f"{path}: no such file")
        elif (found := download.sha256_of(path)) != expected:
            tried.append(f"{path}: refused, its SHA-256 is {found}, expected {expected}")
        else:
            return path
    try:
        return download.fetch([download.repository_url(f"data/{name}")], places[-1], sha256=expected)
    except download.DownloadError as error:
        tried.append(" ".join(str(error).split()))
        raise FileNotFoundError(f"{name} cannot be had: {'; '.join(tried)}") from error


def locate(what: str) -> Path:
    """A model file, the model of a run's folder, or a paper's checkpoint: shipped, else of its last run."""
    path = Path(what)
    if os.path.isdir(what):
        path = path / "model.safetensors"
    if path.suffix or os.path.exists(path):
        return path
    if what not in papers.names() and what not in SHIPPED:
        raise ValueError(f"{what!r} is neither a checkpoint, nor the folder of a run, nor a paper "
                         f"({', '.join(papers.names())})")
    run = Path("runs") / what / "model.safetensors"
    try:
        return obtain(what)
    except FileNotFoundError as error:
        if run.exists():
            return run
        if what not in papers.names():
            raise
        raise ValueError(f"there is no checkpoint of {what} yet, nor {run} ({error}); "
                         f"train one: diffusion-course train {what}") from error


def origin_header(recipe: Recipe) -> dict[str, Any]:
    """What a header says of where the recipe comes from."""
    if recipe.origin is None:
        raise ValueError("this recipe was not made by a paper's recipe(...), "
                         "so it could not be made again from a file")
    try:
        kwargs = json.loads(json.dumps(recipe.origin.kwargs, default=reference))
    except TypeError as error:
        raise ValueError(f"the keyword arguments of {recipe.origin.paper}.recipe "
                         f"cannot be stored: {error}") from error
    return {"paper": recipe.origin.paper, "kwargs": kwargs}


def reference(part: Any) -> dict[str, str]:
    """What stands for a model that was trained first: the name and SHA-256 of its checkpoint."""
    if isinstance(part, Recipe) and part.checkpoint:
        return part.checkpoint
    raise TypeError(f"{type(part).__name__} is neither plain nor a model loaded from a checkpoint")


def fetch_part(part: dict[str, str], path: str | Path) -> Recipe:
    """The model that stands behind a reference in the header of path: one that ships, or of a run here."""
    name, tried = part["checkpoint"], []
    if not re.fullmatch(r"\w[\w.-]*", str(name)):              # it becomes a part of a path
        raise CheckpointError(f"{path}: its header names a model {name!r:.80}, which is no name")
    for find in (obtain, lambda name: Path("runs") / name / "model.safetensors"):
        try:
            found = load_model(find(name))
        except FileNotFoundError as error:
            tried.append(str(error))
            continue
        except RecursionError as error:
            raise CheckpointError(f"{path}: it was trained with itself, says its header") from error
        if found.checkpoint["sha256"] == part.get("sha256"):
            return found
        tried.append(f"{find(name)} has SHA-256 {found.checkpoint['sha256']}")
    raise CheckpointError(f"{path}: it was trained with a {name} of SHA-256 {part.get('sha256')}, which "
                          f"is not here: {'; '.join(tried)}")


@contextmanager
def at_most(weights: int):
    """Stop a model that is made in this block when it gets many more weights, before they are filled."""
    made, most = 0, 2 * weights + 1_000_000                    # a few more are told by name, later

    def count(module, name, weight):
        nonlocal made
        made += 0 if weight is None else weight.numel()
        if made > most:
            raise ValueError(f"it would have many more weights than the {weights:,} of this file")

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def rebuild(header: dict[str, Any], path: str | Path, weights: int) -> Recipe:
    """The recipe that a header names, if it has no more than so many weights."""
    name, kwargs = header.get("paper"), header.get("kwargs")
    if name not in papers.names() or not isinstance(kwargs, dict):
        raise CheckpointError(f"{path}: its header names no paper and keyword arguments: there is no paper "
                              f"{name!r:.80}")
    if surplus := set(kwargs) - set(inspect.signature(papers.module(name).recipe).parameters):
        raise CheckpointError(f"{path}: its recipe {name} has no argument {sorted(surplus)[0]!r:.80}")
    counts = sorted(value for value in kwargs.values() if isinstance(value, int)) or [0]
    if math.prod(counts[-2:]) > LARGEST:                       # of tables that are no weights
        raise CheckpointError(f"{path}: its recipe {name} counts to {counts[-2:]}; no model here is so large")
    kwargs = {key: fetch_part(value, path) if isinstance(value, dict) and "checkpoint" in value else value
              for key, value in kwargs.items()}
    try:
        with at_most(weights):
            made = papers.module(name).recipe(**kwargs)
        if max(math.prod(made.item), math.prod(made.shape)) > LARGEST // 16:
            raise ValueError(f"its samples are {list(made.item)}")
        return made
    except Exception as error:                                 # a foreign file may ask for anything
        raise CheckpointError(f"{path}: its recipe {name}({kwargs!s:.500}) cannot be made: "
                              f"{error}") from error


def save_model(path: str | Path, recipe: Recipe, averages: dict[str, Tensor] | None = None,
               **facts: Any) -> Path:
    """The averaged weights, or those given, in half precision: what is sampled, evaluated and shared."""
    model = recipe.ema.average if recipe.ema else recipe.model
    averages = averages or own_weights(model, frozen(recipe.model))
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in averages.items()}
    return write(Path(path), tensors, {"kind": "model", **origin_header(recipe), **facts})


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Recipe:
    """The recipe of a model checkpoint or of a training state, with its averaged weights."""
    tensors, header = read_averaged(path)
    recipe = rebuild(header, path, sum(t.numel() for t in tensors.values()))
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    load_weights(recipe.model, tensors, path, frozen(recipe.model))
    for part in (recipe.model, *recipe.frozen):
        part.to(device).eval()
    recipe.checkpoint = identity(path)
    return recipe


def write_card(path: str | Path, **facts: Any) -> Path:
    """The card beside a checkpoint: its header, further facts and its sha256, as JSON."""
    path = Path(path)
    card = read_header(path) | facts | {"sha256": download.sha256_of(path)}
    out = path.with_suffix(".json")
    with files.whole(out) as part:
        part.write_text(json.dumps(card, indent=2) + "\n")
    return out
