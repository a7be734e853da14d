import os
from pathlib import Path

import pytest
import torch

from diffusion_course.data.mnist import builtin_digits, mnist
from diffusion_course.evaluation import probes
from diffusion_course.training import checkpoints
from diffusion_course.training.container import CheckpointError, write


class Certain(torch.nn.Module):
    """Reads the digit written in the first pixel, as surely as the second pixel says."""

    def forward(self, x):
        digit = torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 10).float()
        return digit * x[:, 0, 0, 1:2]


def test_a_reading():
    x = torch.zeros(8, 1, 32, 32)
    x[:, 0, 0, 0] = torch.tensor([1, 1, 1, 2, 3, 3, 9, 0])
    x[:, 0, 0, 1] = torch.tensor([20, 20, 20, 20, 20, 20, 1, 1])
    assert probes.reading(Certain(), x) == {"n": 8, "confident": 0.75, "largest_share": 0.375,
                                            "counts": [1, 3, 1, 2, 0, 0, 0, 0, 0, 1]}


def test_it_learns():
    data, test = builtin_digits(copies=1), builtin_digits("test")
    probe = probes.train_probe(data, epochs=4, batch_size=64)
    assert probes.accuracy(probe, test) > 0.7


def test_the_shipped_probe():
    path = checkpoints.shipped("digit_probe")
    assert path.stat().st_size < 1e6
    probe = probes.load_probe()
    assert probes.accuracy(probe, builtin_digits("test")) > 0.6            # another hand, another pen
    noise = probes.reading(probe, torch.randn(256, 1, 32, 32).clamp(-1, 1))
    assert noise["n"] == 256


@pytest.mark.skipif(not Path(os.environ.get("DIFFUSION_COURSE_DATA", "."), "mnist").is_dir(),
                    reason="needs MNIST")
def test_the_shipped_probe_reads_mnist():
    test = mnist("test")
    assert probes.accuracy(probes.load_probe(), test) >= 0.99
    real = probes.reading(probes.load_probe(), test[torch.arange(2000)]["x"])
    assert real["confident"] > 0.95 and real["largest_share"] < 0.15


def test_another_checkpoint_is_refused(tmp_path):
    path = write(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {"kind": "model"})
    with pytest.raises(CheckpointError, match="not a digit probe"):
        probes.load_probe(path)
