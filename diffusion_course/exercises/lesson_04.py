"""Lesson 04, latent diffusion: a scale that is kept, attention without padding, a choice of compression."""
import math

import torch
from torch import nn

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor, unpack


# 4.1 ------------------------------------------------------------------------------------------------------
def scale_once(model, z):
    if "scale_factor" not in model.state_dict():
        model.register_buffer("scale_factor", 1 / z.std())     # of all components of the first batch
    return z * model.scale_factor


def check_scale_once(answer, g):
    def latents(std):                                          # four channels of different means and sizes
        size = std * torch.tensor([0.5, 1.0, 1.5, 2.0]).reshape(1, 4, 1, 1)
        return size * (0.3 + torch.randn(6, 4, 3, 3, generator=g))

    for std in (3.0, 0.2):
        first, second, third = latents(std), latents(4 * std), latents(0.5 * std)
        model = nn.Linear(2, 3)
        agree(answer(model, first), first / first.std(), "The first batch, scaled,")
        agree(answer(model, second), second / first.std(), "The second batch, scaled as the first was,")
        state = model.state_dict()
        if "scale_factor" not in state:
            raise Wrong(f"The state dict has no scale_factor, only {', '.join(state)}: a model that is "
                        "saved and loaded again would not know its scale. register_buffer puts it there.")
        if "scale_factor" in dict(model.named_parameters()):
            raise Wrong("scale_factor is a parameter, so an optimizer would train it; a buffer is only kept.")
        loaded = nn.Linear(2, 3)
        loaded.register_buffer("scale_factor", torch.ones_like(state["scale_factor"]))
        loaded.load_state_dict(state)
        agree(answer(loaded, third), third / first.std(), "A batch scaled by the model after reloading")


def as_attribute(model, z):
    if not hasattr(model, "scale_factor"):
        model.scale_factor = 1 / z.std()
    return z * model.scale_factor


first = Exercise(
    key="4.1", title="a scale that is kept", points=1,
    prompt="model is an nn.Module and z [B, C, H, W] are latents. On the first call for a model, measure one "
           "number, scale_factor = 1 / (standard deviation of all components of z), and keep it under that "
           "name in the model's state dict, where no optimizer trains it. Later calls, also for a model "
           "that was reloaded, use what is kept. Return z, scaled.",
    hints=("What belongs to a model but is not trained is a buffer.",
           "model.register_buffer(name, value) makes one. Do it only if the state dict has no such name yet.",
           'if "scale_factor" not in model.state_dict(): model.register_buffer("scale_factor", 1 / z.std()); '
           "then return z * model.scale_factor."),
    check=check_scale_once, solution=scale_once,
    why="Whoever decodes needs the very number that training used. A buffer is saved and loaded with the "
        "weights and moves to the GPU with them, but has no gradient. One number for all channels keeps "
        "their proportions, which the decoder knows.",
    wrong=(
        (lambda model, z: z / z.std(dim=(0, 2, 3), keepdim=True),
         "Each channel has a factor of its own here. The paper's code measures one number for all of them."),
        (lambda model, z: z / z.var(),
         "Divided by the variance, latents have standard deviation 1 / std. Divide by its root."),
        (lambda model, z: (z - z.mean()) / z.std(),
         "The mean is subtracted, too. Only the size is changed, by one factor."),
        (lambda model, z: z * z.std(),
         "This multiplies by the standard deviation; that undoes the scale, which is for decoding."),
        (lambda model, z: z / z.std(),
         "This batch was measured itself. Only the very first one is: after it, and in a reloaded model, the "
         "number that is kept counts."),
        (as_attribute,
         "A tensor that is simply assigned to an attribute is not part of the state dict, so it is lost "
         "when the model is saved.")))


# 4.2 ------------------------------------------------------------------------------------------------------
def attend_to_words(q, k, v, real):
    scores = q @ k.mT / q.shape[-1] ** 0.5                     # [B, N, L]
    scores = scores.masked_fill(~real[:, None], -1e9)
    weights = scores.softmax(dim=-1) * real[:, None]           # where all is padding, nothing is left
    return weights @ v


def check_attend(answer, g):
    what = "What the picture sees of the words"
    for b, n, length, d in ((2, 3, 5, 4), (3, 4, 6, 8)):
        q, k, v = (torch.randn(b, m, d, generator=g) for m in (n, length, length))
        real = torch.arange(length) < torch.arange(2, 2 + b)[:, None]
        seen = tensor(answer(q, k, v, real), (b, n, d), what)
        agree(seen, attend_to_words(q, k, v, real), what)
        other = torch.where(real[..., None], v, 9 * v + 1)
        if not torch.allclose(tensor(answer(q, 3 * k * ~real[..., None] + k, other, real), (b, n, d), what),
                              seen, atol=1e-4):
            raise Wrong("Other keys and values at padded places change the result.")
        same = v[:, :1].expand_as(v)                           # a text of one word, over and over
        agree(answer(q, k, same, real), same[:, :1].expand(b, n, d), "What is seen of equal words")
        empty = real.clone()
        empty[-1] = False
        agree(answer(q, k, v, empty), attend_to_words(q, k, v, empty), "With a caption that has no word, it")


def weighted(q, k, v, change=lambda scores: scores, scale=None, dim=-1, after=1.0):
    scores = q @ k.mT / (scale or q.shape[-1] ** 0.5)
    return (change(scores).softmax(dim) * after) @ v


second = Exercise(
    key="4.2", title="attention that skips padding", points=2,
    prompt="q [B, N, d] are queries of the picture, k and v [B, L, d] keys and values of L words; real [B, "
           "L] is True at words and False at padding. Return what each place of the picture sees of the "
           "words, [B, N, d]. Padding has no effect at all; of a caption without any word, zeros are seen.",
    hints=("Scores are q k^T / sqrt(d), [B, N, L]. Must padding be taken out before or after the softmax?",
           "Give padding a score of minus infinity, or nearly: scores.masked_fill(~real[:, None], -1e9).",
           "In a caption without words all scores are alike, and softmax spreads evenly over padding. "
           "Multiply its weights by real[:, None] once more."),
    check=check_attend, solution=attend_to_words,
    why="exp(-1e9) is 0, so the softmax shares its weight among the real words only. Weights sum to one, so "
        "equal words give the same answer however many there are. A caption of nothing but padding is the "
        "null of guidance; with true infinities its row would be 0 / 0.",
    wrong=(
        (lambda q, k, v, real: weighted(q, k, v),
         "There is no mask: padding is attended to like any word."),
        (lambda q, k, v, real: weighted(q, k, v, lambda s: s * real[:, None]),
         "A score of 0 is not out of the race: exp(0) = 1. Padding needs a score of minus infinity."),
        (lambda q, k, v, real: weighted(q, k, v, after=real[:, None]),
         "Padding is removed after the softmax, so the weights of the words no longer sum to one. Mask "
         "before."),
        (lambda q, k, v, real: weighted(q, k, v, lambda s: s.masked_fill(~real[:, None], -1e9), scale=1.0),
         "The scores are not divided by sqrt(d)."),
        (lambda q, k, v, real: weighted(q, k, v, lambda s: s.masked_fill(~real[:, None], -1e9), dim=1),
         "The softmax runs over the places of the picture. Each place shares its attention among the words, "
         "so it runs over the last axis."),
        (lambda q, k, v, real: weighted(q, k, v, lambda s: s.masked_fill(~real[:, None], -1e9)),
         "Right wherever there are words. But a caption without any gets the mean of its padding, since all "
         "scores are equally low.")))


# 4.3 ------------------------------------------------------------------------------------------------------
def choose(floor, short, long, n, cost, budget):
    power = ((short - floor) / (long - floor)).log() / math.log(4)             # of n to 4n
    errors = floor + (short - floor) * (budget / cost / n) ** -power
    return errors.argmin(), errors


def check_choose(answer, g):
    for k in (3, 4, 5):
        floor = 1 + torch.arange(k) ** 2 + torch.rand(k, generator=g)
        cost = 8 * 0.4 ** torch.arange(k) * (1 + 0.2 * torch.rand(k, generator=g))
        power, c = 0.3 + 0.4 * torch.rand(k, generator=g), 40 + 20 * torch.rand(k, generator=g)
        n = 20.0
        short, long = floor + c * n**-power, floor + c * (4 * n) ** -power
        for budget in (500.0, 20_000.0, 1e6):
            args = floor, short, long, n, cost, budget
            index, errors = unpack(answer(*args), "the index", "the errors")
            best, expected = choose(*(a.double() if torch.is_tensor(a) else a for a in args))
            agree(tensor(errors, (k,), "The errors"), expected, "The errors expected")
            if int(tensor(index, (), "The index").reshape(-1)[0]) != best:
                raise Wrong(f"The index should be that of the smallest error, {int(best)}.")


def foreseen(floor, short, long, steps, n, base=4.0):
    power = ((short - floor) / (long - floor)).log() / math.log(base)
    errors = floor + (short - floor) * (steps / n) ** -power
    return errors.argmin(), errors


third = Exercise(
    key="4.3", title="how much to compress", points=3,
    prompt="For each of K factors: floor [K], the error of the autoencoder alone; short and long [K], "
           "errors of samples after n and after 4n steps of diffusion; cost [K] of one step. Suppose "
           "error(steps) = floor + c steps^(-p), with c and p of each factor's own. Return the index of the "
           "factor that is best when the whole budget is spent on it, and the errors [K] to expect.",
    hints=("The floor does not shrink. What falls as a power is the rest, short - floor and long - floor.",
           "From n to 4n steps the rest shrinks by 4^-p, which gives p for each factor.",
           "A budget buys budget / cost steps; the rest is then (short - floor) (steps / n)^-p. Add the "
           "floor."),
    check=check_choose, solution=choose,
    why="With little to spend, the cheapest latents win, because diffusion on them gets the most steps. "
        "With much to spend, diffusion's share goes to zero everywhere and the lowest floor wins. So there "
        "is no best compression as such.",
    wrong=(
        (lambda floor, short, long, n, cost, budget: foreseen(0 * floor, short, long, budget / cost, n),
         "The whole error is extrapolated here, floor included. More diffusion does not mend the "
         "autoencoder."),
        (lambda floor, short, long, n, cost, budget: foreseen(floor, short, long, budget, n),
         "All factors get as many steps here. A step on small latents is cheaper, so the budget buys more "
         "of them."),
        (lambda floor, short, long, n, cost, budget: foreseen(floor, short, long, budget / cost, n, 2.0),
         "long is measured after 4n steps, not 2n: divide the logarithm by log 4."),
        (lambda floor, short, long, n, cost, budget: foreseen(floor, short, long, budget / cost, 1.0),
         "short belongs to n steps, not to one: the rest is (short - floor) (steps / n)^-p."),
        (lambda floor, short, long, n, cost, budget: (long.argmin(), long),
         "These are the errors after 4n steps. The budget is another, and each factor buys steps at its "
         "own cost."),
        (lambda floor, short, long, n, cost, budget: (floor.argmin(), floor),
         "That is the floor alone, as if diffusion were perfect.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="4.w", title="latents that are too well behaved", points=3,
    prompt="Somebody picks the KL weight for which the latents are closest to N(0, I). In the lesson's "
           "sweep that is weight 10, with 0.0 nats and an error of 0.153. (a) What do these latents say "
           "about an image? (b) A diffusion model is trained on them. How well can it learn their "
           "distribution, and what do its samples look like when decoded? (c) With weight 1e-6 random "
           "latents decode to nonsense. Why does the paper choose it all the same?",
    rubric=("Nothing: the encoder says the same of every image, so the latents are noise alone (the "
            "posterior has collapsed).",
            "It learns them easily, since they are just Gaussian noise, but all samples decode to the same "
            "blur.",
            "With little KL the reconstructions stay good, which limits all samples. That the latents are "
            "not Gaussian does not matter, since diffusion learns their distribution."),
    answer="At 0.0 nats the latents are the same N(0, I) for every image, so they carry nothing. A "
           "diffusion model learns this distribution without trouble, but whatever it draws decodes to the "
           "same blur. What the decoder cannot draw, no diffusion model brings back, so good "
           "reconstructions come first. Latents from N(0, I) are never decoded: diffusion learns where the "
           "latents of images lie, and draws from there.")
