"""Taming Transformers for High-Resolution Image Synthesis.  Esser, Rombach & Ommer, 2020.  arXiv:2012.09841

Learn a vocabulary of image patches: an autoencoder whose latents are the entries of a codebook, kept sharp by
a discriminator that judges patches.  What it makes of an image, a grid of tokens, is what a transformer can
learn to write.

Scaled down: 32 x 32 images as 8 x 8 tokens out of 256.  LPIPS, which needs a VGG trained on ImageNet, is
replaced by the discriminator's own features (Larsen et al. 2015, arXiv:1512.09300).  The codes follow the
means of what chose them instead of a gradient.  Left out: the transformer, which papers on tokens bring.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..diffusion.random import leads
from ..networks.autoencoder import PatchDiscriminator
from ..networks.tokens import VQAutoencoder
from ..recipe import Count, Preset, Recipe, paper

PRESETS = {
    "smoke": Preset(steps=40, batch_size=32, recipe={"width": 8, "start": 20}),
    "laptop": Preset(steps=1500, batch_size=64),
    "t4": Preset(steps=10_000, batch_size=128, lr=1e-3, recipe={"width": 64, "start": 2000}),
}


class FirstStage(nn.Module):
    """An autoencoder and its judge.  Their weights are disjoint, so one sum of losses trains both.

    start        steps before the judge is heard; until then pixels and features decide
    perceptual   weight of the distance of features
    adversarial  weight of the judge, once its gradient has the size of the rest's
    judge        by default one of images
    last         the layer at whose weight the two gradients are compared (eq. 7), by default the last one
    """

    def __init__(self, autoencoder: nn.Module, channels: int, start: int, perceptual: float,
                 adversarial: float, judge: nn.Module | None = None, last: nn.Module | None = None):
        super().__init__()
        self.autoencoder, self.judge = autoencoder, judge or PatchDiscriminator(channels)
        self.last = (last or autoencoder.decoder[-2],)         # in a tuple it is not counted twice
        self.start, self.perceptual, self.adversarial = start, perceptual, adversarial
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def loss(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """How far x_hat is from x, and how easily it is told from real images; plus the judge's own loss."""
        frozen = {name: p.detach() for name, p in self.judge.named_parameters()}
        real, fake = self.judge(x), self.judge(x_hat.detach())
        seen = functional_call(self.judge, frozen, x_hat)      # its gradient reaches x_hat, not the judge
        features = sum((a.detach() - b).abs().mean() for a, b in zip(real[:-1], seen[:-1]))
        distance = (x - x_hat).abs().float().mean() + self.perceptual * features
        judged = -seen[-1].mean()
        hinge = (F.relu(1 - real[-1]).mean() + F.relu(1 + fake[-1]).mean()) / 2
        heard = (self.calls >= self.start).to(x)
        self.calls += self.training and leads()
        learning = self.adversarial and torch.is_grad_enabled()
        balance = self.adversarial * self.balance(distance, judged) if learning else 0.0
        return distance + heard * (balance * judged + hinge)

    def balance(self, distance: Tensor, judged: Tensor) -> Tensor:
        """The ratio of the two gradients at the last layer (eq. 7)."""
        ours, theirs = (torch.autograd.grad(loss, self.last[0].weight, retain_graph=True)[0].norm()
                        for loss in (distance, judged))
        return (ours / (theirs + 1e-4)).clamp(max=1e4).detach()


@paper
def recipe(width: int = 32, channels: int = 1, size: int = 32, latent: int = 8, factor: int = 4,
           codes: int = 256, start: Count = 750, perceptual: float = 1.0, adversarial: float = 0.5,
           commitment: float = 0.25) -> Recipe:
    """Tokens of frames of Moving MNIST; sample(noise, x=images) gives the images back as it sees them."""
    if size % factor:
        raise ValueError(f"size={size} must be a multiple of factor={factor}")
    autoencoder = VQAutoencoder(channels, latent, width, factor, codes)
    model = FirstStage(autoencoder, channels, start, perceptual, adversarial)

    def loss(batch):
        x = batch["x"]
        z = autoencoder.encoder(x).float()
        z_q, _ = autoencoder.codebook(z)
        stay = F.mse_loss(z, z_q.detach())                     # eq. 4, without the codes' own term
        return model.loss(x, autoencoder.decoder(z_q)) + commitment * stay

    def draw(noise, x=None):
        return autoencoder.decode(autoencoder.codebook.nearest(noise) if x is None else autoencoder.encode(x))

    side = size // factor
    return Recipe(model, loss, draw, (latent, side, side), data="moving_mnist", item=(channels, size, size))
