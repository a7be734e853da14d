"""A lesson as Google Colab runs it: Colab's packages, an empty folder, and no clone of the course.

A server of this machine stands in for raw.githubusercontent.com; no other host answers.
"""
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest

from diffusion_course.classroom import curriculum, runner
from diffusion_course.classroom.runner import this_interpreter
from diffusion_course.data.download import REF, REPOSITORY
from diffusion_course.exercises import find
from diffusion_course.instructor import badges
from diffusion_course.training.shipped import SHIPPED, file_of

pytestmark = pytest.mark.colab

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "lessons").glob("*.ipynb"))
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
# Colab's versions are older than those of the lock, so that an upgrade would be seen.  Torch is the lock's.
COLAB = ["numpy==2.0.2", "matplotlib==3.10.0", "ipython==7.34.0", "ipykernel==6.17.1",
         *(line for line in LOCK if line.startswith("torch=="))]
WIDGETS = ["ipywidgets==7.7.1", "ipython_genutils==0.2.0"]  # without what they need in a browser
STAND_IN = """
import http.client, os
from urllib.error import URLError
from urllib.request import HTTPHandler, HTTPSHandler, ProxyHandler, build_opener, install_opener

class StandIn(HTTPSHandler, HTTPHandler):
    def https_open(self, request):
        if request.host != "raw.githubusercontent.com":
            raise URLError(f"no route to {request.host}")
        request.host = os.environ["STAND_IN"]
        return self.do_open(http.client.HTTPConnection, request)

    http_open = https_open

install_opener(build_opener(StandIn, ProxyHandler({})))
"""
NO_SOURCE = "os.environ['DIFFUSION_COURSE_SOURCE'] = '/no/such/source'"
WHERE = "import torch, diffusion_course\nprint(diffusion_course.__file__, torch.__file__, os.listdir())"
OBTAIN = """
from diffusion_course.training.checkpoints import obtain
try:
    print(obtain("{}"))
except FileNotFoundError as error:
    print(error)"""


class Handler(SimpleHTTPRequestHandler):
    """Serves github/OWNER/NAME/REF/..., and keeps what was asked for."""

    def log_message(self, *args):
        pass

    def log_request(self, *args):
        self.server.asked.append(self.path.removeprefix(f"/{REPOSITORY}/{REF}/data/"))


class Colab:
    """A machine of Colab's: its Python, its folders, and the server that is its GitHub."""

    def __init__(self, folder: Path, server: ThreadingHTTPServer):
        self.folder, self.asked, self.address = folder, server.asked, "{}:{}".format(*server.server_address)
        self.source = folder / "github" / REPOSITORY / REF
        self.content, self.cache = folder / "content", folder / "cache" / "diffusion_course"
        self.content.mkdir(), (folder / "home").mkdir()
        self.copy_the_course()
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        self.site = next(folder.glob("venv/lib/python*/site-packages"))
        theirs = [line.partition("==")[0] for line in COLAB + WIDGETS]
        ours = [line for line in LOCK if line.partition("==")[0] not in theirs]
        (folder / "constraints.txt").write_text("\n".join(ours))
        self.run("python", "-m", "pip", "install", "-q", *COLAB)
        self.run("python", "-m", "pip", "install", "-q", "--no-deps", *WIDGETS)
        (self.site / "stand_in.py").write_text(STAND_IN)
        (self.site / "stand_in.pth").write_text("import stand_in\n")

    def copy_the_course(self) -> None:
        """What git has, or would add: pip builds where its source is, and the clone is to stay clean."""
        list_files = ["git", "ls-files", "-zco", "--exclude-standard"]
        names = subprocess.check_output(list_files, cwd=ROOT, text=True).split("\0")
        for name in (name for name in names if (ROOT / name).is_file()):
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.source / name)

    def environment(self, **changes) -> dict[str, str]:
        outer = {name: value for name, value in os.environ.items()
                 if not name.startswith(("DIFFUSION_COURSE_", "PYTHON", "JUPYTER"))}
        return outer | {"HOME": str(self.folder / "home"), "XDG_CACHE_HOME": str(self.cache.parent),
                        "STAND_IN": self.address, "DIFFUSION_COURSE_SOURCE": "/no/such/source",
                        "DIFFUSION_COURSE_PRESET": "smoke", "OMP_NUM_THREADS": "1",
                        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                        "PIP_CONSTRAINT": str(self.folder / "constraints.txt")} | changes

    def run(self, command: str, *args, **changes) -> str:
        """What a command prints in the folder of the notebooks."""
        done = subprocess.run([self.folder / "venv" / "bin" / command, *args], cwd=self.content, text=True,
                              env=self.environment(**changes), capture_output=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def notebook(self, cells: list[str], **changes) -> list[str]:
        """What each cell prints, in a new kernel; a LessonError names the one that fails."""
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "this_interpreter", self.kernel)
            runner.execute(nb, self.content / "colab.ipynb", self.environment(**changes), timeout=300)
        return ["".join(output.get("text", "") for output in cell.outputs) for cell in nb.cells]

    def kernel(self):
        kernel = this_interpreter()
        kernel.kernel_spec.argv[0] = str(self.folder / "venv" / "bin" / "python")
        return kernel

    def packages(self) -> dict[str, int]:
        """NAME-VERSION.dist-info of all that is installed, and when that was."""
        return {path.name: path.stat().st_mtime_ns for path in self.site.glob("*.dist-info")}


def code(lesson: int | str) -> list[str]:
    """The code cells of a lesson."""
    nb = nbformat.read(ROOT / "lessons" / curriculum.find(lesson).file, as_version=4)
    return [cell.source for cell in nb.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colab")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder / "github"))
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield Colab(folder, server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        # A gigabyte that pytest would keep, and that some disks take a minute to be rid of.
        subprocess.run(["sh", "-c", 'rm -rf "$0" > /dev/null 2>&1 &', folder / "venv"])


@pytest.fixture(scope="module")
def start(machine):
    """Lesson 00 on a new machine, its setup cell twice: what was installed before, what the cells print."""
    setup, *others = code(0)
    before = machine.packages()
    return before, machine.notebook([setup, NO_SOURCE, setup, WHERE, *others],
                                    DIFFUSION_COURSE_SOURCE=str(machine.source))


@pytest.fixture
def colab(machine, start):
    """The machine with the package: what the setup cell installed, and could not install again."""
    return machine


def test_the_setup_cell_installs_the_package_and_touches_nothing_else(machine, start):
    before, (said, _, again, where, *_) = start
    assert re.search(r"^diffusion_course [\d.]+, torch 2\S+, CPU \(1 threads\)\n"
                     r"preset smoke, seed 0, data digits", said, re.MULTILINE)
    assert "scikit-learn's 1,797 digits instead" in said and again and said.endswith(again)
    package, torch, *files = where.split()
    assert Path(package).parents[1] == Path(torch).parents[1] == machine.site and files == ["[]"]
    after = machine.packages()
    assert before.items() <= after.items() and len(after) > len(before)


@pytest.mark.parametrize("lesson", [1, 13])
def test_a_lesson_runs_and_fetches_what_it_needs_once(colab, lesson):
    before, cells, first = colab.packages(), code(lesson), len(colab.asked)
    colab.notebook(cells)
    needs = re.findall(r'(?:load_or_train|results|obtain|load_probe)\("([\w-]+)"', "\n".join(cells))
    assert needs and {file_of(slug) for slug in needs} <= set(colab.asked)
    asked = colab.asked[first:]
    assert len(set(asked)) == len(asked) and set(asked) <= {file_of(slug) for slug in SHIPPED}
    for name in asked:
        assert (colab.cache / name).read_bytes() == (ROOT / "data" / name).read_bytes()
    assert colab.packages() == before


@pytest.mark.parametrize("slug", ["dit-class", "samplers"])
def test_what_is_fetched_is_checked_and_kept(colab, slug):
    name = file_of(slug)
    kept, there = colab.cache / name, colab.source / "data" / name
    content = there.read_bytes()
    there.write_bytes(b"not " + content)
    assert "its SHA-256 is " in colab.run("python", "-c", OBTAIN.format(slug)) and not kept.exists()
    there.write_bytes(content)
    for _ in range(2):
        assert colab.run("python", "-c", OBTAIN.format(slug)) == f"{kept}\n" and kept.read_bytes() == content
    assert colab.asked.count(name) == 2


def test_without_a_network_a_model_is_trained(colab, tmp_path):
    cells = ['from diffusion_course.classroom import load_or_train\nready = load_or_train("ddpm")'] * 2
    for said in colab.notebook(cells, STAND_IN="127.0.0.1:1", XDG_CACHE_HOME=str(tmp_path)):
        assert "checkpoints/ddpm.safetensors cannot be had" in said and "Connection refused" in said
        assert "so it is trained here, at the preset smoke" in said
        assert "ddpm: trained here and kept in runs/ddpm" in said
    assert (colab.content / "runs" / "ddpm" / "model.safetensors").exists()


def test_an_exercise_is_solved(colab):
    answer = find("0.1").solution
    cells = ["import torch\nfrom diffusion_course.exercises import check, progress, solution",
             inspect.getsource(answer), f'solution("0.1")\ncheck("0.1", {answer.__name__})\nprogress()']
    said = colab.notebook(cells)[-1]
    assert inspect.getsource(answer) in said and re.search(r"0\.1 .*: correct\. \d point", said)
    assert re.search(r"lesson 00 .* 1 of 3 exercises", said)


def test_the_doctor_finds_nothing(colab):
    assert f"downloads are kept in {colab.cache}" in colab.run("diffusion-course", "doctor")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_installed_is_this_repository(path):
    *_, address = badges.addresses(REPOSITORY, REF)
    assert f'source = "{address}"\n' in code(path.name)[0]
