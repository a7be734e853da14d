"""The first stage of Align your Latents.  Blattmann et al., 2023.  arXiv:2304.08818

Latents that were decoded one by one flicker.  New layers in the decoder look across time; they are trained on
videos, against a judge that sees several frames at once.  The encoder stays, so image and video models share
their latents.

Scaled down: 8 frames of 32 x 32 pixels.  LPIPS is replaced as in vqgan.py.
"""
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import FrameAttention
from ..layers.spacetime import Temporal, TemporalConv
from ..networks.autoencoder import Autoencoder, PatchDiscriminator
from ..recipe import Count, Preset, Recipe, paper
from .autoencoder_kl import first_stage
from .vqgan import FirstStage

PRESETS = {
    "smoke": Preset(steps=20, batch_size=4, recipe={"autoencoder": "vae-mm", "start": 10}),
    "laptop": Preset(steps=1000, batch_size=8, recipe={"autoencoder": "vae-mm"}),
    "t4": Preset(steps=10_000, batch_size=32, lr=1e-3, recipe={"autoencoder": "vae-mm", "start": 2000}),
}
LAYERS = ("both", "conv", "attention")


class Aligner(Temporal):
    """alpha h + (1 - alpha) time(h) (sec. 3.1), alpha in (0, 1) learned: h [(B F), C, H, W] -> same.

    time is a convolution, then attention over frames.  They start as the identity, and so does this.
    known    channels of Frames.known: time sees them resized and embedded
    layers   "conv" or "attention" leaves the other out
    """

    def __init__(self, channels: int, dim: int | None = None, known: int = 0, layers: str = "both"):
        super().__init__()
        self.conv = Temporal() if layers == "attention" else TemporalConv(channels, space=3)
        self.attention = Temporal() if layers == "conv" else FrameAttention(channels)
        self.known = nn.Conv2d(known, channels, 3, padding=1) if known else None
        self.gate = nn.Parameter(torch.zeros(()))              # of infinity: alpha = 1, the image model
        if known:
            nn.init.zeros_(self.known.weight), nn.init.zeros_(self.known.bias)

    @property
    def alpha(self) -> Tensor:
        return self.gate.sigmoid()

    def forward(self, h, frames, e=None):
        known = None if self.known is None else frames.known
        x = h if known is None else h + self.known(F.adaptive_avg_pool2d(known, h.shape[2:]))
        x = self.attention(self.conv(x, frames), frames)
        return torch.lerp(x, h, self.alpha.to(x.dtype))


@paper
def recipe(autoencoder: Recipe | None = None, frames: int = 8, start: Count = 300, perceptual: float = 1.0,
           adversarial: float = 0.2) -> Recipe:
    """A trained autoencoder_kl, whose decoder gets layers over time; they and the judge are what trains.

    sample(noise, x=videos) gives the videos back as it sees them.
    """
    if autoencoder is None:
        raise ValueError("autoencoder=... must be a trained model of autoencoder_kl, such as vae-mm")
    if frames < 4:
        raise ValueError(f"frames={frames} must be at least 4, what the judge sees at once")
    image, shape, item = first_stage(autoencoder, ())
    first = deepcopy(image).requires_grad_(False)
    last, judge = first.add_temporal(Aligner)[-1], PatchDiscriminator(item[0], video=True)
    model = FirstStage(first, item[0], start, perceptual, adversarial, judge,
                       last.attention.attention.out)

    def loss(batch):
        return model.loss(batch["x"], first.decode(first.encode(batch["x"])))

    def draw(noise, x=None):
        return first.decode(noise if x is None else first.encode(x))

    return Recipe(model, loss, draw, (shape[0], frames, *shape[1:]), data="moving_mnist",
                  item=(item[0], frames, *item[1:]))


def same_latents(image: Autoencoder, autoencoder: Recipe | None) -> Autoencoder:
    """The Autoencoder of a recipe, for None that of an image model; a ValueError unless both encode alike."""
    if autoencoder is None:
        return image
    first = first_stage(autoencoder, ())[0]
    theirs, ours = (part.encoder.state_dict() for part in (image, first))
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours):
        raise ValueError(f"autoencoder={autoencoder.origin.paper} has another encoder than the image model's")
    return first
