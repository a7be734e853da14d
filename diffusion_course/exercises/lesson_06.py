"""Lesson 06, EDM.  Noise levels sigma are the only time; those to step through fall to 0."""
from itertools import pairwise

import torch

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor


# 6.1 ------------------------------------------------------------------------------------------------------
def karras_sigmas(steps, sigma_min, sigma_max, rho):
    place = torch.arange(steps) / (steps - 1)                  # i / (N - 1): 0 ... 1
    first, final = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(first + place * (final - first)) ** rho, torch.zeros(1)])       # EDM eq. 5


def check_karras(answer, g):
    cases = ((4, 0.01, 10.0, 3.0), (18, 0.002, 80.0, 7.0), (7, 0.1, 5.0, 1.0), (12, 0.002, 80.0, 20.0))
    for steps, low, high, rho in cases:
        what = f"For steps={steps}, sigma_min={low}, sigma_max={high}, rho={rho:g}"
        out = tensor(answer(steps, low, high, rho), (steps + 1,), f"{what} the answer").double()
        if out[-1] != 0:
            raise Wrong(f"{what} it ends at {out[-1]:.3g}; the last level is 0.")
        for place, name, end in ((0, "first", high), (-2, "last but one", low)):
            if not abs(out[place] / end - 1) < 1e-3:
                raise Wrong(f"{what} the {name} level is {out[place]:.4g}; it should be {end:g}.")
        i = torch.arange(steps).double() / (steps - 1)
        want = torch.lerp(torch.tensor(high ** (1 / rho)).double(),
                          torch.tensor(low ** (1 / rho)).double(), i) ** rho
        far = (out[:-1] / want - 1).abs().argmax()
        if not abs(out[far] / want[far] - 1) < 2e-3:
            raise Wrong(f"{what} level {far} is {out[far]:.4g}; by eq. 5 it is {want[far]:.4g}.")


def ladder(steps, first, final, rho, whole):
    place = torch.arange(steps) / whole
    return torch.cat([(first + place * (final - first)) ** rho, torch.zeros(1)])


def without_power(steps, sigma_min, sigma_max, rho):
    return ladder(steps, sigma_max, sigma_min, 1, steps - 1)


def roots_only(steps, sigma_min, sigma_max, rho):
    return ladder(steps, sigma_max ** (1 / rho), sigma_min ** (1 / rho), 1, steps - 1)


def powers_exchanged(steps, sigma_min, sigma_max, rho):
    return ladder(steps, sigma_max**rho, sigma_min**rho, 1 / rho, steps - 1)


def one_too_far(steps, sigma_min, sigma_max, rho):
    return ladder(steps, sigma_max ** (1 / rho), sigma_min ** (1 / rho), rho, steps)


def rising(steps, sigma_min, sigma_max, rho):
    return ladder(steps, sigma_min ** (1 / rho), sigma_max ** (1 / rho), rho, steps - 1)


first = Exercise(
    key="6.1", title="the levels to step through", points=1,
    prompt="Write EDM's eq. 5: return steps + 1 noise levels that fall from sigma_max to sigma_min, evenly "
           "spaced in their rho-th root, and then 0. steps is an int of at least 2; the others are floats.",
    hints=("Take the rho-th root of both ends, space evenly between the roots, and raise to the power rho.",
           "torch.linspace(a, b, steps) holds steps evenly spaced numbers, both ends included.",
           "torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho are the levels; "
           "torch.cat puts the 0 behind them."),
    check=check_karras, solution=karras_sigmas,
    why="The larger rho, the closer the levels lie towards 0; as rho grows they become evenly spaced in log "
        "sigma. The 0 stands apart, since eq. 5 ends at sigma_min.",
    wrong=(
        (without_power,
         "These levels are evenly spaced whatever rho is: take the rho-th root of both ends first, and "
         "raise to the power rho at the end."),
        (roots_only,
         "These are the rho-th roots of the levels; raise them to the power rho."),
        (powers_exchanged,
         "The powers are exchanged: with rho first and 1 / rho last the levels crowd at sigma_max. The root "
         "comes first."),
        (one_too_far,
         "The last level before 0 is not sigma_min: i runs from 0 to N - 1, so divide it by N - 1, not N."),
        (rising,
         "The levels rise; sampling goes from sigma_max down to sigma_min."),
        (lambda *args: karras_sigmas(*args)[:-1],
         "The final 0 is missing: sampling ends at the data, not at sigma_min."),
        (lambda steps, low, high, rho: karras_sigmas(steps + 1, low, high, rho)[:-1],
         "These are steps + 1 levels without the 0, or with sigma_min left out; eq. 5 has steps levels, and "
         "then 0.")))


# 6.2 ------------------------------------------------------------------------------------------------------
def second_order(D, x, times, a):
    for t, s in pairwise(times):
        h, between = s - t, t + a * (s - t)
        d = (x - D(x, t)) / t
        if between > 0:
            x_between = x + a * h * d
            d_between = (x_between - D(x_between, between)) / between
            x = x + h * ((1 - 1 / (2 * a)) * d + d_between / (2 * a))
        else:
            x = x + h * d                                      # the slope at 0 is 0 / 0
    return x


class Cloud:
    """The best denoiser for Gaussian data around `centre`, which notes at which levels it was asked."""

    def __init__(self, centre: float, width: float):
        self.centre, self.width, self.asked = centre, width, []

    def __call__(self, x, sigma):
        level = float(sigma)
        if level <= 0:
            raise ValueError("D was asked at sigma = 0, where the slope is 0 / 0")
        self.asked.append(level)
        return (self.width**2 * x + level**2 * self.centre) / (self.width**2 + level**2)

    def __float__(self):                                       # so that a test can compare inputs
        return self.centre


def check_second_order(answer, g):
    for steps, a in ((3, 1.0), (5, 2 / 3), (4, 1.0), (4, 0.5)):
        times = karras_sigmas(steps, 0.05, 10.0, 7.0)
        x = 10 * torch.randn(6, generator=g)
        D, counted = Cloud(0.3 + 0.1 * steps, 0.5), Cloud(0.3 + 0.1 * steps, 0.5)
        want = second_order(counted, x, times, a)
        what = f"With {steps} steps and a = {a:.3g}"
        out = tensor(answer(D, x, times, a), x.shape, f"{what} the end")
        agree(out, want, f"{what} the end")
        if len(D.asked) != len(counted.asked):
            raise Wrong(f"{what} D was asked {len(D.asked)} times; {len(counted.asked)} are enough.")


def weighted(D, x, times, a, end="look", at="between", weights="right"):
    """The reference with one thing changed."""
    for t, s in pairwise(times):
        h, between = s - t, t + a * (s - t)
        d = (x - D(x, t)) / t
        if between > 0 and (end == "look" or s > 0):
            y = x + (a * h if at != "end" else h) * d
            level = {"between": between, "end": between, "start": t}[at]
            d2 = (y - D(y, level)) / level
            w = {"right": 1 / (2 * a), "half": 0.5, "exchanged": 1 - 1 / (2 * a), "all": 1.0}[weights]
            x = x + h * ((1 - w) * d + w * d2)
        else:
            x = x + h * d
    return x


def euler(D, x, times, a):
    for t, s in pairwise(times):
        x = x + (s - t) * (x - D(x, t)) / t
    return x


def slope_of_x(D, x, times, a):
    """x has moved before it is used as the start of the step."""
    for t, s in pairwise(times):
        h, between = s - t, t + a * (s - t)
        d = (x - D(x, t)) / t
        x = x + a * h * d
        if between > 0:
            d2 = (x - D(x, between)) / between
            x = x + h * ((1 - 1 / (2 * a)) * d + d2 / (2 * a))
    return x


second = Exercise(
    key="6.2", title="a family of second-order solvers", points=2,
    prompt="D(x, sigma) is a denoiser at one level; x is at times[0]; times fall to 0. In each step h look "
           "a second time at t' = t + a h, and go on with the slopes' mean, weighted by 1 - 1/(2a) and "
           "1/(2a). Where t' = 0 take Euler's step. Return x at the end. A counter in D checks that Heun "
           "(a = 1) asks 2N - 1 times, and never at sigma = 0.",
    hints=("The slope at (x, t) is d = (x - D(x, t)) / t. x' = x + a h d is where Euler stands at t'.",
           "x' is only for looking: the step itself starts at x again and goes the whole h.",
           "if t' > 0: x = x + h * ((1 - 1 / (2 * a)) * d + d' / (2 * a)), else: x = x + h * d, with "
           "d' = (x' - D(x', t')) / t'."),
    check=check_second_order, solution=second_order,
    why="The weights are those for which the error of second order vanishes for any a. Only for a = 1 does "
        "the last look fall on sigma = 0, so Heun saves one of its 2N evaluations.",
    wrong=(
        (euler,
         "This is Euler's method, of first order: look a second time, at t', in each step."),
        (lambda D, x, times, a: weighted(D, x, times, a, weights="half"),
         "The plain mean of both slopes is right for a = 1 only; the second look weighs 1 / (2a)."),
        (lambda D, x, times, a: weighted(D, x, times, a, weights="exchanged"),
         "The weights are exchanged: d' gets 1 / (2a), and d the rest."),
        (lambda D, x, times, a: weighted(D, x, times, a, end="euler"),
         "Nearly: for a < 1 the last t' is above 0, so the last step has a second look as well. Ask whether "
         "t' is 0, not whether the step ends there."),
        (lambda D, x, times, a: weighted(D, x, times, a, at="start"),
         "The second look uses t; x' belongs to t', so both the denoiser and the division take t'."),
        (lambda D, x, times, a: weighted(D, x, times, a, at="end"),
         "x' has gone the whole step, but t' is only the part a of it: x' = x + a h d."),
        (slope_of_x,
         "The step starts at x', not at x: keep x until the end of the step.")))


# 6.3 ------------------------------------------------------------------------------------------------------
def as_denoiser(net, x, sigma, betas):
    alpha_bar = (1 - betas).cumprod(0)                         # [T], of n = 1 ... T
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()              # sigma of each n, rising
    n = 1 + (levels.log() - sigma.log()[:, None]).abs().argmin(1)              # [B]
    s = sigma[:, None]
    return x - s * net(x / (1 + s**2).sqrt(), n)


class Net:
    """Something that says noise [B, P] for x_n [B, P] and n [B], and depends on both."""

    def __init__(self, slope: float):
        self.slope = slope

    def __call__(self, x, n):
        n = torch.as_tensor(n)
        if n.shape != (len(x),):
            raise ValueError(f"n should be one step per row of x, [{len(x)}], but has shape {list(n.shape)}")
        return (self.slope * x + 0.1 * n[:, None]).sin() + 0.2 * x

    def __float__(self):
        return self.slope


def check_as_denoiser(answer, g):
    for T, B, exact in ((30, 6, True), (40, 5, False), (25, 7, True)):
        betas = 0.01 + 0.2 * torch.rand(T, generator=g)
        n = 1 + torch.randperm(T, generator=g)[:B]
        n[0] = T if exact else 1
        alpha_bar = (1 - betas.double()).cumprod(0)[n - 1]
        y, noise = torch.rand(B, 4, generator=g), torch.randn(B, 4, generator=g)
        own = ((1 - alpha_bar) / alpha_bar).sqrt()
        sigma = (own if exact else own * 1.004).float()        # off the table, but nearest to n
        x = y + sigma[:, None] * noise
        net = Net(0.5 + T / 50)
        out = tensor(answer(net, x, sigma, betas), x.shape, "D").double()
        if exact:                                              # then D is DDPM's own guess of x0
            a = alpha_bar[:, None]
            x_n = a.sqrt() * x
            want = (x_n - (1 - a).sqrt() * net(x_n, n)) / a.sqrt()
        else:
            s = sigma[:, None].double()
            want = x - s * net(x / (1 + s**2).sqrt(), n)
        agree(out, want, "D, at levels of the table," if exact else "D, at levels beside the table,")


def changed(net, x, sigma, betas, shrink=True, shift=1, back="x", level="ratio"):
    """The reference with one thing changed."""
    alpha_bar = (1 - betas).cumprod(0)
    table = ((1 - alpha_bar) / alpha_bar).sqrt() if level == "ratio" else (1 - alpha_bar).sqrt()
    n = shift + (table.log() - sigma.log()[:, None]).abs().argmin(1)
    s = sigma[:, None]
    small = x / (1 + s**2).sqrt() if shrink else x
    return {"x": x, "small": small}[back] - s * net(small, n)


def table_level(net, x, sigma, betas):
    alpha_bar = (1 - betas).cumprod(0)
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()
    n = 1 + (levels.log() - sigma.log()[:, None]).abs().argmin(1)
    return as_denoiser(net, x, levels[n - 1], betas)


def scaled_twice(net, x, sigma, betas):
    return as_denoiser(net, x, sigma, betas) * (1 + sigma[:, None] ** 2).sqrt()


def noise_only(net, x, sigma, betas):
    return (x - as_denoiser(net, x, sigma, betas)) / sigma[:, None]


third = Exercise(
    key="6.3", title="DDPM's network as D(x; sigma)", points=3,
    prompt="net(x, n) is a DDPM network: x_n [B, P] and whole steps n [B] from 1 to T -> the noise [B, P]. "
           "betas is [T], and beta_n is betas[n - 1]. Return D(x; sigma) [B, P] for x = y + sigma * noise "
           "[B, P] and sigma [B]. n is the step whose level sqrt(1 - alpha_bar_n) / sqrt(alpha_bar_n) is "
           "nearest to sigma in the logarithm; where sigma scales anything, take sigma itself.",
    hints=("Divide DDPM's x_n = sqrt(alpha_bar) y + sqrt(1 - alpha_bar) noise by sqrt(alpha_bar): which "
           "sigma has the result?",
           "From sigma^2 = (1 - alpha_bar) / alpha_bar follows sqrt(alpha_bar) = 1 / sqrt(1 + sigma^2). So "
           "the network gets x / sqrt(1 + sigma^2).",
           "levels = ((1 - alpha_bar) / alpha_bar).sqrt(); n = 1 + (levels.log() - "
           "sigma.log()[:, None]).abs().argmin(1); D = x - sigma[:, None] * the noise that net says."),
    check=check_as_denoiser, solution=as_denoiser,
    why="x0_hat = (x_n - sqrt(1 - alpha_bar) noise) / sqrt(alpha_bar) is x - sigma noise when x_n is "
        "sqrt(alpha_bar) x. So c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(1 + sigma^2): the DDPM column of "
        "EDM's table 1.",
    wrong=(
        (lambda *args: changed(*args, shrink=False),
         "The network gets x as it is, but it was trained on x_n, of variance 1: divide x by "
         "sqrt(1 + sigma^2)."),
        (lambda *args: changed(*args, back="small"),
         "The noise is subtracted from the shrunken x. It is x itself that is y + sigma * noise."),
        (lambda *args: changed(*args, shift=0),
         "The step is one too small: argmin is an index, which starts at 0, and n starts at 1."),
        (lambda *args: changed(*args, level="noise"),
         "sigma was compared with sqrt(1 - alpha_bar), DDPM's noise before x_n is divided by "
         "sqrt(alpha_bar). The level is the ratio of the two."),
        (table_level,
         "The level of the table stands where sigma belongs. At levels beside the table x holds sigma * "
         "noise, so scale with sigma, and take the table for n only."),
        (scaled_twice,
         "D is enlarged by sqrt(1 + sigma^2) once more; x - sigma * noise has the size of the data already."),
        (noise_only,
         "This is the noise that the network says; D is x - sigma * noise.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="6.w", title="a weight that is counted twice", points=3,
    prompt="A student trains the raw network F by its squared error, |F - target|^2, and also multiplies "
           "by lambda = 1 / c_out^2. The data have standard deviation 0.55. (a) How would the levels count "
           "without lambda? (b) How much do sigma = 0.002 and sigma = 80 count with it, roughly? (c) What "
           "does that do to the training and to the samples?",
    rubric=("Without it all levels count the same: the squared error of D is c_out^2 times that of F, and "
            "lambda of eq. 8 has cancelled c_out^2 already.",
            "At low noise c_out is about sigma, so sigma = 0.002 counts about 250,000; at sigma = 80 c_out "
            "is about 0.55, so it counts about 3.",
            "Weak noise rules the gradient, where the target can hardly be guessed. The levels that decide "
            "which digit it is, about 1 to 5, are neglected, so the shapes of samples suffer."),
    answer="The squared error of F is eq. 8 with its weight already in it, so every level counts the same. "
           "With lambda once more, a level counts 1 / c_out^2: about 1 / 0.002^2 = 250,000 at the lowest, "
           "and 1 / 0.55^2 = 3.3 at the highest. So training looks at noise that can hardly be seen, where "
           "there is next to nothing to learn. The levels that decide which digit it is get almost no "
           "weight, and the samples have poor shapes.")
