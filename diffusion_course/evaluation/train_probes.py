"""Train the probes of clip_probes.py and write data/checkpoints/frame_probe and video_probe.

    python -m diffusion_course.evaluation.train_probes [frame_probe] [video_probe]

About 10 and 25 minutes on one core.  Real MNIST is needed: what it reads, the course is measured by.
"""
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import Batches
from ..data.mnist import mnist
from ..data.moving_mnist import MovingMNIST
from ..training import checkpoints, container
from . import corrupt
from .clip_probes import PROBES, FrameProbe, Probe, VideoProbe, caption_right, load_probe, look, sized


def spoilt(x: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the batch with noise, some blurred; and how much of both [B, 2]."""
    kind, level = torch.rand(len(x)), torch.rand(len(x))
    noise = torch.where(kind < 0.3, 0.5 * level**2, 0)
    blur = 2 * torch.rand(()).item()
    blurred = kind > 0.8
    x = x.clone()
    x[blurred] = corrupt.blur(x[blurred], blur)
    x = x + noise.view(-1, *[1] * (x.ndim - 1)) * torch.randn_like(x)
    return x, torch.stack([5 * noise, blurred * blur], 1)


def many_hot(numbers: Tensor, classes: int) -> Tensor:
    """Which classes occur among numbers [B, K]; -1 is none: [B, classes]."""
    return F.one_hot(numbers + 1, classes + 1).amax(1)[:, 1:].float()


def reordered(x: Tensor) -> tuple[Tensor, Tensor]:
    """Clips of 16 frames [B, C, 16, H, W], some disordered, all with 16 or 8 frames; and their ORDERS [B]."""
    B, _, frames = x.shape[:3]
    count = frames if torch.rand(()) < 0.5 or frames < 16 else frames // 2
    order = torch.randint(0, 6, (B,))                          # half are real
    order = torch.where(order > (3 if count < frames else 2), 0, order)
    first = torch.randint(0, frames - count + 1, (B, 1))
    index = torch.stack([first + torch.arange(count), first + torch.rand(B, count).argsort(1),
                         torch.randint(0, frames, (B, 1)).expand(B, count),
                         torch.arange(count).mul(frames // count).expand(B, count)])[order, torch.arange(B)]
    return x[torch.arange(B)[:, None], :, index].transpose(1, 2), order        # [B, C, count, H, W]


def frame_loss(probe: FrameProbe, batch: dict[str, Tensor]) -> Tensor:
    digits = batch["digits"].clone()
    x, blank = sized(batch["x"]), torch.rand(len(digits)) < 0.03
    x[blank], digits[blank] = -1, -1
    x, levels = spoilt(x)
    answer = probe(x)[1]
    return (10 * F.binary_cross_entropy_with_logits(answer["digits"], many_hot(digits, 10))
            + F.cross_entropy(answer["count"], (digits >= 0).sum(1)) + F.mse_loss(answer["spoilt"], levels))


def video_loss(probe: VideoProbe, batch: dict[str, Tensor]) -> Tensor:
    digits, ways, B = batch["digits"], batch["directions"], len(batch["x"])
    x, order = reordered(batch["x"])
    x, levels = spoilt(sized(x))
    answer = probe(x)[1]
    runs = (order % 3 == 0).float()                            # forwards, at some speed
    mean = lambda losses, where: (losses * where).sum() / where.sum().clamp_min(1)
    bce = lambda logits, target: F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    told = (runs * (ways[:, 0] >= 0))[:, None]                 # clips whose directions are known
    pairs = many_hot(torch.where(digits >= 0, 5 * digits + ways, -1), 50)
    slow = many_hot(torch.where(batch["slow"], digits, -1), 10)
    loss = 50 * mean(bce(answer["pairs"], pairs), told.expand(B, 50))
    loss = loss + mean(bce(answer["slow"], slow), told * (order == 0)[:, None] * many_hot(digits, 10))
    if x.shape[2] == batch["x"].shape[2]:
        bounced = batch["bounced"].any((1, 2)).float()
        loss = loss + mean(bce(answer["bounce"][:, 0], bounced), (order == 0).float())
    return (loss + F.cross_entropy(answer["count"], (digits >= 0).sum(1))
            + F.cross_entropy(answer["order"], order) + F.mse_loss(answer["spoilt"], levels))


class Centred:
    """MNIST's own digits in the place of moving ones, so that one probe serves images of both kinds."""

    name, size = "mnist", 32

    def __init__(self, split: str = "train"):
        self.data = mnist(split)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        batch = self.data[index]
        return {"x": batch["x"], "digits": F.pad(batch["label"][:, None], (0, 1), value=-1)}


def mixture(data: dict, n: int, seed: int) -> dict[str, Tensor]:
    """Batch n, of so many items from each data set, {data set: items}; every batch has its share of all."""
    parts = [Batches(part, items, seed)[n] for part, items in data.items()]
    known = set.intersection(*map(set, parts))
    return {name: torch.cat([sized(part[name]) if name == "x" else part[name] for part in parts])
            for name in known}


def train(probe: Probe, loss: Callable, data: dict, steps: int, lr: float = 4e-3, seed: int = 0,
          bar: bool = False) -> Probe:
    """Train a probe on a mixture of data sets, {data set: items of each batch}."""
    from tqdm import trange

    torch.manual_seed(seed)
    probe.train().to(memory_format=probe.layout)
    optimizer = torch.optim.AdamW(probe.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    losses = []
    for n in (progress := trange(steps, desc="probe", disable=not bar, mininterval=10)):
        value = loss(probe, mixture(data, n, seed))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.detach())
        if n % 100 == 99:
            progress.set_postfix(loss=f"{torch.stack(losses[-100:]).mean():.3f}", refresh=False)
    return probe.eval()


def accuracy(probe: Probe, data, n: int = 2000) -> dict[str, float]:
    """The shares of n real items that a probe reads right."""
    batch = data[torch.arange(n)]
    _, said = look(probe, batch["x"])
    digits, found = batch["digits"], {}
    found["count"] = (said["count"].argmax(1) == (digits >= 0).sum(1)).float().mean().item()
    if isinstance(probe, FrameProbe):
        found["digits"] = ((said["digits"] > 0) == many_hot(digits, 10).bool()).all(1).float().mean().item()
    elif data.directed:
        found["caption"] = caption_right(said, data.captions(torch.arange(n))).float().mean().item()
        found["order"] = (said["order"].argmax(1) == 0).float().mean().item()
    else:
        found["bounce"] = ((said["bounce"][:, 0] > 0) == batch["bounced"].any((1, 2))).float().mean().item()
    return found


def main() -> None:
    """Train the probes that are named, or both."""
    plans = {
        "frame_probe": (frame_loss, 3000, lambda split: {
            MovingMNIST(split, frames=None): 48, Centred(split): 16,
            MovingMNIST(split, frames=None, size=16): 16}),
        "video_probe": (video_loss, 1800, lambda split: {
            MovingMNIST(split): 40, MovingMNIST(split, mode="bounce", speeds=(0.5, 1, 2)): 12,
            MovingMNIST(split, size=16, speeds=(0.25, 0.5)): 12})}
    for name in sys.argv[1:] or plans:
        loss, steps, data = plans[name]
        began, path = time.monotonic(), checkpoints.shipped(name)
        probe = train(PROBES[name](), loss, data("train"), steps, bar=True)
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in probe.state_dict().items()}
        facts = {"kind": name.replace("_", " "), "data": "moving_mnist", "steps": steps, "seed": 0,
                 "device": "cpu", "minutes": (time.monotonic() - began) / 60}
        container.write(path, tensors, facts)
        probe = load_probe(name, path)                         # what is measured is what is kept
        metrics = {f"{part.name} {part.size} {getattr(part, 'mode', '')}".strip(): accuracy(probe, part)
                   for part in data("test")}
        container.write(path, tensors, facts | {"metrics": metrics})
        print(metrics, checkpoints.write_card(path), sep="\n")


if __name__ == "__main__":
    main()
