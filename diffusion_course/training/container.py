"""The file of a checkpoint: tensors and JSON as safetensors.  Whole or not there, and never unpickled."""
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__
from ..data import files

KEY = "diffusion_course"  # of our JSON in the file's metadata
FIELDS = {"paper": str, "kwargs": dict, "kind": str, "step": int, "data": str, "preset": str, "init": dict,
          "settings": dict, "ema_updates": int, "minutes": float, "batch_size": int, "metrics": dict}


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or not one that fits; the message names the file and the fault."""


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Write tensors and header to a file that is whole at any time."""
    versions = {"diffusion_course": __version__, "torch": torch.__version__,
                "python": platform.python_version()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with files.whole(path) as part:
        try:
            save_file(tensors, part, metadata={KEY: json.dumps(header | {"versions": versions})})
        except SafetensorError as error:                       # a full disk, for one
            raise OSError(str(error)) from error
        part.chmod(0o644)                                      # safetensors keeps its files to their owner
    return path


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON of a checkpoint."""
    with opened(path) as file:
        return header_of(file, path)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON of a checkpoint."""
    with opened(path) as file:
        header = header_of(file, path)
        try:
            return {name: file.get_tensor(name) for name in file.keys()}, header
        except Exception as error:                             # safetensors has numbers that torch lacks
            raise CheckpointError(f"{path}: its tensors cannot be read ({error})") from error


def read_averaged(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The averaged weights, and the JSON, of a model checkpoint or of a training state."""
    tensors, header = read(path)
    part = "ema." if header.get("kind") == "state" else ""
    return {name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)}, header


def opened(path: str | Path):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(f"{path}: this is a pickle (a .pt or .ckpt file of PyTorch), which could run "
                              "any code; only safetensors files are read")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated, or not a safetensors file ({error})") from error


def header_of(file, path) -> dict[str, Any]:
    try:
        header = json.loads((file.metadata() or {})[KEY])
    except (KeyError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: a safetensors file, but not written by diffusion_course") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object")
    for name, kind in FIELDS.items():
        if name in header and not isinstance(header[name], (kind, int) if kind is float else kind):
            raise CheckpointError(f"{path}: its header's {name} is {header[name]!r:.80}, no {kind.__name__}")
        if kind in (int, float) and not 0 <= header.get(name, 0) < math.inf:
            raise CheckpointError(f"{path}: its header's {name} is {header[name]!r:.80}, not 0 or more")
    return header
