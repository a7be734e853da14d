"""Three hundred frames from models of sixteen: python tests/benchmarks/fifo.py [--videos 4] [--frames 300].

Of each of the three models of clips, trained on equal levels of noise: the loss on the windows of a queue
beside the loss at the same levels, had all frames one level ("spread"); then long videos, in pieces and from
queues, and how digit, motion and frames fare on the way ("long").  The two models that are told their digit,
with guidance, draw half as many videos, and half as long ones of the side methods.  `evaluations` counts
windows of 16 frames, both of guidance, the first clip and the warm-up, for each frame that is kept; in pieces
with guidance by what is known each costs about three times as much.  Each row is written when it is finished,
and what is there is not done again.  About twenty-five minutes on one core.
"""
import argparse
import base64
import io
import time
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from study import Study

from diffusion_course.data import sources
from diffusion_course.data.captions import DIGITS, tokens
from diffusion_course.diffusion.guidance import CFG
from diffusion_course.diffusion.samplers import sample
from diffusion_course.diffusion.schemes import autoregressive, follow
from diffusion_course.evaluation import tracking
from diffusion_course.evaluation.clip_probes import load_probe, look, readable
from diffusion_course.evaluation.measure import counted
from diffusion_course.papers.fifo_diffusion import fifo
from diffusion_course.papers.video_diffusion_models import extend
from diffusion_course.training import checkpoints

MODELS = ("vid-mm", "video-ldm-mm", "latte-mm")
SPREADS = ((1, False), (2, False), (4, False), (8, False), (1, True), (2, True), (4, True))
QUEUES = {"n = 1": (1, False), "n = 4": (4, False), "n = 4, lookahead": (4, True)}
MAIN = ("in pieces", "n = 4, lookahead")                       # of all models at full length
F, STEPS, SCALE = 16, 25, 2.0                                  # frames, steps and guidance of a clip
WINDOW = 20                                                    # frames for a point of a curve
ASKED = (3, 7, 0, 5)                                            # the digits that are asked for, in turn
ROOM = (6.5, 24.5)                                             # of the centre of a digit, in pixels
LEAST = 0.004                                                  # mean ink of a frame; a thin one has 0.005


class Model:
    """A shipped model, its guided denoiser, and what both are told of so many videos."""

    def __init__(self, slug, videos):
        self.recipe = checkpoints.load_model(checkpoints.obtain(slug))
        self.guide = self.denoiser = self.recipe.model.eval().requires_grad_(False)
        self.videos, self.digits = videos, torch.tensor([ASKED[k % len(ASKED)] for k in range(videos)])
        self.asked = {}
        if self.recipe.takes("text"):
            self.asked["text"] = tokens(["an eight" if d == 8 else f"a {DIGITS[d]}" for d in self.digits])
            null = {"text": torch.zeros_like(self.asked["text"][0])}
        elif self.recipe.takes("label"):
            self.asked["label"] = self.digits
            null = {"label": torch.tensor(self.recipe.origin.kwargs["classes"])}
        if self.asked:
            self.guide = CFG(self.denoiser, SCALE, null)

    def told(self, asked=None):
        """Conditions of a window: the digit; and, of a network that may know frames, that it knows none."""
        asked = self.asked if asked is None else {name: asked[name] for name in self.asked}
        if self.recipe.origin.paper != "video_ldm":
            return asked
        channels, frames, *size = self.recipe.shape
        return asked | {"context": torch.zeros(len(asked["text"]), channels + 1, frames, *size)}

    def noise(self, frames):
        return torch.randn(self.videos, self.recipe.shape[0], frames, *self.recipe.shape[2:])

    def in_pieces(self, frames):
        """As the model's own lesson goes on; latte-mm in the way of lesson 13."""
        if self.recipe.origin.paper != "latte":
            return self.recipe.sample(self.noise(frames), steps=STEPS, **self.asked)

        def make(noise, index, seen, at):
            if not len(at):
                return sample(self.guide, noise, STEPS, **self.asked)
            return extend(self.guide, seen, noise, STEPS // 2, at=at, **self.asked)

        return follow(autoregressive, make, self.noise(frames), None, F)

    def queued(self, frames, partitions, lookahead):
        clip = sample(self.guide, self.noise(F), STEPS, **self.told())
        stream = fifo(self.guide, clip, partitions, lookahead, **self.told())
        return torch.stack(list(islice(stream, frames)), dim=2)


# ---- the gap

@torch.no_grad()
def losses(model, z, noise, t, asked):
    """The loss of each frame of a window whose levels are t [F]."""
    denoiser, t = model.denoiser, t.expand(len(z), -1)
    alpha, sigma = denoiser.schedule.at(t, z)
    out, _ = denoiser.run(alpha * z + sigma * noise, t, alpha, sigma, model.told(asked))
    target = denoiser.prediction.target(z, noise, alpha, sigma)
    return (out - target).square().mean((0, 1, 3, 4))


def spread(study, slug, clips):
    """Rows of one model: the loss on a queue's windows, and at the same levels with equal ones."""
    if all(study.has("spread", model=slug, partitions=n, lookahead=ahead) for n, ahead in SPREADS):
        return
    model, batch = Model(slug, clips), sources.load("bouncing_mnist", (1, F, 32, 32), "test")[slice(clips)]
    z = model.recipe.autoencoder.encode(batch["x"])
    torch.manual_seed(0)
    noise = torch.randn_like(z)
    levels = model.denoiser.schedule.times(4 * F).flip(0)[1:]  # of the longest queue but one
    equal = torch.stack([losses(model, z, noise, t.expand(F), batch).mean() for t in levels])

    def at_equal(t):                                           # in between, of the neighbours
        place = (t * len(levels) - 1).clamp(0, len(levels) - 1)
        low = place.long().clamp(max=len(levels) - 2)
        return torch.lerp(equal[low], equal[low + 1], place - low)

    for n, ahead in SPREADS:
        before = F // 2 if ahead else 0
        t = model.denoiser.schedule.times(n * F).flip(0)[1:]
        t = torch.cat([t[:1].expand(before), t])
        windows = [t[i:i + F] for i in range(0, n * F, F - before)]
        found = torch.cat([losses(model, z, noise, w, batch)[before:] for w in windows])
        wanted = torch.cat([at_equal(w)[before:] for w in windows])
        if not study.has("spread", model=slug, partitions=n, lookahead=ahead):
            study.add("spread", {
                "model": slug, "partitions": n, "lookahead": ahead, "clips": clips,
                "loss": found.mean().item(), "equal": wanted.mean().item(),
                "quarters": [(a.mean() / b.mean()).item() for a, b in zip(found.chunk(4), wanted.chunk(4))]})


# ---- long videos

def measured(x, z, probe, digits=None):
    """Numbers of long videos [N, 1, F, 32, 32], and their curves over windows of frames.

    A frame without ink is empty: it shows no digit, and no step into it or out of it counts as a flip.
    """
    said = look(probe, x.transpose(1, 2).flatten(0, 1))[1]
    top = said["digits"].argmax(1).unflatten(0, (len(x), -1))  # [N, F]
    clear = readable(said).unflatten(0, top.shape).double()
    there = tracking.ink(x).mean((2, 3)) > LEAST
    first = top[:, :8].mode(1).values[:, None]
    flips = 100 * (top[:, 1:] != top[:, :-1]).double().masked_fill(~(there[:, 1:] & there[:, :-1]), torch.nan)
    of_frames = {"kept": (there & (top == first)).double(), "readable": clear, "empty": (~there).double()}
    if digits is not None:
        of_frames["asked"] = (there & (top == digits[:, None])).double()
    centres = tracking.tracks(x, torch.ones(len(x)).long())
    of_paths = {"speed": tracking.speed, "unsteady": tracking.speed_constancy}

    def number(values):
        value = values.double().nanmean().item()
        return round(value, 5) if value == value else None

    def numbers(w):
        moving = {name: f(centres[:, w], room=ROOM) for name, f in of_paths.items()}
        frames = {name: values[:, w] for name, values in of_frames.items()}
        spread = z[:, :, w].flatten(1).std(1)
        return {name: number(values) for name, values in (frames | moving | {
            "flips": flips[:, max(0, w.start - 1):w.stop - 1], "std": spread}).items()}

    windows = [slice(i, i + WINDOW) for i in range(0, x.shape[2] - WINDOW + 1, WINDOW)]
    parts = [numbers(w) for w in windows]
    return numbers(slice(0, x.shape[2])) | {"jump": number(tracking.jump(centres)), "curves": {
        name: [part[name] for part in parts] for name in parts[0]}}


def strip(x, every=WINDOW):
    """One video [1, F, H, W], every so many frames side by side: a PNG in base64."""
    pixels = ((x[0, ::every].clamp(-1, 1) + 1) / 2 * 15).round().byte() * 17
    out = io.BytesIO()
    Image.fromarray(torch.cat([*pixels], dim=1).numpy()).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def long(study, slug, videos, frames, probe):
    """Rows of one model, or of real clips: long videos of every method."""
    methods = ("real",) if slug == "real" else ("in pieces", *QUEUES)
    for method in methods:
        if study.has("long", model=slug, method=method):
            continue
        model = Model("vid-mm" if slug == "real" else slug, videos)
        count = frames if slug in ("real", "vid-mm") or method in MAIN else (frames + 1) // 2
        torch.manual_seed(0)
        began = time.process_time()
        with torch.no_grad(), counted(model.recipe) as evaluations:
            if slug == "real":
                x = sources.load("bouncing_mnist", (1, frames, 32, 32), "test")[slice(videos)]["x"]
                z = model.recipe.autoencoder.encode(x)
            elif method == "in pieces":
                z = model.in_pieces(count)
            else:
                z = model.queued(count, *QUEUES[method])
            seconds = time.process_time() - began
            if slug != "real":
                x = model.recipe.autoencoder.decode(z)
        digits = model.digits if model.asked else None
        study.results.setdefault("strips", []).append(
            {"model": slug, "method": method, "every": WINDOW, "png": strip(x[0])})    # written with the row
        cost = {"evaluations": evaluations[0] / videos / count, "seconds": seconds / videos / count}
        study.add("long", {"model": slug, "method": method, "videos": videos, "frames": count, **cost,
                           **measured(x, z, probe, digits)})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--clips", type=int, default=16, help="for the loss")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--out", type=Path, help="default: data/results/fifo.json")
    arguments = parser.parse_args()
    study = Study("fifo", arguments.out, videos=arguments.videos, frames=arguments.frames,
                  clips=arguments.clips, window=WINDOW, steps=STEPS, scale=SCALE)
    probe = load_probe("frame_probe")
    for slug in arguments.models:
        spread(study, slug, arguments.clips)
    for slug in ("real", *arguments.models):
        videos = arguments.videos if slug in ("real", "vid-mm") else max(1, arguments.videos // 2)
        long(study, slug, videos, arguments.frames, probe)


if __name__ == "__main__":
    main()
