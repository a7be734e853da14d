import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from diffusion_course.data.captions import words
from diffusion_course.data.images import Batches, Images, image_folder


def numbered(n=23, channels=1):
    """Images that say which they are: every pixel of item k is k, and so is its label."""
    pixels = torch.arange(n).byte().reshape(-1, 1, 1, 1).expand(n, channels, 4, 6)
    return Images("numbered", pixels, torch.arange(n))


def order(batches, count):
    return torch.cat([batches[n]["label"] for n in range(count)]).tolist()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- batches

def test_a_batch_is_a_function_of_seed_and_number():
    expected = [numbered().batches(5, seed=3)[n] for n in range(40)]
    shared = numbered().batches(5, seed=3)
    for n in [39, 0, 17, 17, 3, 38, *range(40)]:               # two epochs are remembered: jump further
        torch.manual_seed(n)
        assert same(shared[n], expected[n])


@pytest.mark.parametrize("batch_size", [1, 5, 7, 23, 24, 60])
def test_every_epoch_visits_every_item_once(batch_size):
    items = order(numbered().batches(batch_size), -(-5 * 23 // batch_size))
    epochs = [items[i:i + 23] for i in range(0, 5 * 23, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_seeds_differ_and_so_do_their_epochs():
    epochs = {tuple(numbered().batches(23, seed)[n]["label"].tolist()) for seed in range(5) for n in range(3)}
    assert len(epochs) == 15


def test_what_a_batch_holds():
    batch = numbered(256, channels=3).batches(100)[7]
    x, label = batch["x"], batch["label"]
    assert x.shape == (100, 3, 4, 6) and x.dtype == torch.float32 and label.shape == (100,)
    torch.testing.assert_close((x + 1) * 127.5, label.float()[:, None, None, None].expand(-1, 3, 4, 6))
    every = numbered(256)[torch.arange(256)]["x"]
    assert every.min() == -1 and every.max() == 1
    assert set(Images("plain", numbered().pixels).batches(4)[0]) == {"x"}
    assert set(batch) == {"x", "label"}


def test_captions_come_as_tokens():
    said = ["a one", "an eight and a two", "a three"]
    data = Images("said", numbered(3).pixels, captions=said)
    assert words(data[1:]["text"]) == said[1:] and set(data[:2]) == {"x", "text"}
    for n in range(3):
        batch = data.batches(2, seed=1)[n]
        shown = ((batch["x"][:, 0, 0, 0] + 1) * 127.5).round().long()
        assert words(batch["text"]) == [said[k] for k in shown.tolist()]
    assert set(Images("foreign", numbered(1).pixels, captions=["ein Haus"])[:1]) == {"x"}


def test_pixels_are_not_changed_by_batches():
    data = numbered()
    before = data.pixels.clone()
    data.batches(5)[0]["x"].zero_()
    assert torch.equal(data.pixels, before) and len(data) == 23


def test_a_batch_has_at_least_one_item():
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size={size} must be from 1 to a million"):
            Batches(numbered(), size)


# ---- folders

def picture(path, value, shape=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.broadcast_to(np.asarray(value, dtype=np.uint8), shape if np.ndim(value) == 0 else
                                          (*shape, 3)))


def test_a_folder_of_all_kinds(tmp_path):
    picture(tmp_path / "a.png", 10)
    picture(tmp_path / "b.JPG", 20, (30, 40))
    picture(tmp_path / "c.jpeg", [30, 30, 30], (41, 17))
    picture(tmp_path / "d.png", [40, 40, 40], (5, 5))
    (tmp_path / "notes.txt").write_text("not an image")
    data = image_folder(tmp_path, size=8)
    assert data.name == tmp_path.name and data.labels is None and data.pixels.dtype == torch.uint8
    assert data.pixels.shape == (4, 1, 8, 8)
    for image, value in zip(data.pixels, (10, 20, 30, 40)):
        assert (image.int() - value).abs().max() <= 1
    assert image_folder(str(tmp_path), size=8, channels=3).pixels.shape == (4, 3, 8, 8)


def test_colours(tmp_path):
    picture(tmp_path / "a.png", [250, 100, 0])
    assert image_folder(tmp_path, 8, channels=3).pixels.amax(dim=(0, 2, 3)).tolist() == [250, 100, 0]
    assert image_folder(tmp_path, 8).pixels.unique().tolist() == [133]     # 0.299 R + 0.587 G + 0.114 B


@pytest.mark.parametrize("wide", [True, False])
def test_the_centre_is_kept(tmp_path, wide):
    x = np.zeros((16, 48), np.uint8)
    x[:, 16:32], x[:8, 16:32] = 100, 200
    imageio.imwrite(tmp_path / "a.png", x if wide else x.T)
    image = image_folder(tmp_path, 16).pixels[0, 0]
    rows = torch.tensor([200] * 8 + [100] * 8).byte()
    assert torch.equal(image if wide else image.T, rows[:, None].expand(16, 16))


def test_small_images_are_averaged_not_sampled(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (64, 64)) * 255
    imageio.imwrite(tmp_path / "a.png", noise.astype(np.uint8))
    assert image_folder(tmp_path, 8).pixels.float().std() < 30


def test_subfolders_are_labels(tmp_path):
    for k, name in enumerate(["cat", "ant", "bee/red"]):
        for n in range(2):
            picture(tmp_path / name / f"{n}.png", 50 * k)
    data = image_folder(tmp_path, 8)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2] and data.labels.dtype == torch.int64
    assert data.pixels[:, 0, 0, 0].tolist() == [50, 50, 100, 100, 0, 0]
    assert image_folder(tmp_path / "cat", 8).labels is None


def test_transparent_images_and_tiff(tmp_path):
    imageio.imwrite(tmp_path / "alpha.png", np.full((9, 9, 4), 200, np.uint8))
    imageio.imwrite(tmp_path / "b.tiff", np.full((9, 9), 200, np.uint8), plugin="pillow")
    for channels in (1, 3):
        assert image_folder(tmp_path, 8, channels).pixels.unique().tolist() == [200]


def test_a_photo_is_turned_upright(tmp_path):
    from PIL import Image
    image = Image.fromarray(np.repeat([[0], [200]], 16, axis=0).repeat(32, axis=1).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 3                                           # the camera was held upside down
    image.save(tmp_path / "a.png", exif=exif)
    assert image_folder(tmp_path, 32).pixels[0, 0, :, 0].tolist() == [200] * 16 + [0] * 16


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"no image at all", "cut"])
def test_a_broken_image_is_named(tmp_path, content):
    picture(tmp_path / "a.png", 10)
    broken = tmp_path / "sub" / "broken.png"
    picture(broken, 10)
    broken.write_bytes(broken.read_bytes()[:-30] if content == "cut" else content)
    with pytest.raises(ValueError, match="sub/broken.png: not a readable image"):
        image_folder(tmp_path)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no images in it .*.png"):
        image_folder(tmp_path)
    with pytest.raises(ValueError, match="nowhere: no such folder of images"):
        image_folder(tmp_path / "nowhere")


def test_sixteen_bit_images_are_refused_not_clipped_to_white(tmp_path):
    imageio.imwrite(tmp_path / "deep.png", np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    with pytest.raises(ValueError, match="deep.png: .*uint16; convert it to 8 bits"):
        image_folder(tmp_path)


def test_a_slice_is_the_images_at_its_places():
    data = Images("shades", torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1), torch.arange(10))
    for part, index in ((slice(3), [0, 1, 2]), (slice(-2, None), [8, 9]), (slice(99), list(range(10)))):
        batch = data[part]
        assert batch["label"].tolist() == index
        assert torch.equal(batch["x"], data[torch.tensor(index)]["x"])
