"""Networks that look at samples: a classifier of digits, to say whether a sample can be read.

`python -m diffusion_course.evaluation.probes` trains it on MNIST and writes
data/checkpoints/digit_probe.safetensors.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import Images
from ..training import checkpoints, container


def layer(c_in: int, c_out: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution of size x size pixels, and what follows it."""
    return [nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]


class DigitProbe(nn.Module):
    """Images [B, 1, 32, 32] in [-1, 1] -> logits of the ten digits [B, 10]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*layer(1, 32, 5, 2), *layer(32, 64, 3), nn.MaxPool2d(2), *layer(64, 128, 3),
                                  nn.MaxPool2d(2), *layer(128, 128, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def train_probe(data: Images, epochs: int = 8, batch_size: int = 256, lr: float = 6e-3, seed: int = 0,
                bar: bool = False) -> DigitProbe:
    """Train on data, moved about by up to two pixels."""
    from tqdm import trange

    torch.manual_seed(seed)
    probe = DigitProbe().to(memory_format=torch.channels_last)
    steps = epochs * len(data) // batch_size
    optimizer = torch.optim.AdamW(probe.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    batches = data.batches(batch_size, seed)
    for n in trange(steps, desc="probe", disable=not bar):
        batch = batches[n]
        moved = batch["x"].roll(torch.randint(-2, 3, (2,)).tolist(), dims=(2, 3))
        loss = F.cross_entropy(probe(moved), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


@torch.no_grad()
def features(probe: DigitProbe, x: Tensor) -> Tensor:
    """What the probe's last layer sees in images [N, 1, 32, 32]: [N, 512], for Frechet distances."""
    return torch.cat([probe.body(part) for part in checked(x).split(1000)])


@torch.no_grad()
def probabilities(probe: DigitProbe, x: Tensor) -> Tensor:
    """What the probe reads in images [N, 1, 32, 32]: [N, 10]."""
    return torch.cat([probe(part).softmax(1) for part in checked(x).split(1000)])


def checked(x: Tensor) -> Tensor:
    if x.shape[1:] != (1, 32, 32) or not len(x) or x.dtype != torch.float32:
        raise ValueError(f"x must be images [N, 1, 32, 32], one at least, got {x.dtype} {tuple(x.shape)}")
    return x


def accuracy(probe: DigitProbe, data: Images) -> float:
    """The share of a data set that the probe reads as its label."""
    batch = data[torch.arange(len(data))]
    return (probabilities(probe, batch["x"]).argmax(1) == batch["label"]).float().mean().item()


def reading(probe: DigitProbe, x: Tensor, confidence: float = 0.9) -> dict:
    """How well samples can be read.

    The share read with more than `confidence`, and how often each digit was read.
    """
    p = probabilities(probe, x)
    counts = torch.bincount(p.argmax(1), minlength=10)
    return {"n": len(x), "confident": (p.amax(1) > confidence).float().mean().item(),
            "counts": counts.tolist(), "largest_share": (counts.max() / len(x)).item()}


def filled(probe: nn.Module, name: str, path: str | Path | None = None) -> nn.Module:
    """A probe with its trained weights: those of the shipped checkpoint of that name, unless a path is given.

    A CheckpointError says what else the file is.
    """
    path, kind = Path(path or checkpoints.obtain(name)), name.replace("_", " ")
    tensors, header = container.read(path)
    if header.get("kind") != kind:
        raise container.CheckpointError(f"{path}: not a {kind}")
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    checkpoints.load_weights(probe, tensors, path)
    return probe.eval()


def load_probe(path: str | Path | None = None) -> DigitProbe:
    """The trained probe, from the shipped checkpoint unless another is named."""
    return filled(DigitProbe(), "digit_probe", path)


def main() -> None:
    from ..data.mnist import mnist

    data, test = mnist("train"), mnist("test")
    probe, path = train_probe(data, bar=True), checkpoints.shipped("digit_probe")
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in probe.state_dict().items()}
    facts = {"kind": "digit probe", "data": data.name, "seed": 0, "device": "cpu"}
    container.write(path, tensors, facts)
    probe = load_probe(path)                                   # what is measured is what is kept
    real = reading(probe, test[torch.arange(len(test))]["x"])
    container.write(path, tensors, facts | {"metrics": {"accuracy": accuracy(probe, test), "real": real}})
    card = checkpoints.write_card(path)
    print(f"accuracy on {len(test)} test images: {accuracy(probe, test):.4f} -> {path}, {card}")


if __name__ == "__main__":
    main()
