"""The command report."""

from pathlib import Path

from tyro.conf import Positional

from emcl_train.commands.entry import OF_THE_RUN, Entry, of_function
from emcl_train.commands.output import json_file
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.runs.contents import require_run


def report(
    runs: Positional[list[Path]],
    json: Path | None = None,
    share: bool = False,
    out: Path | None = None,
    watch: bool = False,
    paper_table: bool = False,
) -> int:
    """Write report.html of each run; of several also comparison.html, and a table query by query.

    A run that is still training or was stopped is shown as far as it came.

    Args:
        runs: Folders of training runs; a folder of seeds counts as one. Each is compared with the first.
        json: Write the figures of the runs and their comparisons to this file as well; alone, or with -, print them in
            place of all else.
        share: Leave absolute paths of this machine out of the pages, which others get.
        out: File for the comparison of several runs, in place of comparison.html in the folder that holds them all.
        watch: Write the page of one run anew while it trains, and end with its training.
        paper_table: Print the paper's tables: published rows with their sources, and beside them the runs, if any are
            named, of the same system and protocol. --out is then a page of it, and --json the tables.
    """
    if paper_table:
        return _paper_table(runs, json, share, out, watch)
    if not runs:
        raise UserError("report needs the folder of at least one run, such as runs/shapes")
    for run in runs:
        if not run.is_dir():
            require_run(run)
    if out is not None and len(runs) == 1:
        raise UserError(f"--out {out} is the file of a comparison, and one run was given; name others to compare with")
    if watch:
        return _watch(runs, json, share)

    say_if_ended(lambda: "each run has its earlier report, or a new one that is whole; run the command again")
    from emcl_train.report import report_runs

    with json_file(json) as path:
        report_runs(runs, json_path=path, share=share, out=out)
    return 0


def _paper_table(runs: list[Path], json: Path | None, share: bool, out: Path | None, watch: bool) -> int:
    """Print the paper's tables, with runs or without any."""
    if watch:
        raise UserError(
            "--watch follows one run that trains, and --paper-table prints the paper's; leave out one of them"
        )
    for run in runs:
        if not run.is_dir():
            require_run(run)

    say_if_ended(lambda: "no run was changed; run the command again")
    from emcl_train.report import report_paper

    with json_file(json) as path:
        report_paper(runs, json_path=path, share=share, out=out)
    return 0


def _watch(runs: list[Path], json: Path | None, share: bool) -> int:
    """Follow one run. Returns 0 if it has finished, 1 if it was stopped."""
    if len(runs) > 1:
        raise UserError(
            f"--watch follows one run, got {len(runs)}; start it once for each, such as `emcl-train report {runs[0]} "
            "--watch`, and compare them without --watch"
        )
    if json is not None:
        raise UserError("--json has the comparison of several runs, and --watch follows one; leave out one of them")
    say_if_ended(lambda: f"the page of {runs[0]} is whole, and the run goes on without it; the same command follows it")
    from emcl_train.report import watch

    return 0 if watch(runs[0], share=share) else 1


COMMANDS = {
    "report": Entry(
        "RUN [RUN ...]",
        "write report.html of each run, and compare several in comparison.html; --paper-table: the paper's tables",
        of_function("report", report, elsewhere=OF_THE_RUN),
    ),
}
