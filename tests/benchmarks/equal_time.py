"""Quality at equal training time, beside peers: python tests/benchmarks/equal_time.py {mnist,bouncing_mnist}

Every method trains for so many minutes of the processor on the same data, and draws samples by 50 steps of
DDIM, which the course's probe compares with real ones.  Peers bring their network, process and loss; the
trainer is the course's for all (AdamW, its averages, and a learning rate that falls to zero at the end of the
time).  Methods take their steps in turns, so that whatever else slows the machine slows all of them; making
batches is not counted.  Each of --lr and --batch makes a row; compare the best ones.  Needs the peers of
peers.py.  Drawing takes time, too: 16 clips of video-diffusion-pytorch a quarter of an hour of one core.
"""
import argparse
import itertools
import json
import time
from pathlib import Path

import peers
import torch

from diffusion_course.data import sources
from diffusion_course.diffusion.denoiser import Denoiser, stratified
from diffusion_course.diffusion.guidance import Clip
from diffusion_course.diffusion.predictions import Epsilon, V
from diffusion_course.diffusion.samplers import ddim_step, sample
from diffusion_course.diffusion.schedules import cosine_beta
from diffusion_course.evaluation.measure import drawn, measure
from diffusion_course.papers import ddpm, edm, video_diffusion_models
from diffusion_course.recipe import Recipe
from diffusion_course.training.runs import recipe_of
from diffusion_course.training.trainer import Trainer

SHAPES = {"mnist": (1, 32, 32), "bouncing_mnist": (1, 16, 32, 32)}


def of_peer(net, process, prediction, shape):
    """A recipe whose loss is the peer's own process, and whose network we sample."""
    schedule = cosine_beta()
    called = peers.Called(net, lambda net, x, t: net(x, (t * schedule.num_steps - 1).round().clamp(min=0)))
    denoiser = Denoiser(called, schedule, prediction)

    def loss(batch):
        return process((batch["x"] + 1) / 2)

    return clipped(denoiser, loss, shape)


def clipped(denoiser, loss, shape):
    """A recipe that clips what it expects while it draws, as these peers do."""
    return Recipe(denoiser, loss, lambda noise, steps=50: sample(Clip(denoiser), noise, steps), shape)


def predicting_v(net, shape):
    """Ours with the peer's prediction."""
    denoiser = Denoiser(net, cosine_beta(), V(), stratified(cosine_beta()))
    return clipped(denoiser, lambda batch: denoiser.loss(batch["x"]), shape)


def lucidrains(shape):
    module, net = peers.without_torchvision("denoising_diffusion_pytorch"), peers.lucidrains()
    process = module.GaussianDiffusion(net, image_size=32, beta_schedule="cosine", objective="pred_v")
    return of_peer(net, process, V(), shape)


def lucidrains3d(shape):
    module, net = peers.without_torchvision("video_diffusion_pytorch"), peers.lucidrains3d()
    process = module.GaussianDiffusion(net, image_size=32, num_frames=shape[1], channels=1, loss_type="l2")
    return of_peer(net, process, Epsilon(), shape)


def latents(shape):
    return recipe_of("video_diffusion_models", {"autoencoder": "vae-mm", "width": 48, "images": 0})


METHODS = {  # of each data set: what makes their recipes
    "mnist": {
        "ddpm": lambda shape: ddpm.recipe(width=48, cosine=True),
        "ddpm, v": lambda shape: predicting_v(peers.unet(), shape),
        "ddpm, v, without patches": lambda shape: predicting_v(peers.unet_full(), shape),
        "edm": lambda shape: edm.recipe(width=48),
        "denoising-diffusion-pytorch": lucidrains},
    "bouncing_mnist": {
        "video_diffusion_models": lambda shape: video_diffusion_models.recipe(width=48, images=0),
        "video_diffusion_models, latents": latents,
        "video-diffusion-pytorch": lucidrains3d},
}


def begun(make, shape, lr):
    torch.manual_seed(0)
    return Trainer(make(shape), lr=lr, cpu=True, save_every=0)


def train(trainers, batches, seconds):
    """Steps in turns, until each trainer has had so many seconds of the processor."""
    used = dict.fromkeys(trainers, 0.0)
    while min(used.values()) < seconds:
        name = min(used, key=used.get)
        trainer, batch = trainers[name], batches[trainers[name].step]
        began = time.process_time()
        trainer.advance(batch)
        used[name] += time.process_time() - began
        trainer.total = trainer.step * seconds / used[name]    # as many as there will be, at this pace


def quality(recipe, source, n):
    """The Frechet distance of n samples, and what else tells how good they are."""
    real, other = (source[slice(i * n, (i + 1) * n)]["x"] for i in (0, 1))
    x = drawn(recipe, n, 0, steps=50, **({"step": ddim_step} if recipe.takes("step") else {}))
    found = measure(x.clamp(-1, 1), real, other, real)
    return {key: found[key] for key in ("frechet", "readable", "flips") if key in found}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=METHODS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--n", type=int, help="samples (default: 128 images, 16 clips)")
    parser.add_argument("--lr", type=float, nargs="*", default=[1e-3, 3e-3])
    parser.add_argument("--batch", type=int, nargs="*", help="items of a batch (default: 16 images, 1 clip)")
    parser.add_argument("--only", nargs="*", help="some of the methods")
    parser.add_argument("--out", type=Path, help="append the rows as JSON lines")
    args = parser.parse_args()
    shape, methods = SHAPES[args.data], METHODS[args.data]
    if unknown := set(args.only or ()) - set(methods):
        parser.error(f"{args.data} has no {', '.join(sorted(unknown))}; there are: {', '.join(methods)}")
    images = len(shape) == 3
    n = args.n or (128 if images else 16)
    source, test = (sources.load(args.data, shape, split) for split in ("train", "test"))
    for lr, size in itertools.product(args.lr, args.batch or [16 if images else 1]):
        trainers = {name: begun(methods[name], shape, lr) for name in args.only or methods}
        train(trainers, source.batches(size), 60 * args.minutes)
        for name, trainer in trainers.items():
            trainer.look()                                     # refuses losses that are not finite
            row = {"method": name, "data": args.data, "lr": lr, "batch": size, "minutes": args.minutes,
                   "steps": trainer.step, "n": n, **quality(trainer.recipe, test, n)}
            print(json.dumps(row), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
