"""Moving pictures: every frame is there, in order, and small enough for a notebook."""
import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from diffusion_course.classroom.animations import animate, denoising, movie

ALT = "A square grows brighter."
CLIP = torch.linspace(-1, 1, 5)[None, None, :, None, None].expand(2, 1, 5, 8, 8)    # 5 shades, one a frame


def frames(picture):
    image = Image.open(io.BytesIO(picture.content))
    return [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(image)]


def test_animate_plays_every_frame_in_order():
    picture = animate(CLIP, ALT, fps=4)
    shades = [frame[5, 5] for frame in frames(picture)]
    assert np.allclose(shades, [0, 64, 128, 191, 255], atol=2)
    image = Image.open(io.BytesIO(picture.content))
    assert image.info["duration"] == 250 and image.info["loop"] == 0    # for ever
    assert f'alt="{ALT}"' in picture.html and "data:image/gif" in picture.html


def test_animate_offers_mp4():
    picture = animate(CLIP, ALT, format="mp4")
    assert picture.content[4:8] == b"ftyp" and "<video controls" in picture.html
    with pytest.raises(ValueError, match="'avi' must be gif or mp4"):
        animate(CLIP, ALT, format="avi")
    with pytest.raises(ValueError, match=r"\[N, C, F, H, W\]"):
        animate(CLIP[:, :, 0], ALT)


def test_denoising_shows_states_left_and_guesses_right():
    black, white = torch.full((4, 1, 8, 8), -1.0), torch.ones(4, 1, 8, 8)
    shown = frames(denoising([black] * 3, [white] * 3, ALT, fps=8))
    assert shown[0].shape[1] == 2 * 20 + 12
    assert shown[0][5, 5] < 10 and shown[0][5, 20 + 12 + 5] > 245
    shown = frames(denoising([black, white], [white, black], ALT, fps=8))
    assert shown[0][5, 5] < 10 and shown[-1][5, 5] > 245       # the end is what is held
    with pytest.raises(ValueError, match="2 states and 3 guesses"):
        denoising([black] * 2, [white] * 3, ALT)


def test_movie_calls_draw_once_per_time():
    drawn = []
    picture = movie(lambda axes, t: drawn.append(axes.plot([0, t])), [1, 2, 3], ALT, fps=2, width=2, height=2)
    assert len(drawn) == 3
    different = {frame.tobytes() for frame in frames(picture)}
    assert len(different) == 3


def test_an_animation_too_large_for_a_notebook_says_so():
    noise = torch.rand(16, 1, 40, 32, 32) * 2 - 1
    with pytest.warns(UserWarning, match="MB of the notebook"):
        animate(noise, ALT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        animate(CLIP, ALT)
