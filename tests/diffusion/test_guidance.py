import pytest
import torch
from conftest import Gaussian, Toy
from torch import nn

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.guidance import CFG, Clip, Guide, ReconstructionGuidance, drop_condition
from diffusion_course.diffusion.predictions import Clean, Epsilon, Flow, V
from diffusion_course.diffusion.samplers import ancestral_step, ddim_step, sample
from diffusion_course.diffusion.schedules import Cosine, Straight, broadcast, cosine_beta


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
    torch.testing.assert_close(CFG(denoiser, 1.0, NULL)(x, t, label=label), denoiser(x, t, label=label))
    torch.testing.assert_close(CFG(denoiser, 0.0, NULL)(x, t, label=label),
                               denoiser(x, t, label=torch.zeros(2)))


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
    for guide in (Guide(denoiser), Clip(denoiser), CFG(denoiser, 2.0, NULL)):
        torch.testing.assert_close(guide.estimate(x, t, label=label)[1], v)
