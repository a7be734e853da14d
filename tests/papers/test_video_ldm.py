import pytest
import torch
from conftest import wake

from diffusion_course.diffusion.ema import EMA
from diffusion_course.diffusion.guidance import CFG
from diffusion_course.papers import autoencoder_kl, latent_diffusion, video_autoencoder, video_ldm
from diffusion_course.papers.video_ldm import NOTHING, TASKS, context, given, interpolate
from diffusion_course.training import checkpoints
from diffusion_course.training.trainer import Trainer


@pytest.fixture
def image():
    """A small image model whose output is not zero."""
    first = autoencoder_kl.recipe(width=8, size=16)
    made = latent_diffusion.recipe(16, autoencoder=first, size=16)
    wake(made.model.net)
    for name, part in ("image", made), ("vae", first):
        part.checkpoint = {"checkpoint": name, "sha256": "0"}
    return made


def some(batch=2, frames=6):
    return {"x": torch.rand(batch, 1, frames, 16, 16) * 2 - 1, "fps": torch.tensor([8.0, 2.0])[:batch],
            "text": torch.tensor([[1, 5] + [0] * 10, [1, 6] + [0] * 10])[:batch]}


def tiny(image, **kwargs):
    return video_ldm.recipe(image=image, frames=6, **kwargs)


def frames_of(image, x, t, text):
    """What the image model says of every frame alone."""
    return torch.stack([image.model(x[:, :, f], t, text=text) for f in range(x.shape[2])], 2)


@pytest.mark.parametrize("layers", ["both", "conv", "attention"])
def test_untrained_it_is_the_image_model_whatever_is_known(image, layers):
    """Card 23, exact: new layers start as nothing."""
    net, batch, x, t = tiny(image, layers=layers).model, some(), torch.randn(2, 4, 6, 4, 4), torch.rand(2)
    known = context(torch.randn_like(x), torch.ones(2, 6))
    expected = frames_of(image, x, t, batch["text"])
    for cond in ({}, {"context": known}):
        torch.testing.assert_close(net(x, t, text=batch["text"], **cond), expected, rtol=1e-4, atol=1e-5)


def test_with_alpha_one_it_is_the_image_model_again_after_training(image):
    """Sec. 3.1, and the pair of the test above: with any other alpha it is not."""
    net, x, t = wake(tiny(image).model), torch.randn(2, 4, 6, 4, 4), torch.rand(2)
    text = some()["text"]
    expected = frames_of(image, x, t, text)
    assert (net(x, t, text=text) - expected).abs().max() > 1e-2
    for layer in net.net.aligners:
        torch.nn.init.constant_(layer.gate, float("inf"))
    torch.testing.assert_close(net(x, t, text=text), expected, rtol=1e-4, atol=1e-5)


def test_only_the_layers_over_time_train_and_are_saved(image, tmp_path):
    recipe = tiny(image)
    before = {name: x.clone() for name, x in recipe.model.state_dict().items()}
    theta = {name for name, p in recipe.model.named_parameters() if not p.requires_grad}
    images = {name for name, _ in image.model.named_parameters()}
    assert {name.replace("net.net", "net") for name in theta} == images
    trainer = Trainer(recipe, tmp_path, warmup=1, steps=4)
    list(trainer.run([some()] * 4))
    changed = {name for name, x in recipe.model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {name for name, p in recipe.model.named_parameters() if p.requires_grad}
    for file in ("model", "state"):
        saved = checkpoints.read_averaged(tmp_path / f"{file}.safetensors")[0]
        assert set(saved) == changed
    again = tiny(image)
    averaged = checkpoints.read_averaged(tmp_path / "state.safetensors")[0]
    checkpoints.load_weights(again.model, averaged, "state", theta)
    resumed = Trainer(tiny(image), tmp_path, warmup=1, steps=4)
    assert resumed.resume() == 4
    for name, x in recipe.model.state_dict().items():
        assert torch.equal(resumed.recipe.model.state_dict()[name], x)


def test_frames_see_one_another_and_no_other_clip(image):
    net, x, t, text = wake(tiny(image).model), torch.randn(2, 4, 6, 4, 4), torch.rand(2), some()["text"]
    moved = x.clone()
    moved[0, :, 3] += 1
    change = (net(moved, t, text=text) - net(x, t, text=text)).abs().amax((1, 3, 4))
    assert (change[0] > 1e-5).all() and (change[1] < 1e-6).all()


def test_what_is_known_gets_in_by_the_layers_over_time_only(image):
    net, x, t, text = wake(tiny(image).model), torch.randn(2, 4, 6, 4, 4), torch.rand(2), some()["text"]
    z, seen = torch.randn_like(x), torch.zeros(2, 6)
    nothing = net(x, t, text=text, context=context(z, seen))
    seen[0, 1] = 1
    change = (net(x, t, text=text, context=context(z, seen)) - nothing).abs().amax((1, 3, 4))
    assert (change[0] > 1e-6).any() and not change[1].any()
    for layer in net.net.aligners:
        torch.nn.init.constant_(layer.gate, float("inf"))
    assert torch.equal(net(x, t, text=text, context=context(z, seen)),
                       net(x, t, text=text, context=context(z, 0 * seen)))


def test_to_be_told_nothing_is_to_know_nothing(image):
    net, x, t, text = wake(tiny(image).model), torch.randn(2, 4, 6, 4, 4), torch.rand(2), some()["text"]
    torch.testing.assert_close(net(x, t, text=text), net(x, t, text=text, context=torch.zeros(2, 5, 6, 4, 4)))
    assert (net(x, t, text=text, context=torch.ones(2, 5, 6, 4, 4)) - net(x, t, text=text)).abs().max() > 1e-4


def test_the_distance_of_frames_is_their_rate(image):
    net, x, t, text = wake(tiny(image).model), torch.randn(2, 4, 6, 4, 4), torch.rand(2), some()["text"]
    index = torch.arange(6).expand(2, -1)
    torch.testing.assert_close(net(x, t, text=text), net(x, t, text=text, index=index))
    assert (net(x, t, text=text) - net(x, t, text=text, index=4 * index)).abs().max() > 1e-5


def test_context_is_the_masked_latents_and_the_mask():
    z, seen = torch.randn(2, 4, 3, 2, 2), torch.tensor([[True, False, True], [False, False, True]])
    c = context(z, seen)
    assert c.shape == (2, 5, 3, 2, 2)
    for b in range(2):
        for f in range(3):
            assert torch.equal(c[b, :4, f], z[b, :, f] * seen[b, f]) and (c[b, 4, f] == seen[b, f]).all()


def test_it_learns_from_clips_that_say_no_fps(image):
    batch = some()
    del batch["fps"]
    tiny(image).loss(batch).backward()


def test_which_frames_are_given():
    """None, one, two, or every fourth, as often as the table says."""
    seen = given(20_000, 10)
    ways = {tuple(range(0)): "generate", (0,): "from one", (0, 1): "from two", (0, 4, 8): "between"}
    found = dict.fromkeys(TASKS, 0)
    for row in seen:
        found[ways[tuple(row.nonzero()[:, 0].tolist())]] += 1 / 20_000
    assert found == pytest.approx(TASKS, abs=0.02) and sum(TASKS.values()) == pytest.approx(1)


class Recorder:
    """Draws each frame as its mean position in what is known, and notes what it was asked."""

    def __init__(self, schedule):
        self.schedule, self.asked = schedule, []

    def __call__(self, x, t, **cond):
        return self.estimate(x, t, **cond)[0]

    def estimate(self, x, t, context, index, **cond):
        self.asked.append((context, index))
        return torch.zeros_like(x) + context[:, :-1].sum((1, 2, 3, 4), keepdim=True), None


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 16])
def test_interpolation_keeps_the_keys_and_puts_three_frames_between(image, count):
    """T -> 4T - 3, and once more 16T - 15; windows share their ends; every clip has its own."""
    denoiser = Recorder(image.model.schedule)
    keys = torch.randn(2, 4, count, 2, 2)
    video = interpolate(denoiser, keys, stride=4, steps=2)
    assert video.shape == (2, 4, 4 * count - 3, 2, 2) and torch.equal(video[:, :, ::4], keys)
    known, index = denoiser.asked[0]
    n = next(n for n in (4, 3, 2) if (count - 1) % (n - 1) == 0)
    assert known.shape[2] == 4 * n - 3 and torch.equal(index[0], 4 * torch.arange(4 * n - 3))
    windows = (count - 1) // (n - 1)
    for b in range(2):
        for w in range(windows):
            row = known[b * windows + w]
            torch.testing.assert_close(row[:4, ::4], keys[b, :, w * (n - 1):w * (n - 1) + n])
            assert row[4, ::4].all() and not row[:, torch.arange(4 * n - 3) % 4 > 0].any()
            between = video[b, :, 4 * w * (n - 1) + 1:4 * (w + 1) * (n - 1):4]
            expected = keys[b, :, w * (n - 1):w * (n - 1) + n].sum()
            assert between.shape[1] == n - 1
            torch.testing.assert_close(between, expected.expand_as(between), rtol=1e-4, atol=1e-4)
    again = interpolate(denoiser, video, steps=2)
    assert again.shape[2] == 16 * count - 15 and torch.equal(again[:, :, ::16], keys)


def test_one_frame_has_nothing_between(image):
    with pytest.raises(ValueError, match="two"):
        interpolate(Recorder(image.model.schedule), torch.randn(1, 4, 1, 2, 2))


def test_guidance_by_what_is_known(image):
    """f + s (f(c) - f), eq. in sec. 3.2, around guidance by the text."""
    net, x, t, text = wake(tiny(image).model), torch.randn(2, 4, 6, 4, 4), torch.rand(2), some()["text"]
    known = context(torch.randn_like(x), torch.ones(2, 6))
    with_it, without = (net(x, t, text=text, context=c) for c in (known, 0 * known))
    for s in (1.0, 2.5):
        found = CFG(net, s, NOTHING)(x, t, text=text, context=known)
        torch.testing.assert_close(found, without + s * (with_it - without), rtol=1e-4, atol=1e-5)


def test_a_video_goes_on_from_its_last_two_frames(image):
    """Sec. 3.2: the first clip from nothing, every other one knows two frames; what is given stays."""
    recipe, asked = tiny(image), []
    net = recipe.model.net
    net.register_forward_pre_hook(lambda m, args, kw: asked.append(kw["context"][0, 4, :, 0, 0]),
                                  with_kwargs=True)
    text = some()["text"]
    video = recipe.draw(2, seed=0, steps=1, scale=1.0, frames=12, text=text)
    assert video.shape == (2, 1, 12, 16, 16)
    assert [c.nonzero()[:, 0].tolist() for c in asked] == [[], [0, 1], [0, 1]]
    assert [len(c) for c in asked] == [6, 6, 4]
    start = torch.rand(2, 1, 3, 16, 16)
    z = recipe.autoencoder.encode(start)
    made = recipe.sample(torch.randn(2, 4, 8, 4, 4), steps=1, start=start, text=text)
    torch.testing.assert_close(made[:, :, :3], z)
    asked.clear()
    recipe.draw(2, seed=0, steps=1, scale=1.0, frames=10, text=text, seen=1)
    assert [c.nonzero()[:, 0].tolist() for c in asked] == [[], [0]]


def test_temporal_layers_go_to_another_image_model(image):
    """Sec. 4.2.2: the layers over time of one go into another, as they are."""
    first = image.origin.kwargs["autoencoder"]
    recipe, other = tiny(image), latent_diffusion.recipe(16, autoencoder=first, size=16)
    wake(other.model.net), wake(recipe.model.net.aligners)
    swapped = tiny(other)
    swapped.model.net.aligners.load_state_dict(recipe.model.net.aligners.state_dict())
    for layer in swapped.model.net.aligners:
        torch.nn.init.constant_(layer.gate, float("inf"))
    x, t, text = torch.randn(2, 4, 6, 4, 4), torch.rand(2), some()["text"]
    expected = frames_of(other, x, t, text)
    torch.testing.assert_close(swapped.model(x, t, text=text), expected, rtol=1e-4, atol=1e-5)


def test_of_an_image_model_just_trained_it_takes_the_average(image):
    image.ema = EMA(image.model)
    average = {name: x.clone() for name, x in image.model.state_dict().items()}
    with torch.no_grad():
        for p in image.model.parameters():
            p.add_(1)
    net = tiny(image).model.state_dict()
    for name, x in average.items():
        assert torch.equal(net[name.replace("net.", "net.net.", 1)], x)
    assert not torch.equal(image.model.net.conv_in.weight, average["net.conv_in.weight"])


def test_it_draws_with_the_decoder_that_it_is_given(image):
    decoder = video_autoencoder.recipe(autoencoder=image.origin.kwargs["autoencoder"], frames=4)
    recipe = tiny(image, autoencoder=decoder)
    assert recipe.autoencoder is decoder.model.autoencoder
    assert recipe.draw(1, steps=1).shape == (1, 1, 6, 16, 16)


@pytest.mark.parametrize("kwargs, message", [
    ({}, "img-mm"), ({"image": autoencoder_kl.recipe(width=8, size=16)}, "img-mm"),
    ({"image": latent_diffusion.recipe(16, size=16)}, "img-mm")])
def test_it_needs_an_image_model_of_latents(kwargs, message):
    with pytest.raises(ValueError, match=message):
        video_ldm.recipe(**kwargs)


def test_other_layers_are_refused(image):
    with pytest.raises(ValueError, match="layers='all'"):
        tiny(image, layers="all")
