import pytest
import torch
from conftest import OracleAR1, wake

from diffusion_course.diffusion.schedules import Cosine
from diffusion_course.papers import video_diffusion_models as vdm
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "frames": 4, "size": 16}


def test_it_trains_and_draws():
    recipe = vdm.recipe(**TINY)
    batch = {"x": torch.randn(4, 1, 4, 16, 16)}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([batch] * 3, 3)]
    assert torch.tensor(losses).isfinite().all()
    video = recipe.draw(2, steps=3)
    assert video.shape == (2, 1, 4, 16, 16) and video.isfinite().all()


def test_images_beside_a_clip_see_only_themselves():
    """Sec. 3: each key matches its own query.  Equal to running every image with F = 1 (card 13)."""
    net = wake(vdm.recipe(**TINY).model.net).eval()
    clip, t = torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    images = torch.randn(2, 1, 3, 16, 16)
    out = net(torch.cat([clip, images], 2), t, frames=vdm.joint(clip, 3))
    torch.testing.assert_close(out[:, :, :4], net(clip, t), rtol=1e-4, atol=1e-5)
    for k in range(3):
        torch.testing.assert_close(out[:, :, 4 + k], net(images[:, :, k], t), rtol=1e-4, atol=1e-5)


# slope on the exact conditional mean (ideal 1) and size of the jump at the seam (ideal 0.32), of card 13
@pytest.mark.parametrize("scale, langevin, slope, jump", [
    (0, 0, 0.56, 0.53), (1, 0, 0.72, 0.42), (2, 0, 0.85, 0.34),
    (4, 0, 0.99, 0.26), (0, 1, 0.74, 0.44), (2, 1, 0.94, 0.32)])
def test_extending_a_gaussian_video(double, scale, langevin, slope, jump):
    """Replacement is wrong even for a perfect model; guidance and Langevin mend it."""
    oracle, n, seen = OracleAR1(Cosine()), 4000, 8
    S = oracle.covariance(16)
    start = torch.einsum("ij,nj->ni", torch.linalg.cholesky(S[:seen, :seen]), torch.randn(n, seen))
    truth = start @ torch.linalg.solve(S[:seen, :seen], S[:seen, seen:])       # the exact conditional mean
    times = torch.linspace(0.9975, 0.0025, 201)
    noise = torch.randn(n, 1, 16, 1, 1)
    video = vdm.extend(oracle, start[:, None, :, None, None], noise, times, scale, langevin)
    new = video[:, 0, seen:, 0, 0]
    assert (truth * new).sum() / truth.square().sum() == pytest.approx(slope, abs=0.05)
    assert (new[:, 0] - start[:, -1]).square().mean().sqrt() == pytest.approx(jump, abs=0.03)


def test_the_start_is_kept():
    recipe = vdm.recipe(**TINY)
    start = torch.rand(2, 1, 2, 16, 16) * 2 - 1
    video = vdm.extend(recipe.model, start, torch.randn(2, 1, 4, 16, 16), 3)
    torch.testing.assert_close(video[:, :, :2], start)
    assert not video.requires_grad
