"""Exercises that check themselves: what one is made of, and how an answer is judged.

An answer is called on copies of its inputs, in a thread that is given some seconds.  So whatever it does
(return nothing, raise, loop for ever, overwrite its arguments), it ends in one of three verdicts.
"""
import inspect
import textwrap
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .deadline import within


class Wrong(Exception):
    """Raised by a check: what is wrong with the answer, in a sentence for the learner."""


class NotSolved(Exception):
    """The answer has not been written yet; the message says how one can tell."""


@dataclass(frozen=True)
class Exercise:
    """What is asked of the learner, how an answer is checked, and what helps.

    check(answer, g) calls the answer on inputs drawn with the generator g and raises Wrong.  `wrong` holds
    plausible wrong answers, each with the hint for a learner whose answer does the same.
    """

    key: str                                                   # "1.2": the second exercise of lesson 01
    title: str
    points: int
    prompt: str
    hints: tuple[str, ...]                                     # from gentle to nearly the answer
    check: Callable[["Answer", torch.Generator], None]
    solution: Callable                                         # named and called as the learner's function
    why: str
    wrong: tuple[tuple[Callable, str], ...]

    @property
    def arguments(self) -> list[str]:
        return list(inspect.signature(self.solution).parameters)

    @property
    def signature(self) -> str:
        """How the learner's function is called: 'add_noise(x0, t, noise)'."""
        return f"{self.solution.__name__}({', '.join(self.arguments)})"

    @property
    def stub(self) -> str:
        """Source of the function that the learner completes."""
        prompt = textwrap.fill(self.prompt, 96, subsequent_indent="    ")
        return f'def {self.signature}:\n    """{prompt}"""\n    ...  # your code\n'


@dataclass(frozen=True)
class Question:
    """What is asked of the learner in words; a person gives the points, by the rubric."""

    key: str                                                   # "1.w": the written question of lesson 01
    title: str
    points: int
    prompt: str
    rubric: tuple[str, ...]                                    # what an answer must say, a point each
    answer: str                                                # one good answer


class Answer:
    """A learner's function: takes copies, raises only Wrong and NotSolved, remembers its last call."""

    def __init__(self, function: Callable, exercise: Exercise):
        self.function, self.args, self.out = function, (), None
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):                        # some built-in functions have none
            return
        if not accepts(signature, exercise.arguments):
            mine = f"{getattr(function, '__name__', 'function')}({', '.join(signature.parameters)})"
            raise Wrong(f"It is called as {exercise.signature}, but yours is {mine}.")

    def __call__(self, *args: Any) -> Any:
        self.args, self.out = args, None
        try:
            out = run(self.function, args)
        except NotImplementedError as error:
            raise NotSolved(f"It raises {self.describe(error)}.") from None
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise Wrong(f"It raises {self.describe(error)}.") from None
        if any(part is None or part is ... for part in parts(out)):
            raise NotSolved("It returns None; if it is finished, does it end with return?")
        self.out = out
        return out

    def describe(self, error: BaseException) -> str:
        """An error in one line, with the line of the learner's code that it comes from."""
        message = traceback.format_exception_only(error)[0].splitlines()[0]
        file = getattr(getattr(self.function, "__code__", None), "co_filename", None)
        lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        return message + (f" (line {lines[-1].lineno}: {lines[-1].line})" if lines else "")


def accepts(signature: inspect.Signature, names: list[str]) -> bool:
    """Whether a function can be called with these arguments, in this order."""
    try:
        signature.bind(*names)
    except TypeError:
        return False
    return list(signature.parameters) == names or sorted(signature.parameters) != sorted(names)


def run(function: Callable, args: tuple) -> Any:
    """function on copies of args; random numbers that it draws are the same for every function."""
    torch.default_generator.manual_seed(0)
    return function(*[a.clone() if isinstance(a, Tensor) else a for a in args])


def parts(out: Any) -> tuple:
    return out if isinstance(out, tuple) else (out,)


def unpack(out: Any, *names: str) -> Iterable:
    """The items of what a function returned; Wrong unless there is one for each of names."""
    if not isinstance(out, (tuple, list)) or len(out) != len(names):
        found = f"{len(out)}" if isinstance(out, (tuple, list)) else kind(out)
        raise Wrong(f"It should return {len(names)} things, {', '.join(names)}, but returns {found}.")
    return out


def kind(value: Any) -> str:
    shape = f" of shape {list(value.shape)}" if isinstance(value, Tensor) else ""
    return f"a {type(value).__name__}{shape}"


def tensor(value: Any, shape: Iterable[int], what: str) -> Tensor:
    """value as a finite, real tensor on the CPU; shape [] stands for any.  Wrong says what else it is."""
    shape = tuple(shape)
    try:
        out = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what} should be a tensor, but is {kind(value)}.") from None
    if shape and out.shape != shape:
        raise Wrong(f"{what} should have shape {list(shape)}, but has shape {list(out.shape)}.")
    if out.is_complex() or out.dtype == torch.bool:
        raise Wrong(f"{what} should hold real numbers, but is {out.dtype}.")
    if not out.isfinite().all():
        raise Wrong(f"{what} holds NaN or infinity; is something divided by zero?")
    return out


def agree(value: Any, want: Tensor, what: str) -> None:
    """Wrong unless value is want, up to the rounding of float32."""
    got = tensor(value, want.shape, what)
    if not close(got, want):
        error = (got.double() - want.double()).abs().max()
        whole = "" if got.is_floating_point() else f" It holds whole numbers ({got.dtype})."
        raise Wrong(f"{what} is off by up to {error:.2g}.{whole}")


def close(got: Tensor, want: Tensor) -> bool:
    return torch.allclose(got.double(), want.double(), rtol=1e-3, atol=1e-5)


def judge(exercise: Exercise, function: Any, seconds: float = 20.0, seed: int = 0) -> tuple[bool | None, str]:
    """True (correct), False (wrong) or None (not solved yet), and what to tell the learner.

    The inputs are drawn with seed.
    """
    if function is None or function is ...:
        return None, "There is no function yet."
    if not callable(function):
        return False, f"check needs the function {exercise.solution.__name__} itself, not {kind(function)}."
    try:
        with torch.random.fork_rng(devices=[]):                # the notebook's stream goes on as before
            return within(seconds, lambda: verdict(exercise, function, seed))
    except TimeoutError:
        return False, f"It was stopped after {seconds:g} seconds; is there a loop that never ends?"


def verdict(exercise: Exercise, function: Callable, seed: int) -> tuple[bool | None, str]:
    answer = None
    try:
        answer = Answer(function, exercise)
        exercise.check(answer, torch.Generator().manual_seed(seed))
    except NotSolved as error:
        return None, str(error)
    except Wrong as error:
        hint = recognised(exercise, answer) if answer and answer.out is not None else None
        return False, f"{error}\n{hint}" if hint else str(error)
    except Exception as error:                                 # it returned something very strange
        return False, f"What it returns cannot be judged ({type(error).__name__})."
    return True, ""


def recognised(exercise: Exercise, answer: Answer) -> str | None:
    """The hint of the wrong answer that returns what this answer last returned."""
    for function, hint in exercise.wrong:
        try:
            want, got = parts(run(function, answer.args)), parts(answer.out)
            same = [close(tensor(item, other.shape, ""), other) for item, other in zip(got, want)]
            if len(got) == len(want) and all(same):
                return hint
        except (Wrong, RuntimeError, IndexError):              # another shape, or it fails on these inputs
            continue
    return None
