"""The paper's tables in the terminal, no wider than 80 columns."""

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from emcl_train.report.notes import BY_RANK
from emcl_train.report.paper_notes import INTRODUCTION, called, sentences_below, stale_marks
from emcl_train.report.paper_table import BY_RANK_OF, Paper, Row, Table

COLOURS = {"T→V": "cyan", "V→T": "magenta"}
STYLES = {"published": None, "own": "bold", "absent": "dim"}


def render_paper(paper: Paper) -> Lines:
    """All tables, what belongs below each, the runs that stand apart, and the sources; for `console.print`."""
    sources = {source: number for number, source in enumerate(paper.sources, start=1)}
    parts: list[RenderableType] = [Text(INTRODUCTION, style="dim")]
    for table in paper.tables:
        parts += [_heading(table.title), _rendered(table, sources)]
        parts += [Text(f"* {mark}", style="bold yellow") for mark in stale_marks(table)]
        parts += [Text(f"· {sentence}", style="dim") for sentence in sentences_below(table)]

    if paper.apart:
        parts.append(_heading("Runs that no published row can stand beside"))
        parts += [Text(f"· {one.name} ({one.system}): {one.reason}.", style="yellow") for one in paper.apart]
    parts.append(_heading("Sources"))
    parts += [Text(f"[{number}] {source}", style="dim") for source, number in sources.items()]
    return Lines(*parts)


def _heading(text: str) -> Lines:
    """A title behind an empty line."""
    return Lines(Text(""), Text(text, style="bold"))


def _rendered(table: Table, sources: dict[str, int]) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    shown.add_column("", overflow="fold", min_width=14)
    for name in table.ways.values():
        for metric in table.columns:
            title = f"{name}\n{metric}" if name else metric
            shown.add_column(title, justify="right", no_wrap=True, header_style=COLOURS.get(name), min_width=5)

    for entry in table.entries:
        for number, row in enumerate(entry.rows):
            _add(shown, row, table, sources, first=number == 0)
    return shown


def _add(shown: RichTable, row: Row, table: Table, sources: dict[str, int], *, first: bool) -> None:
    """A row, and under it deviations and video→text by best rank where it has them."""
    cells = [row.cell(way, metric) for way in table.ways for metric in table.columns]
    inset = "" if first else "  "
    shown.add_row(Text(inset + called(row, sources, first=first)), *cells, style=STYLES[row.kind])
    if row.kind == "own" and row.deviations:
        spread = [_deviation(row, way, metric) for way in table.ways for metric in table.columns]
        shown.add_row(Text(f"  ± of {len(row.seeds)} seeds"), *spread, style="dim")

    by_rank = BY_RANK_OF["video_to_text"]
    if by_rank in row.figures:
        empty = [""] * len(table.columns)
        shown.add_row(f"  {BY_RANK}", *empty, *(row.cell(by_rank, key) for key in table.columns), style="dim")


def _deviation(row: Row, way: str, metric: str) -> str:
    found = row.deviations.get(way, {})
    return f"{found[metric]:.1f}" if metric in found else ""
