import pytest
import torch
import torch.nn.functional as F
from conftest import wake

from diffusion_course.networks.classifier import NoisyClassifier


def test_it_looks_at_image_and_time_and_each_image_alone():
    net = wake(NoisyClassifier(classes=7, width=8)).eval()
    x, t = torch.randn(4, 1, 32, 32), torch.tensor([0.1, 0.4, 0.7, 1.0])
    out = net(x, t)
    assert out.shape == (4, 7)
    assert not torch.allclose(net(x, t.flip(0)), out, atol=1e-3)
    moved = x.clone()
    moved[1] += 1
    changed = (net(moved, t) - out).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, True, False, False]


def test_it_can_learn():
    torch.manual_seed(0)
    net = NoisyClassifier(classes=2, width=8)
    x, label = -torch.ones(16, 1, 16, 16), torch.arange(16) % 2
    x[label == 1, :, 4:8, 4:8] = 1
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(60):
        loss = F.cross_entropy(net(x + 0.3 * torch.randn_like(x), torch.full((16,), 0.3)), label)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert loss < 0.3


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"expected images \[B, 1, H, W\], got shape"):
        NoisyClassifier(width=8)(torch.randn(2, 3, 32, 32), torch.rand(2))
