"""Ranks, recalls and the two definitions of video→text, against hand-computed cases and the naive definition."""

import csv
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emcl_train.evaluation import metrics
from emcl_train.evaluation.metrics import (
    ranks,
    retrieval_metrics,
    text_to_video,
    video_to_text_best_rank,
    video_to_text_best_similarity,
    video_to_text_ranks_by_rank,
    video_to_text_ranks_by_similarity,
)

TEST_SENTENCES = Path(__file__).parents[4] / "shared/data/annotations/MSRVTT_JSFUSION_test.csv"


def mean_over_orders(scores, own):
    """The definition itself: the best position of an own item, averaged over every order that sorts the scores."""
    positions = []
    for order in permutations(range(len(scores))):
        values = [scores[i] for i in order]
        if values == sorted(values, reverse=True):
            positions.append(1 + min(place for place, i in enumerate(order) if i in own))
    return sum(positions) / len(positions)


# Few distinct values, so that most draws hold ties.
small_scores = st.lists(
    st.lists(st.sampled_from([-0.5, 0.0, 0.25, 1.0]), min_size=3, max_size=3), min_size=5, max_size=5
)


def test_ranks_of_a_hand_computed_case():
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.5, 0.2],  # right item 0: nothing is better → 1
            [0.9, 0.1, 0.5, 0.2],  # right item 1: three are better → 4
            [0.3, 0.7, 0.7, 0.7],  # right item 2: a tie of three at the top → 2
            [0.8, 0.4, 0.1, 0.4],  # right item 3: one better, a tie of two → 2.5
        ]
    )
    assert ranks(similarity, torch.arange(4)).tolist() == [1.0, 4.0, 2.0, 2.5]


def test_metrics_of_a_hand_computed_case():
    metrics = retrieval_metrics(torch.tensor([1.0, 1.5, 5.0, 51.0], dtype=torch.float64))
    assert metrics == {"R@1": 25.0, "R@5": 75.0, "R@10": 75.0, "R@50": 75.0, "MdR": 3.25, "MnR": 14.625}


def test_median_of_an_odd_number_of_ranks_is_the_middle_one():
    assert retrieval_metrics(torch.tensor([9.0, 1.0, 2.0]))["MdR"] == 2.0


@settings(max_examples=30, deadline=None)
@given(small_scores)
def test_ranks_are_the_mean_over_all_orders_of_a_tie(scores):
    target = [0, 1, 2, 0, 1]
    naive = [mean_over_orders(row, {right}) for row, right in zip(scores, target, strict=True)]
    assert ranks(torch.tensor(scores), torch.tensor(target)).tolist() == pytest.approx(naive)


@settings(max_examples=20, deadline=None)
@given(small_scores)
def test_both_video_to_text_definitions_are_their_naive_ones(scores):
    owner = [0, 0, 1, 2, 2]
    columns = [list(column) for column in zip(*scores, strict=True)]
    by_rank, by_similarity = [], []
    for clip, column in enumerate(columns):
        by_rank.append(mean_over_orders(column, {i for i, o in enumerate(owner) if o == clip}))
        sets = [max(value for value, o in zip(column, owner, strict=True) if o == other) for other in range(3)]
        by_similarity.append(mean_over_orders(sets, {clip}))
    similarity, caption_clip = torch.tensor(scores), torch.tensor(owner)
    assert video_to_text_ranks_by_rank(similarity, caption_clip).tolist() == pytest.approx(by_rank)
    assert video_to_text_ranks_by_similarity(similarity, caption_clip).tolist() == pytest.approx(by_similarity)


def test_video_to_text_definitions_differ_as_worked_out_by_hand():
    # Clip 0 has captions 0 and 1; captions 2, 3 and 4 belong to clip 1, and caption 5 to clip 2.
    caption_clip = torch.tensor([0, 0, 1, 1, 1, 2])
    similarity = torch.tensor(
        [
            [0.5, 0.0, 0.9],
            [0.4, 0.1, 0.1],
            [0.9, 0.8, 0.1],
            [0.8, 0.7, 0.1],
            [0.7, 0.2, 0.1],
            [0.1, 0.3, 0.8],
        ]
    )
    # Clip 0: three captions of one other clip are better → 4th caption, but 2nd caption set.
    assert video_to_text_ranks_by_rank(similarity, caption_clip).tolist() == [4.0, 1.0, 2.0]
    assert video_to_text_ranks_by_similarity(similarity, caption_clip).tolist() == [2.0, 1.0, 2.0]


def test_video_to_text_definitions_agree_at_rank_one_without_ties():
    generator = torch.Generator().manual_seed(0)
    caption_clip = torch.arange(41).repeat_interleave(7)[torch.randperm(287, generator=generator)]
    similarity = torch.rand(287, 41, generator=generator)
    similarity[torch.arange(287), caption_clip] += 0.2
    by_rank = video_to_text_best_rank(similarity, caption_clip)
    by_similarity = video_to_text_best_similarity(similarity, caption_clip)
    assert 0 < by_rank["R@1"] == by_similarity["R@1"] < 100
    assert by_rank["MnR"] > by_similarity["MnR"]


def test_one_caption_per_clip_makes_all_definitions_one():
    similarity = torch.randn(63, 63, generator=torch.Generator().manual_seed(1))
    caption_clip = torch.randperm(63, generator=torch.Generator().manual_seed(2))
    expected = ranks(similarity.T, caption_clip.argsort())
    assert torch.equal(video_to_text_ranks_by_similarity(similarity, caption_clip), expected)
    assert torch.equal(video_to_text_ranks_by_rank(similarity, caption_clip), expected)


def test_a_caption_given_twice_does_not_change_its_clips_rank():
    similarity = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.5]])
    caption_clip = torch.tensor([0, 0, 1])
    assert video_to_text_ranks_by_rank(similarity, caption_clip).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("size", [1, 7, 130])
def test_a_constant_similarity_has_the_middle_rank_for_every_query(size):
    metrics = text_to_video(torch.full((size, size), 0.3), torch.arange(size))
    assert metrics["MdR"] == metrics["MnR"] == (size + 1) / 2
    assert metrics["R@1"] == (100.0 if size == 1 else 0.0)


def test_recall_never_exceeds_the_number_of_queries():
    # The common way (sort, subtract the diagonal, look for zeros) counts a tied row once per tied item.
    similarity = torch.zeros(10, 10)
    similarity[:5] = torch.eye(10)[:5]
    metrics = text_to_video(similarity, torch.arange(10))
    assert metrics["R@1"] == 50.0
    assert metrics["R@10"] == 100.0


@pytest.mark.skipif(not TEST_SENTENCES.exists(), reason=f"{TEST_SENTENCES} is not on this machine")
def test_duplicate_sentences_of_the_1k_a_test_share_their_rank():
    with TEST_SENTENCES.open(newline="") as file:
        sentences = [row["sentence"] for row in csv.DictReader(file)]
    different = sorted(set(sentences))
    assert (len(sentences), len(different)) == (1000, 995)
    # A perfect model that sees nothing but the words: similarity 1 to every clip with the same sentence.
    number = torch.tensor([different.index(sentence) for sentence in sentences])
    similarity = (number[:, None] == number[None, :]).float()
    metrics = text_to_video(similarity, torch.arange(1000))
    # Three sentences stand there twice and one three times: six ranks of 1.5 and three of 2, whatever their order.
    assert metrics["R@1"] == pytest.approx(99.1)
    assert metrics["R@5"] == 100.0
    assert metrics["MnR"] == pytest.approx(1.006)
    assert video_to_text_best_similarity(similarity, torch.arange(1000)) == metrics


# Chance.


def metrics_of_all_orders(sizes):
    """Mean metrics of both definitions over random scores of captions, for clips with so many captions each."""
    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(0)
    ranks_found = {"similarity": [], "rank": []}
    for _ in range(4000):
        similarity = torch.rand(len(owner), len(sizes), generator=generator)
        ranks_found["similarity"].append(metrics.video_to_text_ranks_by_similarity(similarity, owner))
        ranks_found["rank"].append(metrics.video_to_text_ranks_by_rank(similarity, owner))
    return owner, {name: torch.cat(found) for name, found in ranks_found.items()}


@pytest.mark.parametrize("gallery", [1, 2, 7, 256])
def test_chance_is_that_of_equal_similarities_in_the_mean_rank(gallery):
    """All tie: the mean rank is (G + 1) / 2, and each place is as likely as another."""
    by_chance = metrics.chance(gallery)
    found = metrics.text_to_video(torch.zeros(gallery, gallery), torch.arange(gallery))
    assert by_chance["MdR"] == found["MdR"]
    assert by_chance["MnR"] == found["MnR"]
    each_place = metrics.retrieval_metrics(torch.arange(1, gallery + 1).double())
    assert by_chance == pytest.approx(each_place)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [1, 1, 12], [3, 3]])
def test_chance_is_what_random_similarities_have_on_average(sizes):
    owner, found = metrics_of_all_orders(sizes)
    for by_chance, places in (
        (metrics.chance(len(sizes)), found["similarity"]),
        (metrics.chance_of_best_rank(owner), found["rank"]),
    ):
        error = 100 * 0.5 / len(places) ** 0.5
        for k in metrics.RECALL_AT:
            assert by_chance[f"R@{k}"] == pytest.approx(
                100 * (places <= k).double().mean().item(), abs=4 * error + 1e-9
            )
        assert by_chance["MnR"] == pytest.approx(places.mean().item(), rel=0.03)


def test_chance_of_the_best_rank_by_hand():
    """Two clips, one with one caption and one with two: three places, of which each order is as likely."""
    by_chance = metrics.chance_of_best_rank(torch.tensor([0, 1, 1]))
    # R@1: 1/3 and 2/3. R@5: all. Mean: 4/2 and 4/3. The first clip's rank is 1, 2, 3; the second's 1, 1, 2.
    assert by_chance["R@1"] == pytest.approx(50)
    assert by_chance["R@5"] == pytest.approx(100)
    assert by_chance["MnR"] == pytest.approx(5 / 3)
    assert by_chance["MdR"] == 1.5
    assert metrics.chance_of_best_rank(torch.arange(256)) == pytest.approx(metrics.chance(256))


def test_chance_needs_something_to_find():
    with pytest.raises(ValueError, match="gallery is 0"):
        metrics.chance(0)
    with pytest.raises(ValueError, match="no queries"):
        metrics.chance_of_best_rank(torch.tensor([], dtype=torch.int64))
