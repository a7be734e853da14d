"""Videos longer than a network can see at once, call by call: which frames it looks at, and which it makes.

Flexible Diffusion Modeling of Long Videos (Harvey et al., 2022, sec. 4).  A scheme is a generator of pairs
(seen, new) of frame numbers: all new ones come once, only what is there is seen, and `window` frames are the
most in a call.  It gets the video as it grows, [B, C, F, H, W], of which the first `given` frames are known.
"""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Call = tuple[list[int], list[int]]  # frames that are seen, frames that are made
Scheme = Callable[..., Iterator[Call]]


def ahead(length: int, given: int, window: int, step: int) -> Iterator[tuple[int, list[int]]]:
    """From left to right: how many frames there are, and which are made: as many as fit, then `step`."""
    done = given
    while done < length:
        new = window - min(done, window - step)
        yield done, list(range(done, min(done + new, length)))
        done += new


def autoregressive(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Look at the latest frames only."""
    for done, new in ahead(video.shape[2], given, window, step):
        yield list(range(max(0, done - window + len(new)), done)), new


def long_range(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Look at the latest frames, and as many of the very first."""
    for done, new in ahead(video.shape[2], given, window, step):
        room = min(window - len(new), done)
        late = list(range(done - (room - room // 2), done))
        yield list(range(room - len(late))) + late, new


def hierarchy(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Hierarchy-2: first a few frames spread over the whole video, then those between, seeing around them."""
    done = yield from spread(video.shape[2], given, window)
    for new in gaps(video.shape[2], done, step):
        seen = around(done, new, window - len(new))
        yield seen, new
        done = sorted({*done, *new})


def adaptive(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Hierarchy-2 that sees, beside the frames next to the new ones, those that differ most from one another.

    The paper compares frames by LPIPS; here it is the mean squared difference over all videos of the batch.
    """
    done = yield from spread(video.shape[2], given, window)
    for new in gaps(video.shape[2], done, step):
        seen = around(done, new, min(2, window - len(new)))
        others = [i for i in done if i not in seen]
        while others and len(seen) < window - len(new):
            gap = (video[:, :, others, None] - video[:, :, None, seen]).square().mean((0, 1, 4, 5))
            seen.append(others.pop(int(gap.amin(1).argmax())))
        yield sorted(seen), new
        done = sorted({*done, *new})


def frameskip(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Video Diffusion Models, sec. 3.1: every skip-th frame first, then block by block those between.

    skip is the smallest with which the network sees the whole length; `step` does not matter.
    """
    length = video.shape[2]
    skip = -(-length // window)
    done, coarse = set(range(given)), [i for i in range(0, length, skip) if i >= given]
    if coarse:
        yield [i for i in range(0, given, skip)], coarse
    done |= set(coarse)
    for begin in range(0, length, max(1, window - skip)):
        block = range(begin, min(begin + window, length))
        if new := [i for i in block if i not in done]:
            yield [i for i in block if i in done], new
            done |= set(new)


SCHEMES = {"autoregressive": autoregressive, "long-range": long_range, "hierarchy": hierarchy,
           "adaptive": adaptive, "frameskip": frameskip}


def spread(length: int, given: int, window: int) -> Iterator[Call]:
    """The first call of a hierarchy: frames at even distances; returns all that is done after it."""
    seen = evenly(0, given - 1, min(given, window // 2))
    count = min(window - len(seen), length - given)
    new = evenly(given and given + (length - 1 - given) // max(1, count), length - 1, count)
    if new:
        yield seen, new
    return sorted({*range(given), *new})


def evenly(begin: int, end: int, count: int) -> list[int]:
    """So many whole numbers from begin to end."""
    return [round(i) for i in torch.linspace(begin, end, count, dtype=torch.float64).tolist()]


def gaps(length: int, done: list[int], step: int) -> list[list[int]]:
    """The frames that are missing, in order, `step` at a time."""
    missing = [i for i in range(length) if i not in set(done)]
    return [missing[i:i + step] for i in range(0, len(missing), step)]


def around(done: list[int], new: list[int], room: int) -> list[int]:
    """Of what is done, at most room frames: the neighbours of the new ones, those between, then more."""
    before = [i for i in reversed(done) if i < new[0]]
    between = [i for i in done if new[0] < i < new[-1]]
    after = [i for i in done if i > new[-1]]
    return sorted((before[:1] + after[:1] + between + after[1:2] + before[1:] + after[2:])[:room])


def follow(scheme: Scheme, make: Callable[..., Tensor], noise: Tensor, start: Tensor | None = None,
           window: int = 16, step: int | None = None) -> Tensor:
    """A video like noise [B, C, F, H, W] that begins with start, made call by call.

    make(noise, index, seen, at) makes frames like its noise [B, C, K, H, W], whose numbers are index [K]; of
    these, the places `at` show `seen`.  step is how many frames a call adds, by default half of the window.
    """
    given, step = 0 if start is None else start.shape[2], step or window // 2
    if given > noise.shape[2] or not 0 < step < window:
        raise ValueError(f"a start of {given} frames, {noise.shape[2]} in all, step={step} at a time: there "
                         f"must be no more to start with than in all, and 0 < step < window={window}")
    video = torch.zeros_like(noise)
    if given:
        video[:, :, :given] = start
    for seen, new in scheme(video, given, window, step):
        index = sorted(seen + new)
        at = [index.index(i) for i in seen]
        block = make(noise[:, :, index], torch.tensor(index, device=noise.device), video[:, :, seen],
                     torch.tensor(at, device=noise.device, dtype=torch.long))
        video[:, :, new] = block[:, :, [index.index(i) for i in new]]
    return video
