import pytest
import torch
import torch.nn.functional as F
from conftest import wake
from torch import nn

from diffusion_course.layers.attention import Attention, FrameAttention, attend
from diffusion_course.layers.spacetime import Frames, TemporalConv


@pytest.mark.parametrize("keys", [1, 8, 32, 33, 64, 65])       # both kernels
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_kernels_are_torchs(keys, masked, dtype):
    q, k, v = torch.randn(3, 4, 16, 8), torch.randn(3, 4, keys, 8), torch.randn(3, 4, keys, 8)
    bias = torch.randn(4, 16, keys)
    if masked:
        bias[:, :, keys // 2 + 1:] = float("-inf")
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for b in (None, bias):
        expected = F.scaled_dot_product_attention(q, k, v, b)
        half = [x if x is None else x.to(dtype) for x in (q, k, v, b)]
        torch.testing.assert_close(attend(*half).float(), expected, **near)


def test_attention_is_torchs_multihead():
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(2, 10, 16)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-4, atol=1e-5)


def test_cross_attention_sees_its_tokens():
    layer, x, tokens = Attention(16, 4, token_dim=6), torch.randn(2, 10, 16), torch.randn(2, 3, 6)
    assert layer(x, tokens).shape == x.shape
    moved = tokens.clone()
    moved[1, 2] += 1
    change = (layer(x, moved) - layer(x, tokens)).abs().amax((1, 2))
    assert change[0] == 0 and change[1] > 1e-4


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim=30 must be a multiple of heads=4; choose 28 or 32"):
        Attention(30, 4)


def temporal(**kwargs):
    layer = wake(FrameAttention(8, heads=2, zero_init=False))
    with torch.no_grad():
        layer.bias.table.normal_()
    return layer


def test_frame_attention_knows_relative_positions_only():
    """A trap of the prototype: it had no relative position bias."""
    layer, h = temporal(), torch.randn(5, 8, 2, 2)
    moved = layer(h, Frames(5, index=torch.arange(5)[None] + 7))
    torch.testing.assert_close(layer(h, Frames(5)), moved)     # shifted in time: the same
    spread = layer(h, Frames(5, index=2 * torch.arange(5)[None]))
    assert not torch.allclose(moved, spread)                   # every other frame: not
    order = torch.tensor([3, 1, 4, 0, 2])
    assert not torch.allclose(layer(h, Frames(5))[order], layer(h[order], Frames(5)))
    torch.testing.assert_close(layer(h, Frames(5))[order], layer(h[order], Frames(5, index=order[None])))


def test_the_bias_is_toeplitz():
    bias = temporal().position_bias(Frames(6), torch.device("cpu"))
    assert bias.shape == (2, 6, 6)
    torch.testing.assert_close(bias[:, 1:, 1:], bias[:, :-1, :-1])
    assert bias[0, 0, 1] != bias[0, 1, 0]                      # past and future differ


def test_a_mask_hides_frames():
    layer, h = temporal(), torch.randn(8, 8, 2, 2)             # two videos of four frames
    causal = torch.ones(4, 4).tril().bool().expand(2, 4, 4)
    moved = h.clone()
    moved[6] = torch.randn(8, 2, 2)                            # frame 2 of video 1
    change = (layer(moved, Frames(4, mask=causal)) - layer(h, Frames(4, mask=causal))).abs().amax((1, 2, 3))
    assert (change[:6] == 0).all() and (change[6:] > 1e-4).all()


def test_an_identity_mask_makes_every_frame_an_image():
    layer, h = temporal(), torch.randn(4, 8, 2, 2)
    masked = layer(h, Frames(4, mask=torch.eye(4).bool()[None]))
    torch.testing.assert_close(masked, layer(h, Frames(1)), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(masked, h)                       # which is not "skip the layer"


@pytest.mark.parametrize("make", [lambda: FrameAttention(8), lambda: TemporalConv(8)])
def test_temporal_layers_start_as_nothing(make):
    h = torch.randn(6, 8, 4, 4)
    torch.testing.assert_close(make()(h, Frames(3)), h, rtol=0, atol=0)
    assert not torch.allclose(wake(make())(h, Frames(3)), h)


def test_frames_are_checked():
    for frames, message in [(Frames(3), "count=3"), (Frames(4, index=torch.zeros(1, 3)), "index must be"),
                            (Frames(4, mask=torch.ones(1, 4, 3)), "mask must be")]:
        with pytest.raises(ValueError, match=message):
            frames.check(4)
