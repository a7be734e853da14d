import pytest
import torch
from torch import nn

from diffusion_course.evaluation.i3d import i3d_features


class Stand(nn.Module):
    """Takes what I3D takes, and tells what it was given."""

    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale and not resize and return_features
        assert x.shape[1] == 3 and x.shape[3] == 224 and x.shape[4] == 224
        flat = x.flatten(3).mean(3).mean(1)                    # [B, F]
        return torch.nn.functional.pad(flat, (0, 400 - flat.shape[1]))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "i3d.pt"
    torch.jit.script(Stand()).save(str(path))
    return path


def test_frames_are_enlarged_and_grey_becomes_rgb(file):
    levels = torch.linspace(-1, 1, 12)
    x = levels.view(1, 1, 12, 1, 1).expand(5, 1, 12, 8, 8)
    features = i3d_features(file, x, batch_size=2)
    assert features.shape == (5, 400)
    torch.testing.assert_close(features[:, :12], levels.expand(5, 12), atol=1e-5, rtol=0)
    colour = torch.randn(3, 3, 10, 16, 16).clamp(-1, 1)
    torch.testing.assert_close(i3d_features(file, colour)[:, :10], colour.mean((1, 3, 4)), atol=2e-2, rtol=0)


@pytest.mark.parametrize("shape", [(2, 1, 9, 8, 8), (2, 2, 16, 8, 8), (2, 16, 8, 8)])
def test_what_i3d_cannot_look_at(file, shape):
    with pytest.raises(ValueError, match="must be .*N, 1 or 3, F, H, W.* with F of 10 at least"):
        i3d_features(file, torch.zeros(shape))


def test_files_that_are_not_there_or_not_whole(tmp_path, file):
    with pytest.raises(FileNotFoundError, match="nowhere.pt: no such file; I3D comes as TorchScript"):
        i3d_features(tmp_path / "nowhere.pt", torch.zeros(1, 1, 16, 8, 8))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="i3d.pt: not a whole TorchScript file"):
        i3d_features(file, torch.zeros(1, 1, 16, 8, 8))
