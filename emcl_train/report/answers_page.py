"""report.html of a run that answers questions."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from emcl_train.report import plots
from emcl_train.report.answers import accuracies_of, beside_published, sentences_of_answers
from emcl_train.report.html import Tile, origin_of
from emcl_train.report.notes import error_of_share
from emcl_train.report.pages import Page, Quoted, render
from emcl_train.report.paths import Paths
from emcl_train.report.settings import settings_and_environment
from emcl_train.runs.folder import Run

SHOWN = 100
"""Questions of each kind on a page; answers.json has them all."""
COLUMNS = ("video", "question", "right answer", "given, best first")


def answers_page(run: Run, *, share: bool = False, notices: Sequence[str] = (), reload: int | None = None) -> Page:
    """The whole page.

    Args:
        run: a finished run, as `load_run` reads it.
        share: leave out what leads to the last part of absolute paths.
        notices: what a reader must know before all else.
        reload: seconds after which the open page reads itself again; None: it does not.
    """
    found = accuracies_of(run.results)
    settings, left_out = settings_and_environment(run.config, run.environment)
    own = [(name, f"{value:.1f}") for name, value in found.lines()]
    wrong = [row for row in run.answers if row["given"][:1] != [row["answer"]]]
    right = [row for row in run.answers if row["given"][:1] == [row["answer"]]]

    values: dict[str, Any] = {
        "name": run.path.resolve().name,
        "config": run.config,
        "results": run.results,
        "asked": found.asked,
        "kept": found.kept,
        "facts": _facts(run),
        "origin": origin_of(run),
        "tiles": _tiles(run),
        "rows": [*own, *((name, f"{value:.1f}") for name, value in beside_published(run.results))],
        "notes": sentences_of_answers(run.results),
        "training": plots.training(run),
        "steps": plots.steps(run),
        "columns": COLUMNS,
        "questions": [
            {"title": title, "number": len(rows), "rows": [_shown(row) for row in rows[:SHOWN]]}
            for title, rows in (("Answered wrong", wrong), ("Answered right", right))
        ],
        "settings": settings,
        "left_out": left_out,
    }
    paths = Paths(asdict(run.config), run.environment, run.results, str(run.path.absolute()), leave_out=share)
    return render("answers.html", values, paths, share=share, notices=notices, reload=reload)


def _facts(run: Run) -> list[str]:
    """The run in a few words each."""
    config = run.config
    return [
        f"{config.data.layout} ({config.data.root})",
        "CLIP with random weights" if config.model.clip == "random" else config.model.clip,
        f"{run.results['answers']} answers",
        "no EMCL" if config.emcl.mode == "off" else "EMCL in the loss of training",
        f"{config.data.num_frames} frames of {config.data.image_size}²",
        f"batch {config.train.batch_size}",
        f"seed {config.train.seed}",
    ]


def _tiles(run: Run) -> list[Tile]:
    """The main figures."""
    found = accuracies_of(run.results)
    error = error_of_share(found.top1_of_kept / 100, found.kept)
    of_chance = f"± {error:.1f} · chance {100 / run.results['answers']:.1f}"
    return [
        Tile("accuracy, kept questions", f"{found.top1_of_kept:.1f}", of_chance),
        Tile("accuracy, all questions", f"{found.top1_of_all:.1f}", f"{found.left_out} of {found.asked} left out"),
        Tile("top-5 accuracy, kept questions", f"{found.top5_of_kept:.1f}", f"of {found.kept} questions"),
    ]


def _shown(row: dict[str, Any]) -> list[Quoted]:
    """The cells of a question, in which a slash begins no path."""
    return [Quoted(row[name]) for name in ("video_id", "question", "answer")] + [Quoted(", ".join(row["given"]))]
