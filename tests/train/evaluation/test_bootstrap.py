"""The paired bootstrap, against cases whose answer is known."""

import numpy as np
import pytest

from emcl_train.evaluation import bootstrap
from emcl_train.evaluation.bootstrap import Interval, paired_bootstrap


def test_a_difference_that_all_queries_share_has_no_spread():
    before = np.arange(7.0)
    assert paired_bootstrap(before, before + 2.5, seed=0) == Interval(2.5, 2.5, 2.5)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_queries():
    difference = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    found = paired_bootstrap(np.zeros(400), difference, seed=0)
    half = 1.96 * difference.std() / np.sqrt(400)
    assert found.mean == pytest.approx(difference.mean())
    assert [found.low, found.high] == pytest.approx([found.mean - half, found.mean + half], abs=0.02)


def test_what_makes_a_query_hard_for_both_cancels():
    hard = 1000.0 * np.random.default_rng(2).normal(size=41)
    found = paired_bootstrap(hard, hard + np.tile([0.0, 1.0], 21)[:41], seed=0)
    assert found.high - found.low < 0.4


def test_a_seed_fixes_the_interval_and_chunks_do_not_change_it(monkeypatch):
    scores = np.random.default_rng(3).normal(size=(2, 41))
    whole = paired_bootstrap(*scores, seed=5, resamples=1000)
    assert paired_bootstrap(*scores, seed=5, resamples=1000) == whole
    assert paired_bootstrap(*scores, seed=6, resamples=1000) != whole
    monkeypatch.setattr(bootstrap, "CHUNK_DRAWS", 3 * 41)
    assert paired_bootstrap(*scores, seed=5, resamples=1000) == whole


def test_one_query_has_itself_as_its_interval():
    assert paired_bootstrap(np.zeros(1), np.full(1, 100.0), seed=0) == Interval(100.0, 100.0, 100.0)


@pytest.mark.parametrize(
    ("before", "after", "resamples", "message"),
    [
        (np.zeros(3), np.zeros(4), 10, r"shapes \[3\] and \[4\]"),
        (np.zeros(0), np.zeros(0), 10, "at least one query"),
        (np.zeros(3), np.full(3, np.nan), 10, "finite"),
        (np.zeros(3), np.zeros(3), 0, "resamples must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_resampled_is_an_error(before, after, resamples, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(before, after, seed=0, resamples=resamples)


def test_an_interval_reads_as_a_difference():
    assert str(Interval(2.44, -0.16, 5.0)) == "+2.4 [-0.2, +5.0]"
