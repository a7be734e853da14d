"""Distances between two sets of features: Frechet's, which takes each for a Gaussian, and a kernel's.

Frechet: Heusel et al., 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6.  With features of an
Inception network it is called FID; here they are those of a probe, so the numbers compare with one another
only.  Small samples lie farther from any other than large ones do: compare at equal numbers of samples, and
beside the distance of as many real ones, or extrapolate (Chong & Forsyth, 2020, arXiv:1911.07023).
Kernel: Binkowski et al., 2018, "Demystifying MMD GANs", arXiv:1801.01401, called KID; it has no such bias.
"""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Statistics = tuple[Tensor, Tensor]  # mean [D] and covariance [D, D], float64


def statistics(features: Tensor) -> Statistics:
    """Mean [D] and covariance [D, D] of features [N, D], in float64; a ValueError if N < 2 or one is NaN."""
    if features.ndim != 2 or len(features) < 2 or not features.numel():
        raise ValueError(f"features of shape {tuple(features.shape)} must be [N, D] with N of two at least; "
                         "flatten what is not a vector, and draw more samples if there are too few")
    features = finite(features).double()
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


class Moments:
    """Statistics of features that come a few at a time, [N, D] each, or from several machines; in float64."""

    def __init__(self, dim: int):
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)                      # (n - 1) covariance

    def update(self, features: Tensor) -> "Moments":
        """Take in features [N, D], N of any size; a ValueError if they have another D or one is NaN."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features of shape {tuple(features.shape)} must be [N, {len(self.mean)}]; "
                             "flatten what is not a vector, or make Moments of another dim")
        part = Moments(len(self.mean))
        if len(features):
            features = finite(features).cpu().double()
            part.n, part.mean = len(features), features.mean(0)
            part.scatter = (features - part.mean).T @ (features - part.mean)
        return self.merge(part)

    def merge(self, other: "Moments") -> "Moments":
        """Take in what another has seen (Chan et al., 1979)."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"moments of {len(self.mean)} and of {len(other.mean)} dimensions cannot be "
                             "merged; take both from the same layer")
        n, apart = self.n + other.n, other.mean - self.mean
        if other.n:
            self.scatter = self.scatter + other.scatter + self.n * other.n / n * apart.outer(apart)
            self.n, self.mean = n, self.mean + other.n / n * apart
        return self

    def statistics(self) -> Statistics:
        """Mean [D] and covariance [D, D]; a ValueError if fewer than two samples were seen."""
        if self.n < 2:
            raise ValueError(f"a covariance needs two samples at least, and these are moments of {self.n}; "
                             "update them with features first")
        return self.mean, self.scatter / (self.n - 1)


def frechet_distance(a: Tensor | Statistics | Moments, b: Tensor | Statistics | Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets: features [N, D], statistics or moments.

    The trace of the root is the sum of the singular values of S1^(1/2) S2^(1/2), which is exact for singular
    covariances too.
    """
    (mean1, cov1), (mean2, cov2) = (checked(*of(x)) for x in (a, b))
    if mean1.shape != mean2.shape:
        raise ValueError(f"features of {len(mean1)} and of {len(mean2)} dimensions cannot be compared; "
                         "take both from the same layer")
    root = torch.linalg.svdvals(square_root(cov1) @ square_root(cov2)).sum()
    return ((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root).clamp_min(0).item()


def bias(n: int, dim: int) -> float:
    """The Frechet distance to expect of n samples and n others of one whitened Gaussian of dim dimensions.

    The means differ by 2 dim / n, the covariances contribute dim (dim + 1) / 2n; good from n = 2 dim on.
    """
    if n < 2:
        raise ValueError(f"n={n} must be at least 2")
    return dim * (dim + 5) / (2 * n)


def extrapolated(a: Tensor, b: Tensor, sizes: Sequence[int] | None = None, seed: int = 0) -> float:
    """The Frechet distance of features [N, D] and [M, D] if there were infinitely many of both.

    A line through distance against 1/n, for n an eighth, a quarter, half and all of the smaller set unless
    other sizes are given; as many disjoint subsets of each size as there are.  May be slightly negative.
    """
    most = min(len(a), len(b))
    sizes = sorted(sizes if sizes is not None else {most // parts for parts in (8, 4, 2, 1)})
    if len(set(sizes)) < 2 or sizes[0] < 2 * a.shape[1] or sizes[-1] > most:
        raise ValueError(f"sizes={list(sizes)} must be two different numbers at least, from "
                         f"2 D = {2 * a.shape[1]}, where the bias goes as 1/n, to the {most} samples that "
                         "both sets have; draw more samples if there are too few")
    generator = torch.Generator().manual_seed(seed)
    a, b = (x[torch.randperm(len(x), generator=generator)[:most].to(x.device)] for x in (a, b))
    distances = [sum(frechet_distance(a[n * i:n * i + n], b[n * i:n * i + n]) for i in range(most // n))
                 / (most // n) for n in sizes]
    x, y = 1 / torch.tensor(sizes).double(), torch.tensor(distances).double()
    slope = ((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of features [N, D] and [M, D], k = (x.y / D + 1)^3.

    Its mean is 0 for samples of one distribution, at any N, so that it may be slightly negative.
    """
    statistics(a), statistics(b)                               # the same demands
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared; "
                         "take both from the same layer")
    a, b = a.detach().double(), b.detach().double().to(a.device)
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    within = lambda k: (k.sum() - k.trace()) / (len(k) * (len(k) - 1))                 # no sample with itself
    return (within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean()).item()


def kernel_distances(a: Tensor, b: Tensor, subsets: int = 50, size: int = 300, seed: int = 0
                     ) -> tuple[float, float]:
    """Mean and standard deviation of the kernel distance over random subsets of `size` of each set: KID."""
    if not 2 <= size <= min(len(a), len(b)) or subsets < 2:
        raise ValueError(f"size={size} must be in 2 ... {min(len(a), len(b))}, the samples that both sets "
                         f"have, and subsets={subsets} at least 2")
    generator = torch.Generator().manual_seed(seed)
    some = lambda x: x[torch.randperm(len(x), generator=generator)[:size].to(x.device)]
    found = torch.tensor([kernel_distance(some(a), some(b)) for _ in range(subsets)], dtype=torch.float64)
    return found.mean().item(), found.std().item()


def bootstrap(metric: Callable, a: Tensor, b: Tensor | Statistics | Moments, resamples: int = 20,
              seed: int = 0) -> tuple[float, float]:
    """metric(a, b), and its standard deviation over fresh draws of the samples a [N, ...]; b stays as it is.

    The spread over random halves of a estimates it without a factor: a half differs from the whole by as
    much as the whole does from the truth.  Drawing with replacement would repeat samples, and a metric may
    see that.  With 20 resamples the spread is known to 16 %; near the floor of a distance it is a third high.
    """
    if len(a) < 4 or resamples < 2:
        raise ValueError(f"a has {len(a)} samples and resamples={resamples}; there must be 4 and 2 at least")
    generator = torch.Generator().manual_seed(seed)
    half = lambda: a[torch.randperm(len(a), generator=generator)[:len(a) // 2].to(a.device)]
    found = torch.tensor([float(metric(half(), b)) for _ in range(resamples)], dtype=torch.float64)
    return float(metric(a, b)), found.std().item()


def finite(features: Tensor) -> Tensor:
    """Features without gradient, or a ValueError if one is NaN or infinite."""
    if not features.isfinite().all():
        broken = (~features.isfinite()).any(1).sum().item()
        raise ValueError(f"features of {broken} of {len(features)} samples are not finite; look at these "
                         "samples before measuring a distance")
    return features.detach()


def of(x: Tensor | Statistics | Moments) -> Statistics:
    """The statistics of features, of moments, or themselves."""
    return statistics(x) if isinstance(x, Tensor) else x.statistics() if isinstance(x, Moments) else x


def checked(mean: Tensor, covariance: Tensor) -> Statistics:
    """Statistics in float64, or a ValueError."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"a mean of shape {tuple(mean.shape)} and a covariance of {tuple(covariance.shape)} "
                         "must be [D] and [D, D]; statistics(features) returns such")
    return mean.cpu().double(), covariance.cpu().double()


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric root of a symmetric positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT
