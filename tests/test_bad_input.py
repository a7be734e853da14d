"""Whatever a function of the package is given: a result, or one clear error that names the argument.

Values are of the kind that the signature says, and wrong in shape, dtype, range or size.
"""
import os
from functools import cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from promises import judged, many
from torch import nn

from diffusion_course import papers
from diffusion_course.classroom import animations, figures
from diffusion_course.data import captions, media, mnist, sources
from diffusion_course.data.images import Images
from diffusion_course.data.moving_mnist import MovingMNIST
from diffusion_course.data.videos import video_folder
from diffusion_course.diffusion import (
    ema,
    guidance,
    likelihood,
    ode,
    predictions,
    rescaled,
    samplers,
    schedules,
    schemes,
    sde,
)
from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.evaluation import clip_probes, corrupt, frechet, measure, probes, tracking
from diffusion_course.networks.autoencoder import Autoencoder
from diffusion_course.networks.dit import DiT
from diffusion_course.networks.text import TextEncoder
from diffusion_course.networks.tokens import VQAutoencoder
from diffusion_course.networks.unet import UNet
from diffusion_course.papers import ddpm, video_diffusion_models
from diffusion_course.recipe import Count, Recipe
from diffusion_course.training import checkpoints, runs
from diffusion_course.training.trainer import Trainer

pytestmark = pytest.mark.bad_input

# ---- what is given

SHAPES = st.one_of(
    st.lists(st.integers(0, 3), max_size=6),
    st.tuples(st.integers(0, 3), st.sampled_from([1, 1, 2]), st.sampled_from([4, 8, 8, 9]), st.just(8)),
    st.tuples(st.integers(0, 2), st.sampled_from([1, 1, 3]), st.integers(0, 3), st.just(8), st.just(8)))
DTYPES = st.sampled_from([torch.float32] * 3 + [torch.float64, torch.float16, torch.int64, torch.uint8,
                                                torch.bool, torch.complex64])
FILLS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 7.0, 1e30, float("nan"), float("inf")])


@st.composite
def tensors(draw):
    shape, dtype, fill = draw(SHAPES), draw(DTYPES), draw(FILLS)
    x = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0))
    x = x + fill if draw(st.booleans()) else torch.full_like(x, fill)
    if not (dtype.is_floating_point or dtype.is_complex):
        x = x.nan_to_num(0, 9, 0).clamp(-9, 9)
    return x.to(dtype)


WHOLE = st.one_of(st.integers(-3, 40), st.sampled_from([-10**9, 2**31]))
SMALL = st.integers(-3, 12)
REAL = st.one_of(st.floats(-2, 2), st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, 0.0]))
WORDS = st.one_of(st.text(max_size=30), st.sampled_from(["a seven moves up", "a seven moves", "a and", "ddpm",
                                                         "../x", "a" * 500, "\0", "a\nseven"]))
TEXTS = st.lists(WORDS, max_size=4)

# ---- what it is given to

LABEL = {"label": lambda dim: nn.Embedding(11, dim)}
NET = UNet(1, width=8, multipliers=(1, 2), attend=(False, True), embed=LABEL)
DENOISER = Denoiser(NET, schedules.Straight(), predictions.Flow())
TABLE = schedules.linear_beta(10)
TABLED = Denoiser(UNet(1, width=8, multipliers=(1,), attend=(False,)), TABLE, predictions.Epsilon())
TRANSFORMER = DiT(1, dim=16, depth=1, heads=2, patch=(1, 4, 4))
CODER, TOKENS = Autoencoder(1, 2, 8, 4), VQAutoencoder(1, 4, 8, 4, 16)
READER = TextEncoder(16, len(captions.VOCABULARY), 12, layers=1)
X, VIDEO = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 3, 8, 8)
T, L = torch.full((2,), 0.5), torch.tensor([1, 2])
PROBE, DIGIT_PROBE = clip_probes.FrameProbe().eval(), probes.DigitProbe().eval()
SAID = {name: torch.zeros(2, 11) for name in ("digits", "count")}
FEATURES = torch.rand(12, 3, generator=torch.Generator().manual_seed(1))
RECIPE = ddpm.recipe(width=8, size=8, num_steps=4, classes=3)
CLIPS = video_diffusion_models.recipe(width=8, size=8, frames=2)


@cache
def digits():
    return mnist.builtin_digits("train", 28)


def trained(batch):
    trainer = Trainer(ddpm.recipe(width=8, size=8, num_steps=4), steps=1, cpu=True)
    return list(trainer.run([batch]))


CASES = {  # name: what is done with the value, which values, and what a message may name
    # networks
    "UNet x": (lambda v: NET(v, torch.zeros(len(v) if v.ndim else 1), label=torch.zeros(
        len(v) if v.ndim else 1, dtype=torch.long)), tensors(), ("images", "height", "x", "t")),
    "UNet t": (lambda v: NET(X, v, label=L), tensors(), ("t",)),
    "UNet label": (lambda v: NET(X, T, label=v), tensors(), ("label",)),
    "UNet width": (lambda v: UNet(1, width=v), SMALL, ("width",)),
    "UNet heads": (lambda v: UNet(1, width=8, heads=v), SMALL, ("heads",)),
    "UNet dropout": (lambda v: UNet(1, width=8, dropout=v), REAL, ("dropout",)),
    "UNet multipliers": (lambda v: UNet(1, width=8, multipliers=tuple(v)), st.lists(SMALL, max_size=4),
                         ("multipliers", "attend", "units")),
    "DiT x": (lambda v: TRANSFORMER(v, T), tensors(), ("x", "shape", "t")),
    "DiT t": (lambda v: TRANSFORMER(X, v), tensors(), ("t",)),
    "DiT dim": (lambda v: DiT(1, dim=v, depth=1), SMALL, ("dim", "heads")),
    "DiT heads": (lambda v: DiT(1, dim=16, depth=1, heads=v), SMALL, ("dim", "heads")),
    "Autoencoder encode": (lambda v: CODER.encode(v), tensors(), ("images", "x", "channels")),
    "VQAutoencoder encode": (lambda v: TOKENS.encode(v), tensors(), ("images", "x", "channels")),
    "VQAutoencoder decode": (lambda v: TOKENS.decode(v), tensors(), ("tokens",)),
    "TextEncoder": (lambda v: READER(v), tensors(), ("tokens",)),
    # diffusion
    "denoiser x": (lambda v: DENOISER(v, T, label=L), tensors(), ("images", "height", "x", "t")),
    "denoiser t": (lambda v: DENOISER(X, v, label=L), tensors(), ("t", "sample", "frame")),
    "denoiser of video t": (lambda v: DENOISER(VIDEO, v, label=L), tensors(), ("t", "sample", "frame")),
    "denoiser loss": (lambda v: TABLED.loss(v), tensors(), ("images", "height", "x", "x0", "t")),
    "add_noise": (lambda v: DENOISER.add_noise(X, T, v), tensors(), ("noise",)),
    "linear_beta": (schedules.linear_beta, SMALL, ("num_steps", "steps")),
    "cosine_beta": (schedules.cosine_beta, SMALL, ("num_steps", "steps")),
    "DiscreteVP": (schedules.DiscreteVP, tensors(), ("betas",)),
    "Geometric": (lambda v: schedules.Geometric(v), REAL, ("sigma_min",)),
    "VariancePreserving": (lambda v: schedules.VariancePreserving(v), REAL, ("beta_min",)),
    "Shifted": (lambda v: rescaled.Shifted(schedules.Straight(), v), REAL, ("factor",)),
    "times": (TABLE.times, SMALL, ("steps",)),
    "times of Straight": (schedules.Straight().times, SMALL, ("steps",)),
    "EMA": (lambda v: ema.EMA(nn.Linear(1, 1), v), REAL, ("decay",)),
    "EDM": (lambda v: predictions.EDM(v), REAL, ("sigma_data",)),
    "sample steps": (lambda v: samplers.sample(DENOISER, X, v, label=L), SMALL, ("steps", "times")),
    "sample times": (lambda v: samplers.sample(DENOISER, X, v, label=L), tensors(),
                     ("times", "t", "sample", "frame")),
    "sample noise": (lambda v: samplers.sample(TABLED, v, 2), tensors(), ("noise", "images", "height", "x")),
    "ddim eta": (lambda v: samplers.ddim_step(TABLED, X, T, 0.4 * T, eta=v), REAL, ("eta",)),
    "churn_step": (samplers.churn_step, SMALL, ("steps",)),
    "churn": (lambda v: samplers.churn_step(5, churn=v), REAL, ("churn",)),
    "langevin snr": (lambda v: sde.predictor_corrector(snr=v), REAL, ("snr",)),
    "correctors": (lambda v: sde.predictor_corrector(correctors=v), SMALL, ("correctors",)),
    "CFG null": (lambda v: guidance.CFG(DENOISER, 2.0, {"label": v})(X, T, label=L), tensors(), ("label",)),
    "CFG scale": (lambda v: guidance.CFG(DENOISER, v, {"label": torch.tensor(10)})(VIDEO, T, label=L),
                  tensors(), ("scale", "sample", "frame")),
    "Clip": (lambda v: guidance.Clip(TABLED, v)(X, T), REAL, ("limit",)),
    "DynamicThreshold": (lambda v: guidance.DynamicThreshold(TABLED, v)(X, T), REAL, ("percentile",)),
    "drop_condition": (lambda v: guidance.drop_condition({"label": v}, {"label": torch.tensor(3)}, 0.5),
                       tensors(), ("label",)),
    "drop p": (lambda v: guidance.drop_condition({"label": L}, {"label": torch.tensor(3)}, v), REAL, ("p",)),
    "rtol": (lambda v: ode.solve(lambda t, x: -x, X.double(), 0.0, 1.0, rtol=v),
             st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 1e-3]), ("rtol",)),
    "levels": (lambda v: likelihood.discretized_nll(X, X, X + 1, v), SMALL, ("levels",)),
    "follow start": (lambda v: schemes.follow(schemes.autoregressive, lambda noise, *_: noise, VIDEO, v, 2),
                     tensors(), ("start",)),
    "follow window": (lambda v: schemes.follow(schemes.hierarchy, lambda noise, *_: noise, VIDEO, None, v),
                      SMALL, ("window", "step")),
    # recipes
    "draw n": (lambda v: RECIPE.draw(v, 0, steps=1), SMALL, ("n", "label")),
    "draw steps": (lambda v: RECIPE.draw(2, 0, steps=v, label=L), SMALL, ("steps",)),
    "draw label": (lambda v: RECIPE.draw(2, 0, steps=1, label=v), tensors(), ("label",)),
    "draw scale": (lambda v: RECIPE.draw(2, 0, steps=1, label=L, scale=v), REAL, ("scale",)),
    "draw frames": (lambda v: CLIPS.draw(1, 0, steps=1, frames=v), st.integers(-3, 5), ("frames",)),
    "draw start": (lambda v: CLIPS.draw(2, 0, steps=1, frames=4, start=v), tensors(), ("start",)),
    # data
    "tokens": (captions.tokens, TEXTS, ("words", "caption", "is")),
    "tokens words": (lambda v: captions.tokens(["a seven"], v), WHOLE, ("words",)),
    "tokens length": (lambda v: captions.tokens(["a seven"], length=v), SMALL, ("length", "words")),
    "parse": (captions.parse, WORDS, ("is",)),
    "words": (captions.words, tensors(), ("tokens",)),
    "Actor digit": (lambda v: captions.Actor(v), WHOLE, ("digit",)),
    "Actor direction": (lambda v: captions.Actor(1, v), WORDS, ("direction",)),
    "digits size": (lambda v: mnist.builtin_digits("test", v), st.integers(-3, 40), ("size",)),
    "digits copies": (lambda v: mnist.builtin_digits("train", 8, v), st.integers(-3, 2), ("copies",)),
    "split": (lambda v: mnist.load("digits", v), WORDS, ("split",)),
    "data by name": (lambda v: sources.load(v, (1, 8, 8)), WORDS, ("data", "digit", "/")),
    "MovingMNIST size": (lambda v: MovingMNIST(n=4, size=v, images=digits()), SMALL, ("size", "digit")),
    "MovingMNIST frames": (lambda v: MovingMNIST(n=4, frames=v, images=digits()), SMALL, ("frames",)),
    "MovingMNIST n": (lambda v: MovingMNIST(n=v, images=digits()), WHOLE, ("n",)),
    "MovingMNIST speeds": (lambda v: MovingMNIST(n=4, speeds=v, images=digits()), REAL, ("speeds",)),
    "MovingMNIST mode": (lambda v: MovingMNIST(n=4, mode=v, images=digits()), WORDS, ("mode",)),
    "MovingMNIST stride": (lambda v: MovingMNIST(n=4, stride=v, images=digits()), SMALL,
                           ("stride", "frames")),
    "MovingMNIST index": (lambda v: MovingMNIST(n=4, images=digits())[v], tensors(), ("index",)),
    "images index": (lambda v: Images("x", torch.zeros(3, 1, 4, 4).byte())[v], tensors(), ("index",)),
    "batch size": (lambda v: Images("x", torch.zeros(3, 1, 4, 4).byte()).batches(v)[0], WHOLE,
                   ("batch_size",)),
    "video_folder": (lambda v: video_folder(".", v), SMALL, ("size", "no videos", "frames have numbers")),
    "grid": (media.grid, tensors(), ("x",)),
    "grid columns": (lambda v: media.grid(X, v), SMALL, ("columns",)),
    "write": (lambda v: media.write("x.png" if v.ndim != 5 else "x.gif", v), tensors(),
              ("x", "images", "videos")),
    "write to": (lambda v: media.write(v, X), WORDS, ("images", "could not be written")),
    "write fps": (lambda v: media.write("x.gif", VIDEO, fps=v), SMALL, ("fps",)),
    # evaluation
    "frechet": (lambda v: frechet.frechet_distance(v, FEATURES), tensors(), ("features", "a", "dimensions")),
    "kernel": (lambda v: frechet.kernel_distance(v, FEATURES), tensors(), ("features", "a", "dimensions")),
    "bias": (lambda v: frechet.bias(v, 3), SMALL, ("n",)),
    "noise": (lambda v: corrupt.noise(X, v), REAL, ("std",)),
    "blur": (lambda v: corrupt.blur(X, v), REAL, ("sigma",)),
    "freeze": (lambda v: corrupt.freeze(VIDEO, v), REAL, ("fraction",)),
    "shuffled": (lambda v: corrupt.shuffle(v, 0.5), tensors(), ("x",)),
    "centroid": (tracking.centroid, tensors(), ("x",)),
    "tracks": (lambda v: tracking.tracks(VIDEO, v), tensors(), ("count",)),
    "direction": (tracking.direction, tensors(), ("centres",)),
    "jump": (tracking.jump, tensors(), ("centres",)),
    "flips": (tracking.flips, tensors(), ("top",)),
    "frame_difference": (tracking.frame_difference, tensors(), ("x",)),
    "diversity": (tracking.diversity, tensors(), ("features",)),
    "measure": (lambda v: measure.measure(v, X, X, X), tensors(), ("samples", "x")),
    "look": (lambda v: clip_probes.look(PROBE, v), tensors(), ("x",)),
    "caption_right": (lambda v: clip_probes.caption_right(SAID, v), TEXTS, ("texts", "is")),
    "reading": (lambda v: probes.reading(DIGIT_PROBE, v), tensors(), ("x",)),
    # classroom
    "figures.grid": (lambda v: figures.grid(v, "alt"), tensors(), ("x", "images")),
    "figures.grid alt": (lambda v: figures.grid(X, v), WORDS, ("alt",)),
    "figures.grid zoom": (lambda v: figures.grid(X, "alt", zoom=v), REAL, ("zoom",)),
    "filmstrip": (lambda v: figures.filmstrip({"row": v}, "alt"), tensors(), ("row", "rows")),
    "compare": (lambda v: figures.compare({"panel": v}, "alt"), tensors(), ("panel", "x", "images")),
    "animate": (lambda v: animations.animate(v, "alt"), tensors(), ("x", "videos")),
    "animate fps": (lambda v: animations.animate(VIDEO, "alt", fps=v), REAL, ("fps",)),
    # training
    "obtain": (checkpoints.obtain, WORDS, ("no",)),
    "locate": (checkpoints.locate, WORDS, ("is",)),
    "begin": (lambda v: runs.begin(v, "run", "smoke", "digits", cpu=True), WORDS, ("paper",)),
    "begin preset": (lambda v: runs.begin("ddpm", "run", v, "digits", cpu=True), WORDS, ("preset",)),
    "batch": (lambda v: trained({"x": v}), tensors(), ("x", "x0", "images", "height", "batch", "loss")),
    "lr": (lambda v: Trainer(ddpm.recipe(width=8, size=8), lr=v, cpu=True), REAL, ("lr",)),
    "steps": (lambda v: Trainer(ddpm.recipe(width=8, size=8), steps=v, cpu=True), SMALL, ("steps",)),
    "accumulate": (lambda v: Trainer(ddpm.recipe(width=8, size=8), accumulate=v, cpu=True), SMALL,
                   ("accumulate",)),
    "ema": (lambda v: Trainer(ddpm.recipe(width=8, size=8), ema=v, cpu=True), REAL, ("decay",)),
    "warmup": (lambda v: Trainer(ddpm.recipe(width=8, size=8), warmup=v, cpu=True), SMALL, ("warmup",)),
    "clip": (lambda v: Trainer(ddpm.recipe(width=8, size=8), clip=v, cpu=True), REAL, ("clip",)),
    "precision": (lambda v: Trainer(ddpm.recipe(width=8, size=8), precision=v, cpu=True), WORDS,
                  ("precision",)),
    "save_every": (lambda v: Trainer(ddpm.recipe(width=8, size=8), save_every=v, cpu=True), SMALL,
                   ("save_every",)),
}


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory):
    """What is written goes to a folder of its own, and nothing of it stays half written."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("written")
    os.chdir(folder)
    yield
    os.chdir(before)
    assert not [path for path in folder.rglob("*") if ".part" in path.name]


@pytest.mark.parametrize("name", CASES)
def test_a_result_or_one_clear_error(name):
    call, values, names = CASES[name]

    @many
    @given(values)
    def holds(value):
        judged(lambda: call(value), *names)

    holds()


ODD = {int: [0, -1, 10**7, True, 2.5, "8", None, float("nan"), []], Count: [-1, 10**7, 0.5, "8", None],
       float: [float("nan"), float("inf"), "a", None, True], bool: [2, "no", None],
       str: ["", "nosuch", 5, None], tuple[int, ...]: [(), 5, "8", (0,), (8, "8"), None],
       Recipe: [None, "ddpm", 5],
       Recipe | None: ["ddpm", 5]}


def arguments():
    import inspect
    for paper in papers.names():
        for name, p in inspect.signature(papers.module(paper).recipe).parameters.items():
            yield paper, name, p.annotation


@pytest.mark.parametrize("paper, name, kind", arguments())
def test_arguments_of_recipes(paper, name, kind):
    """Of the wrong kind, or out of range: also what a foreign checkpoint may hold in its header."""
    for value in ODD[kind]:
        others = {"base": CLIPS} if paper == "fifo_diffusion" else {}
        made = judged(partial(papers.module(paper).recipe, **others | {name: value}), name)
        assert made is None, f"{paper}.recipe({name}={value!r}) was made"
