import pytest
import torch
from torch import nn

from diffusion_course.diffusion.ema import EMA


def test_the_average_is_an_exponential_one_with_warm_up():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, expected = EMA(model, 0.9), 0.0
    for n in range(1, 200):
        model.weight.data.fill_(float(n))
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert ema.average.weight.item() == pytest.approx(expected, rel=1e-5)


def test_little_of_the_initialisation_is_left_after_300_steps():
    """A trap of the prototype: 74 % of it was."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = EMA(model, 0.999)
    model.weight.data.zero_()
    for _ in range(300):
        ema.update()
    assert ema.average.weight.item() < 1e-3


def test_swapped_restores_even_after_an_error():
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.9)
    own = model.weight.detach().clone()
    ema.average.weight.data.fill_(7.0)
    with pytest.raises(KeyError), ema.swapped():
        assert (model.weight == 7).all()
        raise KeyError
    assert torch.equal(model.weight, own) and (ema.average.weight == 7).all()


def test_frozen_weights_are_not_averaged_and_buffers_follow():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    ema = EMA(model, 0.9)
    assert len(ema.pairs) == 2
    model[1](torch.randn(8, 2))
    ema.update()
    assert torch.equal(ema.average[1].running_mean, model[1].running_mean)


def test_decay_is_checked():
    with pytest.raises(ValueError, match="decay=1.0"):
        EMA(nn.Linear(1, 1), 1.0)
