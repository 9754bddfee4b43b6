"""The command index."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from emcl_train.commands.entry import Entry, in_processes, of_function
from emcl_train.commands.output import json_result
from emcl_train.endings import say_if_ended
from emcl_train.extras import require_packages
from emcl_train.runs.machine import is_first_process
from emcl_train.search.ways import Way


def index(
    folders: Positional[tuple[Path, ...]] = (),
    *,
    out: Annotated[str, tyro.conf.arg(metavar="LIBRARY")],
    model: str | None = None,
    cut: Way = "auto",
    piece: float | None = None,
    refine: Path | None = None,
    forget: bool = False,
    json: Path | None = None,
) -> int:
    """Bring a library of moments up to date with the videos in folders, or make it.

    Only what is new or changed is embedded. Kill it whenever you like: the next one goes on. Files that were moved keep
    their moments, deleted ones leave, damaged ones are listed. Without FOLDER, the library's own folders are looked at.
    Large folders: `torchrun --nproc-per-node N -m emcl_train index ...`.

    Args:
        folders: Folders of videos, beside those that the library knows; or of shards that `embed --shards` wrote with
            the library's model, whose rows are taken over.
        out: The library: a folder, or an address such as s3://bucket/library.
        model: The folder of a run, or a CLIP's folder or name on the hub; None: the one that made the library.
        cut: Into shots, which PySceneDetect finds, or into pieces of one length; "auto" of a new library is shots where
            it is installed.
        piece: Seconds of a piece (4); a new library for which it is given is cut into pieces.
        refine: Text file with queries of earlier days, or captions of other videos, a line each: a bank. The library is
            then searched by refined rows.
        forget: Take out the files of folders that are gone or have become empty.
        json: Write what was done to this file; alone, or with -, print it in place of all else.

    Returns:
        1 if files are damaged or could not be read, else 0.
    """
    require_packages("search")
    say_if_ended(lambda: f"what was embedded is in {out}; run the command again to go on")
    from emcl_train.search.indexing import Asked

    asked = Asked(out, folders, model, cut, piece, refine, forget)
    return in_processes(lambda: _run(asked, json))


def _run(asked, json: Path | None) -> int:  # type: ignore[no-untyped-def]
    from emcl_train.search.indexing import index as bring_up_to_date
    from emcl_train.search.outcome import print_report
    from emcl_train.search.tables import MOMENTS, Tables

    with json_result(json if is_first_process() else None) as result:
        report = bring_up_to_date(asked)
        if not is_first_process():
            return 0
        moments = Tables(asked.out).open(MOMENTS).count_rows()
        print_report(report, asked.out, moments)
        result({**report.as_json(), "library": asked.out, "moments_in_all": moments})
    return 1 if report.damaged or report.trouble else 0


COMMANDS = {
    "index": Entry(
        "FOLDER... --out LIBRARY",
        "cut one's own videos into moments and embed them, to be searched",
        of_function("index", index),
        in_processes=True,
        library=lambda arguments: "--out",
    ),
}
