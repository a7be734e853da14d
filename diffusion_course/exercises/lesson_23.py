"""Lesson 23, Video LDM: the mix of old and new layers, context frames by lot, a plan for two frame rates."""
import torch
from einops import rearrange

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor, unpack


# 23.1 -----------------------------------------------------------------------------------------------------
def mix(h, new, gate):
    alpha = torch.sigmoid(torch.as_tensor(gate))
    new = rearrange(new, "b c f h w -> (b f) c h w")           # as the spatial layers see it
    return alpha * h + (1 - alpha) * new


def check_mix(answer, g):
    for b, f, gate in ((2, 3, 1.7), (3, 4, -1.2), (1, 5, 0.5), (2, 4, float("inf")), (2, 3, -float("inf"))):
        h, new = torch.randn(b * f, 4, 2, 3, generator=g), torch.randn(b, 4, f, 2, 3, generator=g)
        what = f"With gate {gate:g}, what comes out"
        if gate == float("inf"):
            what += " is the image model's h; yours"
        agree(answer(h, new, torch.tensor(gate)), mix(h, new, gate), what)


def mixed(arrange, alpha=torch.sigmoid):
    """The answer with another arrangement of what is new, or another alpha."""
    return lambda h, new, gate: torch.lerp(arrange(new, h), h, alpha(gate))


first = Exercise(
    key="23.1", title="the mix of old and new", points=1,
    prompt="h [(B F), C, H, W] comes out of a layer of the image model, new [B, C, F, H, W] out of the layer "
           "over time that follows it. gate is a learned number, a tensor without axes; alpha is its "
           "sigmoid. Return alpha h + (1 - alpha) new in the shape of h, for the next layer of the image "
           "model.",
    hints=("Bring new into the shape of h first: the frames of a clip follow one another in the batch.",
           "rearrange(new, 'b c f h w -> (b f) c h w'); torch.sigmoid(gate) of infinity is exactly 1.",
           "alpha * h + (1 - alpha) * new, once both have one shape."),
    check=check_mix, solution=mix,
    why="A sigmoid keeps alpha between 0 and 1 whatever the optimizer does to the gate. It is 1 for an "
        "infinite gate only, so the image model comes back exactly if one sets that by hand.",
    wrong=(
        (mixed(lambda new, h: new.transpose(1, 2).flatten(0, 1), lambda gate: torch.sigmoid(-gate)),
         "Old and new are exchanged. At alpha = 1 the image model must be left, which is h."),
        (mixed(lambda new, h: new.reshape(h.shape)),
         "A reshape mixes up channels and frames. The axes C and F must be exchanged before B and F become "
         "one."),
        (mixed(lambda new, h: new.permute(2, 0, 1, 3, 4).flatten(0, 1)),
         "The batch of h is (B F): all frames of the first clip, then all of the second. Yours is (F B)."),
        (mixed(lambda new, h: h + new.transpose(1, 2).flatten(0, 1)),
         "This adds to h instead of mixing. h has the weight alpha, not 1."),
        (mixed(lambda new, h: new.transpose(1, 2).flatten(0, 1), lambda gate: gate.clamp(0, 1)),
         "The gate is clamped to 0 ... 1. Its sigmoid is wanted; outside 0 ... 1 a clamp has no gradient."),
        (mixed(lambda new, h: new.transpose(1, 2).flatten(0, 1), lambda gate: gate),
         "The gate itself is taken for alpha. It may be any number; alpha is its sigmoid.")))


# 23.2 -----------------------------------------------------------------------------------------------------
def given_by_lot(z, u, p):
    count = (u[:, None] >= p.cumsum(0)[:-1]).sum(1)            # S of each clip: 0, 1 or 2
    m = (torch.arange(z.shape[2]) < count[:, None]).to(z)      # [B, F]
    m = m[:, None, :, None, None].expand(-1, 1, -1, *z.shape[3:])
    return torch.cat([m * z, m], dim=1)


def check_given_by_lot(answer, g):
    for b, f, p in ((9, 5, (0.5, 0.2, 0.3)), (12, 4, (0.2, 0.6, 0.2)), (6, 3, (0.0, 0.5, 0.5))):
        z, p = torch.randn(b, 2, f, 2, 3, generator=g), torch.tensor(p)
        edges = torch.cat([torch.zeros(1), p.cumsum(0)[:-1], torch.ones(1)])
        low, high = edges[:-1], edges[1:]                      # some in every part, at random places
        part = torch.arange(b) % 3
        part = part.where(p[part] > 0, 1)
        u = low[part] + (0.05 + 0.9 * torch.rand(b, generator=g)) * (high - low)[part]
        want = given_by_lot(z, u, p)
        got = tensor(answer(z, u, p), want.shape, "c_S")
        none = part == 0
        if got[none].any():
            raise Wrong("Where S is 0, what is given should be zero throughout, as in the net without "
                        "context; here it is not.")
        agree(got, want, "c_S")


def lot(count=lambda u, p: (u[:, None] >= p.cumsum(0)[:-1]).sum(1), seen=lambda place, count: place < count,
        put=lambda m, z: torch.cat([m * z, m], 1)):
    """The answer with another way to count, to choose frames or to put together."""
    def answer(z, u, p):
        m = seen(torch.arange(z.shape[2]), count(u, p)[:, None]).to(z)[:, None, :, None, None]
        return put(m.expand(-1, 1, -1, *z.shape[3:]), z)
    return answer


second = Exercise(
    key="23.2", title="context by lot", points=2,
    prompt="Training must show how to begin and how to go on. z [B, C, F, H, W] are clean latents; u [B] are "
           "numbers drawn evenly from 0 to 1; p [3] are the chances that S = 0, 1 or 2 frames are given. "
           "Clip b has S = 0 where u[b] < p[0], S = 1 where p[0] <= u[b] < p[0] + p[1], and else S = 2. m is "
           "1 in its first S frames and 0 in the others. Return c_S = (m z, m), [B, C + 1, F, H, W].",
    hints=("How many of the sums p[0], p[0] + p[1] are not above u[b]? That many frames are given.",
           "torch.arange(F) < S[:, None] is m, [B, F]. It needs axes for channels, rows and columns.",
           "m = m[:, None, :, None, None].expand(-1, 1, -1, H, W), then torch.cat([m * z, m], dim=1)."),
    check=check_given_by_lot, solution=given_by_lot,
    why="With S = 0 all is zero, mask included: the same input that the net gets without context, so one net "
        "learns to begin and to go on, and guidance by context has its second half. The mask tells a given "
        "frame of zeros from one that is not given.",
    wrong=(
        (lot(count=lambda u, p: (u[:, None] >= p[:-1]).sum(1)),
         "u is compared with the chances themselves. Compare it with their sums, p.cumsum(0)."),
        (lot(count=lambda u, p: (u[:, None] >= p.cumsum(0)[:-1]).sum(1) + 1),
         "One frame too many is given. The parts of u stand for S = 0, 1, 2, in this order."),
        (lot(count=lambda u, p: 2 - (u[:, None] >= p.cumsum(0)[:-1]).sum(1)),
         "The order is reversed: small u means S = 0, not 2."),
        (lot(seen=lambda place, count: place == count - 1),
         "Only frame S - 1 is given. All of the first S frames are; two of them show a velocity."),
        (lot(seen=lambda place, count: place >= len(place) - count),
         "The last S frames are given. A clip goes on from its first ones."),
        (lot(put=lambda m, z: torch.cat([m, m * z], 1)),
         "The mask stands first. c_S is (m z, m): latents, then mask."),
        (lot(put=lambda m, z: torch.cat([z, m], 1)),
         "z is not masked, so the net gets to see the clean frames that it should draw."),
        (lot(put=lambda m, z: torch.cat([m * z, 1 - m], 1)),
         "The mask is turned round: it is 1 where a frame is given."),
        (lot(count=lambda u, p: (u.mean() >= p.cumsum(0)[:-1]).sum().expand(len(u))),
         "All clips of the batch get the same S. Each has its own u.")))


# 23.3 -----------------------------------------------------------------------------------------------------
def two_rates(T, n):
    calls, place = [], torch.arange(4 * n - 3)
    for label, stride in ((0, 1 / 4), (1, 1 / 16)):            # frames that are made stand so far apart
        for number in range(round((T - 1) / (4 * stride * (n - 1)))):
            first = 4 * stride * (n - 1) * number              # calls share their ends
            calls.append((first + stride * place, (place % 4 == 0).int(), label))
    time, known, label = zip(*calls)
    return torch.stack(time), torch.stack(known), torch.tensor(label)


def check_two_rates(answer, g):
    for T, n in ((4, 4), (7, 4), (5, 3), (16, 4), (3, 2)):
        time, known, label = unpack(answer(T, n), "time", "known", "label")
        length, calls, case = 4 * n - 3, 5 * (T - 1) // (n - 1), f"With T = {T} and n = {n},"
        time = tensor(time, (calls, length), f"{case} time")
        flags = [tensor(torch.as_tensor(part).float(), shape, f"{case} {name}") for name, part, shape in
                 (("known", known, (calls, length)), ("label", label, (calls,)))]
        index = (16 * time.double()).round()                   # in sixteenths of a gap
        if (index - 16 * time).abs().max() > 1e-3 or any(((flag != 0) & (flag != 1)).any() for flag in flags):
            raise Wrong("time should be counted in gaps between keys, so it is made of sixteenths; known and "
                        "label are 0 or 1.")
        done, end = {*range(0, 16 * T - 15, 16)}, 16 * (T - 1)
        for k, (row, given, rate) in enumerate(zip(index.long().tolist(), *(f.tolist() for f in flags)), 1):
            call, stride = f"{case} call {k}", 1 if rate else 4
            if min(row) < 0 or max(row) > end:
                raise Wrong(f"{call} asks for the time {(max(row) if max(row) > end else min(row)) / 16:g}; "
                            f"the video goes from 0 to T - 1 = {T - 1}.")
            if row != [*range(row[0], row[0] + stride * length, stride)]:
                raise Wrong(f"{call} has label {rate:g}, so its frames should stand 1/{16 // stride} apart; "
                            f"they are at {', '.join(f'{i / 16:g}' for i in row[:4])} ...")
            for frame, flag in zip(row, given):
                if flag and frame not in done:
                    raise Wrong(f"{call} takes the frame at {frame / 16:g} as known, but nobody has made it.")
                if not flag and frame in done:
                    raise Wrong(f"{call} makes the frame at {frame / 16:g}, which is there already.")
            done |= {*row}
        if len(done) < 16 * T - 15:
            raise Wrong(f"{case} there are {len(done)} frames in the end, not 16 T - 15 = {16 * T - 15}.")


def rates(first=lambda T, n, stride: torch.arange(0, T - 1, 4 * stride * (n - 1)), stride=(1 / 4, 1 / 16),
          known=lambda place: place % 4 == 0, label=(0, 1)):
    """The answer where calls begin elsewhere, frames stand otherwise, or others are known."""
    def answer(T, n):
        place, calls = torch.arange(4 * n - 3), []
        for step, mark in zip(stride, label):
            calls += [(begin + step * place, known(place).int(), mark) for begin in first(T, n, step)]
        time, given, marks = zip(*calls)
        return torch.stack(time), torch.stack(given), torch.tensor(marks)
    return answer


third = Exercise(
    key="23.3", title="two frame rates", points=3,
    prompt="T keys stand at the times 0, 1, ... T - 1. First, three frames are put between every two keys, "
           "1/4 apart; then three between every two of all these, 1/16 apart: T becomes 4 T - 3, and that "
           "16 T - 15. A call sees n neighbouring known frames and makes what is between, so it has 4 n - 3 "
           "frames; the last known frame of a call is the first of the next, and n - 1 divides T - 1. Return "
           "all W calls of both passes in order: time [W, 4 n - 3] of their frames; known [W, 4 n - 3], 1 if "
           "seen, else 0; label [W], 0 for the first pass, 1 for the second.",
    hints=("In a call of the first pass, frames stand 1/4 apart: time = first + torch.arange(4 * n - 3) / 4. "
           "Every fourth of them is known.",
           "How far is it from one call to the next? n known frames have n - 1 gaps, of 1 or of 1/4.",
           "for label, stride in ((0, 1/4), (1, 1/16)): a call begins at each of torch.arange(0, T - 1, 4 * "
           "stride * (n - 1))."),
    check=check_two_rates, solution=two_rates,
    why="Applied twice, T -> 4 T - 3 gives 4 (4 T - 3) - 3 = 16 T - 15. Nothing lies beyond the last key, so "
        "it is not 16 T. The passes differ only in how far frames stand apart; the paper tells its net by a "
        "label, ours by the numbers of the frames. All calls of a pass can be made at once.",
    wrong=(
        (rates(first=lambda T, n, stride: torch.arange(0, T - 1, 4 * stride * n)),
         "Calls do not share a frame here, so the gap between one call and the next stays empty."),
        (rates(first=lambda T, n, stride: torch.arange(0, T, 4 * stride * (n - 1))),
         "One call too many: it begins at the last key, after which there is nothing to see."),
        (rates(stride=(1.0, 1 / 4)),
         "1 and 1/4 are how far the known frames stand apart. Those of a call stand 1/4 and 1/16 apart."),
        (rates(known=lambda place: (place == 0) | (place == place[-1])),
         "Only the ends are known. All n known frames of a call are seen, every fourth of its frames."),
        (rates(label=(1, 0)),
         "The labels are exchanged: the first pass, with frames 1/4 apart, has 0."),
        (rates(stride=(1 / 4,), label=(0,)),
         "That is the first pass alone. The second puts three frames between every two of its frames."),
        (rates(stride=(1 / 16, 1 / 4), label=(1, 0)),
         "The second pass comes first here, when there are only keys at distance 1."),
        (rates(stride=(1 / 4, 1 / 4)),
         "Both passes have frames 1/4 apart. In the second they stand 1/16 apart.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="23.w", title="what is frozen and what moves", points=3,
    prompt="(a) Someone sets the gate of every layer over time to infinity after training, and draws 16 "
           "frames. What does the result look like, and why? (b) Someone else begins with random layers over "
           "time that are not residual, and with alpha = 1/2 everywhere. Which loss does training start "
           "with, and why does the argument 'the image model is frozen' not help? (c) The new decoder "
           "brought little in our lesson, and much in the paper. Name a difference that may explain it, and "
           "an experiment that would tell.",
    rubric=("(a) Sixteen unrelated images, a slideshow: with alpha = 1 each frame is the image model's, and "
            "nothing is handed from one frame to another.",
            "(b) A much higher one: every layer passes on half noise, so frozen layers get inputs that they "
            "have never seen. Freezing keeps weights, not the function.",
            "(c) A sound difference and test, such as: the paper's latents leave out far more detail, which "
            "the decoder has to invent anew in each frame; so train an autoencoder that shrinks more (factor "
            "8), and see whether its decoding flickers and whether layers over time mend that."),
    answer="An infinite gate makes alpha exactly 1, so every frame is drawn by the image model alone: good "
           "frames that have nothing to do with one another. Random layers that replace half of the features "
           "give the frozen layers inputs of a kind they were never trained on; the weights are safe, but "
           "what the network computes is not. That is why ours are residual and start at zero. As for the "
           "decoder: flicker comes from detail that latents do not hold. Ours hold nearly all of a digit, so "
           "there was little to mend. One would see more with an autoencoder that shrinks each side eight "
           "times, and should compare the wobble of both decoders there.")
