"""Lesson 48, FIFO-Diffusion: the first queue, the order of the windows, a queue for a given price."""
import math

import torch

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor
from ..diffusion.schedules import Cosine


# 48.1 -----------------------------------------------------------------------------------------------------
def first_queue(clip, alpha, sigma, noise):
    f, places = clip.shape[2], len(alpha)
    source = (torch.arange(places) - (places - f)).clamp(min=0)
    levels = (1, 1, places, 1, 1)
    return alpha.reshape(levels) * clip[:, :, source] + sigma.reshape(levels) * noise


def check_first_queue(answer, g):
    for b, f, n in ((2, 4, 3), (1, 5, 2), (2, 3, 4)):
        clip, noise = torch.randn(b, 2, f, 2, 3, generator=g), torch.randn(b, 2, n * f, 2, 3, generator=g)
        t = (torch.arange(n * f) + 1) / (n * f)
        alpha, sigma = Cosine()(t)
        agree(answer(clip, alpha, sigma, noise), first_queue(clip, alpha, sigma, noise),
              f"The queue of {n * f} places from a clip of {f} frames")


def queue_from(source):
    """An answer that takes other frames of the clip: source(places, f) says which."""
    def answer(clip, alpha, sigma, noise):
        chosen = clip[:, :, source(torch.arange(len(alpha)), clip.shape[2])]
        alpha, sigma = (a.reshape(1, 1, -1, 1, 1) for a in (alpha, sigma))
        return alpha * chosen + sigma * noise
    return answer


first = Exercise(
    key="48.1", title="the first queue", points=1,
    prompt="clip [B, C, f, H, W] is an ordinary sample. Return the queue [B, C, P, H, W] to begin with. Its "
           "place i holds a frame of the clip under noise: alpha[i] times the frame plus sigma[i] times "
           "noise[:, :, i]; alpha and sigma are [P], noise is [B, C, P, H, W]. The last f places hold the "
           "frames of the clip in order, all places before them copies of its first frame.",
    hints=("Write it as a loop over the places first: which frame of the clip is for place i?",
           "Place i holds frame i - (P - f), or frame 0 where that is negative.",
           "source = (torch.arange(P) - (P - f)).clamp(min=0); clip[:, :, source] has P frames. Reshape "
           "alpha and sigma to [1, 1, P, 1, 1]."),
    check=check_first_queue, solution=first_queue,
    why="The queue must look as if it had always run: frames in order, each at the level of its place. A "
        "clip has only f frames, so the places in front of it are filled with copies of frame 0. What leaves "
        "first are these copies, and they are thrown away.",
    wrong=(
        (queue_from(lambda i, f: i // (len(i) // f)),
         "Every frame of the clip is repeated (0 0 0 1 1 1 ...). Then the video begins in slow motion; only "
         "frame 0 is repeated."),
        (queue_from(lambda i, f: i % f),
         "The clip is repeated as a whole (0 1 2 0 1 2 ...), so the video jumps back each time."),
        (queue_from(lambda i, f: i.clamp(max=f - 1)),
         "The clip is at the head, with copies of its last frame behind. It belongs at the tail."),
        (queue_from(lambda i, f: (i - (len(i) - f) + 1).clamp(0, f - 1)),
         "This is one place early: the last place holds frame f - 1, the one before it frame f - 2."),
        (lambda clip, alpha, sigma, noise: first_queue(clip, alpha.flip(0), sigma.flip(0), noise),
         "The levels are the wrong way round: place 0, the head, has alpha[0] and the least noise."),
        (lambda clip, alpha, sigma, noise: first_queue(clip, alpha, 0 * sigma, noise),
         "There is no noise in it. A place holds its frame at its own level, alpha frame + sigma noise."),
        (lambda clip, alpha, sigma, noise: first_queue(clip, 1 + 0 * alpha, sigma, noise),
         "The noise is added to the whole frame; the frame itself is to be multiplied by alpha[i].")))


# 48.2 -----------------------------------------------------------------------------------------------------
def frames_apart(queue, gains, fresh):
    half = gains.shape[-1] // 2

    def leaving(order):
        x, frames = queue.clone(), []
        for new in fresh:
            for w in order:                                    # in place, one window after another
                window = slice(w * half, w * half + 2 * half)
                x[w * half + half:w * half + 2 * half] = (gains[w] @ x[window])[half:]
            frames.append(x[half])
            x = torch.cat([x[1:], new[None]])
        return torch.stack(frames)

    windows = range(len(gains))
    return leaving(windows) - leaving(windows[::-1])


def check_frames_apart(answer, g):
    for f, n, looks in ((4, 2, "everywhere"), (6, 2, "back"), (4, 3, "everywhere"), (8, 1, "back")):
        half, count = f // 2, 9
        queue, fresh = torch.randn(half + n * f, generator=g), torch.randn(count, generator=g)
        gains = torch.randn(2 * n, f, f, generator=g) / f**0.5
        if looks == "back":                                    # a frame sees the one before it, and itself
            near = torch.eye(f) + torch.ones(f, f).tril(-1).triu(-1)
            gains = near * (0.5 + torch.rand(2 * n, f, f, generator=g) / 2)
        want = frames_apart(queue, gains, fresh)
        got = tensor(answer(queue, gains, fresh), want.shape, "The difference of what leaves")
        begins, yours = ((x.abs() > 1e-6).int().argmax().item() for x in (want, got))
        if begins != yours and got.any():
            where = "every frame of the window" if looks == "everywhere" else "the frame before and itself"
            raise Wrong(f"f = {f}, {2 * n} windows, and a frame sees {where}: what leaves differs from pass "
                        f"{begins} on (the first is 0), with yours from pass {yours}.")
        agree(got, want, "The difference of what leaves")


def run_with(order, read="queue", kept="half", leave=0, early=False):
    """The frames that leave, of a variant of the loop."""
    def frames(queue, gains, fresh):
        half, x, out = gains.shape[-1] // 2, queue.clone(), []
        for new in fresh:
            old = x.clone()
            for w in order(range(len(gains))):
                begin = w * half
                y = gains[w] @ (x if read == "queue" else old)[begin:begin + 2 * half]
                keep = half if kept == "half" else 0
                x[begin + keep:begin + 2 * half] = y[keep:]
            if early:
                x = torch.cat([x[1:], new[None]])
            out.append(x[half + leave])
            if not early:
                x = torch.cat([x[1:], new[None]])
        return torch.stack(out)
    return frames


def minus(a, b):
    return lambda *args: a(*args) - b(*args)


def up(windows):
    return windows


def down(windows):
    return windows[::-1]


second = Exercise(
    key="48.2", title="the order of the windows", points=2,
    prompt="A queue of frames that are single numbers: queue [f/2 + P], first f/2 finished ones, then P "
           "places. gains [W, f, f] has a matrix for each window: window w looks at the f numbers from w f/2 "
           "on, x = gains[w] @ window, and its second half is written back in place. A pass does all "
           "windows; then queue[f/2] leaves, all shift to the left by one, and the next of fresh [K] enters "
           "at the end. Run K passes twice: with the windows from the clean end to the noisy one (0, 1, "
           "...), and from noisy to clean (W - 1, W - 2, ...). Return what leaves in the first run minus "
           "what leaves in the second, [K].",
    hints=("Write the run as a function of the order; both begin with a copy of the same queue.",
           "From clean to noisy, the first half of window 1 has just been written by window 0. So it is one "
           "level ahead of the matrix that reads it.",
           "for w in order: x[w*h + h:w*h + 2*h] = (gains[w] @ x[w*h:w*h + 2*h])[h:]; then frames.append("
           "x[h]); x = torch.cat([x[1:], new[None]])."),
    check=check_frames_apart, solution=frames_apart,
    why="From noisy to clean no window reads what was written in the same pass, so it equals updating all at "
        "once, and several GPUs could share the windows. From clean to noisy, window 1 reads frames that are "
        "a level ahead. The first frame that leaves is right either way, as window 0 came first; if a frame "
        "sees all of its window, the second one is already wrong.",
    wrong=(
        (minus(run_with(down), run_with(up)),
         "The sign is turned round: the run from clean to noisy comes first."),
        (minus(run_with(up, read="copy"), run_with(down, read="copy")),
         "Both read the queue as it was before the pass, so the order cannot matter. Update it in place."),
        (minus(run_with(up, kept="all"), run_with(down, kept="all")),
         "The whole window is written back here. Only the second half is; the first is there to be seen."),
        (minus(run_with(up, leave=-1), run_with(down, leave=-1)),
         "queue[f/2 - 1] leaves here, which is finished already. The head of the queue is queue[f/2]."),
        (minus(run_with(up, early=True), run_with(down, early=True)),
         "The queue is shifted before the head leaves, so the frame behind it is taken."),
        (lambda *args: frames_apart(*args).abs(),
         "These are absolute values; the difference has a sign.")))


# 48.3 -----------------------------------------------------------------------------------------------------
def queue_levels(f, calls, spread):
    kept = next(r for r in range(1, f + 1) if (f - 1) / (calls * r) <= spread + 1e-9)
    return torch.linspace(0, 1, calls * kept + 1)


def memory(times, f, calls, lag=8, rho=0.95):
    """The exact autocorrelation of an endless AR(1) video from this queue and the perfect denoiser.

    A pass is linear, x -> M x + noise.  So the covariance of the queue is the fixed point of one recursion.
    """
    kept = (len(times) - 1) // calls
    before = f - kept
    t, s = (torch.cat([v[:1].expand(before), v]) for v in (times[1:], times[:-1]))
    (alpha, sigma), (alpha_s, sigma_s) = Cosine()(t), Cosine()(s)
    place, size = torch.arange(f), len(t)
    S = rho ** (place[:, None] - place).abs().double()
    M, fresh = torch.eye(size).double(), torch.zeros(size).double()
    M[before:] = 0
    for i in range(0, size - before, kept):
        w, new = slice(i, i + f), slice(i + before, i + f)
        a, v = alpha[w, None], sigma[w, None]
        x0 = S * a.mT @ torch.linalg.inv(a * S * a.mT + (v[:, 0]**2).diag())
        noise = (torch.eye(f) - a * x0) / v
        var = (sigma_s[w] / sigma[w])**2 * (1 - (alpha[w] / alpha_s[w])**2)    # DDIM with eta = 1
        keep = (sigma_s[w]**2 - var).clamp(min=0).sqrt()
        M[new, w] = (alpha_s[w, None] * x0 + keep[:, None] * noise)[before:]
        fresh[new] = var.clamp(min=0).sqrt()[before:]
    shift = torch.eye(size).double().roll(-1, 0)
    shift[-1] = 0
    A, B = shift @ M, shift @ fresh.diag()
    C = B @ B.T
    C[-1, -1] += sigma[-1]**2                                  # what enters
    step = A
    for _ in range(14):                                        # C = A C A' + B B', doubling each time
        C, step = C + step @ C @ step.T, step @ step
    head = M[before]
    later = A @ C @ head + B[:, before] * fresh[before]        # covariance of the next queue and the head
    for _ in range(lag - 1):
        later = A @ later
    return (head @ later / (head @ C @ head + fresh[before]**2)).item()


def check_queue_levels(answer, g):
    for f, calls, spread in ((16, 4, 0.4), (16, 6, 0.3), (16, 3, 0.45), (8, 6, 0.3)):
        times = tensor(answer(f, calls, spread), (), "The list of levels").double()
        what = f"For f = {f}, {calls} calls and a spread of {spread}"
        if times.ndim != 1 or (len(times) - 1) % calls or not calls <= len(times) - 1 <= calls * f:
            raise Wrong(f"{what} there should be P + 1 levels, where P is {calls} r and r is 1 to {f}; yours "
                        f"has the shape {list(times.shape)}.")
        if times[0] != 0 or abs(times[-1] - 1) > 1e-5 or (times.diff() <= 0).any():
            raise Wrong("The levels must rise from 0 to 1, each above the one before.")
        kept = (len(times) - 1) // calls
        t = torch.cat([times[1:2].expand(f - kept), times[1:]])
        widest = max((t[i + f - 1] - t[i]).item() for i in range(0, calls * kept, kept))
        if widest > spread + 1e-5:
            raise Wrong(f"{what}: the levels of one of your windows are {widest:.3f} apart.")
        best, plain = (memory(x.double(), f, calls) for x in
                       (queue_levels(f, calls, spread), torch.linspace(0, 1, f * calls + 1)))
        if (mine := memory(times, f, calls)) < best - 0.01:
            raise Wrong(f"{what} the autocorrelation at lag 8 is {mine:.3f} with yours. Partitions alone, n "
                        f"= {calls}, have {plain:.3f}; it can be {best:.3f}.")


def evenly(kept):
    return lambda f, calls, spread: torch.linspace(0, 1, calls * kept(f, calls, spread) + 1)


third = Exercise(
    key="48.3", title="a queue for a given price", points=3,
    prompt="n = P / f need not be a whole number. A pass makes `calls` windows of f frames, begun r places "
           "apart, and keeps the last r frames of each: so the queue has P = calls r places, with f - r "
           "finished frames in front of it. r = f is partition alone, r = f/2 is lookahead. Return the times "
           "[P + 1], rising from 0 to 1, evenly spaced or not: place i (0 is the head) goes from times[i + "
           "1] to times[i], and finished frames are taken to be at times[1]. In no window may the largest "
           "and the smallest level be more than `spread` apart. With the perfect denoiser of AR(1) videos "
           "(rho = 0.95), the cosine schedule and eta = 1, the frames that leave should have as much "
           "autocorrelation at lag 8 as evenly spaced times can give them (0.01 less will do).",
    hints=("All queues here cost the same. With few places r is small, windows overlap much and frames see "
           "more of what came before; but the levels of a window lie farther apart.",
           "With evenly spaced times neighbours are 1 / P apart, so the levels of a window lie (f - 1) / P "
           "apart. Which is the smallest r that is allowed?",
           "r is the smallest whole number with (f - 1) / (calls r) <= spread; then torch.linspace(0, 1, "
           "calls * r + 1)."),
    check=check_queue_levels, solution=queue_levels,
    why="Memory is lost where a frame changes its company, at the border of two windows. Overlap softens the "
        "border. Four calls buy n = 4 without overlap, n = 2 with lookahead or anything between: n = 2.5 has "
        "0.57 at lag 8, n = 4 only 0.46. The limit on the spread stands for the network, which has seen "
        "equal levels only. Making the spread itself as small as possible does not help the memory.",
    wrong=(
        (evenly(lambda f, calls, spread: f),
         "This is partition alone. The windows do not overlap, and the memory ends at their borders."),
        (evenly(lambda f, calls, spread: f // 2),
         "This is lookahead with half of the partitions. It remembers more, but its windows are too wide."),
        (lambda f, calls, spread: torch.linspace(0, 1, f * calls + 1)**3,
         "Crowding the levels near 0 makes the last window nearly a queue of its own: good memory, but a "
         "window at the noisy end is too wide."),
        (lambda f, calls, spread: queue_levels(f, calls, spread).flip(0),
         "These fall from noise to data. Place 0 is the head, and nearly clean."),
        (evenly(lambda f, calls, spread: math.ceil((f - 1) / (calls * spread)) + 1),
         "A shorter queue is still allowed, and remembers more."),
        (evenly(lambda f, calls, spread: math.ceil((f - 1) / (calls * spread)) - 1),
         "Rounded to the wrong side: with one frame more kept per window the spread is allowed."),
        (evenly(lambda f, calls, spread: math.ceil(f / (2 * calls * spread))),
         "Is it half of the window that counts here? The levels of all f frames of it must be near.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="48.w", title="what a queue can keep", points=3,
    prompt="(a) With the perfect denoiser a queue of one window keeps more memory than one of four. Why does "
           "the paper take four? (b) You may train a model of your own, with a level of noise drawn for each "
           "frame by itself. How would you choose n, and would you still use lookahead? (c) Frames of a "
           "digit must show the same digit for ever. Can a queue do that with a perfect model of sixteen "
           "frames?",
    rubric=("(a) The network was trained on equal levels. One window holds all levels from 0 to 1, so it is "
            "asked what it never learned; four make the levels of a window nearly equal.",
            "(b) n = 1, or few: the gap is gone, so partitions only cost calls and memory. Lookahead may "
            "still help, since cleaner frames in front carry what is known of the past.",
            "(c) No: a frame only ever sees the frames of its window, so what is known of the digit is "
            "handed on from frame to frame, and each time a little may be lost. Nothing looks back to the "
            "first."),
    answer="n = 4 is a price paid to the network: it has only seen clips of one level, and in a quarter of "
           "the queue the levels are closer together. The perfect denoiser needs no such help, and for it "
           "the borders only cut off the past. A model that was trained on mixed levels is in the same "
           "position, so I would take n = 1 or as many as the number of steps asks for, and try lookahead, "
           "whose finished frames are the best news of the past that there is. A queue has a memory of a "
           "window, though. The digit is passed on like a rumour: with a perfect model it is kept as well as "
           "sixteen frames tell it, but no frame ever looks at the first one again, so it drifts.")
