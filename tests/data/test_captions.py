import itertools

import numpy as np
import pytest
import torch

from diffusion_course.data.captions import (
    DIGITS,
    DIRECTIONS,
    LENGTH,
    VOCABULARY,
    Actor,
    caption,
    parse,
    tokens,
    words,
)

DEEDS = [*itertools.product(range(10), ("up", "down", "left", "right"), (False, True)),
         *((digit, "stays", False) for digit in range(10))]
MOVING = [Actor(*deed) for deed in DEEDS]                      # 90
STILL = [Actor(digit) for digit in range(10)]
EVERY = [pair for cast in (MOVING, STILL) for n in (1, 2) for pair in itertools.product(cast, repeat=n)]


def test_what_is_said():
    both = [Actor(7, "up"), Actor(2, "left", slow=True)]
    assert caption(both) == "a seven moves up and a two moves left slowly"
    assert caption([Actor(7), Actor(2)]) == "a seven and a two"
    assert caption([Actor(0, "stays")]) == "a zero stays"
    assert caption([Actor(8, "right"), Actor(8)]) == "an eight moves right and an eight"
    assert [str(actor) for actor in STILL] == [f"a{'n' * (name == 'eight')} {name}" for name in DIGITS]


def test_every_caption_is_understood():
    said = [caption(actors) for actors in EVERY]
    assert len(said) == len(set(said)) == 90 + 90**2 + 10 + 10**2
    assert [parse(text) for text in said] == EVERY


def test_every_caption_fits_and_comes_back_from_tokens():
    said = [caption(actors) for actors in EVERY]
    rows = tokens(said)
    assert rows.shape == (len(said), LENGTH) and rows.dtype == torch.int64
    assert words(rows) == said and torch.equal(tokens(words(rows)), rows)
    assert len(rows.unique(dim=0)) == len(said)
    count = (rows > 0).sum(1)
    assert count.max() == LENGTH - 1 and count.min() == 2
    assert ((rows > 0) == (torch.arange(LENGTH) < count[:, None])).all(), "the filling is not at the end"
    assert rows.unique().tolist() == list(range(len(VOCABULARY))) and len(VOCABULARY) == len(set(VOCABULARY))


def test_the_null_caption_is_zeros_of_the_same_shape():
    assert torch.equal(tokens([""]), torch.zeros(1, LENGTH, dtype=torch.int64))
    assert words(tokens([""])) == [""]
    assert tokens([]).shape == (0, LENGTH) and tokens([]).dtype == torch.int64 and words(tokens([])) == []


def test_tokens_may_be_overwritten():
    tokens(["a one"]).zero_()
    assert words(tokens(["a one"])) == ["a one"]


def test_spaces_do_not_matter():
    assert parse("  a seven  moves up and  a two ") == (Actor(7, "up"), Actor(2))
    assert torch.equal(tokens([" a  two "]), tokens(["a two"]))


@pytest.mark.parametrize("text, phrase", [
    ("", "''"), ("a", "'a'"), ("seven", "'seven'"), ("a cat", "'a cat'"), ("A seven", "'A seven'"),
    ("a one moves", "'a one moves'"), ("a one up", "'a one up'"), ("a one moves stays", "moves stays'"),
    ("a one stays slowly", "'a one stays slowly'"), ("a one moves up quickly", "'a one moves up quickly'"),
    ("a one moves up slowly slowly", "slowly slowly'"), ("a one slowly", "'a one slowly'"),
    ("a one moves up and a dog", "'a dog'"), ("a one and ", "'a one and'"), ("a one, a two", "'a one, a")])
def test_what_is_no_caption_is_named(text, phrase):
    with pytest.raises(ValueError, match=f"{phrase}.* is not `a DIGIT`.*zero, one.*up, down, left, right"):
        parse(text)


@pytest.mark.parametrize("text, reason", [
    ("a seven jumps up", "'jumps' in 'a seven jumps up' is not one of the words .*: a an and moves"),
    ("A seven", "'A' in 'A seven'"), ("a seven.", "'seven.'"),
    ("a one and a two and a three and a four and a five", "has 14 words; a caption has 12 at most")])
def test_tokens_of_other_texts(text, reason):
    with pytest.raises(ValueError, match=reason):
        tokens(["a one", text])


def test_one_text_is_no_list():
    with pytest.raises(ValueError, match="texts='a one' must be a list"):
        tokens("a one")


@pytest.mark.parametrize("arguments, reason", [
    ((10,), "digit=10 must be a whole number from 0 to 9"), ((-1,), "digit=-1"), ((7.0,), "digit=7.0"),
    (("7",), "digit=7 "), ((1, "Up"), "direction='Up' must be one of up, down, left, right, stays, or None"),
    ((1, "north"), "direction='north'"), ((1, "stays", True), "slow=True needs a direction"),
    ((1, None, True), "slow=True needs a direction")])
def test_who_cannot_be(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Actor(*arguments)


def test_a_digit_from_an_array():
    assert str(Actor(np.int64(8), DIRECTIONS[0])) == "an eight moves up"


def test_words_of_ones_own_have_numbers_beyond_the_vocabulary():
    text = ["A red flag, waving", "a seven waves"]
    rows = tokens(text, words=1000, length=6)
    assert rows.shape == (2, 6) and rows.max() < 1000
    assert rows[0, 0] == VOCABULARY.index("a") and rows[0, 4:].tolist() == [0, 0]
    assert (rows[0, 1:4] >= len(VOCABULARY)).all() and len(set(rows[0, 1:4].tolist())) == 3
    assert rows[1, :2].tolist() == tokens(["a seven"])[0, :2].tolist() and rows[1, 2] >= len(VOCABULARY)
    assert torch.equal(rows, tokens(text, words=1000, length=6))     # whatever the process
    assert torch.equal(tokens(["Flag."], 1000), tokens(["flag"], 1000))
    assert not torch.equal(tokens(["flag"], 1000), tokens(["flags"], 1000))
    with pytest.raises(ValueError, match="'red' in 'red' is not one of the words"):
        tokens(["red"], words=len(VOCABULARY))
    with pytest.raises(ValueError, match="has 4 words; a caption has 3 at most"):
        tokens(["a b c d"], words=1000, length=3)
