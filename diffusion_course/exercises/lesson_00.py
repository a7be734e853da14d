"""Lesson 00, first contact: points in the plane and noise.  alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
import torch

from ..classroom.exercise import Exercise, Question, agree


def alpha(t):
    return torch.cos(torch.pi / 2 * t)[:, None]                # [N, 1]


def sigma(t):
    return torch.sin(torch.pi / 2 * t)[:, None]


def x0_hat(x, t, noise_hat):
    return (x - sigma(t) * noise_hat) / alpha(t)


def draw(g, count):
    """Points and noise [N, 2], and times [N] that keep away from both ends."""
    return (torch.randn(count, 2, generator=g), torch.randn(count, 2, generator=g),
            0.1 + 0.8 * torch.rand(count, generator=g))


# 0.1 ------------------------------------------------------------------------------------------------------
def cosine_add_noise(x0, t, noise):
    alpha = torch.cos(torch.pi / 2 * t)[:, None]               # [N, 1], to multiply both coordinates
    sigma = torch.sin(torch.pi / 2 * t)[:, None]
    return alpha * x0 + sigma * noise                          # [N, 2]


def check_add_noise(answer, g):
    for count in (2, 5):                                       # with 2 points, t [2] fits the wrong axis too
        x0, noise, t = draw(g, count)
        agree(answer(x0, t, noise), alpha(t) * x0 + sigma(t) * noise, "x_t")


first = Exercise(
    key="0.1", title="add noise", points=1,
    prompt="Return x_t = alpha * x0 + sigma * noise, with alpha = cos(pi t / 2) and sigma = sin(pi t / 2). "
           "x0 and noise are [N, 2]; t is [N], one time for each point.",
    hints=("At t = 0 the result is x0, at t = 1 it is the noise.",
           "alpha is [N] and x0 is [N, 2]: which axes meet when they are multiplied?",
           "alpha = torch.cos(torch.pi / 2 * t)[:, None] is [N, 1] and multiplies both coordinates."),
    check=check_add_noise, solution=cosine_add_noise,
    why="alpha^2 + sigma^2 = 1, so data of variance 1 keep variance 1 at every time.",
    wrong=(
        (lambda x0, t, noise: alpha(t).T * x0 + sigma(t).T * noise,
         "t has one value for each point, but here it multiplies along the coordinates: [N] lines up with "
         "the last axis of [N, 2]. Give it a second axis, t[:, None], to make it [N, 1]."),
        (lambda x0, t, noise: sigma(t) * x0 + alpha(t) * noise,
         "alpha and sigma have changed places: time starts at 0 with the data, where alpha = 1."),
        (lambda x0, t, noise: alpha(t) * x0 + (1 - alpha(t)) * noise,
         "sigma is not 1 - alpha: it is the squares that add up to 1, so sigma = sin(pi t / 2)."),
        (lambda x0, t, noise: (1 - t[:, None]) * x0 + t[:, None] * noise,
         "That is the straight mix (1 - t) x0 + t noise, which has too little variance half-way; here "
         "alpha is a cosine of t, and sigma a sine.")))


# 0.2 ------------------------------------------------------------------------------------------------------
def cosine_guess_x0(x, t, noise_hat):
    alpha = torch.cos(torch.pi / 2 * t)[:, None]               # [N, 1]
    sigma = torch.sin(torch.pi / 2 * t)[:, None]
    return (x - sigma * noise_hat) / alpha                     # [N, 2]


def check_guess_x0(answer, g):
    for count in (2, 5):
        x0, noise, t = draw(g, count)
        agree(answer(alpha(t) * x0 + sigma(t) * noise, t, noise), x0,
              "With the very noise that was added for noise_hat, the guess")


second = Exercise(
    key="0.2", title="guess the data", points=2,
    prompt="Given x = x_t [N, 2], its times t [N] and noise_hat [N, 2], a guess of the noise in x, return "
           "the clean data x0_hat [N, 2] that the guess implies.",
    hints=("Start from x = alpha * x0 + sigma * noise. Which of these do you know?",
           "Put noise_hat in the place of noise and solve the equation for x0."),
    check=check_guess_x0, solution=cosine_guess_x0,
    why="It undoes exercise 0.1: mixing the result with noise_hat again gives x back.",
    wrong=(
        (lambda x, t, noise_hat: x - sigma(t) * noise_hat,
         "What is left once the noise is taken away is alpha * x0, which is too small: divide by alpha."),
        (lambda x, t, noise_hat: (x + sigma(t) * noise_hat) / alpha(t),
         "The sign is wrong: the noise was added, so take it away."),
        (lambda x, t, noise_hat: (x - sigma(t) * noise_hat) / sigma(t),
         "Divide by alpha, not by sigma: it was alpha that x0 was multiplied by."),
        (lambda x, t, noise_hat: (x - alpha(t) * noise_hat) / sigma(t),
         "alpha and sigma have changed places: sigma goes with the noise, alpha with the data.")))


# 0.3 ------------------------------------------------------------------------------------------------------
def cosine_step(x, t, s, noise_hat):
    x0_hat = cosine_guess_x0(x, t, noise_hat)                  # where x seems to come from
    return cosine_add_noise(x0_hat, s, noise_hat)              # and back, with less of the same noise


def check_step(answer, g):
    for count in (2, 5):
        x, noise_hat, t = draw(g, count)
        s = t * torch.rand(count, generator=g)
        agree(answer(x, t, s, noise_hat), alpha(s) * x0_hat(x, t, noise_hat) + sigma(s) * noise_hat, "x_s")


third = Exercise(
    key="0.3", title="one step back", points=3,
    prompt="Move x [N, 2] from times t [N] to earlier times s [N]: guess the clean data by means of "
           "noise_hat [N, 2], then put noise_hat back, as much of it as belongs to time s. Return x_s "
           "[N, 2].",
    hints=("You have written both halves already, in exercises 0.2 and 0.1.",
           "x_s = alpha(s) * x0_hat + sigma(s) * noise_hat, where x0_hat is the guess from time t.",
           "cosine_add_noise(cosine_guess_x0(x, t, noise_hat), s, noise_hat)"),
    check=check_step, solution=cosine_step,
    why="Both halves use the same noise_hat: a step from t to t changes nothing, and a step to s = 0 gives "
        "the guess of the clean data. This is the step of DDIM (Song, Meng & Ermon 2020).",
    wrong=(
        (lambda x, t, s, noise_hat: x0_hat(x, t, noise_hat),
         "That is x0_hat, a jump all the way to time 0. Put noise_hat back, as much as belongs to time s."),
        (lambda x, t, s, noise_hat: alpha(s) * x0_hat(x, t, noise_hat) + sigma(t) * noise_hat,
         "The noise that is put back must have the size of time s, sigma(s), not that of time t."),
        (lambda x, t, s, noise_hat: alpha(t) * x0_hat(x, t, noise_hat) + sigma(s) * noise_hat,
         "The clean data must be scaled to time s, by alpha(s), not by that of time t."),
        (lambda x, t, s, noise_hat: cosine_add_noise(x0_hat(x, t, noise_hat), s, torch.randn_like(x)),
         "New noise is drawn, but this step draws none: what it puts back is noise_hat, the noise it "
         "guessed.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="0.w", title="two points and one jump", points=3,
    prompt="The data are two points, (-1, 0) and (1, 0), equally likely. A network has learned the best "
           "guess of the noise, with the lesson's loss and schedule. (a) Take one step from t = 1 straight "
           "to t = 0. Where do the samples land, and why there? (b) Why do 50 small steps from the same "
           "noise end on the two points? (c) Is the loss of this perfect network zero at all times?",
    rubric=("One step lands near the origin, whatever the noise: at t = 1 both points are about equally "
            "possible, and a squared error makes the best guess their mean.",
            "In small steps the guess is made anew with less noise: the place of x makes one point more "
            "likely, the guess leans to it, and so on until only one point is possible.",
            "No. Where both points are still possible, x does not tell which noise is in it, so even the "
            "best guess has an error."),
    answer="At t = 1 the two points can hardly be told apart, so the best guess of the data is their mean, "
           "and one jump ends near the origin, where no data are. After a small step there is less noise, "
           "and x lies a little nearer to one of the points. The next guess leans that way, and after many "
           "steps one point is left. The loss is above zero wherever x may come from either point: the "
           "noise cannot be known there, and no training changes that.")
