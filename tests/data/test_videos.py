import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_course.data import videos
from diffusion_course.data.captions import tokens
from diffusion_course.data.download import DownloadError
from diffusion_course.data.images import Batches, Images, image_folder, squared
from diffusion_course.data.videos import GRAY, Videos, moving_mnist_file, prepared, video_folder


def shades(count, shape=(20, 20), step=10):
    """Frames of one gray each: frame f is step * (f + 1)."""
    return np.stack([np.full(shape, step * (f + 1), np.uint8) for f in range(count)])


def noise(count, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def film(path, frames):
    """Write frames [F, H, W] or [F, H, W, 3] to a GIF or a film; a new folder if the name has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == "":
        path.mkdir()
        for f, frame in enumerate(frames):
            imageio.imwrite(path / f"{f}.png", frame)
    elif path.suffix.lower() == ".gif":
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=others, duration=100, loop=0)
    else:
        rgb = frames if frames.ndim == 4 else np.stack([frames] * 3, -1)
        codec = {".avi": "mpeg4", ".webm": "libvpx-vp9"}.get(path.suffix, "libx264")
        more = {"output_params": ["-crf", "10", "-b:v", "0"]} if path.suffix == ".webm" else {"quality": 10}
        imageio.imwrite(path, rgb, plugin="FFMPEG", fps=8, codec=codec, macro_block_size=2, **more)
    return path


def grays(data):
    """One gray for each frame of each clip, [[...], ...]."""
    return data.pixels.float().mean(dim=(1, 3, 4)).round().int().tolist()


def refused(folder, message, **arguments):
    with pytest.raises(ValueError, match=message):
        video_folder(folder, **arguments)


# ---- a data set of clips

def clips(n=12, **more):
    """Clips that say which they are: every pixel of frame f of item i is 10 i + f."""
    pixels = (10 * torch.arange(n)[:, None] + torch.arange(3)).byte()
    return Videos("clips", pixels[:, None, :, None, None].expand(n, 1, 3, 4, 6), **more)


def test_what_a_batch_of_videos_holds():
    data = clips(labels=torch.arange(12), captions=["a seven moves up"] * 11 + ["a two stays"])
    assert len(data) == 12 and data.shape == (1, 3, 4, 6)
    index = torch.tensor([11, 0, 5, 5])
    batch = data[index]
    assert set(batch) == {"x", "label", "text"} and batch["x"].dtype == torch.float32
    expected = (10 * index[:, None] + torch.arange(3)).float()[:, None, :, None, None] / 127.5 - 1
    torch.testing.assert_close(batch["x"], expected.expand(4, 1, 3, 4, 6))
    assert torch.equal(batch["label"], index) and batch["label"].dtype == torch.int64
    assert torch.equal(batch["text"], tokens(["a two stays"] + 3 * ["a seven moves up"]))
    assert all(torch.equal(data[2:5][name], data[torch.arange(2, 5)][name]) for name in batch)
    assert set(clips()[index]) == {"x"}


def test_batches_are_those_of_images():
    data = clips(labels=torch.arange(12))
    batches = data.batches(5, seed=3)
    assert isinstance(batches, Batches)
    images = Images("images", data.pixels[:, :, 0], data.labels).batches(5, seed=3)
    assert images.data.shape == (1, 4, 6)
    for n in (7, 0, 2):
        assert torch.equal(batches[n]["x"][:, :, 0], images[n]["x"])
        assert torch.equal(batches[n]["label"], images[n]["label"])


def test_captions_of_other_words_are_strings_only():
    data = clips(captions=["a seven moves up"] * 11 + ["a cat runs"])
    assert data.text is None and set(data[:2]) == {"x"} and data.captions[11] == "a cat runs"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_picture_is_made_small_as_a_whole(channels):
    picture = np.random.default_rng(0).integers(0, 256, (600, 300, 4), np.uint8)
    x = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)
    x = x[:3] * (x[3:] / 255)
    expected = squared(x if channels == 3 else torch.tensordot(GRAY, x, 1)[None], 32)
    torch.testing.assert_close(prepared(picture, 32, channels), expected, rtol=0, atol=1)


# ---- what is read

@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)], ids=["gray", "colour"])
def test_frames_in_png_are_read_to_the_bit(tmp_path, shape):
    frames = noise(3, *shape)
    film(tmp_path / "clip", frames)
    data = video_folder(tmp_path, size=16, frames=3, channels=3 if len(shape) == 3 else 1)
    expected = torch.from_numpy(frames.reshape(1, 3, 16, 16, -1)).permute(0, 4, 1, 2, 3)
    assert data.name == tmp_path.name and data.pixels.dtype == torch.uint8
    assert torch.equal(data.pixels, expected)
    assert torch.equal(data[:1]["x"], data.pixels / 127.5 - 1)


def test_a_gray_gif_is_read_to_the_bit(tmp_path):
    frames = noise(4, 16, 16)
    film(tmp_path / "clip.gif", frames)
    assert torch.equal(video_folder(tmp_path, 16, 4).pixels[0, 0], torch.from_numpy(frames))
    assert torch.equal(video_folder(tmp_path, 16, 4, channels=3).pixels[0, 1], torch.from_numpy(frames))


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".mov", ".avi", ".webm"])
def test_films(tmp_path, suffix):
    frames = np.zeros((6, 32, 48, 3), np.uint8)
    for f in range(6):
        frames[f, :, :24], frames[f, :, 24:] = (40 * f, 60, 200), (60, 200, 40 * f)
    film(tmp_path / f"clip{suffix}", frames)
    x = video_folder(tmp_path, 32, 6, channels=3).pixels[0].permute(1, 2, 3, 0)
    assert (x.int() - torch.from_numpy(frames[:, :, 8:40]).int()).abs().float().mean() < 6
    assert [x[f, :, :12, 0].float().mean() // 1 for f in range(6)] == pytest.approx(range(0, 240, 40), abs=8)


def test_all_kinds_capitals_and_the_order_of_clips(tmp_path):
    for k, name in enumerate(["clip1.gif", "clip2", "clip3.mp4", "clip10.GIF", "clip20", "z.gif"]):
        film(tmp_path / name, shades(2, (16, 16), 20 * (k + 1)))
    (tmp_path / "notes.md").write_text("not a video")
    for hidden in (".clip0.gif", ".trash/0.png", "clip2/._0.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("what some systems leave behind")
    data = video_folder(str(tmp_path), 8, 2)
    assert data.shape == (1, 2, 8, 8) and data.labels is None and data.captions is None
    assert grays(data) == pytest.approx(np.array([[20 * k, 40 * k] for k in range(1, 7)]), abs=2)


def test_frames_are_in_natural_order(tmp_path):
    for n in (10, 2, 100, 1, 9):
        imageio.imwrite(tmp_path / f"frame_{n}.png", np.full((8, 8), n, np.uint8))
    data = video_folder(tmp_path, 8, 5)                        # the folder is itself a clip
    assert grays(data) == [[1, 2, 9, 10, 100]] and data.name == tmp_path.name


def test_names_that_are_equal_as_numbers_have_an_order(tmp_path):
    for value, name in ((3, "01"), (2, "001"), (4, "1"), (5, "2")):
        imageio.imwrite(tmp_path / f"{name}.png", np.full((8, 8), value, np.uint8))
    assert grays(video_folder(tmp_path, 8, 4)) == [[2, 3, 4, 5]]


@pytest.mark.parametrize("name", ["clip", "clip.gif"])
@pytest.mark.parametrize("frames, stride, short, expected", [
    (4, 1, "loop", [1, 2, 3, 4]), (5, 1, "loop", [1, 2, 3, 4, 5]), (8, 1, "loop", [1, 2, 3, 4, 5, 1, 2, 3]),
    (12, 1, "loop", [1, 2, 3, 4, 5] * 2 + [1, 2]), (8, 1, "pad", [1, 2, 3, 4, 5, 5, 5, 5]),
    (5, 1, "pad", [1, 2, 3, 4, 5]), (2, 3, "loop", [1, 4]), (3, 2, "pad", [1, 3, 5]), (2, 2, "pad", [1, 3]),
    (4, 3, "loop", [1, 4, 1, 4]), (4, 3, "pad", [1, 4, 4, 4]), (3, 9, "loop", [1, 1, 1]),
    (1, 1, "pad", [1])])
def test_length_and_stride(tmp_path, name, frames, stride, short, expected):
    film(tmp_path / name, shades(5))
    data = video_folder(tmp_path, 8, frames, stride=stride, short=short)
    assert grays(data) == [[10 * f for f in expected]]


def test_a_film_is_cut_as_a_gif_is(tmp_path):
    film(tmp_path / "a.mp4", shades(7, (16, 16), 30))
    for frames, stride, expected in ((3, 2, [30, 90, 150]), (9, 1, [30, 60, 90, 120, 150, 180, 210, 30, 60])):
        assert grays(video_folder(tmp_path, 8, frames, stride=stride))[0] == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("name", ["clip", "clip.gif"])
@pytest.mark.parametrize("height, width, top, left", [(6, 13, 0, 3), (13, 6, 3, 0), (6, 9, 0, 1)])
def test_the_centre_is_cut_out(tmp_path, name, height, width, top, left):
    frames = noise(2, height, width)
    film(tmp_path / name, frames)
    expected = frames[:, top:top + 6, left:left + 6]
    assert torch.equal(video_folder(tmp_path, 6, 2).pixels[0, 0], torch.from_numpy(expected))


def test_large_videos_are_averaged_not_sampled(tmp_path):
    film(tmp_path / "clip", noise(2, 64, 64) // 128 * 255)
    assert video_folder(tmp_path, 8, 2).pixels.float().std() < 30


def test_a_frame_is_read_as_an_image_is(tmp_path):
    film(tmp_path / "clip", noise(1, 37, 50, 3))
    for channels in (1, 3):
        x = video_folder(tmp_path, 16, 1, channels).pixels[:, :, 0]
        assert (x.int() - image_folder(tmp_path / "clip", 16, channels).pixels.int()).abs().max() <= 1


def test_colours_turn_gray_as_they_seem(tmp_path):
    film(tmp_path / "a.gif", np.broadcast_to(np.array([250, 100, 0], np.uint8), (2, 9, 9, 3)))
    assert video_folder(tmp_path, 8, 2).pixels.unique().tolist() == [133]     # 0.299 R + 0.587 G + 0.114 B
    assert video_folder(tmp_path, 8, 2, channels=3).pixels.amax(dim=(0, 2, 3, 4)).tolist() == [250, 100, 0]


def test_what_is_transparent_is_black_in_every_frame(tmp_path):
    frames = []
    for f in range(3):                                         # white bars on a transparent magenta
        x = np.zeros((12, 12), np.uint8)
        x[4 * f:4 * f + 4] = 1
        frames.append(Image.fromarray(x).convert("P"))
        frames[f].putpalette([255, 0, 255, 255, 255, 255])
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], transparency=0, disposal=2)
    film(tmp_path / "clip", np.full((1, 12, 12, 4), (200, 200, 200, 0), np.uint8))
    x = video_folder(tmp_path, 12, 3, channels=3).pixels
    for f in range(3):
        expected = torch.zeros(3, 12, 12)
        expected[:, 4 * f:4 * f + 4] = 255
        assert torch.equal(x[0, :, f].float(), expected)
    assert not x[1].any()


def test_gif_frames_that_cover_a_part_are_laid_over_the_last(tmp_path):
    frames = np.full((3, 16, 16), 50, np.uint8)
    frames[1:, 3:6, 4:9], frames[2, 10:12, 2:4] = 120, 250     # Pillow stores what changed
    film(tmp_path / "a.gif", frames)
    assert (tmp_path / "a.gif").read_bytes().count(b"\x2c\x04\x00\x03\x00\x05\x00\x03\x00"), "a partial frame"
    assert torch.equal(video_folder(tmp_path, 16, 3).pixels[0, 0], torch.from_numpy(frames))


def test_subfolders_are_labels(tmp_path):
    for k, name in enumerate(["dog/b.gif", "cat/a.gif", "cat/c", "ant/x/10.gif", "ant/x/9.gif"]):
        film(tmp_path / name, shades(1, step=10 * (k + 1)))
    data = video_folder(tmp_path, 8, 1)
    assert grays(data) == [[50], [40], [20], [30], [10]]
    assert data.labels.tolist() == [0, 0, 1, 1, 2] and data.labels.dtype == torch.int64
    assert data[torch.tensor([4, 0])]["label"].tolist() == [2, 0]
    assert video_folder(tmp_path / "cat", 8, 1).labels is None


# ---- captions

def captioned(folder, **captions):
    for name, text in captions.items():
        film(folder / (name if name.endswith("_frames") else f"{name}.gif"), shades(1))
        if text is not None:
            (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_captions(tmp_path, capsys):
    captioned(tmp_path, b="a seven moves up\n", a="\ufeff a  two\nstays ", c_frames="a one moves left slowly")
    data = video_folder(tmp_path, 8, 1)
    assert data.captions == ["a two stays", "a seven moves up", "a one moves left slowly"]
    assert torch.equal(data[torch.tensor([2, 0])]["text"], tokens([data.captions[2], data.captions[0]]))
    assert capsys.readouterr() == ("", "")


def test_folders_with_a_dot_in_their_names(tmp_path):
    for name, text in {"clip.1": "a one stays", "clip.mp4": "a two stays"}.items():
        film(tmp_path / "clip", shades(1))
        (tmp_path / "clip").rename(tmp_path / name)
        (tmp_path / f"{name}.txt").write_text(text)
    assert video_folder(tmp_path, 8, 1).captions == ["a one stays", "a two stays"]


def test_captions_of_other_words_do_not_keep_a_folder_from_loading(tmp_path):
    captioned(tmp_path, a="a seven moves up", b="ein Haus am Meer, größer")
    data = video_folder(tmp_path, 8, 1)
    assert data.captions == ["a seven moves up", "ein Haus am Meer, größer"] and set(data[:2]) == {"x"}
    text = replace(data, words=1000)[:2]["text"]               # every word has a number then
    assert text.shape == (2, 12) and text.max() < 1000 and (text[1] > 0).sum() == 5
    assert torch.equal(text[0], tokens(data.captions[:1])[0])


@pytest.mark.parametrize("text, message", [
    (None, r"clip2.txt: no readable caption .*No such file.*; all clips need one, or none"),
    (" \n", r"clip2.txt: an empty caption; all clips need one, or none"),
    (b"\xff\xfe\xff", r"clip2.txt: no readable caption .*utf-8")])
def test_captions_that_are_missing_or_empty(tmp_path, text, message):
    captioned(tmp_path, clip1="a one stays", clip2=text, clip10="a two stays", clip11=text)
    refused(tmp_path, message)


# ---- what is wrong

@pytest.mark.parametrize("arguments, message", [
    ({"size": 0}, "size=0 must be from 1 to 100,000"), ({"frames": 0}, "frames=0 must be from 1 to 100,000"),
    ({"stride": 0}, "stride=0 must be from 1 to 100,000"), ({"channels": 2}, "channels=2 must be 1 or 3"),
    ({"short": "cut"}, "short='cut' must be loop or pad")])
def test_arguments(tmp_path, arguments, message):
    film(tmp_path / "a.gif", shades(2))
    refused(tmp_path, message, **arguments)


def test_empty_and_missing_folders(tmp_path):
    (tmp_path / "notes.txt").write_text("no video")
    refused(tmp_path, f"{tmp_path}: no videos in it .*.gif, .mp4")
    refused(tmp_path / "nowhere", "nowhere: no such folder of videos")
    refused(tmp_path / "notes.txt", "notes.txt: no such folder of videos")


def test_images_among_clips_and_images_without_numbers(tmp_path):
    film(tmp_path / "cat" / "a.gif", shades(2))
    imageio.imwrite(tmp_path / "poster.png", shades(1)[0])
    refused(tmp_path, "poster.png: frames have numbers in their names, like 12.png; move it away")
    (tmp_path / "poster.png").rename(tmp_path / "poster1.png")
    refused(tmp_path, "poster1.png: an image among clips; frames need a folder of their own")
    (tmp_path / "poster1.png").rename(tmp_path / "cat" / "a1.png")
    refused(tmp_path, "a1.png: an image among clips")


@pytest.mark.parametrize("suffix, content", [
    *((suffix, b"no video at all, but a few words") for suffix in (".gif", ".mp4", ".webm", ".avi", ".mov")),
    *((suffix, b"") for suffix in (".gif", ".mp4")), (".gif", b"GIF89a"), (".gif", "cut"), (".mp4", "cut")])
def test_a_broken_video_is_named(tmp_path, suffix, content):
    film(tmp_path / "a.gif", shades(2))
    broken = film(tmp_path / "sub" / f"broken{suffix}", noise(5, 32, 32))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:len(whole) // 3] if content == "cut" else content)
    refused(tmp_path, f"sub/broken{suffix}: not a readable video or frame")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_film_made_for_streaming_may_not_be_cut_off(tmp_path, share):
    film(tmp_path / "a.mp4", noise(8, 32, 32))
    from imageio_ffmpeg import get_ffmpeg_exe
    streamed = tmp_path / "new" / "b.mp4"
    streamed.parent.mkdir()
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "a.mp4", "-c", "copy", "-movflags",
                    "+faststart", streamed], check=True)
    a, b = video_folder(tmp_path, 32, 8).pixels
    assert torch.equal(a, b)
    whole = streamed.read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")
    streamed.write_bytes(whole[:int(share * len(whole))])
    refused(streamed.parent, "b.mp4: not a readable video .*(truncated; get it again|meta information)")


def test_a_film_longer_than_four_gigabytes_is_not_taken_for_cut_off(tmp_path):
    wide = (1).to_bytes(4, "big") + b"mdat" + (2**33).to_bytes(8, "big")
    for size, expected in ((2**33, False), (2**33 - 1, True)):
        with (tmp_path / "a.mp4").open("wb") as file:
            file.write((12).to_bytes(4, "big") + b"ftypisom" + wide)
            file.truncate(12 + size)                           # a hole: it takes no room
        assert videos.cut_off(tmp_path / "a.mp4") == expected


def test_a_video_without_frames(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", shades(2, (16, 16)))
    monkeypatch.setattr(videos, "pictures", lambda path: iter(()))
    refused(tmp_path, "a.mp4: no frames in it")


def test_bad_frames(tmp_path):
    frames = film(tmp_path / "clip", shades(4, (20, 30)))
    imageio.imwrite(frames / "2.png", np.zeros((20, 31), np.uint8))
    refused(tmp_path, r"clip/2.png: its height and width are \(20, 31\), those of 0.png \(20, 30\)")
    imageio.imwrite(frames / "2.png", np.zeros((20, 30), np.uint16))
    refused(tmp_path, "clip/2.png: .*its pixels are uint16; convert it to 8 bits")
    (frames / "2.png").write_bytes((frames / "1.png").read_bytes()[:-30])
    refused(tmp_path, "clip/2.png: not a readable video or frame")
    assert grays(video_folder(tmp_path, 8, 2)) == [[10, 20]], "what is not wanted is not read"


# ---- the original Moving MNIST

def saved(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def test_the_file_has_time_first(tmp_path):
    array = noise(5, 7, 8, 8)                                  # 5 frames of 7 clips
    data = moving_mnist_file(saved(tmp_path / "a.npy", array))
    assert len(data) == 7 and data.shape == (1, 5, 8, 8) and data.name == "a"
    index = torch.tensor([6, 0, 3, 3])
    x = data[index]["x"]
    assert x.shape == (4, 1, 5, 8, 8) and x.is_contiguous() and x.dtype == torch.float32
    for b, i in enumerate(index.tolist()):
        for f in range(5):
            assert torch.equal(x[b, 0, f], torch.from_numpy(array[f, i]) / 127.5 - 1)
    assert torch.equal(data[2:4]["x"], data[torch.tensor([2, 3])]["x"]) and data[2:4]["x"].is_contiguous()
    assert set(data.batches(3)[0]) == {"x"}


def official(path, items=()):
    """A file of 819 MB, all of it a hole but for some items."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (20, 10_000, 64, 64))
    for i in items:
        array[:, i] = i % 251
    return path


def test_the_file_is_mapped_not_read(tmp_path):
    pytest.importorskip("resource")                            # Windows has none
    path, unit = official(tmp_path / "mnist_test_seq.npy", [0, 9999]), 1 if sys.platform == "darwin" else 1024
    code = f"""
import resource, torch
from diffusion_course.data.videos import moving_mnist_file
torch.zeros(64, 1, 20, 64, 64).float()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = moving_mnist_file({str(path)!r})
batch = data[torch.tensor([9999] * 63 + [0])]["x"]
print(len(data), batch[0].mean().item(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    count, mean, grown = map(float, out.split())
    assert count == 10_000 and mean == pytest.approx((9999 % 251) / 127.5 - 1)
    assert grown * unit < 200e6


def test_the_file_is_never_written_to(tmp_path):
    path = saved(tmp_path / "a.npy", noise(2, 3, 4, 4))
    before = path.read_bytes()
    path.chmod(0o444)
    data = moving_mnist_file(path)
    data.pixels.zero_()
    assert path.read_bytes() == before and moving_mnist_file(path).pixels.any()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty DIFFUSION_COURSE_DATA and an empty cache; and no network."""
    (tmp_path / "given").mkdir()
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    monkeypatch.setattr(videos, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def test_where_it_is_looked_for(places):
    name, found = "mnist_test_seq.npy", []
    for place in ("cache/MovingMNIST", "cache", "cache/moving_mnist", "given", "given/moving_mnist"):
        official(places / place / name, [len(found) + 1])
        data = moving_mnist_file()
        found.append(bool(data.pixels[len(found) + 1].any()))
        assert len(data) == 10_000 and data.shape == (1, 20, 64, 64) and data.name == "mnist_test_seq"
    assert found == [True] * 5


def test_it_is_fetched_on_request_only(places, monkeypatch):
    asked = []

    def fetch(urls, path, **checks):
        asked.append((urls, path, checks))
        return official(path)

    with pytest.raises(DownloadError, match="OFFLINE"):
        moving_mnist_file(download=True)
    monkeypatch.setattr(videos, "fetch", fetch)
    with pytest.raises(DownloadError, match=r"mnist_test_seq.npy is neither in DIFFUSION_COURSE_DATA nor in "
                                            r".*cache/moving_mnist; put it there, .*download=True.* http://"):
        moving_mnist_file()
    assert not asked
    assert len(moving_mnist_file(download=True)) == len(moving_mnist_file(download=True)) == 10_000
    assert asked == [([videos.URL], places / "cache" / "moving_mnist" / "mnist_test_seq.npy",
                      {"sha256": videos.SHA256})]


def test_what_was_fetched_has_the_official_shape(places):
    saved(places / "given" / "mnist_test_seq.npy", noise(5, 7, 8, 8))
    with pytest.raises(ValueError, match=r"mnist_test_seq.npy: its shape is \(5, 7, 8, 8\), expected "
                                         r"\(20, 10000, 64, 64\): time first"):
        moving_mnist_file()


@pytest.mark.parametrize("array, message", [
    (noise(7, 5, 8, 8), r"its shape is \(7, 5, 8, 8\), expected \[F, N, H, W\]: time first, .*swapaxes"),
    (noise(5, 7, 8), r"its shape is \(5, 7, 8\), expected"), (noise(2, 3, 4, 4, 1), "its shape is"),
    (np.zeros((0, 7, 8, 8), np.uint8), "its shape is"),
    (np.zeros((5, 7, 8, 8), np.float32), "its numbers are float32; pixels must be uint8 from 0 to 255"),
    (np.zeros((5, 7, 8, 8), np.int8), "its numbers are int8")])
def test_arrays_that_do_not_fit(tmp_path, array, message):
    with pytest.raises(ValueError, match=f"a.npy: {message}"):
        moving_mnist_file(saved(tmp_path / "a.npy", array))


def test_as_many_frames_as_clips(tmp_path):
    assert moving_mnist_file(saved(tmp_path / "a.npy", noise(3, 3, 4, 4))).shape == (1, 3, 4, 4)


class Trap:
    def __reduce__(self):
        return open, ("sprung", "w")


@pytest.mark.parametrize("kind", ["empty", "header", "cut", "words", "pickle", "objects", "npz", "token"])
def test_files_that_are_no_whole_array(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "a.npy", noise(5, 7, 8, 8))
    whole = path.read_bytes()
    if kind == "objects":
        np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    elif kind == "npz":
        np.savez(tmp_path / "b.npz", x=noise(2, 3, 4, 4))
        path.write_bytes((tmp_path / "b.npz").read_bytes())
    else:
        path.write_bytes({"empty": b"", "header": whole[:50], "cut": whole[:-1], "words": b"<html>" * 20,
                          "pickle": pickle.dumps(Trap()), "token": whole.replace(b"}", b"'''")}[kind])
    with pytest.raises(ValueError, match="a.npy: not a whole .npy file of numbers .*; get it again"):
        moving_mnist_file(path)
    assert not Path("sprung").exists()


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="nowhere.npy: .*No such file"):
        moving_mnist_file(tmp_path / "nowhere.npy")


def test_importing_does_not_load_imageio():
    code = "import sys, diffusion_course.data.videos; print(*{'imageio', 'PIL'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not out.strip()
