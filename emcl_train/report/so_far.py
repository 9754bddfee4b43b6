"""The page of a run that has no figures yet: how far it came, its curves, and its settings."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from emcl_train.config import flattened
from emcl_train.report import plots
from emcl_train.report.pages import Page, render
from emcl_train.report.paths import Paths
from emcl_train.report.settings import settings_of
from emcl_train.runs.folder import Run


def page_so_far(run: Run, *, share: bool = False, notices: Sequence[str] = (), reload: int | None = None) -> Page:
    """The page.

    Args:
        run: as `load_so_far` reads it.
        share: leave out what leads to the last part of absolute paths.
        notices: how far the run came.
        reload: seconds after which the open page reads itself again; None: it does not.
    """
    settings, left_out = settings_of(run.config)
    values: dict[str, Any] = {
        "name": run.path.resolve().name,
        "recipe": run.config.recipe,
        "task": "Video question answering" if run.config.answers_questions else "Text–video retrieval",
        "training": plots.training(run),
        "steps": plots.steps(run),
        "settings": {**settings, "environment": flattened(run.environment)},
        "left_out": left_out,
    }
    paths = Paths(asdict(run.config), run.environment, str(run.path.absolute()), leave_out=share)
    return render("so_far.html", values, paths, share=share, notices=notices, reload=reload)
