"""A library that several threads ask at once, and one that is indexed anew while it is open."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clip_folder import put_small_clip
from small_library import QUERIES, make, names, write_films

from emcl_train import Library
from emcl_train.search import library as library_module
from emcl_train.search.state import BecameAnother
from emcl_train.search.tables import REFINER, Tables

ASKING = 8


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "a library that is open has not followed for a minute"
        time.sleep(0.05)


# ---- Several threads ----


def all_answers(library: Library, query: str, moment: str) -> dict[str, Any]:
    return {
        "plain": [(one.id, round(one.score, 5)) for one in library.search(query, 5, refine=False)],
        "refined": [(one.id, round(one.score, 5)) for one in library.search(query, 5, refine=True)],
        "auto": [one.id for one in library.search(query, 5, minimum="auto")],
        "like": [one.id for one in library.like_moment(moment, 5)],
        "neighbours": [one.id for one in library.neighbours(moment)],
        "picture": library.thumbnail(moment),
        "file": library.file_of(moment),
        "size": len(library),
        "files": [row.path for row in library.files],
    }


def test_threads_that_ask_at_once_from_a_cold_start_get_the_answers_that_each_would_get_alone(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Library(indexed / "library")
    queries = [query + " and more of it" * (place % 3) for place, query in enumerate(QUERIES[:ASKING])]
    moments = [one.id for one in alone.search("a thing", ASKING, refine=False)]
    expected = [all_answers(alone, *asked) for asked in zip(queries, moments, strict=True)]

    loads = 0
    load = library_module.load

    def slow_load(*args: Any, **kwargs: Any) -> Any:
        nonlocal loads
        loads += 1
        time.sleep(0.2)
        return load(*args, **kwargs)

    monkeypatch.setattr(library_module, "load", slow_load)
    library = Library(indexed / "library")
    together = threading.Barrier(ASKING)
    found: list[Any] = [None] * ASKING

    def ask(place: int) -> None:
        together.wait()
        try:
            found[place] = [all_answers(library, queries[place], moments[place]) for _ in range(5)]
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            found[place] = repr(error)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(ASKING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == 1
    assert found == [[one] * 5 for one in expected]


# ---- Indexed anew ----


def test_an_open_library_follows_what_index_writes(scene: Path) -> None:
    path, _ = make(scene, refine=True)
    library = Library(path)
    before = library.search("a thing", 100)
    assert len(before) == len(library) == 10

    write_films(scene / "films", {"new.mp4": 40}, first=20)
    (scene / "films" / "d.mp4").unlink()
    (scene / "films" / "b.mkv").rename(scene / "films" / "deep" / "renamed.mkv")
    gone = next(one for one in before if one.path.name == "d.mp4")
    make(scene)
    until(lambda: "new.mp4" in names(library.search("a thing", 100, refine=False)))
    assert set(names(library.search("a thing", 100))) == {"a.mp4", "new.mp4", "renamed.mkv", "c.avi"}
    assert len(library) == 7
    assert library.moment(gone.id) is None
    assert library.file_of(gone.id) is None
    assert library.about == Library(path).about
    assert library.cutoff() == Library(path).cutoff()
    assert library.search("a thing", 100) == Library(path).search("a thing", 100)


def test_within_one_call_the_library_stays_as_it_is(scene: Path) -> None:
    path, _ = make(scene)
    library = Library(path)

    def asked_twice() -> tuple[int, int, int]:
        first = len(library)
        write_films(scene / "films", {"new.mp4": 40}, first=20)
        make(scene)
        time.sleep(1.5)
        return first, len(library), len(library.search("a thing", 100))

    assert library.steadily(asked_twice) == (10, 10, 10)
    until(lambda: len(library) == 12)


def test_refined_rows_and_their_map_change_together(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written first. Until their map is there, the earlier ones of both are used; alone, neither is."""
    path, _ = make(scene, refine=True)
    library = Library(path)
    before = library.search("a thing", 100, refine=True)
    write_films(scene / "films", {"new.mp4": 40}, first=20)
    replace = Tables.replace

    def killed(self: Tables, name: str, *rest: Any) -> Any:
        if name == REFINER:
            raise KeyboardInterrupt
        return replace(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make(scene)
    until(lambda: "new.mp4" in names(library.search("a thing", 100, refine=False)))
    assert library.search("a thing", 100, refine=True) == before
    assert not Library(path).refines

    make(scene)
    until(lambda: "new.mp4" in names(library.search("a thing", 100, refine=True)))
    assert library.search("a thing", 100, refine=True) == Library(path).search("a thing", 100, refine=True)


def test_a_library_that_is_gone_or_became_another_one_says_so(scene: Path) -> None:
    path, _ = make(scene)
    library = Library(path)
    assert library.search("a thing", 1)
    shutil.rmtree(path)
    with pytest.raises(BecameAnother, match=r"library holds no library any more"):
        until(lambda: not library.search("a thing", 1))

    # Made anew by the same model, with other pieces: it is followed.
    make(scene, piece=1.0)
    assert len(library.search("a thing", 100)) == len(Library(path)) > 10
    assert library.cutting.seconds == 1.0

    shutil.rmtree(path)
    put_small_clip(scene / "another", seed=1)
    make(scene, model=str(scene / "another"))
    with pytest.raises(BecameAnother, match=r"was made anew by .*; open it again"):
        until(lambda: not library.search("a thing", 1))
    assert Library(path).search("a thing", 1)
