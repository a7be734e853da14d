import hashlib
import itertools
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from diffusion_course.data import mnist, motion
from diffusion_course.data.captions import DIRECTIONS, parse, tokens, words
from diffusion_course.data.images import Images
from diffusion_course.data.moving_mnist import HELD_OUT, MODES, PAIRS, PALETTE, SEEN, VERSION, MovingMNIST

STEP = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1), "stays": (0, 0)}  # (row, column)
CLOSE = 1e-4                                                   # labels are single precision


@cache
def handwriting(split="train"):
    """Some real digits, MNIST's or the built-in ones."""
    images = mnist.load(split=split, size=28)
    return Images(images.name, images.pixels[:6000], images.labels[:6000])


@cache
def drawings(n=600):
    """Digits made of 2 x 2 blocks of whole numbers, exact on 14 pixels whatever the machine."""
    i, row, column = torch.meshgrid(torch.arange(n), torch.arange(14), torch.arange(14), indexing="ij")
    blocks = (37 * i + 11 * row * column + 5 * row + 3 * column) % 256 * ((i + row + 2 * column) % 3 > 0)
    pixels = blocks.byte().repeat_interleave(2, 1).repeat_interleave(2, 2)
    return Images("drawings", pixels[:, None], torch.arange(n) // 7 % 10)


@cache
def squares(n=120):
    """Every digit is a white square."""
    pixels = torch.full((n, 1, 28, 28), 255, dtype=torch.uint8)
    return Images("squares", pixels, torch.arange(n) // 12)


def made(split="train", images=None, **kwargs):
    images = images or handwriting("test" if split == "test" else "train")
    return MovingMNIST(split, images=images, **kwargs)


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and np.array_equal(a[name], b[name], equal_nan=a[name].is_floating_point()) for name in a)


def at(place, batch):
    return {name: value[place] for name, value in batch.items()}


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def ink(batch):
    """Videos of whole numbers [B, C, F, H, W]."""
    return ((batch["x"] + 1) * 127.5).round().byte()


def mass(pixels):
    """How much ink each frame has [B, F]."""
    return pixels.sum((1, 3, 4), dtype=torch.int64)


def fingerprint(batch, names=None):
    total = hashlib.sha256()
    for name in names or sorted(batch):
        value = ink(batch) if name == "x" else batch[name]
        total.update(value.contiguous().numpy().tobytes())
    return total.hexdigest()


def middle(pixels):
    """The centroid of ink [B, 1, F, H, W] as (row, column): [B, F, 2]."""
    weight = pixels[:, 0].double()
    place = torch.arange(weight.shape[-1]).double()
    return torch.stack([weight.sum(3) @ place, weight.sum(2) @ place], -1) / weight.sum((2, 3))[..., None]


def stamped(glyph, corner, size):
    """One digit on an empty frame, at a whole corner, by padding and rolling."""
    frame = np.zeros((size, size), np.uint8)
    frame[:len(glyph), :len(glyph)] = glyph
    return np.roll(frame, tuple(corner), (0, 1))


# ---- item i is a pure function of (seed, split, i)

RICH = {"channels": 3, "stride": (2, 1), "frames": 8, "pairs": set(SEEN), "speeds": (1.0, 0.25, 0.5)}


def test_items_are_the_same_however_they_are_asked_for():
    data = made(n=50, **RICH)
    batch = data[torch.arange(50)]
    assert same(batch, joined([data[torch.tensor([i])] for i in range(50)]))
    items = list(data)                                         # it comes to an end
    assert same(batch, {name: torch.stack([item[name] for item in items]) for name in batch})
    assert same(batch, data[:]) and same(batch, data[range(50)]) and same(batch, data[np.arange(50)])
    order = torch.randperm(50)
    assert same(at(order, batch), data[order])
    for index in (slice(3, 40, 7), slice(None, None, -1), slice(-5, None), slice(7, 7), [], [3, 3, -1], [-50],
                  torch.tensor([49, 0], dtype=torch.uint8), torch.tensor([], dtype=torch.long)):
        place = np.arange(50)[index if isinstance(index, slice) else list(map(int, index))].copy()
        assert same(data[index], at(place, batch)) and data.captions(index) == words(batch["text"][place])
    for index in (7, -43, np.int64(7), torch.tensor(7)):
        assert same(data[index], at(7, batch)) and [data.captions(index)] == words(batch["text"][7:8])
    assert len(data) == 50 and same(batch, made(n=7_000_000, **RICH)[torch.arange(50).byte()])
    assert same(data.batches(5, seed=3)[27], made(n=50, **RICH).batches(5, seed=3)[27])


def test_one_batch_does_not_share_memory_with_the_next():
    data = made(images=drawings())
    before = data[:4]
    for value in data[:4].values():
        value.zero_()
    assert same(before, data[:4])


def hundred():
    """The fingerprint of 100 items in reversed order, for another process."""
    return fingerprint(made(images=drawings(), n=100, **RICH)[::-1])


def test_another_process_makes_the_same():
    code = "import test_moving_mnist as t; print(t.hundred())"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": path}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.split()[-1] == hundred()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_same(workers):
    data, order = made(images=drawings(), n=100, **RICH), torch.randperm(100)
    loader = DataLoader(data, batch_size=7, sampler=order.tolist(), num_workers=workers)
    assert fingerprint(joined(list(loader))) == fingerprint(data[order])
    loader = DataLoader(Subset(data, order[:9].tolist()), batch_size=4, num_workers=workers)
    assert fingerprint(joined(list(loader))) == fingerprint(data[order[:9]])


def test_other_seeds_splits_and_numbers_make_other_clips():
    starts = []
    for seed, split in itertools.product((0, 1, 2**32 - 1), ("train", "validation", "test")):
        starts += made(split, images=drawings(), seed=seed, frames=4)[:50]["starts"][:, 0].tolist()
    assert len({tuple(start) for start in starts}) == 9 * 50


@pytest.mark.parametrize("mode", MODES)
def test_global_random_numbers_are_neither_read_nor_used_up(mode):
    np.random.seed(1)
    torch.manual_seed(1)
    ours, theirs = np.random.get_state()[1].tolist(), torch.get_rng_state()
    before = made(mode=mode, images=drawings())[:20]
    made(mode=mode, images=drawings()).captions(slice(20))
    assert np.random.get_state()[1].tolist() == ours and torch.equal(torch.get_rng_state(), theirs)
    np.random.seed(2)
    torch.manual_seed(2)
    assert same(before, made(mode=mode, images=drawings())[:20])


def test_the_same_options_in_another_order_make_the_same():
    first = made(images=drawings(), pairs=PAIRS, counts=(1, 2), speeds=(0.5, 1.0), stride=(1, 2), frames=8)
    other = made(images=drawings(), pairs=set(PAIRS), counts=[2, 1, 1], speeds=np.array([1, 0.5]),
                 stride={2, 1}, frames=8)
    third = made(images=drawings(), pairs=(pair for pair in (*PAIRS[::-1], *SEEN)), speeds=[1, 0.5, 0.5],
                 stride=(2, 1), frames=8)
    assert same(first[:40], other[:40]) and same(first[:40], third[:40])
    one, several = made(counts=1, speeds=1), made(counts=(1,), speeds=(1.0,))
    assert same(one[:9], several[:9])


GOLDEN = {1: {
    "straight": "c3fed3a96e92e691", "wrap": "3324b3dc0673b066",
    "bounce": "6026597540cf56c8", "srivastava": "3d2a149a56722c69",
    "rich": "1113a7bf8dc6c774", "images": "9631cbec505fcb3e",
    "64": "4348ea4d04a14d99"}}


def golden(**kwargs):
    names = ("x", "digits", "instances", "directions", "slow", "bounced", "overlaps", "colours", "text")
    return fingerprint(made(images=drawings(), seed=5, **kwargs)[:64], names)[:16]


def test_this_version_makes_what_it_always_made():
    found = {mode: golden(mode=mode) for mode in MODES} | {
        "rich": golden(**RICH), "images": golden(frames=None), "64": golden(size=64, frames=4)}
    assert found == GOLDEN[VERSION], "clips of these seeds have changed: undo it, or raise VERSION"


# ---- labels, captions and pixels tell one story

@cache
def straight():
    data = made(counts=1)
    return data[:1000], data.captions(slice(1000))


def test_the_ink_goes_where_the_caption_says_and_as_fast():
    batch, captions = straight()
    centre = middle(ink(batch))
    went = (centre[:, -1] - centre[:, 0]) / 15                 # pixels per frame
    for way, velocity, slow, text in zip(went, batch["velocities"][:, 0], batch["slow"], captions):
        actor, = parse(text)
        speed = 0 if actor.direction == "stays" else 0.5 if actor.slow else 1.0
        assert way.sign().tolist() == list(STEP[actor.direction])
        assert abs(way.norm() - speed) < 0.15 and velocity.norm() == speed and slow[0] == actor.slow
        assert abs(way - velocity).max() < 0.15
    assert {parse(text)[0].direction for text in captions} == set(DIRECTIONS)


def test_digits_stay_whole_and_on_the_canvas():
    batch, _ = straight()
    weight, centres = mass(ink(batch)), batch["centres"][:, :, 0]
    assert (weight == weight[:, :1]).all() and weight.min() > 0
    assert 6.5 - CLOSE < centres.min() < 6.6 and 24.4 < centres.max() < 24.5 + CLOSE, "or they avoid walls"
    gap = middle(ink(batch)) - centres                         # how far the ink is from the centre of its box
    assert (gap - gap[:, :1]).abs().max() <= 1


@pytest.mark.parametrize("mode, size", [*((mode, 32) for mode in MODES), ("straight", 16), ("bounce", 64)])
def test_centres_are_those_of_what_is_drawn(mode, size):
    batch = made(images=squares(), mode=mode, size=size, frames=8, counts=1)[:200]
    drawn = ink(batch)[:, 0].to(torch.complex128)              # on a torus a centroid is an angle
    turn = torch.polar(torch.ones(size).double(), 2 * torch.pi * torch.arange(size).double() / size)
    angle = torch.stack([drawn.sum(3) @ turn, drawn.sum(2) @ turn], -1).angle()
    gap = (angle / (2 * torch.pi) * size - batch["centres"][:, :, 0] + size / 2) % size - size / 2
    if mode == "srivastava":                                   # it truncates
        assert -1 < gap.min() < -0.9 and gap.max() < CLOSE
    else:
        assert 0.4 < gap.abs().max() < 0.5 + CLOSE


@pytest.mark.parametrize("size, side, mode", [
    *((32, 14, mode) for mode in MODES), (64, 28, "bounce"), (48, 28, "straight")])
def test_frames_are_the_brighter_of_their_digits_upright_where_labels_say(size, side, mode):
    images = handwriting()
    data = made(size=size, digit=side, mode=mode, counts=2)
    batch = data[:40]
    pixels, instances = ink(batch), batch["instances"]
    glyphs = F.avg_pool2d(images.pixels.float(), 28 // side).round().byte()[:, 0].numpy()
    assert torch.equal(images.labels[instances], batch["digits"]) and (batch["digits"] == 7).any()
    corners = batch["centres"].double() - (side - 1) / 2
    corners = (corners + (1e-5 if mode == "srivastava" else 0.5)).floor().int().numpy()
    for b, f in itertools.product(range(40), (0, 7, 15)):
        one, two = (stamped(glyphs[instances[b, k]], corners[b, f, k], size) for k in (0, 1))
        np.testing.assert_array_equal(pixels[b, 0, f], np.maximum(one, two))
        assert batch["overlaps"][b, f] == ((one > 0) & (two > 0)).any()
    assert batch["overlaps"].any() and not batch["overlaps"].all()


def test_where_there_is_no_second_digit_labels_say_so():
    batch = made(images=drawings(), mode="bounce")[:200]
    one = batch["digits"][:, 1] == -1
    assert 0.3 < one.float().mean() < 0.7 and (batch["digits"][:, 0] >= 0).all()
    assert torch.equal(batch["instances"][:, 1] == -1, one)
    for name in ("starts", "velocities", "centres"):
        value = batch[name].reshape(200, -1, 2, 2)             # [B, F, K, 2]
        assert value[one, :, 1].isnan().all() and not value[~one].isnan().any()
        assert not value[:, :, 0].isnan().any()
    assert not batch["bounced"][one, :, 1].any() and batch["bounced"][~one, :, 1].any()
    assert not batch["slow"][one, 1].any() and not batch["overlaps"][one].any()
    assert (batch["directions"] == -1).all() and (batch["colours"] == -1).all()
    alone = made(images=drawings(), mode="bounce", counts=1)[:200]
    assert torch.equal(alone["centres"][:, :, 0], batch["centres"][:, :, 0])   # the first is as it was


def test_bounces_are_where_the_path_turns_and_keep_the_speed():
    batch = made(images=drawings(), mode="bounce", counts=2, frames=32, speeds=(0.5, 1.0, 2.0))[:300]
    moved, velocity = batch["centres"].diff(dim=1), batch["velocities"][:, None]       # [B, F - 1, K, 2]
    free = (moved.abs() - velocity.abs()).abs() < 1e-5         # as far as without walls, on each axis
    assert torch.equal(batch["bounced"], ~free.all(-1)) and 0.02 < batch["bounced"].float().mean() < 0.2
    turned = (~free).cumsum(1) % 2 == 1
    assert (moved.sign() == torch.where(turned, -velocity, velocity).sign())[free].all()
    speed = moved.norm(dim=-1)[~batch["bounced"]]
    assert (speed[:, None] - torch.tensor([0.5, 1.0, 2.0])).abs().amin(1).max() < 1e-5


@pytest.mark.parametrize("speed, share", [(0.5, 0.53), (1.0, 0.165)])
def test_how_many_clips_never_touch_a_wall(speed, share):
    clips = made(mode="bounce", speeds=speed, images=drawings()).drawn(np.arange(4000))
    _, bounced = motion.paths("bounce", clips["starts"], clips["velocities"], 16, 18, 32)
    assert abs((~bounced[:, :, 0].any(1)).mean() - share) < 0.02


def test_wrapping_is_periodic_and_loses_nothing():
    batch = made(mode="wrap", frames=40, speeds=1.0, counts=1)[:60]
    pixels, centres = ink(batch), batch["centres"][:, :, 0]
    assert torch.equal(pixels[:, :, 32:], pixels[:, :, :8])
    weight, moving = mass(pixels), batch["velocities"][:, 0].any(1)
    assert (weight == weight[:, :1]).all() and not batch["bounced"].any()
    assert (pixels[moving, :, 0] != pixels[moving, :, 16]).flatten(1).any(1).all()
    assert pixels[:, 0, :, 0].any() and pixels[:, 0, :, :, -1].any(), "nothing ever crosses the edge"
    assert 0 <= centres.min() < 1 and 31 < centres.max() < 32 and batch["starts"][:, 0].max() > 30


# ---- captions

@pytest.mark.parametrize("arguments", [
    {}, {"mode": "wrap"}, {"mode": "bounce"}, {"mode": "srivastava"}, {"frames": None}, {"frames": 1},
    {"speeds": 1.0}, {"pairs": HELD_OUT}, {"stride": (1, 2), "frames": 8},
    {"frames": None, "mode": "bounce"}], ids=str)
def test_captions_say_what_labels_say(arguments):
    data = made(images=drawings(), **arguments)
    batch, captions = data[:300], data.captions(slice(300))
    assert torch.equal(batch["text"], tokens(captions)) and words(batch["text"]) == captions
    told = data.mode in ("straight", "wrap") and data.frames not in (None, 1)
    for text, digits, ways, slow in zip(captions, batch["digits"], batch["directions"], batch["slow"]):
        actors, there = parse(text), digits >= 0
        assert [actor.digit for actor in actors] == digits[there].tolist()
        if told:
            assert [DIRECTIONS.index(actor.direction) for actor in actors] == ways[there].tolist()
            assert [actor.slow for actor in actors] == slow[there].tolist()
        else:
            assert not set(text.split()) & {"moves", "slowly", *DIRECTIONS} and (ways == -1).all()
    slowly = sum("slowly" in text for text in captions)
    assert slowly > 50 if told and len(data.speeds) > 1 else slowly == 0


# ---- what is drawn by lot

def test_seen_and_held_out_are_all_pairs():
    assert len(PAIRS) == 50 and sorted(SEEN + HELD_OUT) == sorted(PAIRS) and not set(SEEN) & set(HELD_OUT)
    assert len(HELD_OUT) == 10
    for part in (SEEN, HELD_OUT):
        assert {digit for digit, _ in part} == set(range(10)) and {way for _, way in part} == set(DIRECTIONS)


@pytest.mark.parametrize("pairs", [PAIRS, SEEN, HELD_OUT, ((7, "up"), (np.int64(1), "stays"))], ids=len)
def test_the_pairs_that_occur_do_so_equally_often(pairs):
    clips = made(images=drawings(), pairs=pairs, counts=2).drawn(np.arange(4000))
    code = clips["digits"] * 5 + clips["directions"]
    counts = np.bincount(code.ravel(), minlength=50)
    assert {(n // 5, DIRECTIONS[n % 5]) for n in counts.nonzero()[0]} == set(pairs)
    counts, expected = counts[counts > 0], 8000 / len(pairs)
    chi = ((counts - expected) ** 2 / expected).sum()
    assert chi < len(pairs) - 1 + 4 * (2 * len(pairs)) ** 0.5, "some pairs are drawn too often"
    assert abs((code[:, 0] == code[:, 1]).mean() - 1 / len(pairs)) < 0.03, "the digits of a clip go together"


def test_all_other_choices_are_equally_likely_too():
    data = made(images=drawings(), stride=(1, 2, 4), frames=4, speeds=(0.5, 1, 1.5), channels=3)
    clips = data.drawn(np.arange(4000))

    def even(value, kinds):
        _, counts = np.unique(np.round(value * 1.0, 6), return_counts=True)
        assert counts / np.size(value) == pytest.approx(np.full(kinds, 1 / kinds), abs=0.03)

    even(clips["fps"], 3)
    even(clips["digits"][:, 1] < 0, 2)
    even(clips["colours"][:, 0], 6)
    way = clips["velocities"][:, 0]
    speed = abs(way).sum(-1) * clips["fps"] / 8
    even(speed[speed > 0], 3)
    room = 18 - 3 * abs(way)                                   # of the start, such that the end is inside
    fits = (room > 0).all(1)
    even(4 * (clips["starts"][fits, 0] - np.maximum(0, -3 * way[fits])) / room[fits] // 1, 4)
    drawn = clips["instances"][clips["digits"] >= 0]
    assert len(np.unique(drawn)) == sum(map(len, data.drawers)) == 550, "some images never occur"
    assert (drawings().labels.numpy()[drawn] == clips["digits"][clips["digits"] >= 0]).all()
    way = made(images=drawings(), mode="bounce").drawn(np.arange(4000))["velocities"]
    even(np.arctan2(way[..., 0], way[..., 1]) // (np.pi / 4), 8)


def test_no_image_is_in_two_splits():
    labels = torch.arange(12_000) % 1500 // 10 % 10            # of the built-in digits, 8 copies
    images = Images("digits", torch.zeros(12_000, 1, 28, 28, dtype=torch.uint8), labels)
    every = {}
    for split in ("train", "validation", "test"):
        data = made(split, images=images)
        every[split] = np.concatenate(data.drawers)
        drawn = data.drawn(np.arange(2000))["instances"]
        assert np.isin(drawn[drawn >= 0], every[split]).all() and len(np.unique(drawn)) > 500
    train, validation = every["train"], every["validation"]
    assert sorted([*train, *validation]) == sorted(every["test"]) == list(range(12_000))
    assert len(validation) == 1000
    assert not set(train % 1500) & set(validation % 1500), "copies of one built-in digit are in both splits"


def test_built_in_digits_are_copied_as_the_splits_believe():
    labels = mnist.builtin_digits("train", 28).labels
    assert len(labels) == 8 * 1500 and (labels.reshape(8, 1500) == labels[:1500]).all()


def test_test_digits_are_from_the_test_file(monkeypatch):
    asked = []
    monkeypatch.setattr(mnist, "load", lambda split, size: asked.append((split, size)) or drawings())
    names = {MovingMNIST(split).name for split in ("train", "validation", "test")}
    assert asked == [("train", 28), ("train", 28), ("test", 28)] and names == {"moving_drawings"}


# ---- options

def test_by_default_it_is_mnist_if_it_can_be_had():
    data, images = MovingMNIST("test"), mnist.load(split="test", size=28)
    assert data.name == f"moving_{images.name}"
    assert same(data[:4], MovingMNIST("test", images=images)[:4])


@pytest.mark.parametrize("arguments, shape, side", [
    ({}, (1, 16, 32, 32), 14), ({"size": 16, "frames": 8}, (1, 8, 16, 16), 8),
    ({"size": 64}, (1, 16, 64, 64), 28), ({"frames": None}, (1, 32, 32), 14),
    ({"frames": 1, "channels": 3}, (3, 1, 32, 32), 14), ({"size": 28, "digit": 10}, (1, 16, 28, 28), 10),
    ({"size": np.int64(40), "digit": 28, "frames": 4}, (1, 4, 40, 40), 28)], ids=str)
def test_sizes(arguments, shape, side):
    data = made(images=squares(), **arguments)
    batch, frames = data[:50], data.frames or 1
    assert data.shape == shape and batch["x"].dtype == torch.float32
    assert batch["x"].min() == -1 and batch["x"].max() == 1
    each = dict.fromkeys(("digits", "instances", "directions", "slow", "colours"), (2,))
    assert {name: tuple(value.shape[1:]) for name, value in batch.items()} == each | {
        "x": shape, "text": (12,), "starts": (2, 2), "velocities": (2, 2), "centres": (frames, 2, 2),
        "bounced": (frames - 1, 2), "overlaps": (frames,), "hidden": (frames,), "fps": (),
        **({"label": ()} if data.counts == (1,) else {})}
    assert data.counts != (1,) or torch.equal(batch["label"], batch["digits"][:, 0])
    lone = batch["digits"][:, 1] < 0
    seen = (batch["x"][lone].amax(1) > -1).reshape(lone.sum(), frames, -1)
    assert (seen.sum(-1) == side**2).all() and lone.any()
    assert data.counts == ((1,) if data.size == 16 else (1, 2))


def test_digits_of_eight_pixels_lose_only_empty_margin():
    pixels = F.pad(torch.full((120, 1, 24, 24), 255), (2, 2, 2, 2)).byte()
    images = Images("framed", pixels, torch.arange(120) // 12)
    assert (made(images=images, size=16, frames=4).glyphs == 255).all()
    assert (made(images=images).glyphs[:, 0] < 255).all()


@pytest.mark.parametrize("mode", ["straight", "wrap", "bounce"])
def test_a_stride_shows_every_such_frame_only(mode):
    one = made(mode=mode, stride=1, frames=15, counts=1)[:200]
    two = made(mode=mode, stride=np.int64(2), frames=8, counts=1)[:200]
    assert torch.equal(two["velocities"][:, 0], 2 * one["velocities"][:, 0])
    assert (one["fps"] == 8).all() and (two["fps"] == 4).all()
    assert torch.equal(two["text"], one["text"])               # what is slow is the digit, not the film
    assert torch.equal(two["x"], one["x"][:, :, ::2])
    centres = two["centres"][:, :, 0]
    assert mode == "wrap" or 6.5 - CLOSE < centres.min() and centres.max() < 24.5 + CLOSE
    if mode == "straight":
        way = (centres[:, -1] - centres[:, 0]) / 7
        assert (way - two["velocities"][:, 0]).abs().max() < CLOSE


def test_each_clip_has_one_of_the_strides():
    batch = made(images=drawings(), stride=(1, 2), frames=8, speeds=1.0, counts=2)[:200]
    speed, stride = batch["velocities"].norm(dim=-1), 8 / batch["fps"]
    assert set(stride.tolist()) == {1, 2} and ((speed == 0) | (speed == stride[:, None])).all()
    batch = made(images=drawings(), stride=(4, 1, 1, 1), mode="bounce", frames=2)[:400]
    assert 0.18 < (batch["fps"] == 2).float().mean() < 0.32 and (batch["fps"] == 8).any()


def test_a_curtain_hides_all_for_some_frames():
    data, seen = (made(images=drawings(), mode="bounce", counts=1, frames=12, **more)[:300]
                  for more in ({"hidden": 5}, {}))
    hidden = data["hidden"]
    assert (hidden.sum(1) == 5).all() and (hidden.int().diff(dim=1).clamp_min(0).sum(1) <= 1).all()
    first = hidden.int().argmax(1)
    assert set(first.tolist()) == set(range(8))                # anywhere from the first frame to the last
    assert (data["x"].transpose(1, 2)[hidden] == -1).all()
    assert torch.equal(data["x"].transpose(1, 2)[~hidden], seen["x"].transpose(1, 2)[~hidden])
    assert torch.equal(data["centres"].nan_to_num(), seen["centres"].nan_to_num())
    assert not seen["hidden"].any()
    with pytest.raises(ValueError, match="hidden=12 must be a whole number less than frames=12"):
        made(images=drawings(), mode="bounce", frames=12, hidden=12)


@pytest.mark.parametrize("mode", ["straight", "bounce"])
@pytest.mark.parametrize("smooth", [True, False])
def test_smooth_digits_follow_their_path_and_crisp_ones_jump(mode, smooth):
    batch = made(mode=mode, smooth=smooth, counts=1)[:200]
    pixels = ink(batch)
    gap = middle(pixels) - batch["centres"][:, :, 0]
    gap = (gap - gap.mean(1, keepdim=True)).abs().max()
    assert gap < 0.1 if smooth else gap > 0.2
    weight = mass(pixels).double()
    assert ((weight / weight[:, :1] - 1).abs() < 0.01).all()


def test_colours_of_a_clip_differ_and_are_those_of_the_palette():
    grey, bright = (made(channels=channels, counts=2)[:200] for channels in (1, 3))
    colours = bright["colours"]
    assert (colours[:, 0] != colours[:, 1]).all() and colours.unique().tolist() == list(range(len(PALETTE)))
    names = set(grey) - {"x", "colours"}
    assert same({name: grey[name] for name in names}, {name: bright[name] for name in names})
    assert torch.equal(ink(bright).amax(1), ink(grey)[:, 0]), "a colour has no channel of full strength"
    alone, drawn = made(channels=3, counts=1)[:50], ink(made(counts=1)[:50])
    expected = drawn * torch.from_numpy(PALETTE / 255)[alone["colours"][:, 0]][..., None, None, None]
    assert (ink(alone) - expected).abs().max() < 1 and (alone["colours"][:, 1] == -1).all()


# ---- the original

def original(y, x, angle, frames):
    """The rule of the paper's code, in a unit square: step, clamp, turn, truncate.  Corners [F, 2]."""
    v_y, v_x, corners = np.sin(angle), np.cos(angle), []
    for _ in range(frames):
        y, x = y + 0.1 * v_y, x + 0.1 * v_x
        if y <= 0:
            y, v_y = 0, -v_y
        if y >= 1:
            y, v_y = 1, -v_y
        if x <= 0:
            x, v_x = 0, -v_x
        if x >= 1:
            x, v_x = 1, -v_x
        corners.append((int(36 * y), int(36 * x)))
    return np.array(corners)


def test_the_original_rule_frame_by_frame():
    data = made(mode="srivastava", size=64, frames=20, counts=2)
    batch, clips, glyphs = data[:50], data.drawn(np.arange(50)), handwriting().pixels[:, 0].numpy()
    pixels, instances = ink(batch), batch["instances"]
    for b in range(50):
        angle = np.arctan2(*np.moveaxis(clips["velocities"][b], -1, 0))                # [K]
        paths = [original(*clips["starts"][b, k] / 36, angle[k], 20) for k in (0, 1)]
        np.testing.assert_array_equal((batch["centres"][b] - 13.5 + 1e-5).floor(), np.stack(paths, 1))
        for f in range(20):
            one, two = (stamped(glyphs[instances[b, k]], paths[k][f], 64) for k in (0, 1))
            np.testing.assert_array_equal(pixels[b, 0, f], np.maximum(one, two))
    assert batch["bounced"].sum() > 50


def test_the_original_speed():
    data = made(mode="srivastava", size=64, frames=20, images=drawings())
    clips = data.drawn(np.arange(10_000))
    corners, bounced = motion.paths("srivastava", clips["starts"], clips["velocities"], 20, 36, 64)
    speed = np.linalg.norm(np.diff(np.floor(corners), axis=1), axis=-1)
    assert abs(speed.mean() - 3.48) < 0.02 and data.speeds == (pytest.approx(3.6),)
    exact = np.linalg.norm(np.diff(corners, axis=1), axis=-1)
    np.testing.assert_allclose(exact[~bounced], 3.6)
    assert (exact[bounced] < 3.6).all()
    assert made(images=drawings(), mode="srivastava").speeds == (pytest.approx(1.8),)


# ---- errors

GREY = torch.zeros(600, 1, 28, 28, dtype=torch.uint8)
LABELS = torch.arange(600) // 12 % 10
NO_NINE = Images("few", GREY[:480], LABELS[:480].clamp(max=8))


@pytest.mark.parametrize("arguments, reason", [
    ({"split": "val"}, "split='val' must be one of train, validation, test"),
    ({"mode": "random"}, "mode='random' must be one of straight, wrap, bounce, srivastava"),
    ({"n": 0}, "n=0 must be a whole number from 1"), ({"n": 1e5}, "n=100000.0 must be a whole number"),
    ({"n": 2**32}, "n=4294967296 .* to 2..32 - 1"), ({"n": None}, "n=None must"),
    ({"seed": -1}, "seed=-1 must be a whole number from 0 to 2..32 - 1"), ({"seed": None}, "seed=None"),
    ({"seed": 2**32}, "seed=4294967296"), ({"frames": 8.0}, "frames=8.0"),
    ({"frames": 0}, "frames=0 must be a whole number from 1 .*, or None for images"),
    ({"size": 32.0}, "size=32.0 must be a whole number"),
    ({"size": 28}, "digit=0 must be at least 4 and less than size=28; only for the sizes 16, 32, 64 it is"),
    ({"digit": 32}, "digit=32 must be .* less than size=32"), ({"digit": 3}, "digit=3 must be at least 4"),
    ({"digit": 0}, "digit=0 must"), ({"digit": 14.0}, "digit=14.0 must be a whole number"),
    ({"counts": (0, 1)}, r"counts=\(0, 1\) must be \(1,\), \(2,\) or \(1, 2\)"),
    ({"counts": 3}, r"counts=\(3,\)"), ({"counts": ()}, r"counts=\(\)"),
    ({"channels": 2}, "channels=2 must be 1 or 3"), ({"channels": 3.0}, "channels=3.0"),
    ({"stride": 0}, "stride=0 must be a whole number, or several, of at least 1"),
    ({"stride": (1, 0)}, r"stride=\(1, 0\)"), ({"stride": ()}, r"stride=\(\)"),
    ({"stride": 1.5}, "stride=1.5"), ({"speeds": ()}, r"speeds=\(\) must be positive numbers"),
    ({"speeds": (0, 1)}, r"speeds=\(0, 1\) must be"), ({"speeds": -0.5}, r"speeds=\(-0.5,\)"),
    ({"speeds": float("nan")}, r"speeds=\(nan,\)"),
    ({"speeds": "fast"}, "speeds=.* must be positive numbers; a digit that stays is one of the pairs"),
    ({"speeds": float("inf"), "mode": "wrap"}, r"speeds=\(inf,\)"),
    ({"mode": "srivastava", "speeds": 0.5}, r"speeds=\(0.5,\) and stride=1 cannot .* leave both out"),
    ({"mode": "srivastava", "stride": 2}, "stride=2 cannot be chosen in mode='srivastava'"),
    ({"pairs": ()}, "'nothing' in pairs must be a digit and one of up, down, left, right, stays, like"),
    ({"pairs": [(7, "north")]}, r"\(7, 'north'\) in pairs must be .*, like \(7, 'up'\)"),
    ({"pairs": [(10, "up")]}, r"\(10, 'up'\) in pairs"), ({"pairs": (7, "up")}, "7 in pairs must be"),
    ({"pairs": [[7, "up"]]}, r"\[7, 'up'\] in pairs must be"), ({"pairs": ["up"]}, "'up' in pairs"),
    pytest.param({"pairs": iter([(7, "up"), (7, 7)])}, r"\(7, 7\) in pairs", id="pairs, read once"),
    ({"frames": 40}, "a digit at 1 pixels per frame goes 39 in frames=40 and has room for 18; choose at most "
                     "19 frames, speeds up to 0.46, or mode='wrap' or 'bounce'"),
    ({"stride": (1, 2)}, "at 2 pixels per frame goes 30 in frames=16"), ({"size": 16}, "has room for 8;"),
    ({"images": Images("colourful", GREY.expand(-1, 3, -1, -1), LABELS)},
     "images=colourful of 3 x 28 x 28 must be square, with labels and one channel, like those of mnist"),
    ({"images": Images("nameless", GREY)}, "images=nameless of 1 x 28 x 28 must be square, with labels"),
    ({"images": Images("wide", GREY[:, :, :14], LABELS)}, "images=wide of 1 x 14 x 28 must be square"),
    ({"images": NO_NINE}, "images=few have no 9 for split='train'; give more of them, or pairs without it"),
    ({"images": Images("short", GREY[:100], LABELS[:100]), "split": "validation"},
     "images=short have no 8 for split='validation'")], ids=str)
def test_errors_name_the_argument_the_value_and_the_remedy(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        MovingMNIST(**{"images": drawings()} | arguments)


@pytest.mark.parametrize("arguments", [
    {"frames": 40}, {"size": 16}, {"frames": 7, "speeds": 3.7}, {"frames": 12, "stride": 3}], ids=str)
def test_what_an_error_proposes_works(arguments):
    with pytest.raises(ValueError) as error:
        made(images=drawings(), **arguments)
    frames, speed = re.search("at most (.*) frames, speeds up to (.*), or", str(error.value)).groups()
    for other in ({"frames": int(frames)}, {"speeds": float(speed)}, {"mode": "wrap"}, {"mode": "bounce"}):
        made(images=drawings(), **arguments | other)[:20]
    with pytest.raises(ValueError):
        made(images=drawings(), **arguments | {"frames": int(frames) + 1})


def test_a_digit_that_is_not_asked_for_may_be_missing():
    data = made(images=NO_NINE, pairs=[(8, "up"), (1, "left")])
    assert data[:50]["digits"].unique().tolist() == [-1, 1, 8]


@pytest.mark.parametrize("index", [50, -51, [0, 50], 1.0, [0.5], True, torch.ones(50, dtype=torch.bool),
                                   torch.zeros(2, 2, dtype=torch.long), "x", None], ids=str)
def test_what_is_no_index(index):
    data = made(n=50, images=drawings())
    for ask in (data.__getitem__, data.captions):
        with pytest.raises(IndexError, match=r"(?s)index=.* less than n=50, a row .* mask.nonzero"):
            ask(index)
