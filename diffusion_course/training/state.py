"""The state of a run, so that a resumed one equals an unbroken one: weights, averages, optimizer, position.

Random state is not among it: all random numbers of a step are a function of (seed, step).
"""
import json
from pathlib import Path

import torch

from . import checkpoints
from .checkpoints import CheckpointError


def save(trainer) -> None:
    """Write log, model (to sample from) and state (to resume from) into the run's folder, in that order.

    A run that is killed in between has a log and a model ahead of its state; resuming mends both.
    """
    folder, recipe = trainer.folder, trainer.recipe
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".log.jsonl.part"
    lines = [json.dumps({"step": n, "loss": loss}) + "\n" for n, loss in enumerate(trainer.losses, 1)]
    part.write_text("".join(lines))
    part.replace(folder / "log.jsonl")
    tensors = {f"model.{name}": x for name, x in recipe.model.state_dict().items()}
    tensors |= {f"ema.{name}": x for name, x in trainer.ema.average.state_dict().items()}
    for name, p in trainer.weights.items():
        tensors |= {f"optimizer.{name}/{key}": x for key, x in trainer.optimizer.state[p].items()}
    scaler = trainer.accelerator.scaler
    header = {"kind": "state", **checkpoints.origin_header(recipe), **trainer.summary(),
              "settings": trainer.settings(), "ema_updates": trainer.ema.updates,
              "scaler": scaler.state_dict() if scaler else None}
    checkpoints.save_model(folder / "model.safetensors", recipe, **trainer.summary())
    checkpoints.write(folder / "state.safetensors", tensors, header)
    trainer.saved = trainer.step


def load(trainer) -> None:
    """Put the trainer where the run in its folder stopped; a CheckpointError says why that cannot be."""
    path = trainer.folder / "state.safetensors"
    tensors, header = checkpoints.read(path)
    if header.get("kind") != "state":
        raise CheckpointError(f"{path}: not a training state (it is a {header.get('kind')} checkpoint)")
    mine = trainer.settings() | checkpoints.origin_header(trainer.recipe)
    theirs = header["settings"] | {key: header[key] for key in ("paper", "kwargs")}
    differ = [f"{key} was {theirs.get(key)!r} and is now {value!r}" for key, value in mine.items()
              if theirs.get(key) != value]
    if differ:
        raise CheckpointError(f"{path} belongs to a run with other settings: {'; '.join(differ)}")

    def part(prefix):
        return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

    checkpoints.load_weights(trainer.recipe.model, part("model."), path)
    checkpoints.load_weights(trainer.ema.average, part("ema."), path)
    for name, x in part("optimizer.").items():
        name, _, key = name.rpartition("/")
        p = trainer.weights[name]
        # averages get the memory layout of their weight; AdamW's step counter stays a single number
        x = torch.empty_like(p).copy_(x) if x.shape == p.shape else x.to(p.device)
        trainer.optimizer.state[p][key] = x
    if trainer.accelerator.scaler and header["scaler"]:
        trainer.accelerator.scaler.load_state_dict(header["scaler"])
    trainer.ema.updates, trainer.seconds = header["ema_updates"], header["minutes"] * 60
    trainer.step = trainer.saved = header["step"]
    trainer.losses = read_log(trainer.folder / "log.jsonl")[:trainer.step]


def read_log(path: str | Path) -> list[float]:
    """The losses of a run, step by step."""
    path = Path(path)
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []
