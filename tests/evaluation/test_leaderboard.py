import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from diffusion_course.classroom.board import quality_against_compute
from diffusion_course.evaluation import leaderboard
from diffusion_course.training import checkpoints, container
from diffusion_course.training.shipped import SHIPPED


def row(model="a", value=3.0, real=0.5, shape=(1, 32, 32), **changes):
    return {"model": model, "paper": "ddpm", "kwargs": {}, "data": "mnist", "shape": list(shape),
            "parameters": 1_250_000, "training": {"steps": 10, "batch_size": 8, "flops": 2.5e15,
                                                  "minutes": 12.0, "device": "cpu", "seed": 0},
            "sampling": {"steps": 50, "step": "ddim_step"}, "evaluations": 50.0, "n": 1024, "seed": 0,
            "device": "cpu", "sha256": "0" * 64, "probes": {},
            "metrics": {"frechet": {"value": value, "real": real, "spread": 0.25},
                        "readable": {"value": 0.789, "real": 0.99, "spread": 0.01}}} | changes


def test_what_is_added_is_read_again(tmp_path):
    path = tmp_path / "deep" / "board.jsonl"
    for name in "abc":
        assert leaderboard.add(row(name), path) == path
    assert leaderboard.read(path) == [row(name) for name in "abc"]
    assert {p.name for p in path.parent.iterdir()} == {"board.jsonl", ".board.jsonl.lock"}
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("changes, rows", [
    ({}, 1), ({"sha256": "1" * 64}, 1), ({"device": "cuda"}, 1), ({"model": "b"}, 2), ({"data": "digits"}, 2),
    ({"n": 512}, 2), ({"seed": 1}, 2), ({"sampling": {"steps": 20, "step": "heun_step"}}, 2)])
def test_a_row_takes_the_place_of_the_same_measurement_only(tmp_path, changes, rows):
    path = tmp_path / "board.jsonl"
    leaderboard.add(row(), path)
    leaderboard.add(row("other"), path)
    leaderboard.add(row(value=2.0, **changes), path)
    found = leaderboard.read(path)
    assert len(found) == rows + 1
    assert found[0 if rows == 1 else -1]["metrics"]["frechet"]["value"] == 2.0


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", '{"metrics": {}}', '{"metrics": {"frechet": 1}}',
                                  '{"metrics": {"frechet": {"value": null}}}'])
def test_a_broken_line_is_named_and_nothing_is_lost(tmp_path, line):
    path = tmp_path / "board.jsonl"
    leaderboard.add(row(), path)
    before = path.read_text() + line + "\n" + json.dumps(row("b")) + "\n"
    path.write_text(before)
    with pytest.raises(ValueError, match=r"board.jsonl, line 2: not a row of a leaderboard"):
        leaderboard.add(row("c"), path)
    assert path.read_text() == before


def test_a_row_that_cannot_be_written_leaves_the_board_as_it_was(tmp_path):
    path = tmp_path / "board.jsonl"
    leaderboard.add(row(), path)
    with pytest.raises(TypeError):
        leaderboard.add(row("b", kwargs={"x": object()}), path)
    assert leaderboard.read(path) == [row()]
    assert {p.name for p in tmp_path.iterdir()} == {"board.jsonl", ".board.jsonl.lock"}


def test_no_board():
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl: no such leaderboard; .*evaluate"):
        leaderboard.read("nowhere.jsonl")


def test_the_table_has_the_best_first_and_the_real_number_beside_each():
    video = row("film", shape=(1, 8, 16, 16), data="moving_mnist",
                metrics={"frechet": {"value": 7.0, "real": 1.5}, "runs": {"value": 0.25, "real": 0.875}})
    lines = leaderboard.table([row("worse", 9.0), video, row("better", 2.0)], markdown=True).splitlines()
    names = [cell.strip() for cell in lines[0].strip("|").split("|")]
    first = dict(zip(names, (cell.strip() for cell in lines[2].strip("|").split("|"))))
    assert first["model"] == "better" and lines[3].startswith("| worse")
    assert first["frechet"] == "2 ± 0.25 (0.5)" and first["readable"] == "0.789 ± 0.01 (0.99)"
    assert first["training"] == "2.50 PFLOP, 12 min cpu" and first["weights"] == "1.25 M"
    assert first["sampling"] == "ddim 50, 50 evaluations" and first["data"] == "mnist 32x32"
    assert "runs" not in names and lines[4] == ""              # videos have a table of their own
    assert "| film | moving_mnist 8x16x16 |" in lines[7] and "0.25 (0.875)" in lines[7]
    text = leaderboard.table([row("worse", 9.0), row("better", 2.0)])
    assert text.index("better") < text.index("worse") and "readable  0.789 ± 0.01 (0.99)\n" in text
    assert leaderboard.table([]) == "nothing has been evaluated yet"


def test_the_plot_shows_every_data_set():
    one = quality_against_compute([row("a", 9.0), row("b", 2.0)])
    two = quality_against_compute([row("a", 9.0), row("b", 2.0), row("c", 4.0, data="digits")])
    width = lambda picture: Image.open(io.BytesIO(picture.content)).width
    assert width(two) > 1.9 * width(one)
    assert one.alt == "Frechet distance of 2 models against their training compute; the least, 2, has b."
    with pytest.raises(ValueError, match="the leaderboard is empty"):
        quality_against_compute([])


# ---- the board that ships

ROOT = Path(__file__).parents[2]


def test_every_row_is_of_a_checkpoint_that_ships():
    rows = leaderboard.read(ROOT / "data/results/leaderboard.jsonl")
    assert "ddpm" in {row["model"] for row in rows}
    for row in rows:
        assert row["sha256"] == SHIPPED[row["model"]].sha256, f"evaluate {row['model']} again"
        assert row["probes"] == {name: SHIPPED[name].sha256 for name in ("frame_probe", "video_probe")}
        header, training = container.read_header(checkpoints.shipped(row["model"])), row["training"]
        steps = checkpoints.steps_in_all(header)               # with those of the model it began with
        assert (training["steps"], training["batch_size"]) == (steps, header["batch_size"])


def test_the_readme_has_the_board():
    readme = (ROOT / "README.md").read_text()
    block = re.search("<!-- leaderboard -->\n(.*?)\n<!-- /leaderboard -->", readme, re.DOTALL)
    rows = leaderboard.read(ROOT / "data/results/leaderboard.jsonl")
    assert block and block[1].strip() == leaderboard.table(rows, markdown=True), \
        "put what `diffusion-course leaderboard --markdown` prints into the README"
