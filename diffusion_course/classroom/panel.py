"""What a training cell shows while it runs: one loss curve, one strip of samples, one line of text."""
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .figures import draw_losses, pixels_of, rendered, styled


def in_notebook() -> bool:
    """Whether there is a Jupyter kernel to show pictures."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return getattr(get_ipython(), "kernel", None) is not None


def watch(run: Iterable, total: int, samples: Callable[[], Tensor] | None = None, stages: int = 6,
          every: float = 2.0) -> Iterator:
    """Pass on a training run and show it as it goes: `for step in watch(trainer.run(...), total)`

    samples() -> [N, C, H, W] is called `stages` times on the way, and each time adds a row of pictures.  The
    loss is that of the step (step.tensor, or the step itself where it is a tensor), and comes from the device
    only when the panel is drawn, every `every` seconds.  Without a kernel it is one line of text.
    """
    panel = Panel(total, samples, stages, every)
    with panel.shown():
        for step in run:
            if not panel.count:                                # a run that goes on does not begin at 1
                panel.before = getattr(step, "step", 1) - 1
            panel.add(getattr(step, "tensor", step))
            yield step


class Panel:
    """A loss curve and rows of samples below the cell, redrawn in place; a line of text at a terminal."""

    def __init__(self, total: int, samples: Callable[[], Tensor] | None = None, stages: int = 6,
                 every: float = 2.0):
        if total < 1:
            raise ValueError(f"total={total} must be at least 1")
        self.total, self.samples, self.every = total, samples, every
        self.due = {max(1, round(total * (stage / stages) ** 2)) for stage in range(1, stages + 1)}
        self.losses, self.rows, self.pending, self.before = [], {}, [], 0
        self.began = self.drawn = time.monotonic()
        self.handle = None

    @property
    def count(self) -> int:
        """How many steps it was shown; `before` were taken earlier."""
        return len(self.losses) + len(self.pending)

    def add(self, loss: Tensor) -> None:
        """Note the loss of one more step; draw if it is time to."""
        self.pending.append(loss.detach())
        step = self.before + self.count
        stage = self.samples is not None and step in self.due
        if stage and in_notebook():
            self.rows[step] = self.samples().detach().cpu()
        if stage or time.monotonic() - self.drawn > self.every:
            self.draw()

    @contextmanager
    def shown(self) -> Iterator["Panel"]:
        """Whatever ends the run, its last state is what stays on the page."""
        try:
            yield self
        finally:
            if self.pending or self.losses:
                self.draw(final=True)

    def draw(self, final: bool = False) -> None:
        if self.pending:
            self.losses += torch.stack(self.pending).float().cpu().tolist()
            self.pending = []
        self.drawn = time.monotonic()
        if in_notebook():
            self.picture()
        else:
            print(f"\r{self.text()}", end="\n" if final else "", file=sys.stderr, flush=True)

    def text(self) -> str:
        done, seconds = self.before + len(self.losses), time.monotonic() - self.began
        recent, pace = self.losses[-50:], seconds / len(self.losses)
        rest = "" if done >= self.total else f", about {clock(pace * (self.total - done))} left"
        return f"step {done} of {self.total}, loss {sum(recent) / len(recent):.4f}, {clock(seconds)}{rest}"

    def picture(self) -> None:
        import numpy as np
        from IPython.display import display

        with styled(*((8.4, 2.9) if self.samples else (5.0, 2.6))) as fig:
            left, *right = fig.subplots(1, 1 + bool(self.samples), squeeze=False)[0]
            draw_losses(left, np.asarray(self.losses), before=self.before)
            left.set_xlim(0, self.total)
            left.set_title(self.text(), loc="left", fontsize=8)
            for ax in right:
                self.draw_rows(ax)
            alt = f"Training so far: {self.text()}." + (
                f" Right: samples after {', '.join(map(str, self.rows))} steps." if self.rows else "")
            shown = rendered(fig, alt)
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)

    def draw_rows(self, axes) -> None:
        """One row of samples per stage, labelled with its step; the rows to come are blank."""
        import numpy as np

        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[], title="samples, from the same noise" if self.rows else "")
        if not self.rows:
            return
        strips = [np.concatenate([np.pad(pixels_of(x), ((1, 1), (1, 1), *[(0, 0)] * (len(x) > 1)))
                                  for x in images], axis=1) for images in self.rows.values()]
        blank = [np.ones_like(strips[0])] * (len(self.due) - len(strips))
        axes.imshow(np.concatenate(strips + blank), vmin=0, vmax=1, aspect="equal")
        height = len(strips[0])
        axes.set_yticks([height * (n + 0.5) for n in range(len(strips))],
                        [f"{step}" for step in self.rows], fontsize=8)
        axes.tick_params(length=0)


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
