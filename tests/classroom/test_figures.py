"""Pictures: readable in any theme, described in words, and made of the pixels they were given."""
import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_course.classroom import compare, course_map, figures, filmstrip, grid, schedules
from diffusion_course.classroom.figures import Picture, figure, loss_curve
from diffusion_course.diffusion.schedules import cosine_beta, linear_beta

ALT = 'Digits, "2 < 3" & so on.'
IMAGES = torch.linspace(-1, 1, 6 * 8 * 8).reshape(6, 1, 8, 8)


def opened(picture):
    return Image.open(io.BytesIO(picture.content))


MADE = {
    "grid": lambda: grid(IMAGES, ALT),
    "colour grid": lambda: grid(IMAGES.expand(-1, 3, -1, -1), ALT),
    "filmstrip": lambda: filmstrip({"$x_t$": IMAGES, "again": IMAGES}, ALT, [f"t = {n}" for n in range(6)]),
    "compare": lambda: compare({"before": IMAGES, "after": -IMAGES}, ALT),
    "schedules": lambda: schedules({"linear": linear_beta(), "cosine": cosine_beta()}, ALT),
    "map": course_map,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_pictures_are_opaque_described_and_small(make):
    picture = make()
    image = opened(picture)
    assert image.mode in ("RGB", "P") and "transparency" not in image.info
    assert len(picture.content) < 100_000
    data, metadata = picture._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == picture.content
    assert metadata["image/png"]["alt"] == data["text/plain"] == picture.alt
    source = re.search(r'src="data:image/png;base64,([^"]+)"', data["text/html"])[1]
    assert base64.b64decode(source) == picture.content
    assert len(np.unique(np.asarray(image.convert("L")))) > 5          # there is something to see


def test_alt_text_is_escaped_and_wanted():
    assert 'alt="Digits, &quot;2 &lt; 3&quot; &amp; so on."' in grid(IMAGES, ALT).html
    with pytest.raises(ValueError, match="alt is empty"):
        grid(IMAGES, " ")


def test_a_grid_holds_the_pixels_themselves():
    pixels = np.asarray(opened(grid(IMAGES, ALT, columns=3)).convert("L"))
    expected = ((IMAGES[4, 0] + 1) * 127.5).round().numpy()
    assert pixels.shape == (2 * 10, 3 * 10)                             # a border of one pixel
    assert np.array_equal(pixels[11:19, 11:19], expected)


def test_zoom_widens_the_picture_on_the_page_only():
    small, large = grid(IMAGES, ALT, zoom=1), grid(IMAGES, ALT, zoom=4)
    assert small.content == large.content
    assert 'width="30"' in small.html and 'width="120"' in large.html and "pixelated" in large.html


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"\[N, C, H, W\], got shape \(6, 8, 8\)"):
        grid(IMAGES[:, 0], ALT)
    with pytest.raises(ValueError, match="'a': 6, 'b': 5"):
        filmstrip({"a": IMAGES, "b": IMAGES[:5]}, ALT)


def test_a_figure_is_shown_when_its_block_ends(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "show", shown.append)
    with figure("A rising line, and an empty panel.", 1, 2) as (left, _):
        left.plot([0, 1])
        assert not shown
    assert shown[0].alt.startswith("A rising") and opened(shown[0]).size == (770, 286)
    with pytest.raises(ZeroDivisionError), figure("Never shown."):
        raise ZeroDivisionError
    assert len(shown) == 1


def test_the_style_does_not_leak():
    import matplotlib
    before = dict(matplotlib.rcParams)
    compare({"before": IMAGES}, ALT)
    assert dict(matplotlib.rcParams) == before


def test_a_picture_is_saved_under_its_own_format(tmp_path):
    picture = grid(IMAGES, ALT)
    assert picture.save(tmp_path / "a.png").read_bytes() == picture.content
    with pytest.raises(ValueError, match="must end in .png"):
        picture.save(tmp_path / "a.gif")


def test_a_video_has_a_label_for_those_who_do_not_see_it():
    assert 'aria-label="a film"' in Picture(b"1234", "a film", "mp4").html


@pytest.mark.parametrize("count", [1, 3, 500])
def test_loss_curve_draws_any_length(tmp_path, count):
    path = loss_curve(torch.rand(count).tolist(), tmp_path / "loss.png")
    image = np.asarray(Image.open(path).convert("RGB"))
    assert tuple(image[0, 0]) == (255, 255, 255) and image.std() > 5


def test_a_row_of_a_filmstrip_may_have_no_label():
    x = torch.zeros(3, 1, 8, 8)
    assert filmstrip({"": x}, "black").width < filmstrip({"a long label": x}, "black").width
