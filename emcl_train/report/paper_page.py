"""paper-table.html: the paper's tables on one page that needs no other file."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup

from emcl_train.report.groups import Group
from emcl_train.report.notes import BY_RANK
from emcl_train.report.pages import Page, render
from emcl_train.report.paper_notes import INTRODUCTION, called, sentences_below, stale_marks
from emcl_train.report.paper_table import BY_RANK_OF, Paper, Row, Table
from emcl_train.report.paths import Paths
from emcl_train.report.place import OURS


@dataclass(frozen=True)
class ShownRow:
    """A line of a table, with a cell for each column."""

    name: str
    kind: str
    """"published", "own" or "absent", each perhaps with "inset"; or "second", the rest of the line above it."""
    cells: list[str]


@dataclass(frozen=True)
class ShownTable:
    """A table, and what belongs below it."""

    title: str
    ways: list[str]
    """Names of the groups of columns, empty if there is one without a name."""
    columns: tuple[str, ...]
    """Of each group."""
    labels: list[str]
    """Of each cell of a row, for narrow pages."""
    rows: list[ShownRow]
    marks: list[str]
    notes: list[str]


def paper_page(paper: Paper, groups: Sequence[Group] = (), *, share: bool = False) -> Page:
    """The whole page.

    Args:
        paper: the tables.
        groups: the runs in them, whose paths may be left out.
        share: leave out what leads to the last part of absolute paths.
    """
    sources = {source: number for number, source in enumerate(paper.sources, start=1)}
    values: dict[str, Any] = {
        "generator": Markup(OURS),
        "introduction": INTRODUCTION,
        "tables": [_shown(table, sources) for table in paper.tables],
        "apart": [[one.name, one.system, one.reason] for one in paper.apart],
        "sources": list(sources),
    }
    known = [
        (asdict(run.config), run.environment, run.results, str(run.path.absolute()))
        for group in groups
        for run in group.curves
    ]
    paths = Paths(*known, *(str(group.path.absolute()) for group in groups), leave_out=share)
    notices = [sentence for group in groups for standing in group.standings for sentence in standing.sentences()]
    return render("paper_table.html", values, paths, share=share, scripts=(), notices=notices)


def _shown(table: Table, sources: dict[str, int]) -> ShownTable:
    names = [name for name in table.ways.values() if name]
    labels = [f"{name} {metric}".strip() for name in table.ways.values() for metric in table.columns]
    rows = [
        shown
        for entry in table.entries
        for number, row in enumerate(entry.rows)
        for shown in _lines(row, table, sources, first=number == 0)
    ]
    return ShownTable(table.title, names, table.columns, labels, rows, stale_marks(table), sentences_below(table))


def _lines(row: Row, table: Table, sources: dict[str, int], *, first: bool) -> Iterator[ShownRow]:
    """A row, and under it video→text by best rank where it has it. Of several seeds, deviations stand in the cells."""
    spread = row.kind == "own" and bool(row.deviations)
    cells = [_cell(row, way, metric, spread=spread) for way in table.ways for metric in table.columns]
    kind = row.kind + ("" if first else " inset")
    yield ShownRow(called(row, sources, first=first), kind, cells)

    by_rank = BY_RANK_OF["video_to_text"]
    if by_rank in row.figures:
        of_texts = [_cell(row, by_rank, metric, spread=spread) for metric in table.columns]
        yield ShownRow(BY_RANK, "second", [""] * len(table.columns) + of_texts)


def _cell(row: Row, way: str, metric: str, *, spread: bool) -> str:
    deviation = row.deviations.get(way, {}).get(metric) if spread else None
    return row.cell(way, metric) + ("" if deviation is None else f" ± {deviation:.1f}")
