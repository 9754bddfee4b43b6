"""What a run found: a table in the terminal, and report.html, one file that needs nothing beside it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from emcl_train.report.compare import compare, render_comparison_of
from emcl_train.report.groups import load_group, render_group
from emcl_train.report.html import page
from emcl_train.report.terminal import render_comparison, render_table
from emcl_train.runs.files import write_json_atomic, write_text_atomic
from emcl_train.runs.folder import load_run
from emcl_train.runs.lock import making, require_quiet, writing
from emcl_train.terminal import console_of, escaped

__all__ = ["render_group", "render_table", "report_runs", "write_report"]

SHOWN = 3
"""Paths that the terminal names; the page names them all."""


def write_report(run_dir: Path, *, share: bool = False, say: Callable[[str], object] | None = None) -> Path:
    """Write report.html into a run folder and return its path.

    Everything comes from the run folder but the frames of the best and worst retrievals, which are decoded from the
    data set that config.json names; where it is not there any more, the report says so in their place.

    Args:
        run_dir: the folder.
        share: leave absolute paths out.
        say: takes a sentence on the absolute paths that the page carries.

    Raises:
        UserError: the run folder lacks a file, or one cannot be read.
    """
    path = run_dir / "report.html"
    written = page(load_run(run_dir), share=share)
    write_text_atomic(path, written.html)
    if written.paths and say is not None:
        more = f" and {len(written.paths) - SHOWN} more" if len(written.paths) > SHOWN else ""
        say(f"{path} carries absolute paths, which --share leaves out: {', '.join(written.paths[:SHOWN])}{more}")
    return path


def report_runs(
    run_dirs: list[Path], console: Console | None = None, json_path: Path | None = None, *, share: bool = False
) -> list[Path]:
    """Print the table of one run, or of several beside each other, compare them, and write each one's report.html.

    A folder of runs with different seeds counts as one run, of which mean and deviation are printed. Every other run
    is compared with the first one, query by query.

    Args:
        run_dirs: folders of runs, or of runs with different seeds.
        console: where to print.
        json_path: write the comparisons to this file as well.
        share: leave absolute paths out of the pages.

    Returns:
        The pages, one for each run.
    """
    console = console_of(console)

    # Tables: one of all runs, and one for each set of seeds.
    groups = [load_group(path) for path in run_dirs]
    several = [(run.path, run.results) for group in groups for run in group.runs]
    pages = list(dict.fromkeys(path for path, _ in several))
    for path in pages:
        require_quiet(path)  # before anything is printed
    console.print(render_table(several[0][1]) if len(several) == 1 else render_comparison(several))
    for group in groups:
        if len(group.runs) > 1:
            console.print(render_group(group.path, [run.results for run in group.runs]))

    # Every other run against the first.
    comparisons = [(other, compare(groups[0], other)) for other in groups[1:]]
    for other, comparison in comparisons:
        console.print(render_comparison_of(groups[0], other, comparison))
    if json_path is not None:
        first = str(groups[0].path)
        found = [
            {"first": first, "second": str(other.path), "verdict": comparison.verdict} | asdict(comparison)
            for other, comparison in comparisons
        ]
        with making(json_path):
            write_json_atomic(json_path, found)

    carried: list[str] = []
    paths = []
    for path in pages:
        with writing(path):
            paths.append(write_report(path, share=share, say=carried.append))
    for path in paths:
        console.print(f"report: {escaped(path)}", soft_wrap=True, highlight=False)
    for sentence in carried:
        console.print(escaped(sentence), soft_wrap=True, highlight=False)
    return paths
