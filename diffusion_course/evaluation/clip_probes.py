"""Networks that look at moving digits: what is in a frame, what moves where, and do videos run like this?

Both give 64 features, in which generated and real samples are compared, and answers, which can be read.
train_probes.py trains them; they must name corruptions as well, so that features cannot ignore noise or time.
"""
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..data.captions import DIRECTIONS, parse
from .probes import filled, layer

FEATURES = 64
ORDERS = ("real", "shuffled", "frozen", "every second")  # what may have been done to the frames of a clip


class Probe(nn.Module):
    """A body that makes maps; their mean and maximum become 64 features; heads answer.

    Heads in `maps` answer in every place, and the strongest place counts: so they can tell two digits apart.
    The others answer from the features.
    """

    def __init__(self, body: nn.Module, channels: int, conv: type, maps: dict[str, int],
                 heads: dict[str, int]):
        super().__init__()
        self.body = body
        self.features = nn.Sequential(nn.Linear(2 * channels, FEATURES, bias=False),
                                      nn.BatchNorm1d(FEATURES, affine=False))
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, out) for name, out in heads.items()})
        self.maps = nn.ModuleDict({name: conv(channels, out, 1) for name, out in maps.items()})
        for head in self.maps.values():
            nn.init.constant_(head.bias, -3)                   # nothing is almost everywhere

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, 1, (F,) 32, 32] -> features [B, 64], and the answer of each head."""
        h = self.body(x)                                       # [B, C, (F / 4,) 8, 8]
        flat = h.flatten(2)
        f = self.features(torch.cat([flat.mean(2), flat.amax(2)], 1))          # [B, 64]
        said = {name: head(F.silu(f)) for name, head in self.heads.items()}
        for name, head in self.maps.items():
            strongest = head(h).amax((-2, -1))                 # [B, out, (F / 4)]
            said[name] = strongest.mean(2) if h.ndim == 5 else strongest
        return f, said


class FrameProbe(Probe):
    """Images [B, 1, 32, 32]: which digits (logits, 10), how many (0, 1, 2), and how much noise and blur."""

    layout = torch.channels_last

    def __init__(self):
        body = nn.Sequential(*layer(1, 32, 5, 2), *layer(32, 64, 3), nn.MaxPool2d(2), *layer(64, 128, 3),
                             *layer(128, 128, 3))
        super().__init__(body, 128, nn.Conv2d, {"digits": 10}, {"count": 3, "spoilt": 2})


class VideoProbe(Probe):
    """Videos [B, 1, F, 32, 32], F of 4 at least: which digit goes where (logits, 10 x 5), and how.

    slow (logits, 10), count (0, 1, 2), bounce (logit), order (logits of ORDERS), and how much noise and blur.
    """

    layout = torch.channels_last_3d

    def __init__(self):
        def layers(c_in, c_out, stride=1, faster=1, size=3):   # (2+1)D: space first, then time
            space = nn.Conv3d(c_in, c_out, (1, size, size), (1, stride, stride), (0, size // 2, size // 2),
                              bias=False)
            time = nn.Conv3d(c_out, c_out, (3, 1, 1), (faster, 1, 1), (1, 0, 0), bias=False)
            return [space, nn.BatchNorm3d(c_out), nn.ReLU(), time, nn.BatchNorm3d(c_out), nn.ReLU()]

        body = nn.Sequential(*layers(1, 24, 2, 2, size=5), *layers(24, 48), nn.MaxPool3d((1, 2, 2)),
                             *layers(48, 96, 1, 2), *layers(96, 96))
        super().__init__(body, 96, nn.Conv3d, {"pairs": 50, "slow": 10},
                         {"count": 3, "bounce": 1, "order": len(ORDERS), "spoilt": 2})


def sized(x: Tensor) -> Tensor:
    """Images [B, C, H, W] or videos [B, C, F, H, W] of any size as probes want them: grey, 32 x 32."""
    x = x.mean(1, keepdim=True) if x.shape[1] > 1 else x
    if x.shape[-2:] == (32, 32):
        return x
    frames = rearrange(x, "b c f h w -> (b f) c h w") if x.ndim == 5 else x
    frames = F.interpolate(frames, (32, 32), mode="bilinear", antialias=True)
    return rearrange(frames, "(b f) c h w -> b c f h w", b=len(x)) if x.ndim == 5 else frames


# ---- reading

@torch.no_grad()
def look(probe: Probe, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Features [N, 64] and answers of images or videos of any size, on the device of the probe."""
    if x.ndim != 4 + isinstance(probe, VideoProbe) or not x.numel() or x.dtype != torch.float32:
        kind = "videos" if isinstance(probe, VideoProbe) else "images"
        raise ValueError(f"x must be {kind}, one at least, got {x.dtype} {tuple(x.shape)}")
    device = next(probe.parameters()).device
    seen = [probe(sized(part.to(device))) for part in x.split(128)]
    return (torch.cat([features for features, _ in seen]).cpu(),
            {name: torch.cat([said[name] for _, said in seen]).cpu() for name in seen[0][1]})


def readable(said: dict[str, Tensor], confidence: float = 0.9) -> Tensor:
    """Whether a frame shows as many digits, one at least, as can be read with confidence: [N] of bool."""
    p, count = said["digits"].sigmoid(), said["count"].argmax(1)
    sure = (p > confidence).sum(1)
    return (count > 0) & (sure >= 1) & (sure <= count) & ((p > 0.5).sum(1) == sure)     # 2 may be alike


def caption_right(said: dict[str, Tensor], texts: Sequence[str]) -> Tensor:
    """Whether each image or video shows what its caption says, the right digits going the right way.

    [N] of bool.  A caption without directions is right when its digits are.
    """
    right = []
    shown = said["pairs"].unflatten(1, (10, 5)) if "pairs" in said else said["digits"][..., None]
    for logits, text in zip(shown, texts):
        actors = parse(text)
        if all(actor.direction is None for actor in actors):
            logits, wanted = logits.amax(1), {actor.digit for actor in actors}
        else:
            logits = logits.flatten()
            wanted = {5 * actor.digit + DIRECTIONS.index(actor.direction) for actor in actors}
        right.append(set((logits > 0).nonzero()[:, 0].tolist()) == wanted)
    return torch.tensor(right)


def load_probe(name: str, path: str | Path | None = None) -> Probe:
    """frame_probe or video_probe, from its shipped checkpoint unless another is named."""
    if name not in PROBES:
        raise ValueError(f"name={name!r} must be one of {', '.join(PROBES)}")
    probe = filled(PROBES[name](), name, path)
    return probe.to(memory_format=probe.layout)


PROBES = {"frame_probe": FrameProbe, "video_probe": VideoProbe}
