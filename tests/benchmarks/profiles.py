"""Where the time goes: python tests/benchmarks/profiles.py [--only step sampler data]

The operations that take most of a training step, of a sampler and of the making of a batch, with their shares
of the processor's time, and how often each is called.  One thread, fp32, the laptop preset.
"""
import argparse
import time
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from diffusion_course import papers
from diffusion_course.diffusion.samplers import DPMSolver, ancestral_step, ddim_step, heun_step
from diffusion_course.training.runs import data_of, recipe_of
from diffusion_course.training.trainer import Trainer

MODELS = ("ddpm", "dit", "video_diffusion_models", "latte")
SAMPLERS = {"ancestral": ancestral_step, "ddim": ddim_step, "heun": heun_step, "dpm++": DPMSolver()}


def begun(name):
    """The recipe of a paper at the laptop preset, its trainer and its batches."""
    plan = papers.module(name).PRESETS["laptop"]
    torch.manual_seed(0)
    recipe = recipe_of(name, plan.recipe)
    return recipe, Trainer(recipe, cpu=True, save_every=0), data_of(recipe, None).batches(plan.batch_size)


def costs(what, f, top, repeats=3):
    """Print what f spends its time on, most first."""
    f()
    began = time.process_time()
    for _ in range(repeats):
        f()
    taken = (time.process_time() - began) / repeats
    with profile(activities=[ProfilerActivity.CPU]) as found:
        with record_function("all of it"):
            f()
    rows = found.key_averages()
    whole = sum(row.self_cpu_time_total for row in rows)
    rows = sorted((row for row in rows if row.key != "all of it"), key=lambda row: -row.self_cpu_time_total)
    shares = (f"{row.key.removeprefix('aten::')} {row.self_cpu_time_total / whole:.1%} ({row.count})"
              for row in rows[:top])
    print(f"{what}: {taken * 1e3:.0f} ms; {'; '.join(shares)}", flush=True)


def look(name, only, top):
    """What a paper spends its time on."""
    recipe, trainer, batches = begun(name)
    batch = batches[0]
    if "step" in only:
        costs(f"{name}, a training step", lambda: trainer.advance(batch), top)
    if "data" in only:
        costs(f"{name}, a batch", lambda: batches[1], top)
    if "sampler" in only:
        recipe.model.eval()
        noise = torch.randn(8, *recipe.shape)
        for kind, step in SAMPLERS.items() if recipe.takes("step") else [("its own sampler", None)]:
            options = recipe.quick(8) | {"steps": 8} | ({"step": step} if step else {})
            draw = torch.no_grad()(partial(recipe.sample, noise, **options))
            costs(f"{name}, 8 samples by 8 steps of {kind}", draw, top)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=["step", "sampler", "data"])
    parser.add_argument("--models", nargs="*", default=MODELS, help="names of papers")
    parser.add_argument("--top", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.models:
        look(name, args.only, args.top)


if __name__ == "__main__":
    main()
