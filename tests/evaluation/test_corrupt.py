import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffusion_course.evaluation.corrupt import (
    CORRUPTIONS,
    blur,
    freeze,
    noise,
    repeat,
    reverse,
    shuffle,
    swap,
)


def numbered(frames=16, n=5):
    """Videos [N, 2, F, 3, 4] whose pixels say which video, channel and frame they are of."""
    x = 100.0 * torch.arange(n)[:, None, None] + 1000 * torch.arange(2)[:, None] + torch.arange(frames)
    return x[..., None, None].expand(-1, -1, -1, 3, 4).clone()


def order(x):
    """Which frames videos made of `numbered` ones show, [N, F]; every pixel must agree."""
    n, channels = torch.arange(len(x)), torch.arange(x.shape[1])
    frames = x - 100.0 * n[:, None, None, None, None] - 1000.0 * channels[:, None, None, None]
    assert (frames == frames[:, :1, :, :1, :1]).all()
    return frames[:, 0, :, 0, 0].long()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_nothing_does_nothing_and_each_strength_something_else(name):
    function, strengths = CORRUPTIONS[name]
    x = torch.rand(3, 1, 16, 8, 8) * 2 - 1
    before = x.clone()
    assert strengths[0] == 0 and list(strengths) == sorted(set(strengths))
    results = [function(x, strength) for strength in strengths]
    assert torch.equal(results[0], x)
    assert all(result.shape == x.shape and result.dtype == x.dtype for result in results)
    far = [(result - x).square().mean().item() for result in results]
    assert far == sorted(set(far))                             # ever farther from the original
    assert all(torch.equal(function(x, s), result) for s, result in zip(strengths, results))
    assert torch.equal(x, before)


def test_noise():
    x = torch.zeros(20, 1, 16, 16, 16)
    spoilt = noise(x, 0.2)
    assert spoilt.mean().abs() < 0.005 and spoilt.std().item() == pytest.approx(0.2, rel=0.02)
    assert (spoilt[0, 0, 0] - spoilt[0, 0, 1]).std().item() == pytest.approx(0.2 * 2**0.5, rel=0.2)
    assert not torch.equal(spoilt, noise(x, 0.2, seed=1))
    torch.testing.assert_close(noise(x[:, :, 0] + 1, 0.4) - 1, 2 * noise(x[:, :, 0], 0.2))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_that_of_scipy(sigma):
    x = torch.rand(2, 3, 4, 9, 12) * 2 - 1
    expected = gaussian_filter(x.double().numpy(), (0, 0, 0, sigma, sigma), mode="constant", cval=-1)
    torch.testing.assert_close(blur(x, sigma), torch.from_numpy(expected).float())
    torch.testing.assert_close(blur(x[:, :, 1], sigma), blur(x, sigma)[:, :, 1])
    black = torch.full((1, 1, 2, 8, 8), -1.0)
    torch.testing.assert_close(blur(black, sigma), black)      # no border appears


@pytest.mark.parametrize("fraction, moved", [(0, 0), (0.25, 4), (0.5, 8), (1, 16)])
def test_shuffle_moves_its_fraction_and_loses_none(fraction, moved):
    found = order(shuffle(numbered(), fraction))
    assert ((found != torch.arange(16)).sum(1) == moved).all()
    assert (found.sort(1).values == torch.arange(16)).all()
    if moved:
        assert len({tuple(row) for row in found.tolist()}) == 5                        # each its own way
        assert not torch.equal(found, order(shuffle(numbered(), fraction, seed=1)))


def test_shuffle_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = shuffle(numbered(), 0.5, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, shuffle(numbered(), 0.5, seed=3))


@pytest.mark.parametrize("fraction, last", [(0, 15), (0.25, 11), (0.5, 7), (1, 0)])
def test_freeze(fraction, last):
    assert order(freeze(numbered(), fraction)).tolist() == 5 * [[min(f, last) for f in range(16)]]


def test_orders():
    x = numbered(6)
    assert order(reverse(x))[0].tolist() == [5, 4, 3, 2, 1, 0]
    assert order(repeat(x))[0].tolist() == [0, 0, 2, 2, 4, 4]
    assert order(swap(x))[0].tolist() == [1, 0, 3, 2, 5, 4]
    assert order(swap(numbered(5)))[3].tolist() == [1, 0, 3, 2, 4]
    assert order(repeat(numbered(5)))[3].tolist() == [0, 0, 2, 2, 4]
    assert torch.equal(reverse(reverse(x)), x) and torch.equal(swap(swap(x)), x)


@pytest.mark.parametrize("call, message", [
    (lambda: noise(torch.zeros(1), -0.1), "std=-0.1 must not be negative"),
    (lambda: blur(torch.zeros(1, 1, 4, 4), -1), "sigma=-1 must be from 0 to 1000 pixels"),
    (lambda: shuffle(numbered(), 1.5), "fraction=1.5 must be between 0 and 1"),
    (lambda: freeze(numbered(), -0.5), "fraction=-0.5 must be between 0 and 1"),
    (lambda: freeze(torch.zeros(2, 1, 8, 8), 0.5), r"x of shape \(2, 1, 8, 8\) must be videos")])
def test_what_cannot_be_spoilt(call, message):
    with pytest.raises(ValueError, match=message):
        call()
