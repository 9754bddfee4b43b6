"""comparison.html: several runs beside each other, on one page that needs no other file.

What differs in their settings comes first, then their figures and curves, and for each run against the first one the
paired differences, the verdict, and the queries that it won and lost.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from emcl_train.report.compare import Comparison, cells_of, notes_of
from emcl_train.report.differences import Differing, differing_machines, differing_settings_of, names_of
from emcl_train.report.groups import Group
from emcl_train.report.notes import COLUMNS, chance_of, columns_of, differences, other_code
from emcl_train.report.overlaid import intervals, letter, training_of_all
from emcl_train.report.pages import Drawing, Page, Quoted, render
from emcl_train.report.paths import Paths
from emcl_train.report.place import OURS, require_free
from emcl_train.report.retrievals import Strip, strips
from emcl_train.report.wins import Query, Tally, wins
from emcl_train.runs.folder import Run
from emcl_train.runs.origin import sentence_of, what_is_stale

COMPARISON = "comparison.html"

Paired = Sequence[tuple[Group, Comparison]]


@dataclass(frozen=True)
class Named:
    """A run, or runs of several seeds, as the page calls them."""

    letter: str
    name: str
    path: str
    about: str
    origins: list[str]
    number: int
    """Of its colour."""


@dataclass(frozen=True)
class Row:
    """A row of the table of figures."""

    name: str
    text_to_video: dict[str, float]
    video_to_text: dict[str, float]
    kind: str = ""


@dataclass(frozen=True)
class Shown:
    """A clip of a card: its frames, or why there are none."""

    role: str
    name: str
    jpeg: Markup | None
    reason: str


@dataclass(frozen=True)
class Card:
    """A query that one run answers better than the other."""

    caption: str
    first_rank: float
    second_rank: float
    clips: list[Shown]


@dataclass(frozen=True)
class Against:
    """A run against the first one."""

    title: str
    letters: list[str]
    """Of the first run and of this one."""
    intervals: Drawing
    rows: list[list[str]]
    notes: list[str]
    tallies: list[str]
    won: list[Card]
    lost: list[Card]
    no_frames: str


def place_of(groups: Sequence[Group], out: Path | None) -> Path:
    """Where the page goes: the folder that all runs lie in, or the current one; never over somebody else's file.

    Args:
        groups: what is compared.
        out: the file that was asked for, or None.

    Raises:
        UserError: something else lies there.
    """
    folders = {group.path.absolute().parent for group in groups}
    beside = groups[0].path.parent if len(folders) == 1 else Path()
    path = out if out is not None else beside / COMPARISON
    require_free(path, "comparison")
    return path


def comparison_page(groups: Sequence[Group], comparisons: Paired, *, share: bool = False) -> Page:
    """The whole page.

    Args:
        groups: all runs, in the order in which they were named.
        comparisons: every other one that has figures, against the first that has.
        share: leave out what leads to the last part of absolute paths.
    """
    names = [f"{letter(number)} {name}" for number, name in enumerate(names_of(groups))]
    called = {id(group): name for group, name in zip(groups, names, strict=True)}
    measured = [group for group in groups if group.runs]
    runs = [(run.path, run.results) for group in measured for run in group.runs]
    every = {columns_of(results) for _, results in runs}
    columns = every.pop() if len(every) == 1 else COLUMNS

    values: dict[str, Any] = {
        "generator": Markup(OURS),
        "names": names,
        "named": _named(groups),
        "verdicts": [(called[id(other)], comparison.verdict) for other, comparison in comparisons],
        "first": called[id(measured[0])] if measured else "",
        "settings": _table(differing_settings_of(groups)),
        "machines": _table(differing_machines(groups)),
        "columns": columns,
        "rows": [row for group in measured for row in _rows(group, called[id(group)])],
        "warnings": [*differences(runs), *other_code(runs)] if len(runs) > 1 else [],
        "training": training_of_all(groups),
        "against": [
            _against(number, measured[0], other, comparison, called)
            for number, (other, comparison) in enumerate(comparisons)
        ],
    }
    sources = [
        (asdict(run.config), run.environment, run.results, str(run.path.absolute()))
        for group in groups
        for run in group.curves
    ]
    paths = Paths(*sources, *(str(group.path.absolute()) for group in groups), leave_out=share)
    return render("comparison.html", values, paths, share=share, notices=_notices(groups))


def _notices(groups: Sequence[Group]) -> list[str]:
    """What is not finished, and figures that are not of the weights beside them."""
    said = [sentence for group in groups for one in group.standings for sentence in one.sentences()]
    for group in groups:
        for run in group.runs:
            if (stale := what_is_stale(run.path, run.results)) is not None:
                said.append(f"The figures of {run.path} are {stale}.")
    return list(dict.fromkeys(said))


def _named(groups: Sequence[Group]) -> list[Named]:
    found = []
    for number, (group, name) in enumerate(zip(groups, names_of(groups), strict=True)):
        seeds = f"{len(group.curves)} seeds, " if len(group.curves) > 1 else ""
        if group.runs:
            results = group.runs[0].results
            about = (
                f"{seeds}{results['queries']} captions and {results['gallery']} clips of the {results['split']} split"
            )
        else:
            about = f"{seeds}no figures yet"
        origins = list(dict.fromkeys(sentence_of(run.results) for run in group.runs))
        found.append(Named(letter(number), name, str(group.path), about, origins, number % 6 + 1))
    return found


def _table(found: Sequence[Differing]) -> list[list[str]]:
    return [[one.name, *one.values] for one in found]


def _rows(group: Group, name: str) -> list[Row]:
    """The line that a run is judged by, and that without EMCL; of seeds the means."""
    rows = []
    for index, row in enumerate(group.runs[0].results["rows"]):
        if index and not row["name"].startswith("EMCL off"):
            continue
        alike = [run.results["rows"][index] for run in group.runs if len(run.results["rows"]) > index]
        means = [
            {key: fmean(one[way][key] for one in alike if key in one[way]) for key in row[way]}
            for way in ("text_to_video", "video_to_text")
        ]
        title = f"{name}: {row['name']}" if not index else row["name"]
        rows.append(Row(title, means[0], means[1], "second" if index else ""))

    by_chance = chance_of(group.runs[0].results)
    rows.append(Row(by_chance["name"], by_chance["text_to_video"], by_chance["video_to_text"], "second"))
    return rows


def _against(number: int, first: Group, other: Group, comparison: Comparison, called: dict[int, str]) -> Against:
    letters = [called[id(group)].partition(" ")[0] for group in (first, other)]
    found = wins(first, other)
    pictures, no_frames = _pictures(first.runs[0], other.runs[0], (*found.won, *found.lost))
    rows = [[*cells_of(one), one.verdict.replace("second", letters[1])] for one in comparison.differences]
    return Against(
        f"{called[id(other)]} against {called[id(first)]}",
        letters,
        intervals(f"intervals-{number}", comparison, letters),
        rows,
        notes_of(first, other, comparison),
        [_tally(one, letters[1]) for one in found.tallies],
        [_card(query, pictures, letters) for query in found.won],
        [_card(query, pictures, letters) for query in found.lost],
        no_frames,
    )


def _tally(tally: Tally, second: str) -> str:
    way = "text→video" if tally.direction == "T→V" else "video→text"
    return (
        f"{way}: {second} ranks the right one higher for {tally.better} queries, lower for {tally.worse}, alike for "
        f"{tally.alike}. At rank 1 it wins {tally.hits_won} and loses {tally.hits_lost}."
    )


def _pictures(first: Run, second: Run, queries: Sequence[Query]) -> tuple[dict[tuple[int, str], Strip], str]:
    """Frames of clips by run and name, and why there are none, if so. Both runs may read different data sets."""
    wanted = ({name for one in queries for name in (one.right, one.first_gave)}, {one.second_gave for one in queries})
    pictures: dict[tuple[int, str], Strip] = {}
    problems = []
    for side, (run, names) in enumerate(zip((first, second), wanted, strict=True)):
        number = {name: index for index, name in enumerate(run.video_ids)}
        found, problem = strips(run, {number[name] for name in names if name in number})
        pictures |= {(side, run.video_ids[clip]): strip for clip, strip in found.items()}
        if problem:  # of one side alone, its clips say it
            pictures |= {(side, name): Strip(None, problem) for name in names}
        problems += [problem] if problem else []
    return pictures, "; ".join(dict.fromkeys(problems)) if len(problems) == 2 else ""


def _card(query: Query, pictures: dict[tuple[int, str], Strip], letters: Sequence[str]) -> Card:
    given = [(0, query.first_gave, letters[0]), (1, query.second_gave, letters[1])]
    right_of = [name for _, gave, name in given if gave == query.right]
    role = "right clip" + (f", given by {' and '.join(right_of)}" if right_of else "")
    clips = [_shown(role, query.right, pictures.get((0, query.right)))]
    clips += [
        _shown(f"given by {name}", gave, pictures.get((side, gave)))
        for side, gave, name in given
        if gave != query.right
    ]
    return Card(Quoted(query.caption), query.first_rank, query.second_rank, clips)


def _shown(role: str, name: str, strip: Strip | None) -> Shown:
    jpeg = None if strip is None or strip.jpeg is None else Markup(strip.jpeg)  # base64, whose slashes begin no paths
    return Shown(role, name, jpeg, "" if strip is None else strip.reason)
