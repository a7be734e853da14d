"""A small run of a version of the package, for the next version to go on with.

python tests/training/saved.py FOLDER     before a release, into tests/training/saved/VERSION
"""
import json
import sys
from pathlib import Path

import torch

from diffusion_course.papers import dit
from diffusion_course.training.trainer import Trainer


def trainer(folder=None):
    torch.manual_seed(0)
    recipe = dit.recipe(dim=16, depth=1, heads=2, patch=4, size=8, classes=3)
    return Trainer(recipe, folder, steps=8, save_every=4, warmup=2, cpu=True)


def batches():
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.rand(4, 1, 8, 8, generator=generator), "label": torch.tensor([0, 1, 2, 0])}
            for _ in range(8)]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    list(trainer(folder).run(batches(), 4))
    losses = [progress.loss for progress in trainer().run(batches())]
    (folder / "unbroken.json").write_text(json.dumps(losses) + "\n")
