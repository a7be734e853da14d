"""How well samples can be read: python tests/benchmarks/quality.py [CHECKPOINT] [--out FOLDER] [--card].

256 unselected samples, the same noise for every sampler, read by the digit probe.  With --card the result
goes into the card beside the checkpoint, with a grid of samples and an animation of sixteen being drawn.
"""
import argparse
import time
from pathlib import Path

import torch

from diffusion_course.classroom.animations import denoising
from diffusion_course.data import media
from diffusion_course.diffusion.guidance import Clip
from diffusion_course.diffusion.samplers import DPMSolver, ancestral_step, ddim_step, heun_step, trajectory
from diffusion_course.evaluation.probes import load_probe, reading
from diffusion_course.training.checkpoints import load_model, locate, write_card
from diffusion_course.training.container import read_header

SAMPLERS = [("ancestral", 1000, ancestral_step), ("ancestral", 250, ancestral_step), ("ddim", 50, ddim_step),
            ("heun", 20, heun_step), ("dpm++", 20, DPMSolver())]


def film(model, seed, frames=25):
    """Sixteen samples on their way through the full ancestral chain, beside what they are guessed to be."""
    torch.manual_seed(seed)
    steps = model.schedule.num_steps
    denoiser, times, x = Clip(model), model.schedule.times(steps), torch.randn(16, 1, 32, 32)
    every = steps // frames
    states = [x, *trajectory(denoiser, x, times, ancestral_step)][::every]
    guesses = [denoiser(x, t.expand(16)) for x, t in zip(states[:-1], times[::every])] + [states[-1]]
    return denoising(states, guesses, "Sixteen digits emerge from noise.")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?", default="ddpm")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--card", action="store_true")
    arguments = parser.parse_args()
    path = locate(arguments.checkpoint)
    recipe, probe = load_model(path), load_probe()
    facts = ("step", "minutes", "data", "preset", "batch_size")
    print(path, {k: v for k, v in read_header(path).items() if k in facts})
    readings = {}
    for name, steps, step in SAMPLERS:
        began = time.monotonic()
        x = recipe.draw(arguments.n, arguments.seed, steps=steps, step=step)
        found = readings[f"{name} {steps}"] = reading(probe, x)
        print(f"{name:10s} {steps:4d} steps  confident {found['confident']:.3f}  largest share "
              f"{found['largest_share']:.3f}  counts {found['counts']}  {time.monotonic() - began:.0f} s",
              flush=True)
        if arguments.out:
            media.write(arguments.out / f"{name}_{steps}.png", x[:64])
    if arguments.card:
        print(write_card(path, readings=readings, readings_seed=arguments.seed))
        with torch.no_grad():
            print(film(recipe.model, arguments.seed).save(path.with_suffix(".gif")))


if __name__ == "__main__":
    main()
