"""Random numbers for a training batch that may be spread over processes.

Everything random in a loss is drawn for the whole batch, from one stream, and each process keeps the rows
that are its own.  So two processes, or two half batches one after the other, train the model that one
whole batch trains.  Outside `rows_of` these are torch.rand and torch.randn.
"""
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows [start, start + n) of a batch of `total`, drawn from `generator`."""

    start: int
    total: int
    generator: torch.Generator | None


_rows: ContextVar[Rows | None] = ContextVar("rows", default=None)


@contextmanager
def rows_of(start: int, total: int, generator: torch.Generator | None):
    """Inside this block, the first axis of what is drawn is a part of a larger batch."""
    token = _rows.set(Rows(start, total, generator))
    try:
        yield
    finally:
        _rows.reset(token)


@contextmanager
def whole_batch(n: int):
    """Inside this block what is drawn is for the whole batch, of which n rows are this part's.

    Gives its size and the slice of those rows.
    """
    rows = _rows.get() or Rows(0, n, None)
    with rows_of(0, rows.total, rows.generator):
        yield rows.total, slice(rows.start, rows.start + n)


def leads() -> bool:
    """Whether this is the first part of a batch, or all of it: for what counts batches, not their parts."""
    rows = _rows.get()
    return rows is None or rows.start == 0


def _draw(make, shape: tuple[int, ...], device) -> Tensor:
    rows = _rows.get()
    if rows is None:
        return make(shape, device=device)
    whole = make((rows.total, *shape[1:]), device=device, generator=rows.generator)
    return whole[rows.start:rows.start + shape[0]]


def rand(*shape: int, device=None) -> Tensor:
    """Uniform in [0, 1); the first axis is the batch."""
    return _draw(torch.rand, shape, device)


def strata(batch: int, device=None) -> Tensor:
    """Uniform in [0, 1), one number in each of B equal intervals: [B], in rising order."""
    def make(shape, device, generator=None):
        place = torch.arange(shape[0], device=device) + torch.rand(shape, device=device, generator=generator)
        return (place / shape[0]).clamp(max=1 - 2**-24)        # rounding may not reach 1
    return _draw(make, (batch,), device)


def randn(*shape: int, device=None) -> Tensor:
    """Standard normal; the first axis is the batch."""
    return _draw(torch.randn, shape, device)


def randn_like(x: Tensor) -> Tensor:
    """Standard normal, shaped like x [B, ...]."""
    return randn(*x.shape, device=x.device).to(x.dtype)
