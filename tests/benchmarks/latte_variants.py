"""Which split of space and time is best: python tests/benchmarks/latte_variants.py [--n 128] [--runs FOLDER].

Latte's four variants and all-to-all attention, with about as many weights; and what else the paper varies:
images beside the clips, positions in time, tubelets, the condition as tokens.  All see the same clips in the
same order for the same number of steps, one seed each; with --seeds the five once more.  Models that are not
in FOLDER/NAME are trained there (5 to 15 minutes each).  Then: `loss`, the error of the noise in test clips
at even times, the same for all; Frechet distances of samples; and the time of a training step, all in turns.
Each row is written when it is finished, and what is there is not done again.  About 20 minutes of one core,
without the training.

Of the results that ship, those of seed 0 but for in_context, and the times of steps, are of bf16 with the
other GELU (see Block).  A CPU without instructions for bf16 takes ten times as long in it as in fp32.
"""
import argparse
import json
import time
from pathlib import Path

import torch
from study import Study, gflops, thinned

from diffusion_course.data import sources
from diffusion_course.data.images import shuffled
from diffusion_course.evaluation.measure import drawn, measure
from diffusion_course.papers import latte
from diffusion_course.training import checkpoints, container
from diffusion_course.training.runs import begin

OWN = {"autoencoder": "vae-mm", "patch": 2, "words": 21, "classes": 0, "images": 0, "dim": 96, "depth": 8}
VARIANTS = {"interleaved": {}, "late": {"variant": "late"}, "serial": {"variant": "serial", "depth": 6},
            "parallel": {"variant": "parallel"}, "joint": {"variant": "joint"}, "images": {"images": 4},
            "rotary": {"time": "rotary"}, "none": {"time": "none"}, "tube": {"tube": 2},
            "in_context": {"condition": "in_context"}}
BATCH, BINS, ROUNDS = 8, 5, 12
LONGER = {"interleaved": 24, "rotary": 24}                     # frames, where 16 were trained


def trained(name, folder, steps, seed=0):
    """The model of a variant, trained now if it is not there or not finished, and its losses."""
    folder = folder / (f"{name}-{seed}" if seed else name)
    path = folder / "model.safetensors"
    done = container.read_header(path)["step"] if path.exists() else 0
    if not done or done < steps and (folder / "state.safetensors").exists():
        trainer, batches = begin("latte", folder, "laptop", recipe=OWN | VARIANTS[name], init="none",
                                 numbers={"steps": steps, "batch_size": BATCH, "lr": 1e-3}, cpu=True,
                                 resume=True, save_every=250, seed=seed)
        for _ in trainer.run(batches, bar=True):
            pass
    if (found := checkpoints.steps_in_all(container.read_header(path))) != steps:
        raise SystemExit(f"{path} was trained for {found} steps, not {steps}; choose another --runs")
    recipe = checkpoints.load_model(path)
    for key, value in (OWN | VARIANTS[name]).items():
        if key != "autoencoder" and (there := recipe.origin.kwargs[key]) != value:
            raise SystemExit(f"{path} has {key}={there}, not {value}; choose another --runs")
    return recipe, losses_of(folder)


def losses_of(folder):
    """Of every step, or of every so many, as the log of a run has them."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@torch.no_grad()
def held_out(recipe, batch, times=4):
    """Squared error of the noise in every clip at so many times, [N]; and by time, in equal parts, [BINS]."""
    model, n = recipe.model.eval(), len(batch["x"])
    generator, errors = torch.Generator().manual_seed(0), torch.empty(times, n)
    t = (torch.arange(times * n).reshape(times, n) * 37 % 1000 + 1) / 1000     # every time about once
    z = torch.cat([recipe.autoencoder.encode(x) for x in batch["x"].split(32)])
    for k in range(times):
        noise = torch.randn(z.shape, generator=generator)
        for i in torch.arange(n).split(32):
            alpha, sigma = model.schedule.at(t[k, i], z[i])
            cond = {"text": batch["text"][i]}
            out = model.run(alpha * z[i] + sigma * noise[i], t[k, i], alpha, sigma, cond)[0]
            errors[k, i] = (out - noise[i]).square().flatten(1).mean(1)
    place = ((t - 1e-4) * BINS).long().clamp(max=BINS - 1)
    return errors.mean(0), [errors[place == part].mean().item() for part in range(BINS)]


def samples(recipe, n, text, steps, frames=None):
    """n clips for captions, by DDIM with guidance 2."""
    longer = {"frames": frames} if frames else {}
    return drawn(recipe, n, 0, {"text": text}, steps=steps, scale=2.0, **longer).clamp(-1, 1)


def step_times(batch):
    """Seconds of a training step, fresh models in turns: the least, and the median ratio to interleaved."""
    first, times = checkpoints.load_model(checkpoints.obtain("vae-mm")), {}
    made = {name: latte.recipe(**OWN | kwargs | {"autoencoder": first})
            for name, kwargs in VARIANTS.items()}
    for turn in range(ROUNDS + 1):
        for name, recipe in made.items():
            began = time.perf_counter()
            recipe.loss(batch).backward()
            recipe.model.zero_grad()
            if turn:                                           # the first one is slow
                times.setdefault(name, []).append(time.perf_counter() - began)
    unit = torch.tensor(times["interleaved"])
    return {name: {"seconds": min(each), **dict(zip(("low", "ratio", "high"), (torch.tensor(each) / unit)
                                                    .quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()))}
            for name, each in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=128, help="samples of each model")
    parser.add_argument("--draws", type=int, default=50, help="steps of the sampler")
    parser.add_argument("--steps", type=int, default=1500, help="of the training")
    parser.add_argument("--clips", type=int, default=256, help="of the held-out loss")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "latte_variants")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="other seeds, for the five to rank")
    parser.add_argument("--out", type=Path, help="default: data/results/latte_variants.json")
    arguments = parser.parse_args()
    n = arguments.n
    study = Study("latte_variants", arguments.out, n=n, draws=arguments.draws, steps=arguments.steps,
                  clips=arguments.clips, batch=BATCH, guidance=2.0, bins=BINS)
    test, train = (sources.load("bouncing_mnist", (1, 16, 32, 32), split) for split in ("test", "train"))
    real, other = (test[index] for index in shuffled(len(test), 0, 0)[:2 * n].split(n))
    held = test[shuffled(len(test), 0, 0)[2 * n:2 * n + arguments.clips]]
    known = train[shuffled(len(train), 0, 0)[:4 * n]]["x"]

    def told(x):
        metrics = measure(x, real["x"], other["x"], known)
        names = "frechet", "frame_frechet", "flips", "jump", "runs"
        return {name: metrics[name]["value"] for name in names} | {"spread": metrics["frechet"]["spread"]}, \
            {name: metrics[name]["real"] for name in names}

    for name in arguments.only:
        longer = name in LONGER and not study.has("longer", name=name)
        if study.has("variants", name=name) and not longer:
            continue
        recipe, losses = trained(name, arguments.runs, arguments.steps)
        net, began = recipe.model.net, time.process_time()
        if not study.has("variants", name=name):
            some = torch.randn(1, *recipe.shape), torch.rand(1)
            each, by_time = held_out(recipe, held)
            row, floor = told(samples(recipe, n, other["text"], arguments.draws))
            study.results["real"] = floor
            study.results.setdefault("each", {})[name] = [round(loss, 6) for loss in each.tolist()]
            study.add("variants", {
                "name": name, "kwargs": VARIANTS[name],
                "parameters": sum(p.numel() for p in net.parameters()),
                "gflops": gflops(net, *some, text=other["text"][:1]), "loss": each.mean().item(),
                "by_time": by_time, **row, "seconds": round(time.process_time() - began),
                "losses": thinned(losses)})
        if longer:                                             # its last 16 frames, as clips of their own
            x = samples(recipe, n, other["text"], arguments.draws, LONGER[name])[:, :, -16:]
            study.add("longer", {"name": name, "frames": LONGER[name], **told(x)[0]})
    for seed in arguments.seeds:
        for name in latte.VARIANTS:
            if name in arguments.only and not study.has("seeds", name=name, seed=seed):
                recipe, _ = trained(name, arguments.runs, arguments.steps, seed)
                study.add("seeds", {"name": name, "seed": seed,
                                    "loss": held_out(recipe, held)[0].mean().item(),
                                    **told(samples(recipe, n, other["text"], arguments.draws))[0]})
    if "times" not in study.results:
        study.results["times"] = step_times(train[slice(BATCH)])
        study.write()


if __name__ == "__main__":
    main()
