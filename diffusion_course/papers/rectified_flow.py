"""Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow.  Liu et al., 2022.
arXiv:2209.03003

Draw straight lines from noise to data and learn their direction wherever they pass.  The lines cross, the
flow that is learned cannot; train again on the pairs that it makes (reflow), and its paths become straight,
so that a single step will do.

Scaled down: 32 x 32 images, thousands of pairs where the paper takes a million, an L2 loss for distillation.
The paper's clock runs from noise (0) to data (1); ours runs the other way.
"""
from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser, stratified
from ..diffusion.ode import velocity
from ..diffusion.predictions import Flow
from ..diffusion.random import rand
from ..diffusion.samplers import euler_step, heun_step, sample, trajectory
from ..diffusion.schedules import Straight
from ..networks.unet import image_unet
from ..recipe import Recipe, paper
from . import ddpm

PRESETS = ddpm.PRESETS  # the same network on the same data
PAIRS = 4_000_000_007  # a seed that nobody draws samples with, so that none is of noise that was trained on


@paper
def recipe(width: int = 32, channels: int = 1, size: int = 32, teacher: Recipe | None = None,
           pairs: int = 3072, distill: bool = False) -> Recipe:
    """With a teacher, a trained flow, start from its weights and learn from so many of its own pairs: reflow.

    distill learns the first step only, from pure noise all the way (sec. 2.2).  Distil last.
    """
    net = image_unet(channels, width=width)
    schedule = Straight()
    denoiser, made = Denoiser(net, schedule, Flow(), stratified(schedule)), []
    if teacher is None and distill:
        raise ValueError("distill=True needs a teacher, such as teacher=rectified_flow")
    if teacher is not None:
        own = {"width": width, "channels": channels, "size": size}
        theirs = {name: teacher.origin.kwargs.get(name) for name in own}
        if teacher.origin.paper != "rectified_flow" or theirs != own:
            raise ValueError(f"teacher is a {teacher.origin.paper} with {theirs}; its pupil would be a "
                             f"rectified_flow with {own}")
        net.load_state_dict(teacher.model.net.state_dict())

    def loss(batch):
        x0, noise = batch["x"], batch.get("noise")             # eq. 1, unless a batch brings its pairs
        if teacher is not None and noise is None:
            if not made:
                made.extend(a.to(x0.device) for a in make_pairs(teacher.model, teacher.shape, pairs))
            pick = (rand(len(x0), device=x0.device) * pairs).long()
            x0, noise = (a[pick].float() for a in made)        # a pair stays together
        return denoiser.loss(x0, x0.new_ones(len(x0)) if distill else None, noise)

    def draw(noise, steps=1 if distill else 50, step=euler_step, bar=False):
        return sample(denoiser, noise, steps, step, bar)

    frozen = () if teacher is None else (teacher.model,)
    return Recipe(denoiser, loss, draw, (channels, size, size), frozen=frozen)


def make_pairs(denoiser, shape: tuple[int, ...], n: int, steps: int = 25, step=heun_step,
               batch_size: int = 256, seed: int = PAIRS) -> tuple[Tensor, Tensor]:
    """n pairs of what the flow makes and the noise it made it from, in half precision (sec. 2.2).

    The pairs carry the solver's error: 25 Heun steps are 49 evaluations.
    """
    from tqdm import tqdm

    device, generator = next(denoiser.parameters()).device, torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *shape, generator=generator).to(device)
    parts = tqdm(noise.split(batch_size), desc="pairs", unit="batch", leave=False)
    return torch.cat([sample(denoiser, part, steps, step).half() for part in parts]), noise.half()


@torch.no_grad()
def budget(denoiser, x0: Tensor, noise: Tensor, steps: int = 100) -> dict[str, float]:
    """What the pairs of x0 and noise cost, and where it goes: straight = transport + curvature + crossing.

    E|X1 - X0|^2 = E|Z1 - Z0|^2 + S(Z) + V(X), exactly for the best flow (sec. 3): S is measured along the
    paths of the flow, in Euler steps from noise, and V along the lines between the pairs.
    """
    def square(x):
        return x.square().flatten(1).sum(1).mean().item()

    path = [noise, *trajectory(denoiser, noise, torch.linspace(1, 0, steps + 1), euler_step)]
    moved = noise - path[-1]
    curvature = sum(square(moved - steps * (a - b)) for a, b in pairwise(path)) / steps
    t = (torch.arange(len(x0), device=x0.device) + 0.5) / len(x0)
    crossing = square(noise - x0 - velocity(denoiser, denoiser.add_noise(x0, t, noise), t))
    return {"straight": square(noise - x0), "transport": square(moved), "curvature": curvature,
            "crossing": crossing}
