"""Quality at equal training time, beside peers: python tests/benchmarks/equal_time.py

Every method trains for so many minutes of one core on the same data, and draws n samples by 50 steps of DDIM,
which the course's probe compares with real ones.  Peers bring their network, process and loss; the trainer is
the course's for all (AdamW, its averages and its falling learning rate).  Each of --lr makes a row; compare
the best ones.  Making the batches is not counted.  Needs the peers of peers.py, and an idle machine.  Drawing
takes time, too: 32 clips of video-diffusion-pytorch half an hour of one core.
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


def begun(name, lr=1e-3, steps=None):
    """The trainer of a method, and its batches."""
    data, make, size = METHODS[name]
    torch.manual_seed(0)
    trainer = Trainer(make(SHAPES[data]), steps=steps, lr=lr, cpu=True, save_every=0)
    return trainer, sources.load(data, SHAPES[data]).batches(size)


def seconds(f):
    """Of the processor."""
    began = time.process_time()
    f()
    return time.process_time() - began


def pace(name, steps=4):
    """Seconds of a step without those of its batch."""
    trainer, batches = begun(name)
    run = trainer.run(batches, 1 + steps)
    next(run)                                                  # what is made once
    return seconds(lambda: list(run)) / steps - seconds(lambda: batches[1])


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
        steps = max(10, int(60 * args.minutes / pace(name)))
        for lr in args.lr:
            trainer, batches = begun(name, lr, steps)
            for _ in trainer.run(batches):
                pass
            recipe = trainer.recipe
            x = drawn(recipe, args.n, 0, steps=50, **({"step": ddim_step} if recipe.takes("step") else {}))
            found = measure(x.clamp(-1, 1), real, other, real)
            kept = {key: found[key] for key in ("frechet", "readable", "flips") if key in found}
            row = {"method": name, "data": data, "lr": lr, "minutes": args.minutes, "steps": steps,
                   "n": args.n, **kept}
            print(json.dumps(row), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
