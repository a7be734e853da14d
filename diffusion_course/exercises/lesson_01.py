"""Lesson 01, DDPM and Improved DDPM.  Steps are n = 1 ... T as in the papers, and betas[n - 1] is beta_n."""
import torch

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor, unpack


# 1.1 ------------------------------------------------------------------------------------------------------
def posterior(x0, xn, n, betas):
    alpha_bar = torch.cat([torch.ones(1), (1 - betas).cumprod(0)])     # [T + 1]: alpha_bar_0 = 1 comes first
    beta, here, before = betas[n - 1], alpha_bar[n], alpha_bar[n - 1]
    mean = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * xn) / (1 - here)     # DDPM eq. 7
    return mean, (1 - before) / (1 - here) * beta


def check_posterior(answer, g):
    for T, n in ((8, 4), (12, 11), (6, 6), (7, 1)):
        betas = 0.03 + 0.3 * torch.rand(T, generator=g)
        x0, alpha_bar = 2 * torch.rand(5, generator=g) - 1, (1 - betas[:n]).prod()
        xn = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * torch.randn(5, generator=g)
        mean, variance = unpack(answer(x0, xn, n, betas), "mean", "variance")
        true_mean, true_variance = bayes(x0.double(), xn.double(), n, betas.double())
        agree(mean, true_mean, f"The mean at n = {n} of T = {T}")
        agree(variance, true_variance, f"The variance at n = {n} of T = {T}")


def bayes(x0, xn, n, betas):
    """Mean [B] and variance [] of q(x_{n-1} | x_n, x_0) for x0 and xn [B]: Bayes' rule on a fine grid."""
    if n == 1:
        return x0, torch.zeros(())                             # x_{n-1} is x_0 itself
    before, beta = (1 - betas[:n - 1]).prod(), betas[n - 1]    # alpha_bar_{n-1}, beta_n
    x = torch.linspace(-8, 8, 8001).double()
    prior = -(x - before.sqrt() * x0[:, None]) ** 2 / (2 * (1 - before))       # log q(x_{n-1} | x_0)
    likelihood = -(xn[:, None] - (1 - beta).sqrt() * x) ** 2 / (2 * beta)      # log q(x_n | x_{n-1})
    q = (prior + likelihood).softmax(1)                        # [B, 8001]
    mean = (q * x).sum(1)
    return mean, (q * (x - mean[:, None]) ** 2).sum(1).mean()


def eq_7(x0, xn, beta, here, before):
    mean = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * xn) / (1 - here)
    return mean, (1 - before) / (1 - here) * beta


def here_twice(x0, xn, n, betas):
    alpha_bar = (1 - betas).cumprod(0)
    return eq_7(x0, xn, betas[n - 1], alpha_bar[n - 1], alpha_bar[n - 1])


def wrapped(x0, xn, n, betas):
    alpha_bar = (1 - betas).cumprod(0)
    return eq_7(x0, xn, betas[n - 1], alpha_bar[n - 1], alpha_bar[n - 2])


first = Exercise(
    key="1.1", title="the posterior", points=1,
    prompt="Return the mean and the variance of q(x_{n-1} | x_n, x_0), DDPM eq. 6-7. x0 and xn are tensors "
           "of one shape, n is an int from 1 to T, betas is [T], and beta_n is betas[n - 1].",
    hints=("alpha_bar_n is the product of 1 - beta over the first n steps; over no step at all it is 1.",
           "With alpha_bar = torch.cat([torch.ones(1), (1 - betas).cumprod(0)]), alpha_bar[n] is "
           "alpha_bar_n.",
           "The mean is sqrt(alpha_bar_{n-1}) beta_n / (1 - alpha_bar_n) * x0 + sqrt(1 - beta_n) "
           "(1 - alpha_bar_{n-1}) / (1 - alpha_bar_n) * xn; the variance is "
           "(1 - alpha_bar_{n-1}) / (1 - alpha_bar_n) * beta_n."),
    check=check_posterior, solution=posterior,
    why="The product of two Gaussians in x_{n-1} is a Gaussian: their precisions (1 / variance) add up, and "
        "the mean is weighted by them. At n = 1 it is x_0, and the variance is 0.",
    wrong=(
        (lambda x0, xn, n, betas: (posterior(x0, xn, n, betas)[0], betas[n - 1]),
         "beta_n is the variance of q(x_n | x_{n-1}). Knowing x_0 as well makes it smaller: eq. 7 "
         "multiplies it by (1 - alpha_bar_{n-1}) / (1 - alpha_bar_n)."),
        (lambda x0, xn, n, betas: posterior(xn, x0, n, betas),
         "The two coefficients have changed places: x_n is one step away and usually counts for more than "
         "x_0."),
        (here_twice,
         "alpha_bar_n stands where alpha_bar_{n-1} belongs: only n - 1 steps lie between x_0 and x_{n-1}."),
        (lambda x0, xn, n, betas: posterior(x0, xn, n + 1, betas),
         "It is one step late: n counts from 1 and an index from 0, so beta_n is betas[n - 1]."),
        (wrapped,
         "At n = 1 the index n - 2 is -1, which is the last entry; alpha_bar_0, before any step, is 1.")))


# 1.2 ------------------------------------------------------------------------------------------------------
def linear_betas(T):
    betas = torch.linspace(1e-4, 0.02, T)
    return 1 - (1 - betas) ** (1000 / T)                       # multiplies log(1 - beta) by 1000 / T


def check_linear_betas(answer, g):
    for T in (50, int(torch.randint(51, 4000, (), generator=g)), 1000, 4000):
        betas = tensor(answer(T), (T,), f"The schedule for T = {T}").double()
        alpha_bar = (1 - betas).cumprod(0)
        end, middle = alpha_bar[-1], alpha_bar[T // 2 - 1]
        if not ((betas > 0) & (betas < 1)).all():
            raise Wrong(f"For T = {T} the betas run from {betas.min():.2g} to {betas.max():.2g}; each "
                        "should be between 0 and 1.")
        if not 0.95 < end / 4.036e-5 < 1.05:                   # what it is for T = 1000
            raise Wrong(f"For T = {T} alpha_bar_T is {end:.2g}; it should be 4.0e-05, within 5 %.")
        if betas.diff().min() < -1e-6:                         # but rounding
            raise Wrong(f"For T = {T} some beta is smaller than the one before it.")
        if not 0.05 < middle < 0.12:
            raise Wrong(f"For T = {T} alpha_bar is {middle:.2g} half-way, where the linear schedule has "
                        "0.079.")


second = Exercise(
    key="1.2", title="linear betas for any T", points=2,
    prompt="Stretch DDPM's linear schedule, 1e-4 to 0.02 for T = 1000, to any T from 50 to 4000: return "
           "betas [T], rising, between 0 and 1, whose alpha_bar_T is still 4.0e-5 within 5 %.",
    hints=("Fewer steps must add more noise each. What is alpha_bar_T = (1 - betas).prod() for T = 50?",
           "The logarithm of alpha_bar_T is the sum of log(1 - beta) over T steps. Which factor in front of "
           "log(1 - beta) keeps that sum the same for any T?",
           "A factor 1000 / T in front of log(1 - beta) is a power: (1 - beta) ** (1000 / T)."),
    check=check_linear_betas, solution=linear_betas,
    why="A sum over T evenly spaced betas grows like T, and the factor 1000 / T undoes that. Where betas are "
        "small, log(1 - beta) is nearly -beta, so there betas * 1000 / T would do as well.",
    wrong=(
        (lambda T: torch.linspace(1e-4, 0.02, T),
         "These betas are as large for any T, so fewer steps add less noise in all. Each of T steps has to "
         "do the work of 1000 / T."),
        (lambda T: torch.linspace(1e-4, 0.02, T) * T / 1000,
         "The factor is upside down: the fewer the steps, the more noise each must add."),
        (lambda T: torch.linspace(1e-4, 0.02, T) * 1000 / T,
         "Nearly! That is right to first order, and within 5 % for T from 574 to 3551. But what adds up over "
         "the steps is not beta: it is log(1 - beta)."),
        (lambda T: torch.linspace(1e-4, 0.02, 1000),
         "These are 1000 betas whatever T is; return T of them.")))


# 1.3 ------------------------------------------------------------------------------------------------------
def importance(losses, u):
    T = len(losses)
    p = losses.square().mean(1).sqrt()                         # [T], Improved DDPM eq. 18
    p = 0.999 * p / p.sum() + 0.001 / T                        # every n keeps a chance
    n = torch.searchsorted(p.cumsum(0), u).clamp(max=T - 1) + 1        # [B]; the sum may round to below 1
    return n, 1 / (T * p[n - 1])


def check_importance(answer, g):
    for T, B in ((20, 4000), (12, 3000)):
        step = torch.arange(1, T + 1)[:, None]                 # losses fall with n, and vary more and more
        losses = (1.2 * step / T * torch.randn(T, 10, generator=g)).exp() / step**2
        u = (torch.randperm(B, generator=g) + 0.5) / B         # evenly spread, in random order
        n, weight = unpack(answer(losses, u), "n", "weight")
        n, weight = tensor(n, (B,), "n"), tensor(weight, (B,), "weight").double()
        if n.is_floating_point():
            raise Wrong(f"n is {n.dtype}; it picks rows of a table, so make it whole numbers: n.long().")
        if n.min() < 1 or n.max() > T:
            raise Wrong(f"n runs from {n.min()} to {n.max()}, but for T = {T} the steps are 1 ... {T}.")
        check_estimate(weight, n.long(), losses.double())
        check_eq_18(weight, n.long(), losses.double())


def check_estimate(weight, n, losses):
    """mean(weight * L_n) is the mean of L, and varies less than with n drawn uniformly."""
    estimates = weight[:, None] * losses[n - 1]                # [B, 10]
    ratio, gain = estimates.mean() / losses.mean(), losses.var() / estimates.var()
    if not 0.98 < ratio < 1.02:
        raise Wrong(f"The estimate, the mean of weight * L_n, is {ratio:.2g} times the true mean of L.")
    if gain < 2:
        raise Wrong(f"The variance of weight * L_n is that of uniform n divided by {gain:.2g}; by 2 at least "
                    "is possible.")


def check_eq_18(weight, n, losses):
    T, B = len(losses), len(n)
    p = losses.square().mean(1).sqrt()
    p = 0.999 * p / p.sum() + 0.001 / T
    share = n.bincount(minlength=T + 1)[1:] / B
    far = (share - p).abs().argmax()
    if (share - p)[far].abs() > 5 / B:
        raise Wrong(f"Step {far + 1} is drawn in {share[far]:.1%} of all cases; by eq. 18 it should be in "
                    f"{p[far]:.1%}.")
    agree(weight, 1 / (T * p[n - 1]), "The weight, compared with 1 / (T p_n),")


def rms(losses):
    return losses.square().mean(1).sqrt()


def drawn(p, u, floor=0.001):
    """Steps n drawn with probabilities p after a part `floor` is made uniform, and p_n."""
    p = (1 - floor) * p / p.sum() + floor / len(p)
    n = torch.searchsorted(p.cumsum(0), u).clamp(max=len(p) - 1) + 1
    return n, p[n - 1]


def weighted(p, u, floor=0.001):
    n, p_n = drawn(p, u, floor)
    return n, 1 / (len(p) * p_n)


def unweighted(losses, u):
    n, p_n = drawn(rms(losses), u)
    return n, torch.ones_like(p_n)


def from_zero(losses, u):
    n, weight = importance(losses, u)
    return n - 1, weight


def without_u(losses, u):
    p = 0.999 * rms(losses) / rms(losses).sum() + 0.001 / len(losses)
    n = torch.multinomial(p, len(u), replacement=True) + 1
    return n, 1 / (len(p) * p[n - 1])


third = Exercise(
    key="1.3", title="importance-sampled steps", points=3,
    prompt="losses [T, 10] holds the last ten values of L_n for every step, u [B] is uniform in [0, 1). "
           "Turn u into steps n [B], whole numbers 1 ... T, by the inverse CDF of p_n proportional to "
           "sqrt(mean(L_n^2)) (Improved DDPM eq. 18) with 0.001 of its mass made uniform. Return n and "
           "weight [B], such that mean(weight * L_n) estimates the mean of L over all T steps.",
    hints=("p is [T] and adds up to 1: the root mean square of each row, divided by the sum of them all, "
           "times 0.999, plus 0.001 / T.",
           "Inverse CDF: n is the first step at which the cumulative sum of p exceeds u; torch.searchsorted "
           "finds the index, which starts at 0.",
           "The weight makes up for drawing n with p_n in place of 1 / T: it is 1 / (T p_n)."),
    check=check_importance, solution=importance,
    why="The mean of weight * L_n is sum p_n L_n / (T p_n), which is the mean of L whatever p is; its "
        "variance is least for p_n proportional to the root mean square of L_n.",
    wrong=(
        (lambda losses, u: weighted(rms(losses) ** 2, u),
         "The square root is missing: p_n is proportional to sqrt(mean(L_n^2))."),
        (lambda losses, u: weighted(losses.mean(1), u),
         "That is the mean of L_n. The root of the mean square is larger where L_n varies, and such steps "
         "need more draws."),
        (unweighted,
         "The weights are all 1, so steps that are drawn often count too much: weight them by 1 / (T p_n)."),
        (lambda losses, u: drawn(rms(losses), u),
         "The weight is p_n, but a step that is drawn often must count less, not more: 1 / (T p_n)."),
        (from_zero,
         "An index starts at 0, but steps start at 1: add 1 to n, after looking up p."),
        (lambda losses, u: weighted(rms(losses), u, floor=0),
         "The uniform 0.001 is missing: without it a step whose last ten losses are 0 is never drawn again."),
        (lambda losses, u: weighted(torch.ones(len(losses)), u),
         "Every step is as likely as any other; draw those with large losses more often (eq. 18)."),
        (without_u,
         "New random numbers are drawn, but u is given: n is the first step at which the cumulative sum of p "
         "exceeds u.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="1.w", title="a world that is one Gaussian", points=3,
    prompt="Suppose that the data are one Gaussian with mean m and variance s^2 in every pixel, all pixels "
           "independent, and that the reverse chain may use the true mean and variance of every step. (a) "
           "Does it need a thousand small steps? (b) What goes wrong with ten large steps if the data are "
           "two bumps far apart? (c) Which variance is right for the Gaussian data, beta or beta tilde, if "
           "s = 0, if s = 1, and between?",
    rubric=("No: with Gaussian data x_{n-1} and x_n are jointly Gaussian, so the reverse step is exactly "
            "Gaussian, however large it is.",
            "With two bumps the reverse of a large step has two bumps, too; one Gaussian cannot say so, "
            "and also draws from the gap between them.",
            "s = 0: beta tilde, as x_0 is known. s = 1: beta, as the data are like the noise. Between: a "
            "variance between the two, which is what v chooses."),
    answer="Small steps are there to make the reverse step Gaussian. Gaussian data and Gaussian noise are "
           "jointly Gaussian, so there it is exact for steps of any size. With two bumps far apart, a "
           "large step back may have come from either, and the one Gaussian with their mean and variance "
           "lies across the gap. For s = 0 the data are a single image, and the posterior with beta tilde "
           "is the reverse step. For s = 1 it is beta, and between them the right variance lies between.")
