"""What makes a diffusion transformer work: python tests/benchmarks/dit_variants.py [--steps 500] [--n 512].

Digits of 16 x 16 pixels.  Four ways for the condition to get in (DiT sec. 3.2), two seeds each; patches of 8,
4 and 2 pixels by depths of 2, 4 and 8, against compute; and a U-Net of about the compute of the largest of
these.  All models see the same images in the same order for the same number of steps.  `loss` is the error
of the noise in 1024 test images at even times.  Each row is written when it is finished, and what is there is
not done again.  About half an hour on one core.
"""
import argparse
import time
from pathlib import Path

import torch
from study import Eye, Study, drawn, gflops, thinned

from diffusion_course.data.mnist import mnist
from diffusion_course.networks.dit import BLOCKS
from diffusion_course.papers import ddim_guidance, dit
from diffusion_course.training.trainer import Trainer

SIZE, DIM, BATCH = 16, 64, 32


def trained(recipe, lr, steps, seed):
    """Losses and seconds."""
    trainer = Trainer(recipe, steps=steps, lr=lr, ema=0.995, seed=seed, cpu=True)
    for _ in trainer.run(mnist("train", size=SIZE).batches(BATCH, seed)):
        pass
    return trainer.losses, trainer.seconds


@torch.no_grad()
def held_out(recipe, test):
    """Mean squared error of the predicted noise in test images, the same for every model."""
    batch, generator = test[slice(1024)], torch.Generator().manual_seed(0)
    noise = torch.randn(batch["x"].shape, generator=generator)
    t = (torch.arange(1024) * 37 % 1000 + 1) / 1000            # every time about once
    with recipe.ema.swapped():
        recipe.model.eval()
        rows = zip(*(a.split(256) for a in (batch["x"], t, noise, batch["label"])))
        losses = [recipe.model.loss(x, t, noise, label=label).item() for x, t, noise, label in rows]
    return sum(losses) / len(losses)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--out", type=Path, help="default: data/results/dit_variants.json")
    arguments = parser.parse_args()
    study = Study("dit_variants", arguments.out, n=arguments.n, steps=arguments.steps, size=SIZE, batch=BATCH)
    test, label = mnist("test", size=SIZE), torch.arange(arguments.n) % 10
    eye = Eye(test[torch.arange(len(test))]["x"])
    digits = mnist("train", size=SIZE).batches(arguments.n)[0]["x"]
    study.results["floor"] = eye.measured(digits)["frechet"]

    def add(part, make, lr, **key):
        if study.has(part, **key):
            return
        seed = key.get("seed", 0)
        torch.manual_seed(seed)
        recipe = make()
        net, began = recipe.model.net, time.monotonic()
        some = torch.randn(2, 1, SIZE, SIZE), torch.rand(2)
        cost = gflops(net, *some, label=torch.zeros(2).long())
        losses, seconds = trained(recipe, lr, arguments.steps, seed)
        study.add(part, {**key, "parameters": sum(p.numel() for p in net.parameters()), "gflops": cost,
                         "seconds": round(seconds), "loss": held_out(recipe, test),
                         **eye.measured(drawn(recipe, arguments.n, label=label), label=label),
                         "minutes": round((time.monotonic() - began) / 60, 1), "losses": thinned(losses)})

    def transformer(patch, depth, block="adaln_zero"):
        return lambda: dit.recipe(dim=DIM, depth=depth, patch=patch, block=block, size=SIZE)

    for block in BLOCKS:
        add("conditioning", transformer(2, 4, block), 1e-3, block=block, seed=0)
    for patch in (8, 4, 2):
        for depth in (2, 4, 8):
            add("sweep", transformer(patch, depth), 1e-3, patch=patch, depth=depth, dim=DIM)
    add("unet", lambda: ddim_guidance.recipe(width=40, size=SIZE), 4e-3, width=40)
    for block in BLOCKS:                                       # once more, to see what chance does
        add("conditioning", transformer(2, 4, block), 1e-3, block=block, seed=1)


if __name__ == "__main__":
    main()
