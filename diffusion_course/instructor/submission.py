"""The code of a submission, seen from the grader: functions to call that run in a process of their own.

See jail.py for the other side.  What comes back is not trusted: it is JSON and numbers, of limited size, in
limited time; whatever else arrives counts as a crash.
"""
import builtins
import inspect
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from .. import exercises
from ..classroom.exercise import judge
from .jail import landlock, objects

UNLOCKED = "DIFFUSION_COURSE_UNLOCKED_GRADING"
LARGEST = 2**28  # bytes of an answer

cloudpickle.register_pickle_by_value(exercises)                # the jail cannot import what a check passes in


class Dead(RuntimeError):
    """The process ended, or took too long and was ended."""


class Jail:
    """A process that holds the functions of a submission."""

    def __init__(self, scratch: Path):
        if not landlock() and os.environ.get(UNLOCKED) != "1":
            raise RuntimeError("this system cannot lock up the code of a submission (that takes Linux 5.13 "
                               f"or newer, with Landlock); {UNLOCKED}=1 grades without, for people you trust")
        ours, self.source = os.pipe()
        self.sink, theirs = os.pipe()
        program = sys.executable, "-I", "-m", "diffusion_course.instructor.jail"
        environment = {"PATH": "", "HOME": str(scratch), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*program, str(scratch), str(ours), str(theirs)], pass_fds=(ours, theirs), env=environment,
            start_new_session=True, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL))
        os.close(ours), os.close(theirs)
        self.open = True
        try:
            self.answer(120)
        except Dead as error:
            raise RuntimeError(f"the process for submissions did not start: {error}") from None

    def ask(self, *request: Any, seconds: float) -> dict:
        """The answer to a request; Dead if there is none in time."""
        message, end = cloudpickle.dumps(request), time.monotonic() + seconds
        message = struct.pack("<Q", len(message)) + message
        while message:
            if time.monotonic() > end:
                self.close()
                raise Dead("it took too long")
            if select.select([], [self.source], [], 0.05)[1]:
                try:
                    sent = os.write(self.source, message[:select.PIPE_BUF])    # so much never waits
                except OSError:
                    self.close()
                    raise Dead("it crashed") from None
                message = message[sent:]
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict:
        end = time.monotonic() + seconds
        try:
            sizes = struct.unpack("<QQ", self.read(16, end))
            if sum(sizes) > LARGEST:
                raise Dead("it returned too much")
            header = dict(json.loads(self.read(sizes[0], end)))
            data = memoryview(bytearray(self.read(sizes[1], end)))
            for name in "out", "after":
                if name in header:
                    header[name], data = value_of(header[name], data)
            return header
        except Dead:
            self.close()
            raise
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError):
            self.close()                                       # somebody else wrote into the pipe
            raise Dead("it crashed") from None

    def read(self, size: int, end: float) -> bytes:
        parts = b""
        while len(parts) < size:
            if time.monotonic() > end:
                raise Dead("it took too long")
            if select.select([self.sink], [], [], 0.05)[0]:
                part = os.read(self.sink, min(size - len(parts), 2**20))
                if not part:
                    raise Dead("it crashed")
                parts += part
        return parts

    def close(self) -> None:
        if self.open:
            self.open = False
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.source), os.close(self.sink)


def value_of(tree: Any, data: memoryview) -> tuple[Any, memoryview]:
    """What `jail.plain` wrote down, and the bytes that are left."""
    if tree is None:
        return None, data
    if "plain" in tree:
        return tree["plain"], data
    if "tensor" in tree:
        dtype, shape = getattr(torch, tree["tensor"]), tree["shape"]
        if not isinstance(dtype, torch.dtype):
            raise ValueError(tree["tensor"])
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        flat = torch.frombuffer(data[:size], dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return flat.reshape(shape), data[size:]
    if "other" in tree:
        return type(str(tree["other"]), (), {})(), data
    name, = tree
    items = []
    for item in tree[name]:
        value, data = value_of(item, data)
        items.append(value)
    return {"tuple": tuple, "list": list}[name](items), data


def error_of(answer: dict) -> Exception:
    """The error that the function raised, with its own name."""
    known = getattr(builtins, str(answer["error"]), None)
    usual = isinstance(known, type) and issubclass(known, Exception)
    kind = known if usual else type(str(answer["error"]), (Exception,), {"__module__": "builtins"})
    try:
        return kind(answer["text"])
    except Exception:                                          # such as UnicodeDecodeError, which wants more
        return RuntimeError(f"{answer['error']}: {answer['text']}")


def change(thing: Any, kind: str, name: str, value: Any) -> None:
    """Do to our object what the function did to its copy."""
    if not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"{name!r} is no name of a part")
    if kind == "buffer":
        thing.register_buffer(name, value)
    elif kind == "parameter" and name not in thing._parameters:
        thing.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    elif kind == "attribute":
        setattr(thing, name, value)


def fresh(key: str) -> int:
    """A seed for the inputs of a check that nobody has seen, and on which our own solution passes.

    (On one in some hundred it does not: two candidates lie too close to call, or rounding reaches a limit.)
    """
    while True:
        seed, exercise = random.SystemRandom().randrange(2**31), exercises.find(key)
        if judge(exercise, exercise.solution, 60, seed)[0]:
            return seed


class Remote:
    """A function of a submission as one that can be called here."""

    def __init__(self, submission: "Submission", name: str, arguments: list):
        self.submission, self.__name__ = submission, name
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(str(n), kind) for n in arguments])

    def __call__(self, *args: Any) -> Any:
        self.submission.busy = True
        answer = self.submission.jail.ask("call", self.__name__, args, seconds=self.submission.seconds)
        self.submission.busy = False
        if "error" in answer:
            raise error_of(answer)
        for thing, state in zip(objects(args), answer["after"]):
            for kind, name, value in state:
                change(thing, kind, name, value)
        return answer["out"]


class Submission:
    """The code cells of a submission, run one after the other; a cell that kills the process is left out."""

    def __init__(self, cells: list[str], scratch: Path, seconds: float = 60):
        self.cells, self.scratch, self.seconds = cells, scratch, seconds
        self.errors: dict[int, str] = {}                       # of cells, by number
        self.deadly: set[int] = set()
        self.jail: Jail | None = None
        self.busy = False                                      # a call has not come back

    def started(self) -> Jail:
        """The jail, with all cells run; a new one if it died."""
        while self.jail is None:
            self.jail = Jail(self.scratch)
            for n, code in enumerate(self.cells):
                try:
                    answer = {} if n in self.deadly else self.jail.ask("run", code, seconds=self.seconds)
                except Dead as error:
                    self.errors[n], self.jail = str(error), None
                    self.deadly.add(n)
                    break
                if "error" in answer:
                    self.errors[n] = f"{answer['error']}: {answer['text']}"
        return self.jail

    def function(self, name: str) -> Remote | None:
        """The function of that name; None if there is none."""
        answer = self.started().ask("look", name, seconds=self.seconds)
        if answer.get("arguments") is None:
            return None
        return Remote(self, name, answer["arguments"])

    def verdict(self, key: str) -> tuple[bool | None, str]:
        """Of one exercise, on inputs that nobody has seen before."""
        exercise, seed = exercises.find(key), fresh(key)
        try:
            right, text = judge(exercise, self.function(exercise.solution.__name__), self.seconds, seed)
        except (Dead, ValueError) as error:
            right, text, self.busy = False, f"It cannot be called: {error}.", True
        if self.busy:                                          # it is dead, or still at it
            self.close()
        return right, f"{text} (Inputs drawn with seed {seed}.)".strip()

    def close(self) -> None:
        if self.jail is not None:
            self.jail.close()
        self.jail, self.busy = None, False
