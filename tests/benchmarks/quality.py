"""How well samples can be read: python tests/benchmarks/quality.py [CHECKPOINT] [--out FOLDER] [--card].

256 unselected samples, the same noise for every sampler, read by the digit probe.  With --card the result
goes into the card beside the checkpoint.
"""
import argparse
import time
from pathlib import Path

from diffusion_course.data import media
from diffusion_course.diffusion.samplers import DPMSolver, ancestral_step, ddim_step, heun_step
from diffusion_course.evaluation.probes import load_probe, reading
from diffusion_course.training.checkpoints import load_model, locate, read_header, write_card

SAMPLERS = [("ancestral", 1000, ancestral_step), ("ancestral", 250, ancestral_step), ("ddim", 50, ddim_step),
            ("heun", 20, heun_step), ("dpm++", 20, DPMSolver())]


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


if __name__ == "__main__":
    main()
