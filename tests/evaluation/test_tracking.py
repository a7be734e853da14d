import math

import pytest
import torch

from diffusion_course.data.mnist import builtin_digits
from diffusion_course.evaluation.tracking import (
    bounce_error,
    centroid,
    direction,
    diversity,
    flips,
    frame_difference,
    jump,
    nearest,
    speed,
    speed_constancy,
    tracks,
    velocity,
)

STEP = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1], [0, 0]])  # of the classes 0 ... 4
ROOM = (0.0, 18.0)


def rendered(pictures, corners, size=32):
    """Videos [N, 1, F, H, W] of pictures [N, K, D, D] at whole-pixel corners [N, F, K, 2], by the maximum;
    and the true centres of their ink [N, F, K, 2]."""
    (N, frames, K, _), D = corners.shape, pictures.shape[-1]
    layers = torch.zeros(N, frames, K, size, size)
    for n in range(N):
        for f in range(frames):
            for k in range(K):
                row, column = corners[n, f, k].tolist()
                layers[n, f, k, row:row + D, column:column + D] = pictures[n, k]
    places, total = torch.arange(size), layers.sum((-2, -1))
    centres = torch.stack([(layers.sum(-1) * places).sum(-1), (layers.sum(-2) * places).sum(-1)], -1)
    return 2 * layers.amax(2)[:, None] - 1, centres / total[..., None]


def clips(n, count, frames=16, room=18, seed=0):
    """Digits of 14 pixels that go straight or stay, at whole pixels, on their way never at a wall."""
    generator = torch.Generator().manual_seed(seed)
    bank = builtin_digits("test", 14).pixels[:, 0].float() / 255
    pictures = bank[torch.randint(len(bank), (n, count), generator=generator)]
    classes = torch.randint(5, (n, count), generator=generator)
    speeds = torch.randint(1, 3, (n, count, 1), generator=generator) / 2
    way = (frames - 1) * STEP[classes] * speeds
    start = (-way).clamp_min(0) + (room - way.abs()) * torch.rand(n, count, 2, generator=generator)
    corners = start[:, None] + way[:, None] * torch.linspace(0, 1, frames)[:, None, None]
    return *rendered(pictures, corners.round().long()), classes


def line(*points, K=1):
    """Centres [1, F, K, 2] through points (row, column)."""
    return torch.tensor(points).float()[None, :, None].expand(-1, -1, K, -1)


def bouncing(angle, speed, frames=60, room=18.0):
    """A point that is mirrored at the walls, [1, F, 1, 2]."""
    step = speed * torch.tensor([math.sin(angle), math.cos(angle)])
    way = (torch.tensor([4.3, 6.1]) + torch.arange(frames).double()[:, None] * step) % (2 * room)
    return torch.minimum(way, 2 * room - way)[None, :, None]


def test_the_centre_of_ink():
    x = torch.full((2, 1, 3, 8, 10), -1.0)
    x[0, 0, :, 2, 7] = 1
    x[0, 0, 1, 4, 7] = 1
    x[0, 0, 2, 2, 3] = 0                                       # half as much ink, four columns to the left
    assert centroid(x)[0].tolist() == [[2, 7], [3, 7], [2, pytest.approx(7 - 4 / 3)]]
    assert centroid(x)[1].isnan().all()
    torch.testing.assert_close(centroid(x[:1, :, 0]), torch.tensor([[2.0, 7.0]]))
    x[0] += 0.1                                                # a grey that networks leave
    x[0, 0, 1, 2, 7] = 5                                       # over the top
    torch.testing.assert_close(centroid(x)[0, :2], torch.tensor([[2.0, 7.0], [3, 7]]))
    colours = x[:1].expand(-1, 3, -1, -1, -1).clone()
    colours[:, 1:] = -1
    torch.testing.assert_close(centroid(colours), centroid(x[:1]))


def test_one_digit_is_followed():
    x, truth, _ = clips(30, 1)
    found = tracks(x, torch.ones(30, dtype=torch.long))
    assert found.shape == (30, 16, 1, 2)
    assert (found - truth).norm(dim=-1).max() < 0.25           # but for what is fainter than a tenth


def test_two_digits_are_followed_through_crossings():
    x, truth, classes = clips(80, 2, seed=3)
    found = tracks(x, torch.full((80,), 2))
    straight, crossed = ((c - truth).norm(dim=-1) for c in (found, found.flip(2)))     # [N, F, K]
    other = straight.mean((1, 2)) > crossed.mean((1, 2))
    error = torch.where(other[:, None, None], crossed, straight)
    assert error.median() < 0.25 and error.mean() < 0.5
    assert error.quantile(0.95) < 2 and (error > 4).float().mean() < 0.02
    read = torch.where(other[:, None], direction(found.flip(2)), direction(found))
    assert (read == classes).float().mean() > 0.96


def test_identities_survive_a_crossing():
    """A bar and a dash of as much ink go through one another, at the same height."""
    pictures = torch.zeros(1, 2, 9, 9)
    pictures[0, 0, :, 4] = pictures[0, 1, 4, :] = 1
    corners = torch.tensor([[[8, 2 + f], [8, 17 - f]] for f in range(16)])
    x, truth = rendered(pictures, corners[None])
    found = tracks(x, torch.tensor([2]))
    found = found if found[0, 0, 0, 1] < found[0, 0, 1, 1] else found.flip(2)
    assert (found - truth).norm(dim=-1).max() < 1
    assert direction(found).tolist() == [[3, 2]]


def test_tracks_of_one_and_of_two_and_of_none():
    x, truth, _ = clips(6, 2)
    one, place, _ = clips(1, 1, seed=1)
    blank = torch.full_like(one, -1)
    x = torch.cat([x, one, blank, blank])
    x[3, :, 5] = -1
    found = tracks(x, torch.tensor([2] * 6 + [1, 1, 2]))
    assert found.shape == (9, 16, 2, 2)
    assert found[3, 5].isnan().all() and not found[3, torch.arange(16) != 5].isnan().any()
    assert not found[:3].isnan().any() and found[7:].isnan().all()
    assert found[6, :, 1].isnan().all()
    torch.testing.assert_close(found[6, :, 0], place[0, :, 0], atol=0.25, rtol=0)
    torch.testing.assert_close(tracks(x[2:3], torch.tensor([2])), found[2:3], atol=1e-3, rtol=0)
    still = tracks(x[:3, :, :1], torch.full((3,), 2))          # one frame has centres, too
    assert still.shape == (3, 1, 2, 2) and not still.isnan().any()


def test_reversed_videos_have_reversed_tracks():
    x, _, _ = clips(8, 2)
    count = torch.full((8,), 2)
    forward, back = tracks(x, count, rounds=12), tracks(x.flip(2), count, rounds=12).flip(1)
    apart = torch.minimum(*((forward - c).norm(dim=-1).mean((1, 2)) for c in (back, back.flip(2))))
    assert apart.median() < 0.2


@pytest.mark.parametrize("name, number", [("up", 0), ("down", 1), ("left", 2), ("right", 3), ("stays", 4)])
def test_directions(name, number):
    """Drawn without the arithmetic of the tests above."""
    x = torch.full((1, 1, 8, 32, 32), -1.0)
    for f in range(8):
        row, column = {"up": (20 - f, 12), "down": (12 + f, 12), "left": (12, 20 - f), "right": (12, 12 + f),
                       "stays": (12, 12)}[name]
        x[0, 0, f, row:row + 5, column:column + 3] = 1
    centres = tracks(x, torch.tensor([1]))
    assert direction(centres).tolist() == [[number]]
    assert velocity(centres).norm().item() == pytest.approx(0 if number == 4 else 1, abs=1e-5)


def test_the_larger_component_decides_and_what_is_slow_stays():
    assert direction(line((9, 9), (8, 9.9))).item() == 0
    assert direction(line((9, 9), (8, 10.1))).item() == 3
    slow = line((9, 9), (9, 9.08))
    assert direction(slow).item() == 4 and direction(slow, still=0.05).item() == 3
    gone = torch.cat([slow, torch.full_like(slow, torch.nan)], 2)
    assert direction(gone).tolist() == [[4, -1]]


@pytest.mark.parametrize("pixels", [0.5, 1.0])
def test_whole_pixels_leave_speeds_and_jumps_alone(pixels):
    path = line(*((10, 2.2 + pixels * f) for f in range(16)))
    for centres in (path, path.round()):
        torch.testing.assert_close(speed(centres), torch.tensor([[pixels]]))
        assert speed_constancy(centres) < 1e-5 and jump(centres) < 1e-5
    if pixels == 0.5:                                          # as the docstrings say
        assert speed_constancy(path.round(), step=1).item() == pytest.approx(1, abs=0.1)
        assert jump(path.round(), step=1).item() == pytest.approx(1)


def test_jumps_and_changes_of_speed():
    path = line(*((10, f) for f in range(16)))
    jumped = path.clone()
    jumped[:, 8:] += 3
    assert jump(jumped, step=1).item() == pytest.approx((2 * 18 / 14) ** 0.5)          # by 3 px on both axes
    assert jump(jumped).item() == pytest.approx((4 * 18 / 16 / 12) ** 0.5)
    parabola = line(*((f * f / 2, 0) for f in range(16)))
    for step in (1, 2, 3):
        assert jump(parabola, step).item() == pytest.approx(1)
    fast = line(*((0, f if f < 8 else 3 * f - 16) for f in range(17)))
    assert speed(fast, step=1).item() == pytest.approx(2)
    assert speed_constancy(fast, step=1).item() == pytest.approx(0.5)
    still = torch.cat([path, 0.05 * path, torch.full_like(path, torch.nan)], 2)
    assert speed_constancy(still).isnan().tolist() == [[False, True, True]]
    assert jump(still).isnan().tolist() == [[False, False, True]]


def test_bounces_are_no_jumps():
    path = bouncing(0.7, 0.9)
    assert jump(path) > 0.15 and speed_constancy(path) > 0.1
    assert jump(path, room=ROOM) < 1e-6 and speed_constancy(path, room=ROOM) < 1e-6
    assert speed(path, room=ROOM).item() == pytest.approx(0.9, rel=1e-6)
    trembling = path + 0.3 * torch.randn(path.shape)           # which turns round everywhere
    assert jump(trembling, room=ROOM) > 0.15


def test_the_angle_out_is_the_angle_in():
    for angle in (0.3, 0.7, 2.5, 4.0, 5.5):
        assert bounce_error(bouncing(angle, 1.3), ROOM).item() < 1e-4
    steep = line(*((9 - f, 2 * f) for f in range(9)), *((f, 16 + 0.5 * f) for f in range(1, 9)))
    out = math.degrees(math.atan2(1, 0.5) - math.atan2(1, 2))  # 63 degrees where 27 came in
    assert bounce_error(steep, (1, 40)).item() == pytest.approx(out, abs=0.01)
    turned = line(*((9 + 0.2 * f, 9 + f) for f in range(9)), *((10.6 - 0.2 * f, 17 - f) for f in range(1, 9)))
    out = 2 * math.degrees(math.atan2(0.2, 1))                 # 11 degrees up where 11 down were due
    assert bounce_error(turned, (0, 17)).item() == pytest.approx(out, abs=0.01)
    assert bounce_error(steep, (-9, 40)).isnan()               # it turns round where there is no wall
    assert bounce_error(line(*((9, f) for f in range(16))), ROOM).isnan()
    assert bounce_error(line(*((abs(f - 9), abs(f - 9)) for f in range(19))), ROOM).isnan()        # a corner


def test_differences_of_frames():
    x = torch.zeros(3, 2, 4, 5, 6)
    x[1] += 2 * torch.arange(4)[:, None, None]
    x[2, :, 1] = 1
    torch.testing.assert_close(frame_difference(x), torch.tensor([0, 4, 2 / 3]))


def test_flips():
    top = torch.tensor([[3, 3, 3, 3, 3], [1, 2, 1, 2, 1], [7, 7, 1, 1, 1]])
    assert flips(top).tolist() == [0, 1, 0.25]


def test_diversity_and_copies():
    corner = torch.tensor([[0.0, 0], [3, 0], [0, 4]])
    assert diversity(corner) == pytest.approx(4)
    assert diversity(torch.ones(5, 3)) == 0
    train = torch.randn(330, 40)
    features = torch.cat([train[:205], train[:1] + torch.tensor([3.0, 4] + 38 * [0])])
    assert nearest(features[:205], train).eq(0).all()
    distances = (features[-1] - train).norm(dim=1)
    torch.testing.assert_close(nearest(features, train)[-1], distances.min())


@pytest.mark.parametrize("call, message", [
    (lambda: centroid(torch.zeros(3, 8, 8)), r"x of shape \(3, 8, 8\) must be images"),
    (lambda: tracks(torch.zeros(3, 1, 8, 8), torch.ones(3)), r"must be videos \[N, C, F, H, W\]"),
    (lambda: tracks(torch.zeros(2, 1, 3, 8, 8), torch.tensor([1, 3])), r"count=\[1, 3\] must be 1 or 2"),
    (lambda: tracks(torch.zeros(2, 1, 3, 8, 8), torch.tensor([1])), "for each of the 2 videos"),
    (lambda: direction(torch.zeros(2, 1, 1, 2)), "two frames at least"),
    (lambda: jump(torch.zeros(2, 4, 1, 2)), "with 5 frames at least; take a smaller step"),
    (lambda: frame_difference(torch.zeros(2, 1, 1, 8, 8)), "two frames at least"),
    (lambda: flips(torch.zeros(2, 1)), "two frames at least"),
    (lambda: diversity(torch.zeros(1, 4)), r"must be \[N, D\] with N of two at least"),
    (lambda: nearest(torch.zeros(2, 4), torch.zeros(2, 5)), "of one layer")])
def test_what_cannot_be_measured(call, message):
    with pytest.raises(ValueError, match=message):
        call()
