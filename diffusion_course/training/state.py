"""The state of a run, so that a resumed one equals an unbroken one: weights, averages, optimizer, position.

Random state is not among it: all random numbers of a step are a function of (seed, step).
"""
import json
import math
from pathlib import Path

import torch
from filelock import BaseFileLock, Timeout
from torch import Tensor

from ..data import files
from . import checkpoints, container
from .container import CheckpointError
from .processes import part_of, whole


def save(trainer) -> None:
    """Write log, model (to sample from) and state (to resume from) into the run's folder, in that order.

    A run that is killed in between has a log and a model ahead of its state; resuming mends both.  What was
    shared out every process puts together, and the first one writes.
    """
    model, others = trainer.recipe.model, checkpoints.frozen(trainer.recipe.model)
    weights, averages = ({name: whole(x) for name, x in checkpoints.own_weights(part, others).items()}
                         for part in (model, trainer.ema.average))
    if not all(x.isfinite().all() for x in weights.values()):
        raise trainer.failure(f"the weights are not finite after step {trainer.step}")
    tensors = {f"{part}.{name}": x for part, own in [("model", weights), ("ema", averages)]
               for name, x in own.items()}
    for name, p in trainer.weights.items():
        tensors |= {f"optimizer.{name}/{key}": whole(x) for key, x in trainer.optimizer.state[p].items()}
    if trainer.main:
        write(trainer, averages, tensors)
    trainer.saved = trainer.step


def write(trainer, averages: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Log, model and state into the folder, each whole or not at all."""
    folder, recipe = trainer.folder, trainer.recipe
    lines = [json.dumps({"step": n, "loss": loss}) + "\n" for n, loss in enumerate(trainer.losses, 1)]
    with files.whole(folder / "log.jsonl") as part:
        part.write_text("".join(lines))
    scaler = trainer.accelerator.scaler
    header = {"kind": "state", **checkpoints.origin_header(recipe), **trainer.summary(),
              "settings": trainer.settings(), "ema_updates": trainer.ema.updates,
              "scaler": scaler.state_dict() if scaler else None}
    checkpoints.save_model(folder / "model.safetensors", recipe, averages, **trainer.summary())
    container.write(folder / "state.safetensors", tensors, header)


def hold(trainer) -> BaseFileLock | None:
    """Hold the trainer's folder until release(), and remove what a killed run left half written.

    A ValueError if another process trains there, or if it holds what this trainer neither saved nor resumed.
    """
    folder, path = trainer.folder, trainer.folder / "state.safetensors"
    try:
        held = files.lock(folder / ".lock")
    except Timeout:
        raise ValueError(f"{folder}: another process is training there; wait for it, or choose another "
                         "folder (--out)") from None
    try:
        step = container.read_header(path).get("step", -1) if path.exists() else trainer.saved
        if step != trainer.saved and trainer.saved is None:
            raise ValueError(f"{folder} already holds a run; resume() goes on with it, or choose another "
                             "folder")
        if step != trainer.saved:
            raise ValueError(f"{folder}: another process went on to step {step} since; resume() again")
        files.remove_parts(folder)
        files.remove_parts(folder / "samples")
    except BaseException:
        if held is not None:
            held.release()
        raise
    return held


def load(trainer) -> None:
    """Put the trainer where the run in its folder stopped; a CheckpointError says why that cannot be."""
    path = trainer.folder / "state.safetensors"
    tensors, header = container.read(path)
    if header.get("kind") != "state":
        raise CheckpointError(f"{path}: not a training state (it is a {header.get('kind')} checkpoint)")
    if header.get("step", 0) > (trainer.total or 10**7):
        raise CheckpointError(f"{path}: it says that it is of step {header['step']}, which was never planned")
    if missing := {"paper", "kwargs", "settings", "step", "ema_updates", "minutes"} - set(header):
        raise CheckpointError(f"{path}: its header lacks {', '.join(sorted(missing))}")
    mine = trainer.settings() | checkpoints.origin_header(trainer.recipe)
    theirs = header["settings"] | {key: header[key] for key in ("paper", "kwargs")}
    differ = [f"{key} was {theirs.get(key)!r} and is now {value!r}" for key, value in mine.items()
              if theirs.get(key) != value]
    if differ:
        raise CheckpointError(f"{path} belongs to a run with other settings: {'; '.join(differ)}")

    def part(prefix):
        return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

    others = checkpoints.frozen(trainer.recipe.model)
    checkpoints.load_weights(trainer.recipe.model, part("model."), path, others)
    checkpoints.load_weights(trainer.ema.average, part("ema."), path, others)
    check_optimizer(trainer, part("optimizer."), header["step"], path)
    for name, x in part("optimizer.").items():
        name, _, key = name.rpartition("/")
        p = trainer.weights[name]
        # averages get the memory layout of their weight; AdamW's step counter stays a single number; both are
        # copied, as what was read is mapped from the file, which would stay on the disk
        x = torch.empty_like(p).copy_(part_of(x, p)) if x.shape == p.shape else x.to(p.device, copy=True)
        trainer.optimizer.state[p][key] = x
    if trainer.accelerator.scaler and header["scaler"]:
        trainer.accelerator.scaler.load_state_dict(header["scaler"])
    trainer.ema.updates, trainer.seconds = header["ema_updates"], header["minutes"] * 60
    trainer.step = trainer.saved = header["step"]
    losses = read_log(trainer.folder / "log.jsonl")[:trainer.step]
    trainer.losses = losses + [math.nan] * (trainer.step - len(losses))        # where the log was lost


def check_optimizer(trainer, found: dict[str, Tensor], step: int, path: Path) -> None:
    """A CheckpointError unless these are AdamW's step and averages of every weight that had a gradient.

    Its fused kernel believes their shapes.
    """
    stepped = {name.rpartition("/")[0] for name in found}
    expected = {f"{name}/{key}": p.shape if key != "step" else torch.Size()
                for name, p in trainer.weights.items() if name in stepped or not found and step
                for key in ("step", "exp_avg", "exp_avg_sq")}
    faults = list(expected.keys() ^ found.keys())
    faults += [name for name, x in found.items() if name in expected and (
               x.shape != expected[name] or x.dtype != torch.float32)]
    if faults:
        raise CheckpointError(f"{path}: the optimizer's {sorted(faults)[0]} does not fit the model")


def read_log(path: str | Path) -> list[float]:
    """The losses of a run, step by step."""
    path, losses = Path(path), []
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.is_file() else (), 1):
        try:
            losses.append(float(json.loads(line)["loss"]))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            raise CheckpointError(f"{path}, line {number}: not a loss ({line:.80}); delete the log to go "
                                  "on without it") from None
    return losses
