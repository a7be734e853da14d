"""The three doors through which a condition enters a network."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spacetime import fold_frames


def within(name: str, module: nn.Module, c: Tensor) -> Tensor:
    """module(c), where c may be the numbers of classes or words."""
    whole = c.dtype in (torch.int64, torch.int32)
    if isinstance(module, nn.Embedding) and not (whole and c.ndim in (1, 2)):
        raise ValueError(f"{name} must be whole numbers, one for each sample [B] or frame [B, F]; got "
                         f"{c.dtype} of shape {tuple(c.shape)}")
    try:
        return module(c)
    except IndexError as error:                                # asked for here, as on a GPU a look would wait
        raise ValueError(f"{name} holds numbers from {c.min()} to {c.max()}, which this network was not "
                         "built for") from error


class Doors(nn.Module):
    """Named conditions: added to the time embedding, attended to as tokens, or stacked on the input channels.

    embed  {name: make}, where make(dim) is a module from the condition to a vector [B, dim] or [B, F, dim];
    tokens {name: module}, a module with an attribute `dim`, from the condition to tokens [B, L, dim];
    stack  {name: channels}, an image or video that is resized to the input and concatenated to it.
    """

    def __init__(self, dim: int, embed: dict[str, Callable[[int], nn.Module]] | None = None,
                 tokens: dict[str, nn.Module] | None = None, stack: dict[str, int] | None = None):
        super().__init__()
        self.embed = nn.ModuleDict({name: make(dim) for name, make in (embed or {}).items()})
        self.tokens = nn.ModuleDict(tokens or {})
        self.stack = dict(stack or {})
        dims = {module.dim for module in self.tokens.values()}
        if len(dims) > 1:
            raise ValueError(f"all token conditions must share one width, got {sorted(dims)}")
        self.token_dim = dims.pop() if dims else None

    def check(self, cond: dict[str, Tensor]) -> None:
        """A network gets the conditions it was built with: no more, no fewer."""
        expected = {*self.embed, *self.tokens, *self.stack}
        if set(cond) != expected:
            raise ValueError(f"this network takes the conditions {sorted(expected)}, got {sorted(cond)}; "
                             "to leave one out, pass its null value")

    def added(self, e: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """e [B, D] or [B, F, D] plus the embedding of every condition of the first door."""
        for name, module in self.embed.items():
            c = within(name, module, cond[name])
            if len(c) != len(e) or c.ndim == 3 == e.ndim and 1 not in (c.shape[1], e.shape[1]) and (
                    c.shape[1] != e.shape[1]):
                raise ValueError(f"{name} of shape {tuple(cond[name].shape)} must be one for each of the "
                                 f"{len(e)} samples, or for each of their frames")
            if c.ndim != e.ndim:                               # one of the two is per frame
                c, e = (c[:, None], e) if e.ndim == 3 else (c, e[:, None])
            e = e + c
        return e

    def attended(self, cond: dict[str, Tensor]) -> Tensor | None:
        """All tokens of the second door, [B, L, D], or None."""
        tokens = [within(name, module, cond[name]) for name, module in self.tokens.items()]
        return torch.cat(tokens, dim=1) if tokens else None

    def stacked(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """x [B, C, (F,) H, W] with the conditions of the third door behind its channels, frames folded."""
        h, frames = fold_frames(x)
        for name, channels in self.stack.items():
            c = cond[name]
            if c.shape[1] != channels:
                raise ValueError(f"{name} must have {channels} channels, got shape {tuple(c.shape)}")
            if c.ndim == 4 and x.ndim == 5:                    # one image for all frames
                c = c[:, :, None].expand(-1, -1, frames, -1, -1)
            c, _ = fold_frames(c)
            if c.shape[2:] != h.shape[2:]:
                c = F.interpolate(c, h.shape[2:], mode="bilinear", antialias=c.shape[2] > h.shape[2])
            h = torch.cat([h, c.to(h)], dim=1)
        return h
