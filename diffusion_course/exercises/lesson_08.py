"""Lesson 08, DiT.  8.1 and 8.2 follow the paper's released code, whose order of axes is not the package's."""
import math

import torch
import torch.nn.functional as F
from einops import rearrange

from ..classroom.exercise import Exercise, Question, Wrong, agree, tensor, unpack


# 8.1 ------------------------------------------------------------------------------------------------------
def put_back(tokens, height, width, patch):
    batch, _, numbers = tokens.shape
    channels = numbers // patch**2
    x = tokens.reshape(batch, height, width, patch, patch, channels)           # [B, h, w, p, q, C]
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height * patch, width * patch)


def check_unpatchify(answer, g):
    for n, patch in enumerate((2, 4, 8, 1)):
        height, width, channels = 2, 3, n + 1
        x = torch.randn(2, channels, height * patch, width * patch, generator=g)
        tokens = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
        back = tensor(answer(tokens, height, width, patch), x.shape, "The image")
        agree(back, x, f"The image, compared with the one that was cut into patches of {patch} x {patch},")


def in_order(pattern):
    """put_back for tokens in another order of (p q c)."""
    def answer(tokens, height, width, patch):
        return rearrange(tokens, f"b (h w) ({pattern}) -> b c (h p) (w q)", h=height, p=patch, q=patch)
    return answer


def by_columns(tokens, height, width, patch):
    return rearrange(tokens, "b (w h) (p q c) -> b c (h p) (w q)", h=height, p=patch, q=patch)


def without_permuting(tokens, height, width, patch):
    return tokens.reshape(len(tokens), -1, height * patch, width * patch)


first = Exercise(
    key="8.1", title="patches put back", points=1,
    prompt="tokens [B, height * width, patch * patch * C] are the patches of images, row by row. In the "
           "paper's released code the numbers of a token are ordered by row, then column, then channel (the "
           "channel runs fastest). height and width count patches, and may differ. Return the images "
           "[B, C, height * patch, width * patch].",
    hints=("In step 1 the numbers of a token were ordered (c p q). Here they are (p q c).",
           "Split both axes: [B, height, width, patch, patch, C]. Then bring them into the order of an "
           "image: C, then the row of the patch and the row in it, then the same for columns.",
           "rearrange(tokens, 'b (h w) (p q c) -> b c (h p) (w q)', h=height, p=patch, q=patch)"),
    check=check_unpatchify, solution=put_back,
    why="A pixel's row is (row of its patch) * patch + (row in the patch), so these two axes have to stand "
        "side by side, in this order, when they are merged. Cutting and putting back lose nothing, for any "
        "size of patch.",
    wrong=(
        (in_order("c p q"),
         "That is the order of step 1, where the channel comes first. Here it comes last."),
        (in_order("q p c"),
         "Inside of each patch rows and columns are exchanged."),
        (by_columns,
         "The patches are laid down column by column; they come row by row."),
        (without_permuting,
         "A reshape alone keeps the numbers in their old order, so that each patch fills whole lines of the "
         "image. The axes must be permuted, too.")))


# 8.2 ------------------------------------------------------------------------------------------------------
def released_positions(height, width, dim):
    def sinusoid(place):                                       # [N] -> [N, dim / 2]
        frequencies = 10_000.0 ** (-torch.arange(dim // 4) / (dim // 4))
        angles = place[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return torch.cat([sinusoid(column), sinusoid(row)], dim=1)


def check_positions(answer, g):
    for height, width, dim in ((3, 5, 16), (4, 4, 32), (6, 2, 8)):
        table = tensor(answer(height, width, dim), (height * width, dim), "The table")
        halves = table.double().reshape(height, width, 2, dim // 2)
        if (halves[1:, :, 0] - halves[:-1, :, 0]).abs().max() > 1e-4:
            raise Wrong("One patch further down, the first half of the channels should stay as it is, but "
                        "it changes.")
        if (halves[:, 1:, 1] - halves[:, :-1, 1]).abs().max() > 1e-4:
            raise Wrong("One patch further to the right, the second half of the channels should stay as it "
                        "is, but it changes.")
        agree(table, released_positions(height, width, dim), "The table")


def table(places, dim, parts=("sin", "cos"), base=10_000.0, over=4):
    """Half the channels for each of two lists of places; `over`: by what part of dim frequencies fall."""
    frequencies = torch.exp(-math.log(base) * torch.arange(dim // 4) / (dim // over))
    angles = [place.reshape(-1, 1) * frequencies for place in places]
    return torch.cat([getattr(angle, part)() for angle in angles for part in parts], dim=1)


def grid(height, width):
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


def columns_first(height, width, dim, **options):
    return table(grid(height, width)[::-1], dim, **options)


def other_order_of_tokens(height, width, dim):
    column, row = grid(width, height)
    return table((column, row), dim)


def interleaved(height, width, dim):
    halves = released_positions(height, width, dim).reshape(height * width, 2, 2, dim // 4)
    return halves.transpose(2, 3).reshape(height * width, dim)


second = Exercise(
    key="8.2", title="which half is the row", points=2,
    prompt="Return the table of positions [height * width, dim] of DiT's released code, for tokens row by "
           "row. It differs from that of step 3: the first half of the channels encodes the column and the "
           "second half the row, and within each half the sines come before the cosines. The frequencies "
           "are those of step 3. dim is a multiple of 4.",
    hints=("Start from positions and sinusoid of step 3. Two things change, and the order of the tokens does "
           "not.",
           "Each half has dim / 2 channels: dim / 4 sines and dim / 4 cosines, with the frequencies "
           "10000 ** (-k / (dim / 4)) for k = 0, 1, ...",
           "column = 0 1 2 ... 0 1 2 ..., row = 0 0 0 ... 1 1 1 ...; the result is torch.cat of the "
           "sinusoids of column, then of row."),
    check=check_positions, solution=released_positions,
    why="The order of the halves does not matter to a network that learns with it, but it does to one that "
        "was trained with the other: weights of the released models need this table. With square images the "
        "wrong one has the right shape, so only a test as in step 3 tells them apart.",
    wrong=(
        (lambda height, width, dim: table(grid(height, width), dim, parts=("cos", "sin")),
         "This is the table of step 3. The released code differs from it in two ways."),
        (lambda height, width, dim: table(grid(height, width), dim),
         "Here the first half encodes the row, as in the package. In the released code it is the column."),
        (other_order_of_tokens,
         "The tokens themselves are in another order now, column by column. Only the halves of the channels "
         "change places; token number 1 is still the right neighbour of token number 0."),
        (lambda height, width, dim: columns_first(height, width, dim, parts=("cos", "sin")),
         "The halves are right. Within each of them the sines come first here."),
        (interleaved,
         "The halves are right, but sines and cosines alternate. All sines come first, then all cosines."),
        (lambda height, width, dim: columns_first(height, width, dim, over=2),
         "The frequencies fall too slowly: in each half there are dim / 4 of them, and the exponent is "
         "-k / (dim / 4).")))


# 8.3 ------------------------------------------------------------------------------------------------------
def shared_blocks(h, e, weight, bias, table, mix, mlp):
    depth, _, dim = table.shape
    shared = F.linear(F.silu(e), weight, bias).unflatten(1, (6, dim))          # once, [B, 6, D]
    for n in range(depth):
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + table[n])[:, :, None].unbind(1)   # [B, 1, D]
        norm = F.layer_norm(h, (dim,), eps=1e-6)
        h = h + gate1 * (mix[n] @ (norm * (1 + scale1) + shift1))
        norm = F.layer_norm(h, (dim,), eps=1e-6)
        h = h + gate2 * ((norm * (1 + scale2) + shift2) @ mlp[n])
    own = depth * (12 * dim**2 + 6 * dim**2 + 6 * dim)         # every block has its own linear layer
    now = 12 * depth * dim**2 + 6 * dim**2 + 6 * dim + table.numel()
    return h, torch.tensor(1 - now / own)


def check_shared(answer, g):
    batch, tokens = 3, 5
    for depth, dim, asleep in ((4, 8, True), (6, 6, False), (3, 10, False)):
        h, e = torch.randn(batch, tokens, dim, generator=g), torch.randn(batch, dim, generator=g)
        weight, bias = torch.randn(6 * dim, dim, generator=g) / 4, torch.randn(6 * dim, generator=g) / 4
        table = torch.randn(depth, 6, dim, generator=g) / 2
        mix = torch.randn(depth, tokens, tokens, generator=g).softmax(-1)
        mlp = torch.randn(depth, dim, dim, generator=g) / dim**0.5
        if asleep:
            weight, bias, table = torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(table)
        want, saves = shared_blocks(*(a.double() for a in (h, e, weight, bias, table, mix, mlp)))
        out, saved = unpack(answer(h, e, weight, bias, table, mix, mlp), "h", "saved")
        out = tensor(out, h.shape, "h")
        if asleep and (out - h).abs().max() > 1e-6:
            raise Wrong("With weight, bias and table at zero every block should be the identity, but h "
                        "changes.")
        agree(out, want.float(), "h after the last block")
        agree(saved, saves, f"saved, for {depth} blocks of width {dim},")


def variant(shared=lambda e, weight, bias: F.linear(F.silu(e), weight, bias), own=lambda table, n: table[n],
            order=(0, 1, 2, 3, 4, 5), gate=0.0, tables=True):
    """shared_blocks with one thing changed."""
    def answer(h, e, weight, bias, table, mix, mlp):
        depth, _, dim = table.shape
        everywhere = shared(e, weight, bias).unflatten(1, (6, dim))
        for n in range(depth):
            parts = (everywhere + own(table, n))[:, list(order), None].unbind(1)
            for shift, scale, opened in (parts[:3], parts[3:]):
                x = F.layer_norm(h, (dim,), eps=1e-6) * (1 + scale) + shift
                h = h + (gate + opened) * (mix[n] @ x if shift is parts[0] else x @ mlp[n])
        paid = 12 * depth * dim**2 + 6 * dim**2 + 6 * dim + (table.numel() if tables else 0)
        return h, torch.tensor(1 - paid / (depth * (18 * dim**2 + 6 * dim)))
    return answer


third = Exercise(
    key="8.3", title="one modulation for all blocks", points=3,
    prompt="Let L blocks share one linear layer: the modulation of block n is weight @ silu(e) + bias, "
           "worked out once, plus its own table[n]. h [B, N, D], e [B, D], weight [6 D, D], bias [6 D], "
           "table [L, 6, D] in the order shift, scale, gate, shift, scale, gate. To keep it short, "
           "attention in block n is mix[n] @ x with mix [L, N, N], and the MLP is x @ mlp[n] with mlp [L, "
           "D, D]. Return h after the last block (LayerNorm with eps 1e-6), and the share of parameters "
           "that is saved, compared with a linear layer in each block; count 12 D^2 for attention and MLP "
           "of a real block.",
    hints=("shared = F.linear(F.silu(e), weight, bias) is [B, 6 D]. Reshape it to [B, 6, D], add table[n] in "
           "block n, and take the six apart.",
           "h = h + gate1 * (mix[n] @ (LN(h) * (1 + scale1) + shift1)), then the same with the other three "
           "and (...) @ mlp[n]. Each of the six needs an axis for the tokens: [B, 1, D].",
           "Before: L (12 D^2 + 6 D^2 + 6 D). Now: 12 L D^2 + 6 D^2 + 6 D + 6 L D. saved is 1 - now / "
           "before."),
    check=check_shared, solution=shared_blocks,
    why="The large matrix is the same for all blocks, and the table lets each block depart from it by a "
        "constant. With many wide blocks nearly a third of the parameters is saved. PixArt-alpha does this "
        "(adaLN-single); lesson 10 trains it.",
    wrong=(
        (variant(gate=1.0),
         "The gate is 1 + gate here. That is right for the scale; a gate must start at 0, not at 1."),
        (variant(own=lambda table, n: 0),
         "The table is not used, so all blocks are modulated alike. Add table[n] in block n."),
        (variant(shared=lambda e, weight, bias: bias.expand(len(e), -1)),
         "It does not depend on e, so neither on the time nor on the label. Multiply weight with silu(e)."),
        (variant(shared=F.linear),
         "The activation is missing: the linear layer gets silu(e), not e."),
        (variant(order=(1, 0, 2, 4, 3, 5)),
         "Scale and shift are exchanged. The order is shift, scale, gate."),
        (variant(order=(0, 3, 1, 4, 2, 5)),
         "The six are in another order: first shift, scale and gate of attention, then those of the MLP."),
        (variant(tables=False),
         "h is right. The count leaves out the tables: each of the L blocks has 6 D numbers of its own.")))

EXERCISES = (first, second, third)

QUESTION = Question(
    key="8.w", title="zero times zero", points=3,
    prompt="To be safe, somebody starts a DiT with adaLN-Zero as in the lesson, and also sets the output "
           "layers of attention and of the MLP to zero in every block, weights and biases. (a) What are "
           "the gradients of the gates and of these output layers at the first step, and at later ones? "
           "(b) What does the network look like after a thousand steps? Which parts have learned? (c) How "
           "would you notice, and what would you change?",
    rubric=("A gate's gradient is multiplied by what its branch says, and the branch's gradient by the "
            "gate. Both are zero, so both gradients are exactly zero, at every step.",
            "All blocks are still the identity, so patches never look at one another; only what is outside "
            "of the blocks learns, such as the patch embedding, the last modulation and the last layer.",
            "No error tells; the loss even falls at first. A table of gradients, or max |block(h) - h| = 0 "
            "after training, shows it. Only one of the two factors may start at zero."),
    answer="A branch adds gate times output, and if both are zero, the gradient of either is zero, so "
           "neither ever moves. The blocks stay the identity, and no patch sees another. What is outside "
           "of the blocks still learns, as does the path of time and label through the last modulation, so "
           "the loss falls a little and nothing looks broken. The lesson's table of gradients would show "
           "rows that stay zero. Set the gates to zero and leave the output layers random.")
