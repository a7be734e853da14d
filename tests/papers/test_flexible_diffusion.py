import pytest
import torch
from conftest import wake

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.guidance import Known
from diffusion_course.diffusion.samplers import heun_step, sample
from diffusion_course.diffusion.schemes import SCHEMES
from diffusion_course.layers.spacetime import Frames
from diffusion_course.papers import autoencoder_kl
from diffusion_course.papers import flexible_diffusion as fdm
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "frames": 12, "window": 6, "size": 16}


def clips(n=4, frames=12):
    return {"x": torch.rand(n, 1, frames, 16, 16) * 2 - 1}


@pytest.mark.parametrize("latent", [False, True])
def test_it_trains_and_draws(latent):
    first = autoencoder_kl.recipe(width=8, size=16) if latent else None
    recipe = fdm.recipe(**TINY, autoencoder=first)
    assert recipe.shape == ((4, 12, 4, 4) if latent else (1, 12, 16, 16)) and recipe.item == (1, 12, 16, 16)
    wake(recipe.model)                                         # or a bias waits for two weights that are zero
    weights = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([clips()] * 4, 4)]
    assert torch.tensor(losses).isfinite().all()
    assert not {name for name, p in recipe.model.named_parameters() if torch.equal(p, weights[name])}
    video = recipe.draw(2, seed=0, steps=2)
    assert video.shape == (2, 1, 12, 16, 16) and video.isfinite().all() and not video.requires_grad


@pytest.mark.parametrize("scheme", SCHEMES.values())
def test_a_start_is_kept_and_goes_on_for_any_length(scheme):
    recipe, start = fdm.recipe(**TINY), torch.rand(2, 1, 3, 16, 16) * 2 - 1
    wake(recipe.model)
    video = recipe.draw(2, seed=0, frames=17, steps=2, start=start, scheme=scheme)
    assert video.shape == (2, 1, 17, 16, 16)
    torch.testing.assert_close(video[:, :, :3], start)
    other = recipe.draw(2, seed=0, frames=17, steps=2, start=-start, scheme=scheme)
    assert not torch.allclose(video[:, :, 3:], other[:, :, 3:], atol=1e-3)


# ---- what it trains on

def test_subsets():
    index, seen, valid = fdm.subsets(3000, 64, 16)
    assert index.shape == seen.shape == valid.shape == (3000, 16)
    assert index.min() == 0 and index.max() == 63 and not (seen & ~valid).any()
    assert all(len(set(row.tolist())) == 16 for row in index[:300])
    assert (valid & ~seen).any(1).all()                        # there is always something to make
    counts = valid.sum(1)
    assert counts.min() >= 1 and counts.max() == 16 and 11 < counts.float().mean() < 13.5
    given = seen.any(1).float().mean()
    assert 0.25 < given < 0.4                                  # a coin for each later group that fits
    assert (valid.int().diff(dim=1) <= 0).all(), "what is not valid comes last"
    assert (index.diff(dim=1)[valid[:, 1:]] > 0).all()


def test_later_groups_are_given_as_often_as_asked():
    torch.manual_seed(2)
    index, seen, valid = fdm.subsets(2000, 64, 16, given=1.0)
    assert 0.45 < seen.any(1).float().mean() < 0.7             # and one half of them by default
    made = [row[keep].diff() for row, keep in zip(index, valid & ~seen) if keep.sum() > 2]
    assert all(gap.max() - gap.min() <= 1 for gap in made)     # the first group only
    assert not fdm.subsets(200, 64, 16, given=0.0)[1].any()


def test_first_groups_are_evenly_and_log_uniformly_spaced():
    torch.manual_seed(1)
    index, _, valid = fdm.subsets(4000, 64, 16, rounds=1)
    gaps = [row[keep].diff() for row, keep in zip(index, valid) if keep.sum() > 2]
    assert all(gap.max() - gap.min() <= 1 for gap in gaps)     # but for rounding down
    pairs = torch.stack([row[:2].diff()[0] for row, keep in zip(index, valid) if keep.sum() == 2]).float()
    assert pairs.min() == 1 and 20 < pairs.max() <= 32         # log-uniform up to 64 / 2
    assert 4 < pairs.median() < 8                              # 32^0.5 = 5.7


def test_the_subsets_of_half_a_batch_are_those_of_the_whole():
    """So that two processes train what one would."""
    from diffusion_course.diffusion.random import rows_of
    def drawn(start, n):
        with rows_of(start, 8, torch.Generator().manual_seed(3)):
            return fdm.subsets(n, 64, 16)
    for whole, first, second in zip(drawn(0, 8), drawn(0, 4), drawn(4, 4)):
        assert torch.equal(whole, torch.cat([first, second]))


def spied(recipe):
    """What the loss hands to the denoiser's."""
    calls = []
    loss = recipe.model.loss
    recipe.model.loss = lambda z, t, **more: calls.append((z, t, more)) or loss(z, t, **more)
    return calls


def test_given_frames_are_clean_and_do_not_count():
    recipe = fdm.recipe(**TINY)
    calls = spied(recipe)
    for seed in range(6):
        torch.manual_seed(seed)
        recipe.loss(clips(16))
    for _, t, more in calls:
        weight = more["weight"].expand(16, 1, 6, 1, 1)[:, 0, :, 0, 0]
        valid = more["frames"].mask.diagonal(dim1=1, dim2=2) & (more["frames"].mask.sum(2) >= 1)
        given = t == 0
        assert given.any() and (weight[given] == 0).all() and (weight[weight > 0] > 0).all() and valid.all()
        assert weight.mean().item() == pytest.approx(1)
        assert all(len(set(row[row > 0].tolist())) == 1 for row in t)          # one time for what is made


def test_frames_that_were_not_drawn_change_nothing():
    """Card 15: perturbing a padded frame, and the noise of a given one, has no effect."""
    net = wake(fdm.recipe(**TINY).model.net).eval()
    x, t, index = torch.randn(2, 1, 6, 16, 16), torch.rand(2, 6), torch.tensor([[0, 4, 5, 9, 1, 2]] * 2)
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    moved = x.clone()
    moved[:, :, 5] += 3
    frames = fdm.among(index, valid)
    change = (net(moved, t, frames) - net(x, t, frames)).abs().amax((1, 3, 4))
    assert change[0, :5].max() < 1e-5 and change[0, 5] > 1e-3 and change[1].min() > 1e-4


def test_known_frames_are_clean_whatever_x_says():
    recipe = fdm.recipe(**TINY)
    wake(recipe.model)
    denoiser, seen, at = recipe.model, torch.rand(2, 1, 2, 16, 16), torch.tensor([0, 3])
    guide, t = Known(denoiser, seen, at), torch.tensor([0.7, 0.4])
    x = torch.randn(2, 1, 5, 16, 16)
    moved = x.clone()
    moved[:, :, at] = torch.randn(2, 1, 2, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(guide(moved, t), guide(x, t))
        torch.testing.assert_close(guide(x, t)[:, :, at], seen)
        times = t[:, None].expand(-1, 5).clone()
        times[:, at] = 0
        clean = x.index_copy(2, at, seen)
        torch.testing.assert_close(guide(x, t)[:, :, 1], denoiser(clean, times)[:, :, 1])
        other = Known(denoiser, -seen, at)(x, t)
        assert not torch.allclose(other[:, :, 1], guide(x, t)[:, :, 1], atol=1e-3)
        video = sample(guide, x, 3, heun_step)
        torch.testing.assert_close(video[:, :, at], seen)


# ---- the network of distances

def test_the_bias_knows_differences_and_the_time():
    bias, e = fdm.DistanceBias(2, 8), torch.randn(3, 8)
    offset = torch.arange(5)[None, :] - torch.arange(5)[:, None]
    assert not bias(offset, e).any()                           # at first it says nothing
    wake(bias)
    said = bias(offset, e)
    assert said.shape == (3, 2, 5, 5)
    torch.testing.assert_close(said[:, :, 1:, 1:], said[:, :, :-1, :-1])       # of differences only
    assert not torch.allclose(said[0], said[1]) and not torch.allclose(said, said.transpose(2, 3))
    spread = bias(3 * offset, e)
    torch.testing.assert_close(spread[..., 0, 1], bias(offset, e)[..., 0, 3])
    each = bias(offset.expand(3, 5, 5), e[:, None].expand(3, 5, 8))
    torch.testing.assert_close(each, said)                     # a time for every frame
    late = e[:, None].repeat(1, 5, 1)
    late[:, 2] += 1
    change = (bias(offset, late) - said).abs().amax((0, 1))
    assert change[2].min() > 0 and change[[0, 1, 3, 4]].max() < 1e-6          # of the frame that looks


def test_far_frames_are_still_told_apart():
    """Logarithms: 300 frames apart is beyond 64, but not the same."""
    bias = wake(fdm.DistanceBias(1, 8))
    far, further = (bias(torch.tensor([[0, d], [-d, 0]]), torch.zeros(1, 8))[0, 0, 0, 1] for d in (150, 300))
    assert far.isfinite() and further.isfinite() and (far - further).abs() > 1e-3


def test_shifting_all_frames_in_time_changes_nothing():
    net = wake(fdm.recipe(**TINY).model.net).eval()
    x, t, index = torch.randn(1, 1, 4, 16, 16), torch.rand(1), torch.tensor([[0, 2, 7, 11]])
    moved = net(x, t, frames=Frames(4, index + 250))
    torch.testing.assert_close(net(x, t, frames=Frames(4, index)), moved)
    assert not torch.allclose(net(x, t, frames=Frames(4, 2 * index)), moved, atol=1e-4)


def test_a_weight_says_what_counts():
    torch.manual_seed(0)
    recipe = fdm.recipe(**TINY)
    x, t = torch.randn(2, 1, 4, 16, 16), torch.rand(2)
    noise, weight = torch.randn_like(x), torch.zeros(2, 1, 4, 1, 1)
    weight[:, :, 1] = 4
    plain = Denoiser.loss(recipe.model, x, t, noise)
    torch.testing.assert_close(recipe.model.loss(x, t, noise, weight=torch.ones(1)), plain)
    changed = x.clone()
    changed[:, :, 3] += 1
    one = recipe.model.loss(x, t, noise, weight=weight)
    torch.testing.assert_close(recipe.model.loss(changed, t, noise, weight=weight), one)     # not mixed yet
    assert (recipe.model.loss(changed, t, noise) - plain).abs() > 1e-3
