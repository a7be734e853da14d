"""Lessons without a browser: what is written when a notebook runs, fails, hangs, dies or is interrupted."""
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from test_cli import call

from diffusion_course.classroom import curriculum, runner
from diffusion_course.classroom.runner import WIDGET, LessonError, clean, pictures, run

PICTURE = """\
from IPython.display import HTML, display
from PIL import Image
import base64, io
def encoded(format, colour):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, format)
    return base64.b64encode(out.getvalue()).decode()
gif = f'<img alt="a" src="data:image/gif;base64,{encoded("gif", "red")}">'
display({"image/png": encoded("png", "blue")}, raw=True)
HTML(gif + '<video src="data:video/mp4;base64,AAAA"></video>')"""
PLACE = """\
import os, sys
print(sys.executable, os.getcwd(), os.environ.get("DIFFUSION_COURSE_PRESET"), os.getpid())"""
SLIDER = "import ipywidgets\nipywidgets.IntSlider()"
PROGRESS = "from tqdm import tqdm\nfor _ in tqdm(range(7)): pass\nprint(1, flush=True)\nprint(2)"
GOES_ON = "for number in range(3): print(number, flush=True)"
FAILS = "x = 1\nassert x == 2, 'first line\\nx is 1'"
NEVER = "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)"


def written(path, *cells):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A lesson")], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nb.cells += [nbformat.v4.new_code_cell(source, execution_count=99, outputs=[
        nbformat.v4.new_output("stream", text="of an earlier run")]) for source in cells]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nb, path)
    return path


def outcome(path):
    """(execution count, what was printed) of every code cell."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [(cell.execution_count, "".join(output.get("text", "") for output in cell.outputs))
            for cell in cells]


def is_alive(pid):
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFUSION_COURSE_PRESET", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A lesson that runs to its end, in the presence of another kernel called python3."""
    folder = tmp_path_factory.mktemp("finished")
    other = folder / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "other"}))
    path = written(folder / "lessons" / "01_ddpm.ipynb", PLACE, PICTURE, "", SLIDER, PROGRESS)
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("JUPYTER_DATA_DIR", str(folder / "jupyter"))
        done = run(path, folder / "out", preset="smoke")
    assert path.read_bytes() == before
    return done


def test_a_lesson_runs_where_it_is_in_this_interpreter(finished):
    python, folder, preset, pid = outcome(finished.notebook)[0][1].split()
    assert python == sys.executable and Path(folder) == finished.notebook.parents[1] / "lessons"
    assert preset == "smoke" and not is_alive(pid)


def test_the_executed_notebook_is_whole(finished):
    assert [count for count, _ in outcome(finished.notebook)] == [1, 2, 99, 3, 4]
    text = finished.notebook.read_text()
    assert "of an earlier run" not in text.replace(outcome(finished.notebook)[2][1], "")
    nbformat.validate(nbformat.read(finished.notebook, as_version=4))


def test_pictures_become_files(finished):
    folder = finished.notebook.with_suffix("")
    assert finished.figures == [folder / "01.png", folder / "02.gif", folder / "03.mp4"]
    assert sorted(folder.iterdir()) == finished.figures
    blue, red = (Image.open(path).convert("RGB").getpixel((1, 1)) for path in finished.figures[:2])
    assert (blue, red) == ((0, 0, 255), (255, 0, 0)) and finished.figures[2].read_bytes() == b"\0\0\0"


def test_no_widgets_and_no_overwritten_progress_stay(finished):
    assert "widget" not in finished.notebook.read_text().replace("import ipywidgets", "").replace(
        "ipywidgets.IntSlider", "")
    text = outcome(finished.notebook)[-1][1]
    assert "\r" not in text and text.count("7/7") == text.count("\n") - 2 == 1
    assert "1\n2\n" in text


def test_it_says_where_everything_is(finished):
    lines = str(finished).splitlines()
    usage = r"; \d+\.\d minutes of processor time, \d\.\d GB" if finished.usage else ""      # no Linux
    assert re.fullmatch(r"01_ddpm ran in \d+\.\d minutes" + usage, lines[0]) and finished.minutes > 0
    assert lines[1:] == [f"notebook  {finished.notebook}",
                         f"figures   {finished.notebook.with_suffix('')} (3)"]


def test_a_failing_cell_is_named_and_what_ran_is_kept(tmp_path):
    path = written(tmp_path / "lessons" / "02_x.ipynb", PICTURE, FAILS, GOES_ON)
    with pytest.raises(LessonError) as error:
        run(path, "out")
    assert str(error.value) == ("02_x.ipynb failed in cell [2], `x = 1`: AssertionError: x is 1; "
                                "the notebook up to there is out/02_x.ipynb")
    nb = nbformat.read("out/02_x.ipynb", as_version=4)
    assert [cell.execution_count for cell in nb.cells[1:]] == [1, 2, None]
    assert nb.cells[2].outputs[0].ename == "AssertionError" and nb.cells[3].outputs == []
    assert Path("out/02_x/01.png").exists()


def test_a_cell_that_takes_too_long(tmp_path):
    path = written(tmp_path / "lessons" / "02_x.ipynb", PLACE, NEVER)
    with pytest.raises(LessonError, match=r"cell \[2\], `import pathlib, time`: .* timeout=20 seconds"):
        run(path, "out", timeout=20)
    place, never = outcome("out/02_x.ipynb")
    assert never == (2, "") and not is_alive(place[1].split()[-1])


@pytest.mark.fault
def test_a_kernel_that_dies(tmp_path):
    path = written(tmp_path / "lessons" / "02_x.ipynb", GOES_ON, "import os\nos._exit(1)")
    with pytest.raises(LessonError, match=r"cell \[2\], `import os`: the kernel died"):
        run(path, "out")
    assert outcome("out/02_x.ipynb")[0] == (1, "0\n1\n2\n")


TRAINS = """
import os
from diffusion_course.training.runs import begin
numbers = {"steps": 8, "batch_size": 4}
trainer, batches = begin("ddpm", "runs/mine", "smoke", "digits", resume=True, cpu=True, save_every=2,
                         recipe={"width": 8, "size": 8}, numbers=numbers)
print("from step", trainer.step)
for progress in trainer.run(batches):
    if progress.step == DIE and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), 9)
print(trainer.losses)
"""


@pytest.mark.fault
def test_a_kernel_restarted_in_mid_lesson(tmp_path):
    """Training goes on from where it was saved, to the same losses, when all cells are run again."""
    path = written(tmp_path / "lessons" / "02_x.ipynb", GOES_ON, TRAINS.replace("DIE", "99"))
    run(path, "out")
    began, losses = outcome("out/02_x.ipynb")[1][1].splitlines()
    assert began == "from step 0"
    Path("lessons/runs/mine").rename("lessons/runs/whole")
    path = written(tmp_path / "lessons" / "02_x.ipynb", GOES_ON, TRAINS.replace("DIE", "5"))
    with pytest.raises(LessonError, match=r"cell \[2\], `import os`: the kernel died"):
        run(path, "out")
    run(path, "out")
    assert outcome("out/02_x.ipynb")[1][1].splitlines() == ["from step 4", losses]


def test_figures_of_an_earlier_run_are_replaced(tmp_path):
    path = written(tmp_path / "lessons" / "02_x.ipynb", GOES_ON)
    Path("out/02_x").mkdir(parents=True)
    for name in ("01.png", "17.gif", "notes.txt"):
        Path("out/02_x", name).touch()
    assert run(path, "out").figures == []
    assert [old.name for old in Path("out/02_x").iterdir()] == ["notes.txt"]


def test_the_lesson_itself_is_never_overwritten(tmp_path):
    path = written(tmp_path / "lessons" / "02_x.ipynb", GOES_ON)
    with pytest.raises(ValueError, match="out=lessons holds the lesson itself"):
        run(path, "lessons")
    assert outcome(path)[0] == (99, "of an earlier run")


def test_what_cannot_be_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.ipynb: no such notebook; .* which are ready"):
        run("nowhere.ipynb")
    path = written(tmp_path / "lessons" / "02_x.ipynb", GOES_ON)
    with pytest.raises(ValueError, match="preset='huge' must be smoke"):
        run(path, preset="huge")
    assert not Path("runs").exists()


@pytest.mark.parametrize("package", ["nbclient", "nbformat", "ipykernel"])
def test_without_jupyter(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'diffusion-course\[lab\]'"):
        run(tmp_path / "x.ipynb")


# ---- from the command line

def test_run_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(curriculum, "repository_data", lambda: tmp_path / "data")
    path = written(tmp_path / "lessons" / "01_ddpm.ipynb", PLACE)
    done = call("run", "1", "--preset", "laptop", "--timeout", 60)
    assert done.code == 0 and "notebook  runs/lessons/01_ddpm.ipynb\n" in done.out
    assert "1/1" in done.err and done.err.count("\n") == 1     # the progress stays on one line
    assert " laptop " in outcome("runs/lessons/01_ddpm.ipynb")[0][1]
    written(path, FAILS)
    failed = call("run", "ddpm", "--out", "new")
    assert failed.code == 1 and "error: 01_ddpm.ipynb failed in cell [1]" in failed.err
    assert "Traceback" not in failed.err and Path("new/01_ddpm.ipynb").exists()
    missing = call("run", "02")
    assert missing.code == 1 and "02_ddim_guidance.ipynb: no such notebook" in missing.err


def test_ctrl_c_keeps_what_ran_and_ends_the_kernel(tmp_path):
    path = written(tmp_path / "lessons" / "01_ddpm.ipynb", PLACE, NEVER)
    code = f"from diffusion_course import cli; from diffusion_course.classroom import curriculum\n" \
           f"from pathlib import Path; import sys; curriculum.notebook = lambda _: Path({str(path)!r})\n" \
           f"sys.argv = ['diffusion-course', 'run', '1', '--out', 'out']; cli.main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    try:
        deadline = time.monotonic() + 300
        while not (path.parent / "begun").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopped; the notebook up to there is out/01_ddpm.ipynb" in err and "Traceback" not in err
    place, never = outcome("out/01_ddpm.ipynb")
    assert place[0] == 1 and never[1] == "" and not is_alive(place[1].split()[-1])


# ---- without a kernel

def display(**data):
    return nbformat.v4.new_output("display_data", data=data)


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


def test_clean():
    nb = nbformat.v4.new_notebook(metadata={"widgets": {"state": 1}, "kept": 1})
    nb.cells = [nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("code", outputs=[
        stream("a"), stream("b\n"), display(**{WIDGET: {}, "text/plain": "a slider"}),
        stream("\r 0%", "stderr"), stream("\r50%\r100%", "stderr"), stream("c\n"),
        stream("\nend\r\n", "stderr"),
        display(**{"text/plain": "kept"}), stream("d")])]
    assert clean(nb) is nb and nb.metadata == {"kept": 1}
    outputs = nb.cells[1].outputs
    assert [output.get("text", output.get("data")) for output in outputs] == [
        "ab\nc\n", "100%\nend\r\n", {"text/plain": "kept"}, "d"]
    assert clean(nb).cells[1].outputs == outputs


def test_pictures_in_their_order():
    html = '<img src="data:image/gif;base64,R0lG"><img src="data:image/png;base64,AAAA">'
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(html), nbformat.v4.new_code_cell(
        outputs=[display(**{"text/html": html}), display(**{"image/png": "iVBO", "text/html": "<img>"})])])
    assert list(pictures(nb)) == [("gif", b"GIF"), ("png", b"\x89PN")]


def test_a_kernel_is_not_imported_with_the_runner():
    code = f"import sys, {runner.__name__}; print([m for m in ('nbclient', 'torch') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
