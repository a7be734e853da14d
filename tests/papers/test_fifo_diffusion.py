from itertools import islice

import pytest
import torch
from conftest import OracleAR1
from torch import nn

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.ema import EMA
from diffusion_course.diffusion.guidance import CFG, Clip
from diffusion_course.diffusion.predictions import V
from diffusion_course.diffusion.samplers import sample
from diffusion_course.diffusion.schedules import Cosine, DiscreteVP, VariancePreserving, broadcast
from diffusion_course.papers import fifo_diffusion
from diffusion_course.papers.fifo_diffusion import fifo
from diffusion_course.recipe import Recipe


class Recorder:
    """Answers x / alpha, so that a deterministic pass keeps every frame's content; notes all calls."""

    schedule = VariancePreserving()

    def __init__(self):
        self.times, self.shapes = [], set()

    def __call__(self, x, t, **cond):
        self.times.append(t[0])
        self.shapes.add(tuple(x.shape))
        return x / self.schedule.at(t, x)[0]

    def add_noise(self, x0, t, noise):
        return x0 * self.schedule.at(t, x0)[0]                 # no noise: the content can be followed


@pytest.mark.parametrize("partitions, lookahead", [(1, False), (2, False), (4, False), (2, True), (4, True)])
def test_bookkeeping(partitions, lookahead):
    """n calls a frame, 2n with lookahead; every window is f frames; the clip comes out in order (card 48)."""
    recorder, clip = Recorder(), torch.arange(1.0, 5).reshape(1, 1, 4, 1, 1)
    stream = fifo(recorder, clip, partitions, lookahead, eta=0.0)
    frames = [frame.item() for frame in islice(stream, 4)]
    assert frames == pytest.approx([1, 2, 3, 4], rel=1e-3)     # a trap: warm-up frames were kept
    passes = 4 * partitions - 4 + 4
    assert len(recorder.times) == passes * partitions * (2 if lookahead else 1)
    assert recorder.shapes == {(1, 1, 4, 1, 1)}
    levels = recorder.schedule.times(4 * partitions).flip(0)[1:]
    if not lookahead:
        torch.testing.assert_close(torch.cat(recorder.times[:partitions]), levels)
    else:                                                      # finished frames keep the first place's level
        torch.testing.assert_close(recorder.times[0], torch.cat([levels[:1], levels[:1], levels[:2]]))
    next(stream)
    assert len(recorder.times) == (passes + 1) * partitions * (2 if lookahead else 1)


def test_the_first_queue_repeats_the_first_frame_only():
    """A trap of the prototype: 0000 1111 2222 3333 instead of 0000 0000 0000 0123."""
    seen = []

    class First(Recorder):
        def __call__(self, x, t, **cond):
            seen.append((x / self.schedule.at(t, x)[0]).flatten())
            return super().__call__(x, t)

    next(fifo(First(), torch.arange(4.0).reshape(1, 1, 4, 1, 1), 4, lookahead=False, eta=0.0))
    expected = torch.tensor([0.0] * 13 + [1, 2, 3])
    torch.testing.assert_close(torch.cat(seen[:4]), expected, rtol=1e-4, atol=1e-4)


def stable_diffusion():
    """The schedule of the card's numbers."""
    return DiscreteVP(torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def autocorrelation(video, lag):                               # video [N, F]
    return ((video[:, :-lag] * video[:, lag:]).mean() / video.square().mean()).item()


@pytest.mark.parametrize("partitions, lookahead, expected", [
    (1, False, (0.78, 0.62, 0.40)), (2, False, (0.72, 0.48, 0.17)), (4, False, (0.70, 0.44, 0.12)),
    (2, True, (0.77, 0.58, 0.32)), (4, True, (0.74, 0.53, 0.25))])
def test_memory_on_the_oracle(double, partitions, lookahead, expected):
    """Autocorrelation at lags 4, 8, 16; the truth is 0.815, 0.663, 0.440 (card 48).

    Partitions lose it, lookahead helps.
    """
    oracle, n = OracleAR1(stable_diffusion()), 300
    clip = sample(oracle, torch.randn(n, 1, 16, 1, 1), 64)
    video = torch.stack(list(islice(fifo(oracle, clip, partitions, lookahead), 120)), 2)[:, 0, :, 0, 0]
    found = [autocorrelation(video, lag) for lag in (4, 8, 16)]
    assert found == pytest.approx(expected, abs=0.08)
    assert 0.5 < video.var() < 1.05


def test_partitions_are_there_for_imperfect_models(double):
    """A denoiser that was trained on equal levels diverges in one window, and is stable in four."""
    oracle = OracleAR1(stable_diffusion(), mismatched=True)
    clip = sample(OracleAR1(stable_diffusion()), torch.randn(50, 1, 16, 1, 1), 64)
    spread = [torch.stack(list(islice(fifo(oracle, clip, n, lookahead=False), 150))).var() for n in (1, 4)]
    assert spread[0] > 10 and spread[1] < 2


class Net(nn.Module):
    def forward(self, x, t, label):
        return torch.sin(x) * broadcast(label.float() + 1, x) * 0.3


def test_it_works_through_guides_and_on_latents():
    """Traps of the prototype: no guide had add_noise, and pixels were mixed with latents."""
    denoiser, clip = Denoiser(Net(), Cosine(), V()), torch.randn(2, 4, 4, 2, 2)
    guide = Clip(CFG(denoiser, 2.0, {"label": torch.tensor(0)}))
    frame = next(fifo(guide, clip, 2, label=torch.tensor([1, 2])))
    assert frame.shape == (2, 4, 2, 2) and frame.isfinite().all()

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Conv3d(4, 1, 1)

        def decode(self, z):
            return self.map(z)

    denoiser.weight = nn.Parameter(torch.zeros(1))
    base = Recipe(denoiser, None, lambda noise, label: sample(denoiser, noise, 2, label=label), (4, 4, 2, 2),
                  autoencoder=Decoder())
    base.ema = EMA(denoiser)
    assert fifo_diffusion.recipe(base).ema is base.ema         # the averaged weights are what is sampled
    video = fifo_diffusion.recipe(base, length=6, partitions=2).draw(2, label=torch.tensor([1, 2]))
    assert video.shape == (2, 1, 6, 2, 2)


def test_frames_do_not_move_each_others_time(double):
    """The levels follow the schedule's own times, also where these are not evenly spaced."""
    class Uneven(VariancePreserving):
        def times(self, steps):
            return torch.linspace(1, 0, steps + 1) ** 2

    recorder = Recorder()
    recorder.schedule = Uneven()
    next(fifo(recorder, torch.randn(1, 1, 4, 1, 1), 1, lookahead=False, eta=0.0))
    torch.testing.assert_close(recorder.times[0], torch.tensor([1, 2, 3, 4]) ** 2 / 16.0)
