"""The automatic cut-off: by hand, each query left out exactly, in blocks, and on banks that are partly answered."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from emcl_kernels import Refiner
from emcl_kernels.refine import Whitening
from emcl_train.errors import UserError
from emcl_train.search.cutoff import (
    Cutoff,
    cutoff_of,
    fewest_queries,
    held_out_scores,
    likely_shares,
    refined_scores,
    unrelated_captions,
    unrelated_scores,
)

WIDTH = 24


def rows(count: int, seed: int, mean: float = 0.3) -> np.ndarray:
    """Rows of length one that lie around a common direction, as embeddings do."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, WIDTH, generator=generator) + mean, dim=-1).numpy()


def with_bank(texts: np.ndarray, videos: np.ndarray, **settings: float) -> Refiner:
    return Refiner(**settings).fit(texts, videos, text_bank=texts)


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_the_best_cosine_of_each_query_by_hand():
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=np.float32)
    gallery = np.array([[0.8, 0.6], [-1.0, 0.0]], dtype=np.float32)
    assert unrelated_scores(bank, [gallery]) == pytest.approx([0.8, 0.6, 0.96])


def test_a_query_of_the_bank_is_left_out_by_hand():
    # One item, whose cosines with the bank are 0.8, 0.6 and 0.96; k = 1 and α = 0.5. The item is corrected by 0.96, but
    # for the third query itself by 0.8, the nearest of the others.
    bank = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.6, 0.8, 1.0]], dtype=np.float32)
    item = np.array([[0.8, 0.6, -0.48]], dtype=np.float32)
    found = unrelated_scores(bank, [item], num_neighbors=1, bank_weight=0.5)
    assert found == pytest.approx([0.8 - 0.48, 0.6 - 0.48, 0.96 - 0.4])


@pytest.mark.parametrize(("count", "items"), [(11, 2), (12, 7), (41, 63)])
@pytest.mark.parametrize(("neighbors", "weight"), [(10, 0.5), (1, 0.75), (3, 2.0)])
def test_leaving_out_is_what_a_bank_without_the_query_gives(count, items, neighbors, weight):
    texts, videos = rows(count, 0), rows(items, 1)
    refiner = with_bank(texts, videos, num_neighbors=neighbors, bank_weight=weight)
    found = unrelated_scores(
        refiner.transform_text(texts),
        [refiner.transform_video(videos)],
        num_neighbors=refiner.num_neighbors,
        bank_weight=refiner.bank_weight,
    )

    for place in range(count):
        others = np.delete(texts, place, axis=0)
        if len(others) < neighbors:
            continue
        refiner.set_bank(others)
        scores = refiner.transform_text(texts[place : place + 1]) @ refiner.transform_video(videos).T
        assert found[place] == pytest.approx(scores.max(), abs=2e-6)


def test_without_leaving_out_a_query_pulls_its_own_items_down():
    texts, videos = rows(60, 0), rows(40, 1)
    refiner = with_bank(texts, videos)
    queries, items = refiner.transform_text(texts), refiner.transform_video(videos)
    left_out = unrelated_scores(queries, [items], num_neighbors=10, bank_weight=0.5)
    kept = unrelated_scores(queries, [items])
    assert (left_out >= kept - 1e-6).all()
    assert (left_out > kept + 1e-4).mean() > 0.5


def test_equal_cosines_of_several_queries_change_nothing():
    texts = np.repeat(rows(6, 0), 3, axis=0)
    videos = rows(9, 1)
    refiner = with_bank(texts, videos, num_neighbors=2)
    queries, items = refiner.transform_text(texts), refiner.transform_video(videos)
    # The two nearest of an item are copies of one query, and so is the third: without one the mean stays.
    left_out = unrelated_scores(queries, [items], num_neighbors=2, bank_weight=0.5)
    assert left_out == pytest.approx((queries @ items.T).max(1), abs=1e-6)


@pytest.mark.parametrize("own_bank", [False, True])
def test_blocks_of_any_size_give_what_the_whole_gives(own_bank):
    texts, videos = rows(63, 0), rows(130, 1)
    refiner = with_bank(texts, videos)
    queries, items = refiner.transform_text(texts), refiner.transform_video(videos)
    settings = {"num_neighbors": 10, "bank_weight": 0.5} if own_bank else {}
    whole = unrelated_scores(queries, [items], **settings)
    for size, scores in ((1, 1), (7, 10_000), (41, 63), (1000, 130)):
        blocks = (items[start : start + size] for start in range(0, len(items), size))
        assert unrelated_scores(queries, blocks, block_scores=scores, **settings) == pytest.approx(whole, abs=1e-6)


def test_memory_holds_one_block_of_scores(monkeypatch):
    largest = 0
    multiply = torch.Tensor.__matmul__

    def watched(left, right):
        nonlocal largest
        product = multiply(left, right)
        largest = max(largest, product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    unrelated_scores(rows(41, 0), (rows(1000, seed) for seed in range(3)), block_scores=2000)
    assert 0 < largest <= 2000


def test_zeros_behind_the_rows_of_a_table_are_left_away():
    texts, videos = rows(20, 0), rows(9, 1)
    padded = np.pad(videos, ((0, 0), (0, 8)))
    assert unrelated_scores(texts, [padded]) == pytest.approx(unrelated_scores(texts, [videos]))


def test_rows_that_cannot_be_written_to_are_read():
    texts, videos = rows(20, 0), rows(9, 1)
    expected = unrelated_scores(texts, [videos])
    for array in (texts, videos):
        array.flags.writeable = False
    assert (unrelated_scores(texts, [videos]) == expected).all()
    assert (unrelated_scores(torch.tensor(texts), [torch.tensor(videos)]) == expected).all()


def test_rows_of_another_kind_are_refused():
    texts, videos = rows(20, 0), rows(9, 1)
    with pytest.raises(ValueError, match="25 numbers, and not zeros alone behind the 24"):
        unrelated_scores(texts, [np.pad(videos, ((0, 0), (0, 1)), constant_values=-0.2)])
    for width in (WIDTH - 1, WIDTH + 16):
        with pytest.raises(ValueError, match=f"gallery has rows of {width} numbers and the bank of 24"):
            unrelated_scores(texts, [np.ones((3, width), dtype=np.float32)])


def test_a_library_without_moments_has_no_cutoff():
    with pytest.raises(ValueError, match="gallery has no item"):
        unrelated_scores(rows(20, 0), [])


@pytest.mark.parametrize("where", ["bank", "gallery"])
def test_numbers_that_are_not_finite_are_refused(where):
    sides = {"bank": rows(20, 0), "gallery": rows(9, 1)}
    sides[where][3, 3] = np.nan
    with pytest.raises(ValueError, match=f"{where}.*finite|{where} holds NaN"):
        unrelated_scores(sides["bank"], [sides["gallery"]])


def test_a_bank_of_k_queries_cannot_be_left_out_of():
    with pytest.raises(ValueError, match="bank has 10 queries and num_neighbors is 10"):
        unrelated_scores(rows(10, 0), [rows(3, 1)], num_neighbors=10, bank_weight=0.5)


# ---- with the map ----------------------------------------------------------------------------------------------------


def fit_to(videos: np.ndarray) -> Callable[[np.ndarray], Refiner]:
    return lambda texts: Refiner(Whitening(strength=0.5)).fit(texts, videos)


@pytest.mark.parametrize("folds", [2, 5])
def test_a_map_that_does_not_know_a_text_scores_it(folds):
    texts, videos = rows(13, 0), rows(41, 1)
    found = held_out_scores(texts, lambda: np.array_split(videos, 3), fit_to(videos), folds=folds)
    fitted = [fit_to(videos)(texts[np.arange(len(texts)) % folds != fold]) for fold in range(folds)]
    for place in range(len(texts)):
        refiner = fitted[place % folds].set_bank(np.delete(texts, place, axis=0))
        scores = refiner.transform_text(texts[place : place + 1]) @ refiner.transform_video(videos).T
        assert found[place] == pytest.approx(scores.max(), abs=2e-6)


@pytest.mark.parametrize(("count", "held_out"), [(WIDTH - 1, True), (WIDTH, False)])
def test_a_bank_of_fewer_texts_than_numbers_in_a_row_is_held_out_of_the_map(count, held_out):
    texts, videos = rows(count, 0), rows(41, 1)
    refiner = fit_to(videos)(texts).set_bank(texts)
    refined = [refiner.transform_video(videos)]
    found = refined_scores(texts, refiner, refined, raw=lambda: [videos], fit=fit_to(videos))
    if held_out:
        expected = held_out_scores(texts, lambda: [videos], fit_to(videos))
    else:
        settings = {"num_neighbors": refiner.num_neighbors, "bank_weight": refiner.bank_weight}
        expected = unrelated_scores(refiner.transform_text(texts), refined, **settings)
    assert found == pytest.approx(expected, abs=1e-6)


def test_few_texts_that_the_map_knows_score_otherwise_than_new_ones():
    texts, videos, new = rows(20, 0), rows(60, 1), rows(400, 2)
    refiner = fit_to(videos)(texts).set_bank(texts)
    items = refiner.transform_video(videos)
    of_new = (refiner.transform_text(new) @ items.T).max(1).mean()
    known = unrelated_scores(refiner.transform_text(texts), [items], num_neighbors=10, bank_weight=0.5).mean()
    held_out = held_out_scores(texts, lambda: [videos], fit_to(videos)).mean()
    assert abs(held_out - of_new) < abs(known - of_new)


# ---- the cut-off -----------------------------------------------------------------------------------------------------


def test_a_cutoff_by_hand():
    # Place (19 + 1) · 0.95 is the last of 19; place (39 + 1) · 0.9 the 36th of 39; (21 + 1) · 0.95 lies between.
    assert cutoff_of(np.arange(1.0, 20.0)).score == 19.0
    assert cutoff_of(np.arange(39.0, 0.0, -1.0), 0.9).score == 36.0
    assert cutoff_of(np.arange(1.0, 22.0)).score == pytest.approx(20.9)


def test_a_new_unrelated_query_stays_below_as_often_as_is_said():
    draw = np.random.default_rng(0)
    for count in (19, 40, 200):
        below = []
        for _ in range(2000):
            scores = draw.gumbel(size=count + 20).astype(np.float32)
            below.append((scores[count:] <= cutoff_of(scores[:count]).score).mean())
        assert np.mean(below) == pytest.approx(0.95, abs=0.006)


def test_too_few_queries_are_refused_with_the_number_that_is_enough():
    with pytest.raises(UserError, match="95 of 100 unrelated queries needs 19 of them or more, got 18"):
        cutoff_of(np.arange(18.0))
    assert [fewest_queries(share) for share in (0.5, 0.9, 0.95, 0.99)] == [1, 9, 19, 99]


@pytest.mark.parametrize("share", [0.0, 1.0, 95.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"share is .*above 0 and below 1"):
        cutoff_of(np.arange(100.0), share)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="2 scores that are not finite, of 30"):
        cutoff_of(np.r_[np.arange(28.0), np.nan, np.inf])


def test_it_is_said_in_words_and_kept_as_json():
    cutoff = cutoff_of(np.linspace(0.1, 0.24, 99), way="refined")
    kept = Cutoff.of_json(json.loads(json.dumps(cutoff.as_json())))
    assert kept == cutoff
    assert (cutoff.share, cutoff.queries, cutoff.way) == (0.95, 99, "refined")
    assert cutoff.score == pytest.approx(0.1 + 0.14 * 94 / 98)
    said = cutoff.said()
    assert said.startswith(f"95 of 100 unrelated queries find nothing above {cutoff.score:.3g}")
    assert "99 queries" in said


def test_the_likely_shares_are_those_of_drawn_queries():
    draw = np.random.default_rng(0)
    for count, share in ((40, 0.95), (99, 0.9), (1000, 0.95)):
        uniform = draw.random((4000, count))
        true = np.quantile(uniform, share, axis=1, method="weibull")
        assert likely_shares(count, share) == pytest.approx(np.quantile(true, [0.025, 0.975]), abs=0.008)


def test_answered_queries_in_the_bank_raise_the_cutoff_and_never_lower_it():
    draw = np.random.default_rng(0)
    clean = draw.normal(0.2, 0.02, 400)
    before = cutoff_of(clean).score
    for answered in (20, 40, 80):
        part = clean.copy()
        part[:answered] = draw.normal(0.35, 0.03, answered)
        assert cutoff_of(part).score >= before
    # A twentieth of answered queries is all that the share leaves room for.
    assert cutoff_of(np.r_[clean[20:], np.full(20, 0.5)]).score > clean.max()


# ---- without a bank --------------------------------------------------------------------------------------------------


def test_the_captions_of_many_subjects_are_different_texts_and_enough():
    captions = unrelated_captions()
    assert len(captions) == len({caption.lower() for caption in captions}) >= 300
    assert all(caption == caption.strip() and 3 <= len(caption.split()) <= 16 for caption in captions)
    assert len({caption.split()[1] for caption in captions}) > 150
