import pytest
import torch
from conftest import OracleAR1, wake

from diffusion_course.diffusion.samplers import ddim_step
from diffusion_course.diffusion.schedules import Cosine
from diffusion_course.diffusion.schemes import SCHEMES
from diffusion_course.papers import autoencoder_kl
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


# ---- on latents, for captions and labels, of any length

def test_latents_of_frames_are_what_it_learns_from():
    first = autoencoder_kl.recipe(width=8, size=16)
    recipe = vdm.recipe(width=8, frames=4, size=16, autoencoder=first)
    assert recipe.shape == (4, 4, 4, 4) and recipe.item == (1, 4, 16, 16) and recipe.data == "bouncing_mnist"
    batch = {"x": torch.rand(4, 1, 4, 16, 16) * 2 - 1}
    assert torch.tensor([p.loss for p in Trainer(recipe, warmup=1).run([batch] * 3, 3)]).isfinite().all()
    assert recipe.draw(2, steps=2).shape == (2, 1, 4, 16, 16)


@pytest.mark.parametrize("kind, null", [("text", torch.zeros(3, 12).long()),
                                        ("label", torch.tensor([3] * 3))])
def test_conditions_are_dropped_in_training_and_unconditional_samples_are_those_of_the_null(kind, null):
    recipe = vdm.recipe(**TINY, **({"words": 21} if kind == "text" else {"classes": 3}))
    wake(recipe.model)
    assert recipe.takes(kind) and not recipe.takes({"text": "label", "label": "text"}[kind])
    cond = torch.randint(1, 21, (300, 12)) if kind == "text" else torch.arange(300) % 3
    given = []
    recipe.model.loss = lambda z, **more: given.append(more[kind]) or z.sum() * 0
    recipe.loss({"x": torch.zeros(300, 1, 4, 16, 16), kind: cond})
    dropped = (given[0].reshape(300, -1) == null[0].reshape(-1)).all(1)
    assert 0.04 < dropped.float().mean() < 0.17
    assert torch.equal(given[0][~dropped], cond[~dropped])
    noise = torch.randn(3, 1, 4, 16, 16)
    draw = lambda *cond, **options: recipe.sample(noise, *cond, steps=2, step=ddim_step, **options)
    torch.testing.assert_close(draw(), draw(null, scale=1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(draw(cond[:3]), draw(cond[:3], scale=1), atol=1e-4)
    assert not torch.allclose(draw(cond[:3]), draw(), atol=1e-4)


def test_clips_that_skip_frames_say_so():
    clip, fps = torch.randn(2, 1, 4, 16, 16), torch.tensor([8.0, 2.0])
    assert vdm.joint(clip, 2, fps).index.tolist() == [[0, 1, 2, 3, 4, 5], [0, 4, 8, 12, 16, 20]]
    recipe, seen = vdm.recipe(**TINY), []
    recipe.model.loss = lambda z, frames, **more: seen.append(frames) or z.sum() * 0
    recipe.loss({"x": clip, "fps": fps})
    recipe.loss({"x": clip})
    assert seen[0].index[1, :4].tolist() == [0, 4, 8, 12] and seen[1].index[1, :4].tolist() == [0, 1, 2, 3]


def test_images_are_frames_of_another_clip():
    recipe, seen = vdm.recipe(**TINY, images=3), []
    recipe.model.loss = lambda z, **more: seen.append(z) or z.sum() * 0
    clip = torch.arange(5.0)[:, None, None, None, None] + torch.arange(4)[:, None, None] / 10
    recipe.loss({"x": clip.expand(5, 1, 4, 16, 16)})
    z = seen[0][:, 0, :, 0, 0]
    torch.testing.assert_close(z[:, :4], clip[:, 0, :, 0, 0].expand(5, 4))
    assert (z[:, 4:].floor() == torch.tensor([4.0, 0, 1, 2, 3])[:, None]).all()


@pytest.mark.parametrize("scheme", SCHEMES.values())
def test_longer_videos_and_videos_that_go_on(scheme):
    recipe = vdm.recipe(**TINY)
    wake(recipe.model)
    assert recipe.draw(1, frames=3, steps=2).shape == (1, 1, 3, 16, 16)
    start = torch.rand(2, 1, 1, 16, 16) * 2 - 1                # a first frame
    video = recipe.draw(2, seed=0, frames=9, steps=4, start=start, scheme=scheme)
    assert video.shape == (2, 1, 9, 16, 16)
    torch.testing.assert_close(video[:, :, :1], start)
    other = recipe.draw(2, seed=0, frames=9, steps=4, start=-start, scheme=scheme)
    assert not torch.allclose(video[:, :, 1:], other[:, :, 1:], atol=1e-3)
    replaced = recipe.draw(2, seed=0, frames=9, steps=4, start=start, scheme=scheme, w_r=0, langevin=0)
    assert not torch.allclose(video[:, :, 1:], replaced[:, :, 1:], atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"words": 21}])
@pytest.mark.parametrize("start", [None, torch.zeros(1, 1, 1, 16, 16)])
def test_fifty_evaluations_at_most(options, start):
    recipe, count = vdm.recipe(**TINY, **options), []
    recipe.model.net.register_forward_pre_hook(lambda *_: count.append(1))
    recipe.draw(1, start=start)
    assert 40 <= len(count) <= (50 if start is None else 100 if options else 50)


def test_frames_between_can_be_known():
    recipe = vdm.recipe(**TINY)
    wake(recipe.model)
    seen, at, noise = torch.rand(2, 1, 2, 16, 16), torch.tensor([1, 3]), torch.randn(2, 1, 4, 16, 16)
    video = vdm.extend(recipe.model, seen, noise, 3, at=at)
    torch.testing.assert_close(video[:, :, at], seen)
    torch.manual_seed(0)
    first = vdm.extend(recipe.model, seen, noise, 3)
    torch.manual_seed(0)
    torch.testing.assert_close(vdm.extend(recipe.model, seen, noise, 3, at=torch.arange(2)), first)


def test_images_beside_captioned_clips_are_their_own_frames():
    """They share the caption; without one, frames of another clip are more different."""
    clips = torch.arange(8.0).reshape(2, 1, 4, 1, 1)
    for own, source in (True, clips), (False, clips.flip(0)):
        both = vdm.with_images(clips, 3, own)
        assert both.shape == (2, 1, 7, 1, 1) and torch.equal(both[:, :, :4], clips)
        for images, frames in zip(both[:, 0, 4:], source[:, 0]):
            assert set(images.flatten().tolist()) <= set(frames.flatten().tolist())
