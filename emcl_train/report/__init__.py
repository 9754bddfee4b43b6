"""What a run found: a table in the terminal, and report.html, one file that needs nothing beside it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.console import Group as Lines
from rich.text import Text

from emcl_train.errors import UserError
from emcl_train.report.compare import Comparison, compare, render_comparison_of
from emcl_train.report.comparison_page import comparison_page, place_of
from emcl_train.report.differences import differing_machines, differing_settings_of, names_of
from emcl_train.report.groups import Group, load_group
from emcl_train.report.paper_page import paper_page
from emcl_train.report.paper_table import as_json, paper_tables
from emcl_train.report.paper_terminal import render_paper
from emcl_train.report.place import require_free
from emcl_train.report.tables import render_comparison, render_group, render_table
from emcl_train.report.watching import watch
from emcl_train.report.write import write_locked, write_report
from emcl_train.runs.files import write_json_atomic
from emcl_train.runs.lock import BusyError, making
from emcl_train.runs.origin import ORIGIN
from emcl_train.terminal import console_of, escaped, warn

__all__ = ["render_group", "render_table", "report_paper", "report_runs", "watch", "write_report"]


def report_runs(
    run_dirs: list[Path],
    console: Console | None = None,
    json_path: Path | None = None,
    *,
    share: bool = False,
    out: Path | None = None,
) -> list[Path]:
    """Print the table of one run, or of several beside each other, compare them, and write each one's report.html.

    A folder of runs with different seeds counts as one run, of which mean and deviation are printed. Every other run
    is compared with the first one, query by query, and comparison.html has that as a page. Runs that are not finished
    are shown as far as they came, which is said first.

    Args:
        run_dirs: folders of runs, or of runs with different seeds.
        console: where to print.
        json_path: write the figures of the runs, and the comparisons, to this file as well.
        share: leave absolute paths out of the pages.
        out: the file for the comparison; None: comparison.html in the folder that holds all runs, or here.

    Returns:
        The pages of the runs.

    Raises:
        UserError: a run is damaged, or runs cannot be compared; another process writes to a finished one.
    """
    console = console_of(console)
    groups = [load_group(path, so_far=True) for path in run_dirs]
    answering = _answer_questions(groups, out)
    place = place_of(groups, out) if len(groups) > 1 and not answering else None

    # First of all what is not finished.
    for group in groups:
        for standing in group.standings:
            for sentence in standing.sentences():
                warn(f"[bold yellow]{escaped(sentence)}[/bold yellow]", console)

    # Tables: one of all runs, and one for each set of seeds.
    several = [(run.path, run.results) for group in groups for run in group.runs]
    if several:
        table = render_table(several[0][1], several[0][0]) if len(several) == 1 else render_comparison(several)
        console.print(table)
    for group in groups:
        if len(group.runs) > 1:
            results = [run.results for run in group.runs]
            console.print(render_group(group.path, results, [run.path for run in group.runs]))

    # What was not started alike, and every other run that has figures against the first that has.
    if len(groups) > 1:
        console.print(render_differing(groups))
    measured = [group for group in groups if group.runs]
    comparisons = [(other, compare(measured[0], other)) for other in measured[1:] if not answering]
    for other, comparison in comparisons:
        console.print(render_comparison_of(measured[0], other, comparison))
    if json_path is not None:
        with making(json_path):
            write_json_atomic(json_path, _as_json(measured, comparisons))

    # Pages. A run that somebody writes to keeps its own; the others are written before that is said.
    carried: list[str] = []
    pages: list[Path] = []
    busy: BusyError | None = None
    for path in dict.fromkeys(run.path for group in groups for run in group.curves):
        try:
            written = write_locked(path, share=share, say=carried.append)
        except BusyError as error:
            busy = busy or error
            continue
        if written is None:
            console.print(f"{escaped(path)} has no page yet: nothing was recorded", soft_wrap=True, highlight=False)
        else:
            pages.append(written)
    for path in pages:
        console.print(f"report: {escaped(path)}", soft_wrap=True, highlight=False)
    if place is not None:
        comparison_page(groups, comparisons, share=share).write(place, carried.append)
        console.print(f"comparison: {escaped(place)}", soft_wrap=True, highlight=False)
    for sentence in carried:
        warn(escaped(sentence), console)
    if busy is not None:
        raise busy
    return pages


def report_paper(
    run_dirs: list[Path],
    console: Console | None = None,
    json_path: Path | None = None,
    *,
    share: bool = False,
    out: Path | None = None,
) -> Path | None:
    """Print the paper's tables, with runs beside the published rows of their system and protocol.

    Args:
        run_dirs: folders of runs, or of runs with different seeds; none: what was published alone.
        console: where to print.
        json_path: write the tables to this file as well.
        share: leave absolute paths out of the page.
        out: the file of the page; None: no page is written.

    Returns:
        The page, if there is one.

    Raises:
        UserError: a run is damaged, or the page would take the place of another file.
    """
    console = console_of(console)
    if out is not None:
        require_free(out, "paper table")
    groups = [load_group(path, so_far=True) for path in run_dirs]
    paper = paper_tables(groups)

    console.print(render_paper(paper))
    if json_path is not None:
        with making(json_path):
            write_json_atomic(json_path, as_json(paper))
    if out is None:
        return None

    carried: list[str] = []
    paper_page(paper, groups, share=share).write(out, carried.append)
    console.print(f"paper table: {escaped(out)}", soft_wrap=True, highlight=False)
    for sentence in carried:
        warn(escaped(sentence), console)
    return out


def render_differing(groups: Sequence[Group]) -> Lines:
    """The settings that are not the same in all runs, a line each; for `console.print`."""
    names = names_of(groups)
    settings = differing_settings_of(groups)
    machines = differing_machines(groups)
    lines = [Text("Settings that differ" if settings else "No setting that matters differs", style="bold")]
    for one in (*settings, *machines):
        values = ", ".join(f"{value} ({name})" for value, name in zip(one.values, names, strict=True))
        lines.append(Text(f"· {one.name}: {values}", style="dim" if one in machines else ""))
    return Lines(*lines)


def _answer_questions(groups: Sequence[Group], out: Path | None) -> bool:
    """Whether the runs answer questions. They stand in one table, and are not compared query by query.

    Raises:
        UserError: some do and others do not, or what is asked for is a comparison.
    """
    kinds = {run.config.answers_questions: group.path for group in groups for run in group.curves}
    if True not in kinds:
        return False
    if False in kinds:
        raise UserError(
            f"{kinds[True]} answers questions and {kinds[False]} is of retrieval, which have no figure in common; "
            f"report them one after the other"
        )
    if out is not None:
        raise UserError(
            f"{kinds[True]} answers questions, and such runs are not compared query by query: leave out --out; "
            f"results.json of each run has its figures"
        )
    return True


def _as_json(measured: Sequence[Group], comparisons: Sequence[tuple[Group, Comparison]]) -> dict[str, object]:
    """Figures of each run that has some, and how each but the first compares with that."""
    runs = [{"run": str(run.path), **run.results} for group in measured for run in group.runs]
    compared = [
        {"first": str(measured[0].path), "second": str(other.path), "verdict": comparison.verdict}
        | {"origins": {str(run.path): run.results.get(ORIGIN) for run in (*measured[0].runs, *other.runs)}}
        | asdict(comparison)
        for other, comparison in comparisons
    ]
    return {"runs": runs, "comparisons": compared}
