"""Which of DDPM's variants pays: python tests/benchmarks/ddpm_variants.py [--seeds 0 1 2] [--steps 3000].

Linear and cosine schedule, with fixed and with learned variance, three seeds each, on digits of 16 x 16
pixels, so that twelve models can be trained well in half an hour.  Every model is measured
on the same digits and the same noise: the bound in bits per dimension (of the model, and of the model with
x0 clipped to [-1, 1], which is what is sampled), and Frechet distance and share of confidently read samples
of strided ancestral chains with every choice of variance.  The models of fixed variance also skip the first
part of a chain of 50 steps (Improved DDPM, fig. 4).  Every model's result is written when it is finished,
and what is there is not done again; the models are kept in runs/.  About an hour on one core.
"""
import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusion_course.data.download import repository_data
from diffusion_course.data.mnist import mnist
from diffusion_course.diffusion.guidance import Clip, Guide
from diffusion_course.diffusion.likelihood import bits_per_dim
from diffusion_course.diffusion.samplers import ancestral_step, last, trajectory
from diffusion_course.evaluation.frechet import frechet_distance, statistics
from diffusion_course.evaluation.probes import features, load_probe, reading
from diffusion_course.papers import ddpm
from diffusion_course.training import checkpoints, container
from diffusion_course.training.trainer import Trainer

VARIANTS = {"linear fixed": {}, "cosine fixed": {"cosine": True},
            "linear learned": {"learned_variance": True},
            "cosine learned": {"cosine": True, "learned_variance": True}}
FIXED, LEARNED = {"v=0": 0.0, "v=1": 1.0}, {"learned": None}
STRIDES = (10, 20, 50)
SKIPPED = (10, 20, 30, 40, 50)  # per cent of a chain of 50 steps
BATCH, LR, EMA, WIDTH, SIZE = 64, 4e-3, 0.998, 16, 16


class Remembered(Guide):
    """Knows what it was asked at a time: bounds of one digit under one noise cost no second evaluation."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.answers = {}

    def estimate(self, x, t):
        key = t[0].item()
        if key not in self.answers:
            self.answers[key] = super().estimate(x, t)
        return self.answers[key]


def trained(variant, seed, steps, data, path):
    """The model, trained unless it is there, and what its header says."""
    if not path.exists():
        torch.manual_seed(seed)
        recipe = ddpm.recipe(width=WIDTH, size=SIZE, **VARIANTS[variant])
        trainer = Trainer(recipe, steps=steps, lr=LR, ema=EMA, seed=seed, cpu=True)
        for _ in trainer.run(data.batches(BATCH, seed)):
            pass
        checkpoints.save_model(path, recipe, **trainer.summary())
    return checkpoints.load_model(path).model, container.read_header(path)


def bound(denoiser, digits, v):
    """Bits per dimension, mean over the digits; the same noise at every call."""
    torch.manual_seed(0)
    return bits_per_dim(denoiser, digits, v).mean().item()


def chain(model, n, times, v=None, parts=128):
    """n samples of the ancestral chain through these times, from pure noise; the same noise at every call."""
    torch.manual_seed(0)
    step, shape = partial(ancestral_step, v=v), (1, SIZE, SIZE)
    return torch.cat([last(trajectory(Clip(model), torch.randn(min(parts, n - done), *shape), times, step))
                      for done in range(0, n, parts)])


def enlarged(x):
    """To the 32 x 32 pixels that the probe reads."""
    return F.interpolate(x, scale_factor=32 / SIZE, mode="bilinear").clamp(-1, 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--samples", type=int, default=1024, help="of every chain")
    parser.add_argument("--digits", type=int, default=48, help="whose bits are counted")
    parser.add_argument("--out", type=Path, help="default: data/results/ddpm_variants.json")
    parser.add_argument("--quick", action="store_true", help="a rehearsal, written into runs/")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.samples, arguments.digits = [0], 3, 16, 2
    runs = Path("runs")
    out = arguments.out or (runs / "ddpm_variants_quick.json" if arguments.quick
                            else (repository_data() or Path("data")) / "results" / "ddpm_variants.json")
    torch.set_num_threads(1)
    data, test, probe = mnist("train", SIZE), mnist("test", SIZE), load_probe()
    real = statistics(features(probe, enlarged(test[torch.arange(len(test))]["x"])))

    def measured(x):
        x = enlarged(x)
        return {"frechet": frechet_distance(features(probe, x), real),
                "confident": reading(probe, x)["confident"]}

    settings = {"steps": arguments.steps, "batch_size": BATCH, "lr": LR, "ema": EMA, "width": WIDTH,
                "size": SIZE, "samples": arguments.samples, "digits": arguments.digits,
                "torch": torch.__version__, "device": "cpu", "threads": 1}
    floor = [measured(data.batches(arguments.samples)[n]["x"]) for n in range(3)]     # of real digits
    results = {"settings": settings, "floor": floor, "runs": []}
    if out.exists():
        results = json.loads(out.read_text())
        if results["settings"] != settings:
            raise SystemExit(f"{out} has the settings {results['settings']}, not {settings}; "
                             "choose another --out")
    done = {(run["variant"], run["seed"]) for run in results["runs"]}
    digits = test[torch.arange(arguments.digits)]["x"]
    for variant, seed in ((variant, seed) for seed in arguments.seeds for variant in VARIANTS):
        if (variant, seed) in done:
            continue
        path = runs / out.stem / f"{variant.replace(' ', '_')}_{seed}_{arguments.steps}.safetensors"
        model, header = trained(variant, seed, arguments.steps, data, path)
        began, fixed = time.monotonic(), variant.endswith("fixed")
        run = {"variant": variant, "seed": seed, "loss": header["metrics"]["loss"],
               "minutes": header["minutes"], "bits_per_dim": {}, "strided": {}}
        remembered = Remembered(model)
        for name, v in (FIXED if fixed else LEARNED).items():
            run["bits_per_dim"][name] = bound(remembered, digits, v)
            run["bits_per_dim"][f"{name}, clipped"] = bound(Clip(remembered), digits, v)
        for name, v in (FIXED if fixed else FIXED | LEARNED).items():
            run["strided"][name] = {n: measured(chain(model, arguments.samples, model.schedule.times(n), v))
                                    for n in STRIDES}
        if fixed:
            times = model.schedule.times(50)
            run["skipped"] = {0: run["strided"]["v=0"][50]} | {
                k: measured(chain(model, arguments.samples, times[k // 2:], 0.0)) for k in SKIPPED}
        run["minutes_measuring"] = (time.monotonic() - began) / 60
        results["runs"].append(run)
        part = out.with_name(out.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(results, indent=2) + "\n")
        part.replace(out)
        print(json.dumps(run), flush=True)


if __name__ == "__main__":
    main()
