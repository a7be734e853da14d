"""What aligns the frames: python tests/benchmarks/video_ldm.py [--steps 400] [--n 128].

Of Align your Latents, with the shipped `video-ldm-mm`.

layers    new layers of both kinds, of one kind or none, trained for the same steps on the frozen `img-mm`;
          they are kept in runs/video_ldm_layers
decoder   the autoencoder of images and the one that looks across time, on true and on generated latents
context   one or two frames of true clips are given, with guidance by them: the velocity after the seam
between   every fourth frame of true clips is given: how far off are the others?

Each row is written when it is finished, and what is there is not done again.  About 25 minutes on one core,
half of them training.
"""
import argparse
from pathlib import Path

import torch
from study import Study, drawn, thinned

from diffusion_course.data import sources
from diffusion_course.data.images import shuffled
from diffusion_course.data.moving_mnist import MovingMNIST
from diffusion_course.evaluation.clip_probes import load_probe, look
from diffusion_course.evaluation.frechet import bootstrap, frechet_distance, statistics
from diffusion_course.evaluation.measure import moving
from diffusion_course.evaluation.tracking import centroid
from diffusion_course.papers import video_ldm
from diffusion_course.training import checkpoints, container
from diffusion_course.training.runs import begin

SAMPLING = {"steps": 15, "scale": 1.0}
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
AFTER = 4                                                      # frames over which a velocity is taken


def bouncing(stride, frames=16):
    """Test clips of which every stride-th frame is shown."""
    return MovingMNIST("test", frames=frames, kind="timelapse", **sources.BOUNCING | {"stride": stride})


class ClipEye:
    """Measures clips [N, 1, 16, 32, 32] beside real ones with both probes."""

    def __init__(self, real):
        self.video, self.frame = load_probe("video_probe"), load_probe("frame_probe")
        self.real, self.still = self.features(real)
        self.real, self.still = statistics(self.real), statistics(self.still)

    def features(self, x):
        return look(self.video, x)[0], look(self.frame, x[:, :, x.shape[2] // 2])[0]

    def measured(self, x):
        """Frechet distances of clips, with its spread, and of frames; what moves unlike a digit."""
        clips, still = self.features(x.clamp(-1, 1))
        frechet, spread = bootstrap(frechet_distance, clips, self.real)
        flips, jump, *_ = moving(self.frame, x.clamp(-1, 1))
        return {"frechet": frechet, "spread": spread, "frame_frechet": frechet_distance(still, self.still),
                "flips": flips, "jump": jump}


def wobble(x, centres):
    """How much the picture of a digit changes while it moves: clips cut out along the true path."""
    corner = (centres[:, :, 0] - 6.5 + 0.5).floor().long()     # [N, F, 2], as the data set rounds
    cut = torch.stack([torch.stack([frame[:, r:r + 14, c:c + 14] for frame, (r, c) in
                                    zip(clip.transpose(0, 1), path.tolist())]) for clip, path in
                       zip(x, corner)])                        # [N, F, 1, 14, 14]
    return (cut - cut.mean(1, keepdim=True)).square().mean().sqrt().item()


def blended(keys):
    """Three frames between every two of keys [N, C, T, H, W]: mixtures of the two."""
    w = torch.arange(4)[:, None, None] / 4
    between = (1 - w) * keys[:, :, :-1, None] + w * keys[:, :, 1:, None]       # [N, C, T - 1, 4, H, W]
    return torch.cat([between.flatten(2, 3), keys[:, :, -1:]], 2)


def mean_and_error(values):
    values = values[values.isfinite()].double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


@torch.no_grad()
def held_out(recipe, n):
    """The loss in test clips at even times: nothing known, two frames known, every fourth known."""
    clips, generator = bouncing((1, 1, 4, 16))[slice(n)], torch.Generator().manual_seed(0)
    z = recipe.autoencoder.encode(clips["x"])
    noise, t = torch.randn(z.shape, generator=generator), (torch.arange(n) * 37 % n + 0.5) / n
    place, found = torch.arange(16), {}
    index = place * (8 / clips["fps"])[:, None]
    for name, seen in ("generate", place < 0), ("from two", place < 2), ("between", place % 4 == 0):
        cond = {"text": clips["text"], "index": index, "context": video_ldm.context(z, seen.expand(n, -1))}
        unseen = (~seen).float()[:, None, None] / (~seen).float().mean()
        parts = zip(*(a.split(32) for a in (z, t, noise, *cond.values())))
        losses = [recipe.model.loss(x, t, noise, unseen, **dict(zip(cond, rest))).item()
                  for x, t, noise, *rest in parts]
        found[name] = sum(losses) / len(losses)
    return found


def trained(layers, steps, compiled):
    """The recipe with these layers, from its folder or trained; its losses and seconds."""
    folder = Path("runs") / "video_ldm_layers" / f"{layers}-{steps}"
    trainer, batches = begin("video_ldm", folder, "laptop", recipe={"layers": layers},
                             numbers={"steps": steps, "ema": 0.99}, init="none", cpu=True, resume=True,
                             precision="bf16" if compiled else "no")
    if compiled:
        trainer.recipe.model.net.compile()
    for _ in trainer.run(batches, bar=True):
        pass
    return checkpoints.load_model(folder / "model.safetensors"), trainer.losses, trainer.seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--given", type=int, default=48, help="true clips that go on")
    parser.add_argument("--out", type=Path, help="default: data/results/video_ldm.json")
    arguments = parser.parse_args()
    n, some = arguments.n, arguments.given
    study = Study("video_ldm", arguments.out, n=n, given=some, steps=arguments.steps, sampling=SAMPLING)
    ready = checkpoints.load_model(checkpoints.obtain("video-ldm-mm"))
    test = bouncing(1)
    real, asked = (test[index] for index in shuffled(len(test), 0, 0)[:8 * n + n].split(8 * n))
    eye = ClipEye(real["x"])
    study.results["floor"] = eye.measured(asked["x"])
    header = container.read_header(checkpoints.obtain("video-ldm-mm"))
    study.results["trained"] = checkpoints.steps_in_all(header)

    def row(recipe, **key):
        torch.manual_seed(0)
        x = drawn(recipe, n, batch=32, text=asked["text"], **SAMPLING)
        return {**key, "loss": held_out(recipe, n), **eye.measured(x)}

    image = checkpoints.load_model(checkpoints.obtain("img-mm"))
    if not study.has("layers", layers="none"):
        study.add("layers", row(video_ldm.recipe(image=image), layers="none", parameters=0, seconds=0))
    for layers in ("both", "conv", "attention"):
        if not study.has("layers", layers=layers):
            recipe, losses, seconds = trained(layers, arguments.steps, arguments.steps > 50)
            count = sum(p.numel() for p in recipe.model.net.aligners.parameters())
            study.add("layers", row(recipe, layers=layers, parameters=count, seconds=round(seconds))
                      | {"losses": thinned(losses)})

    if not all(study.has("decoder", decoder=name) for name in ("image", "video")):
        true = ready.autoencoder.encode(asked["x"])
        torch.manual_seed(0)
        made = torch.cat([ready.sample(torch.randn(len(text), *ready.shape), text=text, **SAMPLING)
                          for text in asked["text"].split(32)])
        for name, slug in ("image", "vae-mm"), ("video", "video-vae-mm"):
            decoder = checkpoints.load_model(checkpoints.obtain(slug)).model.autoencoder
            with torch.no_grad():
                x, y = (torch.cat([decoder.decode(part) for part in z.split(32)]) for z in (true, made))
            error = x - asked["x"]
            study.add("decoder", {"decoder": name, "latents": "true", "error": error.square().mean().item(),
                                  "flicker": error.diff(dim=2).square().mean().item(),
                                  "wobble": wobble(x, asked["centres"]), **eye.measured(x)})
            study.add("decoder", {"decoder": name, "latents": "generated", **eye.measured(y)})

    clips = bouncing(4)[slice(some)]
    truth = centroid(clips["x"])                               # [N, F, 2]
    for seen in (1, 2):
        for guidance in GUIDANCE:
            if study.has("context", seen=seen, guidance=guidance):
                continue
            x = drawn(ready, some, batch=48, frames=16, start=clips["x"][:, :, :2], seen=seen, stride=4,
                      guidance=guidance, text=clips["text"], **SAMPLING)
            path = centroid(x)
            way, true_way = ((c[:, 1 + AFTER] - c[:, 1]) / AFTER for c in (path, truth))
            velocity, error = mean_and_error((way - true_way).norm(dim=1))
            bend = lambda c: (c[:, 2] - 2 * c[:, 1] + c[:, 0]).norm(dim=1)
            change = lambda x: (x[:, :, 2] - x[:, :, 1]).square().mean((1, 2, 3))
            study.add("context", {
                "seen": seen, "guidance": guidance, "velocity": velocity, "velocity_error": error,
                "still": true_way.norm(dim=1).mean().item(), "bend": mean_and_error(bend(path))[0],
                "bend_error": mean_and_error(bend(path))[1], "bend_true": mean_and_error(bend(truth))[0],
                "change": mean_and_error(change(x))[0], "change_true": mean_and_error(change(clips["x"]))[0],
                "flips": moving(eye.frame, x)[0]})

    for stride in (4, 1):
        if study.has("between", stride=stride):
            continue
        clips = bouncing(stride, 13)[slice(some)]
        keys = ready.autoencoder.encode(clips["x"][:, :, ::4])
        torch.manual_seed(0)
        with torch.no_grad():
            x = ready.autoencoder.decode(video_ldm.interpolate(
                ready.model, keys, stride, SAMPLING["steps"], text=clips["text"]))
        inside = torch.arange(13) % 4 > 0
        for name, y in (("true", clips["x"]), ("interpolated", x),
                        ("blended", blended(clips["x"][:, :, ::4]))):
            error, spread = mean_and_error((y - clips["x"])[:, :, inside].square().mean((1, 2, 3, 4)))
            off = (centroid(y) - centroid(clips["x"])).norm(dim=-1)[:, inside].mean(1)
            frames = y[:, :, inside].transpose(1, 2).flatten(0, 1)
            study.add("between", {"stride": stride, "way": name, "error": error, "spread": spread,
                                  "off": mean_and_error(off)[0], "off_error": mean_and_error(off)[1],
                                  "frame_frechet": frechet_distance(look(eye.frame, frames)[0], eye.still),
                                  "flips": moving(eye.frame, y)[0]})


if __name__ == "__main__":
    main()
