"""The benchmark of search and its synthetic moments: the same rows in any blocks, real similarities, exact answers."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import record
import search_index
import synthetic_moments
from synthetic_moments import BLOCK, FITTED, Moments

ROWS = BLOCK + 30


@pytest.fixture(scope="module")
def moments() -> Moments:
    return Moments(FITTED["coco500"], seed=3, width=64)


def test_rows_do_not_depend_on_the_blocks_they_are_asked_in(moments):
    every = moments.rows(0, ROWS)
    assert every.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(every, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(list(moments.blocks(ROWS, 333))), every)
    np.testing.assert_array_equal(moments.rows(BLOCK - 2, BLOCK + 2), every[BLOCK - 2 : BLOCK + 2])
    np.testing.assert_array_equal(Moments(FITTED["coco500"], seed=3, width=64).rows(40, 50), every[40:50])
    assert not np.allclose(Moments(FITTED["coco500"], seed=4, width=64).rows(0, 5), every[:5])


def test_a_text_is_nearer_to_its_moment_than_to_others_and_the_same_in_any_company(moments):
    every = moments.rows(0, ROWS)
    targets = np.array([1040, 3, 700, 3, *range(100, 160)])
    texts = moments.texts(targets)
    np.testing.assert_array_equal(texts[1], texts[3])
    np.testing.assert_array_equal(texts[:1], moments.texts(targets[:1]))
    own = np.einsum("qd,qd->q", texts, every[targets])
    assert own.mean() > (texts @ every.T).mean() + 0.1


def test_a_random_turn_changes_no_similarity():
    plain, turned = (Moments(FITTED["coco500"], 1, 64, turned=turned) for turned in (False, True))
    pairs = [m.rows(0, 50) @ m.texts(np.arange(20)).T for m in (plain, turned)]
    np.testing.assert_allclose(*pairs, atol=1e-5)
    assert not np.allclose(plain.rows(0, 50), turned.rows(0, 50), atol=0.05)


def test_similarities_leave_a_row_itself_out():
    gallery = np.eye(12, dtype=np.float32)
    found = synthetic_moments.similarities(gallery, gallery)
    assert found["moment to nearest"].max() == 0
    assert (found["text to nearest"].min(), found["text to its own"].min()) == (1, 1)
    assert len(found["moment to any"]) == 12 * 11


@pytest.mark.parametrize("name", sorted(FITTED))
def test_similarities_follow_those_of_the_real_set(name: str, shared_data: Path):
    """Of as many rows: near to each other, and not the same, since parameters are few."""
    [path] = (shared_data / "embeddings").glob(f"{name}_*.npy")
    real = synthetic_moments.some(*synthetic_moments.read_real(path), 500)
    wanted, ours = synthetic_moments.compared(real, FITTED[name], range(1))
    apart = {kind: float(np.abs(wanted[kind] - ours[kind]).max()) for kind in wanted}
    assert max(apart[kind] for kind in apart if kind.startswith("text")) < 0.05, apart
    assert max(apart[kind] for kind in apart if kind.startswith("moment")) < 0.07, apart


def test_the_nearest_are_those_of_all_rows(moments):
    every = moments.rows(0, ROWS)
    asked = moments.texts(np.array([5, 600]))
    nearest = search_index.Nearest(asked)
    for start in range(0, ROWS, 100):
        nearest.add(start, every[start : start + 100])
    exact = (-(asked @ every.T)).argsort(axis=1)[:, : search_index.NEAREST]
    assert search_index.recall(nearest.rows, exact) == 1
    assert search_index.recall(np.roll(exact, 1, axis=0), exact) < 1


def test_a_record_judges_our_way_and_shows_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search_index, "version", lambda name: "1.2")
    way = {"seconds": [0.01, 0.02, 0.03, 0.04], "recall": 0.96, "recall_of_examples": 0.99, "peak_mib": 700.0}
    parts = {
        "write": {"seconds": 60.0, "peak_mib": 2000.0},
        "build": {"seconds": 90.0, "peak_mib": 900.0, "about": {"kind": "IVF_RQ"}},
        "search": way,
        "exact": way | {"recall": 1.0},
        "faiss": way | {"setting": "efSearch 64", "build_s": 500.0},
        "numpy": way | {"recall": 1.0},
    }
    made = search_index.record_of(parts, argparse.Namespace(rows=1_000_000, cores=2, like="coco500"))
    assert [(row["measured"], row["verdict"]) for row in made["targets"]] == [
        ("0.960", "met"), ("25.0", "met"), ("900", "met"), ("700", "met"), ("2000", "missed")
    ]  # fmt: skip
    page = record.markdown(made, "name")
    assert "| LanceDB, as a library searches | 25 ms |" in page
    assert "recall@10 0.960, by example 0.990; built in 90 s with 900 MiB at most" in page
    assert "efSearch 64; built in 500 s" in page
