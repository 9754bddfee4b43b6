"""The tables of runs in the terminal, whichever their task is."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group as Lines

from emcl_train.report import answers, groups, terminal
from emcl_train.report.answers import are_answers
from emcl_train.report.notes import Results


def render_table(results: Results, path: Path | None = None) -> Lines:
    """What one run found; for `console.print`.

    Args:
        results: what results.json holds.
        path: the folder that it lies in, whose weights may be others by now; None: it was measured just now.
    """
    return answers.render_answers(results, path) if are_answers(results) else terminal.render_table(results, path)


def render_comparison(runs: Sequence[tuple[Path, Results]]) -> Lines:
    """Several runs of one task in one table; for `console.print`."""
    together = answers.render_answers_beside if are_answers(runs[0][1]) else terminal.render_comparison
    return together(runs)


def render_group(path: Path, results: Sequence[Results], folders: Sequence[Path] = ()) -> Lines:
    """Runs with different seeds as mean ± standard deviation; for `console.print`.

    Args:
        path: the folder of the runs.
        results: of each run.
        folders: of each run, where its weights may be others by now; none: all were measured just now.
    """
    summed_up = answers.render_answers_group if are_answers(results[0]) else groups.render_group
    return summed_up(path, results, folders)
