"""Files that were made to do harm: they are refused, or read, and nothing else happens."""
import gzip
import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call, fails
from safetensors.torch import save_file

from diffusion_course.data import captions, media, mnist, sources
from diffusion_course.data.images import LARGEST, image_folder
from diffusion_course.data.videos import film, moving_mnist_file, video_folder
from diffusion_course.papers import ddpm, latent_diffusion
from diffusion_course.training import checkpoints, container
from diffusion_course.training.checkpoints import load_model
from diffusion_course.training.container import CheckpointError
from diffusion_course.training.trainer import Trainer

pytestmark = pytest.mark.hostile


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """In a folder of its own, where whatever is executed would leave a trace."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("exploded").exists(), "code of the file was executed"


# ---- what could run

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def archive(member):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        z.writestr(member, pickle.dumps(Bomb()))
    return file.getvalue()


def saved_by_torch(**options):
    file = io.BytesIO()
    torch.save({"w": Bomb()}, file, **options)
    return file.getvalue()


PICKLES = {
    **{f"protocol {n}": lambda n=n: pickle.dumps(Bomb(), protocol=n) for n in range(6)},
    "torch": saved_by_torch,
    "torch of old": lambda: saved_by_torch(_use_new_zipfile_serialization=False),
    "zip": lambda: archive("data.pkl"),
    "zip that climbs": lambda: archive("../../exploded/data.pkl"),
    "optimized": lambda: pickletools.optimize(pickle.dumps(Bomb(), protocol=4)),
    "behind a length": lambda: struct.pack("<Q", 100) + pickle.dumps(Bomb()),
    "gzipped": lambda: gzip.compress(pickle.dumps(Bomb())),
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("file", ["model.safetensors", "model.pt", "state.safetensors"])
def test_a_pickle_is_never_executed(name, file):
    Path(file).write_bytes(PICKLES[name]())
    for read in (load_model, container.read, container.read_header, container.read_averaged):
        with pytest.raises(CheckpointError, match=f"{file}: (this is a pickle|truncated, or not a safe)"):
            read(file)
    assert file in fails("sample", file, code=1)


@pytest.mark.parametrize("name", PICKLES)
def test_arrays_and_data_sets_that_are_pickles(name):
    Path("clips.npy").write_bytes(PICKLES[name]())
    Path("train-images-idx3-ubyte").write_bytes(PICKLES[name]())
    with pytest.raises(ValueError, match="clips.npy: not a whole .npy file of numbers"):
        moving_mnist_file("clips.npy")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        mnist.read_idx("train-images-idx3-ubyte", 3)


def test_an_array_of_objects():
    np.save("clips.npy", np.array([Bomb()] * 4, dtype=object).reshape(1, 4, 1, 1), allow_pickle=True)
    with pytest.raises(ValueError, match="clips.npy"):
        moving_mnist_file("clips.npy")


RECIPES = {  # what the header of a checkpoint may name as its recipe
    "another module": ("os", {"path": "exploded"}), "a function": ("os.mkdir", {"path": "exploded"}),
    "system": ("os.system", {"command": "mkdir exploded"}), "below": ("ddpm.os", {"path": "exploded"}),
    "above": ("..cli", {}), "a path": ("../../../tmp/x", {}), "an absolute path": ("/tmp/x", {}),
    "dunder": ("__init__", {}), "builtins": ("builtins", {}), "empty": ("", {}),
    "a module here": ("mine", {}),
    "of the package": ("diffusion_course.papers.ddpm", {}), "a null byte": ("ddpm\0", {}),
    "arguments with dunders": ("ddpm", {"__class__": "os.system"}),
    "a model by path": ("latent_diffusion", {"autoencoder": {"checkpoint": "../../secret"}}),
    "an absolute model": ("latent_diffusion", {"autoencoder": {"checkpoint": "/etc/passwd"}}),
    "a model that is no name": ("latent_diffusion", {"autoencoder": {"checkpoint": ["x"]}}),
    "text for a model": ("latent_diffusion", {"autoencoder": "vae-mm"}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_outside_the_package(name):
    paper, kwargs = RECIPES[name]
    Path("mine.py").write_text("import os; os.mkdir('exploded')")
    save_file({"w": torch.zeros(2)}, "a.safetensors",
              metadata={container.KEY: json.dumps({"paper": paper, "kwargs": kwargs, "step": 1})})
    with pytest.raises(CheckpointError, match="a.safetensors"):
        load_model("a.safetensors")
    assert "a.safetensors" in fails("sample", "a.safetensors", code=1)


# ---- what could fill the memory, or take for ever: each in a process with little of both

LIMITED = """
import os, resource, sys, time
import imageio.v3, torch
from diffusion_course.data import images, mnist, sources, videos
from diffusion_course.evaluation import leaderboard
from diffusion_course.training import checkpoints, container, state
from diffusion_course.papers import *
for name in ("ddpm", "dit", "video_diffusion_models", "imagen"):
    checkpoints.papers.module(name)
began = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (began + (3 << 30), began + (3 << 30)))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    {code}
except (ValueError, OSError) as error:
    print("refused:", type(error).__name__, str(error)[:200], "...", str(error)[-200:])
else:
    print("read")
"""


def limited(code):
    """What a process with 3 GiB of memory to spare, and a minute, says after running the code."""
    done = subprocess.run([sys.executable, "-c", LIMITED.replace("{code}", code)], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def checkpoint(**kwargs):
    save_file({"w": torch.zeros(2)}, "a.safetensors", metadata={container.KEY: json.dumps(kwargs)})


HUGE = {  # the paper and arguments of a model that is larger, or deeper, than any
    "wide": ("ddpm", {"width": 4096}), "very wide": ("ddpm", {"width": 10**15}),
    "long": ("ddpm", {"num_steps": 10**12}), "deep": ("dit", {"depth": 10**6, "dim": 32}),
    "very deep": ("dit", {"depth": 10**9, "dim": 32}),
    "many classes": ("ddpm", {"classes": 10**6, "width": 96}),
    "many words": ("video_diffusion_models", {"words": 10**6}),
    "long text": ("imagen", {"length": 10**6}),
    "large": ("video_diffusion_models", {"size": 10**6, "frames": 10**6}),
    "many sizes": ("imagen", {"sizes": [8] * 100_000}),
    "many codes": ("vqgan", {"codes": 500_000, "latent": 1500, "width": 8}),
    "large texts": ("imagen", {"text_dim": 10**6, "length": 800, "width": 8}),
    "large samples": ("ddpm", {"width": 8, "size": 5000}),
    "parts of nothing": ("ddpm", {f"x{n}": {"checkpoint": "vae-mm"} for n in range(200)}),
    "huge list": ("imagen", {"sizes": list(range(10**5))}),
}


@pytest.mark.parametrize("name", HUGE)
def test_models_larger_than_their_file(name):
    paper, kwargs = HUGE[name]
    checkpoint(paper=paper, kwargs=kwargs)
    said = limited("checkpoints.load_model('a.safetensors')")
    assert said.startswith("refused: CheckpointError a.safetensors: ")
    reasons = ("many more weights", "must be", "so large", "its samples are", "has no argument")
    assert any(reason in said for reason in reasons), "it was stopped by the lack of memory only"


def header(content, length=None):
    return struct.pack("<Q", len(content) if length is None else length) + content


def tensor_entry(**changes):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return header(json.dumps({"w": entry, "__metadata__": {container.KEY: "{}"}}).encode()) + bytes(8)


ABSURD = {  # headers of safetensors files
    "longer than the file": header(b"{}", 10**6), "longer than memory": header(b"{}", 2**63 - 1),
    "of all bits": header(b"{}", 2**64 - 1), "of no length": header(b""), "not JSON": header(b"{" * 1000),
    "deep": header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "deep list": header(b"[" * 10**6),
    "an array": header(b"[1, 2]"), "not text": header(b"\xff\xfe\x00"), "null": header(b"null"),
    "huge shape": tensor_entry(shape=[10**12, 10**12]), "huge product": tensor_entry(shape=[2**32, 2**32]),
    "negative shape": tensor_entry(shape=[-2]), "shape of text": tensor_entry(shape=["2"]),
    "beyond the end": tensor_entry(data_offsets=[0, 10**12]), "backwards": tensor_entry(data_offsets=[8, 0]),
    "negative": tensor_entry(data_offsets=[-8, 0]), "of another size": tensor_entry(data_offsets=[0, 4]),
    "unknown numbers": tensor_entry(dtype="F1024"), "no type": tensor_entry(dtype=None),
    "overlap": header(json.dumps({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
                                  for n in ("a", "b")}).encode()) + bytes(8),
    "a hole": header(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode())
    + bytes(8),
}


def test_absurd_headers():
    for n, content in enumerate(ABSURD.values()):
        Path(f"{n}.safetensors").write_bytes(content)
    said = limited(f"""
    for n in range({len(ABSURD)}):
        for read in (checkpoints.load_model, container.read_header, container.read):
            try:
                read(f"{{n}}.safetensors")
            except ValueError as error:
                print(n, type(error).__name__, str(error)[:300])
            else:
                raise AssertionError(f"{{n}} was read")""".strip())
    lines = [line for line in said.splitlines() if "CheckpointError" in line]
    assert len(lines) == 3 * len(ABSURD) and all(f"{line.split()[0]}.safetensors: " in line for line in lines)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"paper": "' + "x" * 10**6 + '"}',
                                  '{"step": ' + "9" * 5000 + "}", '{"step": 1e999}', '{"paper": NaN}', '""'])
def test_absurd_metadata(text):
    save_file({"w": torch.zeros(2)}, "a.safetensors", metadata={container.KEY: text})
    with pytest.raises(CheckpointError, match="^a.safetensors: .{,700}$"):
        load_model("a.safetensors")


def png(width, height, rows=1):
    """A PNG that promises so many pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes((width + 1) * rows))) + chunk(b"IEND", b""))


def gif(width, height, frames=1, canvas=None):
    """A GIF of so many tiny frames on a canvas of that size."""
    head = b"GIF89a" + struct.pack("<HHBBB", *(canvas or (width, height)), 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b"\x3b"


BOMBS = {  # a file, what reads it, and whether it can be read
    "png of 4 gigapixels": ("a.png", png(65_500, 65_500), "images.image_folder('.')", False),
    "png of 150 megapixels": ("a.png", png(15_000, 10_000), "images.image_folder('.')", False),
    "png as a frame": ("1.png", png(15_000, 10_000), "videos.video_folder('.')", False),
    "gif on a large canvas": ("a.gif", gif(1, 1, 3, (65_535, 65_535)), "videos.video_folder('.')", False),
    "gif on a middling canvas": ("a.gif", gif(1, 1, 3, (12_000, 12_000)), "videos.video_folder('.')", False),
    "gif to go on from": ("a.gif", gif(1, 1, 3, (12_000, 12_000)), "videos.film('a.gif')", False),
    "gif of a million frames": ("a.gif", gif(1, 1, 10**6), "videos.video_folder('.')", True),
    "text in a png": ("a.png", png(8, 8, 8)[:-12] + b"\x7f\xff\xff\xffzTXt" + bytes(10),
                      "images.image_folder('.')", False),
    "gzip of 20 gigabytes": ("images.gz", b"", "mnist.read_idx('images.gz', 3)", False),
    "an IDX of 2^96 pixels": ("images", b"\0\0\x08\x03" + b"\xff" * 12, "mnist.read_idx('images', 3)", False),
    "an npy of 2^60 bytes": ("a.npy", b"", "videos.moving_mnist_file('a.npy')", False),
    "an npy with a long header": ("a.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31 - 1) + b"{",
                                  "videos.moving_mnist_file('a.npy')", False),
    "gif of many large frames": ("a.gif", gif(1, 1, 64, (8000, 8000)), "videos.video_folder('.', 32, 16)",
                                 False),
    "captions from a device": ("a.gif", gif(1, 1, 2), "os.symlink('/dev/zero', 'a.txt'); "
                               "videos.video_folder('.')", True),
    "captions of a megabyte": ("a.txt", b"a " * 500_000, f"open('a.gif', 'wb').write({gif(1, 1, 2)!r}); "
                               "videos.video_folder('.')", False),
    "a playlist": ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "videos.video_folder('.')",
                   False),
    "a deep log": ("log.jsonl", b"[" * 10**6, "state.read_log('log.jsonl')", False),
    "a deep board": ("b.jsonl", b'{"a":' * 10**5, "leaderboard.read('b.jsonl')", False),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_unpack_to_large_ones(name):
    file, content, code, readable = BOMBS[name]
    if name == "gzip of 20 gigabytes":
        block = gzip.compress(bytes(1 << 26))                  # members of a gzip file follow one another
        content = gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 5 << 20, 64, 64)) + 320 * block
    if name == "an npy of 2^60 bytes":
        real = io.BytesIO()
        np.lib.format.write_array_header_1_0(real, {"descr": "|u1", "fortran_order": False,
                                                    "shape": (20, 2**50, 64, 64)})
        content = real.getvalue()
    Path(file).write_bytes(content)
    said = limited(code)
    assert said.startswith("read" if readable else "refused: "), said
    assert said == "read\n" or file in said and "emory" not in said, "stopped by the lack of memory only"


def test_a_film_that_is_a_list_of_other_files():
    """ffmpeg would show b.dat, which is none of the data set."""
    media.write("b.mp4", torch.rand(1, 1, 3, 32, 32))
    Path("b.mp4").rename("b.dat")
    Path("a.avi").write_text("ffconcat version 1.0\nfile b.dat\n")
    with pytest.raises(ValueError, match="a.avi: .* begins like no film"):
        film("a.avi")


MPD = """<!--free--><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" minBufferTime="PT1S"
profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT1S">
<Period duration="PT1S">
<AdaptationSet contentType="video" mimeType="video/mp4"><Representation id="0" bandwidth="1000" width="68"
height="68" codecs="avc1.42c01e"><BaseURL>file://{}/</BaseURL><SegmentList duration="1"><SegmentURL
media="b.mp4"/></SegmentList></Representation></AdaptationSet></Period></MPD>"""


def test_a_film_that_is_a_list_on_the_web():
    media.write("secret/b.mp4", torch.rand(1, 1, 3, 32, 32))
    Path("a.mp4").write_text(MPD.format(Path("secret").resolve()))
    with pytest.raises(ValueError, match="a.mp4: not a readable video"):
        film("a.mp4")


def test_a_state_whose_optimizer_does_not_fit():
    """PyTorch's fused AdamW believes the shapes it is given, and would write beyond the end."""
    def trainer():
        return Trainer(ddpm.recipe(width=8, size=8, num_steps=5), "run", steps=4, cpu=True)

    list(trainer().run([{"x": torch.zeros(2, 1, 8, 8)}] * 2, 2))
    path = Path("run/state.safetensors")
    tensors, said = container.read(path)
    tensors = {name: x.clone() for name, x in tensors.items()}
    first = next(name for name in tensors if name.endswith("/exp_avg"))
    changes = [{name: torch.zeros(1) for name in tensors if name.endswith(("/exp_avg", "/exp_avg_sq"))},
               {first: torch.zeros(3, 5)}, {first: tensors[first].to(torch.complex64)}, {first: None},
               {first.replace("/", "/more/"): torch.zeros(1)},
               dict.fromkeys(name for name in tensors if name.startswith("optimizer.")),
               {first.replace("exp_avg", "step"): torch.zeros(7)}]
    for change in changes:
        kept = {name: x for name, x in (tensors | change).items() if x is not None}
        container.write(path, kept, said)
        with pytest.raises(CheckpointError, match="the optimizer's .* does not fit the model"):
            trainer().resume()
    for step in (-3, 5, 4 * 10**8, 10**13):
        container.write(path, tensors, said | {"step": step})
        with pytest.raises(CheckpointError, match=f"step.* {step}"):
            trainer().resume()
    container.write(path, tensors, said)
    assert trainer().resume() == 2


def test_the_largest_picture_is_one_of_fifty_megapixels():
    assert 8192 * 6144 < LARGEST < 90e6


# ---- names and links that lead elsewhere

@pytest.mark.parametrize("name", ["../vae-mm", "/etc/passwd", "vae-mm/../../x", "..", ".hidden", "a b", "\n",
                                  "", "~/x", "C:\\x", "vae-mm\0"])
def test_names_of_parts_that_are_paths(name, tmp_path):
    """The model that another was trained with is a name, never a path."""
    recipe = latent_diffusion.recipe(width=8, size=16)
    checkpoints.save_model("x.safetensors", recipe)
    tensors, said = container.read("x.safetensors")
    said["kwargs"]["autoencoder"] = {"checkpoint": name, "sha256": "0" * 64}
    container.write(Path("x.safetensors"), tensors, said)
    with pytest.raises(CheckpointError, match="which is no name"):
        load_model("x.safetensors")


def small_gif(path):
    media.write(path, torch.rand(1, 1, 2, 4, 4))


def test_links_that_turn_in_circles():
    small_gif("clips/a.gif")
    Path("clips/round").symlink_to("..", target_is_directory=True)
    Path("clips/self.gif").symlink_to("self.gif")
    assert len(video_folder("clips", 4, 2)) == 1


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/random", "/proc/self/mem"])
def test_devices_under_other_names(target):
    """Nothing is read from what is no file."""
    for name in ("a.gif", "a.png", "a.safetensors", "train-images-idx3-ubyte"):
        Path(name).symlink_to(target)
    if target.startswith("/dev"):
        with pytest.raises(ValueError, match="no videos in it"):
            video_folder(".")
        with pytest.raises(ValueError, match="no images in it"):
            image_folder(".")
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            load_model("a.safetensors")
    else:
        with pytest.raises((ValueError, OSError)):
            film("a.gif")


def test_a_pipe_does_not_hang():
    os.mkfifo("a.gif")
    os.mkfifo("a.safetensors")
    with pytest.raises(ValueError, match="no videos in it"):
        video_folder(".")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_model("a.safetensors")
    assert "a.gif: no such file" in fails("sample", "edm", "--start", "a.gif", code=2)


def test_names_of_films_are_not_options_of_ffmpeg():
    for name in ("-i.mp4", "-y -f null.mp4", "$(mkdir exploded).mp4", "`mkdir exploded`.mp4",
                 "; mkdir exploded.mp4", "concat:a.mp4", "pipe:0.mp4", "http:x.mp4"):
        Path(name).write_bytes(b"no film")
        with pytest.raises(ValueError, match="not a readable video"):
            film(name)
        with pytest.raises(ValueError, match="not a readable video"):
            film(Path(name).resolve())


@pytest.mark.parametrize("text", [
    "$(mkdir exploded)", "`mkdir exploded`", "'; mkdir exploded; '", "%s%n", "{0.__class__}", "\x1b[2J",
    "a" * 10**5, "\u202e", "\ud800".encode("utf-8", "surrogatepass")])
def test_captions_and_arguments_are_only_text(text):
    small_gif("a.gif")
    Path("a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(text, bytes):
        with pytest.raises(ValueError, match="a.txt: no readable caption"):
            video_folder(".", 4, 2)
        return
    assert video_folder(".", 4, 2).captions == [" ".join(text.split())]
    assert captions.tokens([text[:200]], 1000, 200).shape == (1, 200)
    assert call("train", "ddpm", "--data", text[:200]).code in (1, 2)
    with pytest.raises(ValueError, match="data="):
        sources.load(text[:200], (1, 8, 8))


CLIMBS = ["../exploded", "../../exploded", "a/../../exploded", "/tmp/exploded-by-an-archive", "link/exploded"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_of_submissions_stay_in_their_folder(kind):
    """What nbgrader's zip_collect unpacks them with; the package itself unpacks no archives."""
    utils = pytest.importorskip("nbgrader.utils")
    Path("inside").mkdir()
    if kind == "zip":
        with zipfile.ZipFile("a.zip", "w") as file:
            for name in ("ada_lesson-02.ipynb", *CLIMBS):
                file.writestr(name, "x")
    else:
        with tarfile.open("a.tar.gz", "w:gz") as file:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, ".."
            file.addfile(link)
            for name in ("ada_lesson-02.ipynb", *CLIMBS):
                entry = tarfile.TarInfo(name)
                entry.size = 1
                file.addfile(entry, io.BytesIO(b"x"))
    with suppress(Exception):                                  # some versions skip these, some refuse all
        utils.unzip(str(Path(f"a.{kind}").resolve()), str(Path("inside").resolve()))
    assert Path("inside/ada_lesson-02.ipynb").exists()
    assert {path.name for path in Path(".").iterdir()} == {f"a.{kind}", "inside"}
    assert not Path("/tmp/exploded-by-an-archive").exists()


def test_a_module_of_a_papers_name_beside_one_is_not_imported():
    """What lies in the folder where a command is run does not take the place of the package's own."""
    for name in ("ddpm.py", "papers.py", "diffusion_course.py", "torch.py", "sitecustomize.py"):
        Path(name).write_text("import os; os.mkdir('exploded')")
    checkpoints.save_model("x.safetensors", ddpm.recipe(width=8, size=8, num_steps=5))
    program = Path(sys.executable).with_name("diffusion-course")
    sample = [program, "sample", "x.safetensors", "--num", "1", "--steps", "1", "--out", "x.png"]
    done = subprocess.run(sample, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and Path("x.png").exists(), done.stderr
