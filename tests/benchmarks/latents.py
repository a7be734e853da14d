"""Pixels or latents, and how small: python tests/benchmarks/latents.py [--seconds 100] [--n 128].

Frames of Moving MNIST with one digit.  Autoencoders that shrink each side 2, 4 and 8 times, trained for the
same number of steps; then diffusion on pixels and on each of the three, with the same seconds of one core for
each (processor time, so that other work does not count).  At last the latents of factor 8, of which as many
seconds make most, at other scales than 1.  Each row is written when it is finished, and what is there is not
done again.  About forty minutes on one core.
"""
import argparse
import copy
import time
from pathlib import Path

import torch
from study import Eye, Study, drawn, gflops, thinned

from diffusion_course.data.moving_mnist import MovingMNIST
from diffusion_course.papers import autoencoder_kl, latent_diffusion
from diffusion_course.training import checkpoints, container
from diffusion_course.training.trainer import Trainer

FACTORS, WIDTH, BATCH = {"f=2": 2, "f=4": 4, "f=8": 8}, 32, 64
STDS = (0.2, 1.0, 5.0)                                         # of the latents that diffusion sees


def train(recipe, steps, lr=2e-3):
    """Losses and seconds of processor time."""
    trainer, began = Trainer(recipe, steps=steps, lr=lr, ema=0.995, cpu=True), time.process_time()
    for _ in trainer.run(frames("train").batches(BATCH)):
        pass
    return trainer.losses, time.process_time() - began


def frames(split):
    return MovingMNIST(split, frames=None, counts=1)


def diffusion(first):
    """The recipe on the latents of an autoencoder, or on pixels."""
    torch.manual_seed(0)
    return latent_diffusion.recipe(width=WIDTH, autoencoder=first)


def train_once(recipe, steps, path):
    """The autoencoder gets the weights of an earlier run, or is trained; how many seconds that took."""
    if not path.exists():
        checkpoints.save_model(path, recipe, seconds=train(recipe, steps)[1])
    tensors, header = container.read(path)
    checkpoints.load_weights(recipe.model, tensors, path)
    recipe.ema = None
    return header["seconds"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--steps", type=int, default=900, help="of the autoencoders")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--out", type=Path, help="default: data/results/latents.json")
    arguments = parser.parse_args()
    study = Study("latents", arguments.out, n=arguments.n, steps=arguments.steps, seconds=arguments.seconds)
    test = frames("test")
    real, asked = (test[slice(place, place + count)] for place, count in ((0, 4096), (4096, arguments.n)))
    eye = Eye(real["x"])
    study.results["floor"] = eye.measured(asked["x"])["frechet"]

    firsts = {"pixels": None}
    for name, factor in FACTORS.items():
        torch.manual_seed(0)
        recipe = autoencoder_kl.recipe(factor=factor, start=arguments.steps // 2, adversarial=0.2)
        seconds = train_once(recipe, arguments.steps, Path("runs") / "latents" / f"f{factor}.safetensors")
        firsts[name] = recipe
        if not study.has("autoencoders", name=name):
            x = drawn(recipe, arguments.n, x=asked["x"])
            error = (x - asked["x"]).square().mean().item()
            study.add("autoencoders", {
                "name": name, "factor": factor, "shape": list(recipe.shape), "steps": arguments.steps,
                "seconds": round(seconds), "l1": (x - asked["x"]).abs().mean().item(),
                "psnr": 10 * torch.tensor(4 / error).log10().item(), **eye.measured(x, asked["text"])})

    def row(recipe, steps, **key):
        losses, seconds = train(recipe, steps)
        some = torch.randn(2, *recipe.shape), torch.rand(2)
        return {**key, "shape": list(recipe.shape), "steps": steps, "seconds": round(seconds),
                "parameters": sum(p.numel() for p in recipe.model.parameters()),
                "flops": 1e9 * gflops(recipe.model.net, *some, text=asked["text"][:2]),
                **eye.measured(drawn(recipe, arguments.n, text=asked["text"]), asked["text"]),
                "losses": thinned(losses)}

    for name, first in firsts.items():
        if not study.has("diffusion", name=name):
            _, seconds = train(diffusion(first), 12)
            study.add("diffusion", row(diffusion(first), int(12 * arguments.seconds / seconds), name=name))
    unit = next(row for row in study.results["diffusion"] if row["name"] == "f=8")
    for std in STDS:
        if std == 1.0 and not study.has("rescale", std=std):   # that one is there already
            study.add("rescale", unit | {"name": "std 1", "std": std})
        elif not study.has("rescale", std=std):
            first = copy.copy(firsts["f=8"])
            first.model = copy.deepcopy(first.model)
            first.model.autoencoder.std /= std                 # latents come out with std instead of 1
            study.add("rescale", row(diffusion(first), unit["steps"], name=f"std {std:g}", std=std))


if __name__ == "__main__":
    main()
