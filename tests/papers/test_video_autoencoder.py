import pytest
import torch
from conftest import wake

from diffusion_course.layers.spacetime import Frames
from diffusion_course.networks.autoencoder import Autoencoder
from diffusion_course.papers import autoencoder_kl, latent_diffusion, video_autoencoder, vqgan
from diffusion_course.papers.video_autoencoder import Aligner
from diffusion_course.recipe import Recipe
from diffusion_course.training import checkpoints
from diffusion_course.training.trainer import Trainer


@pytest.fixture
def image():
    return autoencoder_kl.recipe(width=8, size=16)


def tiny(image, **kwargs):
    return video_autoencoder.recipe(autoencoder=image, frames=4, **{"start": 1} | kwargs)


# ---- the layer

@pytest.mark.parametrize("layers", ["both", "conv", "attention"])
@pytest.mark.parametrize("gate", [-3.0, 0.0, 5.0])
def test_an_aligner_starts_as_the_identity_at_any_alpha(layers, gate):
    """Card 23: with residual layers that start as zero, alpha may be anything."""
    layer, h = Aligner(8, known=3, layers=layers), torch.randn(6, 8, 4, 4)
    torch.nn.init.constant_(layer.gate, gate)
    frames = Frames(3, known=torch.randn(6, 3, 8, 8))
    torch.testing.assert_close(layer(h, frames), h)
    assert not torch.allclose(wake(layer)(h, frames), h, atol=1e-3)


def test_alpha_mixes_and_at_one_nothing_is_new():
    """Sec. 3.1: alpha h + (1 - alpha) time(h)."""
    layer, h, frames = wake(Aligner(8)), torch.randn(6, 8, 4, 4), Frames(3)
    time = layer.attention(layer.conv(h, frames), frames)
    torch.nn.init.constant_(layer.gate, 1.5)
    alpha = torch.tensor(1.5).sigmoid()
    torch.testing.assert_close(layer(h, frames), alpha * h + (1 - alpha) * time)
    torch.nn.init.constant_(layer.gate, float("inf"))
    assert torch.equal(layer(h, frames), h)
    torch.nn.init.constant_(layer.gate, -float("inf"))
    torch.testing.assert_close(layer(h, frames), time)


def test_what_is_known_of_a_frame_is_resized_and_reaches_its_neighbours():
    layer, h = wake(Aligner(8, known=3)), torch.randn(4, 8, 4, 4)
    known = torch.zeros(4, 3, 8, 8)
    before = layer(h, Frames(4, known=known))
    torch.testing.assert_close(before, layer(h, Frames(4, known=torch.zeros(4, 3, 4, 4))))
    known[1] = torch.randn(3, 8, 8)
    change = (layer(h, Frames(4, known=known)) - before).abs().amax((1, 2, 3))
    assert (change > 1e-5).all()


def test_it_learns_though_everything_below_is_frozen():
    """On CPUs PyTorch's GroupNorm crashes there, in channels-last memory."""
    h = torch.randn(6, 8, 4, 4).to(memory_format=torch.channels_last)
    layer = Aligner(8)
    layer(h, Frames(3)).square().mean().backward()
    assert layer.conv.conv.weight.grad.abs().max() > 0


# ---- the first stage

def test_it_starts_as_the_image_decoder_and_then_sees_neighbours(image):
    recipe, x = tiny(image), torch.rand(2, 1, 4, 16, 16) * 2 - 1
    ours, theirs = recipe.model.autoencoder, image.model.autoencoder
    z = ours.encode(x)
    assert torch.equal(z, theirs.encode(x))
    torch.testing.assert_close(ours.decode(z), theirs.decode(z))
    wake(ours)
    moved = z.clone()
    moved[0, :, 3] += 1
    change = (ours.decode(moved) - ours.decode(z)).abs().amax((1, 3, 4))
    assert (change[0] > 1e-5).all() and not change[1].any()
    still = theirs.decode(moved) - theirs.decode(z)
    assert not still[:, :, :3].any() and still[:, :, 3].any()


def test_only_new_layers_and_the_judge_are_trained_and_saved(image, tmp_path):
    recipe = tiny(image)
    image.checkpoint = {"checkpoint": "vae", "sha256": "0"}
    before = {name: x.clone() for name, x in recipe.model.state_dict().items()}
    list(Trainer(recipe, tmp_path, warmup=1, steps=3).run([{"x": torch.rand(2, 1, 4, 16, 16)}] * 3))
    changed = {name for name, x in recipe.model.state_dict().items() if not torch.equal(x, before[name])}
    spatial = {f"autoencoder.{name}" for name in image.model.autoencoder.state_dict()}
    assert spatial < set(before) and not changed & spatial
    assert changed - {"calls"} == {name for name, p in recipe.model.named_parameters() if p.requires_grad}
    saved = checkpoints.read_averaged(tmp_path / "model.safetensors")[0]
    frozen = {f"autoencoder.{name}" for name, _ in image.model.autoencoder.named_parameters()}
    assert frozen and not set(saved) & frozen


def test_the_judge_sees_several_frames(image):
    """A patch-wise discriminator of 3D convolutions (sec. 3.1.1): it sees whether frames fit together."""
    judge, x = tiny(image).model.judge, torch.randn(1, 1, 8, 16, 16)
    assert judge(x)[-1].shape == (1, 1, 2, 4, 4)
    moved = x.clone()
    moved[:, :, 0] += 1
    assert (judge(moved)[-1] - judge(x)[-1])[:, :, 0].abs().max() > 1e-6


def test_the_balance_is_taken_where_something_is_learned(image):
    recipe = tiny(image, start=0)
    assert recipe.model.last[0].weight.requires_grad
    recipe.loss({"x": torch.rand(2, 1, 4, 16, 16)}).backward()
    grads = [p.grad for p in recipe.model.autoencoder.parameters() if p.requires_grad]
    assert grads and sum(g is not None and bool(g.any()) for g in grads) > 3
    assert all(p.grad is None for p in recipe.model.autoencoder.encoder.parameters())


def test_an_image_model_draws_with_it_if_they_have_the_same_latents(image):
    recipe = tiny(image)
    first = video_autoencoder.same_latents(image.model.autoencoder, recipe)
    assert isinstance(first, Autoencoder) and first is recipe.model.autoencoder
    assert video_autoencoder.same_latents(first, None) is first
    other = autoencoder_kl.recipe(width=8, size=16)
    with pytest.raises(ValueError, match="another encoder"):
        video_autoencoder.same_latents(other.model.autoencoder, recipe)
    assert isinstance(latent_diffusion.recipe(16, autoencoder=recipe, size=16), Recipe)


@pytest.mark.parametrize("make, message", [
    (lambda image: video_autoencoder.recipe(), "vae-mm"),
    (lambda image: video_autoencoder.recipe(autoencoder=vqgan.recipe(width=8, size=16)), "no latents"),
    (lambda image: video_autoencoder.recipe(autoencoder=image, frames=3), "frames=3")])
def test_what_it_cannot_be_made_of(image, make, message):
    with pytest.raises(ValueError, match=message):
        make(image)
