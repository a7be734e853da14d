import pytest
import torch
from torch import nn

from diffusion_course.networks.autoencoder import Autoencoder, PatchDiscriminator, widths


def small(**kwargs):
    return Autoencoder(**{"width": 8} | kwargs).eval()


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("channels, latent", [(1, 4), (3, 2)])
def test_shapes(channels, latent, factor):
    net = small(channels=channels, latent=latent, factor=factor)
    for frames in ((), (3,)):
        x = torch.randn(2, channels, *frames, 16, 24)
        z = net.encode(x)
        assert z.shape == (2, latent, *frames, 16 // factor, 24 // factor)
        assert net.decode(z).shape == x.shape


@pytest.mark.parametrize("randn", [None, torch.ones_like])
def test_a_video_is_encoded_and_decoded_frame_by_frame(randn):
    net = small()
    net.std.fill_(2.5)
    x = torch.randn(2, 1, 3, 16, 16)
    z = net.encode(x, randn)
    y = net.decode(z)
    for f in range(3):
        torch.testing.assert_close(z[:, :, f], net.encode(x[:, :, f], randn), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y[:, :, f], net.decode(z[:, :, f]), rtol=1e-4, atol=1e-5)
    moved = x.clone()
    moved[1, :, 2] += 1
    change = (net.decode(net.encode(moved, randn)) - y).abs().amax((1, 3, 4)) > 1e-5
    assert change.tolist() == [[False, False, False], [False, False, True]]


def test_latents_are_mean_or_sample_over_std():
    net, x, noise = small(), torch.randn(2, 1, 16, 16), torch.randn(2, 4, 4, 4)
    net.std.fill_(2.5)
    mean, logvar = net.moments(x)
    torch.testing.assert_close(net.encode(x), mean / 2.5)
    torch.testing.assert_close(net.encode(x, lambda z: noise), (mean + logvar.exp().sqrt() * noise) / 2.5)
    before = net.decode(net.encode(x))
    net.std.fill_(0.1)                                         # whatever it is, images come back the same
    torch.testing.assert_close(net.decode(net.encode(x)), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.encode(x), 10 * mean)


@pytest.mark.parametrize("bias, kept", [(1000.0, 20.0), (-1000.0, -30.0)])
def test_an_extreme_variance_stays_finite(bias, kept):
    net = small()
    net.encoder[-1].bias.data[4:] = bias                       # the mean comes first
    mean, logvar = net.moments(torch.randn(2, 1, 16, 16))
    assert (logvar == kept).all() and mean.abs().max() < 100


def test_no_convolution_works_at_full_resolution():
    """A claim of its docstring: the first halving is free."""
    net, seen = small(), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[-1]))
    net.decode(net.encode(torch.randn(1, 1, 16, 16)))
    assert set(seen) == {8, 4}


def test_every_pixel_and_every_weight_matters():
    net, x = small(), torch.randn(2, 1, 16, 16, requires_grad=True)
    (net.decode(sum(net.moments(x))) * torch.randn(2, 1, 16, 16)).sum().backward()
    assert (x.grad != 0).all()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.any(), name


def test_widths_of_the_levels():
    assert widths(32, 2) == [32] and widths(32, 16) == [32, 64, 128, 128]
    for factor in (0, 1, 3, 6, -4):
        with pytest.raises(ValueError, match=f"factor={factor} must be a power of two"):
            widths(32, factor)
    for width in (0, 4, 12, -8):
        with pytest.raises(ValueError, match=f"width={width} must be a multiple of 8"):
            small(width=width)


@pytest.mark.parametrize("shape, message", [
    ((2, 3, 16, 16), "expected 1 channels"), ((2, 1, 18, 16), "multiples of 4"),
    ((2, 1, 16, 18), "multiples of 4"), ((2, 3, 2, 16, 16), "expected 1 channels"),
    ((1, 16, 16), r"expected images \[B, C, H, W\] or videos")])
def test_wrong_shapes_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        small().encode(torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_judge_judges_patches_and_shows_what_it_saw(channels):
    judge, x = PatchDiscriminator(channels, width=8), torch.randn(2, channels, 16, 24)
    seen = judge(x)
    assert [h.shape for h in seen] == [(2, 8, 8, 12), (2, 16, 4, 6), (2, 1, 4, 6)]
    for layer, h, out in zip(judge.layers, [x, *seen], seen):
        torch.testing.assert_close(out, layer(h))
    moved = x.clone()
    moved[1] += torch.randn(channels, 16, 24)
    change = (judge(moved)[-1] - seen[-1]).abs().amax((1, 2, 3))
    assert change[0] == 0 and change[1] > 1e-4


def test_convolutions_are_channels_last():
    for net in (small(), PatchDiscriminator()):
        assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in net.modules()
                   if isinstance(m, nn.Conv2d))
