"""What check, hint, solution and progress say and survive, whatever a learner's function does."""
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch

from diffusion_course import exercises
from diffusion_course.classroom.exercise import Exercise, agree, judge, unpack
from diffusion_course.exercises import check, hint, progress, progress_file, solution, solved
from diffusion_course.exercises.lesson_00 import cosine_add_noise


def double(x, y):
    return 2 * x, y.sum()                                      # a tensor like x, a number


def check_double(answer, g):
    for size in (3, 4):
        x, y = torch.randn(size, generator=g), torch.randn(size, generator=g)
        twice, total = unpack(answer(x, y), "twice", "total")
        agree(twice, 2 * x, "twice")
        agree(total, y.sum(), "total")


DOUBLE = Exercise("0.9", "double", 1, "Double x and add up y.", ("Multiply.", "By 2."), check_double, double,
                  "It is.", ((lambda x, y: (x, y.sum()), "x is as before."),
                             (lambda x, y: (2 * x, y[3]), "That is the last one."),
                             (lambda x, y: (torch.rand(()) + x, y.sum()), "That is random.")))


@pytest.fixture(autouse=True)
def learner(tmp_path, monkeypatch):
    """A learner who has solved nothing and seen no hint."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(exercises, "_hints_given", exercises.Counter())


def said(function, seconds=20.0):
    return judge(DOUBLE, function, seconds)


@pytest.mark.parametrize("function", [
    lambda x, y: (2 * x, y.sum().item()), lambda x, y: [x + x, [y.sum()]],
    lambda x, y: (x.double() * 2, y.double().sum()), lambda x, y: (x.numpy() * 2, np.float64(y.sum())),
    lambda x, y: ((2 * x).tolist(), y.sum().expand(7)), lambda *args: double(*args),
    lambda x, y, z=1: (2 * x, y.sum()), lambda a, b: double(a, b),
    lambda x, y: ((2 * x).requires_grad_(), y.sum())])
def test_what_is_right_in_another_form_is_correct(function):
    assert said(function) == (True, "")


def test_an_answer_cannot_spoil_its_inputs():
    def zeroing(x, y):
        out = 2 * x, y.sum()
        x.zero_(), y.zero_()
        return out
    assert said(zeroing) == (True, "")


def unwritten(x, y):
    raise NotImplementedError


@pytest.mark.parametrize("function, words", [
    (None, "no function"), (..., "no function"), (lambda x, y: None, "returns None"),
    (lambda x, y: ..., "returns None"), (print, "returns None"),
    (lambda x, y: (2 * x, None), "None"), (unwritten, "NotImplementedError (line ")])
def test_what_is_not_written_yet_is_neither_right_nor_wrong(function, words):
    verdict, text = said(function)
    assert verdict is None and words in text


class Strange(torch.Tensor):
    """A tensor that raises wherever it is looked at."""

    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        raise ZeroDivisionError


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


def give_up(x, y):
    raise Unprintable


@pytest.mark.parametrize("function, words", [
    (torch.ones(3), "check needs the function double itself, not a Tensor of shape [3]"),
    ("double", "not a str"),
    (lambda x: 2 * x, "called as double(x, y), but yours is <lambda>(x)"),
    (lambda x, *, y: x, "called as double"),
    (lambda y, x: (2 * x, y.sum()), "yours is <lambda>(y, x)"),
    (lambda x, y, z: x, "yours is <lambda>(x, y, z)"),
    (lambda x, y: "2x", "should return 2 things, twice, total, but returns a str"),
    (lambda x, y: x, "returns a Tensor of shape [3]"),
    (lambda x, y: (x, y, 1), "but returns 3"),
    (lambda x, y: (yield), "a generator"),
    (torch.add, "returns a Tensor"),
    (lambda x, y: ("2x", 1), "twice should be a tensor, but is a str"),
    (lambda x, y: ({"x": x}, 1), "but is a dict"),
    (lambda x, y: (2 * x[:2], y.sum()), "shape [3], but has shape [2]"),
    (lambda x, y: (2 * x[:, None], y.sum()), "has shape [3, 1]"),
    (lambda x, y: (2 * x / 0, y.sum()), "infinity"),
    (lambda x, y: (x * float("nan"), y.sum()), "NaN"),
    (lambda x, y: (x + 1j, y.sum()), "complex"),
    (lambda x, y: (x > 0, y.sum()), "torch.bool"),
    (lambda x, y: ((2 * x).int(), y.sum()), "whole numbers"),
    (lambda x, y: (10**400, y.sum()), "twice"),
    (lambda x, y: (2 * x, y.mean()), "total is off by up to"),
    (lambda x, y: (x, y.sum()), "x is as before."),
    (lambda x, y: (x.double().clone(), sum(y)), "x is as before."),
    (lambda x, y: (x + torch.rand(1), y.sum()), "That is random."),
    (lambda x, y: y[9], "IndexError: index 9 is out of bounds"),
    (lambda x, y: 1 / 0, "ZeroDivisionError: division by zero (line "),
    (lambda x, y: sys.exit(), "SystemExit"),
    (lambda x, y: eval("1 +"), "SyntaxError"),
    (give_up, "Unprintable"),
    (dict, "dict expected"),
    (lambda x, y: (x.as_subclass(Strange), y.sum()), "cannot be judged (ZeroDivisionError)"),
    (lambda x, y: (x.to_sparse(), y.sum()), "cannot be judged"),
])
def test_what_is_wrong_is_named(function, words):
    verdict, text = said(function)
    assert verdict is False and words in text
    assert 1 <= len(text.splitlines()) <= 2


def test_the_line_of_the_learners_code_is_named():
    def answer(x, y):
        z = x + y
        return torch.cat([z, 3])                               # in torch, called from here
    first = answer.__code__.co_firstlineno
    assert f"(line {first + 2}: return torch.cat([z, 3])" in said(answer)[1]


@pytest.mark.parametrize("function", [
    lambda x, y: (2 * x, y[0]),                                # a wrong answer, y[3] of three, cannot run
    lambda x, y: x, lambda x, y: (x, y.sum(), 0)])             # half of a wrong answer, and more than it
def test_a_hint_is_given_only_to_those_who_made_the_mistake(function):
    verdict, text = said(function)
    assert verdict is False and len(text.splitlines()) == 1


@pytest.fixture
def released():
    """Set when a test is over: what nothing else stops ends then, or after a minute."""
    event = threading.Event()
    yield event
    event.set()


def loop(x, y):
    end = time.monotonic() + 60                                # endless, for the checker
    while time.monotonic() < end:
        pass


def recursive(x, y):
    return recursive(x, y)


@pytest.mark.parametrize("name", ["loop", "stubborn", "asleep"])
def test_a_loop_without_end_is_stopped(name, released):
    ended = []

    def stubborn(x, y):                                        # and nothing ends it
        while not released.is_set():
            try:
                released.wait(0.01)
            except BaseException:
                pass

    function = {"loop": loop, "stubborn": stubborn, "asleep": lambda x, y: released.wait(60)}[name]
    verdict, text = said(lambda x, y: (function(x, y), ended.append(name)), 0.2)
    assert verdict is False and text == "It was stopped after 0.2 seconds; is there a loop that never ends?"
    assert not ended


def test_a_stopped_loop_does_not_run_on():
    before = set(threading.enumerate())
    for _ in range(3):
        said(loop, 0.05)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_endless_recursion_and_other_threads():
    assert "RecursionError" in said(recursive, 5)[1]
    results = []
    thread = threading.Thread(target=lambda: results.extend([said(loop, 0.1), said(double)]))
    thread.start()
    thread.join(60)
    assert [verdict for verdict, _ in results] == [False, True]


def test_the_learner_can_interrupt():
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    timer.start()
    ended = []
    with pytest.raises(KeyboardInterrupt):
        said(lambda x, y: (loop(x, y), ended.append("loop")), 300)
    assert not ended                                           # it was told at once, and so was the loop


def test_random_numbers_of_the_notebook_are_left_alone():
    expected = torch.manual_seed(3) and torch.rand(2)
    torch.manual_seed(3)
    first = said(lambda x, y: (x + torch.randn(()), y.sum()))
    assert torch.equal(torch.rand(2), expected)
    assert said(lambda x, y: (x + torch.randn(()), y.sum())) == first


# what is printed ------------------------------------------------------------------------------------------
def unbroadcast(x0, t, noise):
    return torch.cos(np.pi / 2 * t) * x0 + torch.sin(np.pi / 2 * t) * noise


def test_check_says_one_of_three_things(capsys):
    assert check("0.1", cosine_add_noise) is True
    assert capsys.readouterr().out == "0.1 add noise: correct. 1 point.\n"
    assert check("0.1", lambda x0, t, noise: None) is None
    assert capsys.readouterr().out == (
        "0.1 add noise: not solved yet. It returns None; if it is finished, does it end with return?\n"
        'hint("0.1") may help.\n')
    assert check("0.1", unbroadcast) is False
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("0.1 add noise: wrong. x_t is off by up to ") and "t[:, None]" in second
    assert check("0.1", lambda x0, t, noise: x0) is False
    assert capsys.readouterr().out.splitlines()[1] == 'hint("0.1") may help.'


def test_what_the_learner_prints_is_shown(capsys):
    def talking(x0, t, noise):
        print("hello", list(x0.shape))
        return cosine_add_noise(x0, t, noise)
    assert check("0.1", talking)
    assert "hello [2, 2]\n" in capsys.readouterr().out


def test_hints_come_one_by_one_and_then_the_solution(capsys):
    hints = exercises.find("0.1").hints
    for n in range(len(hints)):
        hint("0.1")
        assert capsys.readouterr().out == f"0.1, hint {n + 1} of {len(hints)}: {hints[n]}\n"
    for _ in range(2):
        hint("0.1")
        assert "no more hints" in (out := capsys.readouterr().out) and 'solution("0.1")' in out
    hint("0.2")
    assert "hint 1 of" in capsys.readouterr().out
    solution("0.1")
    out = capsys.readouterr().out
    assert out.startswith("def cosine_add_noise(x0, t, noise):") and exercises.find("0.1").why in out


@pytest.mark.parametrize("call", [lambda key: check(key, None), hint, solution])
@pytest.mark.parametrize("key, words", [
    ("1.9", r"no exercise '1.9'; lesson 01 has \"1.1\", \"1.2\", \"1.3\""), (1.2, 'no exercise 1.2; .*"1.2"'),
    ("0", 'lesson 00 has "0.1"'), ("99.1", "lessons with exercises: 00, 01"), ("x.1", "lessons with"),
    ("../1.1", 'no exercise \'../1.1\'; lesson 00 has "0.1"'), (None, "lessons with")])
def test_an_unknown_key_names_the_keys_there_are(call, key, words):
    with pytest.raises(ValueError, match=words):
        call(key)


# progress -------------------------------------------------------------------------------------------------
def test_progress_is_kept_and_shown(capsys):
    progress()
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "lesson 00  [............]  0 of 3 exercises, 0 of 6 points"
    assert second.startswith("lesson 01  [")
    check("0.1", cosine_add_noise), check("0.1", cosine_add_noise)
    check("0.2", None), check("0.3", unbroadcast)
    capsys.readouterr()
    progress()
    assert "lesson 00  [####........]  1 of 3 exercises, 1 of 6 points\n" in capsys.readouterr().out
    check("0.1", unbroadcast)                                  # once solved it stays so
    assert solved() == {"0.1"}
    check("0.2", exercises.find("0.2").solution)
    assert json.loads(progress_file().read_text()) == {"solved": ["0.1", "0.2"]}
    assert progress_file().parent.parent.name == "cache"
    assert set(os.listdir(progress_file().parent)) == {"progress.json", ".progress.json.lock"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"{}", b'{"solved": 3}',
                                     b'{"solved": [["a"], {}, 1]}', b'{"solved": null}', b"[" * 100_000])
def test_an_unreadable_file_is_started_anew(content, capsys):
    progress_file().parent.mkdir(parents=True)
    progress_file().write_bytes(content)
    progress()
    assert check("0.1", cosine_add_noise) and solved() == {"0.1"}
    assert json.loads(progress_file().read_text()) == {"solved": ["0.1"]}


def test_without_a_place_to_write_check_works_and_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert check("0.1", cosine_add_noise)
    assert "correct. 1 point. (Your progress could not be stored: " in capsys.readouterr().out
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(exercises.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert check("0.1", cosine_add_noise)
    assert "could not be stored: no home" in capsys.readouterr().out
    progress()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_does_not_break_check():
    progress_file().parent.mkdir(parents=True)
    progress_file().parent.chmod(0o500)
    assert check("0.1", cosine_add_noise) and not solved()


def test_progress_is_written_whole_or_not_at_all(monkeypatch, capsys):
    check("0.1", cosine_add_noise)
    monkeypatch.setattr(exercises.Path, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    assert check("0.2", exercises.find("0.2").solution)
    assert "disk full" in capsys.readouterr().out
    assert solved() == {"0.1"} and len(os.listdir(progress_file().parent)) == 2        # it and its lock
