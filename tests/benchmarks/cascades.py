"""What noise conditioning augmentation is for: python tests/benchmarks/cascades.py [--n 256].

The enlarging stage of the shipped `imagen`, which learned from noised small images and was told how noised,
and one trained for as many steps on clean ones.  Both enlarge real small images and those of the shipped
base, with guidance and without, which leaves more faults; the first at several levels of noise.  Each row is
written when it is finished, and what is there is not done again.  About forty minutes on one core.
"""
import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from study import Eye, Study, drawn

from diffusion_course.data import sources
from diffusion_course.data.images import shuffled
from diffusion_course.papers import imagen
from diffusion_course.recipe import Recipe
from diffusion_course.training import checkpoints, container
from diffusion_course.training.trainer import Trainer

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


def alone(recipe):
    """The enlarging stage of a cascade as a recipe that trains it and nothing else."""
    base, enlarge = recipe.model

    def loss(batch):
        text = imagen.drop_condition({"text": batch["text"]}, {"text": torch.zeros(12).long()}, p=0.1)
        small = F.interpolate(batch["x"], 8, mode="area")
        clean = torch.zeros(len(small))
        return enlarge.loss(batch["x"], **imagen.degraded(enlarge.schedule, small, clean), **text)

    return Recipe(enlarge, loss, lambda noise: noise, (1, 32, 32))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--steps", type=int, help="default: as many as the shipped model has")
    parser.add_argument("--out", type=Path, help="default: data/results/cascades.json")
    arguments = parser.parse_args()
    path = checkpoints.obtain("imagen")
    header = container.read_header(path)
    steps = arguments.steps or checkpoints.steps_in_all(header)
    study = Study("cascades", arguments.out, n=arguments.n, steps=steps)
    noised = checkpoints.load_model(path)
    train, test = (sources.load(header["data"], noised.item, split) for split in ("train", "test"))
    real, asked = (test[index] for index in shuffled(len(test), 0, 0)[:4096 + arguments.n].split(4096))
    eye = Eye(real["x"])
    study.results["floor"] = eye.measured(asked["x"])["frechet"]

    clean = imagen.recipe(augment=False)
    clean.model.load_state_dict(noised.model.state_dict())     # the same base
    kept = Path("runs") / "cascades.safetensors"
    if not kept.exists():
        torch.manual_seed(0)
        stage = imagen.recipe(augment=False).model[1]
        clean.model[1].load_state_dict(stage.state_dict())
        trainer = Trainer(alone(clean), steps=steps, cpu=True)
        for _ in trainer.run(train.batches(header["batch_size"]), bar=True):
            pass
        clean.model[1].load_state_dict(trainer.ema.average.state_dict())
        checkpoints.save_model(kept, clean)
    checkpoints.load_weights(clean.model, container.read(kept)[0], kept)

    smalls = {"real": F.interpolate(asked["x"], 8, mode="area")}
    base = imagen.recipe(sizes=(8,))
    base.model[0].load_state_dict(noised.model[0].state_dict())
    smalls["generated"] = drawn(base, arguments.n, text=asked["text"])
    smalls["unguided"] = drawn(base, arguments.n, text=asked["text"], scale=1.0)
    for trained, recipe in (("noised", noised), ("clean", clean)):
        for small, images in smalls.items():
            for level in LEVELS if trained == "noised" else (0.0,):
                key = {"trained": trained, "small": small, "noised": level}
                if not study.has("rows", **key):
                    x = drawn(recipe, arguments.n, text=asked["text"], small=images, noised=level)
                    study.add("rows", {**key, **eye.measured(x, asked["text"])})


if __name__ == "__main__":
    main()
