import pytest
import torch
import torch.nn.functional as F
from conftest import resumed_equals_unbroken, wake
from torch.func import functional_call

from diffusion_course.diffusion.ema import EMA
from diffusion_course.diffusion.guidance import CFG, Clip
from diffusion_course.diffusion.samplers import sample
from diffusion_course.diffusion.schedules import Cosine
from diffusion_course.papers import imagen
from diffusion_course.papers.imagen import degraded
from diffusion_course.training import checkpoints
from diffusion_course.training.trainer import Trainer

TINY = {"width": 16, "sizes": (4, 8)}
TEXT = torch.tensor([[1, 9] + 10 * [0], [1, 10, 3, 1, 11] + 7 * [0]])


def batch(n=4, size=8):
    x = F.interpolate(torch.randn(n, 1, 4, 4), size, mode="bilinear").clamp(-1, 1)
    return {"x": x, "text": torch.randint(1, 21, (n, 12))}


def spied(recipe):
    """What the recipe's loss hands to that of each stage."""
    seen = []
    for stage in recipe.model:
        stage.loss = lambda x, **cond: seen.append((x, cond)) or x.sum() * 0
    return seen


def heard(module):
    """What a module is given, call by call."""
    calls = []
    module.register_forward_pre_hook(lambda module, args: calls.append(args[0].clone()))
    return calls


@pytest.mark.parametrize("options", [{}, {"text_dim": 6, "augment": False}])
def test_it_trains_and_draws(options):
    recipe, given = imagen.recipe(width=16, sizes=(4, 16), **options), batch(size=16)
    if options:
        given["text"] = torch.randn(4, 12, 6)
    before = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    losses = [p.loss for p in Trainer(recipe, warmup=1).run([given] * 3, 3)]
    assert torch.tensor(losses).isfinite().all()
    still = {name for name, p in recipe.model.named_parameters() if torch.equal(p, before[name])}
    assert not still
    assert recipe.shape == (1, 4, 4) and recipe.item == (1, 16, 16) and recipe.data == "mnist"
    x = recipe.draw(2, seed=0, text=given["text"][:2], steps=2)
    assert x.shape == (2, 1, 16, 16) and x.isfinite().all() and x.abs().max() <= 1


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    def trainer(folder):
        torch.manual_seed(0)
        return Trainer(imagen.recipe(**TINY), tmp_path / folder, steps=2, warmup=1, save_every=2)

    resumed_equals_unbroken(trainer, [batch(), batch()])


def test_a_model_comes_back_from_its_file(tmp_path):
    recipe = imagen.recipe(**TINY)
    wake(recipe.model)
    again = checkpoints.load_model(checkpoints.save_model(tmp_path / "m.safetensors", recipe))
    x, t, text = torch.randn(2, 1, 4, 4), torch.rand(2), TEXT
    torch.testing.assert_close(again.model[0](x, t, text=text), recipe.model[0](x, t, text=text),
                               rtol=5e-2, atol=5e-2)


def test_a_batch_can_be_learnt_by_heart():
    known = {name: x.repeat_interleave(4, 0) for name, x in batch(2).items()}
    recipe, losses = imagen.recipe(**TINY), []
    for steps in (0, 15):
        list(Trainer(recipe, warmup=1, lr=4e-3).run([known] * 15, steps))
        torch.manual_seed(9)
        losses.append(recipe.loss(known).item())
    assert losses[1] < 0.8 * losses[0]


def test_every_stage_has_weights_of_its_own_and_the_same_captions():
    recipe = imagen.recipe(**{**TINY, "sizes": [4, 8, 16]})
    owners = [{id(p) for p in stage.parameters()} for stage in recipe.model]
    assert len(owners) == 3 and sum(map(len, owners)) == len(set.union(*owners))
    assert recipe.item == (1, 16, 16)
    nets = [stage.net for stage in recipe.model]
    assert [net.doors.stack for net in nets] == [{}, {"small": 1}, {"small": 1}]
    assert [set(net.doors.embed) for net in nets] == [{"text"}, {"text", "noised"}, {"text", "noised"}]
    assert [net.skip_scale == 0.5**0.5 for net in nets] == [False, True, True]


# ---- training

def test_stages_get_images_averaged_down():
    recipe = imagen.recipe(width=16, sizes=(4, 8, 16), augment=False)
    seen, given = spied(recipe), batch(size=16)
    recipe.loss(given)
    for n, (x, cond) in enumerate(seen):
        torch.testing.assert_close(x, F.avg_pool2d(given["x"], 4 // 2**n))
        if n:                                                  # of the stage before, and clean
            torch.testing.assert_close(cond["small"], F.avg_pool2d(given["x"], 8 // 2**n))
            assert torch.equal(cond["noised"], torch.zeros(4))
    assert [x.shape[-1] for x, _ in seen] == [4, 8, 16]


def test_small_images_get_a_level_of_noise_each_and_the_network_is_told_which():
    recipe = imagen.recipe(**TINY)
    seen, given = spied(recipe), batch(500)
    recipe.loss(given)
    cond = seen[1][1]
    level = cond["noised"]
    assert level.shape == (500,) and 0 <= level.min() < 0.05 and 0.95 < level.max() < 1
    alpha, sigma = (a.view(-1, 1, 1, 1) for a in Cosine()(level))
    noise = (cond["small"] - alpha * F.avg_pool2d(given["x"], 2)) / sigma
    assert noise.std().item() == pytest.approx(1, abs=0.03) and noise.mean().abs() < 0.03
    per_image = noise.flatten(1).std(1)
    assert 0.4 < per_image.quantile(0.01) and per_image.quantile(0.99) < 1.7


@pytest.mark.parametrize("augment", [True, False])
def test_captions_are_dropped_from_both_doors_and_all_stages_together(augment):
    recipe, given = imagen.recipe(**TINY, augment=augment), batch(200)
    calls = []
    for stage in recipe.model:
        calls += [heard(stage.net.doors.tokens["text"]), heard(stage.net.doors.embed["text"])]
    with torch.no_grad():
        recipe.loss(given)
    first = calls[0][0]
    assert all(torch.equal(text, first) for door in calls for text in door) and all(calls)
    gone = (first == 0).all(1)
    assert 4 <= gone.sum() <= 40 and torch.equal(first[~gone], given["text"][~gone])


@pytest.mark.parametrize("stage", [0, 1])
def test_captions_come_in_by_both_doors(stage):
    net = wake(imagen.recipe(**TINY).model[stage].net).eval()
    size, t, other = 4 * 2**stage, torch.rand(2), TEXT.flip(0)
    more = {"small": torch.randn(2, 1, 4, 4), "noised": torch.rand(2)} if stage else {}
    x = torch.randn(2, 1, size, size)
    out = net(x, t, text=TEXT, **more)
    assert (net(x, t, text=other, **more) - out).abs().amax((1, 2, 3)).min() > 1e-5
    attended = [name for name, _ in net.named_parameters() if "tokens.attention.out" in name]
    assert len(attended) == 2 * (7 if stage == 0 else 6)
    for door in (["doors.embed.text.out.weight"], attended):
        silent = {name: torch.zeros_like(net.get_parameter(name)) for name in door}
        less = functional_call(net, silent, (x, t), {"text": TEXT, **more})
        other = functional_call(net, silent, (x, t), {"text": TEXT.flip(0), **more})
        assert not torch.allclose(less, out, atol=1e-5)        # and the other door is still open:
        assert (less - other).abs().amax((1, 2, 3)).min() > 1e-5


def test_a_stage_and_its_average_have_one_encoder_each():
    recipe = imagen.recipe(**TINY)
    average = EMA(recipe.model).average
    for stage in (*recipe.model, *average):
        doors = stage.net.doors
        assert doors.embed["text"].other[0] is doors.tokens["text"]
        assert not any("encoder" in name for name in doors.embed.state_dict())
    assert len({id(stage.net.doors.tokens["text"]) for stage in (*recipe.model, *average)}) == 4


def test_noise_conditioning_augmentation():
    schedule, small = Cosine(), torch.rand(3, 1, 16, 16)
    level = torch.tensor([0.0, 0.5, 1.0])
    torch.manual_seed(7)
    found = degraded(schedule, small, level)
    torch.manual_seed(7)
    noise = torch.randn(3, 1, 16, 16)
    assert found["noised"] is level and set(found) == {"small", "noised"}
    assert torch.equal(found["small"][0], small[0])            # level 0: the image itself
    torch.testing.assert_close(found["small"][1], (small + noise)[1] * 0.5**0.5)
    torch.testing.assert_close(found["small"][2], noise[2])    # level 1: nothing of it


# ---- sampling

@pytest.fixture
def awake():
    recipe = imagen.recipe(width=16, sizes=(4, 8, 16))
    wake(recipe.model)
    return recipe


def test_the_level_that_is_added_is_the_level_that_is_told(awake, monkeypatch):
    given, told = [], [heard(stage.net.doors.embed["noised"]) for stage in awake.model[1:]]
    stacked = []
    for stage in awake.model[1:]:
        stage.net.register_forward_pre_hook(lambda net, args, cond: stacked.append(cond["small"]),
                                            with_kwargs=True)
    monkeypatch.setattr(imagen, "degraded", lambda schedule, small, level: given.append(
        (small, level, made := degraded(schedule, small, level))) or made)
    noise = torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        x = awake.sample(noise, TEXT, steps=2, noised=0.3, scale=1)
        base = sample(Clip(awake.model[0]), noise, 2, text=TEXT)
    assert x.shape == (2, 1, 16, 16) and [small.shape[-1] for small, _, _ in given] == [4, 8]
    torch.testing.assert_close(given[0][0], base)              # what the stage before drew
    for (_, level, made), calls, seen in zip(given, told, (stacked[:2], stacked[2:])):
        assert torch.equal(level, torch.full((2,), 0.3)) and len(calls) == 2
        for call, small in zip(calls, seen):
            assert torch.equal(call, level) and torch.equal(small, made["small"])
    given.clear()
    clean = imagen.recipe(**TINY, augment=False)
    clean.sample(noise, TEXT, steps=1, noised=0.3)
    small, level, made = given[0]
    assert not level.any() and torch.equal(made["small"], small)


@pytest.mark.parametrize("scale", [3.0, 1])
def test_a_threshold_is_around_the_guidance_of_every_stage(awake, scale):
    wrapped, noise = [], torch.randn(2, 1, 4, 4)

    def threshold(denoiser):
        wrapped.append(denoiser)
        return Clip(denoiser, 0.1)

    x = awake.sample(noise, TEXT, steps=1, scale=scale, threshold=threshold)
    assert [type(guide) for guide in wrapped] == [CFG] * 3
    assert [guide.denoiser for guide in wrapped] == list(awake.model)
    assert x.abs().max() == pytest.approx(0.1)
    assert all(guide.scale == scale and not guide.null["text"].any() for guide in wrapped)
    free = awake.sample(noise, TEXT, steps=1, scale=30.0, threshold=None)
    assert free.abs().max() > 1 >= awake.sample(noise, TEXT, steps=1, scale=30.0).abs().max()


def test_without_a_caption_nothing_guides(awake):
    noise, null = torch.randn(2, 1, 4, 4), torch.zeros(2, 12).long()

    def drawn(text=None, **options):
        torch.manual_seed(1)
        with torch.no_grad():
            return awake.sample(noise, text, steps=2, **options)

    torch.testing.assert_close(drawn(), drawn(null, scale=1), rtol=1e-4, atol=1e-4)
    other = TEXT.clone()
    other[1] = 0
    change = (drawn(TEXT) - drawn(other)).abs().amax((1, 2, 3))
    assert change[0] < 1e-5 and change[1] > 1e-4
    assert not torch.allclose(drawn(TEXT), drawn(TEXT, scale=1), atol=1e-4)
    assert not torch.allclose(drawn(TEXT), drawn(TEXT, noised=0.8), atol=1e-4)


def test_it_enlarges_what_it_is_given(awake):
    small, base = torch.rand(2, 1, 4, 4), heard(awake.model[0].net)
    draw = lambda small=None: awake.sample(torch.randn(2, 1, 4, 4), TEXT, steps=1, noised=0.0, small=small)
    x = draw(small)
    assert x.shape == (2, 1, 16, 16) and not base and (draw(-small) - x).abs().max() > 1e-4
    assert draw().shape == x.shape and base
