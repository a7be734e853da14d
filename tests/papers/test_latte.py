import pytest
import torch
from conftest import wake
from einops import rearrange

from diffusion_course.layers.attention import Attention, attend
from diffusion_course.layers.embeddings import rotary_angles, rotate
from diffusion_course.layers.spacetime import Frames
from diffusion_course.networks.dit import Block, DiT
from diffusion_course.papers import autoencoder_kl, dit, latte
from diffusion_course.papers.latte import VARIANTS, ParallelBlock, SerialBlock
from diffusion_course.training import checkpoints
from diffusion_course.training.trainer import Trainer

SMALL = {"dim": 32, "depth": 4, "frames": 4, "size": 16}


def net(variant="interleaved", **kwargs):
    """A network that is not zero."""
    return wake(latte.recipe(variant, **SMALL | kwargs).model.net)


def reach(module, h, *args):
    """Which tokens [F, N] of the output feel each token of the input: bool [F, N, F, N]."""
    before, found = module(h, *args), []
    for f in range(h.shape[1]):
        for n in range(h.shape[2]):
            moved = h.clone()
            moved[:, f, n] += torch.randn(h.shape[-1])
            found.append((module(moved, *args) - before).abs().amax((0, 3)) > 1e-6)
    return torch.stack(found).reshape(*h.shape[1:3], *h.shape[1:3])


def places(frames, n):
    """Whether two tokens are in the same frame, and whether at the same place: bool [F, N, F, N]."""
    f, p = torch.arange(frames), torch.arange(n)
    same_frame = (f[:, None] == f)[:, None, :, None].expand(frames, n, frames, n)
    return same_frame, (p[:, None] == p)[None, :, None].expand(frames, n, frames, n)


# ---- the four variants

@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("time", ["sinusoidal", "rotary", "none"])
def test_it_starts_as_zero_and_every_block_as_the_identity(variant, time):
    """Card 39, exact: adaLN-Zero."""
    made = latte.recipe(variant, time=time, **SMALL).model.net
    assert not made(torch.randn(2, 1, 4, 16, 16), torch.rand(2)).any()
    h, e, angles = torch.randn(2, 4, 3, 32), torch.randn(2, 1, 1, 32), torch.rand(2, 4, 4)
    for block in made.blocks:
        assert torch.equal(block(h, e, None, angles if time == "rotary" else None), h)


def test_who_reaches_whom():
    """Card 39: a block over space mixes a frame, one over time a place; of the others, what they say."""
    h, e = torch.randn(1, 3, 4, 32), torch.randn(1, 1, 1, 32)
    frame, place = places(3, 4)
    space, time, joint = (wake(Block(32, 4, layout)) for layout in ("space", "time", "spacetime"))
    assert torch.equal(reach(space, h, e), frame) and torch.equal(reach(time, h, e), place)
    assert reach(joint, h, e).all() and reach(wake(SerialBlock(32, 4, "spacetime")), h, e).all()
    assert torch.equal(reach(wake(ParallelBlock(32, 4, "spacetime")), h, e), frame | place)


@pytest.mark.parametrize("variant, layouts", [
    ("interleaved", ["space", "time", "space", "time"]), ("late", ["space", "space", "time", "time"]),
    ("joint", ["spacetime"] * 4)])
def test_the_order_of_blocks(variant, layouts):
    """Interleaved connects all pairs after two blocks, late fusion only in its second half."""
    made = net(variant)
    assert [block.layout for block in made.blocks] == layouts
    h, e = torch.randn(1, 3, 4, 32), torch.randn(1, 1, 1, 32)
    two = reach(lambda h, e: made.blocks[1](made.blocks[0](h, e), e), h, e)
    assert two.all() == (variant != "late")
    assert reach(lambda h, e: made.blocks[2](made.blocks[1](h, e), e), h, e).all()


def test_half_of_the_heads_look_over_space_and_half_over_time():
    """Variant 4 is two attentions of half the heads whose outputs are put side by side."""
    block, h = ParallelBlock(32, 4, "spacetime"), torch.randn(2, 3, 5, 32)
    q = rearrange(block.attention.q(h), "b f n (h d) -> h b f n d", h=4)
    k, v = rearrange(block.attention.kv(h), "b f n (two h d) -> two h b f n d", two=2, h=4)
    space = [attend(q[i], k[i], v[i]) for i in (0, 1)]
    time = [attend(*(x[i].transpose(1, 2) for x in (q, k, v))).transpose(1, 2) for i in (2, 3)]
    expected = block.attention.out(torch.cat(space + time, -1))
    torch.testing.assert_close(block.attend(h, None), expected, rtol=1e-4, atol=1e-5)


def test_serial_is_space_then_time_then_one_mlp():
    block, h, e = wake(SerialBlock(32, 4, "spacetime")), torch.randn(2, 3, 5, 32), torch.randn(2, 1, 1, 32)
    m = block.modulation(torch.nn.functional.silu(e)).chunk(9, -1)
    x = h
    for norm, layer, pattern, (shift, scale, gate) in zip(
            (block.norm1, block.norm3, block.norm2), (block.attention, block.time, block.mlp),
            ("b f n d -> (b f) n d", "b f n d -> (b n) f d", "b f n d -> (b f) n d"), (m[:3], m[3:6], m[6:])):
        seen = rearrange(norm(x) * (1 + scale) + shift, pattern)
        back = " -> ".join(reversed(pattern.split(" -> ")))
        x = x + gate * rearrange(layer(seen), back, b=2, f=3, n=5)
    torch.testing.assert_close(block(h, e), x, rtol=1e-4, atol=1e-5)


def test_variants_have_about_as_many_weights():
    """Those that are compared: 8 blocks, of the serial one 6."""
    weights = {variant: sum(p.numel() for p in latte.recipe(variant, depth=6 if variant == "serial" else 8)
                            .model.parameters()) for variant in VARIANTS}
    assert max(weights.values()) < 1.05 * min(weights.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_mix_within_their_clip_and_a_time_is_that_of_its_frame(variant):
    made, x, t = net(variant), torch.randn(2, 1, 4, 16, 16), torch.rand(2, 4)
    moved = x.clone()
    moved[0, :, 3] += 1
    change = (made(moved, t) - made(x, t)).abs().amax((1, 3, 4))
    assert (change[0] > 1e-6).all() and (change[1] < 1e-6).all()
    same = t[:, :1].expand(2, 4)
    torch.testing.assert_close(made(x, same), made(x, t[:, 0]), rtol=1e-4, atol=1e-5)


# ---- how a token knows its frame

@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_position_in_time_the_order_of_frames_does_not_matter(variant):
    order, x, t = torch.tensor([2, 0, 3, 1]), torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    for time, equivariant in ("none", True), ("sinusoidal", False), ("rotary", False):
        made = net(variant, time=time)
        difference = (made(x[:, :, order], t) - made(x, t)[:, :, order]).abs().max()
        assert (difference < 1e-5) == equivariant, time


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotary_positions_know_distances_only(variant):
    x, t = torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    index = torch.arange(4.0).expand(2, -1)
    for time, relative in ("rotary", True), ("sinusoidal", False):
        made = net(variant, time=time)
        later = made(x, t, frames=Frames(4, index + 100)) - made(x, t)
        assert (later.abs().max() < 1e-4) == relative
        assert (made(x, t, frames=Frames(4, index * 4)) - made(x, t)).abs().max() > 1e-4


def test_scores_of_turned_queries_and_keys_depend_on_the_distance():
    """RoFormer eq. 16, and it is a rotation: lengths stay."""
    q, k, place = torch.randn(8), torch.randn(8), torch.arange(10.0)
    turned = [rotate(x.expand(10, 8), rotary_angles(place, 8)) for x in (q, k)]
    torch.testing.assert_close(turned[0].norm(dim=1), q.norm().expand(10))
    scores = turned[0] @ turned[1].T
    for offset in range(-9, 10):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert scores[0].std() > 0.01
    x, layer = torch.randn(2, 5, 8), Attention(8, 2)
    torch.testing.assert_close(layer(x, angles=torch.zeros(5, 2)), layer(x))


# ---- images beside videos

@pytest.mark.parametrize("variant", VARIANTS)
def test_images_are_apart_from_the_video_and_from_one_another(variant):
    made, x, t = net(variant), torch.randn(2, 1, 6, 16, 16), torch.rand(2)
    before = made(x, t, images=2)
    torch.testing.assert_close(before[:, :, :4], made(x[:, :, :4], t), rtol=1e-4, atol=1e-5)
    for f in (4, 5):
        moved = x.clone()
        moved[:, :, f] += 1
        change = (made(moved, t, images=2) - before).abs().amax((0, 1, 3, 4)) > 1e-6
        assert change.nonzero()[:, 0].tolist() == [f]


def test_blocks_over_time_leave_images_alone():
    """Card 39, exact: what is said of images is what a network without these blocks says."""
    made, x, t = net(), torch.randn(2, 1, 5, 16, 16), torch.rand(2)
    out = made(x, t, images=1)
    out[:, :, 4].square().sum().backward()
    for block in made.blocks:
        grads = [p.grad for p in block.parameters()]
        assert all(g is None or not g.any() for g in grads) == (block.layout == "time")
    only = DiT(dim=32, depth=2, layouts=("space",))
    only.load_state_dict({name.replace("blocks.2.", "blocks.1."): p for name, p in made.state_dict().items()
                          if "blocks.1." not in name and "blocks.3." not in name})
    torch.testing.assert_close(out[:, :, 4], only(x[:, :, 4], t), rtol=1e-4, atol=1e-5)


def test_the_images_beside_a_clip_are_what_its_label_says():
    """They share the clip's label, so they must not be frames of another clip."""
    recipe, seen = latte.recipe(classes=10, images=3, **SMALL), []
    recipe.model.loss = lambda z, **cond: seen.append(z)
    x = torch.arange(24.0).reshape(2, 1, 12, 1, 1)[:, :, ::3].expand(-1, -1, -1, 16, 16)
    recipe.loss({"x": x, "fps": torch.tensor([8.0, 8.0]), "label": torch.tensor([1, 2])})
    assert seen[0].shape[2] == 7 and torch.equal(seen[0][:, :, :4], x)
    for clip, images in zip(x, seen[0][:, :, 4:]):
        assert set(images[0, :, 0, 0].tolist()) <= set(clip[0, :, 0, 0].tolist())


def test_an_image_model_becomes_a_video_model_that_is_the_same_at_first(tmp_path):
    """Sec. 3.4: its blocks become those over space; the others are shut by their gates."""
    image = dit.recipe(dim=32, depth=2, size=16)
    wake(image.model)
    path = checkpoints.save_model(tmp_path / "image.safetensors", image)
    image = checkpoints.load_model(path).model
    made = latte.recipe(classes=10, time="none", **SMALL)
    start_from = checkpoints.start_from(made.model, path, latte.renamed)
    assert start_from["checkpoint"] == "image"
    x, t, y = torch.randn(2, 1, 4, 16, 16), torch.rand(2), torch.tensor([1, 2])
    frames = torch.stack([image(x[:, :, f], t, label=y) for f in range(4)], 2)
    torch.testing.assert_close(made.model(x, t, label=y), frames, rtol=1e-4, atol=1e-5)
    wake(made.model)
    assert (made.model(x, t, label=y) - frames).abs().max() > 1e-2


def test_a_video_model_keeps_the_names_of_its_weights(tmp_path):
    video = latte.recipe(classes=10, **SMALL)
    wake(video.model)
    path = checkpoints.save_model(tmp_path / "video.safetensors", video)
    other = latte.recipe(classes=10, **SMALL)
    checkpoints.start_from(other.model, path, latte.renamed)
    for name, p in other.model.state_dict().items():
        torch.testing.assert_close(p, video.model.state_dict()[name], rtol=1e-3, atol=1e-3)


# ---- the recipe

@pytest.mark.parametrize("kwargs", [
    {"variant": variant} for variant in VARIANTS] + [
    {"tube": 2}, {"time": "rotary"}, {"images": 2}, {"classes": 10}, {"words": 21},
    {"words": 21, "condition": "in_context"}, {"classes": 10, "condition": "in_context", "images": 1}])
def test_every_kind_trains_and_draws(kwargs):
    first = autoencoder_kl.recipe(width=8, size=16)
    recipe = latte.recipe(**SMALL | {"patch": 2, "autoencoder": first} | kwargs)
    batch = {"x": torch.rand(2, 1, 4, 16, 16), "fps": torch.tensor([8.0, 2.0]), "label": torch.tensor([1, 2]),
             "text": torch.tensor([[1, 5] + [0] * 10] * 2)}
    before = {name: p.clone() for name, p in recipe.model.named_parameters()}
    trainer = Trainer(recipe, warmup=1, steps=5, lr=1e-3)
    losses = [float(progress.loss) for progress in trainer.run([batch] * 5)]
    assert all(loss == loss and loss < 3 for loss in losses)
    still = {name for name, p in recipe.model.named_parameters() if torch.equal(p, before[name])}
    assert not still, still
    asked = {name: batch[name] for name in ("label", "text") if recipe.takes(name)}
    video = recipe.draw(2, seed=0, steps=2, **asked)
    assert video.shape == (2, 1, 4, 16, 16) and video.isfinite().all()
    assert torch.equal(video, recipe.draw(2, seed=0, steps=2, **asked))


@pytest.mark.parametrize("kwargs, message", [
    ({"variant": "early"}, "variant='early'"), ({"condition": "tokens"}, "condition='tokens'"),
    ({"time": "learned"}, "time='learned'"), ({"time": "rotary", "dim": 36}, "dim=36"),
    ({"variant": "serial", "condition": "in_context"}, "no use")])
def test_what_there_is_not(kwargs, message):
    with pytest.raises(ValueError, match=message):
        latte.recipe(**kwargs)


@pytest.mark.parametrize("fps", [{}, {"fps": torch.tensor([8.0, 2.0])}])
def test_clips_of_ones_own_say_no_fps(fps):
    """Films in a folder have none; then frames are numbered 0, 1, 2 ..."""
    recipe, seen = latte.recipe(**SMALL), []
    recipe.model.net.register_forward_pre_hook(lambda m, args, kw: seen.append(kw["frames"].index),
                                               with_kwargs=True)
    recipe.loss({"x": torch.rand(2, 1, 4, 16, 16)} | fps)
    assert seen[0].tolist() == [[0, 1, 2, 3], [0, 4, 8, 12] if fps else [0, 1, 2, 3]]


def test_images_need_a_video_and_patches_of_one_frame():
    made, x, t = net(), torch.randn(1, 1, 4, 16, 16), torch.rand(1)
    for bad in (-1, 4, 5):
        with pytest.raises(ValueError, match="images"):
            made(x, t, images=bad)
    with pytest.raises(ValueError, match="images"):
        net(tube=2)(x, t, images=2)
