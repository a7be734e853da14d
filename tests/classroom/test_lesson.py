"""start, preset, same, explore: what every lesson begins with and leans on."""
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

import diffusion_course.classroom as classroom
from diffusion_course.classroom.lesson import FULL, advise_on_full_memory, preset, same, start
from diffusion_course.classroom.widgets import explore


def test_start_says_what_the_lesson_runs_on(capsys, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_PRESET", "smoke")
    device = start(seed=3)
    first = torch.rand(3)
    start(seed=3)
    assert torch.equal(first, torch.rand(3))
    said = capsys.readouterr().out
    assert device.type in ("cpu", "cuda")
    assert "preset smoke, seed 3, data " in said and f"torch {torch.__version__}" in said
    assert "no GPU" not in said                                # that is for Colab


COLAB = ModuleType("google.colab")
COLAB.__spec__ = ModuleSpec("google.colab", None)


@pytest.mark.parametrize("modules, gpu, advice", [
    ({"google.colab": COLAB}, False, True), ({"google.colab": COLAB}, True, False),
    ({"google": ModuleType("google")}, False, False), ({"google": None}, False, False)])
def test_in_colab_start_says_how_to_get_a_gpu(modules, gpu, advice, capsys, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_PRESET", "laptop")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    start()
    said = capsys.readouterr().out
    assert said.endswith("no GPU: choose Runtime, Change runtime type, T4 GPU, and run this cell again; "
                         "without one, lessons use the preset laptop\n") == advice
    assert ("files are gone when this session ends" in said) == ("google.colab" in modules)
    assert said.count("\n") == 2 + advice + ("google.colab" in modules)


@pytest.mark.parametrize("error, advice", [
    ("torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB')", True),
    ("diffusion_course.recipe.OutOfMemory('out of memory: n=9 samples are too many')", True),
    ("RuntimeError('[enforce fail] DefaultCPUAllocator: can not allocate memory')", True),
    ("RuntimeError('no')", False), ("ValueError('no')", False)])
def test_a_cell_that_ran_out_of_memory_says_what_to_do(error, advice, capsys, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    advise_on_full_memory()
    result = shell.run_cell(f"import torch, diffusion_course.recipe\nraise {error}")
    said = capsys.readouterr()
    assert result.error_in_exec is not None and str(result.error_in_exec) in said.out
    assert (FULL in said.err) == advice


@pytest.mark.parametrize("name", ["smoke", "laptop", "t4"])
def test_preset_chooses_its_own(name, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_PRESET", name)
    assert preset(smoke="smoke", laptop="laptop", t4="t4") == name


def test_preset_refuses_another_name(monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_PRESET", "huge")
    with pytest.raises(ValueError, match="'huge' must be smoke, laptop or t4"):
        preset(1, 2, 3)


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mine, reference, args", [
    (X, X + 1e-7, ()), (2.0, torch.tensor(2.0), ()), ((X, 1), [X, 1.0], ()),
    (torch.zeros(0), torch.zeros(0), ()), (lambda x: x * 2, lambda x: x + x, (X,)),
    (torch.randn_like, torch.randn_like, (X,)),
    (lambda x: (x.mean(), x), lambda x: (x.sum() / 12, x), (X,)), (1000.0, 1000.001, ())])
def test_same_agrees(mine, reference, args, capsys):
    same(mine, reference, *args)
    assert "the same, to within 1e-05" in capsys.readouterr().out


@pytest.mark.parametrize("mine, reference, args, message", [
    (X, X + 1e-3, (), "differ by up to 0.001"), (X, X * torch.nan, (), "differ by up to nan"),
    (X * torch.nan, X, (), "differ by up to nan"), (X, X[:2], (), r"shape \(4, 3\), the package's \(2, 3\)"),
    ((X, X), X, (), "2 parts, the package's 1"), (lambda x: x * 2, lambda x: x * 3, (X,), "differ"),
    (1000.0, 1001.0, (), "differ by up to 0.001"), (True, False, (), "differ")])
def test_same_raises_when_they_drift_apart(mine, reference, args, message):
    with pytest.raises(AssertionError, match=message):
        same(mine, reference, *args)


def test_same_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    same(torch.randn_like, torch.randn_like, X)
    assert torch.equal(expected, torch.rand(2))


def test_explore_draws_for_every_value_of_its_knobs():
    drawn = []
    explore(lambda t, name: drawn.append((t, name)), t=(0.0, 1.0, 0.5), name=["a", "b"])
    assert drawn == [(0.5, "a")]                               # in the middle, until someone moves it


@pytest.mark.parametrize("picture", ["a picture", None])
def test_explore_shows_the_picture_that_is_returned(picture, monkeypatch):
    shown = []
    monkeypatch.setattr("ipywidgets.widgets.interaction.display", shown.append)
    explore(lambda t: picture, t=(0, 2))
    assert shown == [picture] * (picture is not None)


def test_explore_without_widgets_draws_once(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    drawn = []
    explore(lambda t, name: drawn.append((t, name)), t=(0.0, 1.0), name=["a", "b"])
    assert drawn == [(0.0, "a")] and "pip install ipywidgets" in capsys.readouterr().out


def test_every_tool_can_be_imported_by_name():
    for name in classroom.__all__:
        assert callable(getattr(classroom, name)), name
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        getattr(classroom, "chekc")  # noqa: B009
