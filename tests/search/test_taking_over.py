"""index takes rows over from shards that embed wrote: nothing is decoded, and only rows of its own model."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_folder import put_small_clip
from corpus_scene import NAMES, embedded, put_films, rows_of
from small_library import names

from emcl_train import Library, cli, load
from emcl_train.corpora import decoding
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.search import decoding as decoding_of_films
from emcl_train.search.embedding import _embedded
from emcl_train.search.finding import Seen
from emcl_train.search.indexing import Asked, index
from emcl_train.search.tables import DAMAGED, MOMENTS, Tables


@pytest.fixture
def films(tmp_path: Path) -> Path:
    put_films(tmp_path / "films", NAMES)
    put_small_clip(tmp_path / "clip")
    return tmp_path


@pytest.fixture
def nothing_is_decoded(films: Path, monkeypatch: pytest.MonkeyPatch):
    """From when it is asked for on."""

    def stop() -> None:
        for module in (decoding, decoding_of_films):
            monkeypatch.setattr(module, "pictures_of_spans", lambda *_: pytest.fail("a film is decoded"))

    return stop


def taken_over(films: Path, out: Path, **asked):
    return index(Asked(str(films / "library"), (out,), **{"model": str(films / "clip")} | asked))


def test_rows_are_taken_over_without_decoding(films: Path, nothing_is_decoded, capsys) -> None:
    (films / "films" / "b.mp4").write_bytes(b"no film")
    shutil.copy(films / "films" / "c.mp4", films / "films" / "copy.mp4")
    out, _ = embedded(films, piece=1.0)
    rows = rows_of(out)
    nothing_is_decoded()
    report = taken_over(films, out)
    assert (report.added, report.unchanged, len(report.damaged)) == (len(NAMES), 0, 1)
    moments = Tables(films / "library").open(MOMENTS).search().to_arrow().to_pylist()
    assert len(moments) == len(rows) - len([key for key in rows if key.startswith("copy.mp4")])

    library = Library(films / "library")
    for key, (path, start, end, _, vector) in rows.items():
        name, number = key.split("#")
        (found,) = [one for one in library.moments_of(_content(library, path)) if one.start == start]
        assert found.end == end
        assert np.allclose(_vector(moments, found.id), vector)
        assert found.id.endswith(f"-{number}")
        assert library.thumbnail(found.id) is None
        assert library.file_of(found.id) is not None
        assert {one.name for one in (found.path, *found.also_at)} >= {Path(name).name}
    assert set(names(library.search("anything", k=20))) <= {Path(name).name for name in NAMES}

    # Once more there is nothing to do, and without a word of shards neither.
    report = taken_over(films, out)
    assert (report.added, report.unchanged, report.moments) == (0, len(NAMES), 0)
    assert cli.main(["index", "--out", str(films / "library"), "--quiet"]) == 0
    assert len(Library(films / "library")) == len(moments)


def _content(library: Library, path: str) -> str:
    (content,) = {row.content for row in library.files if str(row.path) == path}
    return content


def _vector(moments: list[dict], key: str) -> list[float]:
    (row,) = [row for row in moments if row["id"] == key]
    return row["vector"]


def test_what_was_damaged_and_is_no_more_leaves_the_library(films: Path) -> None:
    whole = (films / "films" / "b.mp4").read_bytes()
    for name in ("b.mp4", "c.mp4"):
        (films / "films" / name).write_bytes(b"no film")
    out, _ = embedded(films)
    taken_over(films, out)
    (films / "films" / "b.mp4").write_bytes(whole)
    shutil.rmtree(out)
    embedded(films)
    report = taken_over(films, out)
    damaged = [row.path for row in Tables(films / "library").files() if row.status == DAMAGED]
    assert damaged == list(report.damaged) == [out / "c.mp4"]


def test_frames_are_counted_as_the_tower_gives_them(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """X-CLIP gives one feature of a clip, however many frames it has seen."""
    encoder = load(films / "clip")
    size = encoder.config.data.image_size
    encode = Encoder.encode_frames

    def one_a_clip(self, frames, mask):
        encoded = encode(self, frames, mask)
        features = replace(
            encoded.features, frames=encoded.features.frames[:, :1], frame_mask=encoded.features.frame_mask[:, :1]
        )
        return replace(encoded, features=features)

    monkeypatch.setattr(Encoder, "encode_frames", one_a_clip)
    part = decoding_of_films.Part(Seen(films / "a.mp4", films, 1, 1))
    part.spans = [(0.0, 1.0)] * 2
    part.pictures = [torch.zeros(3, 3, size, size, dtype=torch.uint8)] * 2
    part.masks = [torch.ones(3, dtype=torch.bool)] * 2
    assert _embedded(part, encoder).counts == [1, 1]


def test_a_library_of_films_takes_shards_too(films: Path, nothing_is_decoded) -> None:
    out, _ = embedded(films, str(films / "films" / "deep"))
    shutil.move(films / "films" / "deep", films / "elsewhere")
    index(Asked(str(films / "library"), (films / "films",), str(films / "clip"), "pieces", 2.0))
    before = len(Library(films / "library"))
    nothing_is_decoded()
    taken_over(films, out)
    assert len(Library(films / "library")) == before + 2


def test_shards_of_another_model_are_refused(films: Path) -> None:
    put_small_clip(films / "other", seed=1)
    out, _ = embedded(films, model=str(films / "other"))
    with pytest.raises(UserError, match="cannot be compared with it; embed the corpus with the library's model"):
        taken_over(films, out)
    assert not (films / "library").exists()
    out, _ = embedded(films, out="more")
    (out / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match="has 2 of 3 shards"):
        taken_over(films, out)


def test_killed_in_between_no_moment_is_there_twice(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = embedded(films)
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "put_files", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            taken_over(films, out)
    taken_over(films, out)
    ids = [key for batch in Library(films / "library").vectors() for key in batch[0]]
    assert len(ids) == len(set(ids)) == len(NAMES)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
