"""Lesson 02, DDIM and guidance.  alpha_bar is [T + 1]: alpha_bar[0] = 1 is data, alpha_bar[T] is noise."""
import torch

from ..classroom.exercise import Exercise, Question, agree, unpack

SD = 0.6  # of both bumps of the toy data, whose means are -1 and 1


# 2.1 ------------------------------------------------------------------------------------------------------
def guided_noise(x, v_null, v_label, alpha, w):
    scale = 1 + w
    v = v_null + scale * (v_label - v_null)
    return scale, (1 - alpha**2) ** 0.5 * x + alpha * v        # x = alpha x0 + sigma noise, solved for noise


def check_guided_noise(answer, g):
    for size, w in ((3, 0.7), (4, 2.5), (5, 0.0)):
        x0, noise, x0_label = torch.randn(3, size, generator=g)
        alpha, w = 0.2 + 0.6 * torch.rand((), generator=g), torch.tensor(w)
        sigma = (1 - alpha**2).sqrt()
        x = alpha * x0 + sigma * noise
        noise_label = (x - alpha * x0_label) / sigma
        out = answer(x, alpha * noise - sigma * x0, alpha * noise_label - sigma * x0_label, alpha, w)
        scale, guided = unpack(out, "scale", "noise")
        agree(scale, 1 + w, f"For w = {w:g} the scale")
        agree(guided, (1 + w) * noise_label - w * noise, f"For w = {w:g} the guided noise")


def to_noise(x, v, alpha):
    return (1 - alpha**2) ** 0.5 * x + alpha * v


first = Exercise(
    key="2.1", title="two conventions, two predictions", points=1,
    prompt="A network predicts v = alpha * noise - sigma * x0 at x = alpha * x0 + sigma * noise, where "
           "sigma^2 = 1 - alpha^2: v_null without a label and v_label with it (tensors like x). w [] is "
           "the paper's. Return two things: the scale of this course, and the guided noise (like x).",
    hints=("The paper writes (1 + w) * with - w * without; this course writes without + scale * (with - "
           "without). For which scale are they the same?",
           "Guidance is a straight line through two predictions, so it may be taken in v, and the result "
           "turned into noise.",
           "Two equations, x = alpha * x0 + sigma * noise and v = alpha * noise - sigma * x0: multiply the "
           "first by sigma, the second by alpha, and add them."),
    check=check_guided_noise, solution=guided_noise,
    why="sigma * x + alpha * v = (sigma^2 + alpha^2) * noise = noise. Given x, noise is linear in v, and the "
        "two weights of guidance add up to 1; so guiding v and guiding the noise is the same.",
    wrong=(
        (lambda x, v_null, v_label, alpha, w: (w, to_noise(x, v_null + w * (v_label - v_null), alpha)),
         "w is not the scale: at w = 0 the paper has no guidance, and that is scale = 1."),
        (lambda x, v_null, v_label, alpha, w: (1 + w, v_null + (1 + w) * (v_label - v_null)),
         "The scale is right, but what is guided is still v. The noise is sigma * x + alpha * v."),
        (lambda x, v_null, v_label, alpha, w: (1 + w, to_noise(x, v_label + (1 + w) * (v_label - v_null),
                                                               alpha)),
         "The scale counts from the prediction without a label: v_null + scale * (v_label - v_null). From "
         "v_label it would be w."),
        (lambda x, v_null, v_label, alpha, w: (1 + w, to_noise(x, v_label + (1 + w) * (v_null - v_label),
                                                               alpha)),
         "v_null and v_label have changed places: this leads away from the label."),
        (lambda x, v_null, v_label, alpha, w: (1 + w, alpha * x - (1 - alpha**2) ** 0.5 *
                                               (v_null + (1 + w) * (v_label - v_null))),
         "alpha * x - sigma * v is x0. The noise is sigma * x + alpha * v.")))


# 2.2 ------------------------------------------------------------------------------------------------------
def ddim_invert(x0, alpha_bar, c):
    x = x0
    for before, after in zip(alpha_bar[:-1], alpha_bar[1:]):
        noise_hat = guess(x, before, c)                        # at the level where x is
        x0_hat = (x - (1 - before).sqrt() * noise_hat) / before.sqrt()
        x = after.sqrt() * x0_hat + (1 - after).sqrt() * noise_hat
    return x


def guess(x, bar, c):
    """The best guess of the noise in x, for Gaussian data whose coordinates have standard deviations c."""
    return (1 - bar).sqrt() * x / (bar * c**2 + 1 - bar)


def check_ddim_invert(answer, g):
    for T, size in ((1, 4), (2, 3), (40, 5)):
        alpha_bar = levels(T, g)
        c = 0.3 + torch.rand(size, generator=g)
        x0 = c * torch.randn(6, size, generator=g)
        agree(answer(x0, alpha_bar, c), ddim_invert(x0, alpha_bar, c), f"With {T} steps the noise")


def levels(T, g):
    """alpha_bar [T + 1], falling from 1 to about 0.01."""
    kept = (0.2 + 0.75 * torch.rand(T, generator=g)) ** (7 / T)
    return torch.cat([torch.ones(1), kept.cumprod(0)])


def step(x, noise_hat, before, after):
    x0_hat = (x - (1 - before).sqrt() * noise_hat) / before.sqrt()
    return after.sqrt() * x0_hat + (1 - after).sqrt() * noise_hat


def pairs(alpha_bar):
    return list(zip(alpha_bar[:-1], alpha_bar[1:]))


def at_the_upper_level(x0, alpha_bar, c):
    for before, after in pairs(alpha_bar):
        x0 = step(x0, guess(x0, after, c), before, after)
    return x0


def undivided(x0, alpha_bar, c):
    for before, after in pairs(alpha_bar):
        noise_hat = guess(x0, before, c)
        x0 = after.sqrt() * (x0 - (1 - before).sqrt() * noise_hat) + (1 - after).sqrt() * noise_hat
    return x0


def downwards(x0, alpha_bar, c):
    for before, after in pairs(alpha_bar.flip(0)):
        x0 = step(x0, guess(x0, before, c), before, after)
    return x0


def too_short(x0, alpha_bar, c):
    return ddim_invert(x0, alpha_bar[:-1], c)


def fresh(x0, alpha_bar, c):
    return alpha_bar[-1].sqrt() * x0 + (1 - alpha_bar[-1]).sqrt() * torch.randn_like(x0)


def without_root(x0, alpha_bar, c):
    for before, after in pairs(alpha_bar):
        noise_hat = guess(x0, before, c)
        x0 = after * (x0 - (1 - before) * noise_hat) / before + (1 - after) * noise_hat
    return x0


second = Exercise(
    key="2.2", title="DDIM inversion", points=2,
    prompt="Walk data x0 [N, D] up to its noise with deterministic DDIM steps, from alpha_bar[0] = 1 to "
           "alpha_bar[T]; alpha_bar is [T + 1]. The data are Gaussian with standard deviations c [D], so the "
           "best guess of the noise in x is sqrt(1 - alpha_bar) * x / (alpha_bar * c**2 + 1 - alpha_bar)."
           " Return x_T [N, D].",
    hints=("It is the step of the sampler, with the two levels exchanged: guess the noise, then x0, then mix "
           "them for the next level.",
           "Guess the noise at the level where x is, not at the one it goes to: x has not arrived there yet.",
           "x0_hat = (x - sqrt(1 - a) * noise_hat) / sqrt(a) with a = alpha_bar[n]; then x = sqrt(b) * "
           "x0_hat + sqrt(1 - b) * noise_hat with b = alpha_bar[n + 1]."),
    check=check_ddim_invert, solution=ddim_invert,
    why="Nothing in the step asks for a direction; going up it re-uses the noise of the lower level, which "
        "is right in the limit of small steps. There x_T = x0 * sqrt(alpha_bar_T c^2 + 1 - alpha_bar_T) / c.",
    wrong=(
        (at_the_upper_level,
         "The noise is guessed with the alpha_bar of the level that x goes to. x is still at the lower one."),
        (undivided,
         "x - sqrt(1 - alpha_bar) * noise_hat is what is left of the data, sqrt(alpha_bar) * x0_hat: divide "
         "by sqrt(alpha_bar)."),
        (downwards,
         "This walks from alpha_bar[T] to alpha_bar[0], as a sampler does. Inversion starts at alpha_bar[0], "
         "with the data."),
        (too_short,
         "The last step is missing: T + 1 levels make T steps, and the last one ends at alpha_bar[T]."),
        (fresh,
         "That adds random noise, from which DDIM makes other data. Inversion draws nothing: it finds the "
         "one noise that leads back to x0."),
        (without_root,
         "x holds sqrt(alpha_bar) of the data and sqrt(1 - alpha_bar) of the noise: the roots are missing.")))


# 2.3 ------------------------------------------------------------------------------------------------------
def interval_guidance(x, alpha_bar, w, low, high):
    for n in range(len(alpha_bar) - 1, 0, -1):
        null, label = two_guesses(x, alpha_bar[n])
        scale = 1 + w if low <= n <= high else 1
        noise_hat = null + scale * (label - null)
        x = step(x, noise_hat, alpha_bar[n], alpha_bar[n - 1])
    return x


def two_guesses(x, bar):
    """The best guesses of the noise in x: for both bumps of the toy data, and for the one at 1 alone."""
    variance = bar * SD**2 + 1 - bar
    pull = torch.tanh(bar.sqrt() * x / variance)               # which bump: -1 ... 1
    return [(1 - bar).sqrt() * (x - bar.sqrt() * mean) / variance for mean in (pull, 1)]


def check_interval(answer, g):
    for T, size, w, low, high in ((6, 7, 2.0, 2, 4), (9, 5, 1.0, 1, 3), (8, 6, 3.0, 5, 8)):
        x = torch.randn(size, generator=g)
        alpha_bar = levels(T, g)
        agree(answer(x, alpha_bar, w, low, high), interval_guidance(x, alpha_bar, w, low, high),
              f"With w = {w:g} for n from {low} to {high} of {T}, the sample")


def walked(scale_of, late=0):
    """A guided sampler; scale_of(inside, w) for every step, where `late` shifts the steps that are inside."""
    def answer(x, alpha_bar, w, low, high):
        for n in range(len(alpha_bar) - 1, 0, -1):
            null, label = two_guesses(x, alpha_bar[n])
            noise_hat = null + scale_of(low <= n - late <= high, w) * (label - null)
            x = step(x, noise_hat, alpha_bar[n], alpha_bar[n - 1])
        return x
    return answer


third = Exercise(
    key="2.3", title="guidance in an interval", points=3,
    prompt="Data: half N(-1, 0.36), half N(1, 0.36), and the label asks for the bump at 1. From noise x [N] "
           "at n = T take deterministic DDIM steps n = T ... 1, each from alpha_bar[n] to alpha_bar[n - 1] "
           "(alpha_bar is [T + 1], alpha_bar[0] = 1). Guide with the paper's w in the steps where low <= n "
           "<= high; take the others with the label and no guidance. Return the samples [N].",
    hints=("With s^2 = 0.36 alpha_bar + 1 - alpha_bar, the best guess of the noise for data around m is "
           "sqrt(1 - alpha_bar) * (x - sqrt(alpha_bar) * m) / s^2. With the label, m = 1.",
           "Without the label, m is the mean of the two bumps, weighted by how likely each is: "
           "tanh(sqrt(alpha_bar) * x / s^2).",
           "noise_hat = null + scale * (label - null), where scale is 1 + w if low <= n <= high, else 1; "
           "then a DDIM step with noise_hat."),
    check=check_interval, solution=interval_guidance,
    why="Outside the interval the scale is 1; 0 would forget the label. With w = 3 and 200 levels of the "
        "linear schedule, guiding only n <= 40 keeps all samples above 0, as guiding everywhere does. Their "
        "mean is 1.15, not 1.81 (the data: 1), their standard deviation 0.43, not 0.34 (the data: 0.6).",
    wrong=(
        (walked(lambda inside, w: 1 + w),
         "It guides at every step. Outside low <= n <= high the scale is 1."),
        (walked(lambda inside, w: 1 + w if inside else 0),
         "Outside the interval the label is forgotten: no guidance is scale = 1, not 0."),
        (walked(lambda inside, w: w if inside else 1),
         "The scale is w, but the paper's w counts from the prediction with the label: scale = 1 + w."),
        (walked(lambda inside, w: 1 if inside else 1 + w),
         "It is the wrong way round: guided outside the interval, and not inside."),
        (walked(lambda inside, w: 1 + w if inside else 1, late=1),
         "The interval is one step late: what counts is n, where the step starts, not n - 1, where it ends."),
        (walked(lambda inside, w: 1),
         "Nothing is guided: inside the interval the scale is 1 + w.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="2.w", title="there and back, but changed", points=3,
    prompt="You invert a test digit with its own label, scale 1, eta = 0 and 100 steps. Then you sample "
           "from the noise that was found. Change one thing on the way down: (a) eta = 1, (b) 50 steps "
           "instead of 100, (c) scale 4. In which of the three cases does the digit come back, and why?",
    rubric=("(a) No: fresh noise in every step takes the place of the noise that was found, so the start "
            "no longer decides what is drawn.",
            "(b) Nearly: up and down follow the same differential equation, and fewer steps only follow it "
            "less exactly.",
            "(c) No: guidance changes the predicted noise and so the equation. From the same start another "
            "curve leads to another image, typically bolder."),
    answer="Inversion finds the end of one curve of an ODE. With eta = 1 the way down is no curve at all: "
           "each step replaces part of the noise, and another digit comes out. With 50 steps the same "
           "curve is followed more roughly, so the digit comes back with a small error. With scale 4 the "
           "prediction is another one, so it is another ODE. Its curve from this noise ends elsewhere, at "
           "a bolder digit or even a wrong one.")
