"""Losses with a margin, against numpy that was written from their descriptions, and numbers worked out by hand."""

import numpy as np
import pytest
import torch

from emcl_train.config import RunConfig, TrainConfig, check_config
from emcl_train.errors import UserError
from emcl_train.training.losses import loss_of, symmetric_info_nce
from emcl_train.training.margins import max_margin, pair_margin, top_k_margin

SIZES = (2, 3, 7, 32, 41)


def similarities_of(pairs, seed=0):
    """Among them ties, and some that are exactly 0."""
    random = np.random.default_rng((seed, pairs))
    values = random.uniform(-1, 1, (pairs, pairs)).round(2)
    values[random.random(values.shape) < 0.1] = 0.0
    return values


def max_margin_by_loops(s, margin):
    terms = []
    for i in range(len(s)):
        for j in range(len(s)):
            if i != j:
                terms += [max(0.0, margin - s[i, i] + s[i, j]), max(0.0, margin - s[i, i] + s[j, i])]
    return sum(terms) / (2 * len(s) * (len(s) - 1))


def top_k_margin_by_loops(s, margin, top_k):
    """The largest others by sorting, the right pair and zeros last."""
    terms = []
    for matrix in (s, s.T):
        for i, row in enumerate(matrix):
            others = [-1e8 if i == j or value == 0 else value for j, value in enumerate(row)]
            terms += [max(0.0, margin - row[i] + value) for value in sorted(others)[::-1][:top_k]]
    assert len(terms) == 2 * len(s) * top_k
    return sum(terms) / len(terms)


def pair_margin_by_loops(s, margin):
    """s[a, v] of caption a and video v: a row of the release's matrix is a video."""
    of_videos = s.T
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            total += max(0.0, margin + of_videos[i, j] - of_videos[i, i])
    return total / len(s) ** 2


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2, 10.0])
@pytest.mark.parametrize("pairs", SIZES)
def test_max_margin_is_that_of_loops(pairs, margin):
    s = similarities_of(pairs)
    found = max_margin(torch.from_numpy(s), margin=margin)
    assert found.item() == pytest.approx(max_margin_by_loops(s, margin), abs=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2, 10.0])
@pytest.mark.parametrize("pairs", SIZES)
def test_top_k_margin_is_that_of_loops(pairs, margin):
    s = similarities_of(pairs)
    for top_k in {1, 2, pairs - 1, pairs} - {0}:
        found = top_k_margin(torch.from_numpy(s), margin=margin, top_k=top_k)
        assert found.item() == pytest.approx(top_k_margin_by_loops(s, margin, top_k), abs=1e-10), top_k


@pytest.mark.parametrize("margin", [0.05, 10.0])
@pytest.mark.parametrize("pairs", SIZES)
def test_pair_margin_is_that_of_loops(pairs, margin):
    s = similarities_of(pairs)
    found = pair_margin(torch.from_numpy(s), margin=margin)
    assert found.item() == pytest.approx(pair_margin_by_loops(s, margin), abs=1e-12)


def test_two_pairs_by_hand():
    """Rows: 0.2 − 0.5 + 0.4 = 0.1 and none; columns: 0.2 − 0.5 + 0.1 and 0.2 − 0.3 + 0.4 = 0.3."""
    s = torch.tensor([[0.5, 0.4], [0.1, 0.3]], dtype=torch.float64)
    assert max_margin(s, margin=0.2).item() == pytest.approx((0.1 + 0.0 + 0.0 + 0.3) / 4)
    assert top_k_margin(s, margin=0.2, top_k=1).item() == pytest.approx((0.1 + 0.0 + 0.0 + 0.3) / 4)
    # Of each video with all captions: 0.2 twice for the right ones.
    assert pair_margin(s, margin=0.2).item() == pytest.approx((0.2 + 0.0 + 0.2 + 0.3) / 4)


def test_both_directions_count_but_for_jsfusion():
    s = torch.tensor([[0.5, 0.6, 0.0], [0.1, 0.3, 0.2], [0.1, 0.1, 0.9]], dtype=torch.float64)
    assert max_margin(s, margin=0.2) == pytest.approx(max_margin(s.mT, margin=0.2).item())
    assert top_k_margin(s, margin=0.2, top_k=2) == pytest.approx(top_k_margin(s.mT, margin=0.2, top_k=2).item())
    assert pair_margin(s, margin=0.2) != pytest.approx(pair_margin(s.mT, margin=0.2).item())


def test_a_similarity_of_exactly_zero_is_no_other_one():
    """The right pair has −1, and its only other one 0: as released it is not learnt from."""
    s = torch.tensor([[-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    assert top_k_margin(s, margin=0.2, top_k=1).item() == 0
    assert top_k_margin(s + 1e-300, margin=0.2, top_k=1).item() == pytest.approx(1.2)
    assert max_margin(s, margin=0.2).item() == pytest.approx(1.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_of_half_precision_as_of_the_same_numbers_in_float64(dtype):
    values = torch.from_numpy(similarities_of(7)).to(dtype).requires_grad_()
    for loss in (
        lambda s: max_margin(s, margin=0.05),
        lambda s: top_k_margin(s, margin=0.05, top_k=7),
        lambda s: pair_margin(s, margin=10.0),
    ):
        found = loss(values)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(loss(values.detach().double()).item(), rel=1e-6)
        values.grad = None
        found.backward()
        assert bool(torch.isfinite(values.grad).all())


@pytest.mark.parametrize("pairs", [3, 7])
def test_gradients_are_those_of_finite_differences(pairs):
    random = np.random.default_rng(1)
    s = torch.from_numpy(random.uniform(-1, 1, (pairs, pairs))).requires_grad_()
    for loss in (
        lambda s: max_margin(s, margin=0.3),
        lambda s: top_k_margin(s, margin=0.3, top_k=2),
        lambda s: pair_margin(s, margin=0.3),
    ):
        assert torch.autograd.gradcheck(loss, (s,))


@pytest.mark.parametrize(
    ("loss", "settings"),
    [("max-margin", {}), ("top-k-margin", {"top_k": 1}), ("pair-margin", {"margin": 10.0})],
)
def test_one_pair_is_a_clear_error(loss, settings):
    with pytest.raises(UserError, match=f"the loss {loss} got a batch of one pair.*--train.batch-size 2"):
        loss_of(TrainConfig(loss=loss, **settings))(torch.ones(1, 1), torch.tensor(1.0))


def test_texts_must_be_as_many_as_videos():
    with pytest.raises(ValueError, match=r"max-margin got similarities of shape \[3, 4\]"):
        max_margin(torch.zeros(3, 4), margin=0.1)


def test_more_others_than_pairs_are_a_clear_error():
    with pytest.raises(UserError, match=r"train\.top_k is 8, expected 1 to 7"):
        top_k_margin(torch.zeros(7, 7), margin=0.1, top_k=8)
    with pytest.raises(UserError, match=r"train\.top_k is 9, expected 1 to 8"):
        check_config(RunConfig(train=TrainConfig(loss="top-k-margin", top_k=9, batch_size=8)))


def test_settings_choose_the_loss():
    s = torch.from_numpy(similarities_of(7))
    scale = torch.tensor(2.0, dtype=torch.float64)
    assert loss_of(TrainConfig())(s, scale) == symmetric_info_nce(s, scale)
    assert loss_of(TrainConfig(loss="max-margin", margin=0.1))(s, scale) == max_margin(s, margin=0.1)
    found = loss_of(TrainConfig(loss="top-k-margin", margin=0.1, top_k=3))(s, scale)
    assert found == top_k_margin(s, margin=0.1, top_k=3)
    assert loss_of(TrainConfig(loss="pair-margin", margin=10.0))(s, scale) == pair_margin(s, margin=10.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"margin": -0.1}, "train.margin is -0.1"),
        ({"margin": float("nan")}, "train.margin is nan"),
        ({"top_k": 0}, "train.top_k is 0"),
        ({"lr_decay": 0.0}, "train.lr_decay is 0.0"),
        ({"lr_decay": 1.5}, "train.lr_decay is 1.5"),
        ({"lr_decay_steps": 0}, "train.lr_decay_steps is 0"),
        ({"max_grad_norm": 0.0}, "train.max_grad_norm is 0.0"),
    ],
)
def test_settings_out_of_range_are_named(settings, said):
    with pytest.raises(UserError, match=said):
        check_config(RunConfig(train=TrainConfig(**settings)))
    check_config(RunConfig(train=TrainConfig(max_grad_norm=None)))
