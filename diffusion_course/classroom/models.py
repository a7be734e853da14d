"""The trained models that lessons start from, and the studies that take too long to run again."""
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .. import papers
from ..recipe import Recipe, preset_name
from ..training import checkpoints, container
from ..training.runs import begin
from ..training.shipped import SHIPPED, models


def load_or_train(slug: str, device: str | torch.device | None = None) -> Recipe:
    """The trained model of that name on the device (default: a GPU, if there is one), at once.

    Where its checkpoint cannot be had, it is trained at the preset of this machine and kept in runs/SLUG: the
    next call finds it, or goes on with what was interrupted.
    """
    if slug not in models():
        raise ValueError(f"slug={slug!r} must be one of {', '.join(models())}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        path, how = checkpoints.obtain(slug), "the shipped checkpoint"
    except FileNotFoundError as error:
        print(f"{error}; so it is trained here, at the preset {preset_name()}")
        path = trained(slug, device)
        how = f"trained here and kept in {path.parent}"
    recipe = checkpoints.load_model(path, device)
    print(f"{slug}: {how}; {facts(path)}")
    return recipe


def results(name: str) -> dict[str, Any]:
    """What tests/benchmarks/NAME.py measured: data/results/NAME.json."""
    return json.loads(checkpoints.obtain(name).read_text())


def trained(slug: str, device: torch.device) -> Path:
    """The model in runs/SLUG, after training it, or the rest of it, at the preset of this machine."""
    shipped, folder = SHIPPED[slug], Path("runs") / slug
    init = shipped.begins_with(papers.module(shipped.paper).PRESETS[preset_name()].init)
    trainer, batches = begin(shipped.paper, folder, data=shipped.data, resume=True, recipe=shipped.kwargs,
                             init=init, cpu=device.type == "cpu")
    for _ in trainer.run(batches, bar=True):
        pass
    return folder / "model.safetensors"


def facts(path: Path) -> str:
    """How the model of a checkpoint was trained and, where its card says it, how well it can be read."""
    card = path.with_suffix(".json")
    known = container.read_header(path)
    with suppress(OSError, ValueError, TypeError):             # a card that cannot be read says nothing
        known = known | json.loads(card.read_text())
    said = f"{known.get('step')} steps of {known.get('batch_size')} on {known.get('data')}"
    if before := known.get("init"):
        said += f", begun with the weights of {before.get('checkpoint')} after {before.get('steps')} steps"
    for sampler, reading in list(known.get("readings", {}).items())[:1]:
        said += f", {reading['confident']:.0%} of {reading['n']} samples can be read ({sampler} steps)"
    return said
