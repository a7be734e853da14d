"""Lesson 03, Score SDE.  Time runs from 0 = data to 1 = noise; beta(t) = b0 + t (b1 - b0)."""
import itertools

import torch

from ..classroom.exercise import Exercise, Question, agree, unpack


# 3.1 ------------------------------------------------------------------------------------------------------
def sub_vp(t, b0, b1):
    B = t * b0 + t**2 * (b1 - b0) / 2                          # the integral of beta from 0 to t
    return torch.exp(-B / 2), 1 - torch.exp(-B)                # Score SDE eq. 29, sub-VP


def check_sub_vp(answer, g):
    for n, (b0, b1) in ((5, (0.1, 20.0)), (3, (0.3, 6.0)), (4, (2.0, 2.0))):
        t = 0.05 + 0.95 * torch.rand(n, generator=g)
        alpha, sigma = unpack(answer(t, b0, b1), "alpha", "sigma")
        true_alpha, true_sigma = simulated(t.double(), b0, b1)
        agree(alpha, true_alpha, f"alpha for b0 = {b0}, b1 = {b1}")
        agree(sigma, true_sigma, f"sigma for b0 = {b0}, b1 = {b1}")


def simulated(t, b0, b1, steps=4000):
    """alpha and sigma [N] at times t, from what each moment adds and what decays of it (trapezoid rule)."""
    u = t[:, None] * torch.linspace(0, 1, steps + 1).double()                  # [N, steps + 1]
    beta, B = b0 + u * (b1 - b0), u * b0 + u**2 * (b1 - b0) / 2
    left = torch.exp(B - B[:, -1:])                            # how much of a variance at u is left at t
    variance = torch.trapezoid(beta * (1 - torch.exp(-2 * B)) * left, u)
    return torch.exp(-torch.trapezoid(beta, u) / 2), variance.sqrt()



first = Exercise(
    key="3.1", title="the marginals of sub-VP", points=1,
    prompt="Return alpha(t) and sigma(t) of the sub-VP SDE, dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 B))) "
           "dw, where beta = b0 + t (b1 - b0) and B is the integral of beta from 0 to t. t is a tensor of "
           "times, b0 and b1 are numbers.",
    hints=("The drift is that of VP, so alpha is as well: the mean obeys d alpha / dt = -beta alpha / 2.",
           "The variance obeys dv / dt = -beta v + beta (1 - exp(-2 B)). Try v = (1 - exp(-B))^2.",
           "B = t b0 + t^2 (b1 - b0) / 2; alpha = exp(-B / 2); sigma = 1 - exp(-B), the root of v."),
    check=check_sub_vp, solution=sub_vp,
    why="Put v = (1 - exp(-B))^2 into dv / dt = -beta v + beta (1 - exp(-2 B)): both sides are "
        "2 beta exp(-B) (1 - exp(-B)). VP has the variance 1 - exp(-B), so sub-VP's is its square, and its "
        "standard deviation is VP's variance.",
    wrong=(
        (lambda t, b0, b1: (sub_vp(t, b0, b1)[0], sub_vp(t, b0, b1)[1].sqrt()),
         "That sigma belongs to VP. Sub-VP adds less noise: its g^2 has the further factor 1 - exp(-2 B)."),
        (lambda t, b0, b1: (sub_vp(t, b0, b1)[0], sub_vp(t, b0, b1)[1] ** 2),
         "(1 - exp(-B))^2 is the variance; sigma is its root."),
        (lambda t, b0, b1: (sub_vp(t, b0, b1)[0] ** 2, sub_vp(t, b0, b1)[1]),
         "alpha falls too fast: the drift is -beta x / 2, so the exponent is half of the integral of beta."),
        (lambda t, b0, b1: (sub_vp(t, b0, b1)[0], 1 - sub_vp(t, b0, b1)[0]),
         "sigma is 1 - alpha^2, and yours is 1 - alpha."),
        (lambda t, b0, b1: sub_vp(t, b0, 2 * b1 - b0),
         "The integral of t is t^2 / 2; the half is missing in B.")))


# 3.2 ------------------------------------------------------------------------------------------------------
def follow(score, f, g2, x, times):
    def slope(x, t):
        return f(t) * x - g2(t) / 2 * score(x, t)              # Score SDE eq. 13

    for t, s in itertools.pairwise(times):
        here = slope(x, t)
        x = x + (s - t) * (here + slope(x + (s - t) * here, s)) / 2
    return x


def vp(b0, b1, variance):
    """f, g2, the score of data from N(0, variance) under VP, and the variance of its marginals."""
    def beta(t):
        return b0 + t * (b1 - b0)

    def marginal(t):
        return 1 + (variance - 1) * torch.exp(-(t * b0 + t**2 * (b1 - b0) / 2))

    return lambda t: -beta(t) / 2, beta, lambda x, t: -x / marginal(t), marginal


def check_follow(answer, g):
    for b0, b1, variance in ((1.0, 5.0, 0.05), (0.5, 8.0, 0.3)):
        f, g2, score, marginal = vp(b0, b1, variance)
        times = torch.linspace(1e-3, 1, 161).double()
        x0 = variance**0.5 * torch.randn(16, 2, generator=g).double()
        code = answer(score, f, g2, x0, times)
        ends = marginal(times[-1]) / marginal(times[0])
        agree(code, ends.sqrt() * x0, "The code, at t = 1,")
        agree(answer(score, f, g2, ends.sqrt() * x0, times.flip(0)), x0, "What the code is decoded to")


def moved(slope, second=True):
    """Heun's method, or Euler's, with another slope(score, f, g2, x, t)."""
    def follow(score, f, g2, x, times):
        for t, s in itertools.pairwise(times):
            here = slope(score, f, g2, x, t)
            there = slope(score, f, g2, x + (s - t) * here, s) if second else here
            x = x + (s - t) * (here + there) / 2
        return x
    return follow


def late(score, f, g2, x, times):
    """The second slope at the new time, but at the old place."""
    slope = lambda x, t: f(t) * x - g2(t) / 2 * score(x, t)
    for t, s in itertools.pairwise(times):
        x = x + (s - t) * (slope(x, t) + slope(x, s)) / 2
    return x


second = Exercise(
    key="3.2", title="encode and decode", points=2,
    prompt="Follow the probability-flow ODE (eq. 13) from x [B, D], which is at times[0], through all times "
           "[N + 1] with Heun's method, and return x at times[-1]. score(x, t), f(t) and g2(t) = g(t)^2 are "
           "functions; the times may rise (encode) or fall (decode).",
    hints=("dx/dt = f(t) x - g2(t) / 2 * score(x, t). No noise is added anywhere.",
           "From t to s: Euler's step to s, the slope there at time s, then once more from t with the mean "
           "of both slopes.",
           "for t, s in itertools.pairwise(times): here = slope(x, t); x = x + (s - t) * (here + slope(x + "
           "(s - t) * here, s)) / 2"),
    check=check_follow, solution=follow,
    why="An ODE has no arrow of time: the same steps lead from image to code and, with the times reversed, "
        "back. Heun's error falls with the square of the step, Euler's with the step.",
    wrong=(
        (moved(lambda score, f, g2, x, t: f(t) * x - g2(t) * score(x, t)),
         "That is the drift of the reverse SDE (eq. 6). Without its noise half of the score is too much: the "
         "ODE has g2 / 2."),
        (moved(lambda score, f, g2, x, t: f(t) * x - g2(t) / 2 * score(x, t), second=False),
         "That is Euler's method, whose error is too large here. Heun looks at the slope once more, where "
         "the Euler step ends."),
        (moved(lambda score, f, g2, x, t: f(t) * x + g2(t) / 2 * score(x, t)),
         "The sign of the score is wrong: noise spreads a density, so the flow must go down the score as "
         "t rises."),
        (moved(lambda score, f, g2, x, t: f(t) * x - g2(t) ** 2 / 2 * score(x, t)),
         "g2 is g squared already; it is squared once more."),
        (late,
         "The second slope belongs to the new place as well as to the new time: "
         "slope(x + (s - t) * here, s).")))


# 3.3 ------------------------------------------------------------------------------------------------------
def probe_variances(A):
    S = (A + A.mT) / 2                                         # e^T A e = e^T S e
    squares, diagonal = S.square().sum((1, 2)), S.diagonal(dim1=1, dim2=2).square().sum(1)
    return 2 * (squares - diagonal), 2 * squares


def check_probe_variances(answer, g):
    for B, D in ((3, 4), (2, 7), (4, 3)):
        A = torch.randn(B, D, D, generator=g).double() + torch.diag(torch.arange(D).double())
        signs, gauss = unpack(answer(A), "the variance with signs", "the variance with Gaussians")
        agree(signs, all_signs(A), f"The variance with random signs, D = {D},")
        agree(gauss, 2 * torch.linalg.eigvalsh((A + A.mT) / 2).square().sum(1),
              f"The variance with Gaussian probes, D = {D},")


def all_signs(A):
    """The variance [B] of e^T A e over every vector e of signs."""
    e = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=A.shape[1])), dtype=A.dtype)
    return torch.einsum("ki,bij,kj->bk", e, A, e).var(1, correction=0)


def lopsided(A):
    squares, diagonal = A.square().sum((1, 2)), A.diagonal(dim1=1, dim2=2).square().sum(1)
    return 2 * (squares - diagonal), 2 * squares


third = Exercise(
    key="3.3", title="the noise of Hutchinson's estimate", points=3,
    prompt="The field v(x) = A x has the divergence trace(A), and e^T A e estimates it. Return the exact "
           "variance of e^T A e, first for e of independent random signs, then for e of independent standard "
           "normal numbers, each [B]. A is [B, D, D] and need not be symmetric.",
    hints=("e^T A e is a sum over i and j of A_ij e_i e_j. Which terms are random if every e_i is 1 or -1?",
           "Only S = (A + A^T) / 2 matters. The pairs i < j contribute 2 S_ij e_i e_j, which are "
           "uncorrelated and have the variance 4 S_ij^2.",
           "Signs: e_i^2 is always 1, so the diagonal adds nothing: 2 (|S|^2 - sum S_ii^2). Gaussians: e_i^2 "
           "has the variance 2, so each S_ii adds 2 S_ii^2: 2 |S|^2 in all."),
    check=check_probe_variances, solution=probe_variances,
    why="The trace sits on the diagonal. With signs the diagonal is counted exactly, and only what is beside "
        "it makes noise; Gaussian probes add noise on the diagonal too. Where A is diagonal, one vector of "
        "signs is exact.",
    wrong=(
        (lopsided,
         "A need not be symmetric, and A_ij and A_ji meet the same e_i e_j: take S = (A + A^T) / 2."),
        (lambda A: tuple(v / 2 for v in probe_variances(A)),
         "A factor 2 is missing: each pair i < j occurs twice in the sum, so it adds (2 S_ij)^2."),
        (lambda A: probe_variances(A)[::-1],
         "The two have changed places: signs have the smaller variance."),
        (lambda A: (probe_variances(A)[1], probe_variances(A)[1]),
         "With signs e_i^2 is always 1: the diagonal is the trace itself and adds no variance."),
        (lambda A: tuple(v.sqrt() for v in probe_variances(A)),
         "These are the standard deviations; their squares are asked for.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="3.w", title="all points in the small mode", points=3,
    prompt="In the lesson plain Langevin dynamics, with the exact score of the data, ends with 49 % of the "
           "points in the mode that holds 80 %. Now let all points start in the small mode. (a) What share "
           "of the large mode do you expect at the end of the plain walk, and why? (b) Would a larger "
           "network, or twice as many steps, help? (c) What do you expect if the noise is lowered slowly "
           "from width 3, from the same start?",
    rubric=("About 0 %: the score is local, so points climb the hill they are on, and no path leads across "
            "the empty gap.",
            "Neither helps: the score is exact already, and crossing the gap takes far longer than any "
            "such number of steps.",
            "Near 80 %: at width 3 the modes are one hill, so the start is forgotten, and the shares of "
            "the data settle as the noise falls."),
    answer="The score says which way is uphill from here. It does not say how much data another hill "
           "holds, so points that start in the small mode stay there, and the large one gets about 0 %. "
           "The score is exact, so no network improves it, and twice the steps do not lead over an empty "
           "gap. With much noise the two modes are one hill. The points forget where they began, and "
           "lowering the noise slowly leaves about 80 % in the large mode.")
