"""`report RUN --watch`: the page of a run that another process trains, written anew whenever its records change."""

import time
from pathlib import Path

from rich.console import Console

from emcl_train.report.write import write_locked
from emcl_train.runs.contents import METRICS, require_run
from emcl_train.runs.lock import BusyError
from emcl_train.runs.records import score_of
from emcl_train.runs.standing import Standing, standing_of
from emcl_train.terminal import console_of, escaped

SECONDS = 5.0
"""Between two looks, and between two times that the open page reads itself again."""
REST = 10
"""Times as long as a page took before the next look: the training needs the processor more."""


def watch(run_dir: Path, console: Console | None = None, *, share: bool = False, seconds: float = SECONDS) -> bool:
    """Write a run's page whenever its records change, and print a line for each, until its training has ended.

    Nothing is written that the trainer writes at the same time: it writes report.html at its end alone.

    Args:
        run_dir: the folder of one run.
        console: where to print.
        share: leave absolute paths out.
        seconds: between two looks.

    Returns:
        Whether the run is finished; else it was stopped.

    Raises:
        UserError: the folder holds no run, or a file is damaged.
    """
    console = console_of(console)
    require_run(run_dir)
    shown: object = None
    took = 0.0
    page: Path | None = None
    while True:
        standing = standing_of(run_dir)
        now = _records(run_dir)
        if now != shown or not standing.training:
            begun = time.monotonic()
            page = _write(run_dir, share=share, reload=max(1, round(seconds))) or page
            took = time.monotonic() - begun
            shown = now
            console.print(escaped(_line(standing, page)), soft_wrap=True, highlight=False)
        if not standing.training:
            return standing.finished
        time.sleep(max(seconds, REST * took))


def _write(run_dir: Path, *, share: bool, reload: int) -> Path | None:
    """The page, unless the run has nothing to show, or somebody who works on the finished run will write it."""
    try:
        return write_locked(run_dir, share=share, reload=reload)
    except BusyError:
        return None


def _line(standing: Standing, page: Path | None) -> str:
    """How far the run came, and where its page is."""
    clock = time.strftime("%H:%M:%S")
    at = "no page yet" if page is None else str(page)
    if standing.finished:
        return f"{clock}  finished: {standing.how_far}  {at}"
    if not standing.training:
        return f"{clock}  stopped: {standing.how_far}; `{standing.resume}` goes on with it  {at}"
    recall = ""
    if standing.last is not None:
        clips = standing.last.get("clips")
        by_chance = f" (chance {100 / clips:.1f})" if isinstance(clips, int) and clips > 0 else ""
        name = "accuracy" if "accuracies" in standing.last else "R@1"
        recall = f"  {name} {score_of(standing.last):.1f}{by_chance} after epoch {standing.last['epoch']}"
    return f"{clock}  {standing.how_far}{recall}  {at}"


def _records(run_dir: Path) -> object:
    """What tells the records from those that have one line more."""
    try:
        status = (run_dir / METRICS).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
