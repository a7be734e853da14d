import pytest
import torch
from conftest import Toy
from torch import nn

from diffusion_course.diffusion.denoiser import Denoiser, logit_normal, stratified
from diffusion_course.diffusion.likelihood import vlb_term
from diffusion_course.diffusion.predictions import EDM, Epsilon, Flow, V
from diffusion_course.diffusion.schedules import (
    Cosine,
    Straight,
    VarianceExploding,
    broadcast,
    cosine_beta,
    linear_beta,
)


def test_loss_is_algorithm_1():
    denoiser = Denoiser(Toy(), linear_beta(), Epsilon())
    x0, noise, t = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.tensor([1, 10, 500, 1000]) / 1000
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[(t * 1000).round().long() - 1]
    alpha_bar = broadcast(alpha_bar, x0)
    x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(denoiser.loss(x0, t, noise), (denoiser.net(x, t) - noise).square().mean())


@pytest.mark.parametrize("denoiser, low, high", [
    (Denoiser(Toy(), linear_beta(), Epsilon()), 1e-3, 1), (Denoiser(Toy(), Straight(), Flow()), 0, 1),
    (Denoiser(Toy(), VarianceExploding(), EDM()), 0, 80)])
def test_the_times_to_train_on_are_the_schedules_own(denoiser, low, high):
    """A trap of the prototype: a plain EDM denoiser was trained at sigma < 1 and sampled from 80."""
    t = denoiser.draw_t(20_000)
    assert t.min() >= low and t.max() <= high
    if high == 80:
        assert (t > 1).float().mean() == pytest.approx(0.159, abs=0.02)     # P(N(-1.2, 1.2) > 0)


def test_stratified_times_are_one_per_interval():
    t = stratified(Cosine())(64)
    assert ((1 - t) * 64).floor().sort().values.tolist() == list(range(64))
    n = torch.cat([stratified(linear_beta(8))(16) for _ in range(500)]) * 8
    assert n.round().long().bincount().tolist() == [0] + [1000] * 8            # exactly uniform on the table


def test_logit_normal_times():
    """P(1/4 < t < 3/4) is 0.728 at mean 0, std 1."""
    t = logit_normal()(50_000)
    assert ((t > 0.25) & (t < 0.75)).float().mean() == pytest.approx(0.728, abs=0.01)


def test_shared_time_is_per_frame_time():
    denoiser = Denoiser(Toy(), Cosine(), V())
    x, t = torch.randn(2, 1, 4, 8, 8), torch.rand(2)
    torch.testing.assert_close(denoiser(x, t), denoiser(x, t[:, None].expand(2, 4)))


class TwoHeads(nn.Module):
    """Learns a number for the mean and one for the variance."""

    def __init__(self):
        super().__init__()
        self.mean, self.raw = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x, t):
        return torch.cat([self.mean * x, self.raw * torch.ones_like(x)], dim=1)


def test_hybrid_loss_teaches_the_mean_by_the_simple_loss_only():
    """Improved DDPM eq. 16, with the gradient of the bound stopped at the mean."""
    x0, noise = torch.randn(4, 1, 8, 8).clamp(-1, 1), torch.randn(4, 1, 8, 8)
    t = torch.tensor([2, 9, 300, 999]) / 1000
    net = TwoHeads()
    hybrid = Denoiser(net, cosine_beta(), Epsilon(), learned_variance=True)
    hybrid.loss(x0, t, noise).backward()
    mean, raw = net.mean.grad.clone(), net.raw.grad.clone()
    assert raw != 0
    net.zero_grad()
    x = hybrid.add_noise(x0, t, noise)
    simple = (net(x, t).chunk(2, 1)[0] - noise).square().mean()
    simple.backward()
    torch.testing.assert_close(mean, net.mean.grad)
    x0_hat, v = hybrid.estimate(x, t)
    assert v.mean().item() == pytest.approx(0.6)               # (0.2 + 1) / 2
    bound = vlb_term(hybrid.schedule, x0, x, t, x0_hat, v).mean()
    torch.testing.assert_close(hybrid.loss(x0, t, noise), simple + 1e-3 * 1000 * bound)


def test_hybrid_loss_per_frame_is_that_of_its_frames():
    denoiser = Denoiser(TwoHeads(), cosine_beta(), Epsilon(), learned_variance=True)
    x0, noise = torch.randn(2, 2, 1, 4, 8, 8).clamp(-1, 1)
    t = torch.tensor([[1, 2, 500, 1000], [3, 1, 40, 7]]) / 1000
    alone = [denoiser.loss(x0[:, :, f], t[:, f], noise[:, :, f]) for f in range(4)]
    torch.testing.assert_close(denoiser.loss(x0, t, noise), torch.stack(alone).mean())


def test_learned_variance_needs_steps():
    with pytest.raises(ValueError, match="two at least"):
        Denoiser(Toy(), linear_beta(1), Epsilon(), learned_variance=True)
    with pytest.raises(ValueError, match="needs a schedule with steps"):
        Denoiser(Toy(), Cosine(), V(), learned_variance=True)
