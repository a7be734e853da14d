"""Run code for so many seconds and no longer."""
import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Stopped(BaseException):
    """Raised inside a thread to end it."""


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """function() in a thread of its own; a TimeoutError, and the end of the thread, if it takes longer.

    A thread, not an alarm signal: it serves every system and every caller, and answers in time even while
    a long tensor operation cannot be interrupted.  (Code that catches Stopped itself runs on, unwaited for.)
    """
    results = []

    def work():
        with suppress(Stopped):
            results.append(function())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:                                                   # also when the learner interrupts the cell
        stop, tries = ctypes.pythonapi.PyThreadState_SetAsyncExc, 20
        while thread.is_alive() and tries:                     # more than once: any library may swallow it
            stop(ctypes.c_ulong(thread.ident), ctypes.py_object(Stopped))
            thread.join(0.025)
            tries -= 1
    if not results:
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")
    return results[0]
