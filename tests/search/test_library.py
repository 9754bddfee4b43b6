"""A library: what is found by a sentence, by an example and beside a moment, and how."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_library import QUERIES, make, names, unit, write_films

import emcl_train
from emcl_kernels import Refiner
from emcl_train import Library
from emcl_train.errors import UserError
from emcl_train.search.cutoff import cutoff_of


@pytest.fixture(scope="module")
def library(indexed: Path) -> Library:
    return Library(indexed / "library")


def vectors_of(library: Library, *, refined: bool = False) -> tuple[list[str], np.ndarray]:
    parts = list(library.vectors(refined=refined))
    return [key for keys, _ in parts for key in keys], np.concatenate([rows for _, rows in parts])


def test_a_sentence_finds_what_cosine_says(library: Library) -> None:
    keys, rows = vectors_of(library)
    text = library.encoder.encode_text("a red thing").numpy()
    scores = (rows @ text.T)[:, 0]
    found = library.search("a red thing", k=4, refine=False)
    assert [one.id for one in found] == [keys[place] for place in np.argsort(-scores)[:4]]
    assert [one.score for one in found] == pytest.approx(sorted(scores, reverse=True)[:4], abs=1e-6)


def test_with_a_bank_a_sentence_finds_what_the_refiner_says(library: Library) -> None:
    keys, rows = vectors_of(library)
    encoder = library.encoder
    bank = encoder.encode_text(QUERIES).numpy()
    refiner = Refiner().fit(bank, rows, text_bank=bank)
    scores = refiner.transform_text(encoder.encode_text("a red thing").numpy()) @ refiner.transform_video(rows).T
    found = library.search("a red thing", k=10)
    assert [one.id for one in found] == [keys[place] for place in np.argsort(-scores[0])]
    assert [one.score for one in found] == pytest.approx(sorted(scores[0], reverse=True), abs=1e-5)


def test_the_cut_off_is_that_of_the_libraries_own_search(library: Library) -> None:
    best = [library.search(query, 1, refine=False)[0].score for query in QUERIES]
    cutoff = library.cutoff(refine=False)
    assert cutoff.score == pytest.approx(cutoff_of(np.array(best)).score, abs=1e-6)
    assert cutoff.queries == len(QUERIES)

    for refine in (False, True):
        kept = library.search("a red thing", k=10, refine=refine, minimum="auto")
        every = library.search("a red thing", k=10, refine=refine)
        assert kept == [one for one in every if one.score >= library.cutoff(refine=refine).score]
    assert len(library.search("a red thing", k=10, minimum=-2.0)) == 10
    assert library.search("a red thing", k=10, minimum=2.0) == []


def test_without_a_bank_the_cut_off_is_of_captions_of_many_subjects(scene: Path) -> None:
    path, _ = make(scene)
    library = Library(path)
    assert not library.refines
    assert library.cutoff().queries > 100
    with pytest.raises(
        UserError, match=r"has no refined rows; `emcl-train index --out .* --refine queries\.txt` makes them"
    ):
        library.search("a thing", refine=True)


@pytest.mark.parametrize("refine", [False, True])
def test_every_moment_of_a_film_finds_itself(library: Library, indexed: Path, refine: bool) -> None:
    for at, start in ((0.0, 0.0), (1.9, 0.0), (2.0, 2.0), (5.9, 4.0)):
        found = library.like(indexed / "films" / "b.mkv", at, k=3, refine=refine)[0]
        assert found.path.name == "b.mkv"
        assert found.start == start


def test_a_film_that_is_not_in_the_library_is_cut_as_its_films_are(
    library: Library, indexed: Path, tmp_path: Path
) -> None:
    write_films(tmp_path, {"stranger.mp4": 60}, first=1)  # the pictures of b.mkv, in another container
    found = library.like(tmp_path / "stranger.mp4", 3.0, k=1, refine=False)[0]
    assert (found.path.name, found.start) == ("b.mkv", 2.0)
    assert found.score == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("at", [-1.0, 7.0, math.nan, math.inf])
def test_a_second_that_is_not_in_the_film_is_refused(library: Library, indexed: Path, at: float) -> None:
    with pytest.raises(UserError, match=r"at is .* s, and .* ends at 6\.00 s"):
        library.like(indexed / "films" / "b.mkv", at)


def test_neighbours_are_the_moments_before_and_after(library: Library, indexed: Path) -> None:
    middle = library.like(indexed / "films" / "d.mp4", 4.5, k=1, refine=False)[0]
    assert [one.number for one in library.neighbours(middle.id, 1)] == [1, 2, 3]
    assert [one.number for one in library.neighbours(middle.id, 9)] == [0, 1, 2, 3, 4]
    assert all(math.isnan(one.score) for one in library.neighbours(middle.id))


@pytest.mark.parametrize("refine", [False, True])
def test_of_films_that_look_the_same_the_one_that_is_asked_for_comes_first(scene: Path, refine: bool) -> None:
    for suffix in (".mkv", ".mov"):
        write_films(scene / "films", {f"the same{suffix}": 24}, first=0)  # the pictures of a.mp4
    path, _ = make(scene, refine=True)
    library = Library(path)
    for name in ("a.mp4", "the same.mkv", "the same.mov"):
        for k in (1, 2, 10):
            found = library.like(scene / "films" / name, 1.0, k, refine=refine)
            assert found[0].path.name == name
            assert len(found) == len({one.id for one in found}) == k


@pytest.mark.parametrize("moment", ["", "x", "0" * 32 + "-0", "../../etc/passwd", "' OR 1=1 --", "0" * 32 + "-0\n"])
def test_an_id_of_no_moment_finds_nothing(library: Library, moment: str) -> None:
    assert library.moment(moment) is None
    assert library.thumbnail(moment) is None
    assert library.file_of(moment) is None
    assert library.neighbours(moment) == []
    with pytest.raises(UserError, match="there is no moment"):
        library.like_moment(moment)


def test_a_moment_has_a_thumbnail_and_its_file(library: Library) -> None:
    found = library.search("a thing", 1)[0]
    assert library.thumbnail(found.id)[:4] == b"RIFF"
    assert library.file_of(found.id) == found.path.resolve()


def test_a_file_that_changed_or_leads_elsewhere_is_not_given(scene: Path) -> None:
    path, _ = make(scene)
    library = Library(path)
    found = library.like(scene / "films" / "d.mp4", 1.0, k=1)[0]
    shutil.move(scene / "films" / "d.mp4", scene / "d.mp4")
    assert library.file_of(found.id) is None
    (scene / "films" / "d.mp4").symlink_to(scene / "d.mp4")
    assert library.file_of(found.id) is None
    (scene / "films" / "d.mp4").unlink()
    (scene / "films" / "d.mp4").write_bytes(b"something else")
    assert library.file_of(found.id) is None


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(library: Library, query: str) -> None:
    with pytest.raises(UserError, match="the query is empty"):
        library.search(query)


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_results_out_of_range_are_refused(library: Library, k: int) -> None:
    with pytest.raises(UserError, match=rf"k is {k}, expected 1 to 1000"):
        library.search("a thing", k)


def test_a_very_long_query_is_cut_as_the_model_cuts_it(library: Library) -> None:
    assert library.search("word " * 2000, 1)


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not there; make one with `emcl-train index FOLDER --out"):
        Library(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no library"):
        Library(tmp_path)


def test_the_model_is_loaded_by_its_name(indexed: Path) -> None:
    encoder = emcl_train.load(indexed / "clip")
    text = encoder.encode_text(["one thing", "another"])
    video = encoder.encode_video([indexed / "films" / "a.mp4", indexed / "films" / "b.mkv"])
    assert text.shape == video.shape == (2, encoder.width)
    assert torch.allclose(text.norm(dim=-1), torch.ones(2))
    assert torch.equal(encoder.similarity(text, video), unit(text) @ unit(video).T)


def test_one_text_or_one_video_is_a_row_too(indexed: Path) -> None:
    encoder = emcl_train.load(indexed / "clip", device="cpu")
    film = indexed / "films" / "a.mp4"
    assert torch.equal(encoder.encode_text("one thing"), encoder.encode_text(["one thing"]))
    assert torch.equal(encoder.encode_video(str(film)), encoder.encode_video([film]))
    assert encoder.encode_text([]).shape == encoder.encode_video([]).shape == (0, encoder.width)
    assert encoder.config.model.clip == str(indexed / "clip")
    with pytest.raises(TypeError, match="texts"):
        encoder.encode_text([3])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["lost", "films"])
def test_what_is_no_model_is_one_error(name: str, indexed: Path) -> None:
    with pytest.raises(UserError, match=name) as refused:
        emcl_train.load(indexed / name)
    assert "\n" not in str(refused.value)


def test_a_library_knows_its_model_though_it_was_moved(scene: Path) -> None:
    path, _ = make(scene)
    shutil.move(scene / "clip", scene / "moved")
    with pytest.raises(UserError, match="clip"):
        Library(path).search("a thing")
    assert names(Library(path, scene / "moved").search("a thing", 1))
    assert names(Library(path, emcl_train.load(scene / "moved")).search("a thing", 1))
