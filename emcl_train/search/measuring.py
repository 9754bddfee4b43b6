"""`emcl-train search LIBRARY --eval pairs.jsonl`: how often a library finds what belongs to a query.

    {"query": "a dog jumps into water", "video": "films/beach.mp4", "start": 12.0, "end": 16.5}

A line a query. `video` is a path, or as much of its end as tells it apart; the suffix may be left out. Without `start`
and `end` (seconds from the first frame) any moment of the video is right; with them each that shares at least half of
the shorter one, the moment or the span.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb, inf
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from emcl_train.data.annotation_files import count, few, identifier, read_json_lines
from emcl_train.data.own_videos import seconds
from emcl_train.errors import UserError
from emcl_train.evaluation.bootstrap import Interval, paired_bootstrap
from emcl_train.reading.shown import shortened
from emcl_train.search.naming import VideosByName
from emcl_train.terminal import with_progress

KEYS = ("query", "video", "start", "end")
EXPECTED = '{"query": "a text", "video": "path or name", "start": seconds, "end": seconds}'
RECALL_AT = (1, 5, 10)
FIRST_ASKED = 50
"""Moments that are asked for at first; more, where they are of too few videos."""
MOST_ASKED = 1000
"""A search gives no more."""
OVERLAP = 0.5
"""Of the shorter one of a moment and a span, what both have to share."""
PLAIN, REFINED = "plain", "refined"
BY_MOMENT, BY_VIDEO = "moments", "videos"


@runtime_checkable
class Moment(Protocol):
    """A moment that a library has, or has found (`emcl_train.search.library.Found`)."""

    @property
    def content(self) -> str: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def score(self) -> float: ...


@runtime_checkable
class File(Protocol):
    """A file that is indexed (`emcl_train.search.tables.FileRow`)."""

    @property
    def path(self) -> Path: ...
    @property
    def content(self) -> str: ...


@runtime_checkable
class Searched(Protocol):
    """What is asked of a library (`emcl_train.search.library.Library`)."""

    @property
    def name(self) -> str: ...
    @property
    def refines(self) -> bool: ...
    @property
    def files(self) -> Sequence[File]: ...
    def __len__(self) -> int: ...
    def search(self, query: str, k: int = 10, *, refine: bool | None = None) -> Sequence[Moment]: ...
    def moments_of(self, content: str) -> Sequence[Moment]:
        """All moments of a video."""
        ...


@dataclass(frozen=True)
class Pair:
    """A line: a query, and what answers it."""

    place: str
    """File and line, for errors."""
    query: str
    video: str
    start: float | None = None
    end: float | None = None

    def is_answered_by(self, moment: Moment) -> bool:
        """Whether a moment of the right video is a right moment."""
        if self.start is None and self.end is None:
            return True
        start = self.start or 0.0
        end = inf if self.end is None else self.end
        shared = min(end, moment.end) - max(start, moment.start)
        return shared >= OVERLAP * min(end - start, moment.end - moment.start)


@dataclass(frozen=True)
class Measured:
    """Places of what is right among what a library finds; 1 is the first, and inf was not found."""

    library: str
    places: Mapping[str, Mapping[str, Float[np.ndarray, " Q"]]]
    """By "moments" or "videos", and "plain" or "refined"."""
    chance: Mapping[str, Mapping[int, float]]
    """R@k in percent of a search that knows nothing, by "moments" or "videos"."""
    moments: int
    videos: int
    with_span: int
    """Queries that name a span."""
    absent: tuple[str, ...]
    """Videos that lines name and the library does not have."""
    left_out: int
    """Queries that are about those."""
    cut_short: int
    """Searches whose first `MOST_ASKED` moments are of fewer videos than recalls are made of."""
    notes: tuple[str, ...]

    @property
    def queries(self) -> int:
        """How many were measured."""
        return len(self.places[BY_MOMENT][PLAIN])

    def recall(self, by: str, how: str, k: int) -> Interval:
        """R@k in percent, and its 95 % interval by drawing queries anew."""
        points = self._points(by, how, k)
        return paired_bootstrap(np.zeros_like(points), points)

    def gain(self, by: str, k: int) -> Interval:
        """What refining adds to R@k, in points, with its interval: a drawn query brings both of its places."""
        return paired_bootstrap(self._points(by, PLAIN, k), self._points(by, REFINED, k))

    def _points(self, by: str, how: str, k: int) -> Float[np.ndarray, " Q"]:
        """100 for each query whose place is among the first k."""
        return 100.0 * (self.places[by][how] <= k)

    def sentences(self) -> list[str]:
        """What a reader of the figures must know."""
        said = [
            f"Queries: {self.queries}, of which {self.with_span} name a span. Searched: "
            f"{count(self.moments, 'moment')} of {count(self.videos, 'video')}. Brackets are 95 % intervals: what "
            f"other queries of this kind could have given.",
            "Moments: the place of the first right one among all moments. Videos: the place of the right video, which "
            "is that of its best moment, right or not.",
        ]
        if REFINED not in self.places[BY_MOMENT]:
            said.append("The library has no refined vectors: index it with --refine queries.txt to compare with them.")
        if self.absent:
            said.append(
                f"Left out: {self.left_out} of {self.left_out + self.queries} queries, about "
                f"{count(len(self.absent), 'video')} that the library does not have: {few(self.absent)}."
            )
        if self.cut_short:
            said.append(
                f"Of {self.cut_short} searches the first {MOST_ASKED} moments are of fewer than {RECALL_AT[-1]} "
                f"videos: those that come behind them are counted as not found."
            )
        return [*said, *self.notes]

    def table(self) -> Group:
        """Recalls and what they mean, for `console.print`."""
        table = Table(
            title=Text(self.library), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1), pad_edge=False
        )
        table.add_column("", min_width=16, no_wrap=True)
        for k in RECALL_AT:
            table.add_column(f"R@{k}", justify="right", no_wrap=True)
        for by, of_ways in self.places.items():
            for how in of_ways:
                cells = [shown(self.recall(by, how, k)) for k in RECALL_AT]
                table.add_row(f"{by}, {how}", *cells, style="bold" if how == REFINED or len(of_ways) == 1 else None)
            if REFINED in of_ways:
                table.add_row("  gain", *(str(self.gain(by, k)) for k in RECALL_AT))
            table.add_row("  chance", *(f"{self.chance[by][k]:.1f}" for k in RECALL_AT), style="dim")
            table.add_section()
        return Group(table, *(Text(f"· {sentence}", style="dim") for sentence in self.sentences()))

    def as_json(self) -> dict[str, Any]:
        """All of it for programs; a place that was not found is null."""
        found: dict[str, Any] = {
            "library": self.library,
            "queries": self.queries,
            "with_span": self.with_span,
            "moments_in_all": self.moments,
            "videos_in_all": self.videos,
            "absent": list(self.absent),
            "left_out": self.left_out,
            "cut_short": self.cut_short,
            "notes": list(self.notes),
        }
        for by, of_ways in self.places.items():
            found[by] = {how: {f"R@{k}": asdict(self.recall(by, how, k)) for k in RECALL_AT} for how in of_ways}
            if REFINED in of_ways:
                found[by]["gain"] = {f"R@{k}": asdict(self.gain(by, k)) for k in RECALL_AT}
            found[by]["chance"] = {f"R@{k}": self.chance[by][k] for k in RECALL_AT}
            found[by]["places"] = {
                how: [None if place == inf else place for place in places.tolist()] for how, places in of_ways.items()
            }
        return found


def shown(interval: Interval) -> str:
    """A recall with its interval."""
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def measure(library: Searched, path: Path) -> Measured:
    """Ask a library each query of a list, and see at which place it finds what belongs to it.

    Args:
        library: what is searched; with refined vectors it is asked twice.
        path: the list, JSON lines.

    Returns:
        The places, whose `table()` and `as_json()` say what they come to.

    Raises:
        UserError: a line is not as expected, may mean several videos, or names a span in which the library has no
            moment; or the library has none of the videos.

    Examples:
        >>> console.print(measure(Library("library"), Path("pairs.jsonl")).table())
    """
    notes: list[str] = []
    pairs = read_pairs(path, notes)
    named = VideosByName((file.path, file.content) for file in library.files)
    contents = [named.find(pair.video, pair.place, path.parent) for pair in pairs]

    absent = tuple(dict.fromkeys(pair.video for pair, content in zip(pairs, contents, strict=True) if content is None))
    asked = [(pair, content) for pair, content in zip(pairs, contents, strict=True) if content is not None]
    if not asked:
        raise UserError(
            f"{path} names {count(len(absent), 'video')}, of which the library has none: {few(absent)}; index their "
            f"folder, or write paths as the library shows them"
        )

    right = [_right_moments(library, pair, content) for pair, content in asked]
    videos = named.number_of_videos
    ways = {PLAIN: False, REFINED: True} if library.refines else {PLAIN: False}
    places: dict[str, dict[str, Any]] = {BY_MOMENT: {}, BY_VIDEO: {}}
    cut_short = 0
    for how, refine in ways.items():
        found = [
            _places(library, pair, content, refine, videos) for pair, content in with_progress(asked, f"search, {how}")
        ]
        places[BY_MOMENT][how] = np.array([of.moment for of in found], dtype=np.float64)
        places[BY_VIDEO][how] = np.array([of.video for of in found], dtype=np.float64)
        cut_short += sum(of.cut_short for of in found)

    return Measured(
        library=library.name,
        places=places,
        chance={
            BY_MOMENT: {k: float(np.mean([chance(n, len(library), k) for n in right])) for k in RECALL_AT},
            BY_VIDEO: {k: chance(1, videos, k) for k in RECALL_AT},
        },
        moments=len(library),
        videos=videos,
        with_span=sum(pair.start is not None or pair.end is not None for pair, _ in asked),
        absent=absent,
        left_out=len(pairs) - len(asked),
        cut_short=cut_short,
        notes=tuple(notes),
    )


def read_pairs(path: Path, notes: list[str]) -> list[Pair]:
    """The lines of a list; `notes` gets the keys that are not read.

    Raises:
        UserError: a line is not as expected.
    """
    lines = read_json_lines(path, EXPECTED)
    if unknown := dict.fromkeys(key for _, entry in lines for key in entry if key not in KEYS):
        notes.append(f"Keys of {path.name} that are not read: {shortened(list(unknown))[1:-1]}.")
    return [_pair(f"{path}, line {number}", entry) for number, entry in lines]


def _pair(place: str, entry: dict[str, Any]) -> Pair:
    query = entry.get("query")
    if not isinstance(query, str) or not query.strip():
        raise UserError(f'{place} has no text under "query": {shortened(entry)}; expected {EXPECTED}')
    video = identifier(entry.get("video"))
    if video is None:
        raise UserError(f'{place} has no text under "video": {shortened(entry)}; expected {EXPECTED}')

    start, end = (seconds(place, name, entry.get(name)) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise UserError(f"{place}: end is {end:g} and start {start or 0:g}; expected an end after the start")
    return Pair(place, query.strip(), video, start, end)


def _right_moments(library: Searched, pair: Pair, content: str) -> int:
    """How many moments answer a query.

    Raises:
        UserError: none does.
    """
    moments = library.moments_of(content)
    right = sum(pair.is_answered_by(moment) for moment in moments)
    if not right:
        last = max((moment.end for moment in moments), default=0.0)
        raise UserError(
            f"{pair.place}: no moment of {pair.video} shares half of its span, {pair.start or 0:g} to "
            f"{'the end' if pair.end is None else format(pair.end, 'g')}; the library has "
            f"{count(len(moments), 'moment')} of it, up to {last:g} s: correct the seconds"
        )
    return right


class _Places(NamedTuple):
    """Of the first right moment, and of the right video."""

    moment: float
    video: float
    cut_short: bool
    """Whether the video may have a place that counts, and which is not known."""


def _places(library: Searched, pair: Pair, content: str, refine: bool, videos: int) -> _Places:
    """Ask for more and more moments, until all places are known that recalls are made of."""
    most = min(len(library), MOST_ASKED)
    needed = min(RECALL_AT[-1], videos)
    asked = min(FIRST_ASKED, most)
    while True:
        found = library.search(pair.query, asked, refine=refine)
        seen = len({moment.content for moment in found})
        if seen >= needed or len(found) < asked or asked == most:
            break
        asked = min(4 * asked, most)

    is_right = [moment.content == content and pair.is_answered_by(moment) for moment in found]
    best: dict[str, float] = {}
    for moment in found:
        best[moment.content] = max(moment.score, best.get(moment.content, -inf))
    return _Places(
        place_of([moment.score for moment in found], is_right),
        place_of(list(best.values()), [other == content for other in best]),
        content not in best and seen < needed,
    )


def place_of(scores: Sequence[float], is_right: Sequence[bool]) -> float:
    """The place of the first right one in a list, by score.

    Where m right ones and n others have the same score, the first right one has n / (m + 1) others before it, on
    average over the orders that they may come in.

    Examples:
        >>> place_of([0.9, 0.5, 0.5], [False, False, True])
        2.5
    """
    best = max((score for score, right in zip(scores, is_right, strict=True) if right), default=None)
    if best is None:
        return inf
    better = sum(score > best for score in scores)
    tied = [right for score, right in zip(scores, is_right, strict=True) if score == best]
    return 1.0 + better + (len(tied) - sum(tied)) / (sum(tied) + 1)


def chance(right: int, items: int, k: int) -> float:
    """How often, in percent, one of the right items is among the first k of all, in a random order.

    Examples:
        >>> chance(1, 4, 1), chance(2, 4, 3)
        (25.0, 100.0)
    """
    return 100.0 * (1 - comb(items - right, min(k, items)) / comb(items, min(k, items)))
