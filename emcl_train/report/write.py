"""A run's page in its folder, also while another process trains it."""

from collections.abc import Callable
from pathlib import Path

from emcl_train.report.answers_page import answers_page
from emcl_train.report.html import page
from emcl_train.report.so_far import page_so_far
from emcl_train.runs.checksums import TRIES, identity_of
from emcl_train.runs.contents import CONFIG, FINISHED, METRICS, REPORT, RESULTS
from emcl_train.runs.files import write_text_atomic
from emcl_train.runs.folder import Run, load_run, load_so_far
from emcl_train.runs.lock import writing
from emcl_train.runs.origin import what_is_stale
from emcl_train.runs.standing import Standing, standing_of


def write_report(
    run_dir: Path, *, share: bool = False, say: Callable[[str], object] | None = None, reload: int | None = None
) -> Path:
    """Write report.html into a run folder and return its path.

    Everything comes from the run folder but the frames of clips, which are decoded from the data set that config.json
    names; where it is not there any more, the report says so in their place. The page of a run that is not finished
    says so first.

    Args:
        run_dir: the folder.
        share: leave absolute paths out.
        say: takes a sentence on the absolute paths that the page carries.
        reload: seconds after which the open page of a run that is still training reads itself again.

    Raises:
        UserError: the run folder lacks a file, or one cannot be read.
    """
    path = run_dir / REPORT
    for _ in range(TRIES):
        before = _figures(run_dir)
        standing = standing_of(run_dir) if (run_dir / CONFIG).is_file() else None
        if standing is not None and standing.ending and path.is_file():
            return path  # whoever trains writes it at this very time
        seconds = reload if standing is not None and standing.training else None
        if standing is not None and not standing.finished and before[0] is None:
            written = page_so_far(load_so_far(run_dir), share=share, notices=standing.sentences(), reload=seconds)
        else:
            run = load_run(run_dir)
            shown = answers_page if run.config.answers_questions else page
            written = shown(run, share=share, notices=_notices(run, standing), reload=seconds)
        # A training that ended meanwhile writes its own page, before or after this one would take its place.
        if _figures(run_dir) != before:
            continue
        write_text_atomic(path, written.html)
        if _figures(run_dir) == before:
            break

    written.say_paths(path, say)
    return path


def write_locked(
    run_dir: Path, *, share: bool = False, say: Callable[[str], object] | None = None, reload: int | None = None
) -> Path | None:
    """The same under the folder's lock; of a run that is not finished without it, since whoever trains it has it.

    The trainer writes report.html at its end alone, and a page takes the place of another as a whole.

    Returns:
        The page; None where there is nothing to show yet.
    """
    standing = standing_of(run_dir) if (run_dir / CONFIG).is_file() else None
    if standing is None or standing.finished:
        with writing(run_dir):
            return write_report(run_dir, share=share, say=say, reload=reload)
    # Before the first record the folder is one that training may begin in: a page would be in its way.
    metrics = run_dir / METRICS
    if not (metrics.is_file() and metrics.stat().st_size):
        return None
    if standing.ending:
        return run_dir / REPORT if (run_dir / REPORT).is_file() else None
    return write_report(run_dir, share=share, say=say, reload=reload)


def _notices(run: Run, standing: Standing | None) -> list[str]:
    stale = what_is_stale(run.path, run.results)
    said = standing.sentences() if standing is not None else []
    return said + ([] if stale is None else [f"These figures are {stale}."])


def _figures(run_dir: Path) -> tuple[tuple[int, ...] | None, ...]:
    """What tells the figures of a run, and the mark of its end, from those that take their place; None: not there."""
    found: list[tuple[int, ...] | None] = []
    for name in (RESULTS, FINISHED):
        try:
            found.append(identity_of(run_dir / name))
        except OSError:
            found.append(None)
    return tuple(found)
