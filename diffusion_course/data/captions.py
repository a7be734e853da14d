"""The language of the course: what moving digits do, as a sentence, as tokens, and back.

    a seven moves up and a two moves left slowly          clips
    a seven and a two                                     frames, which have no direction
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import torch
from torch import Tensor

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("up", "down", "left", "right", "stays")
VOCABULARY = ("", "a", "an", "and", "moves", "stays", "slowly", *DIGITS, *DIRECTIONS[:4])
LENGTH = 12  # tokens of a caption: two digits that move slowly, and one to spare


@dataclass(frozen=True)
class Actor:
    """One digit, where it goes (None: not said, as in captions of frames), and whether it does so slowly."""

    digit: int
    direction: str | None = None
    slow: bool = False

    def __post_init__(self):
        if isinstance(self.digit, float) or self.digit not in range(10):
            raise ValueError(f"digit={self.digit} must be a whole number from 0 to 9")
        if self.direction not in (None, *DIRECTIONS):
            raise ValueError(f"direction={self.direction!r} must be one of {', '.join(DIRECTIONS)}, or None")
        if self.slow and self.direction in (None, "stays"):
            raise ValueError("slow=True needs a direction to move in")

    def __str__(self) -> str:
        words = f"{'an' if self.digit == 8 else 'a'} {DIGITS[self.digit]}"
        if self.direction == "stays":
            return f"{words} stays"
        moves = f" moves {self.direction}" if self.direction else ""
        return words + moves + (" slowly" if self.slow else "")


def caption(actors: Sequence[Actor]) -> str:
    """The sentence that says what the digits do."""
    return " and ".join(map(str, actors))


def parse(text: str) -> tuple[Actor, ...]:
    """The digits of a caption and what they do; a ValueError says which part is no caption."""
    return tuple(map(actor, text.strip().split(" and ")))


def actor(phrase: str) -> Actor:
    """`a seven`, `a seven stays` or `a seven moves up [slowly]`, understood."""
    match phrase.split():
        case ["a" | "an", digit] if digit in DIGITS:
            return Actor(DIGITS.index(digit))
        case ["a" | "an", digit, "stays"] if digit in DIGITS:
            return Actor(DIGITS.index(digit), "stays")
        case ["a" | "an", digit, "moves", direction, *rest] if (
                digit in DIGITS and direction in DIRECTIONS[:4] and rest in ([], ["slowly"])):
            return Actor(DIGITS.index(digit), direction, bool(rest))
    raise ValueError(f"{phrase!r} is not `a DIGIT`, `a DIGIT stays` or `a DIGIT moves WAY [slowly]`; digits "
                     f"are {', '.join(DIGITS)}, ways {', '.join(DIRECTIONS[:4])}")


def tokens(texts: Sequence[str], words: int = len(VOCABULARY), length: int = LENGTH) -> Tensor:
    """Captions as numbers of words, int64 [B, length], filled up with 0; the null caption is all 0.

    With more `words` than the vocabulary has, any others are known as well: each by a number that is computed
    from its letters (the hashing trick), so that seldom two share one.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts={texts!r} must be a list of captions, even if it is only one")
    rows = [row(text, words, length) for text in texts]
    return torch.stack(rows) if rows else torch.zeros(0, length).long()


@lru_cache(maxsize=10_000)                                     # clips say the same things again and again
def row(text: str, size: int = len(VOCABULARY), length: int = LENGTH) -> Tensor:
    """The tokens [length] of one caption."""
    said, known = text.split(), len(VOCABULARY)
    if size > known:
        said = [word.lower().strip(".,;:!?") for word in said]
    elif unknown := [word for word in said if word not in VOCABULARY]:
        raise ValueError(f"{unknown[0]!r} in {text!r} is not one of the words that captions have: "
                         + " ".join(VOCABULARY[1:]))
    if len(said) > length:
        raise ValueError(f"{text!r} has {len(said)} words; a caption has {length} at most")
    numbers = [VOCABULARY.index(word) if word in VOCABULARY else
               known + crc32(word.encode()) % (size - known) for word in said]
    return torch.tensor(numbers + [0] * (length - len(said)))


def words(rows: Tensor) -> list[str]:
    """Tokens [B, L] of the vocabulary as captions."""
    if rows.ndim != 2 or rows.dtype.is_floating_point or rows.dtype.is_complex or rows.numel() and not (
            0 <= rows.min() and rows.max() < len(VOCABULARY)):
        raise ValueError(f"tokens must be whole numbers [B, L] from 0 to {len(VOCABULARY) - 1}, got "
                         f"{rows.dtype} of shape {tuple(rows.shape)}")
    return [" ".join(VOCABULARY[n] for n in row if n) for row in rows.tolist()]
