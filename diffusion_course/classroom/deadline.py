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
    results, ended = [], threading.Event()

    def work():
        try:
            with suppress(Stopped):
                results.append(function())
        finally:
            ended.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        ended.wait(seconds)
    finally:                                                   # also when the learner interrupts the cell
        stop, tries = ctypes.pythonapi.PyThreadState_SetAsyncExc, 20
        while thread.is_alive() and not ended.is_set() and tries:              # a library may swallow one
            stop(ctypes.c_ulong(thread.ident), ctypes.py_object(Stopped))
            ended.wait(0.025)
            tries -= 1
    if not results:
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")
    return results[0]
