"""The Frechet distance: how far apart two sets of features are when each is taken for a Gaussian.

Heusel et al., 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6.  With features of an Inception
network it is called FID; here they are those of a probe, so the numbers compare with one another only.
Small samples lie farther from any other than large ones do: compare at equal numbers of samples, and beside
the distance of as many real ones.
"""
import torch
from torch import Tensor

Statistics = tuple[Tensor, Tensor]  # mean [D] and covariance [D, D], float64


def statistics(features: Tensor) -> Statistics:
    """Mean [D] and covariance [D, D] of features [N, D], in float64; a ValueError if N < 2 or one is NaN."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)} must be [N, D] with N of two at least; "
                         "flatten what is not a vector, and draw more samples if there are too few")
    if not features.isfinite().all():
        broken = (~features.isfinite()).any(1).sum().item()
        raise ValueError(f"features of {broken} of {len(features)} samples are not finite; look at these "
                         "samples before measuring a distance")
    features = features.detach().double()
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


def frechet_distance(a: Tensor | Statistics, b: Tensor | Statistics) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of features [N, D] or their statistics.

    The trace of the root is the sum of the singular values of S1^(1/2) S2^(1/2), which is exact for singular
    covariances too.
    """
    (mean1, cov1), (mean2, cov2) = (checked(*(statistics(x) if isinstance(x, Tensor) else x)) for x in (a, b))
    if mean1.shape != mean2.shape:
        raise ValueError(f"features of {len(mean1)} and of {len(mean2)} dimensions cannot be compared; "
                         "take both from the same layer")
    root = torch.linalg.svdvals(square_root(cov1) @ square_root(cov2)).sum()
    return ((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root).clamp_min(0).item()


def checked(mean: Tensor, covariance: Tensor) -> Statistics:
    """Statistics in float64, or a ValueError."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"a mean of shape {tuple(mean.shape)} and a covariance of {tuple(covariance.shape)} "
                         "must be [D] and [D, D]; statistics(features) returns such")
    return mean.double(), covariance.double()


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric root of a symmetric positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT
