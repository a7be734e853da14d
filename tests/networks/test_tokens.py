import pytest
import torch
from einops import rearrange

from diffusion_course.networks.tokens import Codebook, VQAutoencoder


def vectors(z):
    return rearrange(z, "b d h w -> (b h w) d")


def filled(codes, **kwargs):
    """A codebook of these codes, all of them in use."""
    book = Codebook(*codes.shape, **kwargs)
    book.codes.copy_(codes)
    book.use.fill_(1 / len(codes))
    book.sums.copy_(codes / len(codes))
    return book


def clusters(*centres, n=20, spread=0.01):
    """z [n, D, 1, K] near the centres, n of each."""
    z = torch.stack([torch.tensor(centre) for centre in centres]) + spread * torch.randn(n, len(centres), 2)
    return rearrange(z, "n k d -> n d 1 k")


def test_the_nearest_code():
    book, z = Codebook(7, 5), torch.randn(3, 5, 4, 6)
    expected = torch.cdist(vectors(z), book.codes).argmin(1).reshape(3, 4, 6)
    assert torch.equal(book.nearest(z), expected) and len(expected.unique()) == 7
    z_q = book.look_up(expected)
    assert z_q.shape == z.shape and torch.equal(z_q[2, :, 3, 1], book.codes[expected[2, 3, 1]])


@pytest.mark.parametrize("training", [True, False])
def test_gradients_go_straight_through(training):
    book, z, weight = Codebook(7, 5).train(training), torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    expected = book.look_up(book.nearest(z))                   # of the codes before they move
    z.requires_grad_()
    z_q, index = book(z)
    torch.testing.assert_close(z_q, expected)
    assert not index.requires_grad and not torch.allclose(z_q, z)
    (z_q * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    assert not list(book.parameters()) and not book.codes.requires_grad


def test_codes_move_in_training_only():
    book, z = Codebook(7, 5), torch.randn(2, 5, 3, 4)
    before = {name: x.clone() for name, x in book.named_buffers()}
    book.eval()(z)
    assert all(torch.equal(x, before[name]) for name, x in book.named_buffers())
    book.train()(z)
    assert not any(torch.equal(x, before[name]) for name, x in book.named_buffers())


def test_codes_follow_the_running_mean_of_what_chose_them():
    """Van den Oord et al. 2017, app. A.1, eq. 6 to 8, code by code."""
    codes = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    book, decay = filled(codes, decay=0.8), 0.8
    use, sums, codes = torch.full((3,), 1 / 3), codes / 3, codes.clone()
    for _ in range(3):
        z = clusters([0.5, 0.2], [3.8, 0.1], [0.1, 4.3], n=4, spread=0.2)
        flat = vectors(z)
        chosen = torch.cdist(flat, codes).argmin(1)
        for k in range(3):
            mine = flat[chosen == k]
            use[k] = decay * use[k] + (1 - decay) * len(mine) / len(flat)
            sums[k] = decay * sums[k] + (1 - decay) * mine.sum(0) / len(flat)
            codes[k] = sums[k] / use[k]
        book.train()(z)
        torch.testing.assert_close(book.codes, codes)
        torch.testing.assert_close(book.use, use)


def test_codes_reach_the_means():
    book = filled(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).train()
    z = clusters([3.0, 1.0], [-1.0, 2.0])
    for _ in range(300):
        book(z)
    torch.testing.assert_close(book.codes, z.mean(0)[:, 0].T, rtol=1e-3, atol=1e-3)


def test_a_code_that_nothing_chose_stays_and_keeps_its_claim_for_a_while():
    book, z = filled(torch.tensor([[0.0, 0.0], [9.0, 9.0]])).train(), clusters([0.5, 0.0])
    for _ in range(100):                                       # 0.97^100 of an average share: 0.05
        book(z)
    torch.testing.assert_close(book.codes[1], torch.tensor([9.0, 9.0]))
    assert book.use[1] < 0.05
    for _ in range(50):
        book(z)
    assert (book.codes[1] - vectors(z)).norm(dim=1).min() < 0.1  # its share fell under 0.02: revived


def test_the_dead_are_revived_where_codes_fit_worst():
    book = filled(torch.tensor([[0.0, 0.0], [99.0, 0.0], [0.0, 99.0], [99.0, 99.0]])).train()
    book.use[1], book.use[3] = 1e-6, 0.0
    z = torch.tensor([[0.1, 0.0], [0.0, 3.0], [0.2, 0.1], [2.0, 0.0], [0.0, 0.3]]).T[None, :, :, None]
    book(z)
    torch.testing.assert_close(book.codes[[1, 3]], torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
    torch.testing.assert_close(book.codes[2], torch.tensor([0.0, 99.0]))       # alive, and so left alone
    torch.testing.assert_close(book.use[[1, 3]], torch.full((2,), 0.25))       # an average share
    index = book.eval()(z)[1].flatten()
    assert index[1] == 1 and index[3] == 3


def test_fewer_vectors_than_dead_codes():
    book = Codebook(8, 2).train()
    z = torch.tensor([[5.0, 0.0], [0.0, 5.0]]).T[None, :, :, None]
    book(z)
    assert book.codes.isfinite().all()
    torch.testing.assert_close(torch.cdist(book.codes, vectors(z)).amin(1), torch.zeros(8))


def test_a_codebook_comes_into_use():
    """From codes far from everything: without revival one of them would be all there is."""
    book = Codebook(16, 2).train()
    book.codes.add_(50)
    for _ in range(20):
        book(torch.randn(8, 2, 4, 4))
    assert book.perplexity() > 8


@pytest.mark.parametrize("use, perplexity", [
    ([0.25, 0.25, 0.25, 0.25], 4.0), ([0.1, 0.1, 0.1, 0.1], 4.0), ([0.0, 1.0, 0.0, 0.0], 1.0),
    ([0.5, 0.0, 0.5, 0.0], 2.0)])
def test_perplexity(use, perplexity):
    book = Codebook(4, 2)
    book.use.copy_(torch.tensor(use))
    torch.testing.assert_close(book.perplexity(), torch.tensor(perplexity))


# ---- the autoencoder

def small(**kwargs):
    return VQAutoencoder(**{"width": 8, "size": 16} | kwargs).eval()


@pytest.mark.parametrize("channels, factor", [(1, 2), (3, 4), (1, 8)])
def test_shapes(channels, factor):
    net = small(channels=channels, factor=factor)
    for frames in ((), (3,)):
        x = torch.randn(2, channels, *frames, 16, 24)
        index = net.encode(x)
        assert index.dtype == torch.int64 and index.shape == (2, *frames, 16 // factor, 24 // factor)
        assert 0 <= index.min() and index.max() < 16 and net.decode(index).shape == x.shape


def test_a_video_is_encoded_and_decoded_frame_by_frame():
    net, x = small(), torch.randn(2, 1, 3, 16, 24)
    index = net.encode(x)
    y = net.decode(index)
    for f in range(3):
        assert torch.equal(index[:, f], net.encode(x[:, :, f]))
        torch.testing.assert_close(y[:, :, f], net.decode(index[:, f]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(index[:, 0], index[:, 1])


def test_tokens_name_the_codes_nearest_to_what_the_encoder_says():
    net, x = small(), torch.randn(2, 1, 16, 16)
    z_q, index = net.codebook(net.encoder(x))
    assert torch.equal(net.encode(x), index)
    torch.testing.assert_close(net.decode(index), net.decoder(z_q), rtol=1e-4, atol=1e-5)
    other = index.clone()
    other[1, 0, 0] = (other[1, 0, 0] + 1) % 16
    change = (net.decode(other) - net.decode(index)).abs().amax((1, 2, 3))
    assert change[0] < 1e-6 and change[1] > 1e-5


@pytest.mark.parametrize("tokens, got", [
    (torch.zeros(1, 4, 4), "torch.float32"), (torch.zeros(1, 4, 4).int(), "torch.int32"),
    (torch.full((1, 4, 4), 16), r"\(1, 4, 4\)"), (torch.full((1, 4, 4), -1), r"\(1, 4, 4\)"),
    (torch.zeros(4, 4).long(), r"\(4, 4\)"), (torch.zeros(1, 1, 2, 4, 4).long(), r"\(1, 1, 2, 4, 4\)")])
def test_foreign_tokens_are_refused(tokens, got):
    with pytest.raises(ValueError, match=rf"tokens must be int64 \[B, .* from 0 to 15, got .*{got}"):
        small().decode(tokens)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 18, 16), (2, 1, 3, 16, 18)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match="expected 1 channels, height and width multiples of 4"):
        small().encode(torch.zeros(shape))
