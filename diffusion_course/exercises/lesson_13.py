"""Lesson 13, Video Diffusion Models: a bias of distance, a mask for images, guidance by what is known."""
import inspect
from itertools import pairwise

import torch

from ..classroom.exercise import Exercise, Wrong, agree, tensor
from ..diffusion.schedules import Cosine


# 13.1 -----------------------------------------------------------------------------------------------------
def relative_bias(table, index):
    farthest = table.shape[1] // 2
    offset = index[None, :] - index[:, None]                   # [F, F]: from frame i to frame j
    return table[:, offset.clamp(-farthest, farthest) + farthest]


def check_relative_bias(answer, g):
    for heads, farthest, frames in ((2, 6, 5), (3, 4, 8)):
        table, start = torch.randn(heads, 2 * farthest + 1, generator=g), 0
        for index in (torch.arange(frames), start + 3 + torch.arange(frames),
                      torch.tensor([0, 1, 4, 5, 9, 10, 12, 16])[:frames]):
            want = relative_bias(table, index)
            what = f"The bias of frames {index.tolist()}, with distances up to {farthest},"
            bias = tensor(answer(table, index), want.shape, what)
            if index.diff().eq(1).all() and not torch.allclose(bias[:, 1:, 1:], bias[:, :-1, :-1], atol=1e-5):
                raise Wrong("Frames follow one another here, so the bias has the same number all along a "
                            "diagonal (a Toeplitz matrix). Yours has not.")
            agree(bias, want, what)


def looked_up(table, index, place=lambda offset, farthest: offset.clamp(-farthest, farthest) + farthest):
    return table[:, place(index[None, :] - index[:, None], table.shape[1] // 2)]


def nothing_beyond(table, index):
    near = (index[None, :] - index[:, None]).abs() <= table.shape[1] // 2
    return relative_bias(table, index) * near


first = Exercise(
    key="13.1", title="a bias that knows the distance", points=1,
    prompt="table [heads, 2 farthest + 1] holds a learned number for each head and each distance from "
           "-farthest to farthest, in this order. index [F] says which frames of a video these are; some may "
           "be skipped. Return the bias [heads, F, F]: in row i (query) and column j (key) the number for "
           "the distance index[j] - index[i]. Distances beyond the farthest count as the farthest.",
    hints=("First make the matrix [F, F] of the distances, index[None, :] - index[:, None].",
           "Distance 0 is in the middle of the table, at place farthest. clamp keeps what lies beyond.",
           "table[:, offset.clamp(-farthest, farthest) + farthest], where farthest = table.shape[1] // 2."),
    check=check_relative_bias, solution=relative_bias,
    why="Only the distance enters, so a bias learned on 16 frames serves frames 48 to 63 as well, and a clip "
        "with every fourth frame finds its bias at the distances 4, 8 and 12. A row per absolute frame would "
        "know neither.",
    wrong=(
        (lambda table, index: relative_bias(table, index).mT,
         "Before and after are swapped: row i is the frame that looks, column j the one looked at, and the "
         "distance is index[j] - index[i]."),
        (lambda table, index: looked_up(table, index, lambda d, n: d.clamp(-n, n)),
         "Distance 0 finds the first number of the table, and a negative place counts from its end. The first "
         "number belongs to -farthest, so add farthest."),
        (lambda table, index: looked_up(table, index, lambda d, n: d.abs().clamp(max=n) + n),
         "The sign of the distance is lost, so the frame before and the frame after look the same."),
        (lambda table, index: relative_bias(table, index)[:, :1].expand(-1, len(index), -1),
         "All rows are alike: this bias depends on where frame j stands, not on how far it is from frame i."),
        (nothing_beyond,
         "Frames farther apart than farthest get no bias here; they share the number of the farthest."),
        (lambda table, index: looked_up(table, index, lambda d, n: (d + n) % (2 * n + 1)),
         "Distances beyond the farthest wrap round to the other end of the table. Clip them instead."),
        (lambda table, index: relative_bias(table, index.clamp(max=table.shape[1] // 2)),
         "The frame numbers are clipped here. Late frames then all stand at one place; clip the distances."),
        (lambda table, index: relative_bias(table, torch.arange(len(index))),
         "Frames are counted 0, 1, 2, ... here. Take their numbers from index, since some were skipped.")))


# 13.2 -----------------------------------------------------------------------------------------------------
def attend_jointly(q, k, v, clip):
    frames = q.shape[1]
    mask = torch.eye(frames, dtype=torch.bool, device=q.device)
    mask[:clip, :clip] = True                                  # True where row i may look at column j
    scores = q @ k.mT / q.shape[-1] ** 0.5                     # [B, F, F]
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v


def check_attend_jointly(answer, g):
    for b, clip, images, d in ((2, 4, 3, 8), (3, 3, 5, 4), (2, 5, 0, 6)):
        shape = b, clip + images, d
        q, k, v = torch.randn(3, *shape, generator=g)
        seen = tensor(answer(q, k, v, clip), shape, "What the frames see")
        names = [f"frame {n} of the clip" for n in range(clip)] + [f"image {n}" for n in range(images)]
        for p in range(clip - 1, clip + images) if images else ():
            other = torch.stack([q, k, v])
            other[:, :, p] = 1 - 2 * other[:, :, p]            # one item is exchanged
            now = tensor(answer(*other, clip), shape, "What the frames see")
            for n, name in enumerate(names):
                moved = (now - seen)[:, n].abs().max()
                if n != p and max(n, p) >= clip and moved > 1e-5:
                    raise Wrong(f"It leaks: exchanging {names[p]} changes what {name} sees, by {moved:.2g}.")
        agree(seen[:, clip:], v[:, clip:], "What the images see")
        agree(seen[:, :clip], attend_jointly(q, k, v, clip)[:, :clip], "What the frames of the clip see")


def attended(q, k, v, mask, scale=None, hide=lambda scores, mask: scores.masked_fill(~mask, float("-inf"))):
    return hide(q @ k.mT / (scale or q.shape[-1] ** 0.5), mask).softmax(dim=-1) @ v


def sees(q, clip):
    """Who may look at whom: in the clip; an image at itself; images at the clip; clip at images."""
    is_clip = torch.arange(q.shape[1]) < clip
    row, column = is_clip[:, None], is_clip[None, :]
    return row & column, torch.eye(len(is_clip), dtype=torch.bool), ~row & column, row & ~column


def masked_after(q, k, v, clip):
    mask = sees(q, clip)[0] | sees(q, clip)[1]
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) * mask) @ v


second = Exercise(
    key="13.2", title="images beside a clip", points=2,
    prompt="q, k and v [B, F, d] are the queries, keys and values of F items at one pixel: first so many "
           "frames (clip, a whole number) of a clip, then images that have nothing to do with it or with one "
           "another. Return what each item sees, [B, F, d]: frames of the clip see one another, and each "
           "image sees only itself. Scores are q k^T / sqrt(d).",
    hints=("Make a mask [F, F] that is True where row i may look at column j. Which block is all True?",
           "Begin with torch.eye(F, dtype=torch.bool), for the images, and fill in the block of the clip.",
           "mask[:clip, :clip] = True; then scores.masked_fill(~mask, float('-inf')), softmax over the last "
           "axis, times v."),
    check=check_attend_jointly, solution=attend_jointly,
    why="The paper says it so: for an image each key matches exactly its own query. The softmax of a single "
        "score is 1, so an image gets its own value, as a video of one frame does. What is masked has the "
        "weight exp(-inf) = 0, so nothing leaks, neither forward nor in gradients.",
    wrong=(
        (lambda q, k, v, clip: attended(q, k, v, torch.ones(2 * q.shape[1:2], dtype=torch.bool)),
         "There is no mask: images that have nothing to do with the clip are mixed into it."),
        (lambda q, k, v, clip: attended(q, k, v, ~(sees(q, clip)[2] | sees(q, clip)[3])),
         "The images see one another, as if they were a second clip. They are independent, so each sees only "
         "itself."),
        (lambda q, k, v, clip: attended(q, k, v, ~sees(q, clip)[2] & (sees(q, clip)[1] | sees(q, clip)[0]
                                                                      | sees(q, clip)[3])),
         "The rows of the images are masked, but frames of the clip still look at the images: mask those "
         "columns, too."),
        (lambda q, k, v, clip: attended(q, k, v, sees(q, clip)[0] | sees(q, clip)[1] | sees(q, clip)[2]),
         "The images still look at the frames of the clip. Their rows keep only the diagonal."),
        (lambda q, k, v, clip: attended(q, k, v, sees(q, clip)[0] | sees(q, clip)[1],
                                        hide=lambda scores, mask: scores * mask),
         "A score of 0 is not out of the race: exp(0) = 1. What is not seen needs a score of minus infinity."),
        (lambda q, k, v, clip: attended(q, k, v, sees(q, clip)[1]),
         "Here the frames of the clip see only themselves as well, so it is one more batch of images."),
        (lambda q, k, v, clip: attended(q, k, v, sees(q, clip)[0] | sees(q, clip)[1], scale=1.0),
         "The scores are not divided by sqrt(d)."),
        (masked_after,
         "The mask comes after the softmax, so the weights that are left do not sum to one."),
        (lambda q, k, v, clip: attend_jointly(q, k, v, clip) * (torch.arange(q.shape[1]) < clip)[:, None],
         "The images get nothing, as if their layer were skipped. Each sees itself, with weight 1.")))


# 13.3 -----------------------------------------------------------------------------------------------------
def guided_x0(x, seen, gain, alpha, scale=4.0):
    known = seen.shape[1]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = x @ gain.mT
        error = (seen - x0[:, :known]).square().sum()          # a sum, over frames too
        grad, = torch.autograd.grad(error, x)                  # through the denoiser
    return (x0 - scale * alpha / 2 * grad)[:, known:].detach()


def closed_form(x, seen, gain, alpha, scale):
    known = seen.shape[1]
    x0 = x @ gain.mT
    return x0[:, known:] + scale * alpha * (seen - x0[:, :known]) @ gain[:known, known:]


def check_guided_x0(answer, g):
    what = "The guided x0 of the other frames"
    for n, frames, known in ((4, 7, 3), (3, 10, 4)):
        for scale, alpha in ((2.0, 0.6), (5.0, 0.9)):
            x, seen = torch.randn(n, frames, generator=g), torch.randn(n, known, generator=g)
            gain = torch.randn(frames, frames, generator=g) / frames**0.5
            out = answer(x, seen, gain, alpha, scale)
            agree(out, closed_form(*(a.double() for a in (x, seen, gain)), alpha, scale), what)
    try:
        inspect.signature(answer.function).bind(*range(4))
    except TypeError:
        raise Wrong("It is right for any scale that is given. Now choose one: write it as the default, "
                    "scale=..., in the first line of the function.") from None
    slope = mean_slope(lambda *args: tensor(answer(*args), (8, 8), what))
    if not 0.95 <= slope <= 1.05:
        raise Wrong(f"With the default scale the slope on the exact mean is {slope:.2f}; choose another.")


def mean_slope(guided, rho=0.95, frames=16, known=8, steps=200):
    """How much of the exact conditional mean is found by sampling; 1 is right.

    All is linear, so noise and new frames keep their mean, 0, and a row for each known frame tells all.
    """
    place, seen = torch.arange(frames), torch.eye(known)
    S = rho ** (place[:, None] - place).abs().double()
    times = torch.linspace(0.9975, 0.0025, steps + 1).double()
    x = torch.zeros(known, frames)
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = Cosine()(t), Cosine()(s)
        gain = alpha * S @ torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(frames))
        x[:, :known] = alpha * seen                            # replacement
        x0 = guided(x, seen, gain.float(), alpha.item())
        keep = alpha / alpha_s * sigma_s**2 / sigma**2         # the mean of an ancestral step
        x[:, known:] = keep * x[:, known:] + (alpha_s - keep * alpha) * x0
        if x.abs().max() > 1e6:
            return float("inf")
    exact = torch.linalg.solve(S[:known, :known], S[:known, known:])           # [known, new]
    weight = S[:known, :known] @ exact
    return ((weight * x[:, known:]).sum() / (weight * exact).sum()).item()
