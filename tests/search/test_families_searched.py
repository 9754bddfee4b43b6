"""A library by towers of each family: rows are what the model gives of the same moments, and texts find them."""

from pathlib import Path

import numpy as np
import pytest
from small_library import unit, write_films
from small_towers import FAMILIES, write_towers

from emcl_train import Library, cli, load
from emcl_train.search.indexing import Asked, index
from emcl_train.search.tables import MOMENTS, Tables

FILMS = {"a.mp4": 20, "b.mkv": 30, "c.mp4": 20}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    """Three films, towers, and the library of whole films that both make."""
    folder = tmp_path_factory.mktemp(request.param.replace("-", "_"))
    write_films(folder / "films", FILMS)
    write_towers(request.param, folder / "model")
    report = index(Asked(str(folder / "library"), (folder / "films",), str(folder / "model"), "pieces", 100.0))
    assert (report.added, report.moments) == (3, 3)
    return folder


def test_rows_are_the_models_own_and_texts_find_them(folder: Path) -> None:
    encoder, library = load(folder / "model"), Library(folder / "library")
    paths = {row.content: row.path for row in library.files}
    rows = {paths[row["content"]].name: row["vector"] for row in _moments(folder)}
    assert sorted(rows) == sorted(FILMS)

    # A moment's row is the direction of what encode_video gives of the whole film, with as many frames as were taken.
    text = unit(encoder.encode_text(["a red circle moves left"]))[0].numpy()
    for found in library.search("a red circle moves left", k=3, refine=False):
        row = unit(np.array(rows[found.path.name]))
        assert found.score == pytest.approx(float(row.numpy() @ text), abs=1e-5)
    scores = [found.score for found in library.search("a red circle moves left", k=3, refine=False)]
    assert scores == sorted(scores, reverse=True)


def test_a_film_finds_itself_first(folder: Path, capsys) -> None:
    like = ["search", str(folder / "library"), "--like", str(folder / "films" / "b.mkv"), "--at", "1", "--json"]
    assert cli.main(like) == 0
    out, _ = capsys.readouterr()
    assert out.index("b.mkv") < min(out.index("a.mp4"), out.index("c.mp4"))


def _moments(folder: Path) -> list[dict]:
    return Tables(folder / "library").open(MOMENTS).search().to_arrow().to_pylist()
