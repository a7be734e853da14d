import pytest
import torch
from conftest import Gaussian, wake

from diffusion_course.diffusion.samplers import heun_step, sample
from diffusion_course.diffusion.schedules import Straight
from diffusion_course.papers import ddpm, rectified_flow
from diffusion_course.papers.rectified_flow import budget, make_pairs
from diffusion_course.training import checkpoints, container
from diffusion_course.training.trainer import Trainer

TINY = {"width": 8, "size": 16}


@pytest.fixture
def teacher():
    recipe = rectified_flow.recipe(**TINY)
    wake(recipe.model)
    return recipe


def test_it_trains_and_draws():
    recipe = rectified_flow.recipe(**TINY)
    batch = {"x": torch.randn(8, 1, 16, 16).clamp(-1, 1)}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([batch] * 3, 3)]
    assert torch.tensor(losses).isfinite().all()
    x = recipe.draw(2, seed=0, steps=4)
    assert x.shape == (2, 1, 16, 16) and x.isfinite().all()


def test_the_loss_is_eq_1_on_the_other_clock(teacher):
    """The paper: |(X1 - X0) - v(X_t, t)|^2 with X_t = t X1 + (1 - t) X0, from noise X0 to data X1."""
    x0, noise, ours = torch.randn(4, 1, 16, 16), torch.randn(4, 1, 16, 16), torch.tensor([0.1, 0.4, 0.7, 1.0])
    theirs = (1 - ours).reshape(4, 1, 1, 1)
    x = theirs * x0 + (1 - theirs) * noise
    v = -teacher.model.net(x, ours)
    torch.testing.assert_close(teacher.model.loss(x0, ours, noise), ((x0 - noise - v) ** 2).mean())


def test_samples_are_not_drawn_from_noise_that_was_trained_on(teacher, monkeypatch):
    made, drawn = [], []
    monkeypatch.setattr(rectified_flow, "make_pairs", lambda *args, **kwargs: made.append(
        make_pairs(*args, **kwargs, steps=1)) or made[0])
    recipe = rectified_flow.recipe(**TINY, teacher=teacher, pairs=4)
    recipe.loss({"x": torch.randn(2, 1, 16, 16)})
    monkeypatch.setattr(rectified_flow, "sample", lambda denoiser, noise, *args: drawn.append(noise) or noise)
    for seed in (0, 1):
        recipe.draw(4, seed=seed)
    for noise in drawn:
        assert (noise - made[0][1].float()).abs().mean() > 0.5


def test_pairs_belong_together_and_are_the_same_every_time(teacher):
    x0, noise = make_pairs(teacher.model, (1, 16, 16), 6, steps=3, batch_size=4)
    again, _ = make_pairs(teacher.model, (1, 16, 16), 6, steps=3, batch_size=4)
    assert x0.dtype == noise.dtype == torch.float16 and torch.equal(x0, again)
    expected = sample(teacher.model, noise.float(), 3, heun_step)
    torch.testing.assert_close(x0.float(), expected, atol=2e-2, rtol=1e-2)
    assert not torch.equal(noise, make_pairs(teacher.model, (1, 16, 16), 6, steps=3, seed=1)[1])


def spied(recipe):
    """What the recipe's loss hands to the denoiser's."""
    seen, loss = [], recipe.model.loss

    def spy(x0, t=None, noise=None):
        seen.append((x0, t, noise))
        return loss(x0, t, noise)

    recipe.model.loss = spy
    return seen


def test_reflow_starts_from_the_teacher_and_learns_its_pairs(teacher):
    pupil = rectified_flow.recipe(**TINY, teacher=teacher, pairs=5)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.2, 0.9])
    torch.testing.assert_close(pupil.model(x, t), teacher.model(x, t))
    seen, before = spied(pupil), teacher.model.net.conv_in.weight.clone()
    for _ in range(4):
        pupil.loss({"x": torch.zeros(8, 1, 16, 16)}).backward()
    pairs = make_pairs(teacher.model, (1, 16, 16), 5)
    picked = set()
    for x0, t, noise in seen:
        assert t is None and not torch.equal(x0, torch.zeros_like(x0))         # its own batch is not used
        for a, b in zip(x0, noise):
            which = [i for i in range(5) if torch.equal(a, pairs[0][i].float())]
            assert which and torch.equal(b, pairs[1][which[0]].float())        # the noise that made it
            picked.add(which[0])
    assert len(picked) == 5
    assert torch.equal(teacher.model.net.conv_in.weight, before)
    assert teacher.model.net.conv_in.weight.grad is None and not teacher.model.training


def test_distillation_learns_the_first_step_only(teacher):
    pupil = rectified_flow.recipe(**TINY, teacher=teacher, pairs=4, distill=True)
    seen = spied(pupil)
    pupil.loss({"x": torch.zeros(8, 1, 16, 16)})
    assert (seen[0][1] == 1).all()
    noise = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(pupil.sample(noise), pupil.model(noise, torch.ones(2)))  # one step


def test_a_batch_may_bring_its_pairs(teacher):
    pupil = rectified_flow.recipe(**TINY, teacher=teacher)
    seen, x, noise = spied(pupil), torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    pupil.loss({"x": x, "noise": noise})
    assert seen[0][0] is x and seen[0][2] is noise


def test_what_it_refuses(teacher):
    with pytest.raises(ValueError, match="needs a teacher"):
        rectified_flow.recipe(**TINY, distill=True)
    with pytest.raises(ValueError, match="teacher is a rectified_flow with {'width': 8"):
        rectified_flow.recipe(width=16, size=16, teacher=teacher)
    with pytest.raises(ValueError, match="teacher is a ddpm"):
        rectified_flow.recipe(**TINY, teacher=ddpm.recipe(**TINY))


def test_a_checkpoint_names_its_teacher(teacher, tmp_path, monkeypatch):
    """Its name and SHA-256 stand in the header, its weights do not; another of that name is refused."""
    monkeypatch.chdir(tmp_path)
    path = checkpoints.save_model(tmp_path / "runs" / "first" / "model.safetensors", teacher)
    loaded = checkpoints.load_model(path)
    pupil = rectified_flow.recipe(**TINY, teacher=loaded, pairs=5)
    out = checkpoints.save_model(tmp_path / "pupil.safetensors", pupil)
    assert container.read_header(out)["kwargs"]["teacher"] == checkpoints.identity(path)
    assert set(container.read(out)[0]) == set(container.read(path)[0])
    again = checkpoints.load_model(out)
    torch.testing.assert_close(again.draw(1, seed=0), pupil.draw(1, seed=0), atol=2e-2, rtol=2e-2)
    assert again.origin.kwargs["teacher"].checkpoint == loaded.checkpoint
    torch.nn.init.normal_(teacher.model.net.conv_in.bias)
    checkpoints.save_model(path, teacher)
    with pytest.raises(container.CheckpointError, match="trained with a first of SHA-256"):
        checkpoints.load_model(out)
    with pytest.raises(ValueError, match="cannot be stored: Recipe is neither plain nor a model loaded"):
        checkpoints.save_model(out, rectified_flow.recipe(**TINY, teacher=teacher))


# ---- the budget

def test_the_budget_of_a_gaussian_closes(double):
    """For the exact flow between N(0, 1) and N(0.3, 0.6^2): straight = transport + curvature + crossing."""
    exact, n = Gaussian(Straight()), 40_000
    x0, noise = 0.3 + 0.6 * torch.randn(n, 1, 1, 1), torch.randn(n, 1, 1, 1)
    found = budget(exact, x0, noise, 200)
    parts = found["transport"] + found["curvature"] + found["crossing"]
    assert parts == pytest.approx(found["straight"], rel=0.02)
    assert found["straight"] == pytest.approx(1.36 + 0.09, rel=0.03)
    assert found["transport"] == pytest.approx(0.4**2 + 0.3**2, rel=0.05)      # that of the optimal map
    assert found["crossing"] > 0.5


class Moves:
    """A flow with a given velocity: dx/dt = velocity(x)."""

    schedule, add_noise = Straight(), Gaussian.add_noise

    def __init__(self, velocity):
        self.velocity = velocity

    def __call__(self, x, t):
        return x - t.reshape(-1, *[1] * (x.ndim - 1)) * self.velocity(x)


def test_straightness_is_zero_for_a_constant_field_and_not_for_a_rotation(double):
    noise = torch.randn(500, 2)
    constant = budget(Moves(lambda x: torch.ones_like(x)), noise - 1, noise)
    assert constant["curvature"] == pytest.approx(0, abs=1e-12)
    assert constant["crossing"] == pytest.approx(0, abs=1e-12) and constant["transport"] == pytest.approx(2)
    turned = budget(Moves(lambda x: torch.stack([-x[:, 1], x[:, 0]], dim=1)), noise, noise)
    assert turned["curvature"] > 0.1
