"""The inverted softmax, by hand and in the cases it is made for."""

import math

import pytest
import torch

from emcl_train.metrics import text_to_video
from emcl_train.rerank import inverted_softmax


def test_inverted_softmax_of_a_hand_computed_case():
    similarity = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    # Column 1 at temperature 1: weights 3/4 and 1/4, times two queries.
    over_captions = inverted_softmax(similarity, 1.0, axis=0)
    assert over_captions.flatten().tolist() == pytest.approx([0.0, math.log(3.0) * 1.5, 0.0, 0.0])
    over_clips = inverted_softmax(similarity, 1.0, axis=1)
    assert over_clips.flatten().tolist() == pytest.approx([0.0, math.log(3.0) * 1.5, 0.0, 0.0])


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


def test_small_temperatures_do_not_underflow_into_ties():
    similarity = torch.linspace(0.0, 1.0, 100).reshape(10, 10)
    assert inverted_softmax(similarity, 0.01, axis=0)[1:].unique().numel() == 90


def test_the_raw_similarity_is_left_alone():
    similarity = torch.rand(4, 4)
    before = similarity.clone()
    inverted_softmax(similarity, 0.01, axis=0)
    assert torch.equal(similarity, before)
