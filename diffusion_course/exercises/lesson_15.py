"""Lesson 15, flexible diffusion: three schemes, which say of each call what it sees and what it makes.

Learners yield pairs (seen, new) of lists.  Their picture [calls, frames] has 1/2 where seen, 1 where made.
"""
import functools
from itertools import groupby, islice
from operator import index

import numpy as np
import torch

from ..classroom.exercise import Exercise, Question, Wrong, tensor
from ..diffusion.schemes import long_range


def picture(calls, n):
    return torch.tensor([[1.0 if i in new else 0.5 * (i in seen) for i in range(n)] for seen, new in calls])


def pictured(scheme):
    return functools.wraps(scheme)(lambda *args: picture(scheme(*args), args[0]))


def calls_of(answer, length, window, step, *more):
    """What an answer yields, as sorted lists, and words for the case; Wrong if it breaks the contract."""
    out = answer(length, window, step, *more)
    try:
        out = list(islice(out, 1000)) if hasattr(out, "__next__") else out
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise Wrong(f"It raises {answer.describe(error)}.") from None
    try:
        if all(len(call) == length for call in out):           # it is a picture
            table = tensor(out, (len(out), length), "The picture")
            out = [[(row == kind).nonzero().flatten() for kind in (0.5, 1)] for row in table]
        calls = [(sorted(map(index, seen)), sorted(map(index, new))) for seen, new in out]
    except Exception:
        raise Wrong("It should yield pairs of lists of whole numbers, (seen, new).") from None
    if {i for seen, new in calls for i in seen + new} <= {*range(length)}:
        answer.out = picture(calls, length)                    # what is yielded can be read only once
    case, done = f"With length {length}, window {window} and step {step},", set()
    for n, (seen, new) in enumerate(calls, 1):
        for bad, what in ((not new, "makes nothing"), (done & {*new}, "makes a frame again"),
                          ({*new} - {*range(length)}, "makes a frame that is not in the video"),
                          ({*seen} - done, "sees a frame that is not there yet"),
                          (len({*seen, *new}) < len(seen + new), "names a frame twice"),
                          (len(seen + new) > window, f"has {len(seen + new)} frames in all")):
            if bad:
                raise Wrong(f"{case} call {n} {what}: it sees {spans(seen)} and makes {spans(new)}.")
        done |= {*new}
    if len(done) < length:
        raise Wrong(f"{case} it never makes {spans({*range(length)} - done)}.")
    return calls, case


def spans(frames):
    """Frame numbers in short: 0-3, 8, 12-15."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(sorted(frames)), lambda p: p[1] - p[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else f"{run[0]}" for run in runs) or "nothing"


# 15.1 -----------------------------------------------------------------------------------------------------
def look_back(length, window, step):
    yield [], list(range(min(window, length)))
    for done in range(window, length, step):
        new = list(range(done, min(done + step, length)))
        yield list(range(done - (window - len(new)), done)), new


def check_look_back(answer, g):
    for args in ((21, 8, 3), (64, 16, 8), (5, 8, 4), (31, 10, 7), (24, 6, 1)):
        calls, case = calls_of(answer, *args)
        for n, (call, want) in enumerate(zip(calls, look_back(*args)), 1):
            if call != want:
                raise Wrong(f"{case} call {n} should see {spans(want[0])} and make {spans(want[1])}, but it "
                            f"sees {spans(call[0])} and makes {spans(call[1])}.")


def seeing(choose, scheme=look_back):
    """The scheme, but its calls see choose(done, new, window, step) of what is done."""
    def other(*args):
        done = []
        for seen, new in scheme(*args[:3]):
            yield choose(done, new, *args[1:3]) if seen else [], new
            done = sorted(done + new)
    return pictured(other)


first = Exercise(
    key="15.1", title="the latest frames", points=1,
    prompt="Yield the calls of the autoregressive scheme, as pairs (seen, new) of lists of frame numbers. "
           "The first call sees nothing and makes the first `window` frames. Each later one makes the next "
           "`step` and sees the latest that are done, as many as fit: at most `window` frames take part in a "
           "call. The video has `length` frames; where it ends, a call makes fewer.",
    hints=("The first is: yield [], list(range(window)). How many frames are done after it?",
           "If `done` frames are done, the new ones are list(range(done, min(done + step, length))).",
           "To see, window - len(new) places are left, up to done - 1. The first call: min(window, length)."),
    check=check_look_back, solution=pictured(look_back),
    why="What has left the window is forgotten: frame 63 knows of frame 0 only what call after call handed "
        "on. A scheme is no more than such lists, so it can be chosen after training.",
    wrong=(
        (seeing(lambda done, new, window, step: done[step - window:]),
         "The last call makes fewer frames than `step`, so it can see more: window - len(new)."),
        (seeing(lambda done, *_: done),
         "Each call sees all that is done. Seen and new together must fit into the window."),
        (seeing(lambda done, new, window, step: done[-window:]),
         "The new frames take part, too, so only window - len(new) can be seen."),
        (seeing(lambda done, new, window, step: done[:window - len(new)]),
         "These are the very first frames. The scheme looks at the latest.")))


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
        seen = before[-1:] + after[:1] + inside + after[1:2] + before[-2::-1]  # the needed ones first
        yield sorted(seen[:window - len(new)]), new
        done = sorted(done + new)


def check_coarse_to_fine(answer, g):
    for length, window, step in ((64, 16, 8), (90, 8, 4), (7, 9, 3), (30, 12, 3)):
        calls, case = calls_of(answer, length, window, step)
        done, count, gaps = calls[0][1], min(window, length), np.diff(calls[0][1])
        if len(done) < count or done[0] or done[-1] < length - 1 or gaps.max() > gaps.min() + 1:
            raise Wrong(f"{case} call 1 should make {count} frames at even distances from 0 to "
                        f"{length - 1}, but makes {spans(done)}.")
        missing = [i for i in range(length) if i not in done]
        for n, (seen, new) in enumerate(calls[1:]):
            if new != (want := missing[n * step:(n + 1) * step]):
                raise Wrong(f"{case} call {n + 2} should make {spans(want)}, but makes {spans(new)}.")
            left, right = max(i for i in done if i < new[0]), min(i for i in done if i > new[-1])
            if unseen := {i for i in done if left <= i <= right} - {*seen}:
                raise Wrong(f"{case} call {n + 2} makes {spans(new)} without seeing {spans(unseen)}.")
            done = done + new


second = Exercise(
    key="15.2", title="coarse to fine", points=2,
    prompt="Yield the calls (seen, new) of hierarchy-2. The first sees nothing and makes min(window, length) "
           "frames at even distances (rounded) from frame 0 to the last. Later calls make the missing frames "
           "in order, `step` at a time. Each sees the nearest done frame before its new ones, the nearest "
           "after, and all between; what else is up to you. At most `window` frames take part in a call.",
    hints=("Of `count` places at even distances, number i is round(i * (length - 1) / (count - 1)).",
           "Keep a list of what is done; the missing frames are the others. Cut them into blocks of `step`.",
           "See the nearest before and after, those between, then others, up to window - len(new) in all."),
    check=check_coarse_to_fine, solution=pictured(coarse_to_fine),
    why="The first call decides about the whole video, so frame 0 and the last are made together. All later "
        "calls only fill in: what they see on both sides keeps them from drifting.",
    wrong=(
        (pictured(look_back),
         "The first call makes the beginning, as the autoregressive scheme does. Spread it over the video."),
        (seeing(lambda done, new, w, step: [i for i in done if i < new[0]][len(new) - w:], coarse_to_fine),
         "Only the past is seen. Frames of the first call that come later are there, too."),
        (seeing(lambda done, *_: done, coarse_to_fine),
         "Everything done is seen. There is room for window - len(new) frames."),
        (seeing(lambda done, new, window, step: sorted(
            done, key=lambda i: max(new[0] - i, i - new[-1], 0))[:window - len(new)], coarse_to_fine),
         "Where a gap is long, these all lie before the new frames. Keep a place for the first one after.")))


# 15.3 -----------------------------------------------------------------------------------------------------
def look_greedily(length, window, step, cov):
    yield [], list(range(min(window, length)))
    for done in range(window, length, step):
        new, seen = list(range(done, min(done + step, length))), []
        left = cov.clone()                                     # the covariance, given what is seen
        while len(seen) < window - len(new):
            link = left[:done, new]
            told = (link @ left[new][:, new].inverse() * link).sum(1) / left.diagonal()[:done]
            told[seen] = -1
            best = told.argmax().item()                        # it tells most about the new frames
            seen.append(best)
            left = left - left[best].outer(left[best]) / left[best, best]
        yield sorted(seen), new


def check_look_greedily(answer, g):
    for cut, *args in ((False, 24, 8, 4), (True, 30, 8, 4)):
        frame = torch.arange(args[0]).double()
        cov = 0.5 + 0.5 * 0.9 ** (frame - frame[:, None]).abs()
        if cut:                                                # every 7 frames, to the other camera
            cov = cov * (0.1 + 0.9 * (frame // 7 % 2 == (frame // 7 % 2)[:, None]))
        calls, case = calls_of(answer, *args, cov)
        if [new for _, new in calls] != [new for _, new in look_back(*args)]:
            raise Wrong(f"{case} the calls should make the same frames as those of 15.1.")
        far = long_range(torch.empty(1, 1, args[0], 1, 1), 0, *args[1:])
        kl, far, least = (divergence(some, cov) for some in (calls, far, look_greedily(*args, cov)))
        if kl > min(far, 1.5 * least):
            raise Wrong(f"{case}{' for a video of two cameras,' * cut} the KL is {kl:.2g} nats; it is "
                        f"{far:.2g} for long-range, and {least:.2g} if what is seen is chosen greedily.")


def divergence(calls, cov):
    """KL of the true video to the one that is drawn: what is not seen, but would tell something."""
    chance = sum(cov[seen + new][:, seen + new].logdet() - cov[seen][:, seen].logdet() for seen, new in calls)
    return (chance - cov.logdet()) / 2


third = Exercise(
    key="15.3", title="where to look", points=3,
    prompt="Frames of a Gaussian video have the covariance cov [length, length], in the lesson's toy 0.5 + "
           "0.5 * 0.9^|i - j|. Yield calls that make the same frames as in 15.1, but choose the done frames "
           "that they see one by one: each time the one that tells most about the new ones, given those "
           "chosen before. The KL of the true video to the one that is drawn must be below that of the "
           "scheme long_range, and about what this greedy choice gives, also for another cov.",
    hints=("What new frames n keep open, given s seen, is log det(C_nn - C_ns C_ss^-1 C_sn). Lower it most.",
           "Compute it with each done frame added in turn; keep the best; go on until window - len(new).",
           "Faster: keep left, the covariance given those seen. Frame k, with l = left[k, new] and A = "
           "left[new][:, new], lowers the determinant by the factor 1 - l A^-1 l / left[k, k]. After it is "
           "chosen, subtract left[k].outer(left[k]) / left[k, k]."),
    check=check_look_greedily, solution=pictured(look_greedily),
    why="What a call does not see adds to the KL. In the toy it sees the latest frame, for what has just "
        "happened, and others spread over the past, for what all frames share. Even distances do as "
        "well there, but not with two cameras. Each choice is the best next one, not part of the best set.",
    wrong=(
        (seeing(lambda done, new, w, step: done[:(w - len(new)) // 2] + done[(len(new) - w) // 2:]),
         "This is long-range. Its first frames tell nearly the same as each other, and so do its latest."),
        (pictured(lambda length, window, step, cov: look_back(length, window, step)),
         "Judged alone, the latest tell most, yet they repeat each other. Judge each given the others."),
        (seeing(lambda done, new, w, step: next(coarse_to_fine(len(done), w - len(new), step))[1]),
         "Even distances suit the toy, but know nothing of cov: frames of the other camera tell little.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="15.w", title="scheme or network", points=3,
    prompt="In the Gaussian world the scheme hierarchy has a KL of 0.004 nats, autoregressive 0.229. With "
           "the trained fdm-mm three schemes find the digit after the dark in 14 to 15 % of the frames, "
           "with errors of 5 to 8 %. (a) May one conclude that the choice of the scheme does not matter? "
           "(b) Which of the failures is the fault of the scheme, whatever the network? (c) Name an "
           "experiment with the trained network that tells whether it uses frames that are far away.",
    rubric=("(a) No: all are near guessing and within the errors. Schemes cannot be told apart with a "
            "network that remembers nothing, and the exact world shows that they differ for a perfect one.",
            "(b) That of the autoregressive scheme: after twenty black frames its window shows no digit. "
            "The others see true frames with the digit, so there the network fails.",
            "(c) A sound test, such as: exchange the digit in far given frames and see whether what is "
            "drawn changes; or move them nearer, or make the dark shorter, and see whether the share rises."),
    answer="The figures say only that this network does not remember. A scheme can then make no "
           "difference, while for a perfect model it makes a large one. The autoregressive scheme must "
           "fail, as its window holds nothing but black frames when the dark ends. Long-range and "
           "hierarchy show the digit to the network, so their failure is the network's. To see whether it "
           "uses far frames at all, keep the noise and put another digit into the frames that are given: "
           "if the drawing stays the same, it does not.")
