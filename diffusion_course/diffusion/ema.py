"""Averages of weights."""
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn


class EMA:
    """A running average of the trainable weights, with warm-up.

    After n updates the decay is at most (1 + n) / (10 + n).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1)")
        self.model, self.decay, self.updates = model, decay, 0
        self.average = deepcopy(model).requires_grad_(False)
        self.pairs = self.matched()

    def matched(self) -> list[tuple[Tensor, Tensor]]:
        """The averages and the trainable weights that they follow."""
        pairs = zip(self.average.parameters(), self.model.parameters())
        return [(a, p) for a, p in pairs if p.requires_grad]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([a for a, _ in self.pairs], [p.detach() for _, p in self.pairs], 1 - decay)
        for a, b in zip(self.average.buffers(), self.model.buffers()):
            a.copy_(b)

    @contextmanager
    def swapped(self):
        """Inside this block the model has the averaged weights."""
        self.swap()
        try:
            yield self.model
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        averages, weights = zip(*self.pairs)
        kept = [p.clone() for p in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, kept)
