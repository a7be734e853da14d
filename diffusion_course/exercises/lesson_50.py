"""Lesson 50, Moving MNIST: walls that mirror or clamp, a path without a loop, balanced captions."""
import numpy as np
import torch

from ..classroom.exercise import Exercise, Question, Wrong, tensor, unpack


# 50.1 -----------------------------------------------------------------------------------------------------
def one_step(x, v, room):
    free = x + v
    mirrored = torch.where(free < 0, -free, torch.where(free > room, 2 * room - free, free))
    turned = torch.where((free <= 0) | (free >= room), -v, v)
    return mirrored, free.clamp(0, room), turned


def check_one_step(answer, g):
    for room, N in ((18.0, 60), (36.0, 80), (7.5, 70)):
        x = room * torch.rand(N, generator=g)
        v = room * (torch.rand(N, generator=g) - 0.5)
        x[:4] = torch.tensor([1.0, room - 1, 0, room])         # two just reach a wall, two leave it
        v[:4] = torch.tensor([-1.0, 1.0, 1.25, -1.25])
        names = "The mirrored position", "The clamped position", "The velocity"
        got = [tensor(part, (N,), name) for part, name
               in zip(unpack(answer(x, v, room), "mirrored", "clamped", "velocity"), names)]
        want = torch.tensor([one_case(at, go, room) for at, go in zip(x.tolist(), v.tolist())]).T
        for part, true, name in zip(got, want, names):
            far = (part.double() - true).abs()
            if far.max() > 1e-3:
                n = far.argmax()
                raise Wrong(f"From x = {x[n]:.3g} with v = {v[n]:.3g} in a room of {room:g}: {name.lower()} "
                            f"is {part[n]:.3g}, and should be {true[n]:.3g}.")


def one_case(x, v, room):
    """The mirrored and the clamped position after one step, and the velocity, of plain numbers."""
    to = x + v
    if to <= 0:
        return -to, 0.0, -v
    return (2 * room - to, room, -v) if to >= room else (to, to, v)


def clamped_first(x, v, room):
    mirrored, clamped, turned = one_step(x, v, room)
    return clamped, mirrored, turned


def about_zero(x, v, room):
    free = x + v
    return torch.where(free > room, room - free, free.abs()), *one_step(x, v, room)[1:]


def never_turned(x, v, room):
    return *one_step(x, v, room)[:2], v


def turned_by_where_it_was(x, v, room):
    turned = torch.where((x <= 0) | (x >= room), -v, v)
    return *one_step(x, v, room)[:2], turned


def turned_past_the_wall(x, v, room):
    turned = torch.where((x + v < 0) | (x + v > room), -v, v)
    return *one_step(x, v, room)[:2], turned


def turned_first(x, v, room):
    turned = one_step(x, v, room)[2]
    return (x + turned).clamp(0, room), (x + turned).clamp(0, room), turned


first = Exercise(
    key="50.1", title="mirror and clamp", points=1,
    prompt="One frame of a digit between walls at 0 and room, along one axis: x [N] are positions, v [N] "
           "velocities, |v| < room. Return three tensors [N]: the position if the walls mirror it, the "
           "position if they clamp it, and the velocity afterwards, turned where the step reaches a wall.",
    hints=("First step as if there were no walls: free = x + v. Then there are three cases: at or below 0, "
           "at or above room, and between.",
           "What is as far above 0 as free is below it? -free. And as far below room as free is above it? "
           "room - (free - room).",
           "mirrored = torch.where(free < 0, -free, torch.where(free > room, 2 * room - free, free)); "
           "clamped = free.clamp(0, room); the velocity is -v where free <= 0 or free >= room."),
    check=check_one_step, solution=one_step,
    why="Mirrored, a digit goes |v| in every frame: as far to the wall and back as it would have gone "
        "without it. Clamped, it loses what lay behind the wall, so it falls behind.",
    wrong=(
        (clamped_first,
         "The two positions have changed places: the mirrored one comes first. At the wall the clamped digit "
         "stays, the mirrored one comes back."),
        (about_zero,
         "The wall at 0 mirrors well. The one at room does not: what is free - room above it must come out "
         "free - room below it."),
        (never_turned,
         "The velocity is that of before. A digit that has reached a wall must go the other way next."),
        (turned_by_where_it_was,
         "The turn depends on where the digit was. It should depend on where the step leads: step first, "
         "then look for the wall."),
        (turned_past_the_wall,
         "A digit that just touches the wall must turn, too: <= and >=, as in the original. Clamped digits "
         "lie on the wall exactly, and those that do not turn would stick to it for a frame."),
        (turned_first,
         "The digit turns before it has reached the wall, so it misses the last stretch. Step first, then "
         "mirror or clamp.")))


# 50.2 -----------------------------------------------------------------------------------------------------
def position(start, velocity, f, room):
    free = start + velocity * f[:, None]                       # [F, N], as if there were no walls
    return room - (free % (2 * room) - room).abs()             # a triangle wave: 0 at 0, room at room


def check_position(answer, g):
    for room, N, longest in ((18.0, 30, 16), (36.0, 40, 200), (4.0, 35, 1000)):
        start = room * torch.rand(N, generator=g).double()
        velocity = room * (torch.rand(N, generator=g).double() - 0.5)
        whole = torch.randint(1, longest, [12], generator=g)
        f = torch.cat([whole, torch.zeros(1), 2.5 + 10 * torch.rand(6, generator=g), -whole[:6]]).double()
        at = tensor(answer(start, velocity, f, room), (len(f), N), "What it returns")
        low, high = at.min(), at.max()
        if low < -1e-4 or high > room + 1e-4:
            raise Wrong(f"The positions run from {low:.3g} to {high:.3g}; the walls are at 0 and {room:g}.")
        true = torch.tensor([[reflected(x + v * n, room) for x, v in zip(start.tolist(), velocity.tolist())]
                             for n in f.tolist()]).double()
        if torch.allclose(at.double(), true, rtol=0, atol=1e-3):
            continue
        n = (at.double() - true).abs().amax(1).argmax()
        m = (at.double() - true)[n].abs().argmax()
        raise Wrong(f"In frame {f[n]:.4g}, from x = {start[m]:.3g} with v = {velocity[m]:.3g} in a room of "
                    f"{room:g}, it is at {at[n, m]:.4g}; it should be at {true[n, m]:.4g}.")


def reflected(x, room):
    """A plain number, mirrored at the walls for as long as it takes."""
    while not 0 <= x <= room:
        x = -x if x < 0 else 2 * room - x
    return x


def once(start, velocity, f, room):
    free = start + velocity * f[:, None]
    return torch.where(free < 0, -free, torch.where(free > room, 2 * room - free, free))


def round_the_torus(start, velocity, f, room):
    return (start + velocity * f[:, None]) % room


def stopped(start, velocity, f, room):
    return (start + velocity * f[:, None]).clamp(0, room)


def one_frame_late(start, velocity, f, room):
    return position(start, velocity, f + 1, room)


def upside_down(start, velocity, f, room):
    return room - position(start, velocity, f, room)


def with_fmod(start, velocity, f, room):
    free = start + velocity * f[:, None]
    return room - (torch.fmod(free, 2 * room) - room).abs()


def fmod_to_the_wall(start, velocity, f, room):
    return with_fmod(start, velocity, f, room).clamp(0, room)


second = Exercise(
    key="50.2", title="a path without a loop", points=2,
    prompt="Where is a digit in frame f, if walls at 0 and room mirror it, without walking there? start "
           "and velocity are [N], f is [F]: any numbers, in any order, even between frames or negative "
           "(before the clip began). Return the positions [F, N], without a loop.",
    hints=("Without walls it is at start + velocity * f. Unfold the room: beyond the wall lies its mirror "
           "image, beyond that the room again. After how many pixels does the pattern repeat?",
           "After 2 * room: there and back. free % (2 * room) puts every position into one such period, "
           "negative ones as well.",
           "Within a period the position rises from 0 to room and falls back to 0: a triangle, "
           "room - abs(u - room)."),
    check=check_position, solution=position,
    why="Folding is the same as mirroring as often as it takes, because mirrors at 0 and at room map the "
        "line onto itself with period 2 * room. So frame f needs no frame before it. A clamping wall forgets "
        "how far beyond it one would have been, so there is no such formula for the original rule.",
    wrong=(
        (once,
         "It mirrors once at each wall. In many frames, or at high speed, a digit meets more than one wall."),
        (round_the_torus,
         "It comes in again on the other side: that is a torus (mode 'wrap'). Mirrored, it goes there and "
         "back, so the period is 2 * room, and the second half runs backwards."),
        (stopped,
         "It stops at the wall for ever. Beyond the wall it must come back: fold, do not clamp."),
        (one_frame_late,
         "It is one frame late: in frame 0 a digit is at its start."),
        (upside_down,
         "The triangle is upside down: it should be 0 at 0, and room at room."),
        (with_fmod,
         "torch.fmod keeps the sign, so what lies left of 0 is not brought into the period. The operator % "
         "does that."),
        (fmod_to_the_wall,
         "What lies left of 0 ends at the wall: torch.fmod keeps the sign. The operator % brings it into the "
         "period.")))


# 50.3 -----------------------------------------------------------------------------------------------------
def balanced(place, held_out, seed):
    pairs = (~held_out).nonzero()                              # [P, 2]: digit and direction
    count = 2 * len(pairs)                                     # each pair, slowly and fast: a deck of cards
    rounds = (place // count).tolist()                         # how many decks were dealt before this item
    decks = {n: np.random.default_rng((seed, n)).permutation(count) for n in set(rounds)}
    card = torch.tensor([decks[n][k] for n, k in zip(rounds, (place % count).tolist())])
    digit, direction = pairs[card // 2].T
    return digit, direction, 0.5 + 0.5 * (card % 2)


def check_balanced(answer, g):
    for many, seed in ((10, 3), (5, 0)):
        held_out = torch.zeros(50).bool()
        held_out[torch.randperm(50, generator=g)[:many]] = True
        held_out = held_out.reshape(10, 5)
        place = torch.randint(500, 20_000, (), generator=g) + torch.arange(4000)
        items = kinds(answer(place, held_out, seed), place)
        some = torch.randperm(4000, generator=g)[:200]
        again = kinds(answer(place[some], held_out, seed), place[some])
        if (differ := (again != items[some]).any(1)).any():
            n = differ.nonzero()[0, 0]
            raise Wrong(f"Item {place[some][n]} is {said(items[some][n])} when 4000 are asked for in order, "
                        f"but {said(again[n])} among 200 of them in another order.")
        check_shares(items, held_out)
        check_order(items, kinds(answer(place, held_out, seed + 1), place), int(50 - many))


def kinds(out, place):
    """What was returned for these items, if it can be: [B, 3], digit, direction and 1 for fast."""
    parts = [tensor(part, (len(place),), name).double() for part, name
             in zip(unpack(out, "digits", "directions", "speeds"), ("digits", "directions", "speeds"))]
    for part, name, options in zip(parts, ("digits", "directions", "speeds"),
                                   (range(10), range(5), (0.5, 1.0))):
        for value in part.unique().tolist():
            if value not in options:
                raise Wrong(f"Among the {name} is {value:.3g}; they should be "
                            + ("0.5 or 1." if name == "speeds" else f"whole, 0 to {options[-1]}."))
    return torch.stack([*parts[:2], (parts[2] > 0.75).double()], dim=1).long()


def said(kind):
    digit, direction, fast = kind.tolist()
    return f"digit {digit}, direction {direction}, speed {0.5 + 0.5 * fast:g}"


def check_shares(items, held_out):
    """Each pair as often as the others, within 5 %, and each fast about half of the time."""
    pair, allowed = 5 * items[:, 0] + items[:, 1], (~held_out).flatten()
    counts = pair.bincount(minlength=50)
    if counts[~allowed].any():
        n = (counts * ~allowed).argmax()
        raise Wrong(f"The pair of digit {n // 5} and direction {n % 5} is held out, but occurs {counts[n]} "
                    "times in 4000 items.")
    mean = len(items) / allowed.sum()
    n = ((counts - mean).abs() * allowed).argmax()
    if abs(counts[n] - mean) > 0.05 * mean:
        raise Wrong(f"The pair of digit {n // 5} and direction {n % 5} occurs {counts[n]} times in 4000 "
                    f"items; within 5 % of {mean:.0f} is asked for.")
    fast = pair[items[:, 2] == 1].bincount(minlength=50) / counts.clamp_min(1)
    n = ((fast - 0.5).abs() * allowed).argmax()
    if abs(fast[n] - 0.5) > 0.05:
        raise Wrong(f"The pair of digit {n // 5} and direction {n % 5} is fast in {fast[n]:.0%} of its "
                    "clips; 45 to 55 % are asked for.")


def check_order(items, others, pairs):
    if (items == others).all(1).float().mean() > 0.5:
        raise Wrong("Another seed gives the same items.")
    for period in (pairs, 2 * pairs):
        if (items[period:] == items[:-period]).all(1).float().mean() > 0.5:
            raise Wrong(f"The items repeat every {period}: whoever sees one round of them knows all others.")


def dealt(card, pairs):
    digit, direction = pairs[torch.as_tensor(card) // 2].T
    return digit, direction, 0.5 + 0.5 * (torch.as_tensor(card) % 2)


def each_for_itself(place, held_out, seed):
    pairs = (~held_out).nonzero()
    card = [int(np.random.default_rng((seed, n)).integers(2 * len(pairs))) for n in place.tolist()]
    return dealt(card, pairs)


def per_call(place, held_out, seed):
    pairs = (~held_out).nonzero()
    card = torch.arange(len(place)) % (2 * len(pairs))
    return dealt(card[torch.randperm(len(place), generator=torch.Generator().manual_seed(seed))], pairs)


def nothing_held_out(place, held_out, seed):
    return balanced(place, torch.zeros_like(held_out), seed)


def redealt(place, held_out, seed):
    """A pair that is held out becomes the next one that is not."""
    digit, direction, speed = nothing_held_out(place, held_out, seed)
    pair = 5 * digit + direction
    while (wrong := held_out.flatten()[pair]).any():
        pair = torch.where(wrong, (pair + 1) % 50, pair)
    return pair // 5, pair % 5, speed


def in_order(place, held_out, seed):
    pairs = (~held_out).nonzero()
    return dealt(place % (2 * len(pairs)), pairs)


def one_deck(place, held_out, seed):
    pairs = (~held_out).nonzero()
    deck = torch.from_numpy(np.random.default_rng(seed).permutation(2 * len(pairs)))
    return dealt(deck[place % len(deck)], pairs)


def without_the_seed(place, held_out, seed):
    return balanced(place, held_out, 0)


def slow_digits(place, held_out, seed):
    digit, direction, _ = balanced(place, held_out, seed)
    return digit, direction, 0.5 + 0.5 * (digit % 2)


third = Exercise(
    key="50.3", title="balanced captions", points=3,
    prompt="Item i of a data set shows a digit, a direction (0 to 4) and a speed (0.5 or 1). Return the "
           "three, tensors [B], for the items place [B]. Pairs marked in held_out [10, 5] never occur. In "
           "any 4000 consecutive items all others occur equally often, within 5 %, each fast in 45 to 55 % "
           "of its clips. Item i depends on i, held_out and seed only; the order is no fixed pattern.",
    hints=("Independent draws are not enough: with 100 clips of each pair their counts wander by 10 %. Think "
           "of a deck of cards, one for each pair and speed: shuffle, deal all of it, shuffle again.",
           "With a deck of K cards, item i is card i % K of deck number i // K. The deck must be shuffled "
           "by a generator of its own.",
           "np.random.default_rng((seed, n)).permutation(K) is deck number n, and the pairs are "
           "(~held_out).nonzero()."),
    check=check_balanced, solution=balanced,
    why="A whole deck holds every kind once, so counts differ by the two cut decks at the ends only. Deck n "
        "is a pure function of (seed, n), so item i is one of (seed, i): any order, any worker, any batch.",
    wrong=(
        (each_for_itself,
         "Each item is drawn independently of the others. That is deterministic, but the counts of 100 draws "
         "have a spread of 10. Shuffle a deck with one card of each kind, and deal it to the end."),
        (per_call,
         "What an item is depends on which others are asked for with it. Count from i itself: deck i // K, "
         "card i % K."),
        (nothing_held_out,
         "held_out is not used: take the pairs from (~held_out).nonzero()."),
        (redealt,
         "A pair that is held out is replaced by its neighbour, which then occurs twice as often. Leave such "
         "pairs out of the deck from the start."),
        (in_order,
         "The cards are dealt unshuffled, so the same order comes again and again, whatever the seed."),
        (one_deck,
         "The deck is shuffled once. Shuffle it anew for each round: the number of the round belongs into "
         "the seed."),
        (without_the_seed,
         "The seed is not used: it belongs into the seed of each deck, beside the number of the round."),
        (slow_digits,
         "The speed follows from the digit, so a network could read one off the other. Put each pair into "
         "the deck twice, slow and fast.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="50.w", title="what the first frame gives away", points=3,
    prompt="A network that sees one frame only reads the direction of 51 % of the straight clips (digits "
           "of 0.5 and 1 pixel per frame), and of 19 % on the torus. (a) Why does a single frame say "
           "anything about the direction of a straight clip, and why not on the torus? (b) What happens to "
           "the 51 % if all digits are slow? (c) A network that sees all frames of straight clips is right "
           "in 95 %. How do you find out whether it looks at motion?",
    rubric=("Straight clips must not reach a wall, so where a digit starts depends on its direction. On "
            "the torus every start is equally likely for every direction.",
            "It falls, though not to chance: slow digits may start in more places (0 to 10.5 of 18, not 0 "
            "to 3), so the starts of the directions overlap more.",
            "Test it where position says nothing, on the torus, or change the motion and keep the first "
            "frame (for instance repeat it); only a network that looks at motion passes."),
    answer="A caption stays true only if no wall is reached, so a digit that goes right must start at the "
           "left. The start gives the direction away, except on the torus, where all starts are alike and "
           "one frame is worth a guess, one in five. Slow digits go half as far and may start nearly "
           "anywhere, so the share falls, but not to 20 %. To see whether motion is used, take position "
           "away: on the torus a network that has only learned the starts drops to chance.")
