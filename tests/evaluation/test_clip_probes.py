import pytest
import torch
import torch.nn.functional as F

from diffusion_course.data.captions import tokens
from diffusion_course.data.images import Images
from diffusion_course.data.moving_mnist import MovingMNIST
from diffusion_course.evaluation import clip_probes, train_probes
from diffusion_course.evaluation.clip_probes import (
    ORDERS,
    FrameProbe,
    VideoProbe,
    caption_right,
    load_probe,
    look,
    readable,
    sized,
)
from diffusion_course.evaluation.train_probes import (
    accuracy,
    frame_loss,
    many_hot,
    mixture,
    reordered,
    spoilt,
    train,
    video_loss,
)
from diffusion_course.training import checkpoints, container


@pytest.fixture(scope="module")
def bars():
    """Ten kinds of bars in the place of digits, 24 of each."""
    pixels = torch.zeros(240, 1, 28, 28, dtype=torch.uint8)
    for n in range(240):
        pixels[n, 0, 4 + 2 * (n % 10):8 + 2 * (n % 10), 4:24] = 255 - n // 10
    return Images("bars", pixels, torch.arange(240) % 10)


def clips(bars, n=8, **options):
    return MovingMNIST(images=bars, **options)[torch.arange(n)]


def normal(probe):
    """The probe with statistics of some input, so that its activations are neither 0 nor huge."""
    for module in probe.modules():
        if hasattr(module, "running_mean"):
            module.momentum = 1
    shape = (16, 1, 32, 32) if isinstance(probe, FrameProbe) else (16, 1, 8, 32, 32)
    with torch.no_grad():
        probe.train()(torch.rand(shape))
    return probe.eval()


# ---- networks

@pytest.mark.parametrize("frames", [4, 8, 11, 16])
def test_clips_of_any_length_and_size(frames):
    probe = VideoProbe().eval()
    for channels, size in ((1, 32), (3, 32), (1, 16), (1, 64)):
        features, said = look(probe, torch.rand(3, channels, frames, size, size))
        assert features.shape == (3, 64) and not features.requires_grad
        assert {name: tuple(answer.shape) for name, answer in said.items()} == {
            "pairs": (3, 50), "slow": (3, 10), "count": (3, 3), "bounce": (3, 1), "order": (3, len(ORDERS)),
            "spoilt": (3, 2)}
    features, said = look(FrameProbe().eval(), torch.rand(3, 1, 32, 32))
    assert features.shape == (3, 64) and said["digits"].shape == (3, 10)


def test_probes_are_small_enough_to_ship():
    for probe in (FrameProbe(), VideoProbe()):
        assert 2 * sum(t.numel() for t in probe.state_dict().values()) < 1e6


@pytest.mark.parametrize("probe, shape", [(FrameProbe, (300, 1, 32, 32)), (VideoProbe, (140, 1, 4, 32, 32))])
def test_a_sample_is_seen_alike_in_any_company(probe, shape):
    x, probe = torch.rand(shape), normal(probe())
    features, said = look(probe, x)
    alone, said_alone = look(probe, x[135:136])
    torch.testing.assert_close(features[135:136], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said["count"][135:136], said_alone["count"], atol=1e-4, rtol=1e-4)
    assert (features[0] - features[135]).abs().max() > 1e-3


def test_sizes_are_changed_frame_by_frame():
    x = torch.rand(2, 3, 5, 16, 16)
    y = sized(x)
    assert y.shape == (2, 1, 5, 32, 32)
    torch.testing.assert_close(y[1, :, 3], sized(x[:, :, 3])[1])
    same = torch.rand(2, 1, 5, 32, 32)
    assert sized(same) is same
    flat = torch.full((1, 1, 64, 64), -1.0)
    torch.testing.assert_close(sized(flat), torch.full((1, 1, 32, 32), -1.0))


def test_the_order_of_frames_is_seen_by_the_video_probe_only(bars):
    x = clips(bars)["x"]
    shuffled = x[:, :, torch.tensor([3, 0, 7, 12, 1, 15, 5, 9, 2, 14, 8, 4, 11, 6, 13, 10])]
    video, frame = normal(VideoProbe()), normal(FrameProbe())
    assert (look(video, x)[0] - look(video, shuffled)[0]).abs().max() > 1e-3
    mean = lambda x: look(frame, x.transpose(1, 2).flatten(0, 1))[0].unflatten(0, (-1, 16)).mean(1)
    torch.testing.assert_close(mean(x), mean(shuffled), atol=1e-5, rtol=0)


# ---- what their answers mean

def logits(*pairs):
    out = torch.full((50,), -3.0)
    out[[5 * digit + way for digit, way in pairs]] = 3.0
    return out


@pytest.mark.parametrize("pairs, text, right", [
    ([(7, 0)], "a seven moves up", True), ([(7, 1)], "a seven moves up", False),
    ([(6, 0)], "a seven moves up", False), ([], "a seven moves up", False),
    ([(7, 0), (2, 4)], "a two stays and a seven moves up slowly", True),
    ([(7, 0)], "a two stays and a seven moves up", False),
    ([(7, 0), (2, 4), (3, 3)], "a two stays and a seven moves up", False),
    ([(7, 4), (2, 0)], "a two stays and a seven moves up", False),             # the right words, mixed up
    ([(7, 0)], "a seven moves up and a seven moves up", True),
    ([(7, 3), (8, 1)], "a seven and an eight", True), ([(7, 3)], "a seven and an eight", False)])
def test_a_caption_is_right_when_all_of_it_is(pairs, text, right):
    other = logits((0, 0))
    found = caption_right({"pairs": torch.stack([other, logits(*pairs)])}, ["a zero moves up", text])
    assert found.tolist() == [True, right]


@pytest.mark.parametrize("digits, text, right", [
    ([7], "a seven", True), ([6], "a seven", False), ([], "a seven", False), ([7, 2], "a seven", False),
    ([7, 2], "a two and a seven", True), ([7], "a two and a seven", False),
    ([7], "a seven and a seven", True), ([8, 0], "a zero and an eight", True)])
def test_a_caption_of_a_frame_is_right_when_its_digits_are(digits, text, right):
    said = torch.full((2, 10), -3.0)
    said[0, 1], said[1, digits] = 3.0, 3.0
    assert caption_right({"digits": said}, ["a one", text]).tolist() == [True, right]


@pytest.mark.parametrize("p, count, good", [
    ({3: 0.95}, 1, True), ({3: 0.85}, 1, False), ({}, 1, False), ({3: 0.95, 4: 0.95}, 1, False),
    ({3: 0.95, 4: 0.95}, 2, True), ({3: 0.95}, 2, True), ({3: 0.95, 4: 0.6}, 2, False),
    ({3: 0.95}, 0, False)])
def test_a_frame_is_readable_when_its_digits_are_sure(p, count, good):
    said = torch.full((1, 10), 0.01)
    for digit, value in p.items():
        said[0, digit] = value
    answers = {"digits": said.logit(), "count": F.one_hot(torch.tensor([count]), 3).float()}
    assert readable(answers).item() is good


# ---- checkpoints

def test_a_probe_comes_back_from_its_file(tmp_path):
    probe = VideoProbe()
    probe(torch.rand(4, 1, 8, 32, 32))                         # running statistics
    path = container.write(tmp_path / "a.safetensors", probe.state_dict(), {"kind": "video probe"})
    x = torch.rand(2, 1, 8, 32, 32)
    torch.testing.assert_close(look(load_probe("video_probe", path), x)[0], look(probe.eval(), x)[0])
    with pytest.raises(container.CheckpointError, match="a.safetensors: not a frame probe"):
        load_probe("frame_probe", path)
    with pytest.raises(ValueError, match="name='digit_probe' must be one of frame_probe, video_probe"):
        load_probe("digit_probe")


# ---- training

def test_many_hot():
    found = many_hot(torch.tensor([[3, -1], [0, 9], [4, 4]]), 10)
    assert [row.nonzero()[:, 0].tolist() for row in found] == [[3], [0, 9], [4]]


def test_a_mixture_has_its_share_of_every_set_and_the_keys_that_all_have(bars):
    one, two = MovingMNIST(images=bars, frames=None), MovingMNIST(images=bars, frames=None, size=16)
    batch = mixture({one: 3, two: 2}, 4, seed=1)
    assert batch["x"].shape == (5, 1, 32, 32) and len(batch["digits"]) == 5
    torch.testing.assert_close(batch["x"][:3], one.batches(3, 1)[4]["x"])
    torch.testing.assert_close(batch["x"][3:], sized(two.batches(2, 1)[4]["x"]))


def test_spoilt_says_how_much(bars):
    x = clips(bars, 64)["x"]
    y, levels = spoilt(x)
    change = (y - x).flatten(1).std(1)
    clean = ~levels.any(1)
    assert clean.any() and levels.any(0).all() and not change[clean].any() and change[~clean].min() > 0
    noisy = levels[:, 0] > 0.2
    torch.testing.assert_close(change[noisy], levels[noisy, 0] / 5, rtol=0.05, atol=0)


def test_reordered_says_what_was_done():
    frame = torch.arange(16).float().view(1, 1, 16, 1, 1).expand(200, 1, 16, 2, 2)
    lengths, seen = set(), set()
    for _ in range(8):
        y, order = reordered(frame)
        index, lengths = y[:, 0, :, 0, 0].long(), lengths | {y.shape[2]}
        seen |= {(y.shape[2], n) for n in order.tolist()}
        steps = index.diff(dim=1)
        assert (steps[order == 0] == 1).all() and (steps[order == 2] == 0).all()
        assert (steps[order == 3] == 2).all() and y.shape[2] * 2 == 16 or not (order == 3).any()
        shuffled = index[order == 1]
        assert (shuffled.sort(1).values.diff(dim=1) == 1).all() and (shuffled.diff(dim=1) != 1).any(1).all()
        assert 0.35 < (order == 0).float().mean()
    assert lengths == {8, 16} and seen == {(8, 0), (8, 1), (8, 2), (8, 3), (16, 0), (16, 1), (16, 2)}


def test_training_reads_what_there_is(bars):
    data = {MovingMNIST(images=bars, frames=None): 32, MovingMNIST(images=bars, frames=None, size=16): 8}
    torch.manual_seed(0)
    probe = FrameProbe()
    before = frame_loss(probe, mixture(data, 999, 0)).item()
    train(probe, frame_loss, data, steps=25)
    assert not probe.training
    assert frame_loss(probe.train(), mixture(data, 999, 0)).item() < 0.9 * before
    assert set(accuracy(probe.eval(), next(iter(data)), 40)) == {"count", "digits"}


def test_every_head_of_the_video_probe_learns(bars):
    data = {MovingMNIST(images=bars): 12, MovingMNIST(images=bars, mode="bounce", speeds=(1, 2)): 12}
    probe = VideoProbe()
    for seed in range(4):
        torch.manual_seed(seed)
        video_loss(probe, mixture(data, seed, 0)).backward()
    for name, p in probe.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
    found = [accuracy(probe.eval(), part, 12) for part in data]
    assert set(found[0]) == {"count", "caption", "order"} and set(found[1]) == {"count", "bounce"}


def test_clips_whose_frames_are_out_of_order_teach_no_direction(bars, monkeypatch):
    batch = clips(bars)
    probe = VideoProbe()
    for order in (1, 2):
        orders = torch.full((len(batch["x"]),), order)
        monkeypatch.setattr(train_probes, "reordered", lambda x, orders=orders: (x, orders))
        probe.zero_grad()
        video_loss(probe, batch).backward()
        assert not probe.maps["pairs"].weight.grad.any() and probe.heads["order"].weight.grad.any()


# ---- the shipped probes

def trained(name):
    if not checkpoints.shipped(name).is_file():
        pytest.skip(f"{name} is not here")
    return load_probe(name)


@pytest.fixture(scope="module")
def test_clips():
    return MovingMNIST("test")


def test_what_the_shipped_frame_probe_reads():
    probe = trained("frame_probe")
    for size in (32, 16):
        data = MovingMNIST("test", frames=None, size=size)
        found, least = accuracy(probe, data, 400), 0.8 if data.name == "moving_mnist" else 0.6
        assert found["digits"] > least and found["count"] > 0.85, (size, found)


def test_what_the_shipped_video_probe_reads(test_clips):
    probe = trained("video_probe")
    found = accuracy(probe, test_clips, 200)
    least = 0.7 if test_clips.name == "moving_mnist" else 0.45  # it has never seen the built-in digits
    assert found["caption"] > least and found["order"] > 0.8 and found["count"] > 0.9, found
    x = test_clips[torch.arange(100)]["x"]
    shuffled = x[:, :, torch.randperm(16)]
    assert (look(probe, shuffled)[1]["order"].argmax(1) == 0).float().mean() < 0.3


def test_tokens_are_what_captions_are(test_clips):
    index = torch.arange(20)
    assert torch.equal(tokens(test_clips.captions(index)), test_clips[index]["text"])
    assert clip_probes.FEATURES == 64
