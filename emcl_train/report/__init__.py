"""What a run found: a table in the terminal, and report.html, one file that needs nothing beside it."""

from pathlib import Path

from rich.console import Console

from emcl_train.checkpoint import write_text_atomic
from emcl_train.report.html import page
from emcl_train.report.run_folder import load_run
from emcl_train.report.table import render_comparison, render_table

__all__ = ["render_table", "report_runs", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write report.html into a run folder and return its path.

    Everything comes from the run folder but the frames of the best and worst retrievals, which are decoded from the
    data set that config.json names; where it is not there any more, the report says so in their place.

    Raises: UserError where the run folder lacks a file, or one cannot be read.
    """
    path = run_dir / "report.html"
    write_text_atomic(path, page(load_run(run_dir)))
    return path


def report_runs(run_dirs: list[Path], console: Console | None = None) -> list[Path]:
    """Print the table of one run, or of several beside each other, and write each one's report.html."""
    console = console or Console()
    runs = [load_run(run_dir) for run_dir in run_dirs]
    several = [(run.path, run.results) for run in runs]
    console.print(render_table(runs[0].results) if len(runs) == 1 else render_comparison(several))
    paths = [write_report(run_dir) for run_dir in run_dirs]
    for path in paths:
        console.print(f"report: {path}", soft_wrap=True, highlight=False)
    return paths
