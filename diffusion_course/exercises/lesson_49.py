"""Lesson 49, metrics: a kernel distance without bias, moments in pieces, how many samples to draw."""
import torch

from ..classroom.exercise import Exercise, Question, Wrong, tensor, unpack
from ..evaluation.frechet import bootstrap, frechet_distance, statistics


# 49.1 -----------------------------------------------------------------------------------------------------
def kid(x, y):
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    within = lambda k: (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))        # no sample with itself
    return within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean()


def check_kid(answer, g):
    draw = lambda n, d: torch.randn(n, d, generator=g)
    found = torch.stack([one_number(answer(draw(16, 6), draw(24, 6))) for _ in range(200)])
    mean, error = found.mean(), found.std() / len(found) ** 0.5
    if not mean.abs() <= 3 * error:
        raise Wrong(f"Over 200 pairs of sets, both of the same Gaussian, its mean is {mean:.2g}: "
                    f"{(mean / error).abs():.0f} standard errors from 0.")
    for n, m, d in ((5, 7, 2), (9, 4, 3)):
        x, y = draw(n, d), 1 + 1.5 * draw(m, d)
        got, want = one_number(answer(x, y)), pair_by_pair(x.tolist(), y.tolist())
        if not abs(got - want) < 1e-3 * max(1, abs(want)):
            raise Wrong(f"Its mean for sets of one distribution is 0, as it should be. But for {n} and {m} "
                        f"samples of two different ones it is {got:.4g}, and should be {want:.4g}.")


def one_number(value):
    out = tensor(value, (), "What it returns")
    if out.ndim:
        raise Wrong(f"What it returns should be one number, but has shape {list(out.shape)}.")
    return out.double()


def pair_by_pair(x, y):
    """The estimate of two lists of points, a pair at a time."""
    kernel = lambda a, b: (sum(p * q for p, q in zip(a, b)) / len(a) + 1) ** 3
    within = lambda z: [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    mean = lambda values: sum(values) / len(values)
    return mean(within(x)) + mean(within(y)) - 2 * mean([kernel(a, b) for a in x for b in y])


def cubes(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def with_itself(x, y):
    return cubes(x, x).mean() + cubes(y, y).mean() - 2 * cubes(x, y).mean()


def over_all_pairs(x, y):
    within = lambda k: (k.sum() - k.diagonal().sum()) / len(k) ** 2
    return within(cubes(x, x)) + within(cubes(y, y)) - 2 * cubes(x, y).mean()


def never_negative(x, y):
    return kid(x, y).clamp_min(0)


def cross_once(x, y):
    return kid(x, y) + cubes(x, y).mean()


def not_by_d(x, y):
    return kid(x * x.shape[1] ** 0.5, y * x.shape[1] ** 0.5)


def squared(x, y):
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 2
    within = lambda k: (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))
    return within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean()


def without_one(x, y):
    kernel = lambda a, b: (a @ b.T / a.shape[1]) ** 3
    within = lambda k: (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))
    return within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean()


first = Exercise(
    key="49.1", title="a kernel distance without bias", points=1,
    prompt="x [N, D] and y [M, D] are features. Return the unbiased estimate of E k(x, x') + E k(y, y') - "
           "2 E k(x, y) with k(a, b) = (a.b / D + 1)^3, one number: over many pairs of sets that come from "
           "one distribution its mean must be 0.",
    hints=("x and x' are two different samples. Which pairs of the N x N table of kernel values are of a "
           "sample with itself?",
           "They are on the diagonal, and their kernel is large: (|x|^2 / D + 1)^3. Leave them out of the "
           "sum, and count the pairs that remain. In the table of x against y nothing has to go.",
           "With k the table of x against x: (k.sum() - k.diagonal().sum()) / (N * (N - 1)). The same for y, "
           "minus twice the mean of the table of x against y."),
    check=check_kid, solution=kid,
    why="Each of the three means runs over pairs of independent samples, so each is right on average, and so "
        "is their sum. An estimate that is right on average at 0 must be negative half of the time.",
    wrong=(
        (with_itself,
         "Pairs of a sample with itself are in the mean, and are the largest of all. Leave out the diagonal "
         "of both tables of a set against itself."),
        (over_all_pairs,
         "The diagonal is out of the sum, but still counted: N (N - 1) pairs remain, not N^2."),
        (never_negative,
         "Estimates below 0 are cut off, which lifts the mean. A squared distance is never negative, but an "
         "unbiased estimate of it must be, now and then."),
        (cross_once,
         "The table of x against y is subtracted once; it must be subtracted twice, as in (a - b)^2."),
        (not_by_d,
         "The product is not divided by D. In many dimensions the cube would then drown everything else."),
        (squared, "The kernel is squared; KID takes the third power, so that it sees skewness, too."),
        (without_one,
         "The kernel lacks its + 1. Without it only the third moments are compared, not mean and "
         "covariance.")))


# 49.2 -----------------------------------------------------------------------------------------------------
def merge(n1, mean1, scatter1, n2, mean2, scatter2):
    n, apart = n1 + n2, mean2 - mean1
    mean = mean1 + n2 / n * apart
    scatter = scatter1 + scatter2 + n1 * n2 / n * torch.outer(apart, apart)
    return torch.as_tensor(n), mean, scatter


def check_merge(answer, g):
    for dim, far in ((3, 1.0), (5, 1e4)):
        sizes = [int(n) for n in torch.randperm(40, generator=g)[:6] + 2]
        sizes.insert(int(torch.randint(1, 6, (), generator=g)), 1)             # seven, and one has one sample
        mixing = torch.randn(dim, dim, generator=g).double()
        chunks = [far + 2 * torch.randn(dim, generator=g) + torch.randn(n, dim, generator=g).double() @ mixing
                  for n in sizes]
        so_far = of(chunks[0])
        for k in range(1, 7):
            so_far = merged(answer(*so_far, *of(chunks[k])), dim)
            matches(so_far, of(torch.cat(chunks[:k + 1])), f"After chunk {k + 1} of 7, of {sizes[k]} samples")
        halves = torch.cat(chunks[:3]), torch.cat(chunks[3:])
        both = merged(answer(*of(halves[1]), *of(halves[0])), dim)
        matches(both, of(torch.cat(halves)), "With the larger part first")


def of(x):
    """n, mean and scatter of x [n, dim] in one pass."""
    centred = x - x.mean(0)
    return len(x), x.mean(0), centred.T @ centred


def merged(out, dim):
    n, mean, scatter = unpack(out, "n", "mean", "scatter")
    n = exact(n, (), "n")
    if n.ndim:
        raise Wrong(f"n should be one number, but has shape {list(n.shape)}.")
    return n.item(), exact(mean, (dim,), "The mean"), exact(scatter, (dim, dim), "The scatter")


def exact(value, shape, what):
    """A tensor; numbers in lists keep all their digits."""
    try:
        value = torch.tensor(value, dtype=torch.float64) if isinstance(value, (float, list)) else value
    except (TypeError, ValueError):
        pass
    return tensor(value, shape, what).double()


def matches(got, want, when):
    if got[0] != want[0]:
        raise Wrong(f"{when}, n is {got[0]:g}; it should be {want[0]}.")
    for part, true, name in zip(got[1:], want[1:], ("the mean", "the scatter")):
        off = ((part - true).abs() / true.abs().clamp_min(1)).max()
        if off > 1e-10:
            raise Wrong(f"{when}, {name} is off by {off:.1e}, relative to 1 or its size; 1e-10 is allowed.")


def mean_of_means(n1, mean1, scatter1, n2, mean2, scatter2):
    n, _, scatter = merge(n1, mean1, scatter1, n2, mean2, scatter2)
    return n, (mean1 + mean2) / 2, scatter


def other_weights(n1, mean1, scatter1, n2, mean2, scatter2):
    n, _, scatter = merge(n1, mean1, scatter1, n2, mean2, scatter2)
    return n, (n2 * mean1 + n1 * mean2) / (n1 + n2), scatter


def only_added(n1, mean1, scatter1, n2, mean2, scatter2):
    n, mean, _ = merge(n1, mean1, scatter1, n2, mean2, scatter2)
    return n, mean, scatter1 + scatter2


def unweighted(n1, mean1, scatter1, n2, mean2, scatter2):
    n, mean, _ = merge(n1, mean1, scatter1, n2, mean2, scatter2)
    return n, mean, scatter1 + scatter2 + torch.outer(mean2 - mean1, mean2 - mean1)


def not_divided(n1, mean1, scatter1, n2, mean2, scatter2):
    n, mean, _ = merge(n1, mean1, scatter1, n2, mean2, scatter2)
    return n, mean, scatter1 + scatter2 + n1 * n2 * torch.outer(mean2 - mean1, mean2 - mean1)


def as_covariance(n1, mean1, scatter1, n2, mean2, scatter2):
    n, mean, scatter = merge(n1, mean1, scatter1, n2, mean2, scatter2)
    return n, mean, scatter / (n - 1)


def by_squares(n1, mean1, scatter1, n2, mean2, scatter2):
    n, mean, _ = merge(n1, mean1, scatter1, n2, mean2, scatter2)
    squares = scatter1 + n1 * torch.outer(mean1, mean1) + scatter2 + n2 * torch.outer(mean2, mean2)
    return n, mean, squares - n * torch.outer(mean, mean)


second = Exercise(
    key="49.2", title="moments that come in pieces", points=2,
    prompt="Two sets of features have been seen, apart: n samples each (an int), their mean [D], and their "
           "scatter [D, D], the sum of (x - mean)(x - mean)^T over the samples. Return n, mean and scatter "
           "of both together. Merging seven uneven chunks, one after the other, must give what one pass "
           "gives, to 1e-10, also where the mean is 10,000 times the spread.",
    hints=("The mean of both is the mean of all samples: each of the two means counts as often as it has "
           "samples.",
           "The scatters are taken about two different means. If both sets were single points, what would "
           "the scatter of the two be? It depends on mean2 - mean1 only.",
           "scatter = scatter1 + scatter2 + n1 * n2 / (n1 + n2) * torch.outer(apart, apart), with apart = "
           "mean2 - mean1. And mean = mean1 + n2 / (n1 + n2) * apart."),
    check=check_merge, solution=merge,
    why="Moving a scatter from its own mean to another adds n times the square of the distance. The new mean "
        "is n2 / n of the way from the first and n1 / n from the second, and n1 (n2 / n)^2 + n2 (n1 / n)^2 "
        "is n1 n2 / n. Only differences occur, so that a large mean costs no digits.",
    wrong=(
        (by_squares,
         "The formula is right, but it loses digits: it goes by raw second moments, or by less than double "
         "precision. Where the mean is large, two huge numbers are subtracted. Use mean2 - mean1 instead."),
        (mean_of_means,
         "That is the mean of the two means. The chunks are uneven: each mean counts as often as it has "
         "samples."),
        (other_weights,
         "The weights of the means have changed places: the larger chunk must pull the mean to itself."),
        (only_added,
         "The scatters are added, but each is about its own mean. What is missing is how far the two means "
         "are apart."),
        (unweighted,
         "The distance of the means counts once, whatever the sizes. Two large chunks have many samples far "
         "from the common mean: the weight is n1 n2 / (n1 + n2)."),
        (not_divided,
         "The weight of the outer product is n1 n2; divide it by n1 + n2. Two single points at distance 1 "
         "have a scatter of 1/2."),
        (as_covariance,
         "That is the covariance. The scatter is not divided by n - 1, which is why a chunk of one sample "
         "has one, too.")))


# 49.3 -----------------------------------------------------------------------------------------------------
SURE, MISSED = 1.96, 1.645  # standard errors that leave 2.5 % on each side, and 5 % on one


def enough(a, b, real):
    real = statistics(real)                                    # once, not for every resample
    far = frechet_distance(a, real) - frechet_distance(b, real)
    spread = sum(bootstrap(frechet_distance, x, real, resamples=100)[1] ** 2 for x in (a, b)) ** 0.5    # at N
    n = torch.tensor(len(a) * (3.605 * spread / far) ** 2).ceil().long()               # 1.96 + 1.645
    return n, torch.tensor(spread * (len(a) / n.item()) ** 0.5)


def check_enough(answer, g):
    for shift, scale, dim in ((0.5, 1.15, 4), (0.45, 1.0, 6), (0.2, 1.06, 3)):
        models = [(shift * torch.randn(dim, generator=g).sign() / dim**0.5, scale),
                  (0.55 * shift * torch.randn(dim, generator=g).sign() / dim**0.5, 1.0)]
        real, *pilots = (typical(torch.randn(4000, dim, generator=g)) for _ in range(3))
        a, b = (mean + std * pilot for (mean, std), pilot in zip(models, pilots))
        n, error = unpack(answer(a, b, real), "n", "error")
        n, error = one_number(n).item(), one_number(error).item()
        if n != round(n) or n < 2:
            raise Wrong(f"n is {n:g}; it is a number of samples, so a whole one, and 2 at least.")
        if n > len(a):
            raise Wrong(f"n is {n:g}, but the {len(a)} samples that are there are already more than enough.")
        power, spread = simulated(models, real, int(n), g)
        if power < 0.75:
            raise Wrong(f"With n = {n:g}, the interval excludes 0 in {power:.0%} of 300 simulated "
                        "experiments; 95 % are wanted.")
        if simulated(models, real, int(n) // 2, g)[0] > 0.98:
            raise Wrong(f"With n = {n:g} the two are told apart nearly always, and with half as many, too; "
                        "the smallest n that is enough is wanted.")
        if not 0.7 < error / spread < 1.4:
            raise Wrong(f"n = {n:g} is enough. The standard error of the difference at that n is said to be "
                        f"{error:.3g}; in 300 simulated experiments it is {spread:.3g}.")


def typical(x):
    """Samples x [N, D] with mean 0 and covariance 1 exactly, so that the answer does not depend on luck."""
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T


def simulated(models, real, n, g, experiments=300):
    """How often the interval excludes 0 on the right side, and the standard error, at n samples of each."""
    drawn = [mean + std * torch.randn(experiments, n, len(mean), generator=g) for mean, std in models]
    far = distances(drawn[0], real) - distances(drawn[1], real)
    return (far > SURE * far.std()).double().mean().item(), far.std().item()


def distances(x, real):
    """Frechet distances [E] of the sets x [E, n, D] from real [M, D]."""
    x, real = x.double(), real.double()
    mean, centred = x.mean(1), x - x.mean(1, keepdim=True)
    covariance = centred.mT @ centred / (x.shape[1] - 1)
    values, vectors = torch.linalg.eigh(torch.cov(real.T))
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp_min(0).sqrt().sum(1)
    traces = covariance.diagonal(dim1=1, dim2=2).sum(1) + torch.cov(real.T).trace()
    return (mean - real.mean(0).double()).square().sum(1) + traces - 2 * cross


def pilot(a, b, real):
    """The difference of the distances, and the standard errors of both, at N."""
    real = statistics(real)
    spreads = [bootstrap(frechet_distance, x, real, resamples=100)[1] for x in (a, b)]
    return frechet_distance(a, real) - frechet_distance(b, real), *spreads


def planned(a, factor, spread, far):
    n = torch.tensor(len(a) * (factor * spread / far) ** 2).ceil().long().clamp_min(2)
    return n, torch.tensor(spread * (len(a) / n.item()) ** 0.5)


def without_power(a, b, real):
    far, of_a, of_b = pilot(a, b, real)
    return planned(a, SURE, (of_a**2 + of_b**2) ** 0.5, far)


def not_squared(a, b, real):
    far, of_a, of_b = pilot(a, b, real)
    spread = (of_a**2 + of_b**2) ** 0.5
    n = torch.tensor(len(a) * (SURE + MISSED) * spread / far).ceil().long()
    return n, torch.tensor(spread * (len(a) / n.item()) ** 0.5)


def one_spread(a, b, real):
    far, of_a, of_b = pilot(a, b, real)
    return planned(a, SURE + MISSED, min(of_a, of_b), far)


def without_pilot_size(a, b, real):
    far, of_a, of_b = pilot(a, b, real)
    n = torch.tensor((SURE + MISSED) ** 2 * (of_a**2 + of_b**2) / far**2).ceil().long().clamp_min(2)
    return n, torch.tensor((of_a**2 + of_b**2) ** 0.5)


def error_of_pilot(a, b, real):
    far, of_a, of_b = pilot(a, b, real)
    spread = (of_a**2 + of_b**2) ** 0.5
    return planned(a, SURE + MISSED, spread, far)[0], torch.tensor(spread)


def by_the_floor(a, b, real):
    far, of_a, of_b = pilot(a, b, real)
    n = torch.tensor(a.shape[1] * (a.shape[1] + 5) / 2 / far).ceil().long().clamp_min(2)
    return n, torch.tensor((of_a**2 + of_b**2) ** 0.5 * (len(a) / n.item()) ** 0.5)


def all_of_them(a, b, real):
    far, of_a, of_b = pilot(a, b, real)
    return torch.tensor(len(a)), torch.tensor((of_a**2 + of_b**2) ** 0.5)


third = Exercise(
    key="49.3", title="how many samples tell two models apart", points=3,
    prompt="a and b [N, D] are features of two models, b the better one, and real [M, D] those of real data. "
           "Draw n new samples of each: the difference of their Frechet distances from real, plus and minus "
           "1.96 standard errors, is an interval that should not contain 0. Return the smallest n, a whole "
           "number, for which it excludes 0 in 95 % of such experiments, and the standard error of the "
           "difference at that n. An error that is known to ten percent is good enough.",
    hints=("How large is the difference at N, and its standard error? "
           "bootstrap(frechet_distance, a, real, resamples=100) gives the distance of one model and its "
           "standard error; for a difference, the squares of the errors add up.",
           "A standard error falls like 1 / sqrt(n). The difference hardly changes: both models have about "
           "the same bias.",
           "If the difference were 1.96 standard errors, half of all experiments would fall short of it. For "
           "95 % it must be 1.96 + 1.645 of them: n = N * (3.605 * error_N / difference)^2, and the error at "
           "n is error_N * sqrt(N / n)."),
    check=check_enough, solution=enough,
    why="The measured difference is spread about the true one with the standard error s. It exceeds 1.96 s "
        "in 95 % of all experiments if the true one is 1.645 s larger than that. And s^2 is proportional to "
        "1 / n.",
    wrong=(
        (without_power,
         "Here the difference is 1.96 standard errors, so that the interval just reaches 0 in the middle "
         "case: half of all experiments miss. Add 1.645 standard errors for a power of 95 %."),
        (not_squared,
         "The ratio of error and difference is not squared: half the error takes four times the samples."),
        (one_spread,
         "That is the standard error of one distance. Both models are sampled: the variance of the "
         "difference is the sum of both."),
        (without_pilot_size,
         "The standard error is the one at N, so the ratio squared is n / N: multiply by N."),
        (error_of_pilot,
         "n is right, but the standard error is still the one at N. It grows by sqrt(N / n)."),
        (by_the_floor,
         "That makes the bias as small as the difference. But both models have the same bias, and it "
         "cancels: what hides the difference is the spread."),
        (all_of_them,
         "With all N samples the two can be told apart, but the question is how few would do.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="49.w", title="a prize for the wrong model", points=3,
    prompt="A contest ranks video models by the Frechet distance of frame-probe features that are averaged "
           "over each clip. Model A draws perfect frames in random order. Model B draws perfect motion, "
           "with noise of 0.1 on every frame. (a) Which one wins, and why? (b) Would ten times as many "
           "samples change the ranking? (c) What should the organisers have done before the contest, and "
           "which numbers should they add?",
    rubric=("A wins: a mean over frames does not know their order, so A is at the floor, while these "
            "features see noise and B is above it.",
            "No: more samples lower bias and spread. What the features do not show, they do not show with "
            "any number of samples.",
            "Test the metric with known corruptions, shuffled frames among them, and add something that "
            "sees time: the video probe's distance, the share in order, or the acceleration of centroids."),
    answer="A wins. The average of the features is the same in any order, so A cannot be told from real "
           "clips, while noise of 0.1 is seen at once. More samples make both numbers more exact, and the "
           "ranking stays wrong: blindness is not a matter of n. The organisers should have spoilt real "
           "clips in known ways and looked which of them the metric notices. Features of a video probe, "
           "and plain measures of motion such as the acceleration of a centroid, see what is wrong with A.")
