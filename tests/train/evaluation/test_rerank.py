"""The inverted softmax and QB-Norm, by hand and in the cases they are made for."""

import math

import pytest
import torch

from emcl_train.evaluation.metrics import text_to_video
from emcl_train.evaluation.rerank import inverted_softmax, qb_norm


def test_inverted_softmax_of_a_hand_computed_case():
    similarity = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    # Over captions, column 1 at temperature 1 has weights 3/4 and 1/4. Over clips, row 0 has 1/4 and 3/4.
    over_captions = inverted_softmax(similarity, 1.0, axis=0).exp()
    assert over_captions.flatten().tolist() == pytest.approx([0.5, 0.75, 0.5, 0.25])
    over_clips = inverted_softmax(similarity, 1.0, axis=1).exp()
    assert over_clips.flatten().tolist() == pytest.approx([0.25, 0.75, 0.5, 0.5])


def test_axes_are_each_others_transpose():
    similarity = torch.rand(7, 41, generator=torch.Generator().manual_seed(0))
    turned = inverted_softmax(similarity.T, 0.01, axis=0).T
    torch.testing.assert_close(inverted_softmax(similarity, 0.01, axis=1), turned, rtol=1e-10, atol=0.0)


def test_a_hub_loses_its_false_hits():
    # Clip 2 is near to every caption; raw similarities send all three captions to it.
    similarity = torch.tensor([[0.50, 0.10, 0.60], [0.10, 0.50, 0.60], [0.10, 0.10, 0.70]])
    raw = text_to_video(similarity, torch.arange(3))
    reranked = text_to_video(inverted_softmax(similarity, 0.01, axis=0), torch.arange(3))
    assert raw["R@1"] == pytest.approx(100 / 3)
    assert reranked["R@1"] == 100.0


@pytest.mark.parametrize("temperature", [0.01, 1e-4])
def test_small_temperatures_do_not_underflow_into_ties(temperature):
    similarity = torch.rand(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = inverted_softmax(similarity, temperature, axis=0)
    assert all(column.unique().numel() == 10 for column in scores.T)


def test_negative_similarities_keep_their_order():
    similarity = torch.tensor([[-0.1, -0.5], [-0.5, -0.1]])
    assert text_to_video(inverted_softmax(similarity, 0.01, axis=0), torch.arange(2))["R@1"] == 100.0


def test_the_raw_similarity_is_left_alone():
    similarity = torch.rand(4, 4)
    before = similarity.clone()
    inverted_softmax(similarity, 0.01, axis=0)
    assert torch.equal(similarity, before)


def test_qb_norm_of_a_hand_computed_case():
    similarity = torch.tensor([[1.0, 0.5], [0.2, 0.6]])
    bank = torch.tensor([[math.log(3.0), 0.0], [math.log(2.0), 0.0]])  # both are nearest to item 0
    scores = qb_norm(similarity, bank, temperature=1.0)
    # Row 0 is nearest to item 0, so it is divided by what the bank makes of the items: 3 + 2 and 1 + 1.
    assert scores[0].tolist() == pytest.approx([1.0 - math.log(5.0), 0.5 - math.log(2.0)])
    assert scores[1].tolist() == pytest.approx([0.2, 0.6])


def test_qb_norm_finds_behind_a_hub_what_the_bank_has_seen_of_it():
    similarity = torch.tensor([[0.50, 0.10, 0.60], [0.10, 0.50, 0.60], [0.10, 0.10, 0.70]])
    bank = torch.tensor([[0.2, 0.3, 0.6], [0.3, 0.2, 0.6]])
    assert text_to_video(qb_norm(similarity, bank, temperature=0.05), torch.arange(3))["R@1"] == 100.0


def test_qb_norm_does_not_let_a_query_see_another_one():
    generator = torch.Generator().manual_seed(0)
    similarity, bank = torch.rand(9, 7, generator=generator), torch.rand(5, 7, generator=generator)
    alone = torch.cat([qb_norm(row[None], bank, temperature=0.05) for row in similarity])
    assert torch.equal(alone, qb_norm(similarity, bank, temperature=0.05))


@pytest.mark.parametrize(
    ("bank", "temperature", "words"),
    [
        (torch.zeros(0, 3), 0.05, "at least one bank query"),
        (torch.zeros(2, 4), 0.05, "same 3 gallery items, got shape"),
        (torch.full((2, 3), math.nan), 0.05, "NaN or infinity"),
        (torch.zeros(2, 3), 0.0, "positive number, got 0.0"),
    ],
)
def test_qb_norm_says_what_is_wrong_with_its_bank(bank, temperature, words):
    with pytest.raises(ValueError, match=words):
        qb_norm(torch.rand(3, 3), bank, temperature=temperature)
