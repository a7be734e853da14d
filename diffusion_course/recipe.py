"""What a paper file returns: the one contract between papers and everything else."""
import functools
import inspect
import math
import os
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from .diffusion.ema import EMA
from .diffusion.samplers import ddim_step

MOST = 1_000_000  # of anything that a recipe counts
ALLOCATION = "DefaultCPUAllocator"  # in what torch says of a CPU that has no memory left
Count = Annotated[int, "0: none"]  # in the signature of a recipe; an int is 1 at least
Batch = dict[str, Tensor]  # {"x": clean images or videos in [-1, 1], "label": ..., "text": ...}


class OutOfMemory(RuntimeError):
    """The device has not enough memory; the message says what to lower."""


def is_full_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of this machine is full."""
    kinds = (torch.cuda.OutOfMemoryError, MemoryError, OutOfMemory)
    return isinstance(error, kinds) or ALLOCATION in str(error)


@contextmanager
def short_of_memory(advice: Callable[[], str]):
    """Where memory runs out in this block, an OutOfMemory gives the advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_full_memory(error):
            raise
        reason = (str(error) or "no memory is left").splitlines()[0]
        raise OutOfMemory(f"out of memory: {advice()} ({reason})") from error


@dataclass(frozen=True)
class Origin:
    """How a recipe was made: the name of its paper file and the keyword arguments."""

    paper: str
    kwargs: dict[str, Any]


@dataclass
class Recipe:
    """A method: its model, its training loss and its sampler."""

    model: nn.Module                           # what is trained, saved and averaged
    loss: Callable[[Batch], Tensor] | None     # None: the method is training-free
    sample: Callable[..., Tensor]              # (noise, **options and cond) -> samples; latents stay latents
    shape: tuple[int, ...]                     # of one sample's noise
    data: str = "mnist"
    item: tuple[int, ...] = ()                 # shape of one item of data; by default that of the noise
    autoencoder: nn.Module | None = None       # `draw` decodes with it; frozen
    frozen: tuple[nn.Module, ...] = ()         # what else must follow the model to the device
    ema: EMA | None = None                     # the average that is sampled; the trainer sets it
    origin: Origin | None = field(default=None, repr=False)
    checkpoint: dict[str, str] | None = None   # where its weights come from: name and sha256 of the file

    def __post_init__(self):
        self.item = self.item or self.shape
        if self.autoencoder is not None and self.autoencoder not in self.frozen:
            self.frozen = (*self.frozen, self.autoencoder)
        for part in self.frozen:
            part.eval().requires_grad_(False)

    def takes(self, name: str) -> bool:
        """Whether `sample` has an argument of that name."""
        return name in inspect.signature(self.sample).parameters

    def asked(self, batch: Batch) -> dict[str, Tensor]:
        """What samples are asked for by items of data: their captions, or, of autoencoders, themselves."""
        return {name: batch[name] for name in ("text", "x") if name in batch and self.takes(name)}

    def quick(self, n: int) -> dict[str, Any]:
        """Options for n samples soon: a paper's own quick sampler, or 50 DDIM steps; labels in turn."""
        offered, options = inspect.signature(self.sample).parameters, {}
        if {"steps", "step"} <= set(offered):
            steps, step = (offered[name].default for name in ("steps", "step"))
            own = steps <= 50 and step is not None
            options = {"steps": min(50, steps), "step": step if own else ddim_step}
        if classes := self.origin and self.origin.kwargs.get("classes"):
            options["label"] = torch.arange(n, device=next(self.model.parameters()).device) % classes
        return options

    @torch.no_grad()
    def draw(self, n: int, seed: int | None = None, frames: int | None = None, **options) -> Tensor:
        """n samples [n, C, (F,) H, W] in [-1, 1], from the averaged weights; one seed, one result.

        frames   of each video; by default as many as the shape says
        options  go to `sample`
        """
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        shape = self.shape
        if frames is not None:
            if len(shape) == 3 or frames < 1:
                raise ValueError(f"frames={frames} must be at least 1, and the samples videos")
            shape = (shape[0], frames, *shape[2:])
        device = next(self.model.parameters()).device
        training, devices = self.model.training, [device] if device.type == "cuda" else []
        try:
            self.model.eval()
            average = self.ema.swapped() if self.ema else nullcontext()
            with average, torch.random.fork_rng(devices, enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                with short_of_memory(lambda: f"n={n} samples of {list(shape)} are too many; draw fewer"):
                    x = self.sample(torch.randn(n, *shape).to(device), **options)
                    return x if self.autoencoder is None else self.autoencoder.decode(x)
        finally:
            self.model.train(training)


@dataclass(frozen=True)
class Preset:
    """Training numbers of one paper for one size of machine; `recipe` goes to its recipe(...)."""

    steps: int
    batch_size: int = 128                      # the whole batch, over all processes
    lr: float = 2e-3
    ema: float = 0.999
    init: str | None = None                    # a model of the course whose weights it begins with
    recipe: dict[str, Any] = field(default_factory=dict)


def asking(draw: Callable[..., Tensor], null: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A sampler draw(noise, cond, **options) with an argument for each condition: null unless given."""
    first, _, *options = inspect.signature(draw).parameters.values()
    own = [inspect.Parameter(name, first.kind, default=None) for name in null]
    signature = inspect.Signature([first, *own, *options])

    def asked(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        noise, cond = given.pop("noise"), {name: given.pop(name, None) for name in null}
        cond = {name: null[name].to(noise.device).expand(len(noise), *null[name].shape)
                if value is None else value for name, value in cond.items()}
        return draw(noise, cond, **given)

    asked.__signature__ = signature
    return asked


def preset_name(name: str | None = None) -> str:
    """smoke, laptop or t4: as asked, else DIFFUSION_COURSE_PRESET, else t4 on a GPU and laptop without."""
    name = (name or os.environ.get("DIFFUSION_COURSE_PRESET")
            or ("t4" if torch.cuda.is_available() else "laptop"))
    if name not in ("smoke", "laptop", "t4"):
        raise ValueError(f"preset={name!r} must be smoke, laptop or t4")
    return name


def check_argument(name: str, value: Any, kind: Any) -> None:
    """A ValueError unless an argument of a recipe, perhaps from a file's header, is of the kind it says."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in (int, Count) and not (number and isinstance(value, int) and (kind is int) <= value <= MOST):
        raise ValueError(f"{name}={value!r:.80} must be a whole number from {int(kind is int)} to {MOST:,}")
    if kind is float and not (number and math.isfinite(value)):
        raise ValueError(f"{name}={value!r:.80} must be a finite number")
    if kind in (bool, str) and not isinstance(value, kind):
        raise ValueError(f"{name}={value!r:.80} must be {'True or False' if kind is bool else 'a string'}")
    if kind == tuple[int, ...] and (not isinstance(value, (tuple, list)) or not value):
        raise ValueError(f"{name}={value!r:.80} must be a few whole numbers")
    for one in value if kind == tuple[int, ...] else ():
        check_argument(name, one, int)
    if kind in (Recipe, Recipe | None) and not isinstance(value, kind):
        raise ValueError(f"{name}={value!r:.80} must be a model: what a recipe(...) or load_model(...) gives")


def paper(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Decorate a paper's recipe(...), so that what it returns remembers how it was made."""
    signature = inspect.signature(recipe)

    @functools.wraps(recipe)
    def remember(*args, **kwargs) -> Recipe:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            check_argument(name, value, signature.parameters[name].annotation)
        made = recipe(*args, **kwargs)
        made.origin = Origin(recipe.__module__.rpartition(".")[2], dict(bound.arguments))
        return made

    return remember
