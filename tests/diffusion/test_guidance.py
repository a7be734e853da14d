import numpy as np
import pytest
import torch
from conftest import Gaussian, Toy
from torch import nn

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.guidance import (
    CFG,
    ClassifierGuidance,
    Clip,
    DynamicThreshold,
    Guide,
    ReconstructionGuidance,
    Retimed,
    drop_condition,
    dynamic_threshold,
)
from diffusion_course.diffusion.predictions import Clean, Epsilon, Flow, V
from diffusion_course.diffusion.samplers import ancestral_step, ddim_step, heun_step, noise_of, sample
from diffusion_course.diffusion.schedules import (
    Cosine,
    Geometric,
    Straight,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    broadcast,
    cosine_beta,
    linear_beta,
)


def kind(value):
    return type(value).__name__


class Net(nn.Module):
    def forward(self, x, t, label):
        return torch.sin(x) * broadcast(label.float() + 1, x)


NULL = {"label": torch.tensor(0)}


@pytest.mark.parametrize("schedule, prediction", [
    (Cosine(), Clean()), (cosine_beta(), Epsilon()), (Cosine(), V()), (Straight(), Flow())])
def test_guidance_of_x0_is_guidance_of_the_networks_output(schedule, prediction):
    denoiser = Denoiser(Net(), schedule, prediction)
    x, t, label = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.6]), torch.tensor([1, 2])
    w = 2.0                                                    # the paper's weight; scale = 1 + w
    out, null = denoiser.net(x, t, label), denoiser.net(x, t, torch.zeros(2))
    expected = prediction.to_x0((1 + w) * out - w * null, x, *schedule.at(t, x))
    torch.testing.assert_close(CFG(denoiser, 1 + w, NULL)(x, t, label=label), expected, rtol=1e-4, atol=1e-4)


def test_scale_one_is_the_condition_and_zero_is_null():
    denoiser = Denoiser(Net(), Cosine(), V())
    x, t, label = torch.randn(2, 1, 4, 4), torch.rand(2), torch.tensor([1, 2])
    assert torch.equal(CFG(denoiser, 1.0, NULL)(x, t, label=label), denoiser(x, t, label=label))
    torch.testing.assert_close(CFG(denoiser, 0.0, NULL)(x, t, label=label),
                               denoiser(x, t, label=torch.zeros(2)))


@pytest.mark.parametrize("scale, null, evaluations", [
    (1, NULL, 1), (1.0, NULL, 1), (5.0, {}, 1), (2.0, NULL, 2), (torch.ones(2, 1), NULL, 2)])
def test_nothing_is_asked_twice_without_guidance(scale, null, evaluations):
    denoiser, asked = Denoiser(Net(), Cosine(), V()), []
    denoiser.net.register_forward_pre_hook(lambda net, args: asked.append(1))
    CFG(denoiser, scale, null)(torch.randn(2, 1, 4, 4), torch.rand(2), label=torch.tensor([1, 2]))
    assert len(asked) == evaluations


@pytest.mark.parametrize("scale", [
    torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.rand(2, 4) * 3, torch.rand(2, 1)])
def test_a_scale_per_frame_lands_on_frames(scale):
    """A trap of the prototype: [F] landed on image columns, here as many as frames."""
    denoiser = Denoiser(Net(), Cosine(), V())
    x, t, label = torch.randn(2, 1, 4, 4, 4), torch.rand(2), torch.tensor([1, 2])
    guided = CFG(denoiser, scale, NULL)(x, t, label=label)
    for b in range(2):
        for f in range(4):
            g = scale.expand(2, 4)[b, f].item()
            one = CFG(denoiser, g, NULL)(x[b:b + 1, :, f], t[b:b + 1], label=label[b:b + 1])
            torch.testing.assert_close(guided[b:b + 1, :, f], one)


def test_a_scale_per_frame_does_not_fit_an_image():
    denoiser = Denoiser(Net(), Cosine(), V())
    with pytest.raises(ValueError, match="per frame"):
        CFG(denoiser, torch.rand(4), NULL)(torch.randn(2, 1, 4, 4), torch.rand(2), label=torch.tensor([1, 2]))


def test_guidance_without_its_condition_raises():
    with pytest.raises(ValueError, match="needs the conditions"):
        CFG(Denoiser(Toy(), Cosine(), V()), 2.0, NULL)(torch.randn(1, 1, 4, 4), torch.rand(1))


def test_dropping():
    label, text = torch.arange(1, 4001), torch.ones(4000, 5)
    null = {"label": torch.tensor(0), "text": torch.zeros(5)}
    out = drop_condition({"label": label, "text": text, "fps": label}, null, 0.25)
    gone = out["label"] == 0
    assert gone.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(gone, (out["text"] == 0).all(1))        # together
    assert torch.equal(out["fps"], label)                      # and only these
    assert torch.equal(out["label"][~gone], label[~gone])
    assert drop_condition({}, {}, 0.5) == {}
    with pytest.raises(ValueError, match="null names"):
        drop_condition({"label": label}, {"lable": torch.tensor(0)}, 0.5)


def test_clip():
    clipped = Clip(Gaussian(Cosine(), mean=3.0))(torch.randn(2, 1, 4, 4), torch.ones(2))
    assert torch.equal(clipped, torch.ones_like(clipped))


def test_reconstruction_guidance_is_its_closed_form(double):
    """For a Gaussian, dx0/dx is a number (card 13's linear toy)."""
    exact, x, t = Gaussian(Cosine()), torch.randn(2, 1, 4, 3, 3), torch.tensor([0.3, 0.8])
    seen = torch.randn(2, 1, 2, 3, 3)
    guide = ReconstructionGuidance(exact, lambda x0: x0[:, :, :2], seen, scale=2.0)
    alpha, sigma = exact.schedule.at(t, x)
    slope = alpha * exact.std**2 / (alpha**2 * exact.std**2 + sigma**2)
    expected = exact(x, t)
    error = expected[:, :, :2] - seen
    expected[:, :, :2] -= 2.0 * alpha / 2 * 2 * error * slope
    torch.testing.assert_close(guide(x, t), expected)
    assert not guide(x, t).requires_grad


def guides(denoiser):
    seen = torch.zeros(2, 1, 4, 4)
    return {"cfg": lambda d: CFG(d, 3.0, NULL), "clip": lambda d: Clip(d, 0.1),
            "rg": lambda d: ReconstructionGuidance(d, lambda x0: x0, seen, 0.5),
            "rg2": lambda d: ReconstructionGuidance(d, lambda x0: x0[:, :, ::2], seen[:, :, ::2], 0.2)}


@pytest.mark.parametrize("outer", ["cfg", "clip", "rg", "rg2"])
@pytest.mark.parametrize("inner", ["cfg", "clip", "rg", "rg2"])
def test_guides_nest_in_any_order(outer, inner):
    """A trap of the prototype: reconstruction guidance around another raised, and no guide had add_noise."""
    denoiser = Denoiser(Net(), Cosine(), V())
    make = guides(denoiser)
    guide = make[outer](make[inner](denoiser))
    noise, label = torch.randn(2, 1, 4, 4), torch.tensor([1, 2])
    for step in (ddim_step, ancestral_step):
        x = sample(guide, noise, 4, step, label=label)
        assert x.isfinite().all() and not x.requires_grad
    t = torch.rand(2)
    torch.testing.assert_close(guide.add_noise(noise, t, noise), denoiser.add_noise(noise, t, noise))
    if outer != inner:
        assert not torch.allclose(guide(noise, t, label=label), make[inner](denoiser)(noise, t, label=label))


def test_an_outer_gradient_sees_the_inner_guide(double):
    """The gradient of reconstruction guidance around reconstruction guidance, against finite differences."""
    exact, x, t = Gaussian(Cosine()), torch.randn(1, 1, 2, 2), torch.tensor([0.5])
    inner = ReconstructionGuidance(exact, lambda x0: x0.tanh(), torch.zeros(1), 0.7)
    outer = ReconstructionGuidance(inner, lambda x0: x0.sin(), torch.zeros(1), 1.0)
    alpha, _ = exact.schedule.at(t, x)
    found = (inner(x, t) - outer(x, t)) * 2 / alpha
    for i in range(4):
        d = torch.zeros(4)
        d[i] = 1e-5
        up, down = (inner(x + e * d.reshape(x.shape), t).sin().square().sum() for e in (1, -1))
        assert found.flatten()[i].item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-4, abs=1e-8)


def test_a_guide_passes_the_learned_variance_on():
    class Two(nn.Module):
        def forward(self, x, t, label):
            return torch.cat([Net()(x, t, label), torch.cos(x)], 1)

    denoiser = Denoiser(Two(), cosine_beta(100), Epsilon(), learned_variance=True)
    x, t, label = torch.randn(2, 1, 4, 4), torch.tensor([0.5, 0.2]), torch.tensor([1, 2])
    v = denoiser.estimate(x, t, label=label)[1]
    for guide in (Guide(denoiser), Clip(denoiser), DynamicThreshold(denoiser), CFG(denoiser, 2.0, NULL)):
        torch.testing.assert_close(guide.estimate(x, t, label=label)[1], v)


# ---- thresholds that move

def test_what_is_within_limits_stays():
    x0 = torch.rand(3, 1, 8, 8) * 2 - 1
    assert torch.equal(dynamic_threshold(x0), x0)
    x0[1, 0, 2, 3] = 40.0                                      # one of 64 is over: under the 0.9 percentile
    assert torch.equal(dynamic_threshold(x0, 0.9), x0.clamp(-1, 1))


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 2, 4, 4)])
def test_a_dynamic_threshold_is_a_percentile_of_each_sample(shape, percentile):
    scale = torch.tensor([0.2, 1.0, 3.0, 50.0]).reshape(4, *[1] * (len(shape) - 1))
    x0 = scale * torch.randn(shape)
    found = dynamic_threshold(x0, percentile)
    for x, y in zip(x0.numpy(), found):
        s = max(1.0, np.quantile(abs(x), percentile))
        torch.testing.assert_close(y, torch.from_numpy(np.clip(x, -s, s) / s), rtol=1e-5, atol=1e-6)
    assert found.abs().max() == 1 and (found[3].abs() == 1).float().mean() < 1.1 * (1 - percentile) + 0.02


def test_dynamic_thresholds_and_guidance_nest():
    denoiser = Denoiser(Net(), Cosine(), V())
    x, t, label = torch.randn(2, 1, 4, 4), torch.tensor([0.9, 0.5]), torch.tensor([3, 4])
    guided = CFG(denoiser, 5.0, NULL)(x, t, label=label)
    assert guided.abs().amax((1, 2, 3)).min() > 1.5
    outside = DynamicThreshold(CFG(denoiser, 5.0, NULL), 0.8)
    torch.testing.assert_close(outside(x, t, label=label), dynamic_threshold(guided, 0.8))
    inside = CFG(DynamicThreshold(denoiser, 0.8), 5.0, NULL)
    each = [dynamic_threshold(denoiser(x, t, label=y), 0.8) for y in (label, torch.zeros(2))]
    torch.testing.assert_close(inside(x, t, label=label), each[1] + 5 * (each[0] - each[1]))
    drawn = sample(outside, torch.randn(2, 1, 4, 4), 4, label=label)
    assert drawn.isfinite().all() and drawn.abs().max() <= 1
    torch.testing.assert_close(outside.add_noise(x, t, x), denoiser.add_noise(x, t, x))


# ---- a classifier

class TwoClasses:
    """Data from N(-1, std^2) and N(1, std^2): the exact denoiser, with or without label; p(label | x_t)."""

    def __init__(self, schedule, std=0.6):
        self.schedule, self.std = schedule, std

    def __call__(self, x, t, **cond):
        return self.estimate(x, t, **cond)[0]

    def estimate(self, x, t, label=None):
        alpha, sigma = self.schedule.at(t, x)
        mean = torch.tanh(x * alpha / (alpha**2 * self.std**2 + sigma**2))     # E of -1 and 1
        if label is not None:
            mean = torch.where(broadcast(label == 2, x), mean, broadcast(2.0 * label - 1, x).to(x))
        return (alpha * self.std**2 * x + sigma**2 * mean) / (alpha**2 * self.std**2 + sigma**2), None

    def classify(self, x, t):
        alpha, sigma = self.schedule.at(t, x)
        logit = (2 * x * alpha / (alpha**2 * self.std**2 + sigma**2)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


@pytest.mark.parametrize("schedule", [Cosine(), linear_beta(), VarianceExploding()], ids=kind)
def test_with_scale_one_the_true_classifier_makes_the_conditional_denoiser(double, schedule):
    """Bayes' rule for scores: grad log p(x | y) = grad log p(x) + grad log p(y | x)."""
    exact = TwoClasses(schedule.double())
    t = torch.tensor([0.1, 0.5, 0.9]) * min(schedule.t_max, 3)
    x, label = torch.randn(3, 1, 1, 1), torch.tensor([0, 1, 1])
    guided = ClassifierGuidance(exact, exact.classify, 1.0)
    torch.testing.assert_close(guided(x, t, label=label), exact(x, t, label=label))
    assert not torch.allclose(ClassifierGuidance(exact, exact.classify, 2.0)(x, t, label=label),
                              exact(x, t, label=label))


def test_in_terms_of_noise_it_is_algorithm_2(double):
    """eps_hat = eps - sigma * scale * grad log p(y | x_t)."""
    denoiser, exact = Denoiser(Toy(), Cosine(), V()), TwoClasses(Cosine())
    x, t, label = torch.randn(2, 1, 2, 2), torch.tensor([0.3, 0.7]), torch.tensor([1, 0])
    y = x.clone().requires_grad_()
    log_p = exact.classify(y, t).log_softmax(1)[torch.arange(2), label].sum()
    grad, = torch.autograd.grad(log_p, y)
    guided = ClassifierGuidance(denoiser, exact.classify, 3.0)(x, t, label=label)
    _, sigma = denoiser.schedule.at(t, x)
    expected = noise_of(denoiser.schedule, x, denoiser(x, t), t) - 3 * sigma * grad
    torch.testing.assert_close(noise_of(denoiser.schedule, x, guided, t), expected)
    assert not guided.requires_grad and not x.requires_grad


def test_a_conditional_denoiser_may_be_guided_too(double):
    exact = TwoClasses(Cosine())
    x, t, label = torch.randn(2, 1, 1, 1), torch.tensor([0.3, 0.7]), torch.tensor([1, 0])
    both = ClassifierGuidance(exact, exact.classify, 1.0, conditional=True)(x, t, label=label)
    once, none = exact(x, t, label=label), exact(x, t)
    torch.testing.assert_close(both - once, once - none)


@pytest.mark.parametrize("w, mean, std, tilted", [(1.0, 1.385, 0.430, (1.077, 0.543)),
                                                  (7.0, 2.353, 0.296, (1.186, 0.484))])
def test_classifier_free_guidance_overshoots(double, w, mean, std, tilted):
    """The figures of the card: 200 DDIM steps, and p(x | y) p(y | x)^w in comparison."""
    exact = TwoClasses(Cosine())
    guided = CFG(exact, 1 + w, {"label": torch.tensor(2)})
    x = sample(guided, torch.randn(20_000, 1), torch.linspace(0.9975, 0.002, 201),
               label=torch.ones(20_000, dtype=torch.long))
    assert x.mean().item() == pytest.approx(mean, abs=0.02) and x.std().item() == pytest.approx(std, abs=0.02)
    grid = torch.linspace(-4, 6, 20_001)
    q = (-(grid - 1) ** 2 / (2 * 0.36)).exp() * torch.sigmoid(2 * grid / 0.36) ** w
    q = q / q.sum()
    exact_mean = (grid * q).sum()
    assert exact_mean.item() == pytest.approx(tilted[0], abs=0.002)
    assert (((grid - exact_mean) ** 2 * q).sum() ** 0.5).item() == pytest.approx(tilted[1], abs=0.002)


# ---- another schedule

SCHEDULES = [VariancePreserving(), SubVariancePreserving(), Geometric(), VarianceExploding(), Straight(),
             Cosine()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("own", SCHEDULES, ids=kind)
def test_the_exact_denoiser_of_one_schedule_is_that_of_every_other(double, own, schedule):
    t = torch.tensor([0.05, 0.3, 0.8])
    x = torch.randn(3, 1, 2, 2) * (1 + schedule(t)[1][:, None, None, None])
    found = Retimed(Gaussian(own), schedule)(x, t)
    torch.testing.assert_close(found, Gaussian(schedule)(x, t), rtol=1e-6, atol=1e-6)


def test_a_vp_network_as_edms_denoiser():
    """D(x; sigma) of EDM's table 1, first column: c_skip 1, c_out -sigma, c_in 1 / sqrt(1 + sigma^2)."""
    schedule = linear_beta()
    denoiser = Denoiser(Toy(), schedule, Epsilon())
    n = torch.tensor([1, 250, 999])
    alpha, sigma = schedule(n / 1000)
    level = sigma / alpha                                      # EDM's sigma
    x = torch.randn(3, 1, 4, 4) * broadcast(level, torch.zeros(3, 1, 4, 4))
    found = Retimed(denoiser, VarianceExploding())(x, level)
    out = denoiser.net(x / (1 + broadcast(level, x) ** 2).sqrt(), n / 1000)
    expected = x - broadcast(level, x) * out
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * level.max().item())


def test_samplers_of_one_schedule_serve_the_network_of_another(double):
    data = Gaussian(VariancePreserving())
    retimed = Retimed(data, VarianceExploding())
    noise = torch.randn(4000, 1, 1, 1)
    x = sample(retimed, noise, 40, heun_step)
    assert x.mean().item() == pytest.approx(data.mean, abs=0.04)
    assert x.std().item() == pytest.approx(data.std, abs=0.02)
    x0, t = torch.zeros(2, 1, 1, 1), torch.tensor([3.0, 5.0])
    torch.testing.assert_close(retimed.add_noise(x0, t, torch.ones_like(x0)).flatten(), t)
