import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from diffusion_course.data import media
from diffusion_course.data.media import check_format, grid, write


def steps(*shape):
    """Samples of one gray each, from black to white: [N, C, (F,) H, W]."""
    return torch.linspace(-1, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def cell(image, k, columns, height, width):
    """The pixels of item k in a grid, without the line around it."""
    top, left = k // columns * (height + 2) + 1, k % columns * (width + 2) + 1
    return image[..., top:top + height, left:left + width, :]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n, columns, expected", [(6, 3, 3), (6, None, 3), (5, None, 3), (7, 4, 4),
                                                  (1, None, 1), (2, 5, 5)])
def test_item_k_is_in_row_k_over_columns(n, columns, expected, channels):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, 4, 6), generator=generator)
    image = grid(pixels / 127.5 - 1, columns)
    assert image.dtype == np.uint8 and image.shape == (-(-n // expected) * 6, expected * 8, 3)
    for k in range(n):
        assert np.array_equal(cell(image, k, expected, 4, 6), pixels[k].expand(3, -1, -1).permute(1, 2, 0))
    for k in range(n, -(-n // expected) * expected):
        assert (cell(image, k, expected, 4, 6) == 64).all()    # empty places are as gray as the lines


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_of_videos_is_a_video_of_grids(channels):
    x = 2 * torch.rand(5, channels, 3, 4, 6) - 1
    video = grid(x)
    assert video.shape == (3, 12, 24, 3)
    for f in range(3):
        assert np.array_equal(video[f], grid(x[:, :, f]))
    assert grid(x[:, :, :1]).shape == (1, 12, 24, 3)


def test_what_is_out_of_range_is_cut_off():
    assert cell(grid(torch.full((1, 1, 2, 2), 7.0)), 0, 1, 2, 2).min() == 255
    assert cell(grid(torch.full((1, 1, 2, 2), -7.0)), 0, 1, 2, 2).max() == 0
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    assert grid(x.half(), scale=3).shape == (12, 12, 3)


def test_an_image_is_read_back_as_it_was_written(tmp_path):
    x = steps(5, 3, 8, 8)
    path = write(tmp_path / "new" / "folder" / "x.png", x)
    assert np.array_equal(imageio.imread(path), grid(x, scale=2))
    assert imageio.imread(path).shape == (40, 60, 3)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize("n, frames", [(3, 5), (4, 2), (1, 1)])
def test_a_video_is_read_back_with_all_frames(tmp_path, suffix, n, frames):
    x = steps(frames, n, 1, 15, 15).transpose(0, 2).transpose(0, 1)    # it brightens frame by frame
    path = write(tmp_path / f"x{suffix}", x)
    read, written = imageio.imread(path), grid(x, scale=2)
    assert x.shape[2] == frames and read.shape == written.shape
    assert abs(read.astype(float) - written).mean() < 6
    means = [frame.mean() for frame in read]
    assert means == sorted(means) and (frames == 1 or means[-1] > means[0] + 50)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_speed_of_a_video(tmp_path):
    x = steps(6, 1, 1, 16, 16).transpose(0, 2)
    assert imageio.immeta(write(tmp_path / "x.gif", x, fps=5))["duration"] == 200
    assert imageio.immeta(write(tmp_path / "x.mp4", x, fps=5), plugin="FFMPEG")["fps"] == 5


@pytest.mark.parametrize("x", [torch.randn(3, 1, 8, 8), torch.randn(2, 3, 4, 8, 8)], ids=["images", "videos"])
def test_the_bare_numbers(tmp_path, x):
    path = write(tmp_path / "x.npy", x.requires_grad_())
    assert np.array_equal(np.load(path, allow_pickle=False), x.detach())
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_capitals(tmp_path):
    for name, x in {"a.PNG": steps(2, 1, 4, 4), "a.NPY": steps(2, 1, 4, 4), "a.GIF": steps(2, 1, 3, 4, 4),
                    "a.MP4": steps(2, 1, 3, 16, 16)}.items():
        assert write(tmp_path / name, x) == tmp_path / name
    assert {p.name for p in tmp_path.iterdir()} == {"a.PNG", "a.NPY", "a.GIF", "a.MP4"}


@pytest.mark.parametrize("name, video, message", [
    ("x.gif", False, "x.gif: images can be written as .png, .npy"), ("x.mp4", False, "x.mp4: images can be"),
    ("x.png", True, "x.png: videos can be written as .gif, .mp4, .npy"),
    ("x.jpg", False, "x.jpg: images can be"), ("x", True, "x: videos can be"),
    ("x.pt", True, "x.pt: videos can be")])
def test_formats_that_do_not_fit_are_refused(tmp_path, name, video, message):
    with pytest.raises(ValueError, match=message):
        check_format(name, video)
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "new" / name, torch.zeros(1, 1, 2, 4, 4) if video else torch.zeros(1, 1, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    x = steps(2, 1, 4, 4)
    before = write(tmp_path / "x.png", x).read_bytes()

    def full(part, *args, **kwargs):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imageio, "imwrite", full)
    monkeypatch.setattr(media.np, "save", full)
    for name in ("x.png", "y.png", "y.npy"):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / name, x)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"] and (tmp_path / "x.png").read_bytes() == before
