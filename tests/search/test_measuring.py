"""`search --eval`: places and recalls by hand, chance, spans, names, and lines that are refused."""

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from emcl_train.errors import UserError
from emcl_train.search.measuring import Pair, chance, measure, place_of


@dataclass(frozen=True)
class Found:
    """A moment, as a library gives it."""

    content: str
    start: float
    end: float
    score: float = 0.0


@dataclass(frozen=True)
class File:
    """A file that is indexed."""

    path: Path
    content: str


class Library:
    """A library that finds what it is told to: by query and refining, the scores of its moments."""

    name = "holidays"

    def __init__(self, files: dict[str, str], moments: dict[str, int], refines: bool = True) -> None:
        self.files = [File(Path(path), content) for path, content in files.items()]
        self.moments = [
            Found(content, 4.0 * n, 4.0 * n + 4) for content, count in moments.items() for n in range(count)
        ]
        self.refines = refines
        self.scores: dict[tuple[str, bool], list[float]] = {}
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.moments)

    def moments_of(self, content: str) -> list[Found]:
        return [moment for moment in self.moments if moment.content == content]

    def search(self, query: str, k: int = 10, *, refine: bool | None = None) -> list[Found]:
        self.asked.append(k)
        scores = self.scores[query, bool(refine)]
        found = [Found(m.content, m.start, m.end, s) for m, s in zip(self.moments, scores, strict=True)]
        return sorted(found, key=lambda moment: -moment.score)[:k]


@pytest.fixture
def library() -> Library:
    """Two moments of the beach, one of the party, three of the garden; the party lies there twice."""
    files = {"/films/beach.mp4": "b", "/films/party.mp4": "p", "/copies/party.mp4": "p", "/films/old/garden.avi": "g"}
    return Library(files, {"b": 2, "p": 1, "g": 3})


def pairs(folder: Path, *lines: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_places_by_hand(library, tmp_path):
    #                                   beach       party  garden
    library.scores["waves", False] = [0.20, 0.30, 0.25, 0.50, 0.40, 0.10]
    library.scores["waves", True] = [0.20, 0.60, 0.25, 0.50, 0.40, 0.10]
    library.scores["cake", False] = [0.20, 0.30, 0.50, 0.10, 0.10, 0.10]
    library.scores["cake", True] = [0.20, 0.60, 0.50, 0.55, 0.10, 0.10]
    path = pairs(
        tmp_path,
        {"query": "waves", "video": "beach.mp4", "start": 0, "end": 3},
        {"query": "cake", "video": "/films/party.mp4"},
    )
    found = measure(library, path)

    # The first moment of the beach alone is right: behind two of the garden, the beach's other one and the party.
    assert found.places["moments"]["plain"].tolist() == [5, 1]
    assert found.places["moments"]["refined"].tolist() == [5, 3]
    # A video's place is that of its best moment, right or not; the garden's other moments do not count.
    assert found.places["videos"]["plain"].tolist() == [2, 1]
    assert found.places["videos"]["refined"].tolist() == [1, 3]

    assert [found.recall("moments", "plain", k).mean for k in (1, 5)] == [50, 100]
    assert [found.gain(by, 1).mean for by in ("videos", "moments")] == [0, -50]
    assert found.chance["videos"] == {1: pytest.approx(100 / 3), 5: 100, 10: 100}
    assert found.chance["moments"][1] == pytest.approx(100 / 6)
    assert (found.moments, found.videos, found.queries, found.with_span) == (6, 3, 2, 1)


def test_any_moment_of_a_video_is_right_without_a_span(library, tmp_path):
    library.scores["roses", False] = library.scores["roses", True] = [0.9, 0.1, 0.8, 0.2, 0.1, 0.7]
    found = measure(library, pairs(tmp_path, {"query": "roses", "video": "garden"}))
    assert found.places["moments"]["plain"].tolist() == [3]
    assert found.places["videos"]["plain"].tolist() == [3]
    assert found.chance["moments"][1] == pytest.approx(50)


@pytest.mark.parametrize(
    ("start", "end", "right"),
    [
        (None, None, True), (4.0, 8.0, True), (6.0, 10.0, True), (6.1, 10.1, False), (0.0, 5.9, False),
        (0.0, 6.0, True), (7.5, 9.0, False), (7.0, 9.0, True), (5.0, 5.1, True), (0.0, 100.0, True), (6.0, None, True),
        (6.1, None, False), (None, 6.0, True), (None, 5.9, False),
    ],
)  # fmt: skip
def test_a_moment_is_right_that_shares_half_of_the_shorter_one(start, end, right):
    moment = Found("b", 4.0, 8.0)
    assert Pair("", "q", "b", start, end).is_answered_by(moment) == right


def test_more_moments_are_asked_for_where_one_video_takes_the_first_places(tmp_path):
    library = Library({f"/{n}.mp4": str(n) for n in range(30)}, {"0": 300} | {str(n): 1 for n in range(1, 30)}, False)
    library.scores["q", False] = [1.0] * 300 + [0.9 - n / 100 for n in range(1, 30)]
    found = measure(library, pairs(tmp_path, {"query": "q", "video": "4"}))
    assert found.places["videos"]["plain"].tolist() == [5]
    assert found.places["moments"]["plain"].tolist() == [304]
    assert library.asked == [50, 200, 329]


def test_a_video_behind_the_most_that_a_search_gives_is_counted_as_not_found(tmp_path):
    library = Library({f"/{n}.mp4": str(n) for n in range(12)}, {"0": 1000} | {str(n): 1 for n in range(1, 12)}, False)
    library.scores["q", False] = [1.0] * 1000 + [0.5] * 11
    found = measure(library, pairs(tmp_path, {"query": "q", "video": "4"}, {"query": "q", "video": "0"}))
    assert found.places["videos"]["plain"].tolist() == [inf, 1]
    assert found.cut_short == 1
    assert any("Of 1 searches the first 1000 moments are of fewer than 10 videos" in one for one in found.sentences())


def test_equal_scores_share_their_places():
    assert place_of([0.5, 0.5, 0.5], [False, True, False]) == 2
    assert place_of([0.5, 0.5, 0.5, 0.9], [False, True, True, False]) == pytest.approx(2 + 1 / 3)
    assert place_of([0.5], [False]) == inf


def test_chance_is_that_of_a_random_order():
    draw = np.random.default_rng(0)
    for right, items, k in ((1, 7, 1), (3, 11, 5), (2, 5, 10)):
        first = np.array([draw.permutation(items)[:right].min() for _ in range(20_000)])
        assert chance(right, items, k) == pytest.approx(100 * (first < k).mean(), abs=1.5)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["/films/old/garden.avi", "old/garden.avi", "garden.avi", "garden", "films/old/garden"]
)
def test_a_video_is_named_by_the_end_of_its_path(library, tmp_path, name):
    library.scores["q", False] = library.scores["q", True] = [0.1] * 5 + [0.9]
    assert measure(library, pairs(tmp_path, {"query": "q", "video": name})).places["videos"]["plain"].tolist() == [1]


def test_a_path_from_the_folder_of_the_list_is_that_file(tmp_path):
    library = Library({str(tmp_path / "a.mp4"): "here", "/elsewhere/a.mp4": "there"}, {"here": 1, "there": 1}, False)
    library.scores["q", False] = [0.9, 0.1]
    assert measure(library, pairs(tmp_path, {"query": "q", "video": "a.mp4"})).places["videos"]["plain"].tolist() == [1]


def test_copies_of_a_video_are_one_video(library, tmp_path):
    library.scores["q", False] = library.scores["q", True] = [0.1, 0.1, 0.9, 0.1, 0.1, 0.1]
    assert measure(library, pairs(tmp_path, {"query": "q", "video": "party.mp4"})).videos == 3


def test_a_name_of_several_videos_is_refused_with_both(tmp_path):
    library = Library({"/a/x.mp4": "1", "/b/x.mp4": "2"}, {"1": 1, "2": 1})
    with pytest.raises(UserError, match=r"line 1: x\.mp4 may be /a/x\.mp4 or /b/x\.mp4; write more of its path"):
        measure(library, pairs(tmp_path, {"query": "q", "video": "x.mp4"}))


def test_videos_that_the_library_lacks_are_named_and_counted(library, tmp_path):
    library.scores["q", False] = library.scores["q", True] = [0.1, 0.1, 0.9, 0.1, 0.1, 0.1]
    lines = [{"query": "q", "video": name} for name in ("party", "lost.mp4", "gone.mp4", "lost.mp4", "old/party.mp4")]
    found = measure(library, pairs(tmp_path, *lines))
    assert found.absent == ("lost.mp4", "gone.mp4", "old/party.mp4")
    assert (found.queries, found.left_out) == (1, 4)
    said = " ".join(found.sentences())
    assert (
        "Left out: 4 of 5 queries, about 3 videos that the library does not have: lost.mp4, gone.mp4, old/party" in said
    )


def test_a_list_of_none_of_the_videos_is_refused(library, tmp_path):
    with pytest.raises(UserError, match=r"names 1 video, of which the library has none: lost\.mp4"):
        measure(library, pairs(tmp_path, {"query": "q", "video": "lost.mp4"}))


# ---- lines that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"query": "q", "video": ', "is not JSON"),
        ("[1, 2]", "it is a list"),
        ({"video": "party"}, 'no text under "query"'),
        ({"query": " ", "video": "party"}, 'no text under "query"'),
        ({"query": ["q"], "video": "party"}, 'no text under "query"'),
        ({"query": "q"}, 'no text under "video"'),
        ({"query": "q", "video": {}}, 'no text under "video"'),
        ({"query": "q", "video": "party", "start": "1:20"}, '"start" is "1:20", expected seconds'),
        ({"query": "q", "video": "party", "end": -1}, '"end" is -1, expected seconds'),
        ('{"query": "q", "video": "party", "start": NaN}', '"start" is NaN, expected seconds'),
        ({"query": "q", "video": "party", "start": 3, "end": 3}, "end is 3 and start 3"),
        ({"query": "q", "video": "party", "start": 300, "end": 310}, "no moment of party shares half of its span, 300"),
    ],
)
def test_a_bad_line_is_one_error_with_the_file_and_the_line(library, tmp_path, line, said):
    path = pairs(tmp_path, {"query": "q", "video": "party"}, line)
    with pytest.raises(UserError) as refused:
        measure(library, path)
    assert str(refused.value).startswith(f"{path}, line 2")
    assert said in str(refused.value)


def test_an_empty_list_is_refused(library, tmp_path):
    with pytest.raises(UserError, match="has no line"):
        measure(library, pairs(tmp_path))


def test_keys_that_are_not_read_are_named(library, tmp_path):
    library.scores["q", False] = library.scores["q", True] = [0.1] * 6
    found = measure(library, pairs(tmp_path, {"query": "q", "video": "party", "stop": 3}))
    assert found.notes == ('Keys of pairs.jsonl that are not read: "stop".',)


# ---- how it is shown -------------------------------------------------------------------------------------------------


def test_the_table_has_recalls_with_intervals_gains_and_chance(library, tmp_path):
    for refined in (False, True):
        library.scores["waves", refined] = [0.2, 0.3, 0.25, 0.5, 0.4, 0.1 + refined]
    found = measure(library, pairs(tmp_path, *[{"query": "waves", "video": "garden"}] * 3))
    console = Console(width=100, record=True)
    console.print(found.table())
    text = console.export_text()
    for part in ("holidays", "moments, plain", "videos, refined", "100.0 [100.0, 100.0]", "gain", "chance", "33.3"):
        assert part in text
    assert "0.0 [0.0, 0.0]" in text


def test_a_library_without_refined_vectors_says_what_is_missing(library, tmp_path):
    library.refines = False
    library.scores["q", False] = [0.1] * 6
    found = measure(library, pairs(tmp_path, {"query": "q", "video": "party"}))
    assert list(found.places["moments"]) == ["plain"]
    assert any("--refine queries.txt" in sentence for sentence in found.sentences())


def test_programs_get_all_of_it_as_json(library, tmp_path):
    library.scores["q", False] = library.scores["q", True] = [0.1, 0.2, 0.9, 0.1, 0.1, 0.1]
    found = json.loads(json.dumps(measure(library, pairs(tmp_path, {"query": "q", "video": "party"})).as_json()))
    assert (found["moments_in_all"], found["videos_in_all"]) == (6, 3)
    assert found["moments"]["plain"]["R@1"] == {"mean": 100.0, "low": 100.0, "high": 100.0}
    assert found["videos"]["gain"]["R@1"]["mean"] == 0
    assert found["moments"]["places"] == {"plain": [1.0], "refined": [1.0]}
