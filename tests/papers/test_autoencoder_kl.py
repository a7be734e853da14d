import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion_course.papers import autoencoder_kl, vqgan

TINY = {"width": 8, "size": 16}


def posterior(recipe, x, seed):
    """The distribution of latents, and the sample that the loss draws after this seed."""
    mean, logvar = recipe.model.autoencoder.moments(x)
    torch.manual_seed(seed)
    return Normal(mean, (logvar / 2).exp()), mean + (logvar / 2).exp() * torch.randn(mean.shape)


def test_the_loss_is_that_of_a_sample_and_the_divergence_from_a_standard_normal():
    recipe = autoencoder_kl.recipe(**TINY, kl_weight=0.3, perceptual=0.0, adversarial=0.0)
    recipe.model.eval()
    x = torch.randn(4, 1, 16, 16)
    q, z = posterior(recipe, x, 5)
    pixels = (x - recipe.model.autoencoder.decoder(z)).abs().mean()
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum() / x.numel()  # summed over latents, a mean over pixels
    torch.manual_seed(5)
    loss = recipe.loss({"x": x})
    torch.testing.assert_close(loss, pixels + 0.3 * kl)
    torch.manual_seed(6)
    assert not torch.allclose(recipe.loss({"x": x}), loss, atol=1e-6, rtol=0)


def test_std_is_the_mean_of_those_of_the_first_latents():
    recipe, found = autoencoder_kl.recipe(**TINY), []
    auto = recipe.model.autoencoder
    for n in range(5):
        x = (n + 1) * torch.randn(4, 1, 16, 16)
        found.append(posterior(recipe, x, n)[1].std())
        torch.manual_seed(n)
        recipe.loss({"x": x})
        torch.testing.assert_close(auto.std, torch.stack(found).mean().detach())
    assert max(found) > 1.02 * min(found)
    recipe.model.calls.fill_(5000)                             # and afterwards a running one over 100
    before = auto.std.clone()
    q, z = posterior(recipe, x, 9)
    torch.manual_seed(9)
    recipe.loss({"x": x})
    torch.testing.assert_close(auto.std, before + 0.01 * (z.std().detach() - before))
    assert not auto.std.requires_grad
    before = auto.std.clone()
    recipe.model.eval()
    recipe.loss({"x": 9 * x})
    assert torch.equal(auto.std, before)


def test_latents_get_unit_scale():
    recipe, x = autoencoder_kl.recipe(**TINY), torch.randn(16, 1, 16, 16)
    auto = recipe.model.autoencoder
    auto.encoder[-1].weight.data[:4].mul_(30)                   # of the means
    assert auto.encode(x).std() > 1.5
    recipe.loss({"x": x})
    assert auto.encode(x, torch.randn_like).std().item() == pytest.approx(1, abs=0.03)


def test_shapes_follow_the_arguments():
    recipe = autoencoder_kl.recipe(width=8, size=32, channels=3, latent=2, factor=8)
    assert recipe.shape == (2, 4, 4) and recipe.item == (3, 32, 32)
    assert recipe.draw(2, seed=0).shape == (2, 3, 32, 32)
    assert autoencoder_kl.PRESETS is vqgan.PRESETS
    with pytest.raises(ValueError, match="factor=3 must be a power of two"):
        autoencoder_kl.recipe(factor=3)
