"""Results as a table in the terminal, and the sentences that belong under any table of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from emcl_train.report.published import published_rows, published_sentences

Results = dict[str, Any]

COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
ACTIVITYNET_COLUMNS = ("R@1", "R@5", "R@50", "MdR", "MnR")
BY_RANK = "↳ by best rank"


def columns_of(results: Results) -> tuple[str, ...]:
    """The metrics that the literature gives for this data set."""
    return ACTIVITYNET_COLUMNS if results.get("protocol", {}).get("layout") == "activitynet" else COLUMNS


def render_table(results: Results) -> Group:
    """The rows of one run, both directions, and what a reader must know to compare them; for `console.print`."""
    columns = columns_of(results)
    table = _empty_table(f"{results.get('recipe', 'run')}, {results['split']} split", columns)
    _add_rows(table, results, columns)
    for row in published_rows(results):
        cells = [_published_cell(row.text_to_video, key) for key in columns]
        cells += [_published_cell(row.video_to_text, key) for key in columns]
        table.add_row(Text(f"published: {row.name}"), *cells, style="dim italic")
    return Group(table, *(Text(f"· {sentence}", style="dim") for sentence in sentences(results)))


def render_comparison(runs: Sequence[tuple[Path, Results]]) -> Group:
    """The rows of several runs in one table, and where they are not comparable; for `console.print`."""
    every = {columns_of(results) for _, results in runs}
    columns = every.pop() if len(every) == 1 else COLUMNS
    table = _empty_table(f"{len(runs)} runs", columns)
    for path, results in runs:
        table.add_row(Text(f"{path} ({results['split']}, {results['gallery']} clips)", style="bold"))
        _add_rows(table, results, columns, indent="  ")
        table.add_section()
    return Group(table, *(Text(f"· {sentence}", style="yellow") for sentence in differences(runs)))


def sentences(results: Results) -> list[str]:
    """What belongs under the table of a run."""
    queries, gallery = results["queries"], results["gallery"]
    several = queries > gallery
    lines = [
        f"T→V text→video: {queries} captions against {gallery} clips. V→T video→text: {gallery} clips against "
        + (
            f"{gallery} sets of captions, each by its most similar one (best similarity); the line below "
            f"each ranks a clip's best caption among all {queries} captions (best rank)."
            if several
            else f"{queries} captions, one per clip."
        ),
        f"Ties take the mean rank. One standard error of T→V R@1 is {standard_error(results):.1f} points.",
        *_where_em_runs(results),
        f"Weights chosen by {results['selection']}.",
    ]
    lines += [f"{row['name']}: {row['note']}." for row in results["rows"] if row.get("note")]
    left_out = results.get("left_out", {})
    if left_out:
        named = "; ".join(f"{name} ({reason})" for name, reason in list(left_out.items())[:5])
        more = f"; and {len(left_out) - 5} more, see results.json" if len(left_out) > 5 else ""
        plural = "clip was" if len(left_out) == 1 else "clips were"
        lines.append(f"{len(left_out)} {plural} left out: {named}{more}.")
    return lines + list(results.get("notes", [])) + published_sentences(results)


def differences(runs: Sequence[tuple[Path, Results]]) -> list[str]:
    """Where runs differ in what was measured, so that their figures must not be compared."""
    facts = {
        "split": "split",
        "queries": "captions",
        "gallery": "clips",
        "em_block": "EM block",
        "sampler": "video sampler",
        "sampling": "sampled frames",
        "decoder": "decoder",
        "compression": "compression of the videos",
    }
    lines = []
    for key, name in facts.items():
        values = [results.get(key) for _, results in runs]
        if len(set(map(str, values))) > 1:
            each = ", ".join(f"{path.name}: {value}" for (path, _), value in zip(runs, values, strict=True))
            lines.append(f"Not measured alike: {name} ({each}).")
    return lines


def standard_error(results: Results) -> float:
    """Of the first row's text→video R@1 in points, as a share of that many independent queries."""
    return error_of_share(results["rows"][0]["text_to_video"]["R@1"] / 100, results["queries"])


def error_of_share(share: float, queries: int) -> float:
    """In points. Of none, or all, of the queries it is that of one more right and one more wrong, since it is not 0."""
    if share in (0.0, 1.0):
        share = (share * queries + 1) / (queries + 2)
    return 100 * math.sqrt(share * (1 - share) / queries)


def _empty_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, title_justify="left")
    table.add_column("", overflow="fold", min_width=14)
    for direction, colour in (("T→V", "cyan"), ("V→T", "magenta")):
        for metric in columns:
            table.add_column(f"{direction}\n{metric}", justify="right", no_wrap=True, header_style=colour, min_width=5)
    return table


def _add_rows(table: Table, results: Results, columns: Sequence[str], indent: str = "") -> None:
    for index, row in enumerate(results["rows"]):
        style = "bold" if index == 0 else None
        cells = [_cell(row[way], key) for way in ("text_to_video", "video_to_text") for key in columns]
        table.add_row(Text(indent + row["name"]), *cells, style=style)
        by_rank = row.get("video_to_text_by_rank")
        if by_rank:
            by_rank_cells = (_cell(by_rank, key) for key in columns)
            table.add_row(indent + BY_RANK, *[""] * len(columns), *by_rank_cells, style="dim")


def _cell(metrics: dict[str, float], key: str) -> str:
    return f"{metrics[key]:.1f}"


def _published_cell(metrics: dict[str, float], key: str) -> str:
    return f"{metrics[key]:.1f}" if key in metrics else "–"


def _where_em_runs(results: Results) -> list[str]:
    block = results["em_block"]
    if results.get("emcl", {}).get("mode") == "off":
        return []
    if block is None:
        return ["EM runs over all pairs at once."]
    return [f"EM runs in blocks of {block} texts × {block} clips, in dataset order."]
