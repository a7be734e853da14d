import pytest
import torch
import torch.nn.functional as F
from conftest import resumed_equals_unbroken, wake

from diffusion_course.diffusion.guidance import CFG
from diffusion_course.diffusion.samplers import sample
from diffusion_course.papers import autoencoder_kl, latent_diffusion, vqgan
from diffusion_course.training import checkpoints, container
from diffusion_course.training.trainer import Trainer

TINY = {"width": 16, "size": 16}
TEXT = torch.tensor([[1, 9, 0] + 9 * [0], [1, 10, 3, 1, 11] + 7 * [0]])


@pytest.fixture
def first():
    """An autoencoder that changes the scale, too."""
    made = autoencoder_kl.recipe(width=8, size=16)
    made.model.autoencoder.std.fill_(0.4)
    return made


def batch(n=4):
    x = F.interpolate(torch.randn(n, 1, 4, 4), 16, mode="bilinear").clamp(-1, 1)
    return {"x": x, "text": torch.randint(1, 21, (n, 12)), "label": torch.arange(n) % 10}


def spied(recipe):
    """What the recipe's loss hands to the denoiser's."""
    seen = []
    recipe.model.loss = lambda z, **cond: seen.append((z, cond)) or z.sum() * 0
    return seen


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("classes", [0, 10])
def test_it_trains_and_draws_and_leaves_the_autoencoder_alone(first, latent, classes):
    recipe = latent_diffusion.recipe(**TINY, classes=classes, autoencoder=first if latent else None)
    assert recipe.shape == ((4, 4, 4) if latent else (1, 16, 16)) and recipe.item == (1, 16, 16)
    assert recipe.data == ("mnist" if classes else "moving_mnist")
    before = {name: x.clone() for name, x in first.model.state_dict().items()}
    weights = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([batch(16)] * 3, 3)]
    assert torch.tensor(losses).isfinite().all()
    assert all(torch.equal(x, before[name]) for name, x in first.model.state_dict().items())
    still = {name for name, p in recipe.model.named_parameters() if torch.equal(p, weights[name])}
    if classes:                                                # one token gets all attention, whoever asks
        still = {name for name in still if "tokens.norm" not in name and "tokens.attention.q" not in name}
    assert not still
    assert not any(name.startswith("autoencoder") for name in recipe.model.state_dict())
    if latent:
        auto = first.model.autoencoder
        assert recipe.autoencoder is auto and not auto.training
        assert all(p.grad is None and not p.requires_grad for p in auto.parameters())
    x = recipe.draw(2, seed=0, **recipe.quick(2) | {"steps": 2})
    assert x.shape == (2, 1, 16, 16) and x.isfinite().all() and not x.requires_grad


def test_a_batch_can_be_learnt_by_heart(first):
    recipe, known = latent_diffusion.recipe(**TINY, autoencoder=first), batch(2)
    known = {name: x.repeat_interleave(8, 0) for name, x in known.items()}
    losses = [p.loss for p in Trainer(recipe, warmup=1, lr=8e-3).run([known] * 20, 20)]
    assert losses[0] == pytest.approx(1, abs=0.2) and sum(losses[-4:]) / 4 < 0.75


def test_what_is_diffused_is_a_sample_of_unit_scale(first):
    """Sec. 3.1; without an autoencoder the pixels."""
    recipe, given = latent_diffusion.recipe(**TINY, autoencoder=first), batch()
    seen = spied(recipe)
    torch.manual_seed(3)
    recipe.loss(given)
    torch.manual_seed(3)
    mean, logvar = first.model.autoencoder.moments(given["x"])
    z = mean + (logvar / 2).exp() * torch.randn(mean.shape)
    torch.testing.assert_close(seen[0][0], z / 0.4)
    assert not seen[0][0].requires_grad
    pixels = latent_diffusion.recipe(**TINY)
    seen = spied(pixels)
    pixels.loss(given)
    assert seen[0][0] is given["x"]


@pytest.mark.parametrize("name, classes, null", [("text", 0, 0), ("label", 10, 10)])
def test_a_tenth_of_the_conditions_are_dropped(name, classes, null):
    recipe, given = latent_diffusion.recipe(**TINY, classes=classes), batch(2000)
    seen = spied(recipe)
    recipe.loss(given)
    cond, = (cond for _, cond in seen)
    assert set(cond) == {name}
    gone = (cond[name] == null).reshape(2000, -1).all(1)
    assert gone.float().mean() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(cond[name][~gone], given[name][~gone])


@pytest.mark.parametrize("name, classes, cond, null", [
    ("text", 0, TEXT, torch.zeros(2, 12).long()),
    ("label", 10, torch.tensor([3, 4]), torch.tensor([10, 10]))])
def test_samples_are_guided_and_without_a_condition_they_are_not(name, classes, cond, null):
    recipe, noise = latent_diffusion.recipe(**TINY, classes=classes), torch.randn(2, 1, 16, 16)
    wake(recipe.model)
    draw = lambda cond=None, **options: recipe.sample(noise, cond, steps=2, **options)
    guide = CFG(recipe.model, 2.5, {name: null[0]})
    with torch.no_grad():
        torch.testing.assert_close(draw(cond, scale=2.5), sample(guide, noise, 2, **{name: cond}))
        torch.testing.assert_close(draw(cond, scale=1), sample(recipe.model, noise, 2, **{name: cond}))
        torch.testing.assert_close(draw(), draw(null, scale=1), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(draw(cond), draw(cond, scale=1), atol=1e-4)
        other = cond.flip(0)
        other[0] = cond[0]
        change = (draw(other) - draw(cond)).abs().amax((1, 2, 3))
        assert change[0] < 1e-5 and change[1] > 1e-4
    assert recipe.takes(name) and not recipe.takes({"text": "label", "label": "text"}[name])


def test_drawing_decodes(first):
    recipe = latent_diffusion.recipe(**TINY, autoencoder=first)
    wake(recipe.model)
    torch.manual_seed(4)
    noise = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        z = recipe.sample(noise, TEXT, steps=2)
        assert z.shape == noise.shape                          # latents stay latents
        expected = first.model.autoencoder.decode(z)
    torch.testing.assert_close(recipe.draw(2, seed=4, text=TEXT, steps=2), expected)


@pytest.mark.parametrize("size, factor, levels", [(32, 4, 2), (32, 2, 3), (16, 4, 2)])
def test_small_latents_have_room_for_two_levels(size, factor, levels):
    auto = autoencoder_kl.recipe(width=8, size=size, factor=factor)
    assert latent_diffusion.recipe(width=8, size=size, autoencoder=auto).model.net.factor == 2**(levels - 1)


def test_items_are_what_the_autoencoder_was_made_for():
    auto = autoencoder_kl.recipe(width=8, size=16, channels=3)
    recipe = latent_diffusion.recipe(width=8, autoencoder=auto)
    assert recipe.shape == (4, 4, 4) and recipe.item == (3, 16, 16)


def test_an_autoencoder_that_makes_no_latents_is_refused():
    for other in (vqgan.recipe(width=8, size=16), latent_diffusion.recipe(**TINY)):
        with pytest.raises(ValueError, match="autoencoder"):
            latent_diffusion.recipe(**TINY, autoencoder=other)


def test_a_checkpoint_names_its_autoencoder(first, tmp_path, monkeypatch):
    """Its name and SHA-256 stand in the header, its weights do not; another of that name is refused."""
    monkeypatch.chdir(tmp_path)
    path = checkpoints.save_model(tmp_path / "runs" / "first" / "model.safetensors", first)
    loaded = checkpoints.load_model(path)
    recipe = latent_diffusion.recipe(**TINY, autoencoder=loaded)
    wake(recipe.model)
    out = checkpoints.save_model(tmp_path / "latent.safetensors", recipe)
    assert container.read_header(out)["kwargs"]["autoencoder"] == checkpoints.identity(path)
    assert not any("coder.decoder" in name for name in container.read(out)[0])
    again = checkpoints.load_model(out)
    assert again.autoencoder.std.item() == pytest.approx(0.4, rel=1e-3)
    torch.testing.assert_close(again.draw(2, seed=0, text=TEXT, steps=2),
                               recipe.draw(2, seed=0, text=TEXT, steps=2), rtol=5e-2, atol=5e-2)
    first.model.autoencoder.std.fill_(0.5)                     # the same run, trained on
    checkpoints.save_model(path, first)
    with pytest.raises(container.CheckpointError, match="trained with a first of SHA-256 .* is not here"):
        checkpoints.load_model(out)
    path.unlink()
    with pytest.raises(container.CheckpointError, match="trained with a first of SHA-256 .* is not here"):
        checkpoints.load_model(out)


def test_a_resumed_run_equals_an_unbroken_one(first, tmp_path):
    first = checkpoints.load_model(checkpoints.save_model(tmp_path / "first.safetensors", first))

    def trainer(folder):
        torch.manual_seed(0)
        made = latent_diffusion.recipe(**TINY, autoencoder=first)
        return Trainer(made, tmp_path / folder, steps=2, warmup=1, save_every=1)

    resumed_equals_unbroken(trainer, [batch(), batch()])
