"""The contrastive loss, against numbers worked out by hand."""

import math

import pytest
import torch

from emcl_train.config import TrainConfig
from emcl_train.training.losses import channel_decorrelation, loss_of, sigmoid_loss, symmetric_info_nce


def test_two_pairs_by_hand():
    similarity, scale = torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=torch.float64), torch.tensor(2.0).double()
    rows = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    columns = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))
    assert symmetric_info_nce(similarity, scale).item() == pytest.approx((rows + columns) / 4)


def test_chance_is_the_logarithm_of_the_batch():
    assert symmetric_info_nce(torch.zeros(7, 7), torch.tensor(100.0)).item() == pytest.approx(math.log(7))


def test_both_directions_count():
    similarity = torch.tensor([[1.0, 0.9], [0.0, 1.0]])
    assert symmetric_info_nce(similarity, torch.tensor(5.0)) == symmetric_info_nce(similarity.mT, torch.tensor(5.0))


def test_a_similarity_must_be_square():
    with pytest.raises(Exception, match="symmetric_info_nce"):
        symmetric_info_nce(torch.zeros(3, 4), torch.tensor(1.0))


def test_the_sigmoid_loss_asks_of_each_pair_by_hand():
    similarity, scale = torch.tensor([[1.0, 0.0], [0.5, -1.0]], dtype=torch.float64), torch.tensor(2.0).double()
    bias = torch.tensor(-1.0).double()
    right = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))  # logits 1 and -3
    wrong = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0))  # logits -1 and 0
    assert sigmoid_loss(similarity, scale, bias).item() == pytest.approx((right + wrong) / 2)


def test_the_sigmoid_loss_is_that_of_siglip_with_its_gradients():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (3.0, -2.0))
    signs = 2 * torch.eye(7, dtype=torch.float64) - 1
    expected = -torch.nn.functional.logsigmoid(signs * (scale * similarity + bias)).sum(1).mean()
    found = loss_of(TrainConfig(loss="sigmoid"))(similarity, scale, bias)
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(loss, (scale, bias)) for loss in (found, expected))
    torch.testing.assert_close(of_found, of_expected)
    with pytest.raises(TypeError, match="needs a bias"):
        loss_of(TrainConfig(loss="sigmoid"))(similarity, scale)


def test_channels_that_agree_alone_are_free():
    """Independent channels that are the same on both sides: the correlation is the identity."""
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) + torch.tensor([5.0, -3.0])
    even = torch.full((4,), 1.0)
    factor = 3 / 4  # deviations divide by n - 1, the correlation by n
    loss = channel_decorrelation([(rows, rows, even)], 4, off_diagonal=1.0)
    assert loss.item() == pytest.approx(2 * (factor - 1) ** 2, abs=1e-6)
    swapped = channel_decorrelation([(rows, rows.flip(1), even)], 4, off_diagonal=0.5)
    assert swapped.item() == pytest.approx(2 * 1 + 0.5 * 2 * factor**2, abs=1e-6)


def test_a_constant_channel_gives_no_nan():
    rows = torch.tensor([[1.0, 2.0], [1.0, 3.0]]).requires_grad_()
    loss = channel_decorrelation([(rows, rows, torch.ones(2))], 2, off_diagonal=1.0)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(rows.grad).all())
