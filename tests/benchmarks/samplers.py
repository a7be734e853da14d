"""Quality against network evaluations, for every sampler: python tests/benchmarks/samplers.py [--n 128].

Four trained models, the samplers that suit each, the same noise for all of them.  What is measured is the
Frechet distance of the frame probe's features to those of all test digits, with its spread, and the share of
samples that can be read.  Each row is written when it is finished, and what is there is not done again.
About twenty minutes on one core.  In the end it says how few evaluations come within 5 % of the best quality.

data/results/evaluations.json is of --only ddpm --n 256 --budgets 8 12 16 24 32 50 100 --longest 250 1000.
"""
import argparse
import time
from functools import partial
from pathlib import Path

import torch
from study import Eye, Study

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
from diffusion_course.training import checkpoints

BUDGETS = (8, 16, 32, 64)
TOLERANCES = {16: 0.1, 32: 0.03, 64: 0.003, 128: 3e-4}         # of the solver, which looks about as often


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


def enough(rows, best):
    """The fewest evaluations of a sampler that come within 5 % of the best Frechet distance."""
    return min((row["evaluations"] for row in rows if row["frechet"] <= 1.05 * best), default=None)


def report(rows):
    """How few evaluations suffice, for the best of each sampler itself and of all samplers of its model."""
    of = {}
    for row in rows:
        of.setdefault(row["model"], {}).setdefault(row["sampler"], []).append(row)
    for model, samplers in of.items():
        best = min(row["frechet"] for own in samplers.values() for row in own)
        for sampler, own in samplers.items():
            top = min(own, key=lambda row: row["frechet"])
            print(f"{model}, {sampler}: best {top['frechet']:.2f} +- {top['spread']:.2f}, within 5 % of it "
                  f"after {enough(own, top['frechet'])}, of the model's best {best:.2f} after "
                  f"{enough(own, best)}")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=list(SAMPLERS), choices=SAMPLERS, help="of the models")
    parser.add_argument("--budgets", nargs="+", type=int, help="other numbers of evaluations (not for rk45)")
    parser.add_argument("--longest", nargs="+", type=int, default=[128], help="and more for what adds noise")
    parser.add_argument("--out", type=Path, help="default: data/results/samplers.json")
    args = parser.parse_args()
    test, train = mnist("test"), mnist("train")
    eye = Eye(test[torch.arange(len(test))]["x"])
    study = Study("samplers", args.out, n=args.n)
    if "floor" not in study.results:
        floor = eye.measured(train.batches(args.n, 0)[0]["x"])                 # as many real digits
        study.results |= {"floor": floor["frechet"], "floor_readable": floor["readable"]}
    for model in args.only:
        denoiser = Counted(denoiser_of(model))
        for sampler, draw in SAMPLERS[model].items():
            budgets = TOLERANCES if draw is adaptive else args.budgets or BUDGETS
            for budget in (*budgets, *(args.longest if sampler in NOISY else ())):
                if study.has("rows", model=model, sampler=sampler, budget=budget):
                    continue
                torch.manual_seed(0)
                denoiser.count, began = 0, time.monotonic()
                parts = torch.randn(args.n, 1, 32, 32).split(128)
                x = torch.cat([draw(denoiser, part, budget) for part in parts])
                study.add("rows", {"model": model, "sampler": sampler, "budget": budget,
                                   "evaluations": denoiser.count / len(parts), **eye.measured(x),
                                   "seconds": round(time.monotonic() - began)})
    report(study.results["rows"])


if __name__ == "__main__":
    main()
