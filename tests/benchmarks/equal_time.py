"""Quality at equal training time, beside peers: python tests/benchmarks/equal_time.py

Every method trains for so many minutes of one core on the same data, and draws n samples by 50 steps of DDIM,
which the course's probe compares with real ones.  Peers bring their network, process and loss; the trainer is
the course's for all (AdamW, its averages and its falling learning rate, which is the best of --lr for each).
Making the batches is not counted.  Needs the peers of peers.py.  Run it on an idle machine; a quarter of an
hour or so for each method and rate.
"""
import argparse
import json
import time
from pathlib import Path

import peers
import torch

from diffusion_course.data import sources
from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.predictions import Epsilon, V
from diffusion_course.diffusion.samplers import ddim_step, sample
from diffusion_course.diffusion.schedules import cosine_beta
from diffusion_course.evaluation.measure import drawn, measure
from diffusion_course.papers import ddpm, video_diffusion_models
from diffusion_course.recipe import Recipe
from diffusion_course.training.runs import with_parts
from diffusion_course.training.trainer import Trainer

SHAPES = {"mnist": (1, 32, 32), "bouncing_mnist": (1, 16, 32, 32)}


def of_peer(net, process, prediction, shape):
    """A recipe whose loss is the peer's own process, and whose network we sample."""
    schedule = cosine_beta()
    called = peers.Called(net, lambda net, x, t: net(x, (t * schedule.num_steps - 1).round().clamp(min=0)))
    denoiser = Denoiser(called, schedule, prediction)

    def loss(batch):
        return process((batch["x"] + 1) / 2)

    return Recipe(denoiser, loss, lambda noise, steps=50: sample(denoiser, noise, steps), shape)


def lucidrains(shape):
    module, net = peers.without_torchvision("denoising_diffusion_pytorch"), peers.lucidrains()
    process = module.GaussianDiffusion(net, image_size=32, beta_schedule="cosine", objective="pred_v")
    return of_peer(net, process, V(), shape)


def lucidrains3d(shape):
    module, net = peers.without_torchvision("video_diffusion_pytorch"), peers.lucidrains3d()
    process = module.GaussianDiffusion(net, image_size=32, num_frames=shape[1], channels=1, loss_type="l2")
    return of_peer(net, process, Epsilon(), shape)


def latents(shape):
    kwargs = with_parts(video_diffusion_models, {"autoencoder": "vae-mm", "width": 48, "images": 0})
    return video_diffusion_models.recipe(**kwargs)


METHODS = {  # data, what makes the recipe, items of a batch
    "ddpm": ("mnist", lambda shape: ddpm.recipe(width=48, cosine=True), 64),
    "denoising-diffusion-pytorch": ("mnist", lucidrains, 64),
    "video_diffusion_models": ("bouncing_mnist", lambda shape: video_diffusion_models.recipe(
        width=48, images=0), 4),
    "video_diffusion_models, latents": ("bouncing_mnist", latents, 4),
    "video-diffusion-pytorch": ("bouncing_mnist", lucidrains3d, 4),
}


def trained(name, minutes, lr):
    """A recipe after so many minutes, and how many steps these were."""
    data, make, size = METHODS[name]
    source = sources.load(data, SHAPES[data])
    batches = source.batches(size)
    steps, taken = None, 0.0
    for planned in (6, None):                                  # a short run tells for how many there is time
        torch.manual_seed(0)
        recipe = make(SHAPES[data])
        trainer = Trainer(recipe, steps=planned or steps, lr=lr, cpu=True, save_every=0)
        run = trainer.run(batches)
        for progress in run:
            if planned and progress.step == 2:
                begun = time.process_time()
        if planned:
            taken = (time.process_time() - begun) / (planned - 2)
            made = seconds(lambda: batches[1])
            steps = max(10, int(60 * minutes / max(taken - made, 1e-3)))
    return recipe, steps, taken


def seconds(f):
    began = time.process_time()
    f()
    return time.process_time() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--lr", type=float, nargs="*", default=[1e-3, 3e-3])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, help="append the rows as JSON lines")
    args = parser.parse_args()
    for name in args.only:
        data = METHODS[name][0]
        test = sources.load(data, SHAPES[data], "test")
        real, other = (test[slice(i * args.n, (i + 1) * args.n)]["x"] for i in (0, 1))
        for lr in args.lr:
            recipe, steps, taken = trained(name, args.minutes, lr)
            x = drawn(recipe, args.n, 0, steps=50, **({"step": ddim_step} if recipe.takes("step") else {}))
            found = measure(x.clamp(-1, 1), real, other, real)
            row = {"method": name, "data": data, "lr": lr, "minutes": args.minutes, "steps": steps,
                   "step": round(taken, 4), "n": args.n,
                   **{key: found[key] for key in ("frechet", "readable", "flips") if key in found}}
            print(json.dumps(row), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
