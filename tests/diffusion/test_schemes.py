"""Which frames each call looks at: the contract of all schemes, their lists, and what they forget."""

import pytest
import torch

from diffusion_course.diffusion.schemes import SCHEMES, follow


def calls(scheme, length, window=16, step=8, given=0, video=None):
    """All calls of a scheme; `video` is what adaptive looks at."""
    video = torch.randn(1, 1, length, 1, 1) if video is None else video
    return list(SCHEMES[scheme](video, given, window, step))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length, window, step, given", [
    (64, 16, 8, 0), (64, 16, 8, 8), (37, 10, 3, 4), (300, 16, 8, 0), (20, 16, 8, 0), (12, 16, 8, 0),
    (16, 16, 8, 16), (17, 16, 8, 16), (65, 16, 15, 1), (64, 16, 8, 36), (5, 2, 1, 0)])
def test_every_frame_is_made_once_from_what_is_there(scheme, length, window, step, given):
    done, plan = set(range(given)), calls(scheme, length, window, step, given)
    for seen, new in plan:
        assert new and len(seen) + len(new) <= window
        assert set(seen) <= done and not set(new) & done and seen == sorted(set(seen))
        assert done == set() or seen, "nothing is looked at"
        done |= set(new)
    assert done == set(range(length))
    if scheme != "frameskip":
        assert all(len(new) <= step for _, new in plan[1:])


def test_what_the_schemes_look_at():
    late = [(list(range(8, 16)), list(range(16, 24))), (list(range(16, 24)), list(range(24, 32)))]
    assert calls("autoregressive", 32) == [([], list(range(16))), *late]
    assert calls("autoregressive", 32, given=1) == [([0], list(range(1, 16))), *late]
    assert calls("long-range", 32)[1:] == [([0, 1, 2, 3, 12, 13, 14, 15], list(range(16, 24))),
                                           ([0, 1, 2, 3, 20, 21, 22, 23], list(range(24, 32)))]
    assert calls("hierarchy", 31)[0] == ([], list(range(0, 31, 2)))
    assert calls("hierarchy", 31)[1] == ([0, 2, 4, 6, 8, 10, 12, 14, 16], [1, 3, 5, 7, 9, 11, 13])
    assert calls("frameskip", 64)[0] == ([], list(range(0, 64, 4)))
    assert calls("frameskip", 64)[1] == ([0, 4, 8, 12, 16, 20, 24, 28], [1, 2, 3, 5, 6, 7, 9, 10])
    assert calls("frameskip", 64)[2] == ([8, 9, 10, 12, 16, 20, 24, 28], [11, 13, 14, 15, 17, 18, 19, 21])


@pytest.mark.parametrize("scheme", ["hierarchy", "adaptive", "frameskip"])
@pytest.mark.parametrize("length, window, step", [(64, 16, 8), (64, 16, 12), (64, 32, 16), (31, 16, 8)])
def test_all_neighbours_of_new_frames_are_seen(scheme, length, window, step):
    """Or there would be a seam between what is made and what is there."""
    plan = calls(scheme, length, window, step)
    done = set(plan[0][1])
    for seen, new in plan[1:]:
        beside = {i + way for i in new for way in (-1, 1)} & done
        assert beside <= set(seen) and len(seen) == min(window - len(new), len(done))
        done |= set(new)


def test_the_adaptive_scheme_looks_at_frames_that_differ():
    video = torch.zeros(1, 1, 64, 1, 1)
    odd = calls("hierarchy", 64)[0][1][3]
    video[:, :, odd] = 5.0                                     # all other frames are alike
    plans = calls("adaptive", 64, video=video)[1:]
    assert all(odd in seen for seen, new in plans if len(new) == 8)
    assert not all(odd in seen for seen, _ in calls("hierarchy", 64)[1:])


# ---- the toy: exact conditionals of a Gaussian video

def joint(plan, covariance):
    """The covariance of what a plan makes, call by call, if every call is exact."""
    length = len(covariance)
    A, done = torch.zeros(length, length, dtype=torch.float64), 0
    for seen, new in plan:
        C = covariance[new][:, new]
        if seen:
            gain = covariance[new][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
            C = C - gain @ covariance[seen][:, new]
            A[new] = gain @ A[seen]
        A[new, done:done + len(new)] += torch.linalg.cholesky(C)
        done += len(new)
    return A @ A.T


@pytest.mark.parametrize("scheme, correlation, divergence", [
    ("autoregressive", 0.150, 0.229), ("long-range", 0.501, 0.064), ("hierarchy", 0.501, 0.004)])
def test_what_schemes_forget(scheme, correlation, divergence):
    """Card 15: the correlation of frames 0 and 63 (0.501 in truth), and the KL of all frames in nats."""
    place = torch.arange(64, dtype=torch.float64)
    truth = 0.5 + 0.5 * 0.9 ** (place[:, None] - place).abs()
    plan = calls(scheme, 64)
    S = joint(plan, truth)
    assert len(plan) == 7
    assert (S[0, 63] / (S[0, 0] * S[63, 63]).sqrt()).item() == pytest.approx(correlation, abs=0.002)
    kl = (torch.trace(torch.linalg.solve(truth, S)) - 64 + torch.logdet(truth) - torch.logdet(S)) / 2
    assert kl.item() == pytest.approx(divergence, abs=0.004)


# ---- following a plan

def numbered(noise, index, seen, at):
    """Every frame shows its number; what is seen is what was made before."""
    assert torch.equal(seen, (index[at] + 1.0)[None, None, :, None, None].expand_as(seen))
    assert noise.shape[2] == len(index) and torch.equal(index, index.sort().values)
    return (index + 1.0)[None, None, :, None, None].expand_as(noise)


@pytest.mark.parametrize("scheme", SCHEMES.values())
@pytest.mark.parametrize("length, given", [(64, 0), (64, 5), (10, 3), (16, 16)])
def test_frames_come_to_their_places(scheme, length, given):
    start = torch.arange(1.0, given + 1)[None, None, :, None, None].expand(2, 1, -1, 2, 2) if given else None
    video = follow(scheme, numbered, torch.randn(2, 1, length, 2, 2), start)
    assert torch.equal(video[1, 0, :, 1, 1], torch.arange(1.0, length + 1))


def test_a_start_is_kept_and_may_not_be_longer_than_the_video():
    start = torch.randn(2, 1, 3, 4, 4)
    make = lambda noise, index, seen, at: noise
    video = follow(SCHEMES["autoregressive"], make, torch.randn(2, 1, 9, 4, 4), start, window=4)
    assert torch.equal(video[:, :, :3], start)
    with pytest.raises(ValueError, match="a start of 3 frames, 2 in all"):
        follow(SCHEMES["autoregressive"], make, torch.randn(2, 1, 2, 4, 4), start)
    with pytest.raises(ValueError, match="step=16 at a time.*step < window=16"):
        follow(SCHEMES["autoregressive"], make, torch.randn(2, 1, 40, 4, 4), step=16)
