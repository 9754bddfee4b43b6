"""index: what lies in folders that is no film, what a start that was killed has left, and failures in the middle."""

import os
import shutil
from pathlib import Path

import av
import pytest
from small_library import FILMS, QUERIES, make, rows_of, write_films

from emcl_train.errors import UserError
from emcl_train.search import embedding, finding, indexing, refining
from emcl_train.search.finding import absolute_roots, compare, list_videos
from emcl_train.search.library import Library
from emcl_train.search.moments import choose
from emcl_train.search.tables import MOMENTS, REFINED, REFINER, Tables


def ids(library: Path, *, refined: bool = False) -> list[str]:
    return sorted(key for batch in Library(library).vectors(refined=refined) for key in batch[0])


def test_names_that_are_no_text_pipes_and_loops_stop_nothing(scene: Path) -> None:
    films = scene / "films"
    latin = os.fsencode(films) + b"/gr\xfc\xdfe.mp4"
    shutil.copy(films / "a.mp4", os.fsdecode(latin))
    os.mkfifo(films / "pipe.mp4")
    (films / "loop.mp4").symlink_to("loop.mp4")
    (films / "nowhere.mp4").symlink_to("lost.mp4")
    for _ in range(2):
        library, report = make(scene)
        assert [os.fsencode(path) for path in report.trouble] == [latin]
        assert "UTF-8" in next(iter(report.trouble.values()))
        assert all(path.endswith("gr\\udcfc\\udcdfe.mp4") for path in report.as_json()["trouble"])
    assert len(Tables(library).files()) == len(FILMS)
    folder = scene / os.fsdecode(b"\xfc")
    folder.mkdir()
    with pytest.raises(UserError, match="is not UTF-8"):
        absolute_roots([folder])


def test_a_file_that_cannot_be_asked_is_not_taken_for_deleted(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _ = make(scene)
    known = Tables(library).files()
    refused = scene / "films" / "d.mp4"
    whole = Path.stat

    def stat(path: Path, **named: bool) -> os.stat_result:
        if path == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, **named)

    monkeypatch.setattr(finding.Path, "stat", stat)
    listing = list_videos([scene / "films"])
    assert listing.unseen == {refused: "Permission denied"}
    assert compare(listing, known, [scene / "films"]).missing == []


def test_a_folder_that_is_spelled_in_another_way_is_the_same(scene: Path) -> None:
    library, _ = make(scene)
    (scene / "linked").symlink_to(scene / "films")
    _, report = make(scene, folders=(scene / "linked", scene / "films" / ".." / "films"))
    assert (report.unchanged, report.moved, report.added) == (len(FILMS), 0, 0)
    assert Library(library).about["roots"] == [str(scene / "films")]
    assert absolute_roots([scene / "films", scene / "linked"]) == [scene / "films"]


def test_a_folder_that_was_renamed_leaves_no_dead_paths(scene: Path) -> None:
    library, _ = make(scene)
    before = ids(library)
    shutil.move(scene / "films", scene / "holidays")
    (scene / "holidays" / "a.mp4").unlink()
    _, report = make(scene, folders=(scene / "holidays",))
    assert (report.added, report.moved) == (0, len(FILMS) - 1)
    assert list(report.kept.values()) == [1]  # a.mp4, which lies nowhere else
    assert ids(library) == before
    assert all(row.path.exists() for row in Tables(library).files() if row.path.name != "a.mp4")


@pytest.mark.parametrize("where", ["add", "put_files"])
def test_a_failure_while_rows_are_written_doubles_none(
    scene: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes after the rows are there, as where a signal arrives then."""
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "ROWS_A_COMMIT", 2)
        if where == "put_files":

            def fails(self: Tables, rows: list) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(Tables, "put_files", fails)
        else:
            whole = Tables.open

            def opened(self: Tables, name: str):
                table = whole(self, name)
                if name == MOMENTS:
                    add = table.add

                    def adds_and_fails(rows) -> None:
                        add(rows)
                        raise KeyboardInterrupt

                    table.add = adds_and_fails
                return table

            patch.setattr(Tables, "open", opened)
        with pytest.raises((OSError, KeyboardInterrupt)):
            make(scene)
    library, _ = make(scene)
    assert len(rows_of(library)) == len(Library(library)) == 10  # and rows_of says if one is there twice


def test_refined_rows_that_a_killed_start_left_are_made_anew(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _ = make(scene, refine=True)
    assert refining.is_current(Tables(library), QUERIES, refining.hash_of_rows(Tables(library)))
    shutil.move(scene / "films" / "d.mp4", scene / "d.mp4")
    with monkeypatch.context() as patch:
        patch.setattr(indexing.refining, "refine", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(scene)

    # The film is back, and so are its moments; its refined rows are not.
    shutil.move(scene / "d.mp4", scene / "films" / "d.mp4")
    make(scene)
    assert ids(library, refined=True) == ids(library)

    # Rows of another map, whose map was not written any more.
    other = [f"another {query}" for query in QUERIES]
    (scene / "other.txt").write_text("\n".join(other))
    replace = Tables.replace

    def stops(self: Tables, name: str, *arguments):
        return _interrupted() if name == REFINER else replace(self, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            indexing.index(indexing.Asked(str(library), refine=scene / "other.txt"))
    assert not Library(library).refines
    make(scene)
    assert Library(library).refines
    assert ids(library, refined=True) == ids(library)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", [REFINED, REFINER])
def test_a_table_whose_first_rows_were_never_written_is_none(scene: Path, name: str) -> None:
    library, _ = make(scene, refine=True)
    for path in (library / f"{name}.lance" / "_versions").iterdir():
        path.unlink()
    assert name not in Tables(library).names()
    assert not Library(library).refines
    make(scene, refine=name == REFINER)  # which knows the queries
    assert Library(library).refines
    assert ids(library, refined=True) == ids(library)


def test_cut_offs_follow_the_queries_and_not_their_number(scene: Path) -> None:
    library, _ = make(scene, refine=True)
    before = Library(library).about["cutoffs"]["of"]
    (scene / "other.txt").write_text("\n".join(f"quite another {query}" for query in QUERIES))
    indexing.index(indexing.Asked(str(library), refine=scene / "other.txt"))
    assert Library(library).about["cutoffs"]["of"] != before


def test_a_length_of_pieces_means_pieces(scene: Path) -> None:
    assert choose("auto", 2.0).way == "pieces"
    with pytest.raises(UserError, match="leave --piece out, or pass --cut pieces"):
        choose("shots", 2.0)


def test_a_folder_with_a_colon_in_its_name_is_one(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    indexing.index(indexing.Asked("films:2024", (scene / "films",), str(scene / "clip"), "pieces", 2.0))
    assert len(Library("films:2024")) == 10


def test_a_film_whose_pictures_change_their_size_is_cut(scene: Path) -> None:
    pytest.importorskip("scenedetect")
    from emcl_train.search.shots import cuts_of

    # Two streams of MPEG-2 one behind the other, as a broadcast that changes from 4:3 to 16:9.
    films = write_films(scene / "sizes", {"a.mp4": 30})
    parts = []
    for width in (96, 128):
        path = films / f"{width}.mpg"
        with av.open(str(path), "w", format="mpeg2video") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
            for number in range(30):
                frame = av.VideoFrame(width, 64, "rgb24")
                frame.planes[0].update(bytes([8 * number % 256]) * frame.planes[0].buffer_size)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append(path.read_bytes())
    both = films / "both.mpg"
    both.write_bytes(b"".join(parts))
    assert all(0 < cut < 60 for cut in cuts_of(both))
