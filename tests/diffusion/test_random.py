import torch

from diffusion_course.diffusion.random import rand, randn, randn_like, rows_of, strata, whole_batch


def test_outside_it_is_torchs_own():
    torch.manual_seed(3)
    ours = rand(4), randn(4, 2), randn_like(torch.zeros(2, 3))
    torch.manual_seed(3)
    theirs = torch.rand(4), torch.randn(4, 2), torch.randn(2, 3)
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b)


def test_parts_of_a_batch_draw_parts_of_one_stream():
    def draw(start, count):
        with rows_of(start, 8, torch.Generator().manual_seed(1)):
            return rand(count), randn(count, 3), rand(count), strata(count)
    whole, first, second = draw(0, 8), draw(0, 3), draw(3, 5)
    for w, a, b in zip(whole, first, second):
        assert torch.equal(w, torch.cat([a, b]))


def test_a_part_may_know_the_whole_batch():
    def draw(start, count):
        with rows_of(start, 8, torch.Generator().manual_seed(1)):
            with whole_batch(count) as (total, mine):
                everything = rand(total)
            return everything, everything[mine], rand(count)
    whole, part = draw(0, 8), draw(3, 5)
    assert torch.equal(part[0], whole[0])
    assert torch.equal(part[1], whole[1][3:]) and torch.equal(part[2], whole[2][3:])
    with whole_batch(4) as (total, mine):
        assert (total, rand(total)[mine].shape) == (4, (4,))
