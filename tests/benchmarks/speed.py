"""How fast: python tests/benchmarks/speed.py.  Ratios to this machine's own matrix products, in one run.

Run it on an idle machine.  Nothing here decides a test.
"""
import subprocess
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.data.moving_mnist import MovingMNIST
from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.predictions import Epsilon
from diffusion_course.diffusion.schedules import linear_beta
from diffusion_course.networks.unet import UNet
from diffusion_course.papers import video_diffusion_models
from diffusion_course.training.runs import recipe_of


def seconds(f, repeats):
    f()
    began = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - began) / repeats


def matmul_rate():
    a, b = torch.randn(2, 1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ b, 40)


def unet(batch, **kwargs):
    """FLOP/s of a forward pass and of a training step, each over the matmul rate measured beside it."""
    denoiser = Denoiser(UNet(**kwargs), linear_beta(), Epsilon())
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)
    x, t = torch.randn(batch, 1, 32, 32), torch.rand(batch)

    def forward():
        with torch.no_grad():
            denoiser(x, t)

    def step():
        optimizer.zero_grad()
        denoiser.loss(x).backward()
        optimizer.step()

    rates = []
    for f in (forward, step):
        with FlopCounterMode(display=False) as counter:
            f()
        ceiling = matmul_rate()
        taken = seconds(f, 8)
        rates += [taken, counter.get_total_flops() / taken / ceiling]
    weights = sum(p.numel() for p in denoiser.parameters()) / 1e6
    print(f"{str(kwargs):88s} {weights:5.2f} M  forward {rates[0] * 1e3:5.0f} ms {rates[1]:4.0%}  "
          f"step {rates[2] * 1e3:5.0f} ms {rates[3]:4.0%}")


def videos(name):
    """Frames per second that one core makes, over those that it trains on; 20 times as many are asked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    preset = video_diffusion_models.PRESETS[name]
    recipe = recipe_of("video_diffusion_models", preset.recipe)
    channels, frames, size, _ = recipe.item
    batches = MovingMNIST(frames=frames, size=size, channels=channels).batches(preset.batch_size)
    optimizer, batch = torch.optim.AdamW(recipe.model.parameters(), fused=True), batches[0]

    def step():
        optimizer.zero_grad()
        recipe.loss(batch).backward()
        optimizer.step()

    times = [(seconds(lambda: batches[1], 20), seconds(step, 3)) for _ in range(5)]    # in turn, for fairness
    made, trained = (preset.batch_size * frames / min(taken) for taken in zip(*times))
    torch.set_num_threads(threads)
    print(f"one core, {name}: {preset.batch_size} clips of {frames} x {size} x {size}: makes {made:.0f} "
          f"frames/s, trains on {trained:.0f}: {made / trained:.0f} times as many")


def import_seconds(module):
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5))


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, matrix products at {matmul_rate() / 1e9:.0f} GFLOP/s; "
          "batch 128, 32 x 32")
    unet(128, width=32)
    unet(128, width=32, patch=2, multipliers=(1, 2, 2))
    unet(128, width=48, patch=2, multipliers=(1, 2, 2))
    unet(128, width=64, patch=2, multipliers=(1, 2, 2))
    for name in ("smoke", "laptop"):
        videos(name)
    base = import_seconds("torch")
    for name in ("diffusion_course", "diffusion_course.papers.ddpm", "diffusion_course.cli"):
        print(f"import {name}: {import_seconds(f'torch, {name}') - base:+.2f} s beyond torch ({base:.2f} s)")
