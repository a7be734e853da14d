import pytest
import torch
from conftest import wake
from torch import nn

from diffusion_course.layers.attention import FrameAttention
from diffusion_course.layers.embeddings import ScalarEmbedding
from diffusion_course.layers.spacetime import Frames, TemporalConv
from diffusion_course.networks.unet import UNet, Unit, Upsample


class Tokens(nn.Module):
    """A stand-in for a text encoder."""

    dim = 12

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 12)

    def forward(self, text):
        return self.table(text)


def label(dim):
    return nn.Embedding(11, dim)


def small(**kwargs):
    return wake(UNet(**{"width": 16, "multipliers": (1, 2), "attend": (False, True)} | kwargs)).eval()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("patch", [1, 2])
def test_shapes(channels, patch):
    for x in (torch.randn(2, channels, 16, 24), torch.randn(2, channels, 3, 16, 16)):
        assert small(channels=channels, patch=patch)(x, torch.rand(2)).shape == x.shape
    net = small(channels=channels, out_channels=2 * channels, patch=patch)
    assert net(torch.randn(2, channels, 16, 16), torch.rand(2)).shape == (2, 2 * channels, 16, 16)


def test_it_starts_by_predicting_zero():
    assert not UNet(width=16)(torch.randn(1, 1, 16, 16), torch.rand(1)).any()


@pytest.mark.parametrize("layer", [FrameAttention, TemporalConv])
def test_a_one_frame_video_is_an_image(layer):
    net, x, t = small(temporal=layer), torch.randn(2, 1, 16, 16), torch.rand(2)
    torch.testing.assert_close(net(x, t), net(x[:, :, None], t)[:, :, 0])


def test_without_temporal_layers_a_video_is_its_frames():
    net, x, t = small(), torch.randn(2, 1, 3, 16, 16), torch.rand(2)
    torch.testing.assert_close(net(x, t)[:, :, 1], net(x[:, :, 1], t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [FrameAttention, TemporalConv])
def test_a_filled_time_slot_starts_as_the_image_model(layer):
    net, x, t = small(), torch.randn(2, 1, 3, 16, 16), torch.rand(2)
    before = net(x, t)
    new = net.add_temporal(layer)
    torch.testing.assert_close(net(x, t), before, rtol=1e-4, atol=1e-5)
    for module in new:
        wake(module)
    assert not torch.allclose(net(x, t), before)


@pytest.mark.parametrize("layer", [FrameAttention, TemporalConv])
def test_frames_mix_within_a_video_and_never_across_the_batch(layer):
    net, x, t = small(temporal=layer), torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    moved = x.clone()
    moved[0, :, 3] = torch.randn(1, 16, 16)
    change = (net(moved, t) - net(x, t)).abs().amax((1, 3, 4))            # [B, F]
    assert (change[0] > 1e-4).all() and (change[1] < 1e-6).all()


def test_shared_time_is_per_frame_time():
    net, x, t = small(temporal=FrameAttention), torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    torch.testing.assert_close(net(x, t), net(x, t[:, None].expand(2, 4)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(x, t), net(x, t[:, None]), rtol=1e-4, atol=1e-5)


def test_each_frame_has_its_own_time():
    net, x, t = small(), torch.randn(2, 1, 4, 16, 16), torch.rand(2, 4)
    later = t.clone()
    later[1, 2] += 0.3
    change = (net(x, later) - net(x, t)).abs().amax((1, 3, 4))
    expected = torch.zeros(2, 4, dtype=torch.bool)
    expected[1, 2] = True
    assert torch.equal(change > 1e-4, expected)


@pytest.mark.parametrize("time", [torch.rand(2), torch.rand(2, 1), torch.rand(2, 4)])
def test_the_first_door_per_sample_and_per_frame(time):
    net = small(embed={"label": label, "motion": ScalarEmbedding})
    x, y = torch.randn(2, 1, 4, 16, 16), torch.tensor([1, 2])
    out = net(x, time, label=y, motion=torch.rand(2))
    assert out.shape == x.shape
    m = torch.rand(2, 4)
    moved = m.clone()
    moved[0, 1] += 0.5
    change = (net(x, time, label=y, motion=moved) - net(x, time, label=y, motion=m)).abs().amax((1, 3, 4))
    expected = torch.zeros(2, 4, dtype=torch.bool)
    expected[0, 1] = True
    assert torch.equal(change > 1e-4, expected)


def test_the_second_door():
    net, x, t = small(tokens={"text": Tokens()}), torch.randn(2, 1, 3, 16, 16), torch.rand(2)
    text, other = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 2, 3], [4, 0, 1]])
    change = (net(x, t, text=text) - net(x, t, text=other)).abs().amax((1, 3, 4))
    assert (change[0] == 0).all() and (change[1] > 1e-5).all()


@pytest.mark.parametrize("patch", [1, 2])
def test_the_third_door(patch):
    net = small(stack={"frame": 1, "mask": 1}, patch=patch)
    x, t = torch.randn(2, 1, 3, 16, 16), torch.rand(2)
    frame, mask = torch.randn(2, 1, 16, 16), torch.rand(2, 1, 3, 16, 16)
    out = net(x, t, frame=frame, mask=mask)                    # an image is seen by all frames
    change = (net(x, t, frame=frame + 1, mask=mask) - out).abs().amax((1, 3, 4))
    assert (change > 1e-4).all()
    moved = mask.clone()
    moved[0, :, 2] += 1
    change = (net(x, t, frame=frame, mask=moved) - out).abs().amax((1, 3, 4)) > 1e-4
    assert change.tolist() == [[False, False, True], [False, False, False]]
    assert net(x, t, frame=torch.randn(2, 1, 8, 8), mask=mask).shape == x.shape        # resized
    with pytest.raises(ValueError, match="frame must have 1 channels"):
        net(x, t, frame=torch.randn(2, 3, 16, 16), mask=mask)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_condition_added_to_a_trained_network_is_ignored_at_first(patch):
    net, x, t = small(patch=patch), torch.randn(2, 1, 16, 16), torch.rand(2)
    before = net(x, t)
    net.add_stack("small", 1)
    torch.testing.assert_close(net(x, t, small=torch.randn(2, 1, 8, 8)), before, rtol=1e-4, atol=1e-5)
    net.conv_in.weight.data += 0.1
    assert not torch.allclose(net(x, t, small=torch.randn(2, 1, 8, 8)), before)


@pytest.mark.parametrize("doors, right", [
    ({}, {}),
    ({"embed": {"label": label}}, {"label": torch.tensor([1, 2])}),
    ({"tokens": {"text": Tokens()}}, {"text": torch.ones(2, 3).long()}),
    ({"stack": {"frame": 1}}, {"frame": torch.zeros(2, 1, 16, 16)})])
def test_missing_and_surplus_conditions_raise(doors, right):
    """A trap of the prototype: a network built without text ignored it."""
    net, x, t = small(**doors), torch.randn(2, 1, 16, 16), torch.rand(2)
    net(x, t, **right)
    surplus = [{**right, name: torch.ones(2, 3).long()}
               for name in ("text", "label", "lable") if name not in right]
    for wrong in surplus + ([{}] if right else []):
        with pytest.raises(ValueError, match="takes the conditions"):
            net(x, t, **wrong)


@pytest.mark.parametrize("x, t, message", [
    (torch.zeros(2, 3, 16, 16), torch.zeros(2), r"expected images \[B, 1, H, W\]"),
    (torch.zeros(2, 16, 16), torch.zeros(2), "expected images"),
    (torch.zeros(2, 1, 15, 16), torch.zeros(2), "multiples of 2"),
    (torch.zeros(2, 1, 16, 16), torch.zeros(3), r"t must be \[B\]"),
    (torch.zeros(2, 1, 16, 16), torch.tensor(0.0), r"t must be \[B\]"),
    (torch.zeros(2, 1, 4, 16, 16), torch.zeros(2, 3), "the input has 4 frames"),
    (torch.zeros(2, 1, 16, 16), torch.zeros(2, 3), "the input has 1 frames")])
def test_wrong_shapes_are_named(x, t, message):
    with pytest.raises(ValueError, match=message):
        small()(x, t)


@pytest.mark.parametrize("kwargs, message", [
    ({"width": 20}, "multiple of 8"), ({"width": -8}, "multiple of 8"),
    ({"attend": (True,)}, r"attend=\(True,\) needs one entry for each of the 2 levels"),
    ({"units": (1, 1, 1)}, r"units=\(1, 1, 1\) needs one entry for each of the 2 levels")])
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_geometry_reaches_the_temporal_layers():
    net, x, t = small(temporal=FrameAttention), torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    for module in net.modules():
        if isinstance(module, FrameAttention):
            module.bias.table.data.normal_()
    plain = net(x, t)
    torch.testing.assert_close(net(x, t, frames=Frames(4, index=torch.arange(4).expand(2, 4))), plain)
    spread = net(x, t, frames=Frames(4, index=torch.tensor([[0, 1, 2, 3], [0, 5, 9, 20]])))
    torch.testing.assert_close(spread[0], plain[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(spread[1], plain[1], atol=1e-4)
    with pytest.raises(ValueError, match="count=3"):
        net(x, t, frames=Frames(3))


def test_convolutions_are_channels_last():
    net = UNet(width=16)
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in net.modules()
               if isinstance(m, nn.Conv2d))


def test_units_per_level():
    """One more on the way up."""
    for part, counts in (("down", (1, 3)), ("up", (2, 4))):
        units = [m.channels for m in getattr(small(units=(1, 3)), part) if isinstance(m, Unit)]
        assert (units.count(16), units.count(32)) == counts
    one, two = (UNet(width=16, units=units).state_dict() for units in (2, (2, 2, 2)))
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in two.items()}


# ---- the efficient one (Imagen, app. B)

@pytest.mark.parametrize("efficient, factor", [(False, 4), (True, 8)])
@pytest.mark.parametrize("patch", [1, 2])
def test_the_efficient_one_halves_once_more(efficient, factor, patch):
    net = small(multipliers=(1, 2, 2), attend=(False, False, True), units=(1, 1, 2), efficient=efficient,
                patch=patch, out_channels=2)
    factor *= patch
    assert net.factor == factor
    for shape in ((2, 1, factor, 2 * factor), (2, 1, 3, 2 * factor, factor)):
        assert net(torch.randn(shape), torch.rand(2)).shape == (2, 2, *shape[2:])
    with pytest.raises(ValueError, match=f"multiples of {factor}, got"):
        net(torch.randn(2, 1, factor, 3 * factor // 2), torch.rand(2))
    assert not UNet(width=16, efficient=True)(torch.randn(1, 1, 16, 16), torch.rand(1)).any()


@pytest.mark.parametrize("efficient, scale, sizes", [(False, 1.0, [16, 8]), (True, 0.5**0.5, [8, 4])])
def test_what_a_unit_on_the_way_up_gets(efficient, scale, sizes):
    """What comes from below, and a skip from the way down, scaled; each skip once, the last one first."""
    net, skips, taken, seen = small(efficient=efficient, units=2), [], [], []
    for module in (net.conv_in, *net.down):
        module.register_forward_hook(lambda module, args, out: skips.append(out))
    for module in (*net.middle, *net.up):
        module.register_forward_hook(lambda module, args, out: seen.append(out))
    for module in net.up:
        if isinstance(module, Unit):
            module.register_forward_pre_hook(lambda module, args: taken.append((seen[-1], args[0])))
    net(torch.randn(2, 1, 16, 16), torch.rand(2))
    skips = skips[efficient:]                                  # at full resolution nobody takes one
    assert len(taken) == len(skips) == 6 and sorted({skip.shape[-1] for skip in skips})[::-1] == sizes
    for (below, got), skip in zip(taken, reversed(skips)):
        torch.testing.assert_close(got, torch.cat([below, scale * skip], 1))


@pytest.mark.parametrize("efficient, sizes", [(False, [16, 8]), (True, [8, 4])])
def test_the_efficient_one_works_below_full_resolution(efficient, sizes):
    net, seen = small(efficient=efficient), []
    for module in net.modules():
        if isinstance(module, Unit):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-1]))
    net(torch.randn(2, 1, 16, 16), torch.rand(2))
    assert sorted(set(seen))[::-1] == sizes
    assert isinstance(net.up[-1], Upsample) == efficient       # it doubles after the units of a level


def test_the_efficient_one_reads_conditions_and_frames():
    net = small(efficient=True, temporal=FrameAttention, embed={"noised": ScalarEmbedding},
                stack={"small": 1})
    x, t, noised, image = torch.randn(2, 1, 16, 16), torch.rand(2), torch.rand(2), torch.randn(2, 1, 4, 4)
    out = net(x, t, noised=noised, small=image)
    torch.testing.assert_close(net(x[:, :, None], t, noised=noised, small=image)[:, :, 0], out)
    more = torch.tensor([0.0, 0.5])
    for other in ({"noised": noised + more, "small": image},
                  {"noised": noised, "small": image + more.view(2, 1, 1, 1)}):
        change = (net(x, t, **other) - out).abs().amax((1, 2, 3))
        assert change[0] < 1e-6 and change[1] > 1e-5
