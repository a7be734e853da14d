"""What lessons cost: how it is measured, kept and told."""
import re
from pathlib import Path

import nbformat
import pytest

from diffusion_course.classroom import costs, runner
from diffusion_course.classroom.curriculum import LESSONS, find, ready
from diffusion_course.classroom.runner import Run

ROW = {"minutes": 4.16, "memory": 1.23}
COSTS = {"00": {"smoke": ROW | {"minutes": 0.42}, "laptop": ROW, "t4": ROW | {"minutes": 11.6}},
         "13": {"laptop": ROW}}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured on Linux")
def test_what_a_kernel_used_is_measured(tmp_path):
    """Its own clock of the processor is read, here one that stands still, and the peak of its memory."""
    clock = "import time\ntime.process_time = lambda: 90.0\n"
    notebooks = {"busy": clock + "bytearray(b'1') * 400_000_000\nx = 1", "idle": clock}
    used = {}
    for name, source in notebooks.items():
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
        used[name] = runner.run(tmp_path / f"{name}.ipynb", tmp_path / "out").usage
    assert used["busy"]["processor"] == used["idle"]["processor"] == 1.5
    assert used["busy"]["memory"] - used["idle"]["memory"] == pytest.approx(0.4, abs=0.05)


def test_a_run_takes_the_place_of_the_one_before(tmp_path):
    file, lesson = tmp_path / "costs.json", find(13)
    for minutes in (2.0, 1.0):
        costs.keep(lesson, "smoke", Run(Path("13"), [], 9.0, {"processor": minutes, "memory": 0.9}), file)
    costs.add(find(1), "t4", {"minutes": 5.0, "memory": 2.0, "how": "computed"}, file)
    found = costs.read(file)
    assert list(found) == ["01", "13"] and found["13"]["smoke"]["minutes"] == 1.0
    assert found["13"]["smoke"]["how"] == "measured" and found["01"]["t4"]["how"] == "computed"


def test_where_nothing_is_known_nothing_is_kept(tmp_path):
    with pytest.raises(ValueError, match="on Linux without a GPU"):
        costs.keep(find(13), "smoke", Run(Path("13"), [], 9.0, {}), tmp_path / "costs.json")
    assert not (tmp_path / "costs.json").exists()


def test_the_table_has_a_row_for_every_lesson_that_is_ready():
    rows = costs.markdown_table(COSTS, folder="").splitlines()
    assert len(rows) == 3 + sum(map(ready, LESSONS))
    assert rows[2] == ("| [00 · Start here](00_start_here.ipynb) | 25 s, 1.2 GB | 4.2 min, 1.2 GB "
                       "| 12 min, 1.2 GB |")
    assert rows[-1] == "| all | 25 s | 8.3 min | 12 min |"
    assert any(re.match(r"\| \[13 · [^|]*\) \|  \| 4.2 min, 1.2 GB \|  \|", row) for row in rows)


def test_a_title_says_what_its_lesson_costs():
    assert costs.summary(find(0), COSTS) == ("laptop: 4.2 min, 1.2 GB (one CPU core, measured); "
                                             "Colab T4: 12 min, 1.2 GB (computed)")


def test_the_course_keeps_to_its_own_limits():
    """A lesson takes less than 45 seconds in smoke, and all of them less than ten minutes of two cores."""
    for lesson in filter(ready, LESSONS):
        own = costs.read()[f"{lesson.number:02}"]
        assert {name: row["how"] for name, row in own.items()} == {
            "smoke": "measured", "laptop": "measured", "t4": "computed"}, lesson.name
        assert own["smoke"]["minutes"] * 60 < 45 and own["t4"]["minutes"] < 30, lesson.name
        assert own["laptop"]["minutes"] < 20 and max(row["memory"] for row in own.values()) < 15, lesson.name
    assert sum(own["smoke"]["minutes"] for own in costs.read().values()) < 2 * 10


def test_the_readme_shows_the_table_of_today():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    shown = re.search(r"<!-- costs -->\n\n(.*?)\n\n<!-- /costs -->", text, re.DOTALL)[1]
    assert shown == costs.markdown_table()
