"""The first stage of vqgan.py, which autoencoder_kl.py shares, and what is vqgan's own."""
import pytest
import torch
import torch.nn.functional as F
from conftest import resumed_equals_unbroken
from torch import nn

from diffusion_course.networks.autoencoder import Autoencoder
from diffusion_course.papers import autoencoder_kl, vqgan
from diffusion_course.papers.vqgan import FirstStage
from diffusion_course.training import checkpoints, container
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "size": 16}
MAKE = {"vqgan": lambda **kwargs: vqgan.recipe(**{**TINY, "codes": 16} | kwargs),
        "autoencoder_kl": lambda **kwargs: autoencoder_kl.recipe(**TINY | kwargs)}
both = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def images(n=4):
    return F.interpolate(torch.randn(n, 1, 4, 4), 16, mode="bilinear").clamp(-1, 1)


def copies(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


def changed(module, before):
    return {name for name, x in module.state_dict().items() if not torch.equal(x, before[name])}


# ---- the recipes

@both
def test_it_trains_and_draws(make):
    recipe, x = make(start=1), images()
    before, weights = copies(recipe.model), {name for name, _ in recipe.model.named_parameters()}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([{"x": x}] * 3, 3)]
    assert torch.tensor(losses).isfinite().all()
    assert weights < changed(recipe.model, before)             # and the buffers
    assert recipe.item == (1, 16, 16) and recipe.data == "moving_mnist"
    for drawn in (recipe.draw(2, seed=0), recipe.draw(4, x=x)):
        assert drawn.shape[1:] == (1, 16, 16) and drawn.isfinite().all() and not drawn.requires_grad


@both
def test_it_draws_what_latents_show_or_images_as_it_sees_them(make):
    recipe, x = make(), images()
    auto, noise = recipe.model.autoencoder, torch.randn(4, *recipe.shape)
    torch.testing.assert_close(recipe.draw(4, x=x), auto.decode(auto.encode(x)))
    z = auto.codebook.nearest(noise) if make is MAKE["vqgan"] else noise
    torch.testing.assert_close(recipe.sample(noise), auto.decode(z))
    assert recipe.takes("x") and recipe.asked({"x": x, "label": x})["x"] is x


@both
def test_a_batch_can_be_learnt_by_heart(make):
    recipe, x = make(start=30), images()
    before = (recipe.draw(4, x=x) - x).abs().mean()
    list(Trainer(recipe, warmup=1, lr=4e-3, ema=0.9).run([{"x": x}] * 45, 45))
    assert (recipe.draw(4, x=x) - x).abs().mean() < 0.35 * before


@both
def test_a_resumed_run_equals_an_unbroken_one(make, tmp_path):
    """Its buffers too: the codes and their use, std, and how many steps the judge has waited."""
    batches = [{"x": images()} for _ in range(4)]

    def trainer(folder):
        torch.manual_seed(0)
        return Trainer(make(start=2), tmp_path / folder, steps=4, warmup=1, save_every=2)

    a = resumed_equals_unbroken(trainer, batches)
    assert a["model.calls"] == a["ema.calls"] == 4
    loaded = checkpoints.load_model(tmp_path / "a" / "model.safetensors")
    assert loaded.model.calls == 4
    x = batches[0]["x"]
    torch.testing.assert_close(loaded.draw(4, x=x), whole_draw(make, tmp_path, x), rtol=5e-2, atol=5e-2)


def whole_draw(make, folder, x):
    """With the averaged weights of the state, which are not rounded to half precision."""
    recipe, tensors = make(start=2), container.read_averaged(folder / "a" / "state.safetensors")[0]
    recipe.model.load_state_dict(tensors)
    return recipe.draw(4, x=x)


@both
def test_it_trains_in_half_precision(make):
    list(Trainer(make(start=0), warmup=1, precision="bf16", cpu=True).run([{"x": images()}] * 2, 2))


@both
def test_its_loss_can_be_told_without_gradients(make):
    recipe = make()
    recipe.model.eval()
    with torch.no_grad():
        assert recipe.loss({"x": images()}).isfinite()


@both
def test_the_judge_waits_for_as_many_steps_in_parts_of_batches(make):
    recipe = make()
    list(Trainer(recipe, warmup=1, accumulate=2).run([{"x": images()}] * 2, 2))
    assert recipe.model.calls == 2


# ---- the judge

class Mean(nn.Module):
    """An autoencoder of a few weights; its last layer but one has a weight, as in a decoder."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1), nn.Identity())

    def forward(self, x):
        return self.decoder(x)


def stage(start=0, perceptual=0.7, adversarial=0.5, auto=None):
    return FirstStage(auto or Mean(), 1, start, perceptual, adversarial).train()


def parts(model, x, x_hat):
    """The four terms, term by term."""
    real, fake = model.judge(x), model.judge(x_hat)
    features = sum((a - b).abs().mean() for a, b in zip(real[:2], fake[:2]))
    return {"pixels": (x - x_hat).abs().mean(), "features": features, "judged": -fake[2].mean(),
            "hinge": ((1 - real[2]).clamp_min(0).mean() + (1 + fake[2]).clamp_min(0).mean()) / 2}


def gradients(loss, module):
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, module.parameters())]


def test_the_loss_is_the_sum_of_its_terms_and_each_network_hears_its_own():
    model, x = stage(), images()
    auto, judge = model.autoencoder, model.judge
    x_hat = auto(x)
    p = parts(model, x, x_hat)
    distance, last = p["pixels"] + 0.7 * p["features"], auto.decoder[-2].weight
    ours, theirs = (torch.autograd.grad(part, last, retain_graph=True)[0].norm()
                    for part in (distance, p["judged"]))
    balance = (ours / (theirs + 1e-4)).detach()                # eq. 7
    torch.testing.assert_close(model.balance(distance, p["judged"]), balance)
    loss = model.loss(x, x_hat)
    torch.testing.assert_close(loss, distance + 0.5 * balance * p["judged"] + p["hinge"])
    expected = gradients(distance + 0.5 * balance * p["judged"], auto)
    torch.testing.assert_close(gradients(loss, auto), expected)
    hinge = parts(model, x, x_hat.detach())["hinge"]           # the judge learns from nothing else
    torch.testing.assert_close(gradients(loss, judge), gradients(hinge, judge))
    assert all(g.any() for g in gradients(loss, judge)[:-1] + expected)        # its last bias: the two cancel


def test_the_weight_of_the_judge_is_bounded_and_carries_no_gradient():
    model, w = stage(), torch.ones(1, 1, 1, 1, requires_grad=True)
    model.autoencoder.decoder[-2].weight = nn.Parameter(w.detach())
    w = model.autoencoder.decoder[-2].weight
    assert model.balance((3 * w).sum(), (w * 0).sum()) == 1e4
    weight = model.balance((3 * w).sum(), (2 * w).sum())
    torch.testing.assert_close(weight, torch.tensor(1.5), rtol=1e-3, atol=0)
    assert not weight.requires_grad


def test_until_it_starts_the_judge_is_not_heard_and_does_not_learn():
    model, x = stage(start=2), images()
    for call in range(4):
        x_hat = model.autoencoder(x)
        p = parts(model, x, x_hat)
        distance = p["pixels"] + 0.7 * p["features"]
        loss = model.loss(x, x_hat)
        heard = any(g.any() for g in gradients(loss, model.judge))
        assert heard == (call >= 2) == (not torch.allclose(loss, distance))
        if not heard:
            torch.testing.assert_close(gradients(loss, model.autoencoder),
                                       gradients(distance, model.autoencoder))
    assert model.calls == 4


def test_steps_are_counted_in_training_only():
    model, x = stage(), images()
    model.loss(x, model.autoencoder(x))
    model.eval().loss(x, model.autoencoder(x))
    assert model.calls == 1


def test_without_its_weights_only_pixels_and_the_judges_own_loss_are_left():
    model, x = stage(perceptual=0.0, adversarial=0.0), images()
    p = parts(model, x, model.autoencoder(x))
    torch.testing.assert_close(model.loss(x, model.autoencoder(x)), p["pixels"] + p["hinge"])


def test_the_last_layer_is_that_of_the_decoder():
    model = stage(auto=Autoencoder(width=8))
    found = [m for m in model.autoencoder.decoder.modules() if isinstance(m, nn.Conv2d)][-1]
    w = found.weight
    assert model.balance((2 * w).sum(), w.sum()) == pytest.approx(2, rel=1e-3)


# ---- the codebook in training

def test_codes_move_in_training_only_and_no_optimizer_moves_them():
    recipe, x = MAKE["vqgan"](), images()
    book = recipe.model.autoencoder.codebook
    before = copies(book)
    recipe.model.eval()
    recipe.loss({"x": x})
    recipe.draw(4, x=x)
    assert not changed(book, before)
    trainer = Trainer(recipe, warmup=1)
    assert not any("codebook" in name for name in trainer.weights)
    list(trainer.run([{"x": x}], 1))
    assert changed(book, before) == {"codes", "sums", "use"}
    assert torch.equal(book.codes, trainer.ema.average.autoencoder.codebook.codes)     # not averaged twice


def test_the_encoder_commits_itself_to_its_codes():
    """Eq. 4; its gradient reaches the encoder alone."""
    losses, x = {}, images()
    for commitment in (0.0, 2.0):
        torch.manual_seed(0)
        recipe = MAKE["vqgan"](commitment=commitment, adversarial=0.0)
        recipe.model.eval()
        losses[commitment] = recipe.loss({"x": x})
        auto = recipe.model.autoencoder
    z = auto.encoder(x)
    stay = (z - auto.codebook.look_up(auto.codebook.nearest(z))).square().mean()
    torch.testing.assert_close(losses[2.0] - losses[0.0], 2 * stay)
    gradient = gradients(losses[2.0], auto.encoder)
    assert all(g.any() for g in gradient)                      # pixels reach it too, through the codes


def test_all_of_the_encoder_learns_from_the_pixels():
    recipe = MAKE["vqgan"](commitment=0.0, adversarial=0.0, perceptual=0.0)
    loss = recipe.loss({"x": images()})
    assert all(g.any() for g in gradients(loss, recipe.model.autoencoder.encoder))
