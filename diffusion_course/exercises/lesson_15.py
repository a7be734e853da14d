"""Lesson 15, Flexible Diffusion Modeling: schemes, which say what each call sees and what it makes.

The learner's functions yield pairs (seen, new) of lists of frame numbers.  Those of this file yield the same, but
`rows` turns their calls into a tensor, so that judge can compare an answer with the wrong ones.
"""
import functools
from collections.abc import Iterable
from itertools import islice
from operator import index

import numpy as np
import torch

from ..classroom.exercise import Exercise, NotSolved, Wrong, kind, tensor


def rows(scheme):
    """The scheme, but it returns its calls as rows [K, 3]: which call, which frame, 1/2 if seen or 1 if made."""
    @functools.wraps(scheme)
    def answer(*args):
        return flat(scheme(*args))
    return answer


def flat(calls):
    return torch.tensor([(n, i, made) for n, (seen, new) in enumerate(calls)
                         for made, frames in ((0.5, seen), (1.0, new)) for i in sorted(frames)]).double()


def plan(answer, length, window, step, *more):
    """What an answer yields, as (seen, new) in rising order; Wrong where a scheme breaks its contract."""
    out = answer(length, window, step, *more)
    if not isinstance(out, Iterable) or isinstance(out, (str, dict)):
        raise Wrong(f"It should yield pairs of lists, (seen, new), but returns {kind(out)}.")
    try:
        calls = list(islice(out, 1000))                        # it need not end
    except NotImplementedError as error:
        raise NotSolved(f"It raises {answer.describe(error)}.") from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise Wrong(f"It raises {answer.describe(error)}.") from None
    if not calls:
        raise Wrong("It yields nothing at all.")
    if not isinstance(calls[0], tuple) and np.shape(calls[0]) == (3,):
        calls = unflat(tensor(out, (len(calls), 3), "What it yields").tolist())
    try:
        calls = [tuple(sorted(map(index, frames)) for frames in call) for call in calls]
        assert all(len(call) == 2 for call in calls)
    except Exception:
        raise Wrong("Each call should be a pair of lists, (seen, new), of whole numbers.") from None
    answer.out = flat(calls)                                   # a generator can be read only once
    contract(calls, length, window, step)
    return calls


def unflat(table):
    calls = [([], []) for _ in range(int(min(table[-1][0], len(table))) + 1)]
    for n, i, made in table:
        if made not in (0.5, 1) or n not in range(len(calls)) or i != int(i):
            raise Wrong("It should yield pairs of lists, (seen, new).")
        calls[int(n)][made == 1].append(int(i))
    return calls


def contract(calls, length, window, step):
    case, done = f"With length {length}, window {window} and step {step},", set()
    for n, (seen, new) in enumerate(calls, 1):
        if not new:
            raise Wrong(f"{case} call {n} makes no frame.")
        for i in seen + new:
            if not 0 <= i < length:
                raise Wrong(f"{case} call {n} asks for frame {i}; there are only 0 to {length - 1}.")
        if len(set(new)) < len(new) or done & {*new}:
            raise Wrong(f"{case} a frame of call {n} is made twice: {span(new)} after {span(done)}.")
        if len(set(seen)) < len(seen) or {*seen} - done:
            raise Wrong(f"{case} call {n} sees {span(seen)}, but only {span(done)} is there, each once.")
        if len(seen) + len(new) > window:
            raise Wrong(f"{case} call {n} has {len(seen)} frames to see and {len(new)} to make: too many.")
        if n > 1 and len(new) > step:
            raise Wrong(f"{case} call {n} makes {len(new)} frames.")
        done |= {*new}
    if len(done) < length:
        raise Wrong(f"{case} {span(set(range(length)) - done)} is never made.")


def span(frames):
    """Frame numbers in short: 0-3, 8, 12-15."""
    ends = [f"{i}" if {i - 1, i + 1} & {*frames} == set() else "" if {i - 1, i + 1} <= {*frames} else
            f"{i}-" if i + 1 in frames else f"{i}" for i in sorted(frames)]
    return ", ".join("".join(f"{end} " if end and end[-1] != "-" else end for end in ends).split()) or "nothing"


def equal(calls, want, length, window, step):
    for n, (call, right) in enumerate(zip(calls, want), 1):
        for verb, got, frames in zip(("see", "make"), call, right):
            if got != sorted(frames):
                raise Wrong(f"With length {length}, window {window} and step {step}, call {n} should {verb} "
                            f"{span(frames)}, but has {span(got)} to {verb}.")


# 15.1 -----------------------------------------------------------------------------------------------------
def look_back(length, window, step):
    yield [], list(range(min(window, length)))
    for done in range(window, length, step):
        new = list(range(done, min(done + step, length)))
        yield list(range(done - (window - len(new)), done)), new


def check_look_back(answer, g):
    for args in ((20, 8, 3), (64, 16, 8), (5, 8, 4), (31, 10, 7), (24, 6, 1)):
        equal(plan(answer, *args), look_back(*args), *args)


def blocks(length, window, step, choose, start=None):
    """The calls of a video made in order, that see choose(done, new)."""
    start = min(start or window, length)
    yield [], list(range(start))
    for done in range(start, length, step):
        new = list(range(done, min(done + step, length)))
        yield choose(done, new), new


def overshoot(length, window, step):
    yield [], list(range(window))
    for done in range(window, length, step):
        yield list(range(done - window + step, done)), list(range(done, done + step))


first = Exercise(
    key="15.1", title="the latest frames", points=1,
    prompt="Yield the calls of the autoregressive scheme as pairs of lists of frame numbers, (seen, new). The "
           "first call sees nothing and makes the first `window` frames; each later one makes the next `step`, "
           "and sees the latest ones that are there, as many as it can with at most `window` in all. The "
           "video has `length` frames: the last call may make fewer, and the first, too.",
    hints=("yield [], list(range(window)) is the first call. How many frames are done after it?",
           "With `done` frames there, the new ones are done ... min(done + step, length) - 1.",
           "There is room for window - len(new) more: list(range(done - (window - len(new)), done)). For the "
           "first call, min(window, length)."),
    check=check_look_back, solution=rows(look_back),
    why="Whatever has left the window is forgotten: frame 63 can depend on frame 0 only through all that lies "
        "between. Where fewer frames are new, the room that they leave is used for seeing.",
    wrong=(
        (rows(lambda length, window, step: blocks(length, window, step, lambda done, new: list(range(
            done - window + step, done)))),
         "Where the last call makes fewer than `step`, it can see more: the room is window - len(new)."),
        (rows(overshoot),
         "A call makes `step` frames even if the video has ended before. Stop at `length`."),
        (rows(lambda length, window, step: blocks(length, window, step, lambda done, new: list(range(done)))),
         "Each call sees all that is there. Seen and new together must fit into the window."),
        (rows(lambda length, window, step: blocks(length, window, step, lambda done, new: list(range(
            done - window, done)))),
         "The window holds the new frames, too, so there is room for window - len(new) to be seen."),
        (rows(lambda length, window, step: blocks(length, window, step, lambda done, new: list(range(
            window - len(new))))),
         "These are the very first frames. The scheme looks at the latest."),
        (rows(lambda length, window, step: blocks(length, window, step, lambda done, new: list(range(
            max(0, done - window + len(new)), done)), step)),
         "The first call sees nothing, so it has the whole window for new frames, not only `step`.")))


# 15.2 -----------------------------------------------------------------------------------------------------
def coarse_to_fine(length, window, step):
    count = min(window, length)
    done = [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
    yield [], done
    missing = [i for i in range(length) if i not in done]
    for k in range(0, len(missing), step):
        new = missing[k:k + step]
        before, after = [i for i in done if i < new[0]], [i for i in done if i > new[-1]]
        inside = [i for i in done if new[0] < i < new[-1]]
        seen = before[-1:] + after[:1] + inside + after[1:2] + before[-2::-1]  # what matters most comes first
        yield sorted(seen[:window - len(new)]), new
        done = sorted(done + new)


def check_coarse_to_fine(answer, g):
    for length, window, step in ((64, 16, 8), (90, 8, 4), (7, 9, 3), (30, 12, 3), (53, 10, 5)):
        calls = plan(answer, length, window, step)
        case = f"With length {length}, window {window} and step {step},"
        seen, done = calls[0]
        gaps = np.diff(done)
        if seen or len(done) < min(window, length) or gaps.max() > gaps.min() + 1 or done[-1] < length - 1:
            raise Wrong(f"{case} the first call should make {min(window, length)} frames at even distances "
                        f"from 0 to {length - 1}, but makes {span(done)}.")
        missing = sorted({*range(length)} - {*done})
        for n, (seen, new) in enumerate(calls[1:]):
            if new != missing[n * step:(n + 1) * step]:
                raise Wrong(f"{case} call {n + 2} should make {span(missing[n * step:(n + 1) * step])}, the "
                            f"next of those that are missing, but makes {span(new)}.")
            last = max(i for i in done if i < new[0])
            inside = [i for i in done if last <= i < new[-1]] + [min(i for i in done if i > new[-1])]
            if unseen := {*inside} - {*seen}:
                raise Wrong(f"{case} call {n + 2} makes {span(new)}, but does not see {span(unseen)}.")
            done = done + new


def fill(length, window, step, choose, first=None, skip=True):
    """Hierarchy-2 in variations: the first call, and what is seen of what is done."""
    done = first or next(coarse_to_fine(length, window, step))[1]
    yield [], done
    missing = [i for i in range(length) if not skip or i not in done]
    for k in range(0, len(missing), step):
        new = missing[k:k + step]
        yield sorted(choose(sorted(done), new, window - len(new))), new
        done = done + new


def nearest(done, new, room):
    return sorted(done, key=lambda i: max(new[0] - i, i - new[-1], 0))[:room]


def both_sides(done, new, room):
    return [i for i in done if i < new[0]][-1:] + nearest([i for i in done if i > new[0]], new, room - 1)


second = Exercise(
    key="15.2", title="coarse to fine", points=2,
    prompt="Yield the calls (seen, new) of hierarchy-2. The first call sees nothing and makes min(window, "
           "length) frames at even distances, from frame 0 to the last; rounding may change a distance by 1. "
           "Later calls make the missing frames in order, `step` at a time. Each sees at least the nearest "
           "done frame before its new ones, the nearest after them, and all done ones between them; at most "
           "`window` frames take part in a call. (Those three always fit in.)",
    hints=("Of `count` places at even distances, number i is round(i * (length - 1) / (count - 1)).",
           "Keep a list of what is done; the missing frames are the others. A block of them has done frames "
           "before, between and after.",
           "Put the nearest before and the nearest after first, then those between, then others; cut at "
           "window - len(new). After each call its new frames are done."),
    check=check_coarse_to_fine, solution=rows(coarse_to_fine),
    why="The first call decides what happens over the whole video, so no two frames are far from each other "
        "in calls. All later ones only fill in: what they see on either side keeps them from drifting.",
    wrong=(
        (rows(lambda length, window, step: fill(length, window, step, both_sides,
                                                list(range(min(window, length))))),
         "The first call makes the beginning, as the autoregressive scheme does. Spread it over the video."),
        (rows(lambda length, window, step: fill(length, window, step, both_sides,
                                                list(range(0, length, -(-length // window))))),
         "Every so many frames from 0 on, the last frame is missed. Divide the way to length - 1 instead."),
        (rows(lambda length, window, step: fill(length, window, step, lambda done, new, room: [
            i for i in done if i < new[0]][-room:])),
         "Only the past is seen. Frames of the first call that come later are there, too."),
        (rows(lambda length, window, step: fill(length, window, step, lambda done, new, room: done)),
         "Everything that is done is seen. There is room for window - len(new) only."),
        (rows(lambda length, window, step: fill(length, window, step, both_sides, skip=False)),
         "The later calls make all frames, also those of the first call. Leave out what is done."),
        (rows(lambda length, window, step: fill(length, window, step, lambda done, new, room: nearest(
            next(coarse_to_fine(length, window, step))[1], new, room))),
         "Only frames of the first call are seen. What later calls made is done as well, and nearer."),
        (rows(lambda length, window, step: fill(length, window, step, nearest)),
         "These are the nearest of all. Where a gap is long, they all lie before the new frames: keep a place "
         "for the first one after them.")))


# 15.3 -----------------------------------------------------------------------------------------------------
def look_greedily(length, window, step, cov):
    yield [], list(range(min(window, length)))
    for done in range(window, length, step):
        new, seen = list(range(done, min(done + step, length))), []
        left = cov.clone()                                     # the covariance that is left, given `seen`
        while len(seen) < window - len(new):
            link = left[:done, new]
            told = (link @ left[new][:, new].inverse() * link).sum(1) / left.diagonal()[:done]
            told[seen] = -1
            best = told.argmax().item()
            seen.append(best)
            left = left - left[best].outer(left[best]) / left[best, best]
        yield sorted(seen), new


def check_look_greedily(answer, g):
    for name, shots, args in (("in the toy of the lesson", False, (40, 10, 5)),
                              ("in the toy of the lesson", False, (64, 16, 8)),
                              ("in a video that cuts between two cameras", True, (40, 10, 5)),
                              ("in a video that cuts between two cameras", True, (56, 16, 8))):
        time = torch.arange(args[0]).double()
        cov = 0.5 + 0.5 * 0.9 ** (time - time[:, None]).abs()
        if shots:
            camera = (time // 7) % 2
            cov = cov * (0.1 + 0.9 * (camera == camera[:, None]))
        calls = plan(answer, *args, cov)
        equal([[(), new] for _, new in calls], [[(), new] for _, new in look_back(*args)], *args)
        found, least, long = (divergence(some, cov) for some in (
            calls, look_greedily(*args, cov), blocks(*args, lambda done, new: ends(done, args[1] - len(new)))))
        if found > min(long, 1.5 * least):
            raise Wrong(f"With length {args[0]}, window {args[1]} and step {args[2]}, {name}, the KL is "
                        f"{found:.3g} nats; it is {long:.3g} for long-range and {least:.3g} for greedy choice.")


def divergence(calls, cov):
    """KL of the Gaussian video that these calls draw, with exact conditionals, to the true one."""
    cov = cov.numpy()
    weight, rest = np.zeros_like(cov), np.zeros_like(cov)      # x = weight x + what is left to chance
    for seen, new in calls:
        link = cov[np.ix_(seen, new)]
        w = np.linalg.solve(cov[np.ix_(seen, seen)], link).T
        weight[np.ix_(new, seen)] = w
        rest[np.ix_(new, new)] = cov[np.ix_(new, new)] - w @ link
    mix = np.linalg.inv(np.eye(len(cov)) - weight)
    ratio = np.linalg.solve(cov, mix @ rest @ mix.T)           # its determinant is that of cov^-1 rest
    return (np.trace(ratio) - len(cov) + np.linalg.slogdet(cov)[1] - np.linalg.slogdet(rest)[1]) / 2


def ends(done, room):
    return [*range(room // 2), *range(done - (room - room // 2), done)]


