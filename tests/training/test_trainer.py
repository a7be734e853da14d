import json
import os
import signal
import threading

import pytest
import torch
from torch import nn

from diffusion_course.data.images import Images
from diffusion_course.papers import ddpm
from diffusion_course.recipe import Recipe
from diffusion_course.training import checkpoints, container
from diffusion_course.training.container import CheckpointError
from diffusion_course.training.state import read_log
from diffusion_course.training.trainer import NonFiniteLoss, Trainer

TINY = {"width": 8, "size": 16, "num_steps": 20}


def images(n=50):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 1, 16, 16), generator=generator).byte()
    return Images("noise", x, torch.arange(n) % 10)


def trainer(folder=None, **kwargs):
    torch.manual_seed(0)
    return Trainer(ddpm.recipe(**TINY, dropout=0.1), folder, **{"steps": 12, "save_every": 4} | kwargs)


def run(t, steps=None, batch_size=8):
    return [p.loss for p in t.run(images().batches(batch_size), steps)]


def same(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(x, y), name


def test_twice_six_steps_are_twelve():
    """A trap of the prototype: a batch more was taken than used."""
    whole, halves = trainer(), trainer()
    losses = run(whole)
    assert run(halves, 6) + run(halves, 6) == losses
    same(whole.recipe.model, halves.recipe.model)
    same(whole.ema.average, halves.ema.average)


def test_no_batch_is_taken_that_is_not_used():
    taken = []

    def batches():
        for n in range(100):
            taken.append(n)
            yield images().batches(8)[n]

    stream, t = batches(), trainer()
    list(t.run(stream, 3))
    assert taken == [0, 1, 2]
    list(t.run(stream, 2))
    assert taken == [0, 1, 2, 3, 4]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    whole = trainer(tmp_path / "a")
    losses = run(whole)
    first = trainer(tmp_path / "b")
    run(first, 7)                                              # saved at 4 and at its end, 7
    second = trainer(tmp_path / "b")
    torch.manual_seed(123)                                     # whatever else was drawn does not matter
    assert second.resume() == 7
    assert run(second) == losses[7:]
    same(whole.recipe.model, second.recipe.model)
    same(whole.ema.average, second.ema.average)
    assert read_log(tmp_path / "a" / "log.jsonl") == read_log(tmp_path / "b" / "log.jsonl") == losses
    a, b = (container.read(tmp_path / x / "state.safetensors")[0] for x in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_weight_without_a_gradient_does_not_keep_a_run_from_going_on(tmp_path):
    run(trainer(tmp_path), 6)
    path = tmp_path / "state.safetensors"
    tensors, header = container.read(path)
    first = next(name.rpartition("/")[0] for name in tensors if name.startswith("optimizer."))
    kept = {name: x.clone() for name, x in tensors.items() if not name.startswith(f"{first}/")}
    container.write(path, kept, header)                      # AdamW keeps nothing of such a weight
    again = trainer(tmp_path)
    assert again.resume() == 6
    run(again, 1)


@pytest.mark.fault
def test_leaving_the_loop_saves(tmp_path):
    t = trainer(tmp_path, save_every=100)
    for p in t.run(images().batches(8)):
        if p.step == 3:
            break
    assert container.read_header(tmp_path / "state.safetensors")["step"] == 3


def test_an_ignored_ctrl_c_stays_ignored():
    before, t = signal.signal(signal.SIGINT, signal.SIG_IGN), trainer()
    for _ in t.run(images().batches(8)):
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert t.step == 12


@pytest.mark.fault
@pytest.mark.parametrize("when", ["inside a step", "between steps"])
def test_ctrl_c_saves_a_whole_step_and_says_where(tmp_path, capsys, when):
    t, batches = trainer(tmp_path, save_every=100), images().batches(8)

    class Interrupting:
        def __getitem__(self, n):
            if n == 5 and when == "inside a step":
                os.kill(os.getpid(), signal.SIGINT)
            return batches[n]

    with pytest.raises(KeyboardInterrupt):
        for p in t.run(Interrupting()):
            if p.step == 6 and when == "between steps":
                os.kill(os.getpid(), signal.SIGINT)
    del p
    if when == "inside a step":
        assert f"step 6 is saved in {tmp_path}" in capsys.readouterr().out
    else:
        # the loop's body was interrupted: close the generator
        import gc
        gc.collect()
    again = trainer(tmp_path)
    assert again.resume() == 6
    whole = trainer()
    assert run(whole)[6:] == run(again)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_trainers_of_other_precision_may_follow_one_another():
    for precision in ("no", "bf16", "no"):
        assert torch.tensor(run(trainer(precision=precision), 3)).isfinite().all()


def test_training_in_a_thread_needs_no_signals():
    found = []
    thread = threading.Thread(target=lambda: found.append(run(trainer(), 2)))
    thread.start()
    thread.join()
    assert len(found[0]) == 2


@pytest.mark.fault
def test_a_second_ctrl_c_does_not_wait_and_keeps_what_was_saved(tmp_path):
    t, batches = trainer(tmp_path), images().batches(8)

    class Stubborn:
        def __getitem__(self, n):
            if n == 6:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return batches[n]

    with pytest.raises(KeyboardInterrupt):
        list(t.run(Stubborn()))
    assert container.read_header(tmp_path / "state.safetensors")["step"] == 4


def broken(at):
    """A recipe whose loss is not finite from one step on."""
    model, calls = nn.Linear(1, 1), []

    def loss(batch):
        calls.append(1)
        return model.weight.sum() * (float("nan") if len(calls) >= at else 1.0)

    return Recipe(model, loss, None, (1,))


@pytest.mark.fault
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_causes(tmp_path):
    t = trainer(tmp_path)
    good = t.recipe.loss

    def loss(batch):
        return good(batch) * (float("inf") if t.step == 9 else 1)

    t.recipe.loss = loss
    message = "became inf at step 10; the last good state is that of step 8 .*learning rate"
    with pytest.raises(NonFiniteLoss, match=message):
        run(t)
    assert container.read_header(tmp_path / "state.safetensors")["step"] == 8
    assert all(x.isfinite().all() for x in container.read(tmp_path / "state.safetensors")[0].values())
    with pytest.raises(NonFiniteLoss, match="became nan at step 2; nothing was saved before"):
        list(Trainer(broken(2)).run([{"x": torch.zeros(2, 1)}] * 5, 5))


@pytest.mark.fault
def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A gradient may be broken where the loss is not."""
    t = trainer(tmp_path)
    run(t, 7)                                                  # the next step is one to save after
    hook = next(iter(t.weights.values())).register_hook(lambda grad: grad * float("nan"))
    t.clip = 0
    with pytest.raises(NonFiniteLoss, match="not finite after step 8; the last good state is that of step 7"):
        run(t)
    hook.remove()
    assert all(x.isfinite().all() for x in container.read(tmp_path / "state.safetensors")[0].values())


def test_two_trainers_do_not_disturb_one_another():
    alone = run(trainer())
    first = trainer()
    begun = run(first, 4)
    run(trainer(accumulate=4, precision="bf16"), 4)
    assert begun + run(first) == alone and first.settings()["precision"] == "no"


@pytest.mark.fault
def test_a_run_is_not_overwritten(tmp_path):
    run(trainer(tmp_path), 4)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds a run; resume"):
        run(trainer(tmp_path))
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_losses_come_to_the_host_only_when_they_are_looked_at(monkeypatch):
    """A trap of the prototype: .item() at every step.  A CPU looks at every step; a GPU must not."""
    from diffusion_course.training import trainer as module
    t = trainer()
    t.device = torch.device("meta")                            # anything but a CPU
    looks = []
    monkeypatch.setattr(Trainer, "look", lambda self: looks.append(self.step))
    monkeypatch.setattr(Trainer, "advance", lambda self, batch: setattr(self, "step", self.step + 1) or
                        self.pending.append(0))
    monkeypatch.setattr(module, "CHECK_EVERY", 10)
    t.pending = list(range(3))
    list(t.run(images().batches(8), 9))
    assert looks[0] == 7                                       # with 3 pending before, the tenth


def test_learning_rate_warms_up_and_falls_to_zero():
    t = trainer(lr=1.0, steps=1000, warmup=100)
    assert t.learning_rate(0) == pytest.approx(0.01, rel=1e-3)
    assert t.learning_rate(99) == pytest.approx(1, rel=0.03)
    assert t.learning_rate(500) == pytest.approx(0.5) and t.learning_rate(1000) == 0
    assert Trainer(ddpm.recipe(**TINY), lr=0.5).learning_rate(10**6) == 0.5


def test_accumulated_parts_equal_the_whole_batch():
    """The same random numbers and the same gradients, up to rounding, which Adam's first steps magnify."""
    def train(accumulate):
        torch.manual_seed(0)
        recipe = ddpm.recipe(**TINY, classes=10)
        start = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
        losses = run(Trainer(recipe, steps=4, clip=0.5, accumulate=accumulate, warmup=1))
        return losses, {name: p.detach() - start[name] for name, p in recipe.model.named_parameters()}

    (whole, moved), (parts, moved_in_parts) = train(1), train(4)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5) and parts == pytest.approx(whole, rel=3e-3)
    difference, move = (torch.cat([x.flatten() for x in xs]).norm() for xs in
                        ([moved[name] - moved_in_parts[name] for name in moved], moved.values()))
    assert difference < 0.05 * move


def test_a_batch_must_divide():
    with pytest.raises(ValueError, match="a batch of 8 cannot be shared by 1 processes in 3 parts"):
        run(trainer(accumulate=3), 1)


def test_batches_that_end():
    with pytest.raises(ValueError, match="the batches ended after 2 steps"):
        list(trainer().run([images().batches(8)[0]] * 2))
    with pytest.raises(ValueError, match="the batches ended after 1 steps"):
        list(trainer().run(iter([images().batches(8)[0]])))


def test_a_run_says_how_long_it_is():
    with pytest.raises(ValueError, match="say how many steps"):
        list(Trainer(ddpm.recipe(**TINY)).run([]))


@pytest.mark.parametrize("change, message", [({"lr": 1e-4}, "lr was"), ({"seed": 3}, "seed was"),
                                             ({"facts": {"data": "mnist"}}, "data was")])
def test_resuming_with_other_settings_is_refused(tmp_path, change, message):
    run(trainer(tmp_path), 4)
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, **change).resume()


def test_resuming_another_recipe_is_refused(tmp_path):
    run(trainer(tmp_path), 4)
    with pytest.raises(CheckpointError, match="kwargs was"):
        Trainer(ddpm.recipe(**TINY | {"width": 16}), tmp_path, steps=12).resume()


def test_resuming_from_a_model_is_refused(tmp_path):
    t = trainer(tmp_path)
    run(t, 4)
    (tmp_path / "model.safetensors").replace(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="not a training state"):
        trainer(tmp_path).resume()


def test_the_run_folder(tmp_path):
    t = trainer(tmp_path, sample_every=6, samples=4, facts={"data": "noise"})
    losses = run(t)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {".lock", "state.safetensors", "model.safetensors", "log.jsonl",
                     "samples/step_000006.png", "samples/step_000012.png"}
    header = container.read_header(tmp_path / "model.safetensors")
    assert header["step"] == 12 and header["data"] == "noise" and header["minutes"] > 0
    assert header["metrics"]["loss"] == pytest.approx(sum(losses) / 12)
    from_state = checkpoints.load_model(tmp_path / "state.safetensors")
    torch.testing.assert_close(from_state.draw(2, seed=0), t.recipe.draw(2, seed=0))


def test_sampling_in_between_does_not_change_the_run(tmp_path):
    assert run(trainer(tmp_path, sample_every=2, samples=2)) == run(trainer())


def test_the_bar_is_one_line_with_the_loss(capsys):
    list(trainer().run(images().batches(8), bar=True))
    shown = capsys.readouterr().err
    assert "12/12" in shown and "loss=" in shown and "step" in shown and shown.count("\n") == 1


def test_the_bar_asks_for_the_loss_twice_a_second_at_most():
    from diffusion_course.training.terminal import Bar
    asked = []

    class Loss:
        def item(self):
            asked.append(1)
            return 0.5

    bar = Bar(0, 100)
    for _ in range(100):
        bar.show(Loss())
    bar.close()
    assert len(asked) <= 3


def test_tensorboard(tmp_path):
    run(trainer(tmp_path, tracker="tensorboard"), 4)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_only_trainable_weights_are_trained(tmp_path):
    recipe = ddpm.recipe(**TINY)
    for name, p in recipe.model.named_parameters():
        p.requires_grad_("out" in name)
    before = {name: x.clone() for name, x in recipe.model.state_dict().items()}
    t = Trainer(recipe, tmp_path, steps=3)
    run(t)
    changed = {name for name, x in recipe.model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed and all("out" in name for name in changed)
    saved = container.read(tmp_path / "state.safetensors")[0]
    assert {name.split("/")[0] for name in saved if name.startswith("optimizer.")} == \
        {f"optimizer.{name}" for name, p in recipe.model.named_parameters() if p.requires_grad}


def test_a_training_free_recipe_has_nothing_to_train():
    with pytest.raises(ValueError, match="training-free"):
        Trainer(Recipe(nn.Linear(1, 1), None, None, (1,)))


@pytest.mark.fault
def test_a_torn_log_does_not_stop_a_resume(tmp_path):
    run(trainer(tmp_path), 8)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 9, "loss": 1.0}) + "\n")      # more than was saved
    t = trainer(tmp_path)
    t.resume()
    assert len(t.losses) == 8
