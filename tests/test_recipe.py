import pytest
import torch
from torch import nn

from diffusion_course import papers
from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.ema import EMA
from diffusion_course.diffusion.predictions import V
from diffusion_course.diffusion.random import rows_of
from diffusion_course.diffusion.samplers import ancestral_step, sample
from diffusion_course.diffusion.schedules import Cosine
from diffusion_course.networks.unet import UNet
from diffusion_course.recipe import Recipe, paper, preset_name
from diffusion_course.training.runs import data_of, recipe_of
from diffusion_course.training.trainer import Trainer

TRAINED = [name for name in papers.names() if papers.module(name).PRESETS]


class Autoencoder(nn.Module):
    """Two learned maps and a dropout that must be off."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 2, 4, 4), nn.ConvTranspose2d(2, 1, 4, 4)
        self.dropout = nn.Dropout(0.5)

    def encode(self, x):
        return self.dropout(self.encoder(x))

    def decode(self, z):
        return self.dropout(self.decoder(z))


def latent_recipe(autoencoder):
    denoiser = Denoiser(UNet(2, width=8, multipliers=(1,), attend=(False,)), Cosine(), V())

    def loss(batch):
        return denoiser.loss(autoencoder.encode(batch["x"]))

    return Recipe(denoiser, loss, lambda noise: sample(denoiser, noise, 2, ancestral_step), (2, 4, 4),
                  autoencoder=autoencoder)


def test_a_latent_recipe_leaves_its_autoencoder_alone():
    """Traps of the prototype.

    draw returned a tensor with a gradient, and gradients piled up in the autoencoder.
    """
    autoencoder = Autoencoder()
    recipe = latent_recipe(autoencoder)
    before = {name: x.clone() for name, x in autoencoder.state_dict().items()}
    batch = {"x": torch.randn(4, 1, 16, 16)}
    loss = recipe.loss(batch)
    loss.backward()
    assert all(p.grad is None for p in autoencoder.parameters()) and not autoencoder.training
    list(Trainer(recipe, warmup=1).run([batch] * 2, 2))
    x = recipe.draw(3)
    assert x.shape == (3, 1, 16, 16) and not x.requires_grad
    for name, value in autoencoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(autoencoder.encode(batch["x"]), autoencoder.encode(batch["x"]))  # no dropout
    assert recipe.sample(torch.randn(1, 2, 4, 4)).shape == (1, 2, 4, 4)                 # latents stay latents


def test_draw_samples_the_average_and_restores_the_model():
    """A trap of the prototype: a NaN average still drew finite samples."""
    recipe = latent_recipe(Autoencoder())
    recipe.ema = EMA(recipe.model)
    recipe.model.train()
    recipe.ema.average.net.out[-1].bias.data.fill_(float("nan"))
    assert recipe.draw(1).isnan().all()
    assert recipe.model.training and all(p.isfinite().all() for p in recipe.model.parameters())


def test_draw_with_a_seed_is_reproducible_and_leaves_the_random_state_alone():
    recipe = latent_recipe(Autoencoder())
    nn.init.normal_(recipe.model.net.out[-1].weight, std=0.1)
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    a = recipe.draw(2, seed=1)
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(a, recipe.draw(2, seed=1)) and not torch.equal(a, recipe.draw(2, seed=2))


def test_draw_of_nothing_is_refused():
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        latent_recipe(Autoencoder()).draw(0)


def test_a_recipe_remembers_how_it_was_made():
    @paper
    def recipe(width=8, deep=False):
        return Recipe(nn.Linear(width, 1), None, None, (1,))

    assert recipe(16).origin.kwargs == {"width": 16, "deep": False}
    assert recipe(deep=True).origin.paper == "test_recipe"
    with pytest.raises(TypeError):
        recipe(widht=3)


def test_preset_names(monkeypatch):
    monkeypatch.delenv("DIFFUSION_COURSE_PRESET", raising=False)
    assert preset_name() == "laptop" and preset_name("t4") == "t4"
    monkeypatch.setenv("DIFFUSION_COURSE_PRESET", "smoke")
    assert preset_name() == "smoke"
    with pytest.raises(ValueError, match="preset='huge'"):
        preset_name("huge")


def test_quick_options_are_a_papers_own_unless_those_are_slow():
    from diffusion_course.diffusion.samplers import ddim_step, heun_step
    from diffusion_course.papers import ddim_guidance, ddpm, edm, score_sde

    assert edm.recipe(width=8).quick(3) == {"steps": 18, "step": heun_step}
    for slow in (ddpm.recipe(width=8), score_sde.recipe(width=8)):
        assert slow.quick(3) == {"steps": 50, "step": ddim_step}
    assert ddpm.recipe(width=8, num_steps=20).quick(3) == {"steps": 20, "step": ancestral_step}
    labels = ddim_guidance.recipe(width=8).quick(12)["label"]
    assert labels.tolist() == [*range(10), 0, 1]


def test_items_are_like_noise_unless_it_says_otherwise():
    recipe = latent_recipe(Autoencoder())
    assert recipe.item == recipe.shape == (2, 4, 4)
    other = Recipe(nn.Linear(1, 1), None, None, (2, 4, 4), item=(1, 16, 16))
    assert other.item == (1, 16, 16) and other.shape == (2, 4, 4)


@pytest.mark.parametrize("sample, asked", [
    (lambda noise: noise, set()), (lambda noise, text=None: noise, {"text"}),
    (lambda noise, x=None: noise, {"x"}), (lambda noise, label, text: noise, {"text"}),
    (lambda noise, **cond: noise, set())])
def test_what_items_of_data_ask_for(sample, asked):
    """Captions, and images for those that draw them again; labels come in turn."""
    recipe = Recipe(nn.Linear(1, 1), None, sample, (1,))
    batch = {"x": torch.randn(2, 1), "text": torch.ones(2, 3), "label": torch.zeros(2), "starts": None}
    found = recipe.asked(batch)
    assert set(found) == asked and all(found[name] is batch[name] for name in found)
    assert recipe.asked({"label": torch.zeros(2)}) == {}
    assert {name for name in batch if recipe.takes(name)} - {"label"} == asked


@pytest.mark.parametrize("name", TRAINED)
def test_the_parts_of_a_batch_have_the_mean_loss_of_the_whole(name):
    """So that several processes, or several parts one after the other, train what one does.

    But for what looks across a batch: images beside clips are frames of its other clips, and a judge is
    weighed by gradients of the whole batch.
    """
    apart = {"video_diffusion_models": {"images": 0}, "vqgan": {"adversarial": 0.0}}
    torch.manual_seed(0)
    recipe = recipe_of(name, papers.module(name).PRESETS["smoke"].recipe | apart.get(name, {}))
    for p in recipe.model.parameters():
        if not p.any():                                        # so that what is predicted is not zero
            nn.init.normal_(p, std=0.1)
    recipe.model.eval()                                        # vectors that nobody chose stay where they are
    batch = data_of(recipe, None).batches(8)[0]

    def loss(start, n):
        part = {name: x[start:start + n] for name, x in batch.items()}
        with rows_of(start, 8, torch.Generator().manual_seed(1)):
            return recipe.loss(part).item()

    assert (loss(0, 4) + loss(4, 4)) / 2 == pytest.approx(loss(0, 8), rel=1e-4)
