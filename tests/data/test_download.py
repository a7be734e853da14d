"""`fetch` against a server on this machine that misbehaves in every way a mirror can."""
import gzip
import hashlib
import re
import socket
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffusion_course.data import download
from diffusion_course.data.download import DownloadError, cache_folder, decompressed, fetch, md5_of, sha256_of

pytestmark = pytest.mark.fault
PLAIN = bytes(range(256)) * 1000
FILE = gzip.compress(PLAIN, 0, mtime=0)                        # 256 kB: several blocks
MD5 = hashlib.md5(PLAIN).hexdigest()
GIVEN_UP = "timed out|too slow: "                              # which of them is a matter of moments


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Range")))
        name, _, number = self.path[1:].partition("-")
        self.close_connection = True
        getattr(self, name)(*[int(number)] if number else [])

    def log_message(self, *args):
        pass

    def say(self, pieces, pause):
        """A piece and a pause, in turn, for a minute: nobody should listen to the end."""
        for piece in [*pieces, b""]:
            self.wfile.write(piece)
            if self.server.released.wait(pause):
                return
        self.server.heard_out.append(self.path)

    def head(self, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def good(self, stop=None, data=FILE):
        """The file, or the range that is asked for; `stop` cuts the connection after so many bytes."""
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start >= len(data):
            return self.head(416, Content_Length=0)
        self.head(206 if start else 200, Content_Length=len(data) - start)
        self.wfile.write(data[start:][:stop])

    def deaf(self):
        self.head(Content_Length=len(FILE))
        self.wfile.write(FILE)

    def other(self):
        self.good(data=gzip.compress(PLAIN[::-1]))

    def broken(self):
        self.good(data=FILE[:-20] + bytes(20))

    def html(self):
        self.good(data=b"<html>Log in to the hotel's network</html>")

    def missing(self):
        self.head(404, Content_Length=0)

    def loop(self):
        self.head(302, Location=self.path, Content_Length=0)

    def hang(self):
        self.say([], pause=60)

    def stall(self):
        self.head(Content_Length=len(FILE))
        self.wfile.write(FILE[:100_000])
        self.say([], pause=60)

    def drip(self):
        """A byte now and then: never silent for long enough to be given up for that."""
        self.head(Content_Length=len(FILE))
        self.say((FILE[n:n + 1] for n in range(1200)), pause=0.05)

    def endless(self):
        self.head()
        while not self.server.released.is_set():
            self.wfile.write(bytes(1 << 16))

    def away(self):
        self.head(302, Location="/good", Content_Length=0)

    def head_for_ever(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.say((b"X-%d: 1\r\n" % n for n in range(600)), pause=0.1)

    def trailers_for_ever(self):
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"5\r\nabcde\r\n0\r\n")
        self.say([b"X: 1\r\n"] * 600, pause=0.1)

    def silent(self):
        pass

    def garbage(self):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    def chunked(self):
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"10000\r\n" + FILE[:1000])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("DIFFUSION_COURSE_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.heard_out, server.released = [], [], threading.Event()
    server.urls = lambda *names: [f"http://127.0.0.1:{server.server_port}/{name}" for name in names]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
    assert not server.heard_out


def patience(urls):
    """Seconds of silence that are borne: few where there will be silence, else more than any pause here."""
    return 0.5 if any(name in url for url in urls for name in ("hang", "stall", "drip", "_ever")) else 20


def refused(urls, path, md5=MD5):
    """What fetch says when it fails, having left nothing under the final name."""
    with pytest.raises(DownloadError) as caught:
        fetch(urls, path, md5, timeout=patience(urls))
    assert not path.exists()
    return str(caught.value)


def part(path):
    return path.with_name(path.name + ".part")


def test_a_file_is_fetched_into_a_new_folder(server, tmp_path):
    path = tmp_path / "new" / "folder" / "file.gz"
    assert fetch(server.urls("good"), path, MD5) == path
    assert path.read_bytes() == FILE and list(path.parent.iterdir()) == [path]
    assert server.seen == [("/good", None)]


@pytest.mark.parametrize("name, reason", [
    ("other", f"the MD5 of its content is {hashlib.md5(PLAIN[::-1]).hexdigest()}, expected {MD5}"),
    ("html", "the MD5 of its content is"), ("broken", "not a whole gzip file"), ("missing", "404"),
    ("loop", "redirect"), ("hang", GIVEN_UP), ("endless", "no file of the course is that large"),
    ("garbage", "SSH-2.0"), ("silent", "closed connection")])
def test_a_mirror_that_fails_is_named_and_the_next_one_is_tried(server, tmp_path, name, reason, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1 << 20)
    path = tmp_path / "file.gz"
    message = refused(server.urls(name), path)
    assert message.startswith("file.gz could not be fetched:\n") and server.urls(name)[0] + ": " in message
    assert re.search(reason, message) and message.count("\n") == 1
    assert not part(path).exists(), "nothing of it may be continued"
    fetch(server.urls(name, "good"), path, MD5, timeout=patience([name]))
    assert path.read_bytes() == FILE and not part(path).exists()


def test_every_mirror_is_listed_with_what_it_did(server, tmp_path):
    urls = server.urls("missing", "other", "good-1000")
    lines = refused(urls, tmp_path / "file.gz").splitlines()
    assert len(lines) == 4
    for url, reason, line in zip(urls, ("404", "MD5", f"closed after 1000 of {len(FILE)} bytes"), lines[1:]):
        assert url in line and reason in line


def test_a_dead_mirror(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/file.gz"
    assert "refused" in refused([dead], tmp_path / "file.gz")
    assert fetch([dead, *server.urls("good")], tmp_path / "file.gz", MD5).read_bytes() == FILE


TENTHS = [len(FILE) * n // 10 for n in range(10)]


@pytest.mark.parametrize("stop", [*TENTHS, 1, 65_536, len(FILE) - 1])
def test_a_cut_download_is_continued(server, tmp_path, stop):
    path = tmp_path / "file.gz"
    assert f"closed after {stop} of {len(FILE)} bytes" in refused(server.urls(f"good-{stop}"), path)
    assert part(path).read_bytes() == FILE[:stop]
    fetch(server.urls("good"), path, MD5)
    assert path.read_bytes() == FILE and not part(path).exists()
    assert server.seen[-1] == ("/good", f"bytes={stop}-" if stop else None)


def test_a_download_cut_again_and_again_gets_there(server, tmp_path):
    path = tmp_path / "file.gz"
    fetch(server.urls(*["good-60000"] * 5), path, MD5)
    assert path.read_bytes() == FILE
    assert [asked for _, asked in server.seen] == [None] + [f"bytes={60_000 * n}-" for n in (1, 2, 3, 4)]


def test_a_download_that_stalls_is_continued(server, tmp_path):
    path = tmp_path / "file.gz"
    assert re.search(GIVEN_UP, refused(server.urls("stall"), path))
    kept = part(path).stat().st_size
    assert 0 < kept <= 100_000
    fetch(server.urls("good"), path, MD5)
    assert path.read_bytes() == FILE and server.seen[-1][1] == f"bytes={kept}-"


def test_a_mirror_that_is_too_slow_is_left_for_the_next_one(server, tmp_path):
    path = tmp_path / "file.gz"
    assert re.search(f"drip: .*({GIVEN_UP})", refused(server.urls("drip"), path))
    assert 0 < part(path).stat().st_size < 1200
    fetch(server.urls("drip", "good"), path, MD5, timeout=0.5)
    assert path.read_bytes() == FILE                           # and what had come in was not fetched again
    assert server.seen[-1][0] == "/good" and int(server.seen[-1][1][6:-1]) > 1


@pytest.mark.parametrize("name", ["head_for_ever", "trailers_for_ever"])
def test_an_answer_whose_head_or_end_never_ends(server, tmp_path, name):
    assert re.search(GIVEN_UP, refused(server.urls(name), tmp_path / "file.gz"))
    assert fetch(server.urls("good", "good"), tmp_path / "file.gz", MD5).read_bytes() == FILE


def test_an_address_may_have_moved(server, tmp_path):
    assert fetch(server.urls("away"), tmp_path / "file.gz", MD5).read_bytes() == FILE


def test_a_cut_chunked_download(server, tmp_path):
    assert "IncompleteRead" in refused(server.urls("chunked"), tmp_path / "file.gz")


def test_a_server_that_ignores_the_range(server, tmp_path):
    path = tmp_path / "file.gz"
    refused(server.urls("good-100000"), path)
    assert fetch(server.urls("deaf"), path, MD5).read_bytes() == FILE
    assert server.seen[-1] == ("/deaf", "bytes=100000-")


@pytest.mark.parametrize("left", [FILE, FILE + b"more", bytes(1000)], ids=["whole", "too long", "wrong"])
def test_what_was_left_by_an_earlier_call(server, tmp_path, left):
    path = tmp_path / "file.gz"
    part(path).write_bytes(left)
    assert fetch(server.urls("good", "good"), path, MD5).read_bytes() == FILE
    assert len(server.seen) == (1 if left == FILE else 2)


def test_offline(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    with pytest.raises(DownloadError, match="file.gz was not fetched: DIFFUSION_COURSE_OFFLINE is set"):
        fetch(server.urls("good"), tmp_path / "file.gz", MD5)
    assert not server.seen and not list(tmp_path.iterdir())
    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "0")
    assert fetch(server.urls("good"), tmp_path / "file.gz", MD5).exists()


def test_a_sha256_is_that_of_the_file_as_it_is(server, tmp_path):
    path, right, wrong = tmp_path / "file.gz", *(hashlib.sha256(x).hexdigest() for x in (FILE, PLAIN))
    with pytest.raises(DownloadError, match=f"its SHA-256 is {right}, expected {wrong}"):
        fetch(server.urls("good"), path, sha256=wrong)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DownloadError, match="its SHA-256 is"):
        fetch(server.urls("broken"), path, sha256=right)
    with pytest.raises(DownloadError, match="closed after 1000 of"):
        fetch(server.urls("good-1000"), path, sha256=right)
    assert fetch(server.urls("other", "good"), path, sha256=right).read_bytes() == FILE


@pytest.mark.parametrize("content", [PLAIN, FILE, b"", b"\x1f", gzip.compress(b"", mtime=0), 2 * FILE])
def test_the_digests_of_a_file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    assert decompressed(path) == plain and md5_of(path) == hashlib.md5(plain).hexdigest()
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_large_file_is_not_read_at_once(tmp_path, zipped):
    with (gzip.open if zipped else open)(tmp_path / "file", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    assert md5_of(tmp_path / "file") == hashlib.md5(bytes(64 << 20)).hexdigest()
    tracemalloc.reset_peak()
    md5_of(tmp_path / "file"), sha256_of(tmp_path / "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_nothing_is_fetched_unchecked(server, tmp_path):
    for checks in ({}, {"md5": MD5, "sha256": "0" * 64}):
        with pytest.raises(ValueError, match="file.gz: give md5= or sha256=, one of them"):
            fetch(server.urls("good"), tmp_path / "file.gz", **checks)
    assert not server.seen


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "exists" in refused(server.urls("good"), tmp_path / "file" / "file.gz")


def test_the_cache_is_the_users_where_there_is_no_clone(monkeypatch, tmp_path):
    from diffusion_course.data import download
    monkeypatch.setattr(download, "repository_data", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "diffusion_course"
    monkeypatch.setattr(download, "repository_data", lambda: tmp_path)
    assert cache_folder() == tmp_path
