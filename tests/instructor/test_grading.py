"""Assignments and their grading: what is handed out, and that a submission cannot do what it should not."""
import csv
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import nbformat
import pytest
import torch

from diffusion_course import exercises
from diffusion_course.classroom.curriculum import find
from diffusion_course.instructor.assignment import assignment, mark, name_of, write
from diffusion_course.instructor.jail import around, landlock, plain
from diffusion_course.instructor.submission import UNLOCKED, Dead, Jail, Submission, value_of

needs_lock = pytest.mark.skipif(not landlock(), reason="this kernel has no Landlock")


@pytest.fixture(autouse=True)
def unlocked_where_it_must_be(monkeypatch):
    if not landlock():
        monkeypatch.setenv(UNLOCKED, "1")


@pytest.fixture
def submission(tmp_path):
    made = []

    def make(*cells, seconds=20):
        made.append(Submission(list(cells), tmp_path, seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One submission for many tests, for a jail takes seconds to build."""
    with pytest.MonkeyPatch.context() as patch:
        if not landlock():
            patch.setenv(UNLOCKED, "1")
        one = Submission([], tmp_path_factory.mktemp("scratch"), seconds=20)
        yield one
        one.close()


def after(one, *cells):
    """The submission when further cells have been run; they must not fail."""
    for code in cells:
        assert "error" not in one.started().ask("run", code, seconds=20)
    return one


def source_of(key):
    """Our solution with all that stands beside it, as a cell."""
    module = inspect.getmodule(exercises.find(key).solution)
    return inspect.getsource(module).replace("from ..", "from diffusion_course.")


# ---- what is handed out

@pytest.mark.parametrize("lesson", exercises.lessons())
def test_an_assignment_has_stubs_checks_and_points_and_no_solution(lesson):
    nb = assignment(find(lesson))
    nbformat.validate(nb)
    cells = {mark(cell.source): cell for cell in nb.cells if mark(cell.source)}
    text = "\n".join(cell.source for cell in nb.cells)
    for exercise in exercises.of_lesson(lesson):
        stub, check = (cells[kind, exercise.key] for kind in ("exercise", "check"))
        assert f"def {exercise.signature}:" in stub.source and not stub.metadata.nbgrader.locked
        assert check.metadata.nbgrader.locked and check.metadata.nbgrader.points == exercise.points
        body = inspect.getsource(exercise.solution).partition("\n")[2].strip()
        assert body not in text and exercise.why not in text
    question = exercises.question(lesson)
    asked = cells["question", question.key]
    assert asked.metadata.nbgrader.points == question.points == len(question.rubric)
    assert asked.metadata.nbgrader.grade and asked.metadata.nbgrader.solution
    assert question.prompt in text and question.answer not in text
    hidden = asked.source.partition("### BEGIN SOLUTION")[2].partition("### END SOLUTION")[0]
    assert all(line in hidden and text.count(line) == 1 for line in question.rubric)


def test_the_stub_of_an_assignment_is_not_solved_yet(shared):
    released = exercises.find("1.2").stub.replace("...  # your code", "raise NotImplementedError()")
    right, text = after(shared, released).verdict("1.2")
    assert right is None and "NotImplementedError" in text


def test_nothing_is_written_over(tmp_path):
    first = write(["1", "02"], tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in first] == [
        "source/lesson-01/lesson-01.ipynb", "source/lesson-02/lesson-02.ipynb", "nbgrader_config.py"]
    before = first[0].read_bytes()
    with pytest.raises(ValueError, match="lesson-02.ipynb is there already"):
        write(["03", "02"], tmp_path)
    assert not (tmp_path / "source" / "lesson-03").exists() and first[0].read_bytes() == before
    write(["03"], tmp_path)
    with pytest.raises(ValueError, match="has no exercises yet"):
        write(["09"], tmp_path)
    with pytest.raises(ValueError, match="there is no lesson 'x'"):
        write(["x"], tmp_path)


# ---- what is judged

ALL = [exercise.key for lesson in exercises.lessons() for exercise in exercises.of_lesson(lesson)]


@pytest.mark.parametrize("key", ALL)
def test_what_a_check_sends_does_not_hold_the_solution(key):
    from diffusion_course.classroom import exercise as home
    task, sent = exercises.find(key), []

    class Spy(home.Answer):
        def __call__(self, *args):
            sent.append(cloudpickle.dumps(args))
            return super().__call__(*args)

    task.check(Spy(task.solution, task), torch.Generator().manual_seed(0))
    assert sent and all(task.solution.__code__.co_code not in payload for payload in sent)


@pytest.mark.parametrize("key", ALL)
def test_solutions_pass_across_the_pipe_and_others_do_not(shared, key):
    task = exercises.find(key)
    assert after(shared, source_of(key)).verdict(key)[0] is True
    lazy = f"def {task.signature}:\n    return {task.arguments[-1]}"
    assert after(shared, lazy).verdict(key)[0] is False


def test_a_known_mistake_gets_its_hint(shared):
    mistake = source_of("13.1").replace("index[None, :] - index[:, None]", "index[:, None] - index[None, :]")
    right, text = after(shared, mistake).verdict("13.1")
    assert right is False and exercises.find("13.1").wrong[0][1] in text


def test_inputs_are_fresh(shared):
    after(shared, source_of("0.1"))
    seeds = {shared.verdict("0.1")[1].rpartition("seed ")[2] for _ in range(3)}
    assert len(seeds) == 3


def test_a_cell_that_fails_says_so_and_the_others_go_on(submission):
    one = submission("1 / 0", source_of("0.1"), "x = unknown")
    assert one.verdict("0.1")[0] is True
    assert one.errors == {0: "ZeroDivisionError: division by zero (line 1: 1 / 0)",
                          2: "NameError: name 'unknown' is not defined (line 1: x = unknown)"}


@pytest.mark.hostile
@pytest.mark.parametrize("returned", [
    "None", "...", "'text'", "{'a': 1}", "object()", "lambda x: x", "[[]] * 3", "(1, (2, (3,)))",
    "float('nan')", "torch.zeros(0)", "torch.ones(3, dtype=torch.complex64)",
    "torch.ones(2, dtype=torch.bfloat16)",
    "x0.to_sparse()", "iter(int, 1)", "type('T', (torch.Tensor,), {})()", "2**100000", "'\\ud800'",
    "np.array(['a'])"])
def test_whatever_is_returned_is_judged(shared, returned):
    answer = f"def {exercises.find('0.1').signature}:\n    x0 = torch.ones(3)\n    return {returned}"
    right, text = after(shared, "import torch, numpy as np", answer).verdict("0.1")
    assert right is not True and text


@pytest.mark.parametrize("value", [
    None, True, 7, -0.5, "text", (1, [2, (3.0,)], ()), [[0, 1], [2]], torch.zeros(0),
    torch.arange(6).reshape(2, 3).mT, (torch.ones(2), 1, torch.ones(2, 1).bool(), torch.ones(3).double())])
def test_values_come_back_as_they_were(value):
    data = bytearray()
    tree = json.loads(json.dumps(plain(value, data)))
    back, rest = value_of(tree, memoryview(data))
    assert len(rest) == 0 and type(back) is type(value)
    if isinstance(value, (str, type(None))):
        assert back == value
    else:
        torch.testing.assert_close(back, value)
    if isinstance(value, (tuple, list)):
        assert [type(item) for item in back] == [type(item) for item in value]


# ---- what is hostile

HOSTILE = {
    "hang": ("while True: pass", "it took too long"),
    "hang that catches everything": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "it took too long"),
    "exit": ("import os; os._exit(0)", "it crashed"),
    "crash": ("import ctypes; ctypes.string_at(0)", "it crashed"),
    "suicide": ("import os; os.kill(os.getpid(), 9)", "it crashed"),
    "noise in the pipe": ("import os\nfor fd in range(3, 999):\n    try: os.write(fd, b'x' * 1000)\n"
                          "    except OSError: pass", None),
}


@pytest.mark.hostile
@pytest.mark.parametrize("what", HOSTILE)
def test_a_cell_that_kills_costs_itself_only(submission, what):
    code, said = HOSTILE[what]
    one = submission(code, source_of("0.1"), seconds=10)
    assert one.verdict("0.1")[0] is True
    assert 0 in one.errors and (said is None or one.errors[0] == said)


@pytest.mark.hostile
@pytest.mark.parametrize("body", [
    "while True: pass", "import os; os._exit(1)", "return torch.zeros(2**27)", "return [x0] * 10**6"])
def test_a_function_that_kills_costs_its_own_exercise_only(submission, body):
    answer = f"def {exercises.find('0.1').signature}:\n    x0 = torch.zeros(100)\n    {body}"
    one = submission(source_of("0.2"), answer, seconds=10)
    assert one.verdict("0.1")[0] is False
    assert one.verdict("0.2")[0] is True


@pytest.mark.hostile
@needs_lock
@pytest.mark.parametrize("code", [
    "open({outside!r} + '/written', 'w')",
    "import torch; torch.save(torch.ones(1), {outside!r} + '/written')",
    "import os; os.remove({outside!r} + '/kept')",
    "import os; os.rename({outside!r} + '/kept', 'mine')",
    "import os; os.truncate({outside!r} + '/kept', 0)",
    "import os; os.symlink({outside!r} + '/kept', 'link'); open('link', 'w')",
    "open({outside!r} + '/kept').read()",
    "import os; os.listdir({outside!r})",
    "open('/etc/passwd').read()",
    "import torch; torch.from_file({solutions!r} + '/lesson_01.py', size=10, dtype=torch.uint8)",
    "open({solutions!r} + '/lesson_01.py').read()",
    "open('/proc/self/root' + {solutions!r} + '/lesson_01.py').read()",
    "import os; os.listdir({solutions!r})",
    "from diffusion_course.exercises import lesson_01",
    "import sys, importlib; del sys.modules['diffusion_course.exercises']; "
    "importlib.import_module('diffusion_course.exercises.lesson_01')",
    "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)",
    "import socket; socket.create_server(('127.0.0.1', 0))",
    "import os; os.kill(os.getppid(), 9)",
    "import os; open('/proc/%d/mem' % os.getppid(), 'rb').read(1)",
])
def test_the_lock_holds(shared, tmp_path_factory, code):
    import socket
    if landlock() < (6 if "os.kill" in code else 4 if "socket" in code else 1):
        pytest.skip("this kernel locks files only")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        solutions = str(Path(exercises.__file__).parent)
        code = code.format(outside=str(outside), solutions=solutions, port=server.getsockname()[1])
        answer = shared.started().ask("run", code, seconds=20)
    assert "rror" in answer["error"], answer
    assert [path.name for path in outside.iterdir()] == ["kept"] and (outside / "kept").read_text() == "kept"


@needs_lock
def test_what_a_submission_may_do(submission, tmp_path):
    one = submission("open('mine.txt', 'w').write('x'); assert open('mine.txt').read() == 'x'",
                     "import os; os.mkdir('a'); os.rename('mine.txt', 'a/b'); os.remove('a/b')",
                     "import torch, numpy, matplotlib, sklearn.datasets, diffusion_course.papers.ddpm",
                     "from diffusion_course.exercises import check, hint\ncheck('0.1', print)")
    one.started()
    assert one.errors == {} and (tmp_path / "a").is_dir() and not (tmp_path / "mine.txt").exists()


def test_a_system_without_a_lock_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("diffusion_course.instructor.submission.landlock", lambda: 0)
    monkeypatch.delenv(UNLOCKED, raising=False)
    with pytest.raises(RuntimeError, match=f"cannot lock up.*{UNLOCKED}=1"):
        Jail(tmp_path)


@pytest.mark.hostile
def test_a_jail_says_when_it_is_dead(tmp_path):
    jail = Jail(tmp_path)
    try:
        with pytest.raises(Dead):
            jail.ask("run", "import os; os._exit(0)", seconds=20)
        with pytest.raises((Dead, OSError)):
            jail.ask("run", "1", seconds=20)
    finally:
        jail.close()


def test_around_leaves_out_what_is_hidden_and_nothing_else(tmp_path):
    for name in "a/b/c", "a/d", "e":
        (tmp_path / name).mkdir(parents=True)
    assert set(around(tmp_path, tmp_path / "a" / "b")) == {tmp_path / "a" / "d", tmp_path / "e"}
    assert list(around(tmp_path, Path("/elsewhere"))) == [tmp_path]
    assert list(around(tmp_path, tmp_path)) == []


# ---- a course, from assignment to grades

PERFECT = {key: None for key in ("0.1", "0.2", "0.3")}


def handed_in(released, folder, student, solved, strip=False, change=None):
    """What a student sends in of the released notebook: these exercises solved, perhaps through Colab."""
    nb = nbformat.read(released, 4)
    for cell in nb.cells:
        kind, key = mark(cell.source) or ("", "")
        if kind == "exercise" and key in solved:
            cell.source = f"# exercise {key}\n{solved[key] or source_of(key)}"
        if kind == "question" and solved:
            cell.source = f"<!-- question {key} -->\nBecause."
        if strip:
            cell.metadata.clear()
    if change:
        change(nb)
    nbformat.write(nb, folder / f"{student}_lesson-00.ipynb")


def tampered(nb):
    for cell in nb.cells:
        kind, key = mark(cell.source) or ("", "")
        if kind == "check":
            cell.source, cell.metadata.nbgrader["points"] = f"# check {key}\nprint('correct')", 1000
    nb.cells[-1:] = [nbformat.v4.new_code_cell("# check 0.1"), nbformat.v4.new_code_cell("# check 99.1"),
                     nbformat.v4.new_code_cell("1", metadata={"nbgrader": {"grade_id": "check-0-1"}})]


def test_from_assignment_to_grades(tmp_path):
    pytest.importorskip("nbgrader")
    course, pwned = tmp_path / "course", tmp_path / "written"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"HOME": str(tmp_path), "PATH": path}

    def run(*command):
        done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    course.mkdir()
    run("diffusion-course", "assignment", "0", "--out", str(course))
    config, exchange, sent = course / "nbgrader_config.py", tmp_path / "exchange", tmp_path / "sent"
    exchange.mkdir(mode=0o777), exchange.chmod(0o777), sent.mkdir()
    config.write_text(config.read_text() + f"""
c = get_config()
c.Judge.seconds = 15
c.CourseDirectory.course_id = "diffusion"
c.Exchange.root = {str(exchange)!r}
""")
    run("nbgrader", "generate_assignment", "lesson-00")
    run("nbgrader", "release_assignment", "lesson-00")
    released = exchange / "diffusion" / "outbound" / "lesson-00" / "lesson-00.ipynb"
    text = released.read_text()
    assert "YOUR ANSWER HERE" in text and "raise NotImplementedError" in text
    assert not any(line in text for line in exercises.question("00").rubric)

    kill = "os.kill(os.getppid(), 9)" if landlock() >= 6 else "pass"           # nothing holds it back before
    attack = {
        "0.1": f"from diffusion_course.exercises.lesson_00 import {exercises.find('0.1').solution.__name__}",
        "0.2": f"open({str(pwned)!r}, 'w').write('x')",
        "0.3": f"import os\ntry: {kill}\nexcept OSError: pass\nwhile True: pass"}
    handed_in(released, sent, "perfect", PERFECT)
    handed_in(released, sent, "colab", PERFECT, strip=True)
    alone = f"import math, torch\n{inspect.getsource(exercises.find('0.1').solution)}"
    fails = f"def {exercises.find('0.3').signature}:\n    1 / 0"
    handed_in(released, sent, "partial", {"0.1": alone, "0.3": fails})
    handed_in(released, sent, "hostile", attack, change=tampered)
    shutil.make_archive(str(course / "downloaded" / "lesson-00" / "archive" / "all"), "zip", sent)
    run("nbgrader", "zip_collect", "lesson-00")
    run("nbgrader", "autograde", "lesson-00")
    run("nbgrader", "generate_feedback", "lesson-00")
    run("nbgrader", "export", "--to", "grades.csv")

    rows = {row["student_id"]: row for row in csv.DictReader(open(course / "grades.csv"))}
    points = [exercise.points for exercise in exercises.of_lesson("00")]
    most = sum(points) + exercises.question("00").points
    assert {name: float(row["raw_score"]) for name, row in rows.items()} == {
        "perfect": sum(points), "colab": sum(points), "partial": points[0], "hostile": 0}
    assert all(float(row["max_score"]) == most for row in rows.values())
    assert not pwned.exists() or not landlock()
    feedback = (course / "feedback" / "partial" / "lesson-00" / "lesson-00.html").read_text()
    assert "ZeroDivisionError" in feedback and "not solved yet" in feedback and "correct" in feedback
    graded = nbformat.read(course / "autograded" / "hostile" / "lesson-00" / "lesson-00.ipynb", 4)
    checks = [cell for cell in graded.cells if "nbgrader" in cell.metadata and cell.metadata.nbgrader.locked]
    assert len(checks) == 3 and all("assert check(" in cell.source for cell in checks)
    names = {cell.metadata.nbgrader.grade_id for cell in checks}
    assert names == {name_of("check", f"0.{n}") for n in (1, 2, 3)}
    shutil.rmtree(course)
