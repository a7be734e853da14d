import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from diffusion_course.evaluation.frechet import (
    Moments,
    bias,
    bootstrap,
    extrapolated,
    frechet_distance,
    kernel_distance,
    kernel_distances,
    statistics,
)
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


def test_it_is_the_formula_with_fewer_samples_than_dimensions():
    """There the root of scipy errs by 2e-8; the trace is also the nuclear norm of the samples' products."""
    a, b = cloud(40, 64).double(), cloud(50, 64, seed=1).double()
    x, y = ((c - c.mean(0)) / (len(c) - 1) ** 0.5 for c in (a, b))
    trace = torch.linalg.svdvals(x @ y.T).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(reference(a, b), rel=1e-7)


class Flat(torch.nn.Module):
    """Images [N, 3, 4, 4] as features, for torchmetrics."""

    num_features = 48

    def forward(self, x):
        return x.flatten(1)


def pictures(n=600, seed=0):
    """Two sets of images [N, 3, 4, 4] in [0, 1] that differ a little."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, n, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x[0], x[1] ** 1.3


def test_it_is_that_of_torchmetrics():
    a, b = pictures()
    metric = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert frechet_distance(a.flatten(1), b.flatten(1)) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_the_kernel_distance_is_that_of_torchmetrics():
    a, b = pictures()
    metric = KernelInceptionDistance(feature=Flat(), subsets=50, subset_size=300).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    mean, std = metric.compute()
    found, spread = kernel_distances(a.flatten(1), b.flatten(1))
    assert found == pytest.approx(mean.item(), abs=std.item() / 3)
    assert spread == pytest.approx(std.item(), rel=0.5)
    assert kernel_distance(a.flatten(1), b.flatten(1)) == pytest.approx(found, abs=spread)
    whole = KernelInceptionDistance(feature=Flat(), subsets=2, subset_size=600).set_dtype(torch.float64)
    whole.update(a, real=True)
    whole.update(b, real=False)
    expected = whole.compute()[0].item()
    assert kernel_distance(a.flatten(1), b.flatten(1)) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_three_numbers_and_two():
    a, b = torch.tensor([[0.0], [1], [2]]), torch.tensor([[1.0], [-1]])
    within_a, within_b = 2 * (1 + 1 + 27) / 6, 0               # (x y + 1)^3 of 0 1, 0 2, 1 2; of 1 -1
    between = (1 + 8 + 27 + 1 + 0 - 1) / 6
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average():
    found = torch.tensor([kernel_distance(torch.randn(30, 8), torch.randn(20, 8)) for _ in range(200)])
    assert found.mean().abs() < 2 * found.std() / 200**0.5
    assert (found < 0).any()


def test_the_kernel_distance_sees_what_the_first_two_moments_do_not():
    a = torch.randn(1000, 2)
    skewed = torch.distributions.Exponential(1.0).sample((1000, 2)) - 1
    assert kernel_distance(a, skewed) > 10 * abs(kernel_distance(a, torch.randn(1000, 2)))


def test_subsets():
    a, b = cloud(), cloud(200, seed=1)
    assert kernel_distances(a, b, 10, 100) == kernel_distances(a, b, 10, 100)
    assert kernel_distances(a, b, 10, 100) != kernel_distances(a, b, 10, 100, seed=1)
    with pytest.raises(ValueError, match=r"size=300 must be in 2 ... 200"):
        kernel_distances(a, b)


@pytest.mark.parametrize("shift", [0, 1e4])
def test_moments_of_parts_are_those_of_the_whole(shift):
    x = cloud(1000, 8).double() + shift
    expected = statistics(x)
    sizes = [1, 402, 3, 94, 0, 250, 250]
    for seed in range(3):
        parts = [Moments(8).update(part) for part in x.split(sizes)]
        found = Moments(8)
        for n in torch.randperm(7, generator=torch.Generator().manual_seed(seed)):
            found.merge(parts[n])
        assert found.n == 1000
        for one, other in zip(found.statistics(), expected):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    streamed = Moments(8)
    for part in x.split(37):
        streamed.update(part)
    for one, other in zip(streamed.statistics(), expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_moments_serve_in_place_of_features():
    a, b = cloud(), cloud(seed=1)
    moments = Moments(8).update(a.requires_grad_())
    assert moments.mean.dtype == torch.float64 and not moments.mean.requires_grad
    expected = frechet_distance(a, b)
    assert frechet_distance(moments, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(statistics(b), moments) == pytest.approx(expected, rel=1e-10)


def test_merging_leaves_the_other_alone():
    a, b = Moments(8).update(cloud()), Moments(8).update(cloud(seed=1))
    before = [x.clone() for x in b.statistics()]
    a.merge(b).update(cloud(seed=2))
    Moments(8).merge(b).merge(a)
    assert b.n == 300 and all(torch.equal(x, y) for x, y in zip(b.statistics(), before))


def test_too_few_for_moments():
    with pytest.raises(ValueError, match="two samples at least, and these are moments of 0"):
        Moments(8).merge(Moments(8)).update(torch.zeros(0, 8)).statistics()
    with pytest.raises(ValueError, match="moments of 1"):
        frechet_distance(cloud(), Moments(8).update(cloud()[:1]))
    with pytest.raises(ValueError, match=r"features of shape \(300, 4\) must be \[N, 8\]"):
        Moments(8).update(cloud(d=4))
    with pytest.raises(ValueError, match="moments of 8 and of 4 dimensions"):
        Moments(8).merge(Moments(4))
    with pytest.raises(ValueError, match="features of 1 of 2 samples are not finite"):
        Moments(2).update(torch.tensor([[1.0, 2], [torch.nan, 3]]))


@pytest.mark.parametrize("n, dim, draws, within", [(512, 64, 4, 0.1), (2048, 64, 1, 0.3), (500, 1, 400, 0.15),
                                                   (500, 3, 300, 0.1)])
def test_the_bias(n, dim, draws, within):
    found = [frechet_distance(torch.randn(n, dim), torch.randn(n, dim)) for _ in range(draws)]
    assert sum(found) / draws == pytest.approx(bias(n, dim), rel=within)


def test_extrapolation_takes_the_bias_away():
    a, b = torch.randn(2, 1024, 32)
    b[:, 0] += 1                                               # at a true distance of 1
    assert frechet_distance(a, b) > 1 + 0.7 * bias(1024, 32) > 1.3
    found = [extrapolated(a, b, seed=seed) for seed in range(4)]
    assert sum(found) / 4 == pytest.approx(1, abs=0.2)
    assert found[0] == extrapolated(a, b) == extrapolated(a, b, [128, 256, 512, 1024]) != found[1]
    assert abs(extrapolated(a, torch.randn(1024, 32))) < 0.2 * bias(1024, 32)
    with pytest.raises(ValueError, match="from 2 D = 64, where the bias goes as 1/n, to the 1024 samples"):
        extrapolated(a, b, [32, 1024])
    with pytest.raises(ValueError, match="two different numbers at least"):
        extrapolated(a, b, [512])


@pytest.mark.parametrize("shift", [0, 1.0], ids=["at the floor", "apart"])
@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
def test_the_bootstrap_knows_the_spread(metric, shift):
    real = torch.randn(300, 16)
    draw = lambda: torch.randn(300, 16) * 1.1 + shift * torch.eye(16)[0]
    truth = torch.tensor([metric(draw(), real) for _ in range(100)]).std().item()
    draws = [draw() for _ in range(4)]
    found = [bootstrap(metric, fake, real) for fake in draws]
    assert [value for value, _ in found] == [metric(fake, real) for fake in draws]
    spreads = [spread for _, spread in found]
    assert all(truth / 2 < spread < 2 * truth for spread in spreads), (truth, spreads)
    assert 0.7 * truth < sum(spreads) / 4 < 1.6 * truth
    assert bootstrap(metric, draws[0], real) == found[0] != bootstrap(metric, draws[0], real, seed=1)


def test_a_bootstrap_repeats_no_sample():
    seen = []
    bootstrap(lambda a, b: seen.append(a[:, 0].tolist()) or 0, torch.arange(11.0)[:, None], None, resamples=7)
    assert all(len(a) == len(set(a)) for a in seen) and sorted(map(len, seen)) == 7 * [5] + [11]


def test_too_few_to_bootstrap():
    with pytest.raises(ValueError, match="a has 3 samples and resamples=20"):
        bootstrap(frechet_distance, cloud(3), cloud())


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
    with pytest.raises(ValueError, match="features of 8 and of 4 dimensions"):
        kernel_distance(cloud(), cloud(d=4))
    with pytest.raises(ValueError, match=r"must be \[D\] and \[D, D\]"):
        frechet_distance(cloud(), (torch.zeros(8), torch.zeros(8)))


def test_features_are_what_the_probe_decides_by():
    probe = DigitProbe().eval()
    x = torch.randn(1003, 1, 32, 32)                           # more than one part
    h = features(probe, x)
    assert h.shape == (1003, 512) and not h.requires_grad
    torch.testing.assert_close(probe.head(h).softmax(1), probabilities(probe, x))
