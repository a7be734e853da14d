import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusion_course.data import motion


def lots(n=500, room=18.0, speed=1.0, seed=0):
    """Starts and velocities [n, 2, 2] in any direction."""
    random = np.random.default_rng(seed)
    angle = 2 * np.pi * random.random((n, 2))
    return random.random((n, 2, 2)) * room, speed * np.stack([np.sin(angle), np.cos(angle)], -1)


def walked(at, velocity, frames, room, clamp=False):
    """One number at a time, frame by frame: the path [F], and whether it bounced on the way [F - 1]."""
    path, bounced = [at], []
    for _ in range(frames - 1):
        at, hit = at + velocity, False
        while at < 0 or at > room:
            wall = 0 if at < 0 else room
            at, velocity, hit = wall if clamp else 2 * wall - at, -velocity, True
        path.append(at)
        bounced.append(hit)
    return path, bounced


# ---- paths

@pytest.mark.parametrize("mode", ["straight", "wrap"])
def test_without_walls(mode):
    start, velocity = lots(speed=3)
    corners, bounced = motion.paths(mode, start, velocity, 12, 18, 32)
    for f in range(12):
        expected = start + f * velocity
        np.testing.assert_allclose(corners[:, f], expected % 32 if mode == "wrap" else expected)
    assert corners.shape == (500, 12, 2, 2) and bounced.shape == (500, 11, 2) and not bounced.any()
    assert corners.min() < -5 if mode == "straight" else corners.min() >= 0


@pytest.mark.parametrize("speed", [0.5, 1.0, 3.0, 17.0, 50.0])  # the last crosses the room twice per frame
@pytest.mark.parametrize("clamp", [False, True])
def test_walls_step_by_step(clamp, speed):
    start, velocity = lots(60, speed=speed)
    corners, bounced = motion.paths("srivastava" if clamp else "bounce", start, velocity, 20 - clamp, 18, 32)
    expected = [walked(p, v, 20, 18, clamp) for p, v in zip(start.flat, velocity.flat)]
    path = np.array([path for path, _ in expected]).reshape(60, 2, 2, 20).transpose(0, 3, 1, 2)
    hits = np.array([hits for _, hits in expected]).reshape(60, 2, 2, 19).transpose(0, 3, 1, 2).any(-1)
    assert hits.any() and (hits.all() or speed < 50)
    path, hits = (path[:, 1:], hits[:, 1:]) if clamp else (path, hits)  # the start is not shown
    np.testing.assert_allclose(corners, path, atol=1e-9)
    np.testing.assert_array_equal(bounced, hits)


def test_mirrors_keep_the_speed_and_clamps_do_not():
    start, velocity = lots(60, speed=2.5)
    mirrored, bounced = motion.paths("bounce", start, velocity, 20, 18, 32)
    speed = np.linalg.norm(np.diff(mirrored, axis=1), axis=-1)
    np.testing.assert_allclose(speed[~bounced], 2.5)
    assert (speed[bounced] < 2.5 - 1e-9).all() and bounced.any()
    fine = motion.mirrored(start + velocity * np.linspace(0, 19, 2000)[:, None, None, None], 18)
    assert abs(np.linalg.norm(np.diff(fine, axis=0), axis=-1).sum(0) - 2.5 * 19).max() < 0.1
    clamped, _ = motion.paths("srivastava", start, velocity, 20, 18, 32)
    assert np.linalg.norm(np.diff(clamped, axis=1), axis=-1).mean() < 2.5 * 0.98


@pytest.mark.parametrize("mode", ["straight", "wrap", "bounce", "srivastava"])
def test_one_frame(mode):
    start, velocity = lots(3)
    corners, bounced = motion.paths(mode, start, velocity, 1, 18, 32)
    assert corners.shape == (3, 1, 2, 2) and bounced.shape == (3, 0, 2) and bounced.dtype == bool
    if mode != "srivastava":
        np.testing.assert_allclose(corners[:, 0], start)


# ---- ink

def painted(corner, ink, size=6, clips=1, channels=1, onto=None):
    canvas = np.zeros((clips, channels, 1, size, size), np.uint8) if onto is None else onto
    met = motion.paint(canvas, np.arange(clips), ink, np.broadcast_to(np.array(corner, float), (clips, 1, 2)))
    return canvas, met


def test_ink_lies_where_it_is_put():
    ink = np.arange(1, 5, dtype=np.uint8).reshape(1, 1, 2, 2)
    canvas, met = painted((3, 1), ink)
    expected = np.zeros((6, 6))
    expected[3:5, 1:3] = [[1, 2], [3, 4]]                      # row 3, column 1
    np.testing.assert_array_equal(canvas[0, 0, 0], expected)
    assert not met.any() and met.shape == (1, 1)


def test_what_leaves_comes_in_on_the_other_side():
    ink = np.array([[1, 2], [3, 4]], np.uint8)[None, None]
    canvas, _ = painted((5, -1), ink)
    assert canvas[0, 0, 0][5, 5] == 1 and canvas[0, 0, 0][5, 0] == 2
    assert canvas[0, 0, 0][0, 5] == 3 and canvas[0, 0, 0][0, 0] == 4 and canvas.sum() == 10
    np.testing.assert_array_equal(painted((5, -1), ink)[0], painted((-1, 11), ink)[0])


def test_the_brighter_stays_and_ink_meets_ink_only():
    a, b = np.array([[[[200, 0], [9, 100]]], [[[100, 0], [0, 200]]]], np.uint8)[:, None]
    canvas, _ = painted((2, 2), a)
    canvas, met = painted((2, 2), b, onto=canvas)
    assert canvas[0, 0, 0, 2:4, 2:4].tolist() == [[200, 0], [9, 200]] and met.all()
    for corner, expected in (((3, 2), True), ((3, 3), True), ((2, 3), False), ((4, 2), False)):
        canvas, _ = painted((2, 2), a)
        assert painted(corner, b, onto=canvas)[1].item() is expected, corner


def test_each_clip_frame_and_channel_has_its_own_canvas():
    random = np.random.default_rng(0)
    ink = random.integers(1, 256, (2, 3, 4, 4)).astype(np.uint8)
    canvas, corners = np.zeros((5, 3, 7, 16, 16), np.uint8), random.integers(0, 13, (2, 7, 2)).astype(float)
    motion.paint(canvas, np.array([3, 1]), ink, corners)
    for b, clip in enumerate((3, 1)):
        for f in range(7):
            row, column = corners[b, f].astype(int)
            np.testing.assert_array_equal(canvas[clip, :, f, row:row + 4, column:column + 4], ink[b])
    assert canvas.sum() == 7 * ink.sum(dtype=int)


def test_colours_meet_even_where_they_share_no_channel():
    red, blue = np.array([(9, 0, 0), (0, 0, 9)], np.uint8).reshape(2, 1, 3, 1, 1).repeat(2, -1)
    canvas, _ = painted((1, 1), red, channels=3)
    assert painted((1, 2), blue, channels=3, onto=canvas)[1].all()


def test_between_pixels_it_is_bilinear():
    random = np.random.default_rng(0)
    ink = random.integers(0, 256, (1, 1, 5, 5)).astype(np.uint8)
    for down, right in ((0.25, 0.0), (0.0, 0.75), (0.3, 0.6), (0.5, 0.5)):
        canvas, _ = painted((3 + down, 4 + right), ink, size=16)
        at = torch.arange(16.0)
        rows, columns = torch.meshgrid((at - 3 - down) / 2 - 1, (at - 4 - right) / 2 - 1, indexing="ij")
        grid = torch.stack([columns, rows], -1)[None]
        expected = F.grid_sample(torch.from_numpy(ink).float(), grid, align_corners=True)[0, 0].numpy()
        assert abs(canvas[0, 0, 0] - expected).max() <= 0.5 + 1e-3


def test_bilinear_ink_comes_in_again_as_well():
    ink = np.full((1, 1, 2, 2), 200, np.uint8)
    canvas, _ = painted((4.5, 2), ink)
    assert canvas[0, 0, 0, :, 2].tolist() == [100, 0, 0, 0, 100, 200] and canvas.sum(dtype=int) == 4 * 200
