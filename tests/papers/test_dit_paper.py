import pytest
import torch
import torch.nn.functional as F
from conftest import wake
from torch import nn

from diffusion_course.diffusion.guidance import CFG
from diffusion_course.diffusion.samplers import sample
from diffusion_course.layers.embeddings import LabelToken
from diffusion_course.networks.dit import BLOCKS
from diffusion_course.papers import autoencoder_kl, dit
from diffusion_course.training.trainer import Trainer

TINY = {"dim": 32, "depth": 2, "size": 16}


def batch(n=4):
    x = F.interpolate(torch.randn(n, 1, 4, 4), 16, mode="bilinear").clamp(-1, 1)
    return {"x": x, "label": torch.arange(n) % 10}


@pytest.mark.parametrize("block", BLOCKS)
def test_it_trains_and_draws_with_every_block(block):
    recipe = dit.recipe(**TINY, block=block)
    kind, doors = BLOCKS[block], recipe.model.net.doors
    assert all(type(each) is kind for each in recipe.model.net.blocks)
    table = doors.embed["label"] if kind.modulated else doors.tokens["label"]
    assert isinstance(table, nn.Embedding if kind.modulated else LabelToken) and table.num_embeddings == 11
    before = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([batch(16)] * 3, 3)]
    assert torch.tensor(losses).isfinite().all()
    still = {name for name, p in recipe.model.named_parameters() if torch.equal(p, before[name])}
    assert not still
    x = recipe.draw(3, seed=0, **recipe.quick(3) | {"steps": 2})
    assert x.shape == (3, 1, 16, 16) and x.isfinite().all()


def test_on_latents_the_autoencoder_stays_as_it_is():
    first = autoencoder_kl.recipe(width=8, size=16)
    first.model.autoencoder.std.fill_(0.4)
    recipe, given = dit.recipe(**TINY, patch=2, autoencoder=first), batch()
    before = {name: x.clone() for name, x in first.model.state_dict().items()}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([given] * 2, 2)]
    assert torch.tensor(losses).isfinite().all() and recipe.item == (1, 16, 16)
    assert all(torch.equal(x, before[name]) for name, x in first.model.state_dict().items())
    x = recipe.draw(2, seed=0, label=torch.tensor([1, 2]), steps=2)
    torch.manual_seed(0)
    with torch.no_grad(), recipe.ema.swapped():
        z = recipe.sample(torch.randn(2, 4, 4, 4), torch.tensor([1, 2]), steps=2)
    torch.testing.assert_close(x, first.model.autoencoder.decode(z))
    seen = []
    recipe.model.loss = lambda z, **cond: seen.append(z) or z.sum()
    torch.manual_seed(3)
    recipe.loss(given)
    torch.manual_seed(3)
    mean, logvar = first.model.autoencoder.moments(given["x"])
    torch.testing.assert_close(seen[0], (mean + (logvar / 2).exp() * torch.randn(mean.shape)) / 0.4)
    assert not seen[0].requires_grad


@pytest.mark.parametrize("block", ["adaln_zero", "in_context"])
def test_a_batch_can_be_learnt_by_heart(block):
    known = {name: x.repeat_interleave(8, 0) for name, x in batch().items()}
    recipe = dit.recipe(**TINY, block=block)
    losses = [p.loss for p in Trainer(recipe, warmup=1, lr=4e-3).run([known] * 40, 40)]
    assert losses[0] == pytest.approx(1, abs=0.1) and sum(losses[-4:]) / 4 < 0.4


def test_a_tenth_of_the_labels_are_dropped():
    recipe, seen = dit.recipe(**TINY, classes=10), []
    recipe.model.loss = lambda x, **cond: seen.append(cond["label"]) or x.sum()
    given = batch(2000)
    recipe.loss(given)
    gone = seen[0] == 10
    assert gone.float().mean() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(seen[0][~gone], given["label"][~gone])


def test_samples_are_guided_towards_their_label():
    recipe, noise, label = dit.recipe(**TINY), torch.randn(2, 1, 16, 16), torch.tensor([3, 4])
    wake(recipe.model)
    with torch.no_grad():
        plain, guided = (recipe.sample(noise, label, steps=2, scale=scale) for scale in (1.0, 2.5))
        torch.testing.assert_close(plain, recipe.sample(noise, label, steps=2))
        torch.testing.assert_close(plain, sample(recipe.model, noise, 2, label=label))
        guide = CFG(recipe.model, 2.5, {"label": torch.tensor(10)})
        torch.testing.assert_close(guided, sample(guide, noise, 2, label=label))
    assert not torch.allclose(plain, guided, atol=1e-4)


def test_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match="block='adain' must be one of adaln_zero, adaln, cross"):
        dit.recipe(block="adain")
    with pytest.raises(ValueError, match="dim=30 must be a multiple of heads=4"):
        dit.recipe(dim=30)
