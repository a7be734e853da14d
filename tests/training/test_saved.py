"""What earlier versions saved is loaded, sampled and gone on with."""
import json
import shutil
from pathlib import Path

import pytest
import saved
import torch

from diffusion_course import __version__
from diffusion_course.training import checkpoints

VERSIONS = sorted(path.name for path in Path(__file__).with_name("saved").iterdir())


@pytest.mark.fault
@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_of_an_earlier_version_goes_on(version, tmp_path):
    folder = shutil.copytree(Path(__file__).with_name("saved") / version, tmp_path / "run")
    losses = json.loads((folder / "unbroken.json").read_text())
    run = saved.trainer(folder)
    assert run.resume() == 4 and run.losses == pytest.approx(losses[:4], rel=1e-6)
    list(run.run(saved.batches()))
    assert run.losses == pytest.approx(losses, rel=1e-3)       # other versions of torch round otherwise
    model, state = (checkpoints.load_model(folder / f"{name}.safetensors") for name in ("model", "state"))
    label = torch.tensor([0, 1])
    torch.testing.assert_close(model.draw(2, 0, steps=4, label=label), state.draw(2, 0, steps=4, label=label),
                               rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_not_the_beginning_that_agrees(version):
    """The losses above tell a run that went on from one that began anew."""
    losses = json.loads((Path(__file__).with_name("saved") / version / "unbroken.json").read_text())
    anew = [progress.loss for progress in saved.trainer().run(saved.batches()[4:], 4)]
    assert anew != pytest.approx(losses[4:], rel=1e-3)


def test_the_version_that_runs_was_saved():
    """So that the next one is tested on it: python tests/training/saved.py tests/training/saved/VERSION."""
    assert __version__ in VERSIONS
