import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from diffusion_course.evaluation.frechet import frechet_distance, statistics
from diffusion_course.evaluation.probes import DigitProbe, features, probabilities


def cloud(n=300, d=8, seed=0, rank=None):
    """Correlated features with a mean, of full rank unless another is asked for."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank or d, generator=generator) @ torch.randn(rank or d, d, generator=generator)
    return x + torch.randn(d, generator=generator)


def reference(a, b):
    """As it is written, with the root of the product of the covariances."""
    a, b = a.double().numpy(), b.double().numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return ((a.mean(0) - b.mean(0))**2).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))


@pytest.mark.parametrize("d", [2, 8, 64])
def test_it_is_the_formula(d):
    a, b = cloud(d=d), cloud(200, d, seed=1)
    assert frechet_distance(a, b) == pytest.approx(reference(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_statistics_are_those_of_numpy_and_serve_in_place_of_features():
    a, b = cloud(), cloud(seed=1)
    mean, covariance = statistics(a)
    assert mean.dtype == covariance.dtype == torch.float64
    torch.testing.assert_close(mean.numpy(), a.double().numpy().mean(0))
    torch.testing.assert_close(covariance.numpy(), np.cov(a.double().numpy(), rowvar=False))
    expected = frechet_distance(a, b)
    assert frechet_distance(statistics(a), statistics(b)) == frechet_distance(a, statistics(b)) == expected


def test_gaussians_whose_distance_is_known():
    """For covariances that commute it is |m1 - m2|^2 + |S1^(1/2) - S2^(1/2)|^2."""
    std1, std2 = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 2.0, 0.0])
    mean = torch.tensor([1.0, -2.0, 2.0])
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    a, b = ((rotation * std**2) @ rotation.T for std in (std1, std2))
    found = frechet_distance((torch.zeros(3), a), (mean, b))
    assert found == pytest.approx(9 + 4 + 0.25, rel=1e-5)
    assert frechet_distance((torch.zeros(1), torch.eye(1)), (torch.ones(1), 4 * torch.eye(1))) == 2


@pytest.mark.parametrize("a", [cloud(), cloud(20, 64), cloud(rank=3), torch.ones(5, 4)],
                         ids=["full", "fewer samples than dimensions", "low rank", "constant"])
def test_a_set_is_at_no_distance_from_itself(a):
    scale = 1 + statistics(a)[1].trace().item()
    assert 0 <= frechet_distance(a, a) < 1e-10 * scale
    assert 0 <= frechet_distance(a, a.flip(0)) < 1e-10 * scale


def test_a_shift_and_a_stretch_are_seen():
    a = cloud()
    shift = torch.zeros(8)
    shift[3] = 0.5
    assert frechet_distance(a, a + shift) == pytest.approx(0.25, rel=1e-5)
    stretched = a.mean(0) + 1.5 * (a - a.mean(0))
    assert frechet_distance(a, stretched) == pytest.approx(0.25 * statistics(a)[1].trace().item(), rel=1e-5)
    shuffled = torch.stack([a[torch.randperm(len(a)), i] for i in range(8)], 1)    # only correlations differ
    assert frechet_distance(a, shuffled) > 1


def test_a_rotation_of_both_changes_nothing():
    a, b = cloud().double(), cloud(seed=1).double()
    rotation = torch.linalg.qr(torch.randn(8, 8).double()).Q
    expected = frechet_distance(a, b)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-9)
    assert abs(frechet_distance(a @ rotation, b) - expected) > 0.01 * expected


def test_single_precision_and_large_means_lose_nothing():
    a, b = cloud(), cloud(seed=1)
    assert frechet_distance(a + 4096, b + 4096) == pytest.approx(frechet_distance(a, b), rel=1e-2)
    assert frechet_distance(a.double() + 4096, b.double() + 4096) == pytest.approx(frechet_distance(a, b))


@pytest.mark.parametrize("shape", [(1, 8), (0, 8), (8,), (4, 2, 2)])
def test_what_is_no_set_of_features(shape):
    with pytest.raises(ValueError, match=r"features of shape .* must be \[N, D\] with N of two at least"):
        frechet_distance(torch.zeros(shape), cloud())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite(value):
    x = cloud()
    x[5, 2] = x[7, 1] = x[7, 2] = value
    with pytest.raises(ValueError, match="features of 2 of 300 samples are not finite"):
        frechet_distance(cloud(), x)


def test_features_of_other_layers():
    with pytest.raises(ValueError, match="features of 8 and of 4 dimensions"):
        frechet_distance(cloud(), cloud(d=4))
    with pytest.raises(ValueError, match=r"must be \[D\] and \[D, D\]"):
        frechet_distance(cloud(), (torch.zeros(8), torch.zeros(8)))


def test_features_are_what_the_probe_decides_by():
    probe = DigitProbe().eval()
    x = torch.randn(1003, 1, 32, 32)                           # more than one part
    h = features(probe, x)
    assert h.shape == (1003, 512) and not h.requires_grad
    torch.testing.assert_close(probe.head(h).softmax(1), probabilities(probe, x))
