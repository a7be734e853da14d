"""Lesson 39, Latte: a formula of the compute, a tubelet that begins as a patch, variant 3 for any length."""
import torch
from einops import rearrange
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..classroom.exercise import Exercise, Question, Wrong, agree, close, tensor, unpack
from ..layers.embeddings import rotary_angles, rotate
from ..networks.dit import Block
from ..papers.latte import VARIANTS, ParallelBlock, SerialBlock


# 39.1 -----------------------------------------------------------------------------------------------------
def gflops(frames, tokens, dim, depth):
    count = frames * tokens
    look = lambda keys: 4 * count * keys * dim                 # q k^T, and weights times v
    block = 24 * count * dim**2                                # 4 projections, and an MLP of 8 more
    pair = 2 * block + look(tokens) + look(frames)             # one over space, one over time
    serial = block + 8 * count * dim**2 + look(tokens) + look(frames)          # 4 more projections
    parallel = block + look(tokens) / 2 + look(frames) / 2     # half of the channels each
    joint = block + look(count)
    each = [pair * depth / 2, pair * depth / 2, serial * depth, parallel * depth, joint * depth]
    return torch.tensor(each, dtype=torch.float64) / 1e9


def check_gflops(answer, g):
    for frames, tokens, dim, depth in ((8, 16, 32, 4), (16, 8, 16, 2), (4, 64, 32, 6)):
        counted = depth * torch.tensor(blocks_of(frames, tokens, dim), dtype=torch.float64)
        mine = tensor(answer(frames, tokens, dim, depth), (5,), "The list of GFLOP")
        for name, value, want in zip(VARIANTS, mine.double().tolist(), counted.tolist()):
            if not 0.95 <= value / want <= 1.05:
                raise Wrong(f"{frames} frames of {tokens} tokens, dim {dim}, {depth} blocks: for {name} the "
                            f"counter says {want:.4f} GFLOP, you {value:.4f}.")


def blocks_of(frames, tokens, dim):
    """GFLOP of a block of each variant (of the first two, the mean of both kinds), as a counter has them."""
    h, e = torch.zeros(1, frames, tokens, dim), torch.zeros(1, 1, 1, dim)

    def count(block):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            block(h, e)
        return counter.get_total_flops() / 1e9

    pair = (count(Block(dim, 4, "space")) + count(Block(dim, 4, "time"))) / 2
    return [pair, pair, *(count(kind(dim, 4, "spacetime")) for kind in (SerialBlock, ParallelBlock, Block))]


def changed_gflops(change):
    """The answer with something else added: change(frames, tokens, dim, depth) -> five times GFLOP."""
    return lambda *args: gflops(*args) + torch.tensor(change(*args), dtype=torch.float64) / 1e9


def look_of(frames, tokens, dim, depth):
    """What all the blocks over space, and over time, of a whole depth look at."""
    return [4 * frames * tokens * keys * dim * depth for keys in (tokens, frames, frames * tokens)]


first = Exercise(
    key="39.1", title="GFLOP of five variants", points=1,
    prompt="Return five numbers: the GFLOP (1e9 multiplications and additions, each counts one) that the "
           "blocks of a network take for one clip, for the variants interleaved, late, serial, parallel and "
           "joint, in this order. frames, tokens (of a frame), dim and depth (a number of blocks, even) are "
           "whole numbers. A block is that of step 2, with an MLP of 4 dim; count products of matrices, and "
           "leave out the modulation, which works once per clip. Five percent are allowed.",
    hints=("A product of [n, a] and [a, b] takes 2 n a b. With T = frames * tokens, a block has 2 * 4 T d^2 "
           "for q, k, v and out, and 2 * 8 T d^2 for the MLP.",
           "Attention of T queries to K keys each takes 2 T K d for the scores and as much for the values. "
           "K is tokens over space, frames over time, T in joint attention.",
           "serial has a second attention with its own projections: 32 T d^2 in place of 24. parallel has "
           "one set of projections, and half of the channels look in each direction."),
    check=check_gflops, solution=gflops,
    why="What works on each token alone grows with T; only the looking grows with T times the keys. So the "
        "first four hardly differ, and joint attention leaves them behind where frames * tokens is large "
        "beside 6 dim.",
    wrong=(
        (lambda *args: gflops(*args) / 2,
         "These are half as many: a product and a sum are two operations, so [n, a] times [a, b] takes "
         "2 n a b."),
        (changed_gflops(lambda f, n, d, depth: [0, 0, -8 * f * n * d * d * depth, 0, 0]),
         "serial has two attentions, each with its own q, k, v and out. You counted these projections once."),
        (changed_gflops(lambda f, n, d, depth: [0, 0, 16 * f * n * d * d * depth, 0, 0]),
         "serial has two attentions, but only one MLP."),
        (changed_gflops(lambda *args: [0, 0, 0, sum(look_of(*args)[:2]) / 2, 0]),
         "In parallel only half of the channels look over space, and the other half over time."),
        (changed_gflops(lambda *args: [-sum(look_of(*args)[:2]) / 2] * 2 + [-sum(look_of(*args)[:2])]
                        + [-sum(look_of(*args)[:2]) / 2, -look_of(*args)[2]]),
         "You counted what works on each token. The products q k^T and weights times v are missing."),
        (changed_gflops(lambda *args: [sum(look_of(*args)[:2]) / 2] * 2 + [0, 0, 0]),
         "In interleaved and late a block looks over space or over time, not over both."),
        (lambda frames, tokens, dim, depth: gflops(frames, tokens, dim, 1),
         "This is one block. A network has depth of them.")))


# 39.2 -----------------------------------------------------------------------------------------------------
def tubelet(weight, channels, tube):
    patch = rearrange(weight, "d (c p) -> d c 1 p", c=channels)
    mean = patch.expand(-1, -1, tube, -1) / tube
    central = torch.zeros_like(mean)
    central[:, :, tube // 2] = patch[:, :, 0]
    return tuple(rearrange(part, "d c f p -> d (c f p)") for part in (mean, central))


def check_tubelet(answer, g):
    for dim, channels, tube, patch in ((8, 3, 4, 2), (6, 1, 2, 2), (5, 4, 3, 4)):
        weight = torch.randn(dim, channels * patch**2, generator=g)
        clip = torch.randn(7, channels, tube, patch, patch, generator=g)
        static = clip[:, :, :1].expand(-1, -1, tube, -1, -1)
        token = static[:, :, 0].flatten(1) @ weight.mT         # of the image
        found = unpack(answer(weight, channels, tube), "the weight for mean", "that for central frame")
        want = tubelet(weight, channels, tube)
        for name, mine, right in zip(("mean", "central frame"), found, want):
            what = f"The weight for {name} ({channels} channels, tubes of {tube} frames)"
            mine = tensor(mine, right.shape, what).float()
            if not close(static.flatten(1) @ mine.mT, token):
                raise Wrong(f"{name}, {channels} channels, tubes of {tube} frames: a clip that stands still "
                            "should have the tokens of the image, and has not.")
            agree(clip.flatten(1) @ mine.mT, clip.flatten(1) @ right.mT,
                  f"{name}: the tokens of a clip that moves")


def tubelet_by(mean, central):
    """The answer with other axes or frames: what becomes of patch [d, c, 1, p] and of the mean."""
    def answer(weight, channels, tube):
        patch = rearrange(weight, "d (c p) -> d c 1 p", c=channels)
        return mean(patch, tube), central(patch, tube)
    return answer


def in_order(pattern):
    """The answer with the numbers of a tubelet in another order of (c f p)."""
    def answer(weight, channels, tube):
        return tuple(rearrange(part, f"d (c f p) -> d ({pattern})", c=channels, f=tube)
                     for part in tubelet(weight, channels, tube))
    return answer


def placed(patch, tube, where):
    out = torch.zeros(*patch.shape[:2], tube, patch.shape[3])
    out[:, :, where] = patch[:, :, 0]
    return out.flatten(1)


def right_mean(patch, tube):
    return (patch.expand(-1, -1, tube, -1) / tube).flatten(1)


def right_central(patch, tube):
    return placed(patch, tube, tube // 2)


second = Exercise(
    key="39.2", title="a tubelet that begins as a patch", points=2,
    prompt="weight [D, C p p] embeds a patch of an image, whose numbers are ordered (channel, row, column). "
           "A tubelet covers tube frames; its numbers are ordered (channel, frame, row, column). Return two "
           "weights [D, C tube p p] for it, each such that a clip that stands still has the tokens of the "
           "image: first the mean over the frames, then the central frame, number tube // 2, alone. channels "
           "and tube are whole numbers.",
    hints=("Write the weight as [D, C, 1, p p]: here the frames have to come in, in the third place.",
           "mean: the same for each frame, divided by tube. central: zeros, but for frame tube // 2.",
           "patch = weight.reshape(D, channels, 1, -1); patch.expand(-1, -1, tube, -1).flatten(1) / tube is "
           "the first."),
    check=check_tubelet, solution=tubelet,
    why="A token is a sum over the frames. In a clip that stands still all its terms are alike, so any "
        "weights that sum to 1 over the frames give the token of the image. The mean takes all frames alike; "
        "the central frame drops the others, so the network begins as the image model on some frames.",
    wrong=(
        (tubelet_by(lambda patch, tube: tube * right_mean(patch, tube), right_central),
         "In the first the patch is repeated, so a clip that stands still has tokens that are tube times too "
         "large. Divide."),
        (in_order("f c p"),
         "The frames stand before the channels. With one channel that is the same; with more it is not."),
        (in_order("c p f"),
         "The frames run fastest here, after row and column. They stand between channel and row."),
        (tubelet_by(right_mean, lambda patch, tube: placed(patch, tube, 0)),
         "The mean is right. The second looks at the first frame, where the central one is asked for."),
        (tubelet_by(right_mean, lambda patch, tube: placed(patch, tube, (tube - 1) // 2)),
         "The mean is right. Where tube is even there are two frames in the middle; number tube // 2 is the "
         "later one."),
        (tubelet_by(right_central, right_mean),
         "Both are right, in the other order: the mean comes first."),
        (tubelet_by(right_mean, lambda patch, tube: right_central(patch, tube) / tube),
         "The mean is right. The central frame is alone, so its weights are not divided.")))


# 39.3 -----------------------------------------------------------------------------------------------------
def serial_mix(h, space, time, index, farthest):
    def attend(x, weights, place=None, mask=None):             # x [..., n, D]
        q, k, v = (x @ weight.mT for weight in weights)
        if place is not None:
            angles = rotary_angles(place, x.shape[-1])
            q, k = rotate(q, angles), rotate(k, angles)
        scores = q @ k.mT / x.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1) @ v

    h = h + attend(h, space)                                   # [B, F, N, D]
    near = (index[:, None] - index).abs() <= farthest          # [F, F]
    return h + attend(h.transpose(1, 2), time, index, near).transpose(1, 2)


def check_serial_mix(answer, g):
    for frames, tokens, dim, farthest in ((5, 3, 8, 9), (9, 2, 4, 4), (12, 3, 8, 5)):
        h, space, time = (torch.randn(*shape, generator=g)
                          for shape in ((2, frames, tokens, dim), (3, dim, dim), (3, dim, dim)))
        space, time = space / dim**0.5, time / dim**0.5
        skipped = torch.arange(frames) + (torch.arange(frames) > 2).long()
        what = f"What {frames} frames see, with distances up to {farthest},"
        for index in (torch.arange(frames), skipped, skipped + 40):
            mine = tensor(answer(h, space, time, index, farthest), h.shape, what)
            agree(mine, serial_mix(h, space, time, index, farthest), what)


def mix_by(turn="qk", index=lambda index, farthest: index, place_space=False, scale=0.5, first="space",
           near=lambda apart, farthest: apart.abs() <= farthest):
    """The answer with something done otherwise."""
    def attend(x, weights, place=None, mask=None):
        parts = dict(zip("qkv", (x @ weight.mT for weight in weights)))
        if place is not None:
            parts |= {name: rotate(parts[name], rotary_angles(place, x.shape[-1])) for name in turn}
        scores = parts["q"] @ parts["k"].mT / x.shape[-1] ** scale
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ parts["v"]

    def answer(h, space, time, index_, farthest):
        place, mask = index(index_, farthest), near(index_ - index_[:, None], farthest)
        over_space = lambda x: attend(x, space, torch.arange(x.shape[2]) if place_space else None)
        over_time = lambda x: attend(x.transpose(1, 2), time, place, mask).transpose(1, 2)
        if first == "both":
            return h + over_space(h) + over_time(h)
        one, two = (over_space, over_time) if first == "space" else (over_time, over_space)
        h = h + one(h)
        return h + two(h)
    return answer


third = Exercise(
    key="39.3", title="variant 3 for any length", points=3,
    prompt="The two attentions of variant 3, with rotary positions in time, for clips that are longer than "
           "those of the training. h [B, F, N, D]; space and time [3, D, D] hold the matrices of q, k and v "
           "(q = x @ space[0].mT); one head, no norms, no gates. First h plus what tokens see over space, "
           "then that plus what they see over time. Over time, q and k of frame number index[f] (index [F], "
           "whole numbers) are turned by rotary_angles(index, D), and a frame sees only frames whose numbers "
           "are at most farthest from its own. Scores are divided by sqrt(D). Return the new h. "
           "rotary_angles and rotate are in diffusion_course.layers.embeddings.",
    hints=("Over space, q @ k.mT of [B, F, N, D] already is what you want. Over time, transpose frames and "
           "tokens before, and back after.",
           "q, k = rotate(q, angles), rotate(k, angles), and v stays. The mask is [F, F], True where "
           "|index[i] - index[j]| <= farthest.",
           "scores.masked_fill(~mask, float('-inf')).softmax(-1) @ v; the second attention reads the h that "
           "the first has changed."),
    check=check_serial_mix, solution=serial_mix,
    why="A score knows the distance of two frames only, so frames 20 and 23 look at one another as 0 and 3 "
        "did in training, and the window keeps out distances that were never trained. In a clip as long as "
        "those of the training nothing is hidden, and this is variant 3. Longer ones go on, frame by frame; "
        "what a frame has more of is neighbours, on both sides.",
    wrong=(
        (mix_by(near=lambda apart, farthest: apart.abs() >= 0),
         "There is no window: frames look at distances that no training has shown."),
        (mix_by(near=lambda apart, farthest: apart.abs() < farthest),
         "The window is one too narrow: a distance of farthest is still seen."),
        (mix_by(near=lambda apart, farthest: (apart <= 0) & (apart >= -farthest)),
         "A frame sees only earlier frames here. The window reaches to both sides."),
        (mix_by(index=lambda index, farthest: torch.arange(len(index))),
         "Frames are turned by 0, 1, 2, ... here. Take their numbers from index, since some are skipped."),
        (mix_by(index=lambda index, farthest: index.clamp(max=farthest)),
         "Numbers of frames are clipped here, so all late frames stand at one place. Keep the numbers; the "
         "window sees to the distances."),
        (mix_by(turn="qkv"),
         "The values are turned, too. Only queries and keys are: position is for the scores."),
        (mix_by(turn="q"),
         "Only the queries are turned. A score then knows where a frame stands, not how far away the other "
         "one is."),
        (mix_by(turn=""),
         "Nothing is turned, so frames have no order."),
        (mix_by(first="both"),
         "Both attentions read the same h, as in variant 4. Here the second reads what the first changed."),
        (mix_by(first="time"),
         "Time comes first here. Variant 3 looks over space, then over time."),
        (mix_by(place_space=True),
         "The tokens of a frame are turned as well. Their places were added to them at the start; only the "
         "attention over time is rotary."),
        (mix_by(scale=0.0),
         "The scores are not divided by sqrt(D).")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="39.w", title="which split, and when", points=3,
    prompt="(a) At 16 frames of 16 tokens and a width of 96, joint attention takes about 1.4 times the "
           "operations of variant 1. A colleague concludes that factoring is not worth it. What happens at "
           "64 frames of 256 tokens? (b) In a network of late fusion, the digit of frame 3 moves one patch "
           "to the right. Which blocks of frame 7 can notice, and what can they not do any more? (c) The "
           "weights of an image DiT are put into the blocks over space of variant 1, and the blocks over "
           "time start with shut gates. Why does the network still not say the same as the image DiT, with "
           "sinusoidal positions, and why does it with rotary ones?",
    rubric=("(a) Per token, looking costs 4 K d against 24 d^2 for the rest, and K is all 16,384 tokens: 28 "
            "times the rest, where variant 1 has at most a half of it (K is 256 and 64, in turn). The "
            "conclusion holds for short clips only.",
            "(b) Those over time, in the second half. None of them looks at other places of frame 7, so what "
            "is learned from frame 3 at a place cannot be handed to neighbouring patches any more.",
            "(c) The sinusoidal position is added to the tokens before the first block over time, and all "
            "later blocks over space see it. Rotary positions turn queries and keys inside of the blocks "
            "over time, whose gates are shut."),
    answer="The ratio of looking to everything else is K / (6 d). Joint attention has K = F N: 256 / 576 "
           "here, 16384 / 576 at the larger size, where it is 28 times the rest; the factored one has "
           "256 / 576 and 64 / 576, in turn. Late fusion lets frames meet only in its second half, and "
           "there only at one place: a moving digit that has left the place is not found by it, and no "
           "block over space comes after to pass on what was. An added position changes what every later "
           "block reads, even if the blocks over time say nothing, so the image DiT sees tokens that it has "
           "never seen. A rotary position exists only inside of an attention over time.")
