"""How a lesson begins, how it sizes itself to the machine, and how it checks what the learner wrote."""
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..recipe import is_full_memory, preset_name
from .panel import in_notebook

FULL = ("Memory is full. Ask for less in this cell (a smaller batch, fewer samples), then restart the kernel "
        "and run the cells above again: what failed may still hold memory.")
SESSION = ('files are gone when this session ends; lesson 00, "When something goes wrong", says how to keep '
           "them")


def start(seed: int = 0) -> torch.device:
    """Say what this lesson runs on; seed the random numbers; return the device."""
    from ..data.mnist import load

    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({threads} threads)"
    data = load()
    print(f"diffusion_course {__version__}, torch {torch.__version__}, {where}\n"
          f"preset {preset_name()}, seed {seed}, data {data.name} ({len(data):,} images)")
    if in_colab():
        print(SESSION)
    if device.type == "cpu" and in_colab():
        print("no GPU: choose Runtime, Change runtime type, T4 GPU, and run this cell again; "
              f"without one, lessons use the preset {preset_name()}")
    if in_notebook():
        advise_on_full_memory()
    return device


def advise_on_full_memory() -> None:
    """From now on, what to do is said below the error of a cell that ran out of memory."""
    from IPython import get_ipython

    def advise(shell, kind, error, traceback, tb_offset=None):
        shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
        if is_full_memory(error):
            print(FULL, file=sys.stderr)

    get_ipython().set_custom_exc((RuntimeError, MemoryError), advise)


def in_colab() -> bool:
    """Whether this is a kernel of Google Colab's."""
    try:
        return find_spec("google.colab") is not None
    except ModuleNotFoundError:                                # nor is there anything else of google
        return False


def preset(smoke: Any, laptop: Any, t4: Any) -> Any:
    """The one of three values that fits this machine; DIFFUSION_COURSE_PRESET chooses another."""
    return {"smoke": smoke, "laptop": laptop, "t4": t4}[preset_name()]


def same(mine: Any, reference: Any, *args, tolerance: float = 1e-5, **kwargs) -> None:
    """Raise unless mine and reference agree: two values, or two functions on the same arguments and seed.

    Values are tensors, numbers, or tuples of them.  The tolerance is absolute for values up to 1, relative
    above.
    """
    if isinstance(mine, Callable) and isinstance(reference, Callable):
        mine, reference = seeded(mine, args, kwargs), seeded(reference, args, kwargs)
    mine, reference = as_tensors(mine), as_tensors(reference)
    if len(mine) != len(reference):
        raise AssertionError(f"yours has {len(mine)} parts, the package's {len(reference)}")
    worst = 0.0
    for a, b in zip(mine, reference):
        if a.shape != b.shape:
            raise AssertionError(f"yours has shape {tuple(a.shape)}, the package's {tuple(b.shape)}")
        a, b = a.double().cpu(), b.double().cpu()
        apart = ((a - b).abs() / b.abs().clamp_min(1)).max().item() if a.numel() else 0.0
        if not apart <= tolerance:                             # catches NaN as well
            raise AssertionError(f"yours and the package's differ by up to {apart:.2g}; "
                                 f"{tolerance:.0e} is allowed")
        worst = max(worst, apart)
    print(f"the same, to within {tolerance:.0e}")


def seeded(function: Callable, args: tuple, kwargs: dict) -> Any:
    """Call the function without gradients, and with random numbers that every call shares."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return function(*args, **kwargs)


def as_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in as_tensors(part)]
    return [value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)]
