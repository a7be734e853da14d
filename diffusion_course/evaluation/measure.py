"""Measure a trained model: draw samples, and put every number beside that of as many real items.

A number alone tells little: small samples lie far from any other, and no probe reads every digit.  So a
metric is {"value": ..., "real": ...}, both at the same n.  For a distance `real` is its floor, the distance
of other real items; for everything else it is what real items get.  "spread" is a standard error.
"""
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..data import captions
from ..data.download import sha256_of
from ..data.images import shuffled
from ..recipe import Recipe
from ..training import checkpoints, container
from ..training.runs import data_of
from . import tracking
from .clip_probes import PROBES, Probe, caption_right, load_probe, look, readable
from .frechet import bootstrap, frechet_distance, kernel_distance

Metrics = dict[str, dict[str, float]]
BATCH = 64  # samples drawn at a time
FEWEST = 4  # samples of which a spread can be told


# ---- samples beside real items

def measure(x: Tensor, real: Tensor, other: Tensor, train: Tensor, texts: Sequence[str] = (),
            other_texts: Sequence[str] = ()) -> Metrics:
    """Metrics of samples x and of `other` real items against `real` ones, all N images or videos.

    train are items that the model may have learnt by heart; texts are what was asked for, one per sample.
    """
    if x.ndim not in (4, 5):
        raise ValueError(f"x of shape {tuple(x.shape)} must be images [N, C, H, W] or videos [N, C, F, H, W]")
    if not len(x) == len(real) == len(other) >= FEWEST:
        raise ValueError(f"{len(x)} samples, {len(real)} and {len(other)} real items: distances are compared "
                         f"at equal numbers, of {FEWEST} at least")
    if not x.isfinite().all():
        broken = (~x.isfinite().flatten(1).all(1)).sum().item()
        raise ValueError(f"{broken} of {len(x)} samples are not finite; look at them before measuring")
    if x.ndim == 4:
        return images(x, real, other, train, texts, other_texts)
    return videos(x, real, other, train, texts, other_texts)


def images(x: Tensor, real: Tensor, other: Tensor, train: Tensor, texts: Sequence[str] = (),
           other_texts: Sequence[str] = ()) -> Metrics:
    """How far from real images, how readable, how diverse, how near to what was trained on, how obedient."""
    probe = load_probe("frame_probe")
    metrics, said, said_other = against(probe, x, real, other, train)
    metrics["readable"] = share(readable(said), readable(said_other))
    if texts:
        metrics["caption"] = share(caption_right(said, texts), caption_right(said_other, other_texts))
    return metrics


def videos(x: Tensor, real: Tensor, other: Tensor, train: Tensor, texts: Sequence[str],
           other_texts: Sequence[str]) -> Metrics:
    """The same of videos, and whether they run, keep their digits, move evenly, show what was asked for."""
    frame, video = load_probe("frame_probe"), load_probe("video_probe")
    metrics, said, said_other = against(video, x, real, other, train)
    middle = x.shape[2] // 2
    still, still_real, still_other = (look(frame, clips[:, :, middle])[0] for clips in (x, real, other))
    metrics["frame_frechet"] = {"value": frechet_distance(still, still_real),
                                "real": frechet_distance(still_other, still_real)}
    metrics["runs"] = share(said["order"].argmax(1) == 0, said_other["order"].argmax(1) == 0)
    for name, value, reference in zip(("flips", "jump", "unsteady", "motion"), moving(frame, x),
                                      moving(frame, other)):
        metrics[name] = {"value": value, "real": reference}
    if texts:
        metrics["caption"] = share(caption_right(said, texts), caption_right(said_other, other_texts))
    return metrics


def against(probe: Probe, x: Tensor, real: Tensor, other: Tensor,
            train: Tensor) -> tuple[Metrics, dict, dict]:
    """Distances in the features of a probe; and what it says to x and to other."""
    (f, said), (f_other, said_other) = look(probe, x), look(probe, other)
    f_real, f_train = look(probe, real)[0], look(probe, train)[0]
    value, spread = bootstrap(frechet_distance, f, f_real)
    metrics = {"frechet": {"value": value, "real": frechet_distance(f_other, f_real), "spread": spread}}
    for name, distance in {
            "kernel": lambda features: kernel_distance(features, f_real),
            "train_frechet": lambda features: frechet_distance(features, f_train[:len(features)]),
            "diversity": tracking.diversity,
            "nearest": lambda features: tracking.nearest(features, f_train).median().item()}.items():
        metrics[name] = {"value": distance(f), "real": distance(f_other)}
    return metrics, said, said_other


def share(right: Tensor, right_other: Tensor) -> dict[str, float]:
    """Two shares and the standard error of the first."""
    p = right.float().mean().item()
    return {"value": p, "real": right_other.float().mean().item(),
            "spread": (p * (1 - p) / len(right)) ** 0.5}


def moving(probe: Probe, x: Tensor) -> tuple[float, float, float, float]:
    """Of videos: how often the digit of a frame is another in the next (where there is one digit), jumps
    in pixels per frame^2, unsteadiness of the speed, and the mean squared difference of frames."""
    frames = x.shape[2]
    _, said = look(probe, x.transpose(1, 2).flatten(0, 1))
    top, count = said["digits"].argmax(1).unflatten(0, (-1, frames)), said["count"].argmax(1)
    count = count.unflatten(0, (-1, frames)).float().median(1).values.long().clamp(1, 2)       # [N]
    centres = tracking.tracks(x, count)
    mean = lambda values: values.double().nanmean().item()
    return (mean(tracking.flips(top)[count == 1]), mean(tracking.jump(centres)),
            mean(tracking.speed_constancy(centres)), mean(tracking.frame_difference(x)))


# ---- a checkpoint

def evaluate(path: str | Path, n: int = 1024, seed: int = 0, device: str | torch.device = "cpu",
             data: str | None = None, **options) -> dict[str, Any]:
    """The row of a checkpoint on the leaderboard: what it cost, and its metrics over n samples.

    data is what it is compared with, by default what it was trained on; options go to the recipe's `sample`;
    without any it is sampled quickly (50 DDIM steps where possible).
    """
    header, recipe = container.read_header(path), checkpoints.load_model(path, device)
    test, train = (data_of(recipe, data or header.get("data"), split) for split in ("test", "train"))
    if n < FEWEST or len(test) < 2 * n:
        raise ValueError(f"n={n} must be {FEWEST} at least, and needs 2 n test items; {test.name} has "
                         f"{len(test)}, enough for n up to {len(test) // 2}")
    probes = {probe: sha256_of(checkpoints.obtain(probe)) for probe in PROBES}
    real, other = (test[index] for index in shuffled(len(test), 0, 0)[:2 * n].split(n))
    asked = recipe.asked(other)
    with counted(recipe) as evaluations:
        x = drawn(recipe, n, seed, asked, **options)
    ours = "text" in asked and asked["text"].max() < len(captions.VOCABULARY)  # probes know no other words
    texts = captions.words(asked["text"]) if ours else []
    known = train[shuffled(len(train), 0, 0)[:4 * n]]["x"]     # in no order: MNIST has writers in blocks
    metrics = measure(x, real["x"], other["x"], known, texts, texts)
    flops = training_flops(recipe, train[slice(2)])
    steps, batch_size = checkpoints.steps_in_all(header), header.get("batch_size", 0)
    return {"model": recipe.checkpoint["checkpoint"],
            "paper": header["paper"], "kwargs": header["kwargs"], "data": test.name,
            "shape": list(recipe.item),
            "parameters": sum(p.numel() for p in recipe.model.parameters()),
            "training": {"steps": steps, "batch_size": batch_size, "flops": flops * steps * batch_size,
                         "minutes": header.get("minutes"), "device": header.get("device"),
                         "seed": header.get("seed")},
            "sampling": {name: described(value) for name, value in (recipe.quick(1) | options).items()
                         if not isinstance(value, Tensor)},
            "evaluations": evaluations[0] / n, "n": n, "seed": seed, "device": str(device),
            "metrics": metrics, "sha256": recipe.checkpoint["sha256"], "probes": probes}


def described(value: Any) -> Any:
    """A sampler's option as JSON can hold it."""
    return value if isinstance(value, (int, float)) else getattr(value, "__name__", type(value).__name__)


def drawn(recipe: Recipe, n: int, seed: int, asked: dict[str, Tensor] | None = None, **options) -> Tensor:
    """n samples on the CPU, a batch at a time, from one seed; asked has what each of them is asked for."""
    from tqdm import trange

    device, parts = next(recipe.model.parameters()).device, []
    for begin in trange(0, n, BATCH, desc="samples", unit="batch", leave=False):
        count = min(BATCH, n - begin)
        cond = {name: value[begin:begin + count].to(device) for name, value in (asked or {}).items()}
        seed_here = seed * 1_000_003 + begin
        parts.append(recipe.draw(count, seed_here, **(recipe.quick(count) | cond | options)).cpu())
    return torch.cat(parts)


@contextmanager
def counted(recipe: Recipe):
    """How many samples pass through networks inside this block, in a list of one number."""
    count, hooks = [0], []

    def hook(module, args):
        count[0] += len(args[0])

    for net in networks(recipe.model):
        hooks.append(net.register_forward_pre_hook(hook))
    try:
        yield count
    finally:
        for handle in hooks:
            handle.remove()


def networks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The outermost modules of a model that come from diffusion_course.networks."""
    if ".networks." in type(model).__module__:
        return [model]
    return [net for child in model.children() for net in networks(child)]


def training_flops(recipe: Recipe, batch: dict[str, Tensor]) -> float:
    """Floating-point operations of training on one item: a loss and its gradient.

    A recipe that makes its pairs of images and noise gets one here, so that making them is not counted.
    """
    device = next(recipe.model.parameters()).device
    batch = batch | {"noise": torch.randn_like(batch["x"])}
    with FlopCounterMode(display=False) as counter, torch.random.fork_rng():
        recipe.loss({name: value.to(device) for name, value in batch.items()}).backward()
    recipe.model.zero_grad()
    return counter.get_total_flops() / len(batch["x"])
