"""Lesson 13, Video Diffusion Models: a bias of distance, a mask for images, guidance by what is known."""
from itertools import pairwise

import torch

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor
from ..diffusion.schedules import Cosine


# 13.1 -----------------------------------------------------------------------------------------------------
def relative_bias(table, index):
    farthest = table.shape[1] // 2
    offset = index[None, :] - index[:, None]                   # [F, F]: from frame i to frame j
    return table[:, offset.clamp(-farthest, farthest) + farthest]


def check_relative_bias(answer, g):
    for heads, farthest, frames in ((2, 6, 5), (3, 4, 8)):
        table = torch.randn(heads, 2 * farthest + 1, generator=g)
        skipped = torch.tensor([0, 1, 4, 5, 9, 10, 12, 16])[:frames]
        for index in (torch.arange(frames), torch.arange(frames) + 3, skipped):
            want = relative_bias(table, index)
            what = f"The bias of frames {index.tolist()}, with distances up to {farthest},"
            bias = tensor(answer(table, index), want.shape, what)
            if index.diff().eq(1).all() and not torch.allclose(bias[:, 1:, 1:], bias[:, :-1, :-1], atol=1e-5):
                raise Wrong("Frames follow one another here, so the bias has the same number all along a "
                            "diagonal (a Toeplitz matrix). Yours has not.")
            agree(bias, want, what)


def look_up(place):
    return lambda table, index: table[:, place(index[None, :] - index[:, None], table.shape[1] // 2)]


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
    why="Only the distance enters, so a bias learned on frames 0 to 15 serves frames 48 to 63 as well, and a "
        "clip of every fourth frame finds its numbers at the distances 4, 8 and 12.",
    wrong=(
        (lambda table, index: relative_bias(table, index).mT,
         "Before and after are swapped: row i is the frame that looks, column j the one looked at, and the "
         "distance is index[j] - index[i]."),
        (look_up(lambda offset, farthest: offset.clamp(-farthest, farthest)),
         "The first number of the table belongs to -farthest, not to 0, so add farthest to the distance."),
        (look_up(lambda offset, farthest: offset.abs().clamp(max=farthest) + farthest),
         "The sign of the distance is lost, so the frame before and the frame after look the same."),
        (lambda table, index: relative_bias(table, index)[:, :1].expand(-1, len(index), -1),
         "All rows are alike: this bias depends on where frame j stands, not on how far it is from frame i."),
        (lambda table, index: relative_bias(table, index)
         * ((index - index[:, None]).abs() <= table.shape[1] // 2),
         "Frames farther apart than farthest get no bias here; they share the number of the farthest."),
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


def attend_where(mask, hide=lambda scores, mask: scores.masked_fill(~mask, float("-inf"))):
    """The answer with another mask, made of: is the row a frame of the clip, is the column, are they one."""
    def answer(q, k, v, clip):
        row, own = torch.arange(q.shape[1])[:, None] < clip, torch.eye(q.shape[1], dtype=torch.bool)
        return hide(q @ k.mT / q.shape[-1] ** 0.5, mask(row, row.mT, own)).softmax(dim=-1) @ v
    return answer


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
        (attend_where(lambda row, column, own: row | ~row),
         "There is no mask: images that have nothing to do with the clip are mixed into it."),
        (attend_where(lambda row, column, own: row == column),
         "The images see one another, as if they were a second clip. Each sees only itself."),
        (attend_where(lambda row, column, own: row | own),
         "The rows of the images are right, but frames of the clip still look at images."),
        (attend_where(lambda row, column, own: column | own),
         "The images still look at the frames of the clip. Their rows keep only the diagonal."),
        (attend_where(lambda row, column, own: row & column | own, hide=torch.mul),
         "A score of 0 is not out of the race: exp(0) = 1. What is not seen needs minus infinity."),
        (attend_where(lambda row, column, own: own),
         "Here the frames of the clip see only themselves as well, so they are just more images."),
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


def check_guided_x0(answer, g):
    what = "The guided x0 of the other frames"
    for n, frames, known in ((4, 7, 3), (3, 10, 4)):
        for scale, alpha in ((3.0, 0.6), (5.0, 0.9)):
            x, seen = torch.randn(n, frames, generator=g), torch.randn(n, known, generator=g)
            gain = torch.randn(frames, frames, generator=g) / frames**0.5
            want = guide_by(eq7)(x.double(), seen.double(), gain.double(), alpha, scale)
            agree(answer(x, seen, gain, alpha, scale), want, what)
    slope = mean_slope(lambda *args: tensor(answer(*args), (8, 8), what))
    answer(x, seen, gain, alpha)                               # its scale shows, as it hardly did near time 0
    if not 0.95 <= round(slope, 2) <= 1.05:
        raise Wrong(f"Eq. 7 is right. With your default scale the slope on the exact mean is {slope:.2f}; "
                    f"guide {'less' if slope > 1 else 'more'}.")


def mean_slope(guided, rho=0.95, frames=16, known=8, steps=200):
    """How much of the exact conditional mean is found by sampling; 1 is right.

    All is linear and noise has mean 0, so one row of x for each known frame tells what sampling would.
    """
    place, seen = torch.arange(frames), torch.eye(known)
    S = rho ** (place[:, None] - place).abs().double()
    x = torch.zeros(known, frames)
    for t, s in pairwise(torch.linspace(0.9975, 0.0025, steps + 1).double()):
        (alpha, sigma), (alpha_s, sigma_s) = Cosine()(t), Cosine()(s)
        gain = alpha * S @ torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(frames))
        x[:, :known] = alpha * seen                            # replacement
        x0 = guided(x, seen, gain.float(), alpha.item())
        keep = alpha / alpha_s * sigma_s**2 / sigma**2         # the mean of an ancestral step
        x[:, known:] = keep * x[:, known:] + (alpha_s - keep * alpha) * x0
    exact = torch.linalg.solve(S[:known, :known], S[:known, known:])           # [known, new]
    weight = S[:known, :known] @ exact
    return ((weight * x[:, known:]).sum() / (weight * exact).sum()).item()


def guide_by(pull, scale=4.0):
    """An answer that adds to x0 what pull makes of the error and the denoiser."""
    def answer(x, seen, gain, alpha, scale=scale):
        known, x0 = seen.shape[1], x @ gain.mT
        return x0[:, known:] + scale * pull(seen - x0[:, :known], gain, alpha, x0[:, :known])
    return answer


def eq7(error, gain, alpha, x0):
    return alpha * error @ gain[:error.shape[1], error.shape[1]:]


third = Exercise(
    key="13.3", title="guidance by what is known", points=3,
    prompt="A denoiser of videos of F numbers is linear: x0_hat = x @ gain.mT, x [N, F], gain [F, F]. The "
           "first K frames are known, seen [N, K]. Return eq. 7 for the other frames, [N, F - K]: their "
           "x0_hat minus scale alpha / 2 times the gradient of |seen - x0_hat of the known|^2 with respect "
           "to the other frames of x. Give scale a default (scale=...) with which 200 steps on 16 frames of "
           "the AR(1) toy, 8 of them known, reach a slope of 0.95 to 1.05 on the exact conditional mean.",
    hints=("Autograd: x.requires_grad_(), x0 = x @ gain.mT, the error of its first K columns, then "
           "torch.autograd.grad(error, x), of which the columns from K on count. Or do it by algebra.",
           "The error is a sum: (seen - x0[:, :K]).square().sum(). Its gradient with respect to the other "
           "frames is -2 (seen - x0[:, :K]) @ gain[:K, K:].",
           "(x0 - scale * alpha / 2 * grad)[:, K:]. The slope rises with the scale; try defaults above 2."),
    check=check_guided_x0, solution=guided_x0,
    why="Eq. 7 takes q(known frames | x_t) to have the covariance sigma^2 / alpha^2. In truth, which here is "
        "sigma^2 / alpha gain[:K, :K], it has less, so scale 1 pulls too little; with the true one scale 1 "
        "gives slope 1. A larger scale mends the mean, but makes the seam tighter than it should be.",
    wrong=(
        (guide_by(lambda *args: 0.0),
         "This is x0_hat without guidance. Does the gradient flow through the denoiser?"),
        (guide_by(lambda error, *args: eq7(error, *args) / error.numel()),
         "The squares are averaged. Eq. 7 takes their sum; a mean pulls less the more there is."),
        (guide_by(lambda *args: -eq7(*args)),
         "The sign is wrong: one goes against the gradient of the error, so that it falls."),
        (guide_by(lambda *args: 2 * eq7(*args)),
         "This is twice as much. Eq. 7 has alpha / 2, which cancels the 2 of the square's derivative."),
        (guide_by(lambda error, gain, alpha, x0: eq7(error, gain, 1.0, x0)),
         "alpha is missing: the step is scale alpha / 2 times the gradient."),
        (guide_by(lambda error, gain, alpha, x0: alpha * error @ gain[error.shape[1]:, :error.shape[1]].mT),
         "The gain is turned round. How known frames of x0_hat change with others of x is gain[:K, K:]."),
        (guide_by(lambda error, gain, alpha, x0:
                  eq7((error + x0 - x0.clamp(-1, 1)) * (x0.abs() <= 1), gain, alpha, x0)),
         "x0_hat is clipped before the gradient is taken, which is then zero wherever it saturates."),
        (guide_by(eq7, scale=1.0),
         "1 is what the derivation says, but for a conditional that is wider than the true one."),
        (guide_by(eq7, scale=2.0),
         "2 is the package's default, but with a Langevin step after every step, and here is none.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="13.w", title="when is replacement right", points=3,
    prompt="In the AR(1) toy, replacement reaches a slope of 0.57 where 1 is right. (a) A colleague says "
           "that a network which is trained longer will get to 1. Is that so? (b) Let all frames be "
           "independent of one another. Is replacement still wrong? (c) Reconstruction guidance is used "
           "with a video network whose time layers still end in zeros. What does its gradient do to the "
           "new frames?",
    rubric=("(a) No: 0.57 is measured with the perfect denoiser. The sampler is at fault: it takes the "
            "mean of the new frames given noisy known ones, where they are known clean.",
            "(b) No: the known frames say nothing about the new ones, so the missing gradient is zero, and "
            "replacement is exact.",
            "(c) Nothing: each frame sees only itself, so the guess of the known frames does not depend on "
            "the new ones, and the gradient with respect to them is zero."),
    answer="The slope was measured with the exact denoiser, so no training mends it. What is missing is a "
           "term of the sampler: the known frames are clean, but the guess of the new ones sees them only "
           "under noise. If frames are independent this term is zero, and replacement is right. Guidance "
           "works through the dependence of the guessed known frames on the noisy new ones. A network that "
           "treats every frame alone has none, so the gradient is zero, and the new frames go their own "
           "way.")
