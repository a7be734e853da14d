"""The training panel: a picture in a notebook, one line of text elsewhere; it never disturbs the run."""
import re

import pytest
import torch

from diffusion_course.classroom import panel
from diffusion_course.classroom.panel import Panel, clock, watch


def losses(count):
    for n in range(count):
        yield torch.tensor(1.0 / (n + 1), requires_grad=True)


class Display:
    """Stands for the notebook: remembers the first picture and its updates."""

    def __init__(self, monkeypatch):
        self.shown = []
        monkeypatch.setattr(panel, "in_notebook", lambda: True)
        monkeypatch.setattr("IPython.display.display", self.display)

    def display(self, picture, display_id):
        self.shown.append(picture)
        return self

    def update(self, picture):
        self.shown.append(picture)


def test_watch_passes_every_step_on_and_ends_with_the_final_state(monkeypatch):
    page = Display(monkeypatch)
    passed = list(watch(losses(40), 40, every=1e9))
    assert len(passed) == 40
    assert page.shown[-1].alt.startswith("Training so far: step 40 of 40, loss")
    assert len(page.shown) == 1                                # drawn once: nothing was due before the end


def test_samples_are_drawn_at_the_stages_only(monkeypatch):
    page, calls = Display(monkeypatch), []

    def samples():
        calls.append(1)
        return torch.rand(4, 1, 8, 8)

    for _ in watch(losses(100), 100, samples, stages=5, every=1e9):
        pass
    assert len(calls) == 5
    assert page.shown[-1].alt.endswith("samples after 4, 16, 36, 64, 100 steps.")


def test_a_run_that_is_interrupted_or_fails_leaves_its_picture(monkeypatch):
    page = Display(monkeypatch)
    for n, _ in enumerate(watch(losses(50), 50, every=1e9)):
        if n == 9:
            break
    assert "step 10 of 50" in page.shown[-1].alt

    def failing():
        yield from losses(3)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(watch(failing(), 50, every=1e9))
    assert "step 3 of 50" in page.shown[-1].alt


def test_a_terminal_gets_one_line_that_does_not_scroll(capsys):
    list(watch(losses(30), 30, lambda: pytest.fail("no samples where they cannot be seen"), every=0))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.count("\r") > 5
    assert re.search(r"step 30 of 30, loss 0\.1332, \d+:\d\d", said)


def test_the_panel_keeps_no_graph_and_the_loss_as_it_is():
    shown = Panel(3)
    for loss in losses(3):
        shown.add(loss)
    assert not any(loss.requires_grad for loss in shown.pending)
    shown.draw()
    assert shown.losses == pytest.approx([1, 1 / 2, 1 / 3]) and not shown.pending


def test_a_trainer_can_be_watched(monkeypatch):
    from diffusion_course.papers import ddpm
    from diffusion_course.training.trainer import Trainer

    page, recipe = Display(monkeypatch), ddpm.recipe(width=8, size=16)
    trainer = Trainer(recipe, steps=4, cpu=True)
    batches = [{"x": torch.zeros(2, 1, 16, 16)}] * 4
    seen = [step.step for step in watch(trainer.run(batches), 4, lambda: recipe.draw(2, 0, steps=2), 2)]
    assert seen == [1, 2, 3, 4] and "step 4 of 4" in page.shown[-1].alt


def test_a_run_that_goes_on_is_counted_from_where_it_was(monkeypatch):
    from diffusion_course.training.trainer import Progress

    page, calls = Display(monkeypatch), []
    run = (Progress(n, torch.tensor(0.5)) for n in range(61, 101))
    for _ in watch(run, 100, lambda: calls.append(1) or torch.rand(2, 1, 8, 8), stages=5, every=1e9):
        pass
    assert page.shown[-1].alt.startswith("Training so far: step 100 of 100")
    assert page.shown[-1].alt.endswith("samples after 64, 100 steps.") and len(calls) == 2


def test_nothing_to_do_shows_nothing(monkeypatch):
    page = Display(monkeypatch)
    assert list(watch(losses(0), 5)) == [] and not page.shown
    with pytest.raises(ValueError, match="total=0 must be at least 1"):
        Panel(0)


def test_clock():
    assert [clock(s) for s in (0, 59.9, 61, 3600)] == ["0:00", "0:59", "1:01", "60:00"]
