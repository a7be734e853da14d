"""What training shows at a terminal or under a cell, and how it takes Ctrl-C."""
import math
import signal
import threading
import time
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def interrupts_held():
    """Ctrl-C (or SIGTERM) inside this block takes effect at its end, so that a step is never half done.

    A signal that is ignored, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = []

    def hold(number, frame):
        caught.append(number)
        signal.signal(number, before[number])                  # a second one is not held

    heeded = [number for number in (signal.SIGINT, signal.SIGTERM)
              if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, hold) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt


class Bar:
    """A progress bar that asks the device for the loss twice a second, not at every step."""

    def __init__(self, start: int, end: int):
        from tqdm import tqdm
        self.bar, self.asked = tqdm(total=end, initial=start, unit="step", desc="training"), -math.inf

    def show(self, loss: Tensor) -> None:
        if time.monotonic() - self.asked > 0.5:
            self.asked = time.monotonic()
            self.bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
