"""Quality against network evaluations, for every sampler: python tests/benchmarks/samplers.py [--n 128].

Four trained models, the samplers that suit each, the same noise for all of them.  What is measured is the
Frechet distance of the frame probe's features to those of all test digits, with its spread, and the share of
samples that can be read.  Each row is written when it is finished, and what is there is not done again.
About twenty minutes on one core.
"""
import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch

from diffusion_course.data.download import repository_data
from diffusion_course.data.mnist import mnist
from diffusion_course.diffusion.guidance import Clip, Guide, Retimed
from diffusion_course.diffusion.ode import flow
from diffusion_course.diffusion.samplers import (
    DPMSolver,
    ancestral_step,
    churn_step,
    ddim_step,
    heun_step,
    sample,
)
from diffusion_course.diffusion.schedules import VarianceExploding
from diffusion_course.diffusion.sde import euler_maruyama_step, predictor_corrector, reverse_diffusion_step
from diffusion_course.evaluation.clip_probes import load_probe, look, readable
from diffusion_course.evaluation.frechet import bootstrap, frechet_distance, statistics
from diffusion_course.training import checkpoints

BUDGETS = (8, 16, 32, 64)
TOLERANCES = {16: 0.1, 32: 0.03, 64: 0.003, 128: 3e-4}         # of the solver, which looks about as often
LONG = (*BUDGETS, 128)                                         # for what adds noise at every step


def one(make):
    """A sampler that looks once per step; `make(steps)` is its step."""
    return lambda denoiser, noise, budget: sample(denoiser, noise, budget, make(budget))


def two(make):
    """A sampler of the second order: once in the last step, twice in every other."""
    return lambda denoiser, noise, budget: sample(denoiser, noise, budget // 2, make(budget // 2))


def adaptive(denoiser, noise, budget):
    """The ODE solver at a tolerance instead of a budget, then what is left of the noise is taken off."""
    schedule, end = denoiser.schedule, 1e-3
    sigma = schedule(torch.tensor(float(schedule.t_max)))[1]
    tolerance = TOLERANCES[budget]
    x = flow(denoiser, sigma * noise, schedule.t_max, end, tolerance, tolerance).x
    return denoiser(x, torch.full((len(x),), end))


HEUN, DDIM, DPM = two(lambda n: heun_step), one(lambda n: ddim_step), one(lambda n: DPMSolver())
ANCESTRAL = one(lambda n: ancestral_step)
SAMPLERS = {
    "edm": {"heun": HEUN, "euler": DDIM, "dpm++": DPM, "churn": two(partial(churn_step, churn=10.0)),
            "ancestral": ANCESTRAL},
    "ddpm": {"ddim": DDIM, "heun": HEUN, "dpm++": DPM, "ancestral": ANCESTRAL},
    "ddpm as D(x; sigma)": {"heun": HEUN, "dpm++": DPM},
    "score_sde": {"ddim": DDIM, "rk45": adaptive, "ancestral": ANCESTRAL,
                  "euler-maruyama": one(lambda n: euler_maruyama_step),
                  "reverse diffusion": one(lambda n: reverse_diffusion_step),
                  "predictor-corrector": two(lambda n: predictor_corrector())},
    "rectified_flow": {"euler": DDIM, "heun": HEUN},
}
NOISY = {"ancestral", "euler-maruyama", "reverse diffusion", "predictor-corrector"}


class Counted(Guide):
    """Counts how often it is asked."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.count = 0

    def estimate(self, x, t, **cond):
        self.count += 1
        return super().estimate(x, t, **cond)


def denoiser_of(model):
    """DDPM's is clipped, as its recipe does; with a schedule of another paper if the name says so."""
    slug, _, other = model.partition(" as ")
    denoiser = checkpoints.load_model(checkpoints.obtain(slug)).model
    denoiser = Clip(denoiser) if slug == "ddpm" else denoiser
    return Retimed(denoiser, VarianceExploding()) if other else denoiser


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=list(SAMPLERS), help="some of the models")
    parser.add_argument("--out", type=Path, help="default: data/results/samplers.json")
    arguments = parser.parse_args()
    out = arguments.out or (repository_data() or Path("data")) / "results" / "samplers.json"
    probe, test, train = load_probe("frame_probe"), mnist("test"), mnist("train")
    real = statistics(look(probe, test[torch.arange(len(test))]["x"])[0])

    def measured(x):
        features, said = look(probe, x)
        frechet, spread = bootstrap(frechet_distance, features, real)
        return {"frechet": frechet, "spread": spread, "readable": readable(said).float().mean().item()}

    floor = measured(train.batches(arguments.n, 0)[0]["x"])    # as many real digits
    results = {"n": arguments.n, "floor": floor["frechet"], "floor_readable": floor["readable"], "rows": []}
    if out.exists():
        results = json.loads(out.read_text())
        if results["n"] != arguments.n:
            raise SystemExit(f"{out} has n={results['n']}, not {arguments.n}; choose another --out")
    done = {(row["model"], row["sampler"], row["budget"]) for row in results["rows"]}
    for model in arguments.only:
        denoiser = Counted(denoiser_of(model))
        for sampler, draw in SAMPLERS[model].items():
            budgets = LONG if sampler in NOISY else TOLERANCES if draw is adaptive else BUDGETS
            for budget in budgets:
                if (model, sampler, budget) in done:
                    continue
                torch.manual_seed(0)
                denoiser.count, began = 0, time.monotonic()
                parts = torch.randn(arguments.n, 1, 32, 32).split(128)
                x = torch.cat([draw(denoiser, part, budget) for part in parts])
                row = {"model": model, "sampler": sampler, "budget": budget,
                       "evaluations": denoiser.count / len(parts), **measured(x.clamp(-1, 1)),
                       "seconds": round(time.monotonic() - began)}
                results["rows"].append(row)
                part = out.with_name(out.name + ".part")
                part.write_text(json.dumps(results, indent=1) + "\n")
                part.replace(out)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
