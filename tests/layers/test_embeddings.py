import pytest
import torch

from diffusion_course.layers.embeddings import LabelToken


def test_a_label_is_one_token_and_one_past_the_classes_is_the_null():
    tokens = LabelToken(10, 8)
    out = tokens(torch.tensor([3, 10]))
    assert out.shape == (2, 1, 8) and tokens.dim == 8
    assert torch.equal(out[:, 0], tokens.weight[[3, 10]]) and not torch.equal(out[0], out[1])
    with pytest.raises(IndexError):
        tokens(torch.tensor([11]))
