"""The index of a table of moments: what it finds beside comparing with all, and what it does as rows come and go."""

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import IvfFlat

from emcl_train.errors import UserError
from emcl_train.search import vector_index

ROWS, WIDTH = 20_000, 64


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rows_of(count: int, seed: int, width: int = WIDTH) -> np.ndarray:
    """Rows around a mean, of scenes that vary more in some directions: neither isotropic nor tight."""
    draws = np.random.default_rng(seed)
    fall = np.arange(1, width + 1) ** -0.5
    scenes = np.random.default_rng(7).standard_normal((50, width)) * fall
    own = draws.standard_normal((count, width)) * fall
    return unit(1.5 * np.ones(width) / np.sqrt(width) + 0.5 * scenes[draws.integers(50, size=count)] + own)


def batch_of(rows: np.ndarray, start: int = 0) -> pa.Table:
    numbers = pa.array(np.arange(start, start + len(rows)))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    return pa.table({"row": numbers, "even": pa.array(np.arange(start, start + len(rows)) % 2 == 0), "vector": vectors})


def made(folder: Path, rows: np.ndarray) -> Any:
    return lancedb.connect(folder).create_table("moments", batch_of(rows))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return rows_of(ROWS, 0)


@pytest.fixture(scope="module")
def indexed(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A table with an index, which tests read."""
    table = made(tmp_path_factory.mktemp("indexed"), rows)
    vector_index.create_index(table, force=True)
    return table


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A table of few rows, where few rows need an index."""
    monkeypatch.setattr(vector_index, "LIMIT", 1000)
    monkeypatch.setattr(vector_index, "GROUP", 50)
    return made(tmp_path, rows_of(2000, 0))


def queries(count: int) -> np.ndarray:
    """Far from all rows, as texts are."""
    return unit(rows_of(count, 5) + 1.5 * unit(np.random.default_rng(6).standard_normal((1, WIDTH))))


def nearest(row: np.ndarray, rows: np.ndarray, k: int = 10) -> list[int]:
    return (-(rows @ row)).argsort()[:k].tolist()


def found_by(table: Any, row: np.ndarray, k: int = 10, where: str | None = None) -> list[int]:
    return vector_index.search(table, row, k, ["row"], where)["row"].to_pylist()


def test_the_index_finds_what_comparing_with_all_finds(indexed: Any, rows: np.ndarray) -> None:
    shares = [len(set(found_by(indexed, row)) & set(nearest(row, rows))) / 10 for row in queries(60)]
    assert np.mean(shares) >= 0.97
    assert [found_by(indexed, rows[place], 1) for place in range(0, ROWS, 1000)] == [[p] for p in range(0, ROWS, 1000)]


def test_scores_are_inner_products_in_falling_order(indexed: Any, rows: np.ndarray) -> None:
    query = 3 * queries(1)[0]
    found = vector_index.search(indexed, query, 7, ["even", "row"])
    assert found.schema.names == ["even", "row", "score"]
    scores = found["score"].to_numpy()
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, rows[found["row"].to_numpy()] @ query, rtol=1e-5)
    assert (np.diff(scores) <= 0).all()


def test_a_condition_leaves_k_rows(indexed: Any, rows: np.ndarray) -> None:
    row = queries(1)[0]
    allowed = np.arange(ROWS) % 2 == 0
    expected = [one for one in nearest(row, rows, ROWS) if allowed[one]][:10]
    found = found_by(indexed, row, where="even")
    assert len(found) == 10
    assert allowed[found].all()
    assert len(set(found) & set(expected)) >= 9
    assert found_by(indexed, row, where="row in (5, 19999)") in ([5, 19999], [19999, 5])


def test_few_groups_are_looked_at_beyond_which_there_is_a_condition(tmp_path: Path) -> None:
    """All rows of the condition lie far from the query, in a group that is not looked at otherwise."""
    far = rows_of(30, 1)
    far[:, 0] -= 9
    near = rows_of(3000, 2)
    table = made(tmp_path, np.concatenate([near, unit(far)]))
    vector_index.create_index(table, force=True)
    assert vector_index.describe(table)["groups"] == 16
    found = found_by(table, near[0], 30, "row >= 3000")
    assert sorted(found) == list(range(3000, 3030))


def test_below_the_limit_there_is_no_index_and_all_rows_are_compared(tmp_path: Path) -> None:
    rows = rows_of(3000, 0)
    table = made(tmp_path, rows)
    assert vector_index.create_index(table) == "none"
    assert vector_index.describe(table)["search"] == "exact"
    for row in queries(5):
        assert found_by(table, row) == nearest(row, rows)


def test_the_limit_is_a_hundred_thousand() -> None:
    assert not vector_index.needs_index(99_999)
    assert vector_index.needs_index(100_000)


def test_rows_that_come_later_are_found_at_once_and_taken_in(small: Any) -> None:
    assert vector_index.create_index(small) == "made"
    assert vector_index.create_index(small) == "kept"
    new = rows_of(150, 9)
    small.add(batch_of(new, 2000))
    assert found_by(small, new[3], 1) == [2003]
    assert vector_index.describe(small)["waiting"] == 150
    assert "150 more wait outside" in vector_index.describe(small)["said"]

    assert vector_index.create_index(small) == "extended"
    assert vector_index.describe(small)["waiting"] == 0
    assert [found_by(small, row, 1) for row in new[:20]] == [[2000 + place] for place in range(20)]


def test_few_new_rows_wait(small: Any) -> None:
    vector_index.create_index(small)
    small.add(batch_of(rows_of(40, 9), 2000))
    assert vector_index.create_index(small) == "kept"
    assert vector_index.describe(small)["waiting"] == 40


def test_rows_that_are_deleted_are_not_found(small: Any) -> None:
    vector_index.create_index(small)
    row = rows_of(2000, 0)[7]
    assert found_by(small, row, 1) == [7]
    small.delete("row = 7")
    assert 7 not in found_by(small, row, 50)
    small.optimize()
    assert 7 not in found_by(small, row, 50)
    assert len(found_by(small, row, 50)) == 50


def test_a_table_that_doubled_gets_another_index_and_one_alone(small: Any) -> None:
    vector_index.create_index(small)
    assert vector_index.describe(small)["groups"] == 40
    small.add(batch_of(rows_of(2100, 9), 2000))
    assert vector_index.create_index(small) == "made"
    assert vector_index.describe(small)["groups"] == 82
    assert [one.name for one in small.list_indices()] == ["vector_ivf_rq_82"]
    assert found_by(small, rows_of(2100, 9)[4], 1) == [2004]


def test_a_table_that_became_small_is_searched_without_one(small: Any) -> None:
    vector_index.create_index(small)
    small.delete("row >= 900")
    assert vector_index.create_index(small) == "none"
    assert small.list_indices() == []
    rows = rows_of(2000, 0)[:900]
    assert found_by(small, rows[3]) == nearest(rows[3], rows)


def test_an_index_that_a_killed_process_left_goes(small: Any) -> None:
    vector_index.create_index(small)
    small.create_index("vector", config=IvfFlat(distance_type="dot", num_partitions=4), name="vector_ivf_flat_4")
    assert vector_index.create_index(small) in ("kept", "made")
    assert len(small.list_indices()) == 1


@pytest.mark.parametrize(("width", "kind"), [(64, "IVF_RQ"), (72, "IVF_RQ"), (70, "IVF_FLAT"), (16, "IVF_FLAT")])
def test_each_width_has_an_index_that_takes_it(width: int, kind: str, tmp_path: Path) -> None:
    rows = rows_of(2500, 0, width)
    table = made(tmp_path, rows)
    vector_index.create_index(table, force=True)
    assert vector_index.describe(table)["kind"] == kind
    shares = [len(set(found_by(table, row)) & set(nearest(row, rows))) / 10 for row in rows[::250]]
    assert np.mean(shares) >= 0.95


def test_a_query_of_an_odd_width_is_padded_like_the_rows(tmp_path: Path) -> None:
    """Refined rows have D + 1 numbers of any length, and zeros behind them."""
    rows = rows_of(2500, 0, 70)
    rows = np.concatenate([rows, np.linspace(-0.6, 0, 2500, dtype=np.float32)[:, None]], axis=1)
    table = made(tmp_path, np.pad(rows, ((0, 0), (0, 9))))
    vector_index.create_index(table, force=True)
    query = np.append(rows_of(1, 8, 70)[0], np.float32(1))
    found = vector_index.search(table, query, 10, ["row"])
    assert found["row"].to_pylist() == nearest(query, rows)
    np.testing.assert_allclose(found["score"].to_numpy(), np.sort(rows @ query)[::-1][:10], atol=1e-5)


@pytest.mark.parametrize(
    ("row", "k", "words"),
    [
        (np.zeros(65, np.float32), 3, r"shape \[65\]; expected \[D\] with D of 64 at most"),
        (np.zeros((1, 64), np.float32), 3, r"shape \[1, 64\]"),
        (np.full(64, np.nan, np.float32), 3, "NaN or infinite"),
        (np.zeros(64, np.float32), 0, "k is 0; expected at least 1"),
    ],
)
def test_a_query_that_is_none_is_refused(row: np.ndarray, k: int, words: str, indexed: Any) -> None:
    with pytest.raises(ValueError, match=words):
        vector_index.search(indexed, row, k, ["row"])


def test_more_than_there_is_gives_all(tmp_path: Path) -> None:
    rows = rows_of(20, 0)
    assert found_by(made(tmp_path, rows), rows[0], 50) == nearest(rows[0], rows, 20)


def test_too_few_rows_for_an_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 rows; an index needs at least 16"):
        vector_index.create_index(made(tmp_path, rows_of(3, 0)), force=True)


def test_a_query_looks_at_a_smaller_share_of_more_rows() -> None:
    plans = [vector_index.plan_of(rows, 512) for rows in (100_000, 1_000_000, 10_000_000)]
    assert [plan.groups for plan in plans] == [48, 488, 4882]
    assert [plan.probes for plan in plans] == [48, 177, 559]
