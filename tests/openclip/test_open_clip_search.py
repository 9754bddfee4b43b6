"""A library of films by models of OpenCLIP: rows are what the model gives of the same moments, and texts find them."""

import numpy as np
import pytest
from small_library import unit, write_films
from small_open_clips import KINDS

from emcl_train import Library, cli, load
from emcl_train.search.indexing import Asked, index
from emcl_train.search.tables import MOMENTS, Tables

FILMS = {"a.mp4": 20, "b.mkv": 30, "c.mp4": 20}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_models_own_and_films_are_found(kind, folders, tmp_path, capsys) -> None:
    films = tmp_path / "films"
    write_films(films, FILMS)
    report = index(Asked(str(tmp_path / "library"), (films,), str(folders[kind]), "pieces", 100.0))
    assert (report.added, report.moments) == (3, 3)

    # The score is that of the rows that are kept with what the model gives of the text.
    encoder, library = load(folders[kind]), Library(tmp_path / "library")
    paths = {row.content: row.path for row in library.files}
    moments = Tables(tmp_path / "library").open(MOMENTS).search().to_arrow().to_pylist()
    rows = {paths[row["content"]].name: unit(np.array(row["vector"])).numpy() for row in moments}
    assert sorted(rows) == sorted(FILMS)
    text = unit(encoder.encode_text(["a red circle moves left"]))[0].numpy()
    found = library.search("a red circle moves left", k=3, refine=False)
    assert [one.score for one in found] == pytest.approx([float(rows[one.path.name] @ text) for one in found], abs=1e-5)

    like = ["search", str(tmp_path / "library"), "--like", str(films / "b.mkv"), "--at", "1", "--json"]
    assert cli.main(like) == 0
    out, _ = capsys.readouterr()
    assert out.index("b.mkv") < min(out.index("a.mp4"), out.index("c.mp4"))
