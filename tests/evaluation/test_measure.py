import pytest
import torch
from torch import nn

from diffusion_course.data import sources
from diffusion_course.data.captions import tokens, words
from diffusion_course.data.mnist import builtin_digits
from diffusion_course.data.moving_mnist import MovingMNIST
from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.predictions import Epsilon
from diffusion_course.diffusion.samplers import heun_step
from diffusion_course.diffusion.schedules import linear_beta
from diffusion_course.evaluation import clip_probes, corrupt, measure
from diffusion_course.evaluation.clip_probes import FrameProbe, VideoProbe, caption_right, look
from diffusion_course.evaluation.frechet import frechet_distance
from diffusion_course.layers.conditions import Doors
from diffusion_course.papers import autoencoder_kl, ddpm, latent_diffusion, video_diffusion_models
from diffusion_course.recipe import Recipe
from diffusion_course.training import checkpoints

N = 24


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """Probes with random weights in the place of the shipped ones."""
    torch.manual_seed(1)
    probes = {"frame_probe": FrameProbe().eval(), "video_probe": VideoProbe().eval()}
    monkeypatch.setattr(measure, "load_probe", probes.__getitem__)
    (tmp_path / "probe").write_bytes(b"")
    monkeypatch.setattr(measure.checkpoints, "obtain", lambda slug: tmp_path / "probe")
    return probes


def data(kind, n=3 * N):
    if kind == "images":
        batch = builtin_digits("test")[torch.arange(n)]
        return batch["x"].split(N), None
    source = MovingMNIST("test", frames=6, images=builtin_digits("test", size=28))
    return source[torch.arange(n)]["x"].split(N), source.captions(torch.arange(n))


# ---- samples beside real items

@pytest.mark.parametrize("kind", ["images", "videos"])
def test_real_items_in_the_place_of_samples_get_what_real_items_get(untrained, kind):
    (real, other, train), texts = data(kind)
    asked = texts[N:2 * N] if texts else []
    metrics = measure.measure(other, real, other, train, asked, asked)
    assert {"frechet", "kernel", "train_frechet", "diversity", "nearest"} <= set(metrics)
    assert ("readable" in metrics) == (kind == "images") and ("caption" in metrics) == (kind == "videos")
    for name, metric in metrics.items():
        assert metric["value"] == pytest.approx(metric["real"], nan_ok=True), name
    assert metrics["frechet"]["value"] > 0 and metrics["frechet"]["spread"] > 0


def test_every_number_is_of_what_it_says(untrained):
    (real, other, train), _ = data("images")
    x = other + 0.3 * torch.randn_like(other)
    metrics = measure.measure(x, real, other, train)
    f, f_real, f_other, f_train = (look(untrained["frame_probe"], y)[0] for y in (x, real, other, train))
    assert metrics["frechet"]["value"] == frechet_distance(f, f_real)
    assert metrics["frechet"]["real"] == frechet_distance(f_other, f_real)
    assert metrics["train_frechet"]["value"] == frechet_distance(f, f_train)
    assert metrics["diversity"]["value"] != metrics["diversity"]["real"]
    assert measure.measure(train, real, other, train)["nearest"]["value"] == pytest.approx(0, abs=1e-3)
    assert metrics["nearest"]["value"] > 1e-6


def test_frozen_and_flickering_clips_are_told_from_moving_ones(untrained):
    (real, other, train), _ = data("videos")
    still = measure.measure(corrupt.freeze(other, 1), real, other, train)
    assert still["motion"]["value"] == 0 < still["motion"]["real"]
    assert still["jump"]["value"] == pytest.approx(0, abs=1e-4) and still["flips"]["value"] == 0
    wild = measure.measure(corrupt.shuffle(other, 1), real, other, train)
    assert wild["motion"]["value"] > 1.5 * wild["motion"]["real"]
    assert wild["jump"]["value"] > 2 * wild["jump"]["real"]


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_a_caption_that_was_not_asked_for_is_wrong(untrained, monkeypatch, kind):
    (real, other, train), _ = data(kind)
    monkeypatch.setattr(measure, "caption_right",
                        lambda said, asked: torch.tensor([text == "yes" for text in asked]))
    metric = measure.measure(other, real, other, train, ["yes"] * 6 + ["no"] * 18, ["yes"] * N)["caption"]
    assert metric == {"value": 0.25, "real": 1.0, "spread": pytest.approx((0.25 * 0.75 / N) ** 0.5)}


def test_what_cannot_be_measured(untrained):
    (real, other, train), _ = data("images")
    with pytest.raises(ValueError, match="23 samples, 24 and 24 real items: .* equal numbers"):
        measure.measure(other[1:], real, other, train)
    broken = other.clone()
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 24 samples are not finite"):
        measure.measure(broken, real, other, train)


# ---- a checkpoint

@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def saved(tmp_path, recipe, data, **facts):
    return checkpoints.save_model(tmp_path / "mine.safetensors", recipe, data=data, step=10, batch_size=4,
                                  minutes=1.5, device="cpu", seed=3, **facts)


def test_a_row_of_an_image_model(untrained, offline, tmp_path):
    path = saved(tmp_path, ddpm.recipe(width=8, size=16, num_steps=20), "digits")
    row = measure.evaluate(path, n=10, seed=5)
    assert row["model"] == "mine" and row["paper"] == "ddpm" and row["data"] == "digits"
    assert row["shape"] == [1, 16, 16] and row["n"] == 10 and row["seed"] == 5
    assert row["sampling"] == {"steps": 20, "step": "ancestral_step"} and row["evaluations"] == 20
    assert row["training"] == {"steps": 10, "batch_size": 4, "minutes": 1.5, "device": "cpu", "seed": 3,
                               "flops": row["training"]["flops"]}
    assert row["parameters"] == sum(p.numel() for p in ddpm.recipe(width=8, size=16).model.parameters())
    again = measure.evaluate(path, n=10, seed=5)
    other = measure.evaluate(path, n=10, seed=6)
    assert again == row and other["metrics"]["frechet"]["value"] != row["metrics"]["frechet"]["value"]
    heun = measure.evaluate(path, n=10, steps=5, step=heun_step)
    assert heun["sampling"] == {"steps": 5, "step": "heun_step"} and heun["evaluations"] == 9


def test_a_row_of_a_video_model(untrained, offline, tmp_path):
    recipe = video_diffusion_models.recipe(width=8, frames=8, size=16)
    row = measure.evaluate(saved(tmp_path, recipe, "moving_digits"), n=6, steps=4)
    assert row["data"] == "moving_digits" and row["shape"] == [1, 8, 16, 16] and row["evaluations"] == 4
    assert {"frechet", "runs", "flips", "motion", "frame_frechet"} <= set(row["metrics"])
    assert "caption" not in row["metrics"]


def test_a_row_of_an_autoencoder_is_of_the_images_it_was_shown(untrained, offline, tmp_path, monkeypatch):
    recipe, seen, drawn = autoencoder_kl.recipe(width=8, size=16), [], measure.drawn

    def spy(*args, **options):
        seen.append((args[3]["x"], drawn(*args, **options)))
        return seen[0][1]

    monkeypatch.setattr(measure, "drawn", spy)
    row = measure.evaluate(saved(tmp_path, recipe, "moving_digits"), n=70)     # more than are drawn at a time
    shown, x = seen[0]
    assert row["shape"] == [1, 16, 16] and row["data"] == "moving_digits" and row["sampling"] == {}
    assert shown.shape == x.shape == (70, 1, 16, 16)
    auto = checkpoints.load_model(tmp_path / "mine.safetensors").model.autoencoder
    torch.testing.assert_close(x, auto.decode(auto.encode(shown)), rtol=1e-4, atol=1e-4)
    metrics = measure.measure(x, *[shown] * 3)
    assert row["metrics"]["readable"]["value"] == metrics["readable"]["value"]
    assert "caption" not in row["metrics"]


def test_a_row_of_a_latent_model_of_captions(untrained, offline, tmp_path, monkeypatch):
    """Its items are images, though it draws latents; and it is asked for captions of other items."""
    first = autoencoder_kl.recipe(width=8, size=16)
    path = checkpoints.save_model(tmp_path / "runs/first/model.safetensors", first)
    first, obtain = checkpoints.load_model(path), checkpoints.obtain
    monkeypatch.setattr(checkpoints, "obtain", lambda slug: path if slug == "first" else obtain(slug))
    recipe, asked = latent_diffusion.recipe(width=8, autoencoder=first), []
    monkeypatch.setattr(measure, "caption_right", lambda said, texts: asked.append(texts) or
                        torch.tensor([text.startswith("a") for text in texts]))
    row = measure.evaluate(saved(tmp_path, recipe, "moving_digits"), n=6, steps=2)
    assert row["shape"] == [1, 16, 16] and row["evaluations"] == 2 * 2         # with and without the caption
    assert row["kwargs"]["autoencoder"] == first.checkpoint
    assert row["parameters"] == sum(p.numel() for p in recipe.model.parameters())
    assert len(asked) == 2 and asked[0] == asked[1] and len(set(asked[0])) > 2
    assert row["metrics"]["caption"] == {"value": 1.0, "real": 1.0, "spread": 0.0}


def test_more_samples_than_there_are_real_items(untrained, offline, tmp_path):
    path = saved(tmp_path, ddpm.recipe(width=8, size=16, num_steps=20), "digits")
    with pytest.raises(ValueError, match="n=149 .* needs 2 n test items; .* 297, .* up to 148"):
        measure.evaluate(path, n=149)


class Net(nn.Module):
    """A convolution that is given captions, in the package's room of networks."""

    __module__ = "diffusion_course.networks.net"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1, bias=False)
        self.doors = Doors(8, embed={"text": lambda dim: nn.Embedding(30, dim)})
        self.asked = []

    def forward(self, x, t, text):
        self.asked += words(text)
        return self.conv(x)


def test_a_model_of_captions_is_asked_for_those_of_real_clips():
    net = Net()
    denoiser = Denoiser(net, linear_beta(10), Epsilon())
    recipe = Recipe(denoiser, lambda batch: denoiser.loss(batch["x"], text=batch["text"]),
                    lambda noise, text: denoiser(noise, torch.ones(len(noise)), text=text), (1, 4, 8, 8))
    texts = [f"a {digit} moves up" for digit in ("one", "two", "six")] * 30
    with measure.counted(recipe) as evaluations:
        x = measure.drawn(recipe, 90, 0, recipe.asked({"text": tokens(texts), "label": torch.arange(90)}))
    assert net.asked == texts and evaluations == [90] and x.shape == (90, 1, 4, 8, 8)
    with measure.counted(recipe) as evaluations:
        pass
    assert evaluations == [0]


def test_compute_is_counted_as_it_is():
    net, batch = Net(), {"x": torch.randn(2, 1, 4, 8, 8), "text": tokens(["a one", "a two"])}
    denoiser = Denoiser(net, linear_beta(10), Epsilon())
    recipe = Recipe(denoiser, lambda batch: denoiser.loss(batch["x"], text=batch["text"]), None, (1, 4, 8, 8))
    forward = 2 * 27 * 4 * 8 * 8
    assert measure.training_flops(recipe, batch) == 2 * forward          # and the gradient of the weights
    assert all(p.grad is None for p in net.parameters())


def test_samples_do_not_depend_on_the_memory_they_are_drawn_in(monkeypatch):
    recipe = ddpm.recipe(width=8, size=16, num_steps=5)
    x = measure.drawn(recipe, 70, seed=1)
    assert x.shape == (70, 1, 16, 16) and torch.equal(x, measure.drawn(recipe, 70, seed=1))
    assert torch.equal(measure.drawn(recipe, 64, seed=1), x[:64])
    assert not torch.equal(x[:6], x[64:]) and not torch.equal(x, measure.drawn(recipe, 70, seed=2))


# ---- the shipped probes: what a metric must see, and what it must not (card 49)

@pytest.fixture(scope="module")
def shipped():
    if not all(checkpoints.shipped(name).is_file() for name in clip_probes.PROBES):
        pytest.skip("the probes are not here")
    video, frame = (clip_probes.load_probe(name) for name in ("video_probe", "frame_probe"))
    x = MovingMNIST("test", n=512)[torch.arange(512)]["x"]
    stills = lambda clips: look(frame, clips[:, :, 7])[0]
    features = {"video": lambda clips: look(video, clips)[0], "frame": stills}
    real = {name: function(x[:256]) for name, function in features.items()}
    other = x[256:]
    floor = {name: frechet_distance(function(other), real[name]) for name, function in features.items()}
    return features, real, other, floor


@pytest.mark.parametrize("name", corrupt.CORRUPTIONS)
def test_the_more_spoilt_the_farther(shipped, name):
    features, real, other, floor = shipped
    spoil, strengths = corrupt.CORRUPTIONS[name]
    video = [frechet_distance(features["video"](spoil(other, s)), real["video"]) for s in strengths]
    assert all(a < b for a, b in zip(video, video[1:])), video
    assert video[0] == pytest.approx(floor["video"], rel=1e-4) and video[-1] > 3 * floor["video"]
    frame = [frechet_distance(features["frame"](spoil(other, s)), real["frame"]) for s in strengths]
    if name in ("noise", "blur"):
        assert all(a < b for a, b in zip(frame, frame[1:])), frame
    elif name == "shuffle":
        assert max(frame) < 2 * floor["frame"], frame          # each of its frames is as good as ever


def test_clips_that_run_backwards_are_clips(shipped):
    features, real, other, floor = shipped
    assert frechet_distance(features["video"](corrupt.reverse(other)), real["video"]) < 2 * floor["video"]


def test_the_floor_is_that_of_its_number_of_samples(shipped):
    """For whitened features the distance of real from real is d (d + 5) / 2n, within 30 %."""
    features, real, other, _ = shipped
    both = torch.cat([real["video"], features["video"](other)]).double()
    mean, root = both.mean(0), torch.linalg.cholesky(torch.linalg.inv(both.T.cov()))
    a, b = ((x.double() - mean) @ root for x in (both[:256], both[256:]))
    assert frechet_distance(a, b) == pytest.approx(64 * 69 / (2 * 256), rel=0.3)


def test_captions_of_real_clips_are_right_and_of_others_wrong(shipped):
    source = MovingMNIST("test", n=512)
    texts = source.captions(torch.arange(200))
    said = look(clip_probes.load_probe("video_probe"), source[torch.arange(200)]["x"])[1]
    right, wrong = caption_right(said, texts), caption_right(said, texts[1:] + texts[:1])
    least = 0.7 if source.name == "moving_mnist" else 0.45     # the probe has never seen the built-in digits
    assert right.float().mean() > least > 0.05 > wrong.float().mean()


# ---- data by name

def test_data_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    images = sources.load("digits", (1, 16, 16))
    assert images.shape == (1, 16, 16) and images.name == "digits"
    clips = sources.load("moving_digits", (3, 8, 16, 16), "test")
    assert clips.shape == (3, 8, 16, 16) and clips.split == "test" and clips.name == "moving_digits"
    assert sources.load("moving_digits", (1, 32, 32)).shape == (1, 32, 32)
    assert sources.load(None, (1, 8, 16, 16)).shape == (1, 8, 16, 16)
    assert sources.load(None, (1, 16, 16), "test").shape == (1, 16, 16)
    with pytest.raises(ValueError, match="data='nowhere' is neither mnist, .*, nor mnist_test_seq, nor"):
        sources.load("nowhere", (1, 8, 16, 16))
