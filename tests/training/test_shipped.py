"""Where a shipped checkpoint comes from: the clone, DIFFUSION_COURSE_DATA, the cache, or the repository."""
import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from diffusion_course import papers
from diffusion_course.data import download
from diffusion_course.evaluation import probes
from diffusion_course.training import checkpoints
from diffusion_course.training.checkpoints import locate, obtain
from diffusion_course.training.shipped import SHIPPED, Shipped, shipped

CONTENT = bytes(range(256)) * 300
FILE = Path("checkpoints") / "ddpm.safetensors"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """No clone, an empty cache, and a table that has CONTENT as ddpm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "repository_data", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    monkeypatch.setitem(SHIPPED, "ddpm", Shipped(hashlib.sha256(CONTENT).hexdigest(), "ddpm"))
    return tmp_path


@pytest.fixture
def cache(outside):
    return outside / "cache" / "diffusion_course"


@pytest.fixture
def given(outside, monkeypatch):
    (outside / "given").mkdir()
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(outside / "given"))
    return outside / "given"


@pytest.fixture
def repository(outside, monkeypatch):
    """A server in place of GitHub, and the folder data/ that it serves."""
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            server.seen.append(self.path)

    root = outside / "repository"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
    server.seen = []
    monkeypatch.delenv("DIFFUSION_COURSE_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "repository_url", lambda p: f"http://127.0.0.1:{server.server_port}/{p}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server, root / "data"
    server.shutdown()
    thread.join()
    server.server_close()


def put(folder, content=CONTENT):
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_clone_has_them_and_its_own_are_trusted(tmp_path, monkeypatch):
    assert obtain("digit_probe") == shipped("digit_probe")
    assert shipped("digit_probe").parent == Path(__file__).parents[2] / "data" / "checkpoints"
    monkeypatch.setattr(checkpoints, "shipped", lambda slug: tmp_path / "mine.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(b"trained anew")
    assert obtain("ddpm") == tmp_path / "mine.safetensors"


def test_a_folder_called_data_is_not_a_clone(outside):
    put(outside / "data", b"whatever lies here")
    with pytest.raises(FileNotFoundError):
        obtain("ddpm")


def test_the_given_folder_goes_before_the_cache(given, cache):
    kept = put(cache)
    assert obtain("ddpm") == kept
    found = put(given)
    assert obtain("ddpm") == found


def test_it_is_fetched_once_into_the_cache(repository, cache):
    server, data = repository
    put(data)
    assert obtain("ddpm") == cache / FILE and (cache / FILE).read_bytes() == CONTENT
    assert obtain("ddpm") == cache / FILE
    assert len(server.seen) == 1 and "/data/checkpoints/ddpm.safetensors" in server.seen[0]
    assert [path.name for path in (cache / FILE).parent.iterdir()] == ["ddpm.safetensors"]


def test_what_is_fetched_must_be_what_the_table_says(repository, cache):
    server, data = repository
    for content in (CONTENT[:-1], CONTENT[::-1], b""):
        put(data, content)
        with pytest.raises(FileNotFoundError) as caught:
            obtain("ddpm")
        found, expected = (hashlib.sha256(x).hexdigest() for x in (content, CONTENT))
        assert f"its SHA-256 is {found}, expected {expected}" in str(caught.value)
        assert not list(cache.rglob("*.safetensors*"))


def test_wrong_files_are_refused_and_never_used(given, cache):
    for path in (put(given, CONTENT[:1000]), put(cache, b"old")):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(FileNotFoundError) as caught:
            obtain("ddpm")
        assert f"{path}: refused, its SHA-256 is {found}, expected " in str(caught.value)
    assert (cache / FILE).read_bytes() == b"old", "nothing is deleted"


def test_a_wrong_file_in_the_cache_is_fetched_anew(repository, cache):
    put(repository[1])
    put(cache, b"of an older version of the course")
    assert obtain("ddpm").read_bytes() == CONTENT


def test_what_was_tried_is_said_in_one_line(repository, given, cache):
    server, _ = repository
    with pytest.raises(FileNotFoundError) as caught:
        obtain("ddpm")
    message = str(caught.value)
    for part in ("checkpoints/ddpm.safetensors cannot be had", f"{given / FILE}: no such file",
                 f"{cache / FILE}: no such file", download.repository_url(f"data/{FILE}"), "404"):
        assert part in message
    assert "\n" not in message


def test_offline(repository, cache, monkeypatch):
    server, data = repository
    put(data)
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="DIFFUSION_COURSE_OFFLINE is set"):
        obtain("ddpm")
    assert not server.seen and not cache.exists()


def test_a_given_folder_that_is_not_there(outside, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", "/no/such/folder")
    with pytest.raises(ValueError, match="DIFFUSION_COURSE_DATA=/no/such/folder: no such folder"):
        obtain("ddpm")


def test_a_checkpoint_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match="no 'nothing' is shipped; there are: ddpm, "):
        obtain("nothing")


def test_a_run_serves_where_the_shipped_one_cannot_be_had(outside):
    with pytest.raises(ValueError, match="no checkpoint of ddpm yet.*OFFLINE.*train one: diffusion-"):
        locate("ddpm")
    with pytest.raises(FileNotFoundError, match="checkpoints/ddpm_improved.safetensors cannot be had"):
        locate("ddpm_improved")
    for slug in ("ddpm", "ddpm_improved"):
        run = Path("runs") / slug / "model.safetensors"
        run.parent.mkdir(parents=True)
        run.write_bytes(b"a run")
        assert locate(slug) == run
    kept = put(outside / "cache" / "diffusion_course")
    assert locate("ddpm") == kept


def test_the_probe_comes_from_there_too(outside, given):
    with pytest.raises(FileNotFoundError, match="checkpoints/digit_probe.safetensors cannot be had"):
        probes.load_probe()
    path = given / "checkpoints" / "digit_probe.safetensors"
    path.parent.mkdir()
    path.write_bytes((Path(__file__).parents[2] / "data" / path.relative_to(given)).read_bytes())
    assert isinstance(probes.load_probe(), probes.DigitProbe)


def test_the_address_is_that_of_the_raw_file():
    assert download.repository_url("data/a.json") == \
        f"https://raw.githubusercontent.com/{download.REPOSITORY}/{download.REF}/data/a.json"


# ---- the table

@pytest.mark.parametrize("slug", sorted({p.stem for p in shipped("").parent.glob("*.json")} | set(SHIPPED)))
def test_the_table_agrees_with_the_files_and_their_cards(slug):
    assert slug in SHIPPED, f"data/checkpoints/{slug}.json has no line in SHIPPED"
    entry, path = SHIPPED[slug], shipped(slug)
    if not path.exists():
        assert entry.sha256 == "", "a checkpoint that is not there yet has no SHA-256"
        return
    if entry.file:                                             # a study has no card
        assert entry.sha256 == download.sha256_of(path), f"SHA-256 of {slug}: {download.sha256_of(path)}"
        return
    card = json.loads(path.with_suffix(".json").read_text())
    assert download.sha256_of(path) == card["sha256"], f"write the card of {slug} again"
    assert entry.sha256 == card["sha256"], f"the SHA-256 of {slug} in SHIPPED must be {card['sha256']}"
    assert entry.paper == card.get("paper")
    if entry.paper:
        kwargs = card["kwargs"]
        for name, value in kwargs.items():
            if isinstance(value, dict):                        # a model that was trained first, and ships too
                assert SHIPPED[value["checkpoint"]].sha256 == value["sha256"], f"{slug} had another {name}"
                kwargs = kwargs | {name: value["checkpoint"]}
        assert kwargs == kwargs | entry.kwargs
        assert entry.paper in papers.names()
