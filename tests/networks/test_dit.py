import pytest
import torch
from conftest import wake
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.networks.dit import DiT, position


def label(dim):
    return nn.Embedding(11, dim)


def test_it_starts_as_zero_and_every_block_as_the_identity():
    net = DiT(dim=32, depth=2)
    assert not net(torch.randn(2, 1, 16, 16), torch.rand(2)).any()
    h = torch.randn(2, 1, 16, 32)
    assert torch.equal(net.blocks[0](h, torch.randn(2, 1, 1, 32)), h)


def test_the_final_layer_is_modulated():
    """A trap of the prototype: the final adaLN was missing."""
    net = wake(DiT(dim=32, depth=0))
    x = torch.randn(1, 1, 16, 16)
    assert not torch.allclose(net(x, torch.tensor([0.1])), net(x, torch.tensor([0.9])))


def test_modulation_is_computed_per_sample_not_per_token():
    """A trap of the prototype: it was a third of the network's FLOPs."""
    def flops(size, frames=1, time=None):
        net, x = DiT(dim=32, depth=2), torch.randn(2, 1, frames, size, size)
        module = net.blocks[0].modulation
        with FlopCounterMode(display=False, mods=net) as counter:
            net(x, torch.rand(2) if time is None else time)
        name = next(k for k in counter.get_flop_counts() if k.endswith("blocks.0.modulation"))
        assert module.out_features == 6 * 32
        return sum(counter.get_flop_counts()[name].values())

    assert flops(16) == flops(32) == flops(32, frames=4)
    assert flops(32, 4, torch.rand(2, 4)) == 4 * flops(32)


@pytest.mark.parametrize("layouts", [("space", "time"), ("spacetime",)])
def test_a_one_frame_video_is_an_image(layouts):
    net, x, t = wake(DiT(dim=32, layouts=layouts)), torch.randn(2, 1, 16, 16), torch.rand(2)
    torch.testing.assert_close(net(x, t), net(x[:, :, None], t)[:, :, 0])


@pytest.mark.parametrize("layouts, mixes", [
    (("space",), False), (("space", "time"), True), (("spacetime",), True)])
def test_frames_mix_only_where_the_layout_says_so(layouts, mixes):
    net, x, t = wake(DiT(dim=32, layouts=layouts)), torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    moved = x.clone()
    moved[0, :, 3] = torch.randn(1, 16, 16)
    change = (net(moved, t) - net(x, t)).abs().amax((1, 3, 4))
    assert change[0, 3] > 1e-4 and (change[1] < 1e-6).all()
    assert (change[0, :3] > 1e-6).all() if mixes else (change[0, :3] < 1e-6).all()


def test_each_frame_has_its_own_time():
    net, x, t = wake(DiT(dim=32, embed={"label": label})), torch.randn(2, 1, 4, 16, 16), torch.rand(2, 4)
    y = torch.tensor([1, 2])
    same = t[:, :1].expand(2, 4)
    torch.testing.assert_close(net(x, same, label=y), net(x, t[:, 0], label=y), rtol=1e-4, atol=1e-5)
    later = t.clone()
    later[1, 2] += 0.3
    change = (net(x, later, label=y) - net(x, t, label=y)).abs().amax((1, 3, 4))
    expected = torch.zeros(2, 4, dtype=torch.bool)
    expected[1, 2] = True
    assert torch.equal(change > 1e-4, expected)


def test_tubelets_channels_and_the_third_door():
    net = wake(DiT(3, 6, dim=32, patch=(2, 4, 4), stack={"mask": 1}))
    x = torch.randn(2, 3, 4, 16, 16)
    assert net(x, torch.rand(2), mask=torch.ones(2, 1, 4, 16, 16)).shape == (2, 6, 4, 16, 16)
    with pytest.raises(ValueError, match="takes the conditions"):
        net(x, torch.rand(2))
    with pytest.raises(ValueError, match="whole patches"):
        net(x[:, :, :3], torch.rand(2), mask=torch.ones(2, 1, 3, 16, 16))


def test_positions_are_all_different():
    place = position(3, 4, 5, 32).flatten(0, 1)
    assert place.shape == (60, 32) and torch.cdist(place, place).add(torch.eye(60)).min() > 1e-2
