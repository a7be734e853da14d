import gzip
import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from diffusion_course.data import mnist as module
from diffusion_course.data.captions import words
from diffusion_course.data.download import DownloadError, decompressed
from diffusion_course.data.mnist import FILES, builtin_digits, find, load, mnist, read_idx

GIVEN = os.environ.get("DIFFUSION_COURSE_DATA")


def idx(x, kind=8, zeros=b"\0\0", shape=None):
    """A tensor of bytes as an IDX file."""
    shape = shape or x.shape
    return zeros + bytes([kind, x.ndim]) + struct.pack(f">{x.ndim}I", *shape) + x.numpy().tobytes()


def pictures(n=5, size=28):
    return torch.arange(n * size * size).reshape(n, size, size).remainder(251).byte()


def write_mnist(folder, n=5, suffix=".gz", **instead):
    """The four files with n images each, or others instead of some."""
    folder.mkdir(parents=True, exist_ok=True)
    for (split, kind), (name, _) in FILES.items():
        data = idx(pictures(n) if kind == "images" else torch.arange(n).byte())
        data = instead.get(f"{split}_{kind}", data)
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """No network, no cache, no data of the user's."""
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(module, "SAID", set())                 # nothing has been said yet


# ---- the IDX reader

@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_good_files(tmp_path, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(idx(pictures())))
    assert torch.equal(read_idx(path, 3), pictures())
    path.write_bytes(pack(idx(torch.arange(7).byte())))
    assert torch.equal(read_idx(path, 1), torch.arange(7).byte())
    path.write_bytes(pack(idx(pictures(0))))
    assert read_idx(path, 3).shape == (0, 28, 28)


GOOD, LABELS = idx(pictures()), idx(torch.arange(30).byte())
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize("data, reason", [
    (b"", "0 bytes are too few"), (GOOD[:15], "15 bytes are too few for an IDX header of 3 axes"),
    (GOOD[:-1], "truncated; its header promises 3920 bytes of shape .5, 28, 28., it holds 3919"),
    (GOOD[:16], "truncated"), (GOOD + b"\0", "too long; its header promises 3920 bytes .* it holds 3921"),
    (idx(pictures(), zeros=b"\0\1"), "not an IDX file"),
    (b"<html>Not found</html>", "not an IDX file .*<htm"),
    (idx(pictures(), kind=13), "not an IDX file of unsigned bytes"),
    (LABELS, "has 1 axes, expected 3; images and labels exchanged"),
    (PACKED[:-1], "not a whole gzip file"), (PACKED[:100], "not a whole gzip file"),
    (PACKED[:5], "not a whole gzip file"),
    (PACKED[:-8] + bytes(8), "not a whole gzip file"),
    (PACKED + b"more", "not a whole gzip file"),
    (idx(pictures(), shape=(2**32 - 1,) * 3), "truncated; its header promises 7922816.* it holds 3920")])
def test_a_broken_file_is_named_with_its_fault(tmp_path, data, reason):
    path = tmp_path / "broken.file"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"broken.file: {reason}"):
        read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 2**20, "memory was set aside for what a header promises"
    tracemalloc.stop()


def test_images_in_place_of_labels(tmp_path):
    (tmp_path / "labels").write_bytes(GOOD)
    with pytest.raises(ValueError, match="labels: has 3 axes, expected 1; images and labels exchanged"):
        read_idx(tmp_path / "labels", 1)


# ---- where it is looked for

@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("sub", ["mnist", ".", "MNIST/raw"])
@pytest.mark.parametrize("given", [True, False])
def test_where_files_are_found(tmp_path, monkeypatch, given, sub, suffix):
    folder = tmp_path / ("given" if given else "cache")
    write_mnist(folder / sub, suffix=suffix)
    if given:
        monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(folder))
    for name, _ in FILES.values():
        assert find(name) == folder / sub / (name + suffix)
    assert len(mnist("train")) == len(mnist("test")) == 5


def test_what_is_given_goes_before_the_cache(tmp_path, monkeypatch):
    write_mnist(tmp_path / "given", n=3)
    write_mnist(tmp_path / "cache", n=4)
    assert len(mnist()) == 4
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(tmp_path / "given"))
    assert len(mnist()) == 3
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(tmp_path))                         # no MNIST in it
    assert len(mnist()) == 4


def test_a_given_folder_that_does_not_exist(tmp_path, monkeypatch):
    write_mnist(tmp_path / "cache")
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", "/no/such/folder")
    for name in (None, "mnist"):
        with pytest.raises(ValueError, match="DIFFUSION_COURSE_DATA=/no/such/folder: no such folder"):
            load(name)


# ---- the data set

def test_images_are_padded_with_black_or_averaged(tmp_path):
    write_mnist(tmp_path / "cache")
    exact, padded, small = mnist(size=28), mnist(size=32), mnist(size=16)
    assert torch.equal(exact.pixels[:, 0], pictures()) and exact.pixels.dtype == torch.uint8
    assert torch.equal(exact.labels, torch.arange(5))
    assert padded.pixels.shape == (5, 1, 32, 32)
    assert torch.equal(padded.pixels[:, :, 2:-2, 2:-2], exact.pixels)
    assert padded.pixels.sum(dtype=torch.long) == exact.pixels.sum(dtype=torch.long)   # the border is black
    assert torch.equal(mnist(size=31).pixels[:, :, 1:-2, 1:-2], exact.pixels)
    assert small.pixels.shape == (5, 1, 16, 16)
    assert small.pixels.float().mean() == pytest.approx(exact.pixels.float().mean().item(), rel=0.02)


@pytest.mark.parametrize("instead, message", [
    ({"train_images": idx(pictures(5, 27))}, "images-idx3-ubyte.gz: images must be 28 x 28, got .27, 27."),
    ({"train_labels": idx(torch.arange(6).byte())}, "train-labels-idx1-ubyte.gz: 6 labels for 5 images"),
    ({"train_labels": idx(torch.arange(4).byte())}, "train-labels-idx1-ubyte.gz: 4 labels for 5 images"),
    ({"train_labels": idx(torch.arange(6, 11).byte())},
     "train-labels-idx1-ubyte.gz: a label is 10, expected 0 ... 9"),
    ({"train_images": LABELS, "train_labels": GOOD}, "train-images-idx3-ubyte.gz: has 1 axes"),
    ({"train_images": GOOD[:-1]}, "train-images-idx3-ubyte.gz: truncated")])
def test_broken_files_raise_rather_than_fall_back(tmp_path, instead, message):
    write_mnist(tmp_path / "cache", **instead)
    for name in (None, "mnist"):
        with pytest.raises(ValueError, match=message):
            load(name)
    assert len(mnist("test")) == 5


NAMES = [name for name, _ in FILES.values()]


@pytest.mark.fault
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("tenth", [0, 1, 5, 9])
def test_a_half_extracted_cache(tmp_path, monkeypatch, name, suffix, tenth):
    """A file that ends early is named; once it is gone, it is fetched, and the others stay as they are."""
    write_mnist(tmp_path / "cache" / "mnist", suffix=suffix)
    broken = tmp_path / "cache" / "mnist" / (name + suffix)
    whole = broken.read_bytes()
    broken.write_bytes(whole[:len(whole) * tenth // 10])
    split = "test" if name.startswith("t10k") else "train"
    with pytest.raises(ValueError, match=f"{broken}: (truncated|not a whole gzip file|.* too few)"):
        load(split=split)
    others = {path: path.stat().st_mtime_ns for path in broken.parent.iterdir() if path != broken}
    broken.unlink()
    packed = whole if suffix else gzip.compress(whole)
    monkeypatch.setattr(module, "fetch", lambda urls, path, md5: path.write_bytes(packed) and path)
    assert len(load(split=split)) == 5 and len(mnist("test")) == 5
    assert others == {path: path.stat().st_mtime_ns for path in others}


def test_an_unknown_split():
    for data in (mnist, builtin_digits):
        with pytest.raises(ValueError, match="split='valid' must be train or test"):
            data("valid")


def test_what_is_missing_is_fetched_into_the_cache(tmp_path, monkeypatch):
    asked = []

    def fetch(urls, path, md5):
        write_mnist(path.parent)
        asked.append((urls, path.name, md5))
        return path

    monkeypatch.setattr(module, "fetch", fetch)
    assert len(load()) == 5 and load().name == "mnist"
    name, md5 = FILES["train", "images"]
    assert asked == [([mirror + name + ".gz" for mirror in module.MIRRORS], name + ".gz", md5)]
    assert find(name) == tmp_path / "cache" / "mnist" / (name + ".gz")


@pytest.mark.skipif(not (GIVEN and (Path(GIVEN) / "mnist").is_dir()), reason="no MNIST at hand")
def test_the_real_mnist(monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", GIVEN)
    for name, md5 in FILES.values():
        assert hashlib.md5(decompressed(find(name))).hexdigest() == md5
    train, test = mnist("train"), mnist("test")
    assert len(train) == 60_000 and len(test) == 10_000
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.pixels.float().mean() == pytest.approx(33.318 * (28 / 32)**2, rel=1e-3)


# ---- digits that are always there

@pytest.mark.parametrize("size", [16, 28, 32])
def test_builtin_digits(size):
    train, test = builtin_digits(size=size), builtin_digits("test", size=size)
    assert train.pixels.shape == (12_000, 1, size, size) and test.pixels.shape == (297, 1, size, size)
    for data in (train, test):
        assert data.pixels.dtype == torch.uint8 and data.labels.unique().tolist() == list(range(10))
        assert data.pixels.amax() == 255 and data.pixels.median() == 0
        x = data.pixels.float()                                # black around the digit:
        assert torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]]).mean() < 3
        assert (data.pixels.flatten(1).amax(1) > 200).float().mean() > 0.99


def test_builtin_digits_are_always_the_same():
    a = builtin_digits(copies=1)
    torch.manual_seed(5)
    b = builtin_digits(copies=1)
    assert torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


def test_no_digit_to_test_on_was_trained_on(monkeypatch):
    """Of every copy, which of scikit-learn's digits it was made from: the train and test parts share none."""
    from sklearn import datasets
    bunch = datasets.load_digits()
    bunch.images[:] = 0
    bunch.images[:, 2:6, 2:6] = 16 * (torch.arange(len(bunch.images)) >= 1500).numpy()[:, None, None]
    monkeypatch.setattr(datasets, "load_digits", lambda: bunch)
    assert not builtin_digits().pixels.any() and builtin_digits("test").pixels.flatten(1).any(1).all()


def test_copies_differ():
    pixels = builtin_digits().pixels
    first, second = pixels[0], pixels[1500]
    assert not torch.equal(first, second) and (first > 128).logical_and(second > 128).any()


# ---- load

def test_digits_stand_in_and_one_line_says_so(capsys):
    data = load()
    captured = capsys.readouterr()
    assert data.name == "digits" and captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("MNIST is not here and could not be fetched; "
                                   "using scikit-learn's 1,797 digits instead.")
    assert "DIFFUSION_COURSE_OFFLINE is set" in captured.err
    assert load("digits").name == "digits" and capsys.readouterr().err == ""
    assert load(split="test").name == "digits" and capsys.readouterr().err == ""           # once is enough


def test_asking_for_mnist_by_name_gives_mnist_or_fails():
    with pytest.raises(DownloadError, match="idx3-ubyte.gz was not fetched: DIFFUSION_COURSE_OFFLINE is"):
        load("mnist")


def test_a_cache_that_cannot_be_written_to_is_no_reason_to_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DIFFUSION_COURSE_OFFLINE")
    (tmp_path / "cache").write_text("in the way")
    assert load().name == "digits" and capsys.readouterr().err.count("\n") == 1


def test_load(tmp_path):
    import imageio.v3 as imageio
    write_mnist(tmp_path / "cache")
    imageio.imwrite(tmp_path / "a.png", pictures(1, 40)[0].numpy())
    assert load().name == "mnist" and len(load("mnist", "test")) == 5
    colour = load("digits", size=16, channels=3)
    assert colour.pixels.shape == (12_000, 3, 16, 16)
    assert torch.equal(colour.pixels[:, 0], colour.pixels[:, 2])
    assert torch.equal(colour.labels, load("digits").labels)
    for data in load(), colour:
        names = "a zero, a one, a two, a three, a four, a five, a six, a seven, an eight, a nine".split(", ")
        assert words(data[:40]["text"]) == [names[label] for label in data.labels.tolist()[:40]]
    assert load(str(tmp_path), size=8, channels=3).pixels.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="data='nonsense' is neither mnist, nor digits, nor a folder"):
        load("nonsense")
    for name in (None, "mnist", "digits", str(tmp_path)):
        with pytest.raises(ValueError, match="channels=2 must be 1 or 3"):
            load(name, channels=2)
