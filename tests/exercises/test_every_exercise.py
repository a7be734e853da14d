"""What holds for each exercise of each lesson, and what learners may write besides the expected."""
import math
import time

import numpy as np
import pytest
import torch

from diffusion_course.classroom.exercise import judge
from diffusion_course.diffusion.likelihood import posterior
from diffusion_course.diffusion.samplers import ddim_step
from diffusion_course.diffusion.schedules import Cosine, DiscreteVP, cosine_beta, linear_beta
from diffusion_course.exercises import find, lessons, of_lesson, solution

ALL = [exercise for lesson in lessons() for exercise in of_lesson(lesson)]
each = pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.key)


def mapped(change, solution):
    """The solution, with each thing that it returns changed."""
    def answer(*args):
        out = solution(*args)
        return tuple(map(change, out)) if isinstance(out, tuple) else change(out)
    return answer


def test_keys_are_those_of_their_lessons():
    assert lessons() == sorted(lessons()) and {"00", "01"} <= set(lessons())
    for lesson in lessons():
        keys = [exercise.key for exercise in of_lesson(lesson)]
        assert keys == [f"{int(lesson)}.{n + 1}" for n in range(len(keys))] and len(keys) >= 3
        points = [exercise.points for exercise in of_lesson(lesson)]
        assert points == sorted(points) and points[0] > 0      # easy ones first


@each
def test_what_solution_prints_is_a_solution_in_the_notebook(exercise, capsys):
    """Pasted below `import torch`, it passes its check: nothing that it uses is missing."""
    solution(exercise.key)
    code, space = capsys.readouterr().out.removesuffix(f"\n\n{exercise.why}\n"), {"torch": torch}
    exec(code, space)
    assert judge(exercise, space[exercise.solution.__name__], seconds=60) == (True, "")


@each
def test_everything_is_said(exercise):
    texts = [exercise.title, exercise.prompt, exercise.why, *exercise.hints]
    texts += [hint for _, hint in exercise.wrong]
    assert all(len(text) > 8 and text.isascii() and text == text.strip() for text in texts)
    assert 2 <= len(exercise.hints) <= 3 and len(exercise.wrong) >= 2
    assert len(set(texts)) == len(texts)


@each
def test_the_solution_passes_always(exercise):
    for seed in (0, 5):
        torch.manual_seed(seed)
        assert judge(exercise, exercise.solution, seconds=60) == (True, "")


@each
def test_the_stub_is_not_solved_yet(exercise):
    names = {}
    exec(exercise.stub, names)
    stub = names[exercise.solution.__name__]
    assert judge(exercise, stub)[0] is None
    assert " ".join(stub.__doc__.split()) == " ".join(exercise.prompt.split())


@pytest.mark.parametrize("exercise, wrong", [(e, pair) for e in ALL for pair in e.wrong],
                         ids=[f"{e.key}-{n}" for e in ALL for n in range(len(e.wrong))])
def test_each_wrong_answer_gets_its_own_hint(exercise, wrong):
    function, hint = wrong
    verdict, text = judge(exercise, function, seconds=60)
    assert verdict is False and text.splitlines()[1] == hint
    assert text.splitlines()[0] and judge(exercise, function, seconds=60) == (verdict, text)


JUNK = {
    "inputs": lambda solution: lambda *args: args,
    "first input": lambda solution: lambda *args: args[0],
    "last input": lambda solution: lambda *args: args[-1],
    "zeros": lambda solution: mapped(torch.zeros_like, solution),
    "ones": lambda solution: mapped(torch.ones_like, solution),
    "a constant": lambda solution: lambda *args: 0.5,
    "two constants": lambda solution: lambda *args: (0.5, 1),
    "NaN": lambda solution: mapped(lambda out: out * math.nan, solution),
    "infinity": lambda solution: mapped(lambda out: out + math.inf, solution),
    "another shape": lambda solution: mapped(lambda out: out.expand(2, *out.shape), solution),
    "too few": lambda solution: mapped(lambda out: out.reshape(-1)[:-1], solution),
    "truth": lambda solution: mapped(lambda out: out > 0, solution),
    "complex": lambda solution: mapped(lambda out: out + 0j, solution),
    "whole numbers": lambda solution: mapped(torch.Tensor.int, solution),
    "a string": lambda solution: lambda *args: "done",
    "strings": lambda solution: mapped(str, solution),
    "a dictionary": lambda solution: lambda *args: {"out": solution(*args)},
    "nothing": lambda solution: lambda *args: (),
    "an error": lambda solution: lambda *args: 1 / 0,
    "no arguments": lambda solution: lambda: 1,
    "nearly": lambda solution: mapped(lambda out: out * 1.1, solution),
    "negative": lambda solution: mapped(torch.neg, solution),
}


@pytest.mark.parametrize("junk", JUNK)
@each
def test_junk_is_wrong_and_says_why(exercise, junk):
    verdict, text = judge(exercise, JUNK[junk](exercise.solution))
    assert verdict is False
    assert 1 <= len(text.splitlines()) <= 2 and 10 < len(text) < 400 and "cannot be judged" not in text


@each
def test_a_loop_without_end_is_stopped(exercise):
    def loop(*args):
        end = time.monotonic() + 6
        while time.monotonic() < end:
            pass
    assert judge(exercise, loop, seconds=0.1)[0] is False


@each
def test_a_result_learned_by_heart_is_wrong(exercise):
    known = []

    def answer(*args):
        known.append(exercise.solution(*args))
        return known[0]
    assert judge(exercise, answer)[0] is False and len(known) > 1


@each
def test_inputs_differ_and_do_not_depend_on_the_seed(exercise):
    def inputs():
        seen = []

        def answer(*args):
            seen.append([torch.as_tensor(a).flatten().tolist() for a in args])
            return exercise.solution(*args)
        judge(exercise, answer)
        return seen

    first, again = inputs(), torch.manual_seed(9) and inputs()
    assert first == again and all(a != b for a, b in zip(first, first[1:]))


@each
def test_other_types_are_as_right(exercise):
    for change in (torch.Tensor.double, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.clone):
        if exercise.key != "1.3" or change is not torch.Tensor.double:         # there, n must be whole
            assert judge(exercise, mapped(change, exercise.solution)) == (True, "")


# other ways to be right -----------------------------------------------------------------------------------
def by_package_add_noise(x0, t, noise):
    alpha, sigma = Cosine().at(t, x0)
    return alpha * x0 + sigma * noise


def by_trigonometry(x, t, noise_hat):
    phi = (math.pi * t / 2).unsqueeze(-1)
    return x / phi.cos() - phi.tan() * noise_hat


class Guesses:
    """A denoiser that guesses the same noise always."""

    schedule = Cosine()

    def __init__(self, noise_hat):
        self.noise_hat = noise_hat

    def estimate(self, x, t, **cond):
        return by_trigonometry(x, t, self.noise_hat), None


def by_ddim(x, t, s, noise_hat):
    denoiser = Guesses(noise_hat)
    denoiser_call = lambda x, t, **cond: denoiser.estimate(x, t)[0]
    denoiser_call.schedule, denoiser_call.estimate = denoiser.schedule, denoiser.estimate
    return ddim_step(denoiser_call, x, t, s)


def by_precisions(x0, xn, n, betas):
    before = math.prod(1 - float(b) for b in betas[:n - 1])
    if n == 1:
        return x0, 0
    beta = float(betas[n - 1])
    precision = 1 / (1 - before) + (1 - beta) / beta
    return (before**0.5 * x0 / (1 - before) + (1 - beta)**0.5 * xn / beta) / precision, 1 / precision


def by_package_posterior(x0, xn, n, betas):
    schedule = DiscreteVP(betas)
    t = torch.full((len(x0),), n / len(betas))
    mean, small, _ = posterior(schedule, x0[:, None], xn[:, None], t, t - 1 / len(betas))
    return mean[:, 0], small[:, 0]


def by_package_betas(T):
    alpha = linear_beta(T).alpha.double()
    return 1 - (alpha[1:] / alpha[:-1]) ** 2


def by_bisection(T):
    """Evenly spaced betas whose last one is chosen to fit."""
    low, high = 0.0, 0.99
    for _ in range(60):
        middle = (low + high) / 2
        betas = torch.linspace(0.1 / T, middle, T).double()
        low, high = (middle, high) if (1 - betas).prod() > 4.036e-5 else (low, middle)
    return betas


def by_counting(losses, u):
    p = (losses.double() ** 2).mean(dim=1) ** 0.5
    p = p / p.sum() * 0.999 + 0.001 / len(p)
    n = (u[:, None] > p.cumsum(0)[None]).sum(1) + 1
    return n.int(), (1 / len(p)) / p[n - 1]


def by_numpy(losses, u):
    p = np.sqrt((losses.numpy() ** 2).mean(1))
    p = 0.999 * p / p.sum() + 0.001 / len(p)
    n = np.digitize(u.numpy(), np.cumsum(p)) + 1
    return n, 1 / (len(p) * p[n - 1])


def from_the_other_end(losses, u):
    n, weight = by_counting(losses.flip(0), u)
    return len(losses) + 1 - n, weight


@pytest.mark.parametrize("key, answer", [
    ("0.1", by_package_add_noise), ("0.2", by_trigonometry), ("0.3", by_ddim), ("1.1", by_precisions),
    ("1.1", by_package_posterior), ("1.2", by_package_betas), ("1.2", by_bisection), ("1.3", by_counting),
    ("1.3", by_numpy), ("1.3", from_the_other_end)])
def test_another_way_to_be_right(key, answer):
    assert judge(find(key), answer) == (True, "")


# other ways to be wrong, written independently of the lessons' own -----------------------------------------
def rows_mixed_up(x0, t, noise):
    t = t.reshape(1, -1).double()
    return (t * math.pi / 2).cos() * x0 + noise * (t * math.pi / 2).sin()


def with_new_noise(x, t, s, noise_hat):
    x0 = by_trigonometry(x, t, noise_hat)
    return by_package_add_noise(x0, s, torch.randn(x.shape))


def index_of_n(x0, xn, n, betas):
    a = 1 - betas
    bar = torch.cumprod(a, dim=0)
    mean = (bar[n - 1]**0.5 * betas[n] * x0 + a[n]**0.5 * (1 - bar[n - 1]) * xn) / (1 - bar[n])
    return mean, betas[n] * (1 - bar[n - 1]) / (1 - bar[n])


def first_order(T):
    scale = 1000 / T
    return torch.linspace(scale * 1e-4, scale * 0.02, T, dtype=torch.float64)


def squared(losses, u):
    p = (losses.double() ** 2).mean(dim=1)
    p = p / p.sum() * 0.999 + 0.001 / len(p)
    n = torch.bucketize(u, p.cumsum(0).float()) + 1
    return n, 1 / (len(p) * p[n - 1])


def indices(losses, u):
    n, weight = by_counting(losses, u)
    return n - 1, weight


def by_largest(losses, u):
    """Unbiased and of low variance, but not eq. 18."""
    n, p = steps_drawn(losses.double().max(dim=1).values, u)
    return n, 1 / (len(losses) * p)


def by_mean_weight(losses, u):
    """The right steps, and weights that are right on average only."""
    n, weight = by_counting(losses, u)
    return n, torch.full_like(weight, losses.mean() / losses[n - 1].mean())


def steps_drawn(p, u):
    p = 0.999 * p / p.sum() + 0.001 / len(p)
    n = (u[:, None] > p.cumsum(0)).sum(1) + 1
    return n, p[n - 1]


@pytest.mark.parametrize("key, answer, words", [
    ("0.1", rows_mixed_up, "t[:, None]"), ("0.3", with_new_noise, "New noise is drawn"),
    ("1.1", index_of_n, "one step late"), ("1.2", first_order, "first order"),
    ("1.2", lambda T: torch.linspace(1e-4, 0.02, 1000).double(), "1000 betas whatever T"),
    ("1.2", lambda T: (1 - cosine_beta(T).alpha[1:] ** 2 / cosine_beta(T).alpha[:-1] ** 2), "alpha_bar_T is"),
    ("1.2", lambda T: torch.full((T,), 1 - 4.036e-5 ** (1 / T)).double(), "is 0.0064 half-way"),
    ("1.2", lambda T: by_package_betas(T).flip(0), "smaller than the one before"),
    ("1.2", lambda T: torch.linspace(-1e-4, 0.4, T), "between 0 and 1"),
    ("1.3", squared, "square root is missing"), ("1.3", indices, "An index starts at 0"),
    ("1.3", lambda losses, u: (by_counting(losses, u)[0].float(), by_counting(losses, u)[1]), "n.long()"),
    ("1.3", lambda losses, u: (by_counting(losses, u)[0] + 1, torch.ones_like(u)), "steps are 1 ... 20"),
    ("1.3", lambda losses, u: ((u * len(losses)).long() + 1, torch.ones(len(u))), "as likely as any other"),
    ("1.3", lambda losses, u: (len(losses) - (u * len(losses)).int(), torch.ones(len(u))), "divided by 1;"),
    ("1.3", lambda losses, u: (by_counting(losses, u)[0], 2 * by_counting(losses, u)[1]), "2 times the true"),
    ("1.3", by_largest, "Step 1 is drawn in"), ("1.3", by_mean_weight, "The weight, compared with")])
def test_a_mistake_is_recognised_in_another_wording(key, answer, words):
    verdict, text = judge(find(key), answer)
    assert verdict is False and words in text


def test_the_stretched_schedule_is_exact():
    betas = find("1.2").solution
    torch.testing.assert_close(betas(1000), torch.linspace(1e-4, 0.02, 1000), rtol=1e-4, atol=1e-7)
    for T in (50, 300, 4000):
        assert abs((1 - betas(T).double()).prod() / 4.036e-5 - 1) < 0.002


def test_numbers_that_the_hints_state():
    betas = lambda T: torch.linspace(1e-4, 0.02, T).double()
    alpha_bar = (1 - betas(1000)).prod()
    assert abs(alpha_bar - 4.036e-5) < 1e-8
    for T in (50, 100, 400, 573, 574, 1000, 2000, 3551, 3552, 4000):
        good = abs((1 - betas(T) * 1000 / T).prod() / alpha_bar - 1) < 0.05
        assert good == (574 <= T <= 3551)
    assert "from 574 to 3551" in find("1.2").wrong[2][1]
    middle = (1 - betas(1000)[:500]).prod()
    assert abs(middle - 0.079) < 5e-4
