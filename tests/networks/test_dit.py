import pytest
import torch
import torch.nn.functional as F
from conftest import wake
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_course.layers.embeddings import LabelToken, sinusoidal
from diffusion_course.layers.spacetime import Frames
from diffusion_course.networks.dit import (
    BLOCKS,
    AdaLNBlock,
    Block,
    CrossAttentionBlock,
    DiT,
    InContextBlock,
    position,
)


def label(dim):
    return nn.Embedding(11, dim)


def labelled(name, dim=32, **kwargs):
    """A network of such blocks; the label enters by the door that they look at."""
    block = BLOCKS[name]
    doors = {"embed": {"label": label}} if block.modulated else {"tokens": {"label": LabelToken(10, dim)}}
    return DiT(**{"dim": dim, "depth": 2, "block": block} | doors | kwargs)


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
    place = position(4, 5, 32)
    assert place.shape == (20, 32) and torch.cdist(place, place).add(torch.eye(20)).min() > 1e-2


def test_half_of_a_position_is_the_row_and_half_the_column():
    place = position(4, 5, 32).view(4, 5, 32)
    rows, columns = place[..., :16], place[..., 16:]
    assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    for half, count in ((rows[:, 0], 4), (columns[0], 5)):
        angles = torch.arange(count)[:, None] / 10_000 ** (torch.arange(8) / 8)
        torch.testing.assert_close(half, torch.cat([angles.cos(), angles.sin()], 1))


@pytest.mark.parametrize("index", [None, torch.tensor([[0.0, 4, 8], [0, 1, 2]])])
def test_the_time_is_added_once_before_the_first_block_over_time(index):
    """All channels, the same everywhere in a frame (card 39); images behind a video have none."""
    net, x = wake(DiT(dim=32, layouts=("space", "time"), depth=4)), torch.randn(2, 1, 4, 16, 16)
    index = None if index is None else torch.cat([index, torch.zeros(2, 1)], 1)
    seen = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        block.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    net(x, torch.rand(2), frames=Frames(4, index), images=1)
    angles = (torch.arange(3)[None] if index is None else index[:, :3])[..., None] / 10_000 ** (
        torch.arange(16) / 16)
    expected = torch.cat([angles.cos(), angles.sin()], -1)[:, :, None].expand(2, 3, 16, 32)
    torch.testing.assert_close(seen[1], expected, rtol=1e-4, atol=1e-5)       # the images are not among them
    assert not seen[2][:, 3].any() and not seen[3].any()


# ---- how it starts

@pytest.mark.parametrize("name", BLOCKS)
def test_every_network_starts_as_zero_and_only_adaln_zero_as_the_identity(name):
    net, y = labelled(name), torch.tensor([1, 2])
    assert not net(torch.randn(2, 1, 16, 16), torch.rand(2), label=y).any()
    h, e = torch.randn(2, 1, 16, 32), torch.randn(2, 1, 1, 32)
    assert [torch.equal(block(h, e), h) for block in net.blocks] == [name == "adaln_zero"] * 2


def test_weights_are_drawn_as_in_the_released_code():
    net = labelled("adaln_zero", dim=64, stack={"small": 1})
    for linear in (net.patchify, net.blocks[0].attention.q, net.blocks[1].mlp[2]):
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert 0.98 * bound < linear.weight.abs().max() <= bound
        assert linear.bias is None or not linear.bias.any()
    for weight in (net.embed_time.mlp[0].weight, net.embed_time.mlp[2].weight,
                   net.doors.embed["label"].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_order_in_which_adaln_zero_wakes():
    """Card 08, exact zeros: first the output, then patches and gates, then all."""
    torch.manual_seed(0)
    net = labelled("adaln_zero")
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    x, t, y = torch.randn(4, 1, 16, 16), torch.rand(4), torch.tensor([1, 2, 3, 4])
    moved = []
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(net(x, t, label=y), torch.randn(4, 1, 16, 16)).backward()
        moved.append({name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()})
        if len(moved) == 2:
            for block in net.blocks:
                shifts_and_gates = block.modulation.weight.grad.unflatten(0, (6, 32)).abs().sum((1, 2)) > 0
                assert shifts_and_gates.tolist() == [False, False, True] * 2
        optimizer.step()
    final = {"out.weight", "out.bias"}
    outer = {f"{name}.{kind}" for name in ("patchify", "modulation", "blocks.0.modulation",
                                           "blocks.1.modulation") for kind in ("weight", "bias")}
    assert moved == [final, final | outer, {name for name, _ in net.named_parameters()}]


# ---- the blocks

@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_hears_time_and_label(name):
    net = wake(labelled(name, layouts=("space", "spacetime")))
    x, t, y = torch.randn(2, 1, 16, 16), torch.rand(2), torch.tensor([1, 2])
    out = net(x, t, label=y)
    for other in ({"t": t + torch.tensor([0.0, 0.3]), "label": y}, {"t": t, "label": torch.tensor([1, 3])}):
        change = (net(x, **other) - out).abs().amax((1, 2, 3))
        assert change[0] < 1e-6 and change[1] > 1e-5
    torch.testing.assert_close(net(x[:, :, None], t, label=y)[:, :, 0], out)   # a video of one frame
    (out * torch.randn_like(out)).sum().backward()
    for weight, p in net.named_parameters():
        assert p.grad is not None and p.grad.any(), weight


@pytest.mark.parametrize("name", BLOCKS)
def test_in_every_block_a_frame_has_its_own_time(name):
    net, x, t = wake(labelled(name)), torch.randn(2, 1, 3, 16, 16), torch.rand(2, 3)
    later, y = t.clone(), torch.tensor([1, 2])
    later[1, 2] += 0.3
    change = (net(x, later, label=y) - net(x, t, label=y)).abs().amax((1, 3, 4)) > 1e-5
    assert change.tolist() == [[False, False, False], [False, False, True]]
    torch.testing.assert_close(net(x, t[:, :1].expand(2, 3), label=y), net(x, t[:, 0], label=y),
                               rtol=1e-4, atol=1e-5)


def pytorchs(block, kind):
    """PyTorch's pre-norm layer with the weights of a block."""
    def attention(ours, name):
        return {f"{name}.in_proj_weight": torch.cat([ours.q.weight, ours.kv.weight]),
                f"{name}.in_proj_bias": torch.zeros(96), f"{name}.out_proj.weight": ours.out.weight,
                f"{name}.out_proj.bias": ours.out.bias}

    layer = kind(32, 4, 128, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    norms = [block.norm1, *([block.norm] if hasattr(block, "norm") else []), block.norm2]
    weights = attention(block.attention, "self_attn")
    if hasattr(block, "cross"):
        weights |= attention(block.cross, "multihead_attn")
    parts = {f"norm{n}": norm for n, norm in enumerate(norms, 1) if block.modulated == 0}
    parts |= {"linear1": block.mlp[0], "linear2": block.mlp[2]}
    weights |= {f"{name}.{key}": p for name, part in parts.items() for key, p in part.state_dict().items()}
    missing = layer.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and all("norm" in key for key in missing.missing_keys)
    return layer


def stirred(block):
    """A block none of whose weights and biases has the value that it starts with."""
    for p in block.parameters():
        nn.init.normal_(p, 0.1, 0.2)
    return block


def test_blocks_without_modulation_are_pytorchs_layers():
    h, e, tokens = torch.randn(2, 3, 5, 32), torch.randn(2, 3, 1, 32), torch.randn(2, 4, 32)
    block = stirred(InContextBlock(32, 4, "space"))
    layer = pytorchs(block, nn.TransformerEncoderLayer)
    expected = layer(h.flatten(0, 1)).view_as(h)
    torch.testing.assert_close(block(h, e, tokens), expected, rtol=1e-4, atol=1e-5)
    block = stirred(CrossAttentionBlock(32, 4, "space"))
    layer = pytorchs(block, nn.TransformerDecoderLayer)
    for frame in range(3):                                     # its own time and the tokens
        seen = torch.cat([e[:, frame], tokens], 1)
        torch.testing.assert_close(block(h, e, tokens)[:, frame], layer(h[:, frame], seen),
                                   rtol=1e-4, atol=1e-5)


def test_adaln_is_pytorchs_layer_and_adaln_zero_is_adaln_between_gates():
    """And the order of the card: shift, scale, gate of the attention, then of the MLP."""
    h, e = torch.randn(2, 1, 5, 32), torch.randn(2, 1, 1, 32)
    adaln, zero = stirred(AdaLNBlock(32, 4, "space")), Block(32, 4, "space")
    shared = {name: p for name, p in adaln.state_dict().items() if "modulation" not in name}
    zero.load_state_dict(shared, strict=False)
    weight, bias = adaln.modulation.weight.unflatten(0, (4, 32)), adaln.modulation.bias.unflatten(0, (4, 32))
    nn.init.zeros_(zero.modulation.weight), nn.init.zeros_(zero.modulation.bias)
    for six, four in enumerate((0, 1, None, 2, 3, None)):
        if four is None:
            zero.modulation.bias.data.unflatten(0, (6, 32))[six] = 1
        else:
            zero.modulation.weight.data.unflatten(0, (6, 32))[six] = weight[four]
            zero.modulation.bias.data.unflatten(0, (6, 32))[six] = bias[four]
    torch.testing.assert_close(zero(h, e), adaln(h, e))
    shift1, scale1, shift2, scale2 = (F.silu(e) @ w.T + b for w, b in zip(weight, bias))
    norm = lambda x: F.layer_norm(x, (32,), eps=1e-6)
    attended = h + adaln.attention((norm(h) * (1 + scale1) + shift1)[:, 0])[:, None]
    torch.testing.assert_close(adaln(h, e), attended + adaln.mlp(norm(attended) * (1 + scale2) + shift2))
    for gate, expected in ((2, (h + attended) / 2),            # each gates its own
                           (5, h + adaln.mlp(norm(h) * (1 + scale2) + shift2) / 2)):
        zero.modulation.bias.data.unflatten(0, (6, 32))[[2, 5]] = 0
        zero.modulation.bias.data.unflatten(0, (6, 32))[gate] = 0.5
        torch.testing.assert_close(zero(h, e), expected, rtol=1e-4, atol=1e-5)
    nn.init.zeros_(adaln.modulation.weight), nn.init.zeros_(adaln.modulation.bias)
    layer = pytorchs(adaln, nn.TransformerEncoderLayer)
    torch.testing.assert_close(adaln(h, e)[:, 0], layer(h[:, 0]), rtol=1e-4, atol=1e-5)


def test_time_and_label_are_among_the_patches_and_taken_out_again():
    net, seen = wake(labelled("in_context", layouts=("space", "time"))), []
    for module in (net.blocks[0], net.blocks[1], net.out):
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    x, y = torch.randn(2, 1, 3, 16, 16), torch.tensor([1, 2])
    net(x, t := torch.rand(2), label=y)
    assert [tuple(h.shape) for h in seen] == [(2, 3, 18, 32), (2, 3, 18, 32), (2, 3, 16, 32)]
    torch.testing.assert_close(seen[0][:, 1, 16], net.embed_time(t))
    torch.testing.assert_close(seen[0][:, 2, 17], net.doors.tokens["label"].weight[y])
    time = sinusoidal(torch.arange(3), 32)[None, :, None]
    torch.testing.assert_close(seen[1], net.blocks[0](seen[0], None) + time, rtol=1e-4, atol=1e-5)
    h = net.blocks[1](seen[1], None)
    torch.testing.assert_close(seen[2], net.norm(h[:, :, :16]), rtol=1e-4, atol=1e-5)


def test_tokens_that_no_block_looks_at_are_refused():
    with pytest.raises(ValueError, match="tokens"):
        DiT(dim=32, tokens={"label": LabelToken(10, 32)})


# ---- what it costs

def test_halving_the_patch_costs_tokens_and_hardly_any_weights():
    """Card 08: four times the tokens; the FLOPs are those of the formula, the weights only of the ends."""
    dim, depth, flops, weights = 32, 3, {}, {}
    for patch in (4, 2):
        net, tokens, pixels = DiT(dim=dim, depth=depth, patch=(1, patch, patch)), (8 // patch) ** 2, patch**2
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(2, 1, 8, 8), torch.rand(2))
        flops[patch] = counter.get_total_flops() / 2
        weights[patch] = {name: p.shape for name, p in net.named_parameters()}
        block = tokens * 12 * dim**2 + 2 * tokens**2 * dim + 6 * dim**2        # layers, attention, modulation
        assert flops[patch] == 2 * (depth * block + 2 * tokens * pixels * dim + (2 + 2) * dim**2)
    assert 3 < flops[2] / flops[4] < 5
    other = {name for name in weights[4] if weights[4][name] != weights[2][name]}
    assert other == {"patchify.weight", "out.weight", "out.bias"}
