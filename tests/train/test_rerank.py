"""The inverted softmax, by hand and in the cases it is made for."""

import math

import pytest
import torch

from emcl_train.metrics import text_to_video
from emcl_train.rerank import inverted_softmax


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
