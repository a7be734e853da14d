"""Video Diffusion Models.  Ho et al., 2022.  arXiv:2204.03458

An image U-Net becomes a video U-Net when every block is followed by attention over frames.  Images are
one-frame videos, so both train together.  A clip is extended by replacing what is known and guiding what
is not.

Scaled down: 16 frames of 32 x 32 pixels, or latents of them, which the paper has not.  A label or a text
enters by cross-attention (in the paper: an attention-pooled BERT, added to the time).  Left out: the
super-resolution cascade, the learned mix of variances in ancestral sampling.
"""
import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.guidance import CFG, ReconstructionGuidance, drop_condition
from ..diffusion.predictions import V
from ..diffusion.random import rand, randn_like
from ..diffusion.samplers import ancestral_step, last, noise_of, sample, trajectory
from ..diffusion.schedules import Cosine
from ..diffusion.schemes import autoregressive, follow
from ..layers.attention import FrameAttention
from ..layers.spacetime import Frames, numbers
from ..networks.text import null_of, tokens_for
from ..networks.unet import unet_for
from ..recipe import Count, Preset, Recipe, asking, paper
from .autoencoder_kl import first_stage

LATENTS = {"autoencoder": "vae-mm", "width": 48, "images": 2}
PRESETS = {
    "smoke": Preset(steps=20, batch_size=8, recipe={"width": 16, "frames": 8, "size": 16}),
    "laptop": Preset(steps=3000, batch_size=4, lr=3e-3, init="img-mm", recipe=LATENTS),
    "t4": Preset(steps=30_000, batch_size=32, lr=1e-3, init="img-mm", recipe=LATENTS),
}


@paper
def recipe(width: int = 32, frames: int = 16, size: int = 32, channels: int = 1,
           images: Count = 4, classes: Count = 0, words: Count = 0, length: int = 12,
           autoencoder: Recipe | None = None) -> Recipe:
    """Clips of so many frames; for a `label` if classes > 0, for a `text` of so many words if words > 0.

    images: how many independent frames are appended to every clip of a batch (0, 4 and 8 in the paper).
    """
    first, shape, item = first_stage(autoencoder, (channels, size, size))
    tokens, null = tokens_for(classes, words, length), null_of(classes, words, length)
    net = unet_for(shape, autoencoder is not None, width, tokens=tokens, temporal=FrameAttention)
    schedule = Cosine()
    denoiser = Denoiser(net, schedule, V(), stratified(schedule))

    def loss(batch):                                           # sec. 3: joint training
        z = first.encode(batch["x"], randn_like)               # [B, C, F, H, W]
        cond = drop_condition({name: batch[name] for name in null}, null, p=0.1)
        return denoiser.loss(with_images(z, images, own=bool(null)),
                             frames=joint(z, images, batch.get("fps")), **cond)

    def draw(noise, cond, steps=25 if null else 50, step=ancestral_step, scale=2.0 if null else 1.0,
             start=None, w_r=2.0, langevin=1, scheme=autoregressive, stride=1, bar=False):
        guided, start = CFG(denoiser, scale, null), None if start is None else first.encode(start)

        def make(noise, index, seen, at):
            known = {"frames": Frames(len(index), index.expand(len(noise), -1) * stride)} | cond
            if not len(at):
                return sample(guided, noise, steps, step, bar, **known)
            times = max(1, steps // (1 + langevin))            # as many evaluations
            return extend(guided, seen, noise, times, w_r, langevin, at=at, bar=bar, **known)

        return follow(scheme, make, noise, start, frames)

    return Recipe(denoiser, loss, asking(draw, null), (shape[0], frames, *shape[1:]), autoencoder=first,
                  data="slow_mnist" if words else "bouncing_mnist", item=(item[0], frames, *item[1:]))


def with_images(clip: Tensor, images: int, own: bool = False) -> Tensor:
    """Clips [B, C, F, H, W] and, behind each, so many frames of another one, in any order.

    own   frames of the clip itself, where these share its caption
    """
    others, batch, channels = clip if own else clip.roll(1, 0), *clip.shape[:2]
    pick = (rand(batch, images, device=clip.device) * clip.shape[2]).long()    # [B, images]
    pick = pick[:, None, :, None, None].expand(-1, channels, -1, *clip.shape[3:])
    return torch.cat([clip, others.gather(2, pick)], dim=2)


def joint(clip: Tensor, images: int, fps: Tensor | None = None) -> Frames:
    """The frames of a clip see one another; each image behind them sees only itself.

    fps [B]: clips of fewer than 8 frames per second skip some, and their frames have numbers that say so.
    """
    count = clip.shape[2]
    mask = torch.eye(count + images, dtype=torch.bool, device=clip.device)
    mask[:count, :count] = True
    return Frames(count + images, numbers(clip, images, fps), mask.expand(len(clip), -1, -1))


def extend(denoiser, seen: Tensor, noise: Tensor, times: int | Tensor = 25, scale: float = 2.0,
           langevin: int = 1, delta: float = 0.1, at: Tensor | None = None, bar: bool = False,
           **cond) -> Tensor:
    """A video like noise [B, C, F, H, W] that shows `seen` at the frames `at`, the first ones by default.

    scale = 0 is the replacement method; with scale > 0 the other frames are guided as well (eq. 7).  langevin
    steps correct x after every step of the sampler: there are (1 + langevin) times - langevin evaluations.
    """
    at = torch.arange(seen.shape[2], device=noise.device) if at is None else at
    guide = ReconstructionGuidance(denoiser, lambda x0: x0[:, :, at], seen, scale) if scale else denoiser

    def replaced(x: Tensor, t: Tensor) -> Tensor:              # at the current level, with fresh noise
        return x.index_copy(2, at, denoiser.add_noise(seen, t, torch.randn_like(seen)))

    def step(_, x, t, s, **cond):
        x = replaced(ancestral_step(guide, x, t, s, **cond), s)
        for _ in range(langevin if s.any() else 0):
            _, sigma = denoiser.schedule.at(s, x)
            score = -noise_of(denoiser.schedule, x, guide(x, s, **cond), s)    # times sigma
            moved = x + delta / 2 * sigma * score + delta**0.5 * sigma * torch.randn_like(x)
            x = moved.index_copy(2, at, x[:, :, at])
        return x

    times = denoiser.schedule.times(times) if isinstance(times, int) else times
    first = times[:1].to(noise)
    x = replaced(denoiser.schedule.at(first, noise)[1] * noise, first.expand(len(noise)))
    return last(trajectory(denoiser, x, times, step, bar, **cond))
