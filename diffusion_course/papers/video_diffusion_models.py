"""Video Diffusion Models.  Ho et al., 2022.  arXiv:2204.03458

An image U-Net becomes a video U-Net when every block is followed by attention over frames.  Images are
one-frame videos, so both train together.  A clip is extended by replacing what is known and guiding what
is not.

Scaled down: 16 frames of 32 x 32.  Left out: text, the super-resolution cascade.
"""
import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.guidance import ReconstructionGuidance
from ..diffusion.predictions import V
from ..diffusion.random import rand
from ..diffusion.samplers import ancestral_step, last, noise_of, sample, trajectory
from ..diffusion.schedules import Cosine
from ..layers.attention import FrameAttention
from ..layers.spacetime import Frames
from ..networks.unet import UNet
from ..recipe import Preset, Recipe, paper

PRESETS = {
    "smoke": Preset(steps=40, batch_size=8, recipe={"width": 8, "frames": 8, "size": 16}),
    "laptop": Preset(steps=2000, batch_size=16, recipe={"frames": 8, "size": 16}),
    "t4": Preset(steps=20_000, batch_size=16, lr=1e-3, recipe={"width": 48}),
}


@paper
def recipe(width: int = 32, frames: int = 16, size: int = 32, channels: int = 1, images: int = 4) -> Recipe:
    """images: how many independent frames are appended to every clip of a batch (0, 4 and 8 in the paper)."""
    net = UNet(channels, width=width, multipliers=(1, 2, 2), attend=(False, True, True),
               temporal=FrameAttention)
    denoiser = Denoiser(net, Cosine(), V())

    def loss(batch):                                           # sec. 3: joint training
        clip, count = batch["x"], batch["x"].shape[2]
        others = clip.roll(1, 0)                               # images: frames of another clip, in any order
        pick = (rand(len(clip), images, device=clip.device) * count).long()
        pick = pick[:, None, :, None, None].expand(-1, clip.shape[1], -1, *clip.shape[3:])
        return denoiser.loss(torch.cat([clip, others.gather(2, pick)], dim=2), frames=joint(clip, images))

    def draw(noise, steps=64, step=ancestral_step, bar=False):
        return sample(denoiser, noise, steps, step, bar)

    return Recipe(denoiser, loss, draw, (channels, frames, size, size), data="moving_mnist")


def joint(clip: Tensor, images: int) -> Frames:
    """The frames of a clip see one another; each image behind them sees only itself."""
    count = clip.shape[2]
    mask = torch.eye(count + images, dtype=torch.bool, device=clip.device)
    mask[:count, :count] = True
    index = torch.arange(count + images, device=clip.device)
    return Frames(count + images, index.expand(len(clip), -1), mask.expand(len(clip), -1, -1))


def extend(denoiser, start: Tensor, noise: Tensor, times: int | Tensor = 64, scale: float = 2.0,
           langevin: int = 1, delta: float = 0.1, **cond) -> Tensor:
    """A video like noise [B, C, F, H, W] whose first frames are start (sec. 3.1).

    scale = 0 is the replacement method; with scale > 0 the other frames are guided as well (eq. 7).  langevin
    steps correct x after every step of the sampler.
    """
    seen = start.shape[2]
    guide = ReconstructionGuidance(denoiser, lambda x0: x0[:, :, :seen], start, scale) if scale else denoiser

    def replaced(x: Tensor, t: Tensor) -> Tensor:
        known = denoiser.add_noise(start, t, torch.randn_like(start))
        return torch.cat([known, x[:, :, seen:]], dim=2)

    def step(_, x, t, s, **cond):
        x = replaced(ancestral_step(guide, x, t, s, **cond), s)
        for _ in range(langevin if s.any() else 0):
            _, sigma = denoiser.schedule.at(s, x)
            score = -noise_of(denoiser.schedule, x, guide(x, s, **cond), s)    # times sigma
            moved = x + delta / 2 * sigma * score + delta**0.5 * sigma * torch.randn_like(x)
            x = torch.cat([x[:, :, :seen], moved[:, :, seen:]], dim=2)
        return x

    times = denoiser.schedule.times(times) if isinstance(times, int) else times
    first = times[:1].to(noise)
    x = replaced(denoiser.schedule.at(first, noise)[1] * noise, first.expand(len(noise)))
    return last(trajectory(denoiser, x, times, step, **cond))
