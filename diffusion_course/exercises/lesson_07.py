"""Lesson 07, Rectified Flow.  Time 0 is data, except in 7.1, where the paper's clock runs from noise."""
import numpy as np
import torch

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor, unpack


# 7.1 ------------------------------------------------------------------------------------------------------
def to_package(X0, X1, tau, v):
    x0, noise = X1, X0                                         # what is data, and what is noise
    return x0, noise, 1 - tau, -v                              # the clock runs the other way, so does dx/dt


def check_to_package(answer, g):
    for n, d in ((5, 2), (4, 3)):
        X0, X1, v = torch.randn(3, n, d, generator=g)
        tau = 0.1 + 0.3 * torch.rand(n, generator=g)
        x0, noise, t, u = unpack(answer(X0, X1, tau, v), "x0", "noise", "t", "u")
        x0, noise, u = (tensor(a, (n, d), name) for a, name in ((x0, "x0"), (noise, "noise"), (u, "u")))
        t = tensor(t, (n,), "t")
        there, here = X0 + tau[:, None] * (X1 - X0), x0 + t[:, None] * (noise - x0)
        agree(here, there, "The place on the line, (1 - t) x0 + t noise, compared with the paper's X_tau,")
        theirs = (X1 - X0 - v).square().sum(1)                 # eq. 1
        agree((noise - x0 - u).square().sum(1), theirs, "The loss |noise - x0 - u|^2, compared with eq. 1,")
        agree(x0, X1, "x0, which is data,")
        agree(t, 1 - tau, "t, which is 0 at data,")
        agree(u, -v, "u")


first = Exercise(
    key="7.1", title="two clocks", points=1,
    prompt="In the paper X0 [N, D] is noise, X1 [N, D] is data, tau [N] runs from 0 (noise) to 1 (data), and "
           "v [N, D] is its network's guess of dX/dtau. Return the same four things in the package's words, "
           "x0, noise, t and u, where t is 0 at data and u is the guess of dx/dt.",
    hints=("Three things change: which end is called 0, what the time is there, and which way the velocity "
           "points.",
           "At tau = 0 the paper is at noise, and the package's time is 1.",
           "x0 is X1, noise is X0, t is 1 - tau. If t falls while tau rises, then dx/dt is -dX/dtau."),
    check=check_to_package, solution=to_package,
    why="Both name the same point on the same line. dt = -dtau, so the velocity changes its sign, and so "
        "does its target: noise - x0 = -(X1 - X0). The square of the error does not.",
    wrong=(
        (lambda X0, X1, tau, v: (X0, X1, 1 - tau, -v),
         "The 0 in the paper's X0 is its time at noise. The package's x0 is data, which the paper calls X1."),
        (lambda X0, X1, tau, v: (X1, X0, tau, -v),
         "The clock still runs the paper's way: near data tau is near 1, and t should be near 0."),
        (lambda X0, X1, tau, v: (X1, X0, 1 - tau, v),
         "The velocity still points from noise to data. With t running towards noise, dx/dt points the other "
         "way."),
        (lambda X0, X1, tau, v: (X0, X1, tau, v),
         "Nothing has changed yet: in the package x0 is data, and t is 0 there.")))


# 7.2 ------------------------------------------------------------------------------------------------------
def straightness(path, times):
    length = (times[:-1] - times[1:])[:, None, None]           # of each step in time, [K, 1, 1]
    velocity = (path[:-1] - path[1:]) / length                 # dz/dt on each step, [K, N, D]
    mean = (path[0] - path[-1]) / (times[0] - times[-1])       # noise - data, [N, D]
    return ((mean - velocity).square().sum(2) * length[..., 0]).sum(0)         # the integral over t, [N]


def check_straightness(answer, g):
    for n, d, k in ((3, 2, 6), (4, 3, 9)):
        times = uneven(k, g)
        data, noise = torch.randn(2, n, d, generator=g)
        path = data + times[:, None, None] * (noise - data)
        agree(answer(path, times), torch.zeros(n), "The straightness of lines walked at constant speed")
    for n, k in ((5, 12), (3, 30)):
        times, start = uneven(k, g), torch.randn(n, 2, generator=g)
        angle = 2 * (1 - times)[:, None]                       # by two radians in all
        path = torch.stack([angle.cos() * start[:, 0] - angle.sin() * start[:, 1],
                            angle.sin() * start[:, 0] + angle.cos() * start[:, 1]], dim=2)
        found = tensor(answer(path, times), (n,), "The straightness of a rotation")
        if found.min() <= 1e-6:
            raise Wrong(f"Paths that turn are not straight, but S is {found.min():.2g} for one of them.")
        agree(found, straightness(path.double(), times.double()), "The straightness of a rotation")


def uneven(k, g):
    """Times from 1 down to 0 in k steps, some long and some short."""
    length = 0.3 + torch.rand(k, generator=g)
    return 1 - torch.cat([torch.zeros(1), (length / length.sum()).cumsum(0)])


def slopes(path, times):
    return (path[:-1] - path[1:]) / (times[:-1] - times[1:])[:, None, None]


def integral(error, times):
    return (error.square().sum(2) * (times[:-1] - times[1:])[:, None]).sum(0)


second = Exercise(
    key="7.2", title="straightness", points=2,
    prompt="path [K + 1, N, D] holds N paths at the K + 1 times [K + 1], which fall from 1 to 0 in uneven "
           "steps. Take the velocity dz/dt as constant within a step. Return S [N]: for each path the "
           "integral over t of |(noise - data) - dz/dt|^2, where noise is its start and data its end.",
    hints=("On a step, dz/dt is the difference of its two places over the difference of its two times.",
           "The steps are uneven: in the integral each counts by its length in time, times[k] - times[k+1].",
           "velocity = (path[:-1] - path[1:]) / length; then sum over the coordinates the squares of "
           "(path[0] - path[-1]) - velocity, and over the steps that times length."),
    check=check_straightness, solution=straightness,
    why="The mean of dz/dt over the whole way is noise - data, so S is the variance of the velocity along "
        "the path. It is 0 only if the velocity never changes, and then one Euler step is exact.",
    wrong=(
        (lambda path, times: (path[0] - path[-1] - slopes(path, times)).square().sum(2).mean(0),
         "Every step counts the same here, but they are uneven: weight each by its length in time."),
        (lambda path, times: integral(path[-1] - path[0] - slopes(path, times), times),
         "One of the two has the wrong sign: t falls from 1 to 0, and dz/dt points towards noise, as noise - "
         "data does."),
        (lambda path, times: (path[0] - path[-1] - (path[:-1] - path[1:])).square().sum(2).mean(0),
         "A step's displacement is compared with that of the whole way. Divide it by the length of the step "
         "in time: that is the velocity."),
        (lambda path, times: integral(path[0] - path[-1] - slopes(path, times), times) / path.shape[2],
         "|...|^2 is the sum of the squares of the coordinates, not their mean."),
        (lambda path, times: integral(slopes(path, times)[:1] - slopes(path, times), times),
         "The velocity is compared with that of the first step; compare it with noise - data, the way as a "
         "whole.")))


# 7.3 ------------------------------------------------------------------------------------------------------
def pair(x0, noise):
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(noise.flatten(1), x0.flatten(1)).square()               # [B, B]
    _, partner = linear_sum_assignment(cost.cpu().numpy())     # noise i goes with x0[partner[i]]
    return x0[torch.as_tensor(partner, device=x0.device)]


def check_pair(answer, g):
    for shape in ((20, 2), (36, 1, 2, 3), (50, 2)):
        x0, noise = 2 * torch.randn(shape, generator=g), torch.randn(shape, generator=g)
        found = tensor(answer(x0, noise), shape, "What it returns").double().flatten(1)
        apart = torch.cdist(found, x0.double().flatten(1))
        used = apart.argmin(1).unique()
        if apart.amin(1).max() > 1e-3:
            raise Wrong("Some row that it returns is no row of x0; the rows may only change their order.")
        if len(used) < len(x0):
            raise Wrong(f"Of {len(x0)} rows of x0 it uses {len(used)}; each has to be used once, or the data "
                        "change.")
        price, least = cost(found, noise), cost(paired(x0, noise), noise)
        if price > least * (1 + 1e-4):
            raise Wrong(f"The mean of |x0 - noise|^2 is {price:.3f}. For the pairs as they came it is "
                        f"{cost(x0, noise):.3f}, and it can be {least:.3f}.")


def assignment(cost):
    """The Hungarian method (Kuhn 1955) with dual prices: the column of each row, [n], for cost [n, n]."""
    n = len(cost)
    row_price, price = np.zeros(n + 1), np.zeros(n + 1)        # column 0 stands for no column yet
    row_of, before = np.zeros(n + 1, int), np.zeros(n + 1, int)
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least, seen = np.full(n + 1, np.inf), np.zeros(n + 1, bool)
        while True:                                            # the cheapest way to a column that is free
            seen[column] = True
            row_here = row_of[column]
            here = np.concatenate([[np.inf], cost[row_here - 1] - row_price[row_here] - price[1:]])
            better = ~seen & (here < least)
            least[better], before[better] = here[better], column
            column = np.where(seen, np.inf, least).argmin()
            step = least[column]
            row_price[row_of[seen]] += step
            price[seen] -= step
            least[~seen] -= step
            if row_of[column] == 0:
                break
        while column:
            row_of[column], column = row_of[before[column]], before[column]
    return np.argsort(row_of[1:])


def paired(x0, noise, power=2):
    return x0[torch.from_numpy(assignment(distances(x0, noise).double().pow(power).numpy()))]


def cost(x0, noise):
    return (x0.double().flatten(1) - noise.double().flatten(1)).square().sum(1).mean()


def distances(x0, noise):
    return torch.cdist(noise.flatten(1), x0.flatten(1))        # [B, B]: row i is noise i


def greedy(x0, noise):
    apart, partner = distances(x0, noise), []
    for row in apart:
        free = row.index_fill(0, torch.tensor(partner, dtype=torch.long), float("inf"))
        partner.append(free.argmin().item())
    return x0[partner]


def wrong_way(x0, noise):
    return x0[torch.from_numpy(assignment(distances(x0, noise).square().T.numpy()))]     # noise of each x0


def by_first_coordinate(x0, noise):
    order, place = x0.flatten(1)[:, 0].argsort(), noise.flatten(1)[:, 0].argsort()
    out = torch.empty_like(x0)
    out[place] = x0[order]
    return out


third = Exercise(
    key="7.3", title="better pairs before training", points=3,
    prompt="x0 and noise are a batch of B points each, [B, ...]. Return the rows of x0 in another order, "
           "each used once, such that the mean of |x0 - noise|^2 over the pairs of rows is as small as it "
           "can be (best assignment; scipy.optimize.linear_sum_assignment finds it). B is at most 128.",
    hints=("Make the matrix [B, B] of the squared distances between every noise and every x0; points of any "
           "shape become rows by flatten(1).",
           "linear_sum_assignment(cost) returns rows and columns: row i of the matrix goes with column "
           "columns[i].",
           "If the rows of the matrix are the noise and its columns x0, then x0[columns] is the answer."),
    check=check_pair, solution=pair,
    why="Straight lines of an optimal assignment do not cross in the batch, so there is less for the flow to "
        "average: the crossing part of the budget falls before any training. Over batches of B points the "
        "assignment is optimal within the batch only; for larger B it comes closer to the true optimum.",
    wrong=(
        (lambda x0, noise: x0[distances(x0, noise).argmin(1)],
         "Every noise takes its nearest x0, so some x0 are taken twice and others never. An assignment uses "
         "each once."),
        (greedy,
         "First come, first served: the first rows get their nearest x0, and the last ones what is left. The "
         "sum over all pairs should be smallest."),
        (wrong_way,
         "That index says which noise belongs to each x0. Turn it round: which x0 belongs to each noise?"),
        (lambda x0, noise: paired(x0, noise, power=1),
         "This makes the sum of the distances smallest; it should be that of their squares."),
        (by_first_coordinate,
         "Sorting by one coordinate is optimal on a line, but these points have more coordinates than one.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="7.w", title="three percent that matter", points=3,
    prompt="On digits the curvature of 1-RF is 58 of 1992, 3 % of the budget. In the plane it was 1.35 of "
           "5.92, 23 %. Yet on digits, too, one Euler step of 1-RF gives nothing but a blur. (a) Why is "
           "the share so small on digits? (b) Why is the blur the same for every noise, and what does it "
           "show? (c) Why does one step of 2-RF give a digit?",
    rubric=("Nearly all of the budget is transport: in 1024 dimensions noise is far from every image, and "
            "no choice of pairs can save that way.",
            "At t = 1 any digit is possible, so the best velocity is the noise minus the mean of the data, "
            "and one step ends at the mean of all digits.",
            "2-RF was trained on pairs, each noise with its own digit. Its lines hardly cross, so the "
            "velocity at t = 1 leads to that digit, and stays the same on the way."),
    answer="The share is small because the whole is large: every noise has a long way to every image, and "
           "this transport does not depend on which digit is drawn. The few percent that bend decide that. "
           "At the start 1-RF knows nothing of the digit, so its velocity leads from each noise to the "
           "mean of the data, and one step shows this mean every time. For 2-RF each noise has one end. "
           "The first direction leads there already, so one step will do.")
