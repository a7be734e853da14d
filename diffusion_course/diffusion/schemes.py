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


def latest(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Look at the latest window - step frames, even where there is room for more (Video LDM, sec. 3.2)."""
    for seen, new in autoregressive(video, given, window, step):
        yield seen[step - window:], new


def long_range(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Look at the latest frames, and as many of the very first."""
    for done, new in ahead(video.shape[2], given, window, step):
        room = min(window - len(new), done)
        late = list(range(done - (room - room // 2), done))
        yield list(range(room - len(late))) + late, new


def coarse_to_fine(length: int, given: int, window: int, step: int, seen: list[int], first: list[int],
                   choose: Callable[..., list[int]]) -> Iterator[Call]:
    """A first call, then what is missing, in order: `step` frames, or fewer, to see all that is near.

    choose(done, new, seen, room) says what else is looked at.
    """
    if first:
        yield seen, first
    done = sorted({*range(given), *first})
    while missing := [i for i in range(length) if i not in done]:
        new = missing[:step]
        while len(new) > 1 and len(new) + len(near(done, new)) > window:
            new = new[:-1]
        seen = near(done, new)[:window - len(new)]
        yield sorted(seen + choose(done, new, seen, window - len(new) - len(seen))), new
        done = sorted({*done, *new})


def near(done: list[int], new: list[int]) -> list[int]:
    """Of what is done: the frame before the new ones, that after them, and all between."""
    before, after = [i for i in done if i < new[0]], [i for i in done if i > new[-1]]
    return before[-1:] + after[:1] + [i for i in done if new[0] < i < new[-1]]


def nearest(done: list[int], new: list[int], seen: list[int], room: int) -> list[int]:
    """The next frame after the new ones, then those before, then others after them."""
    before = [i for i in reversed(done) if i < new[0] and i not in seen]
    after = [i for i in done if i > new[-1] and i not in seen]
    return (after[:1] + before + after[1:])[:room]


def evenly(begin: int, end: int, count: int) -> list[int]:
    """So many whole numbers from begin to end."""
    return [round(i) for i in torch.linspace(begin, end, count, dtype=torch.float64).tolist()]


def hierarchy(video: Tensor, given: int, window: int, step: int,
              choose: Callable[..., list[int]] = nearest) -> Iterator[Call]:
    """Hierarchy-2: first a few frames spread over the whole video, then those between, seeing around them."""
    length, seen = video.shape[2], evenly(0, given - 1, min(given, window // 2))
    count = min(window - len(seen), length - given)
    first = evenly(given and given + (length - 1 - given) // max(1, count), length - 1, count)
    yield from coarse_to_fine(length, given, window, step, seen, first, choose)


def adaptive(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Hierarchy-2 that sees, beside what is near, the frames that differ most from all that it sees.

    The paper compares frames by LPIPS; here it is the mean squared difference over all videos of the batch.
    """
    def different(done: list[int], new: list[int], seen: list[int], room: int) -> list[int]:
        chosen, others = list(seen), [i for i in done if i not in seen]
        for _ in range(min(room, len(others))):
            gap = (video[:, :, others, None] - video[:, :, None, chosen]).square().mean((0, 1, 4, 5))
            chosen.append(others.pop(int(gap.amin(1).argmax())))
        return chosen[len(seen):]

    yield from hierarchy(video, given, window, step, different)


def frameskip(video: Tensor, given: int, window: int, step: int) -> Iterator[Call]:
    """Video Diffusion Models, sec. 3.1: every skip-th frame, as few as fit in a call, then the others."""
    length = video.shape[2]
    skip = -(-length // window)
    seen, first = list(range(0, given, skip)), [i for i in range(0, length, skip) if i >= given]
    yield from coarse_to_fine(length, given, window, step, seen, first, nearest)


SCHEMES = {"autoregressive": autoregressive, "long-range": long_range, "hierarchy": hierarchy,
           "adaptive": adaptive, "frameskip": frameskip}


def follow(scheme: Scheme, make: Callable[..., Tensor], noise: Tensor, start: Tensor | None = None,
           window: int = 16, step: int | None = None) -> Tensor:
    """A video like noise [B, C, F, H, W] that begins with start, made call by call.

    make(noise, index, seen, at) makes frames like its noise [B, C, K, H, W], whose numbers are index [K]; of
    these, the places `at` show `seen`.  step is how many frames a call adds, by default half of the window.
    """
    if start is not None and (start.ndim != 5 or (*start.shape[:2], *start.shape[3:]) != (
            *noise.shape[:2], *noise.shape[3:])):
        raise ValueError(f"start of shape {tuple(start.shape)} must be the first frames of videos of shape "
                         f"{tuple(noise.shape)}")
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
