"""Exports of a library: what they hold, that they are searched as they say, and that they are whole or not there."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from emcl_kernels import Refiner
from emcl_train.errors import UserError
from emcl_train.search import load_into_qdrant
from emcl_train.search.exporting import export_library

WIDTH, ROWS = 24, 700


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Found:
    id: str
    path: Path
    start: float
    end: float
    also_at: tuple[Path, ...] = ()


class Library:
    """What a library gives, of rows in memory; refined rows lie in a multiple of 16 numbers, as its table has them."""

    name = "library"
    width = WIDTH

    def __init__(self, refiner: Refiner | None = None, rows: int = ROWS) -> None:
        draws = np.random.default_rng(0)
        self.raw = unit(draws.standard_normal((rows, WIDTH)) + 1)
        self.map = refiner
        self.gone: set[str] = set()
        self.ids = [f"{number // 7:032x}-{number % 7}" for number in range(rows)]
        self.about = {"model": {"path": "/models/clip", "fingerprint": "ab12", "label": "CLIP"}}

    @property
    def refines(self) -> bool:
        return self.map is not None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def refined(self) -> np.ndarray:
        assert self.map is not None
        return self.map.compared(self.raw[:1], self.raw)[1].numpy()

    def vectors(self, *, refined: bool, batch: int = 100) -> Iterator[tuple[list[str], np.ndarray]]:
        rows = self.raw
        if refined:
            rows = np.pad(self.refined, ((0, 0), (0, -self.refined.shape[1] % 16)))
        for start in range(0, len(rows), 100):
            yield self.ids[start : start + 100], rows[start : start + 100]

    def places(self, ids: Sequence[str]) -> list[Found | None]:
        found: list[Found | None] = []
        for one in ids:
            number = self.ids.index(one)
            start = 4.0 * (number % 7)
            copies = (Path("/copies/a.mp4"),) if number < 7 else ()
            found.append(Found(one, Path(f"/clips/{number // 7}.mp4"), start, start + 4, copies))
        return [None if place is not None and place.id in self.gone else place for place in found]

    @property
    def refiner(self) -> Refiner:
        assert self.map is not None
        return self.map


def texts(count: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, WIDTH)) + 0.5)


@pytest.fixture
def plain() -> Library:
    return Library()


@pytest.fixture
def with_bank() -> Library:
    known = texts(60, 1)
    return Library(Refiner().fit(known, Library().raw, text_bank=known))


@pytest.fixture
def without_bank() -> Library:
    return Library(Refiner().fit(texts(60, 1), Library().raw))


def read(folder: Path, name: str = "moments.parquet") -> tuple[pa.Table, dict[str, Any]]:
    table = parquet.read_table(folder / name)
    return table, json.loads(table.schema.metadata[b"emcl"])


def rows_of(table: pa.Table) -> np.ndarray:
    return np.stack(table["vector"].to_numpy())


def test_parquet_has_every_moment_with_its_place_and_row(plain: Library, tmp_path: Path) -> None:
    done = export_library(plain, "parquet", tmp_path / "out")
    table, about = read(tmp_path / "out")
    assert table.schema.names == ["id", "path", "also_at", "start", "end", "vector"]
    assert table["id"].to_pylist() == plain.ids
    np.testing.assert_array_equal(rows_of(table), plain.raw)
    assert table.slice(8, 1).drop_columns(["vector"]).to_pylist() == [
        {"id": plain.ids[8], "path": "/clips/1.mp4", "also_at": [], "start": 4.0, "end": 8.0}
    ]
    assert table["also_at"][0].as_py() == ["/copies/a.mp4"]
    assert (about["metric"], about["numbers"], about["refined"], about["bank"]) == ("dot", WIDTH, False, False)
    assert about["model"]["fingerprint"] == "ab12"
    assert done.rows == ROWS
    assert done.files == ("README.md", "moments.parquet")


def test_rows_of_a_bank_have_one_number_more_and_no_padding(with_bank: Library, tmp_path: Path) -> None:
    export_library(with_bank, "parquet", tmp_path / "out")
    table, about = read(tmp_path / "out")
    assert rows_of(table).shape == (ROWS, WIDTH + 1)
    np.testing.assert_array_equal(rows_of(table), with_bank.refined)
    assert about["bank"]
    assert about["numbers"] == WIDTH + 1


def test_rows_refined_without_a_bank_keep_their_width(without_bank: Library, tmp_path: Path) -> None:
    """24 numbers lie in 32, as 25 do: only the refiner says which."""
    export_library(without_bank, "parquet", tmp_path / "out")
    table, about = read(tmp_path / "out")
    assert rows_of(table).shape == (ROWS, WIDTH)
    assert (about["refined"], about["bank"]) == (True, False)


@pytest.mark.parametrize("kind", ["plain", "without_bank", "with_bank"])
def test_what_is_exported_ranks_as_the_refiner_does_by_the_query_it_names(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the metadata are run, with a model that gives a text of our own."""
    library = request.getfixturevalue(kind)
    export_library(library, "parquet", tmp_path / "out")
    table, about = read(tmp_path / "out")
    text = texts(1, 9)

    class Encoder:
        def encode_text(self, asked: list[str]) -> np.ndarray:
            assert asked == ["a dog jumps into water"]
            return text

    monkeypatch.setattr("emcl_train.load", lambda path: Encoder(), raising=False)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(about["query"], names)
    scores = rows_of(table) @ np.asarray(names["query"])[0]
    expected = (library.map.scores(text, library.raw).numpy() if library.map else text @ library.raw.T)[0]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def code_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


@pytest.mark.parametrize("kind", ["plain", "with_bank"])
@pytest.mark.parametrize("to", ["parquet", "faiss"])
def test_the_page_is_run_as_it_stands(
    to: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    library = request.getfixturevalue(kind)
    export_library(library, to, tmp_path / "out")
    text = texts(1, 9)
    encoder = type("Encoder", (), {"encode_text": lambda self, asked: text})()
    monkeypatch.setattr("emcl_train.load", lambda path: encoder, raising=False)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    for code in code_of(Path("README.md").read_text(encoding="utf-8")):
        exec(code, names)
    printed = capsys.readouterr().out.splitlines()
    scores = (library.map.scores(text, library.raw).numpy() if library.map else text @ library.raw.T)[0]
    best = int(scores.argmax())
    assert len(printed) == 10
    assert f"/clips/{best // 7}.mp4 {4.0 * (best % 7)}" in printed[0]


def test_the_page_warns_of_cosine_where_there_is_a_bank(with_bank: Library, plain: Library, tmp_path: Path) -> None:
    export_library(with_bank, "parquet", tmp_path / "bank")
    export_library(plain, "parquet", tmp_path / "plain")
    assert "compared by cosine" in (tmp_path / "bank" / "README.md").read_text(encoding="utf-8")
    assert "it is their cosine" in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("description", ["Flat", "IVF16,Flat", "PQ8x4", "IVF8,PQ8x4"])
def test_a_faiss_index_finds_moments_and_names_them(description: str, with_bank: Library, tmp_path: Path) -> None:
    export_library(with_bank, "faiss", tmp_path / "out", description=description)
    index = faiss.read_index(str(tmp_path / "out" / "moments.faiss"))
    table, _ = read(tmp_path / "out", "moments.ids.parquet")
    assert index.ntotal == table.num_rows == ROWS
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert index.d == (32 if "PQ" in description else WIDTH + 1)

    if "IVF" in description:
        faiss.extract_index_ivf(index).nprobe = 16
    queries = with_bank.map.transform_text(texts(5, 9))
    padded = np.pad(queries, ((0, 0), (0, index.d - queries.shape[1])))
    _, numbers = index.search(padded, 50)
    best = (queries @ with_bank.refined.T).argmax(axis=1)
    hits = [with_bank.ids[row] in table["id"].take(pa.array(found[found >= 0])).to_pylist()
            for row, found in zip(best, numbers, strict=True)]  # fmt: skip
    assert sum(hits) >= (5 if "PQ" not in description else 3)


def test_a_faiss_index_of_lists_searches_more_than_one(plain: Library, tmp_path: Path) -> None:
    export_library(plain, "faiss", tmp_path / "out", description="IVF32,Flat")
    index = faiss.read_index(str(tmp_path / "out" / "moments.faiss"))
    assert faiss.extract_index_ivf(index).nprobe == 8


def test_a_faiss_description_that_is_none_is_named(plain: Library, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'Falt', and FAISS makes no such index of rows of 24 numbers"):
        export_library(plain, "faiss", tmp_path / "out", description="Falt")
    with pytest.raises(UserError, match=r"Number of training points \(700\)"):
        export_library(plain, "faiss", tmp_path / "out", description="IVF1000,Flat")
    assert list(tmp_path.iterdir()) == []


def test_a_moment_that_left_in_the_meantime_is_counted_and_left_out(plain: Library, tmp_path: Path) -> None:
    plain.gone = {plain.ids[3], plain.ids[650]}
    for to, name in (("parquet", "moments.parquet"), ("faiss", "moments.ids.parquet")):
        done = export_library(plain, to, tmp_path / to)
        ids = read(tmp_path / to, name)[0]["id"].to_pylist()
        assert ids == [one for one in plain.ids if one not in plain.gone]
        assert (done.rows, done.left_out) == (ROWS - 2, 2)
        assert "2 moments left the library" in done.said()[-1]


@pytest.mark.parametrize(
    ("to", "out", "refined", "words"),
    [
        ("csv", "out", None, "expected one of parquet, faiss, qdrant"),
        ("parquet", "out.parquet", None, "an export is a folder"),
        ("parquet", "there", None, "exists already"),
        ("parquet", "out", True, "has no refined rows"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(
    to: str, out: str, refined: bool | None, words: str, plain: Library, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=words):
        export_library(plain, to, tmp_path / out, refined=refined)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_empty_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no moments"):
        export_library(Library(rows=0), "parquet", tmp_path / "out")


@pytest.mark.parametrize("damage", ["nan", "narrow", "more numbers"])
def test_rows_that_are_damaged_are_refused(damage: str, with_bank: Library, tmp_path: Path) -> None:
    def vectors(*, refined: bool, batch: int = 100) -> Iterator[tuple[list[str], np.ndarray]]:
        for ids, rows in Library.vectors(with_bank, refined=refined):
            rows = rows.copy()
            if damage == "nan":
                rows[5, 2] = np.nan
            elif damage == "narrow":
                rows = rows[:, :WIDTH]
            else:
                rows[:, WIDTH + 3] = 1
            yield ids, rows

    with_bank.vectors = vectors
    words = f"moment {with_bank.ids[5]} is not finite" if damage == "nan" else "is damaged: rows are"
    with pytest.raises(UserError, match=words):
        export_library(with_bank, "parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["parquet", "faiss", "qdrant"])
def test_an_export_that_fails_leaves_nothing(to: str, plain: Library, tmp_path: Path) -> None:
    def places(ids: Sequence[str]) -> list[Found | None]:
        if plain.ids[500] in ids:
            raise RuntimeError("the disk went away")
        return Library.places(plain, ids)

    plain.places = places
    with pytest.raises(RuntimeError, match="went away"):
        export_library(plain, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- Qdrant ----------------------------------------------------------------------------------------------------------


def test_qdrant_gets_the_rows_and_a_program_that_stands_alone(plain: Library, tmp_path: Path) -> None:
    done = export_library(plain, "qdrant", tmp_path / "out")
    assert done.files == ("README.md", "load.py", "moments.parquet")
    program = (tmp_path / "out" / "load.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) emcl", program, flags=re.MULTILINE)
    assert "python load.py --url" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_points_have_the_same_name_in_every_export(plain: Library) -> None:
    names = {load_into_qdrant.point_of(one) for one in plain.ids}
    assert len(names) == ROWS
    assert load_into_qdrant.point_of("moment-1") == "33963efd-c3c7-5611-8a17-9aebdbf872df"


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[Any]:
    client = pytest.importorskip("qdrant_client").QdrantClient(path=str(tmp_path / "qdrant"))
    with contextlib.closing(client):
        yield client


def test_qdrant_ranks_as_the_refiner_does(with_bank: Library, tmp_path: Path, qdrant: Any) -> None:
    export_library(with_bank, "qdrant", tmp_path / "out")
    assert load_into_qdrant.load(tmp_path / "out", qdrant, "moments") == ROWS
    query = with_bank.map.transform_text(texts(1, 9))[0]
    found = qdrant.query_points("moments", query=query.tolist(), limit=10).points
    scores = with_bank.refined @ query
    assert [point.payload["id"] for point in found] == [with_bank.ids[row] for row in (-scores).argsort()[:10]]
    np.testing.assert_allclose([point.score for point in found], np.sort(scores)[::-1][:10], atol=1e-5)
    assert found[0].payload.keys() == {"id", "path", "also_at", "start", "end"}


def test_loading_twice_doubles_nothing(plain: Library, tmp_path: Path, qdrant: Any) -> None:
    export_library(plain, "qdrant", tmp_path / "out")
    assert load_into_qdrant.load(tmp_path / "out", qdrant, "moments") == ROWS
    assert load_into_qdrant.load(tmp_path / "out", qdrant, "moments") == ROWS


def test_a_collection_of_another_width_is_refused(
    plain: Library, with_bank: Library, tmp_path: Path, qdrant: Any
) -> None:
    export_library(plain, "qdrant", tmp_path / "plain")
    export_library(with_bank, "qdrant", tmp_path / "bank")
    load_into_qdrant.load(tmp_path / "plain", qdrant, "moments")
    with pytest.raises(ValueError, match=f"expected {WIDTH + 1} numbers"):
        load_into_qdrant.load(tmp_path / "bank", qdrant, "moments")
