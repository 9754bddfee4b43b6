"""Vectors of D + 1 numbers in FAISS, LanceDB and parquet rank as the refiner's own scores do."""

from pathlib import Path

import faiss
import lancedb
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch

from emcl_kernels import Refiner
from emcl_kernels.integrations import indexes
from emcl_kernels.testing import clustered_rows

QUERIES, ITEMS = 41, 130


@pytest.fixture(scope="module", params=["bank of texts", "bank of videos", "no bank"])
def search(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries and a gallery as they go into an index, and the scores by the refiner's formula."""
    torch.manual_seed(0)
    text, video, bank = (clustered_rows(rows, 63) + shift for rows, shift in ((63, 0.3), (70, -0.2), (50, 0.3)))
    query, gallery = clustered_rows(QUERIES, 63) + 0.3, clustered_rows(ITEMS, 63) - 0.2
    banks = {"bank of texts": {"text_bank": bank}, "bank of videos": {"video_bank": bank}, "no bank": {}}
    refiner = Refiner().fit(text, video, **banks[request.param])
    side = "video" if request.param == "bank of videos" else "text"

    rows = refiner.compared(query, gallery, query_side=side)
    if request.param == "bank of texts":
        rows = refiner.transform_text(query), refiner.transform_video(gallery)
    assert rows[0].shape[1] == 63 + (request.param != "no bank")
    return rows[0].float().numpy(), rows[1].float().numpy(), refiner.scores(query, gallery, query_side=side).numpy()


def assert_ranks_as(scores: np.ndarray, found: tuple[np.ndarray, np.ndarray], k: int) -> None:
    """Every place of every ranking holds an item whose score is the right one of this place: ties may be exchanged."""
    given, places = found
    assert given.shape == places.shape == (len(scores), k)
    assert all(len(set(row)) == k for row in places.tolist())
    right = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(np.take_along_axis(scores, places, axis=1), right, rtol=0, atol=1e-6)
    np.testing.assert_allclose(given, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pad_to", [1, 16])
@pytest.mark.parametrize("k", [1, 10, ITEMS])
def test_every_search_ranks_as_the_formula(search, pad_to: int, k: int, tmp_path: Path) -> None:
    queries, gallery, scores = search
    assert_ranks_as(scores, indexes.search(queries, gallery, k), k)

    index = indexes.faiss_index(gallery, pad_to=pad_to)
    assert isinstance(index, faiss.IndexFlat)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert index.d % pad_to == 0
    assert_ranks_as(scores, indexes.search_faiss(index, queries, k, pad_to=pad_to), k)

    table = indexes.lancedb_table(tmp_path, "gallery", gallery, pad_to=pad_to)
    assert_ranks_as(scores, indexes.search_lancedb(table, queries, k, pad_to=pad_to), k)


def test_a_parquet_file_that_unpacks_to_far_more_than_its_bytes_is_not_read(tmp_path: Path, monkeypatch) -> None:
    indexes.write_parquet(tmp_path / "honest.parquet", np.random.default_rng(0).normal(size=(500, 64)))
    zeros = pyarrow.array([[0.0] * 1000] * 5000, type=pyarrow.list_(pyarrow.float32()))
    parquet.write_table(pyarrow.table({"id": range(5000), "vector": zeros}), tmp_path / "zeros.parquet")
    assert indexes.read_parquet(tmp_path / "zeros.parquet")[0].shape == (5000, 1000)  # a small one is no danger

    monkeypatch.setattr(indexes, "ALWAYS_READ", 1 << 20)
    assert indexes.read_parquet(tmp_path / "honest.parquet")[0].shape == (500, 64)
    monkeypatch.setattr(parquet, "read_table", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(ValueError, match=r"zeros.parquet declares 5005000 values and has \d+ bytes, too few"):
        indexes.read_parquet(tmp_path / "zeros.parquet")


@pytest.mark.parametrize(
    ("vectors", "kind", "message"),
    [
        (["a", "b"], pyarrow.string(), "vectors of the type string; expected lists of float32"),
        (
            [[1.0], [2.0]],
            pyarrow.list_(pyarrow.float64()),
            "of the type list<element: double>; expected lists of float32",
        ),
        ([[1.0], None], pyarrow.list_(pyarrow.float32()), "has missing values"),
        ([[1.0, None], [1.0, 2.0]], pyarrow.list_(pyarrow.float32()), "has missing values"),
        ([[1.0], [1.0, 2.0]], pyarrow.list_(pyarrow.float32()), "vectors of 1, 2 numbers; expected one width"),
        ([], pyarrow.list_(pyarrow.float32()), "has no rows"),
    ],
)
def test_parquet_files_of_others_are_refused_by_name(tmp_path: Path, vectors, kind, message) -> None:
    table = pyarrow.table({"id": list(range(len(vectors))), "vector": pyarrow.array(vectors, type=kind)})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        indexes.read_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", [pyarrow.large_list(pyarrow.float32()), pyarrow.list_(pyarrow.float32(), 3)])
def test_other_lists_of_parquet_are_read(tmp_path: Path, kind) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = pyarrow.table({"id": list("abcd"), "vector": pyarrow.array(rows.tolist(), type=kind)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    found, ids = indexes.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found, rows)
    assert ids == list("abcd")


def test_names_of_items_come_back(search, tmp_path: Path) -> None:
    queries, gallery, scores = search
    names = [f"video {place}" for place in range(ITEMS)]
    table = indexes.lancedb_table(lancedb.connect(str(tmp_path)), "gallery", gallery, names)
    found = indexes.search_lancedb(table, queries, 1)[1]
    assert found[:, 0].tolist() == [names[place] for place in scores.argmax(1)]

    with pytest.raises(Exception, match="exists"):
        indexes.lancedb_table(tmp_path, "gallery", gallery)
    assert indexes.lancedb_table(tmp_path, "gallery", gallery[:7], mode="overwrite").count_rows() == 7


def test_parquet_comes_back_to_the_bit(search, tmp_path: Path) -> None:
    _, gallery, _ = search
    names = [f"video {place}" for place in range(ITEMS)]
    indexes.write_parquet(tmp_path / "new" / "gallery.parquet", gallery, names)
    rows, ids = indexes.read_parquet(tmp_path / "new" / "gallery.parquet")
    np.testing.assert_array_equal(rows, gallery)
    assert ids == names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gallery.parquet"]

    schema = parquet.read_schema(tmp_path / "new" / "gallery.parquet")
    assert str(schema.field("vector").type) in ("list<element: float>", "list<item: float>")
    assert str(schema.field("id").type) == "string"


def test_an_index_that_quantises_by_parts_is_padded() -> None:
    # 64 + 1 numbers cannot be cut into 16 parts; 80 can. Each part's 16 centres are among the items.
    gallery = clustered_rows(640, 65)
    with pytest.raises(ValueError, match=r"of 640 rows of 65 numbers .*pass pad_to=16"):
        indexes.faiss_index(gallery, "PQ16x4")
    index = indexes.faiss_index(gallery, "PQ16x4", pad_to=16)
    assert (index.d, index.ntotal) == (80, 640)
    scores, places = indexes.search_faiss(index, gallery[:7], 10, pad_to=16)
    assert (np.diff(scores, axis=1) <= 0).all()
    exact = indexes.search(gallery[:7], gallery, 10)[1]
    shared = [len({*row} & {*right}) for row, right in zip(places.tolist(), exact.tolist(), strict=True)]
    assert sum(shared) > 14  # a tenth of a chance for one of 640 would be 0.16 of 10


def test_padding_keeps_inner_products() -> None:
    rows = torch.randn(7, 65)
    for pad_to, width in ((1, 65), (16, 80), (64, 128), (65, 65)):
        wide = indexes.padded(rows, pad_to)
        assert wide.shape == (7, width)
        np.testing.assert_array_equal(wide[:, :65], rows.numpy())
        assert not wide[:, 65:].any()


def test_equal_scores_are_in_the_order_of_the_gallery() -> None:
    scores, places = indexes.search(np.ones((1, 2), np.float32), np.ones((5, 2), np.float32), 3)
    assert scores.tolist() == [[2, 2, 2]]
    assert places.tolist() == [[0, 1, 2]]


def test_queries_without_the_last_number_are_refused(tmp_path: Path) -> None:
    # D + 1 = 65 is padded to 80. Queries of D = 64 would fit after padding alone, and rank without the bank.
    gallery = clustered_rows(41, 65)
    queries = clustered_rows(3, 64)
    calls = [
        lambda: indexes.search(queries, gallery),
        lambda: indexes.search_faiss(indexes.faiss_index(gallery, pad_to=16), queries, pad_to=16),
        lambda: indexes.search_faiss(indexes.faiss_index(gallery), queries),
        lambda: indexes.search_lancedb(indexes.lancedb_table(tmp_path, "a", gallery, pad_to=16), queries, pad_to=16),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"queries are 64 wide and .* is (65|80) wide; refine both with one refiner"
        ):
            call()


def test_wrong_arguments(tmp_path: Path) -> None:
    rows = clustered_rows(7, 5)
    with pytest.raises(TypeError, match=r"rows is torch\.int64; expected a torch tensor or a numpy array of floats"):
        indexes.padded(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="gallery is list"):
        indexes.search(rows, [[1.0]])
    with pytest.raises(ValueError, match=r"rows has shape \[5\]; expected \[N, D\]"):
        indexes.padded(rows[0])
    with pytest.raises(ValueError, match="NaN or infinite values in 1 rows, first in row 2"):
        indexes.write_parquet(tmp_path / "a.parquet", torch.where(torch.arange(7)[:, None] == 2, torch.nan, rows))
    for wrong in (0, -1, True):
        with pytest.raises(ValueError, match="expected a whole number of at least 1"):
            indexes.padded(rows, wrong)
        with pytest.raises(ValueError, match="expected a whole number of at least 1"):
            indexes.search(rows, rows, wrong)
    with pytest.raises(ValueError, match="there are 2 ids for 7 rows"):
        indexes.write_parquet(tmp_path / "a.parquet", rows, ["a", "b"])
    with pytest.raises(ValueError, match="ids have 'a' more than once"):
        indexes.lancedb_table(tmp_path, "a", rows, ["a", *"abcdef"])
    with pytest.raises(ValueError, match="refined rows are compared by inner product"):
        indexes.search_faiss(faiss.IndexFlatL2(5), rows)

    # Files and tables of others.
    with pytest.raises(FileNotFoundError, match="there is no file"):
        indexes.read_parquet(tmp_path / "none.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="is no parquet file"):
        indexes.read_parquet(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"name": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['name'\]; expected id and vector"):
        indexes.read_parquet(tmp_path / "a.parquet")
    other = lancedb.connect(str(tmp_path)).create_table("other", [{"name": "a"}])
    with pytest.raises(ValueError, match=r"has the columns \['name'\]; expected id and vector"):
        indexes.search_lancedb(other, rows)
