"""Training, as a generator: `for step in Trainer(recipe).run(batches, 5000): ...`

It knows nothing of diffusion.  Devices, mixed precision, gradient accumulation and several processes are
accelerate's job; the order of things, the random numbers and what is saved are decided here.
"""
import atexit
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from ..data import media
from ..diffusion.ema import EMA
from ..diffusion.random import rows_of
from ..recipe import Recipe, short_of_memory
from . import state
from .processes import LossModule, leave, share_out
from .terminal import Bar, interrupts_held

# steps between looks at the losses on a GPU, each of which waits for it; a CPU looks at every step
CHECK_EVERY = 50


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class Progress:
    """What `run` yields after every step."""

    step: int
    tensor: Tensor  # the loss, still on the device

    @property
    def loss(self) -> float:
        """The loss of this process's part of the batch; reading it waits for the device."""
        return self.tensor.item()


class Trainer:
    """Trains recipe.model; the averaged weights become recipe.ema, which is what recipe.draw samples.

    folder      where the run is kept: state, model, log, samples; None keeps nothing
    steps       the planned length: the learning rate falls to zero there (None: it stays)
    shard       share weights, averages and moments out over the processes (FSDP), to save memory
    accumulate  parts in which a process computes its share of a batch, to save memory
    precision   "no", "fp16" or "bf16"; None: half precision on a GPU, full on a CPU
    facts       anything to be stored with the run: data, preset, batch size ...
    """

    def __init__(self, recipe: Recipe, folder: str | Path | None = None, *, steps: int | None = None,
                 lr: float = 2e-3, warmup: int = 100, ema: float = 0.999, clip: float = 1.0,
                 accumulate: int = 1, shard: bool = False, seed: int = 0, precision: str | None = None,
                 cpu: bool = False, save_every: int = 500, sample_every: int | None = None, samples: int = 16,
                 sample_options: dict[str, Any] | None = None, tracker: str | None = None,
                 facts: dict[str, Any] | None = None):
        if recipe.loss is None:
            raise ValueError("this recipe is training-free: it has no loss, only samples")
        for what, value, least in ("lr", lr, 0), ("clip", clip, 0), ("warmup", warmup, 0), (
                "accumulate", accumulate, 1), ("save_every", save_every, 0), ("steps", steps or 1, 1):
            if not least <= value < math.inf:
                raise ValueError(f"{what}={value} must be a number, {least} at least")
        if precision not in (None, "no", "fp16", "bf16"):
            raise ValueError(f"precision={precision!r} must be no, fp16 or bf16")
        if precision is None:
            gpu = torch.cuda.is_available() and not cpu
            precision = "no" if not gpu else "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
        self.recipe, self.folder = recipe, Path(folder) if folder is not None else None
        shard = os.environ.pop("ACCELERATE_USE_FSDP", "false") == "true" or shard    # said by its launcher
        # accelerate keeps one state per process; a second trainer may choose another device or precision
        AcceleratorState._reset_state(reset_partial_state=int(os.environ.get("WORLD_SIZE", "1")) == 1)
        self.precision = precision
        self.accelerator = Accelerator(mixed_precision=precision, cpu=cpu,
                                       gradient_accumulation_steps=accumulate,
                                       log_with=tracker, project_dir=self.folder)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        if self.accelerator.num_processes > 1:
            atexit.register(leave, self.accelerator.state)
        recipe.model.to(self.device).train()
        for part in recipe.frozen:
            part.to(self.device)
        recipe.ema = self.ema = recipe.ema or EMA(recipe.model, ema)
        self.ema.average.to(self.device)
        if not self.ema.pairs:
            raise ValueError("no weight of this recipe's model is trainable")
        self.sharded = shard and self.accelerator.num_processes > 1
        if shard and not self.sharded:
            print("shard: a single process keeps all weights; torchrun and accelerate launch start several",
                  flush=True)
        self.keeps = self.main or self.sharded                 # takes part in saving and drawing
        if self.sharded:
            share_out(recipe.model, self.ema)
        self.weights = {name: p for name, p in recipe.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr, betas=(0.9, 0.99), weight_decay=0.0,
                                           fused=self.device.type in ("cpu", "cuda"))
        # no DistributedDataParallel around what is shared out
        self.module = self.accelerator.prepare_model(LossModule(recipe), evaluation_mode=self.sharded)
        self.prepared = self.accelerator.prepare(self.optimizer)
        self.total, self.lr, self.warmup, self.clip = steps, lr, warmup, clip
        self.accumulate, self.seed = accumulate, seed
        self.save_every, self.sample_every, self.samples = save_every, sample_every, samples
        self.sample_options, self.facts = sample_options or {}, facts or {}
        self.tracker, self.step, self.seconds, self.saved = tracker, 0, 0.0, None
        self.losses: list[float] = []                          # of every step so far, over all processes
        self.pending: list[Tensor] = []                        # those that have not been looked at
        self.generator = torch.Generator(self.device)
        self.whole = True                                      # not in the middle of a step
        if tracker:
            self.accelerator.init_trackers("diffusion_course", config={"lr": lr, "seed": seed})

    # ---- the loop

    def run(self, batches: Iterable[dict[str, Tensor]], steps: int | None = None,
            bar: bool = False) -> Iterator[Progress]:
        """Take so many steps (None: up to the planned length), yielding Progress after each.

        batches[n] is the batch of step n where batches can be indexed; else the next one is taken.  Ctrl-C,
        and leaving the loop early, save the run.
        """
        if steps is None and self.total is None:
            raise ValueError("say how many steps: run(batches, steps) or Trainer(recipe, steps=...)")
        self.accelerator.gradient_accumulation_steps = self.accumulate         # which trainers share, too
        end = self.step + steps if steps is not None else self.total
        batches = batches if hasattr(batches, "__getitem__") else iter(batches)
        held = state.hold(self) if self.folder and self.main else None
        shown = Bar(self.step, end) if bar and self.main else None
        self.recipe.model.train()
        try:
            while self.step < end:
                began = time.monotonic()
                with interrupts_held():
                    self.whole = False
                    with short_of_memory(self.advice):
                        loss = self.advance(self.batch(batches))
                    self.seconds += time.monotonic() - began
                    self.whole = True
                if self.device.type == "cpu" or len(self.pending) >= CHECK_EVERY:
                    self.look()
                self.keep(last=self.step == end)
                if shown is not None:
                    shown.show(loss)
                yield Progress(self.step, loss)
            self.look()
        except (KeyboardInterrupt, GeneratorExit):
            # several processes may have stopped at different steps: then what was last saved stands
            if self.whole and self.accelerator.num_processes == 1:
                self.look()
                self.save()
            if self.main and self.step < end:
                where = ("nothing is saved" if self.saved is None else
                         f"step {self.saved} is saved in {self.folder}; resume to go on from there")
                print(f"\nstopped after step {self.step}; {where}", flush=True)
            raise
        finally:
            if shown is not None:
                shown.close()
            if held is not None:
                held.release()

    def advice(self) -> str:
        more = 2 * self.accumulate
        saved = "" if self.saved is None else f"; step {self.saved} is saved in {self.folder}"
        return (f"choose a smaller batch, or accumulate={more} to compute each in {more} parts"
                f"{', or precision=bf16' if self.precision == 'no' else ''}, or a smaller model{saved}")

    def batch(self, batches) -> dict[str, Tensor]:
        try:
            return batches[self.step] if hasattr(batches, "__getitem__") else next(batches)
        except (IndexError, StopIteration):
            raise ValueError(f"the batches ended after {self.step} steps") from None

    def advance(self, batch: dict[str, Tensor]) -> Tensor:
        """One step of the optimizer, on this process's rows of the batch."""
        sizes = {len(x) if x.ndim else 0 for x in batch.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"a batch must hold tensors of as many rows, one at least; these are "
                             f"{ {name: tuple(x.shape) for name, x in batch.items()} }")
        total = sizes.pop()
        parts, rank = self.accelerator.num_processes * self.accumulate, self.accelerator.process_index
        if total % parts:
            raise ValueError(f"a batch of {total} cannot be shared by {self.accelerator.num_processes} "
                             f"processes in {self.accumulate} parts each; choose a multiple of {parts}")
        size, mean = total // parts, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        for k in range(rank * self.accumulate, (rank + 1) * self.accumulate):
            mine = slice(k * size, (k + 1) * size)
            rows = {name: x[mine].to(self.device, non_blocking=True) for name, x in batch.items()}
            # all random numbers are a function of (seed, step): a resumed run needs to remember nothing else
            self.generator.manual_seed(1_000_003 * self.seed + self.step)
            torch.manual_seed(1_000_003 * self.seed + self.step + 1_000_000_007 * (k + 1))
            with self.accelerator.accumulate(self.module), rows_of(k * size, total, self.generator):
                loss = self.module(rows)
                self.accelerator.backward(loss)
                if self.clip and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.weights.values(), self.clip)
                self.prepared.step()
                self.prepared.zero_grad()
            mean = mean + loss.detach() / self.accumulate
        self.ema.update()
        self.step += 1
        self.pending.append(mean)
        return mean

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero at the planned end."""
        lr = self.lr * min(1.0, (step + 1) / max(1, self.warmup))
        if self.total is None:
            return lr
        return lr * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.total)))

    def look(self) -> None:
        """Bring the pending losses to the host; stop if one is not finite."""
        if not self.pending:
            return
        new = self.accelerator.reduce(torch.stack(self.pending), "mean").tolist()
        first = len(self.losses)
        for step, loss in enumerate(new, first + 1):
            if not math.isfinite(loss):
                raise self.failure(f"the loss became {loss} at step {step}")
        with interrupts_held():
            self.losses += new
            self.pending.clear()
        if self.tracker:
            for step, loss in enumerate(new, first + 1):
                self.accelerator.log({"loss": loss}, step=step)

    def failure(self, what: str) -> NonFiniteLoss:
        good = ("nothing was saved before" if self.saved is None else
                f"the last good state is that of step {self.saved} in {self.folder}")
        return NonFiniteLoss(
            f"{what}; {good}. Likely causes: the learning rate is too high (lr={self.lr:g}; try a third), "
            f"warm-up is too short (warmup={self.warmup}), the data hold values that are not finite, or half "
            f"precision overflows (precision={self.precision})")

    # ---- what is kept

    def keep(self, last: bool) -> None:
        """Save and sample, if it is time to."""
        due = last or (self.save_every and self.step % self.save_every == 0)
        if self.folder is None or not due and not (self.sample_every and self.step % self.sample_every == 0):
            return
        self.look()
        if due:
            self.save()
        if self.keeps and self.sample_every and (last or self.step % self.sample_every == 0):
            x = self.recipe.draw(self.samples, seed=self.seed, **self.sample_options)
            name = f"step_{self.step:06d}{'.gif' if x.ndim == 5 else '.png'}"
            if self.main:
                media.write(self.folder / "samples" / name, x)

    def save(self) -> None:
        """Write the run into its folder, where it has one."""
        if self.folder is not None and self.keeps and self.saved != self.step:
            state.save(self)

    def summary(self) -> dict[str, Any]:
        known = [loss for loss in self.losses[-100:] if not math.isnan(loss)]
        metrics = {"loss": sum(known) / max(1, len(known))}
        return {"step": self.step, "seed": self.seed, "device": str(self.device),
                "minutes": self.seconds / 60, "metrics": metrics, **self.facts}

    def settings(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the unbroken one."""
        facts = {key: self.facts[key] for key in ("data", "batch_size") if key in self.facts}
        return {"lr": self.lr, "warmup": self.warmup, "clip": self.clip, "ema": self.ema.decay,
                "seed": self.seed, "precision": self.precision,
                "planned_steps": self.total} | facts

    def resume(self) -> int:
        """Continue the run in the folder: afterwards all is as if it had never stopped.  Returns the step."""
        state.load(self)
        return self.step
