"""The first stage of High-Resolution Image Synthesis with Latent Diffusion Models.  Rombach et al., 2021.
arXiv:2112.10752

An autoencoder, trained once, removes the detail that costs many bits and carries little meaning.  Diffusion
then works on what is left: small, smooth, and of unit scale.

Scaled down: 32 x 32 images, latents of 4 x 8 x 8; discriminator and features as in vqgan.py.
"""
from ..diffusion.random import randn_like
from ..networks.autoencoder import Autoencoder, Pixels
from ..recipe import Count, Recipe, paper
from . import vqgan

PRESETS = vqgan.PRESETS  # the same network on the same data


@paper
def recipe(width: int = 32, channels: int = 1, size: int = 32, latent: int = 4, factor: int = 4,
           kl_weight: float = 1e-4, start: Count = 750, perceptual: float = 1.0,
           adversarial: float = 0.5) -> Recipe:
    """Latents of frames of Moving MNIST; sample(noise, x=images) gives the images back as it sees them.

    kl_weight multiplies the KL divergence from N(0, I), summed over an image as its pixels are (the paper's
    code has 1e-6, for twelve times as many pixels per latent).
    """
    autoencoder = Autoencoder(channels, latent, width, factor)
    model = vqgan.FirstStage(autoencoder, channels, start, perceptual, adversarial)

    def loss(batch):
        x = batch["x"]
        mean, logvar = autoencoder.moments(x)
        z = mean + (logvar / 2).exp() * randn_like(mean)
        if model.training:                                     # the mean of the first 100, then a running one
            newest = 1 / (model.calls + 1).clamp(max=100)
            autoencoder.std.lerp_(z.detach().std(), newest)
        kl = (mean.square() + logvar.exp() - 1 - logvar).sum() / 2             # of the whole batch
        return model.loss(x, autoencoder.decoder(z)) + kl_weight * kl / x.numel()

    def draw(noise, x=None):
        return autoencoder.decode(noise if x is None else autoencoder.encode(x))

    side = size // factor
    return Recipe(model, loss, draw, (latent, side, side), data="moving_mnist", item=(channels, size, size))


def first_stage(autoencoder: Recipe | None, pixels: tuple[int, ...]):
    """The Autoencoder of a recipe, the shape of its latents, and that of its images; for None, of pixels."""
    if autoencoder is None:
        return Pixels(), pixels, pixels
    first = getattr(autoencoder.model, "autoencoder", None)
    if not isinstance(first, Autoencoder):
        raise ValueError(f"autoencoder={autoencoder.origin.paper} makes no latents to diffuse; choose one of "
                         "autoencoder_kl, such as vae-mm")
    return first, autoencoder.shape, autoencoder.item
