"""sample and evaluate: what is done with a model that was trained."""
import inspect
import time
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer import BadParameter

from .common import Json, given, say

SCHEMES = ("autoregressive", "long-range", "hierarchy", "adaptive", "frameskip")
SAMPLERS = ("ancestral", "ddim", "euler", "heun", "dpm++", "reverse-diffusion", "predictor-corrector")


def stepper(sampler: str):
    """The step of that name, made afresh if it has a memory."""
    from ..diffusion import samplers, sde
    made = {"dpm++": samplers.DPMSolver, "predictor-corrector": sde.predictor_corrector}
    name = f"{sampler.replace('-', '_')}_step"
    return made[sampler]() if sampler in made else getattr(samplers, name, None) or getattr(sde, name)


def sample(what: Annotated[str, typer.Argument(metavar="CHECKPOINT|PAPER",
                                               help="A model file, the folder of a run, or a paper.")],
           num: Annotated[Optional[int], typer.Option(
               min=1, max=1_000_000, help="Default: 64 images, 16 videos.")] = None,
           steps: Annotated[Optional[int], typer.Option(min=1, help="Default: 50, or all there are.")] = None,
           sampler: Annotated[Optional[str], typer.Option(help=", ".join(SAMPLERS))] = None,
           scale: Annotated[Optional[float], typer.Option(help="Guidance; 1 = none.")] = None,
           label: Annotated[Optional[int], typer.Option(help="The class; default: all in turn.")] = None,
           text: Annotated[Optional[str], typer.Option(help="A caption; default: of test data.")] = None,
           frames: Annotated[Optional[int], typer.Option(min=1, help="Of each video; any number.")] = None,
           start: Annotated[Optional[Path], typer.Option(help="Picture, GIF or film to go on from.")] = None,
           scheme: Annotated[Optional[str], typer.Option(help=", ".join(SCHEMES))] = None,
           seed: int = 0,
           out: Annotated[Optional[Path], typer.Option(help=".png, .gif, .mp4 or .npy.")] = None):
    """Draw samples from a checkpoint, a run or a paper's shipped checkpoint."""
    import torch

    from ..data import captions, media, sources
    from ..diffusion import schemes
    from ..training.checkpoints import load_model, locate
    from ..training.container import read_header
    from ..training.runs import data_of, language

    for name, value, known in ("--sampler", sampler, SAMPLERS), ("--scheme", scheme, SCHEMES):
        if value not in (None, *known):
            raise BadParameter(f"{value!r} must be one of {', '.join(known)}", param_hint=name)
    path, device = locate(what), "cuda" if torch.cuda.is_available() else "cpu"
    recipe = load_model(path, device)
    video = len(recipe.item) == 4
    num = num or (16 if video else 64)
    out = media.check_format(out or ("samples.gif" if video else "samples.png"), video)
    classes = recipe.origin.kwargs.get("classes", 0)
    if not classes and label is not None or not (classes or recipe.takes("text")) and scale is not None:
        raise BadParameter(f"{path} was trained without labels", param_hint="--label or --scale")
    if text is not None and not recipe.takes("text"):
        raise BadParameter(f"{path} was trained without captions", param_hint="--text")
    if frames is not None and not video:
        raise BadParameter(f"{path} makes images", param_hint="--frames")
    chosen = given(steps=steps, step=sampler and stepper(sampler), scale=scale,
                   scheme=scheme and schemes.SCHEMES[scheme],
                   start=start and beginning(start, recipe.item, frames).to(device).expand(num, *4 * [-1]))
    offered = set(inspect.signature(recipe.sample).parameters)
    if surplus := set(chosen) - offered:
        raise BadParameter(f"{recipe.origin.paper} does not let one choose the {' and '.join(surplus)}")
    options = recipe.quick(num) | chosen | given(frames=frames) | ({"bar": True} if "bar" in offered else {})
    if text is not None:
        options["text"] = captions.tokens([text] * num, **language(recipe)).to(device)
    elif read_header(path).get("data") not in sources.SPLIT and recipe.takes("text"):
        raise BadParameter(f"{path} was trained on captions of your own; give one", param_hint="--text")
    elif recipe.takes("text") or recipe.takes("x"):            # captions, or images for an autoencoder
        items = data_of(recipe, read_header(path).get("data"), "test")[slice(num)]
        options |= {name: value.to(device) for name, value in recipe.asked(items).items()}
    if label is not None:
        if not 0 <= label < classes:
            raise BadParameter(f"{label} must be in 0 ... {classes - 1}", param_hint="--label")
        options["label"].fill_(label)
    began = time.monotonic()
    x = recipe.draw(num, seed, **options)
    if not x.isfinite().all():
        raise ValueError(f"{path}: its samples are not finite; it, or what was chosen, is no good")
    written = media.write(out, x)
    print(f"{num} samples of {recipe.origin.paper} in {time.monotonic() - began:.1f} s -> {written}")


def beginning(path: Path, item: tuple[int, ...], frames: int | None):
    """A picture, or the first frames of a film, that a video of that item's shape is to go on from."""
    from ..data.videos import film
    if not path.is_file():
        raise BadParameter(f"{path}: no such file", param_hint="--start")
    return film(path, item[-1], channels=item[0], most=(frames or item[1]) - 1)[None]


def evaluate(what: Annotated[str, typer.Argument(metavar="CHECKPOINT|PAPER",
                                                 help="A model file, the folder of a run, or a paper.")],
             n: Annotated[int, typer.Option("--n", min=2, help="Samples, and as many real items.")] = 1024,
             seed: Annotated[int, typer.Option(min=0)] = 0,
             steps: Annotated[Optional[int], typer.Option(min=1, help="Default: 50, or all.")] = None,
             sampler: Annotated[Optional[str], typer.Option(help=", ".join(SAMPLERS))] = None,
             data: Annotated[Optional[str], typer.Option(help="Default: what it was trained on.")] = None,
             board: Annotated[Path, typer.Option(help="Leaderboard that gets the row.")] = Path(
                 "runs/leaderboard.jsonl"),
             as_json: Json = False):
    """Measure a model beside real data, and put it on a leaderboard."""
    import torch

    from ..evaluation import leaderboard, measure
    from ..training.checkpoints import locate

    if sampler not in (None, *SAMPLERS):
        raise BadParameter(f"{sampler!r} must be one of {', '.join(SAMPLERS)}", param_hint="--sampler")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = given(steps=steps, step=sampler and stepper(sampler))
    row = measure.evaluate(locate(what), n, seed, device, data, **options)
    leaderboard.add(row, board)
    say([row], as_json, [leaderboard.table([row]), f"-> {board}"])
