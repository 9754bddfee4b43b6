"""Results as a table in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from emcl_train.report.notes import (
    BY_RANK,
    COLUMNS,
    Results,
    chance_of,
    columns_of,
    differences,
    other_code,
    sentences,
)
from emcl_train.report.published import WAYS, published_rows
from emcl_train.runs.origin import sentence_of, what_is_stale


def render_table(results: Results, path: Path | None = None) -> Group:
    """The rows of one run, both directions, and what a reader must know to compare them; for `console.print`.

    Args:
        results: what results.json holds.
        path: the folder that it lies in, whose weights may be others by now; None: it was measured just now.
    """
    columns = columns_of(results)
    table = _empty_table(f"{results.get('recipe', 'run')}, {results['split']} split", columns)
    _add_rows(table, results, columns)

    for row in published_rows(results):
        cells = [row.cell(way, key) for way in WAYS for key in columns]
        table.add_row(Text(f"published: {row.name}"), *cells, style="dim italic")
        if row.video_to_text_by_rank:
            cells = [row.cell("video_to_text_by_rank", key) for key in columns]
            table.add_row(BY_RANK, *[""] * len(columns), *cells, style="dim italic")

    stale = None if path is None else what_is_stale(path, results)
    marks = [] if stale is None else [Text(f"· These figures are {stale}.", style="bold yellow")]
    return Group(table, *marks, *(Text(f"· {sentence}", style="dim") for sentence in sentences(results)))


def render_comparison(runs: Sequence[tuple[Path, Results]]) -> Group:
    """The rows of several runs in one table, and where they are not comparable; for `console.print`."""
    # Runs on different data sets share the columns that most papers give.
    every = {columns_of(results) for _, results in runs}
    columns = every.pop() if len(every) == 1 else COLUMNS
    table = _empty_table(f"{len(runs)} runs", columns)
    below: list[Text] = []
    for path, results in runs:
        name = Text(f"{path} ({results['split']}, {results['gallery']} clips)", style="bold")
        if (stale := what_is_stale(path, results)) is not None:
            name.append(" *", style="bold yellow")
            below.append(Text(f"* {path}: {stale}.", style="bold yellow"))
        table.add_row(name)
        _add_rows(table, results, columns, indent="  ")
        table.add_section()
    warnings = [*differences(runs), *other_code(runs)]
    origins = [f"{path}: {_lowered(sentence_of(results))}" for path, results in runs]
    return Group(
        table,
        *below,
        *(Text(f"· {sentence}", style="yellow") for sentence in warnings),
        *(Text(f"· {sentence}", style="dim") for sentence in origins),
    )


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _empty_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, title_justify="left")
    table.add_column("", overflow="fold", min_width=14)
    for direction, colour in (("T→V", "cyan"), ("V→T", "magenta")):
        for metric in columns:
            table.add_column(f"{direction}\n{metric}", justify="right", no_wrap=True, header_style=colour, min_width=5)
    return table


def _add_rows(table: Table, results: Results, columns: Sequence[str], indent: str = "") -> None:
    """The rows of a run, and below them what a model that knows nothing has."""
    rows = [*results["rows"], chance_of(results)]
    for index, row in enumerate(rows):
        style = "bold" if index == 0 else "dim" if row is rows[-1] else None
        cells = [_cell(row[way], key) for way in ("text_to_video", "video_to_text") for key in columns]
        table.add_row(Text(indent + row["name"]), *cells, style=style)
        by_rank = row.get("video_to_text_by_rank")
        if by_rank:
            by_rank_cells = (_cell(by_rank, key) for key in columns)
            table.add_row(indent + BY_RANK, *[""] * len(columns), *by_rank_cells, style="dim")


def _cell(metrics: dict[str, float], key: str) -> str:
    return f"{metrics[key]:.1f}"
