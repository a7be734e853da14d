"""Lesson 05, Imagen: thresholds that move, a level told and a level used, crops and the whole."""
import math

import torch
from torch import nn

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor


# 5.1 ------------------------------------------------------------------------------------------------------
def dynamic_threshold(x0, percentile):
    s = x0.abs().flatten(1).quantile(percentile, dim=1).clamp_min(1)           # [B], one for each image
    s = s.reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def check_dynamic_threshold(answer, g):
    for shape, percentile in (((4, 1, 8, 8), 0.95), ((3, 2, 5), 0.9), ((4, 3, 16, 16), 0.995)):
        spread = torch.tensor([0.3, 3.0, 0.9, 1.6])[:shape[0]].reshape(-1, *[1] * (len(shape) - 1))
        x0 = spread * (torch.randn(shape, generator=g) + 0.3)
        x0[0] = x0[0].clamp(-0.9, 0.9)
        x0[0].view(-1)[0] = 1.7                                # one pixel too bright in a mild image
        out = tensor(answer(x0, percentile), shape, "What it returns")
        if out.abs().max() > 1 + 1e-5:
            raise Wrong(f"The largest |pixel| that it returns is {out.abs().max():.2f}; after thresholding "
                        "none is over 1.")
        want = dynamic_threshold(x0, percentile)
        agree(out[0], want[0], "An image whose percentile s is under 1 (only clipped, not stretched)")
        agree(out[1:], want[1:], "An image whose percentile s is over 1")


def by_percentile(x0, s):
    return x0.clamp(-s, s) / s


def spread_of(x0, percentile):
    return x0.abs().flatten(1).quantile(percentile, dim=1).reshape(-1, *[1] * (x0.ndim - 1))


first = Exercise(
    key="5.1", title="dynamic threshold", points=1,
    prompt="x0 [B, ...] are guesses of images, percentile is a number from 0 to 1. For each image let s be "
           "that percentile of |x0| over all its pixels (torch.quantile). Where s is over 1, clip the image "
           "to [-s, s] and divide it by s. Where it is not, clip to [-1, 1]. Return the images.",
    hints=("Each image has its own s: flatten(1) makes a row of pixels of each, and dim=1 keeps rows apart.",
           "A percentile under 1 must not stretch a mild image: clamp s from below at 1, and both cases "
           "become one.",
           "s = x0.abs().flatten(1).quantile(percentile, dim=1).clamp_min(1), reshaped to [B, 1, ...]; then "
           "x0.clamp(-s, s) / s."),
    check=check_dynamic_threshold, solution=dynamic_threshold,
    why="Clipping at 1 makes every pixel beyond it equal. Dividing by s first keeps their order, for all but "
        "the few beyond s. Where guidance did no harm s is at most 1, and nothing changes.",
    wrong=(
        (lambda x0, percentile: x0.clamp(-1, 1),
         "That is static thresholding: all pixels beyond 1 become alike. Divide by s where s is over 1."),
        (lambda x0, percentile: by_percentile(x0, x0.abs().flatten().quantile(percentile).clamp_min(1)),
         "One s for the whole batch: so a wild image darkens its neighbours. Take s image by image."),
        (lambda x0, percentile: by_percentile(x0, spread_of(x0, percentile)),
         "Where s is under 1 this stretches a mild image until it saturates. Let s be 1 at least."),
        (lambda x0, percentile: x0 / spread_of(x0, percentile).clamp_min(1),
         "The few pixels beyond s stay beyond 1. Clip to [-s, s] before you divide."),
        (lambda x0, percentile: x0.clamp(-(s := spread_of(x0, percentile).clamp_min(1)), s),
         "Clipped to [-s, s], but not divided by s, so pixels are still beyond 1."),
        (lambda x0, percentile: by_percentile(x0, x0.flatten(1).quantile(percentile, dim=1).clamp_min(1)
                                              .reshape(-1, *[1] * (x0.ndim - 1))),
         "The percentile is that of x0; take it of |x0|, because dark pixels run away as well as bright "
         "ones.")))


# 5.2 ------------------------------------------------------------------------------------------------------
def damage(levels, c):
    alpha, sigma = torch.cos(levels * math.pi / 2), torch.sin(levels * math.pi / 2)
    gain = alpha * c**2 / (alpha**2 * c**2 + sigma**2)         # of the best guess at the level told, [L]
    signal = (1 - gain[None, :] * alpha[:, None]) * c          # what is lost of x0: row used, column told
    noise = gain[None, :] * sigma[:, None]                     # what gets through of the noise
    return signal**2 + noise**2


def check_damage(answer, g):
    for c in (0.6, 1.7, 1.0):
        levels = torch.rand(5, generator=g).sort().values * 0.8 + 0.1
        out = tensor(answer(levels, c), (5, 5), "The table")
        want = damage(levels, c)
        agree(out.diagonal(), want.diagonal(), "The error where the level told is the level used")
        if (out < out.diagonal()[:, None] - 1e-6).any():
            raise Wrong("In some row a false level is better than the true one. Is a row one level used?")
        agree(out, want, "The error where the levels differ")


def table(levels, c, power=2, own=False, plain=False, unit=False):
    alpha, sigma = torch.cos(levels * math.pi / 2), torch.sin(levels * math.pi / 2)
    v = 1.0 if unit else c**2
    gain = (alpha * v / (alpha**2 * v + sigma**2))[None, :]
    kept = 1 if plain else alpha[None, :] if own else alpha[:, None]
    through = sigma[None, :] if own else sigma[:, None]
    return (1 - gain * kept) ** 2 * c**2 + gain**power * through**power


second = Exercise(
    key="5.2", title="the level told and the level used", points=2,
    prompt="A small image is one number x0 with mean 0 and standard deviation c. It is corrupted at a level "
           "l: y = alpha x0 + sigma n with alpha = cos(pi l / 2), sigma = sin(pi l / 2) and n Gaussian. A "
           "network that is told the level m gives the best guess of x0 for that level. levels [L] holds the "
           "levels. Return the table [L, L] of its mean squared error: a row for each level used to corrupt, "
           "a column for each level told.",
    hints=("The best guess is a multiple of y. With alpha and sigma of the level told, the factor is "
           "alpha c^2 / (alpha^2 c^2 + sigma^2).",
           "Put y of the level used into gain * y - x0. It has a part with x0 and a part with n; they are "
           "independent, so the squares of both add up.",
           "error = (1 - gain[told] * alpha[used])^2 c^2 + gain[told]^2 sigma[used]^2."),
    check=check_damage, solution=damage,
    why="Each row has its minimum on the diagonal: told less noise than there is, the network believes the "
        "noise; told more, it throws away what it could have used. So corrupt and tell with one number.",
    wrong=(
        (lambda levels, c: damage(levels, c).T,
         "Rows and columns are exchanged: the corruption goes by rows, what the network is told by columns."),
        (lambda levels, c: table(levels, c, own=True),
         "Every row is the same: the corruption should have the alpha and sigma of its row, not those of the "
         "level told."),
        (lambda levels, c: table(levels, c, power=1),
         "The noise enters with gain * sigma; its mean square is the square of that."),
        (lambda levels, c: table(levels, c, plain=True),
         "Noising also shrinks x0, by the alpha of the level used. That factor is missing."),
        (lambda levels, c: table(levels, c, unit=True),
         "The gain takes x0 for a number of variance 1; its variance is c^2."),
        (lambda levels, c: damage(levels, c).sqrt(),
         "That is the root of the mean squared error.")))


# 5.3 ------------------------------------------------------------------------------------------------------
def crop_gap(net, x, size, margin, stride):
    whole, rows = net(x), []
    for top in range(0, x.shape[2] - size + 1, stride):
        row = []
        for left in range(0, x.shape[3] - size + 1, stride):
            crop = net(x[..., top:top + size, left:left + size])
            apart = (crop - whole[..., top:top + size, left:left + size]).abs()
            row.append(apart[..., margin:size - margin, margin:size - margin].max())
        rows.append(torch.stack(row))
    return torch.stack(rows)


class Strided(nn.Module):
    """Two convolutions round a mean over 2 x 2 pixels, and where asked a table added by position."""

    def __init__(self, g, table=0.0):
        super().__init__()
        self.first, self.second = (nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False) for _ in range(2))
        for p in self.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
        self.table = table * torch.randn(1, 1, 64, 64, generator=g).cumsum(2).cumsum(3) / 8

    def forward(self, x):
        h = self.first(x) + self.table[..., :x.shape[2], :x.shape[3]]
        h = nn.functional.avg_pool2d(h, 2)
        return self.second(nn.functional.interpolate(h, scale_factor=2.0))


def check_crop_gap(answer, g):
    for height, width, size, margin, stride in ((14, 20, 8, 1, 4), (16, 12, 10, 2, 2), (12, 16, 8, 3, 4)):
        x = torch.randn(2, 1, height, width, generator=g)
        for net, what in ((Strided(g, table=1.0), "with a table of absolute positions"),
                          (Strided(g), "of convolutions only")):
            want = crop_gap(net, x, size, margin, stride)
            agree(answer(net, x, size, margin, stride), want, f"The table of gaps for a network {what}")


def gaps(net, x, size, margin, stride, swap=False, how=lambda apart: apart.abs().max()):
    whole, (high, wide) = net(x), x.shape[2:]
    rows = []
    for top in range(0, high - size + 1, stride):
        row = []
        for left in range(0, wide - size + 1, stride):
            a, b = (min(left, high - size), min(top, wide - size)) if swap else (top, left)
            apart = net(x[..., top:top + size, left:left + size]) - whole[..., a:a + size, b:b + size]
            row.append(how(apart[..., margin:size - margin, margin:size - margin]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


third = Exercise(
    key="5.3", title="crops and the whole", points=3,
    prompt="net maps images [B, 1, H, W] of any size to images of that size. Compare what it makes of a crop "
           "with the same place in what it makes of the whole x. Crops are size x size; their upper left "
           "corners are at all multiples of stride (rows and columns from 0) for which the crop fits. Leave "
           "out the outer `margin` pixels of the crop. Return for each crop the largest absolute difference "
           "over the batch and the remaining pixels: [crops down, crops across].",
    hints=("Run net once on x; run it on each crop x[..., top:top + size, left:left + size], and compare "
           "with that part of the first result.",
           "margin pixels go away on all four sides of the crop's result and of the part of the whole.",
           "range(0, H - size + 1, stride) has the rows; (crop - part).abs() cut to [margin:size - margin] "
           "in both directions, then max()."),
    check=check_crop_gap, solution=crop_gap,
    why="Convolutions do the same everywhere: away from its border a crop gives what the whole gives, if it "
        "starts where the strides meet. So a network may learn from crops and work on wholes. A table of "
        "absolute positions tells a crop that it is the upper left corner, wherever it was cut. Normalising "
        "over the whole image couples distant pixels as well: try your function on the course's U-Net.",
    wrong=(
        (lambda net, x, size, margin, stride: gaps(net, x, size, 0, stride),
         "The border of the crop counts here, where the network sees zeros in place of neighbours. Leave out "
         "margin pixels on each side."),
        (lambda net, x, size, margin, stride: gaps(net, x, size, margin, stride, swap=True),
         "Rows and columns are exchanged in the part of the whole that the crop is compared with."),
        (lambda net, x, size, margin, stride: gaps(net, x, size, margin, stride, how=torch.max),
         "This is the largest signed difference; one far below zero goes unseen. Take the absolute value."),
        (lambda net, x, size, margin, stride: gaps(net, x, size, margin, stride,
                                                   how=lambda apart: apart.abs().mean()),
         "That is the mean over the pixels. The largest difference was asked for."),
        (lambda net, x, size, margin, stride: gaps(net, x, size, margin, 1),
         "These crops start at every pixel. Start at multiples of stride only: between them even a network "
         "of convolutions with strides gives something else.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="5.w", title="three rescues for a bag of words", points=3,
    prompt="With a frozen bag of words 14 % of the held-out sentences are drawn in order, with one layer "
           "of attention 91 %. Three rescues are proposed: (a) train the vectors of the bag's words "
           "together with the picture model; (b) train on ten times as many pictures; (c) change the data, "
           "so that either of the two digits may stand on the left. After which of them can the bag do "
           "about as well as the encoder with attention, and why?",
    rubric=("(a) does not help: a bag adds up its words, so both orders give the same vector, whatever the "
            "word vectors are.",
            "(b) does not help: one input belongs to two kinds of pictures, so the order can only be "
            "guessed, however many pictures there are.",
            "(c) helps: then a picture depends only on which digits are named, and that is what a bag "
            "keeps."),
    answer="A three and a seven, or a seven and a three: the sum of the words is the same. Other word "
           "vectors change the sum, but for both sentences alike, so training the bag does not help. More "
           "pictures teach the picture model that both orders occur, and not which one is meant. If either "
           "digit may stand on the left, the order says nothing about the picture. Then the bag has lost "
           "nothing that is needed, and does about as well.")
