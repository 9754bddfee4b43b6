"""Where the files of an evaluation go: figures that somebody may have quoted are never replaced by others.

Those of a run's own settings on its test split lie in the run's folder. Those of other settings lie in a folder inside
it that is named for what differs, `evaluations/em-block-32`, or where the caller wants them. Such a folder has the
run's own records beside its results, so that `emcl-train report` takes it as it takes a run.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.recipes import in_mode
from emcl_train.runs.checksums import forget, note_copy
from emcl_train.runs.contents import (
    ANSWERS,
    EMBEDDINGS,
    EVALUATION,
    OF_ANSWERING,
    OF_EVALUATION,
    OF_TRAINING,
    QUERIES,
    REPORT,
    RESULTS,
    save_config,
)
from emcl_train.runs.files import (
    as_json,
    json_if_whole,
    remove,
    require_no_link,
    whole_folder,
    write_json_atomic,
    write_text_atomic,
)
from emcl_train.runs.lock import writing
from emcl_train.runs.places import EVALUATIONS
from emcl_train.runs.state import save_tensors_atomic
from emcl_train.runs.together import together

BEFORE = "before-the-last-epoch"
"""Folder for figures that were in the run's own when its training ended with others."""
NOT_MEASURED = ("eval.batch_size",)
"""Settings of an evaluation that change none of its figures."""
FIGURES = ("split", "queries", "gallery", "rows")
"""What two results.json must have in common to be of one and the same evaluation."""
FIGURES_OF_ANSWERS = ("split", "answers", "figures")
"""The same of a run that answers questions."""
LONGEST_NAME = 120
KEPT = (REPORT, *dict.fromkeys((*OF_EVALUATION, *OF_ANSWERING)))
"""What moves aside with figures."""


@dataclass(frozen=True)
class Figures:
    """What was measured on a split: results.json, and what lies beside it."""

    results: dict[str, Any]

    def write_beside(self, folder: Path) -> None:
        """Write what belongs to results.json."""

    def write(self, run_dir: Path, folder: Path, config: RunConfig, *, new: bool = False) -> None:
        """Write the files into `folder`, and if that is not the run's own, copies of the run's records too.

        They come about together, whatever kills the process.

        Args:
            run_dir: the run's own folder.
            folder: where the files go.
            config: the settings that were measured with.
            new: the folder must not be there.
        """
        if new or not folder.exists():
            with whole_folder(folder) as partial:
                self._write(run_dir, partial, config)
        elif folder == run_dir:
            with together(folder):
                if not same_figures(folder, self.results):
                    remove(folder / REPORT)
                self._write(run_dir, folder, config)
        else:
            with writing(folder), together(folder):
                self._write(run_dir, folder, config)

    def _write(self, run_dir: Path, folder: Path, config: RunConfig) -> None:
        if folder != run_dir:
            _copy_records(run_dir, folder)
            save_config(folder, config)
        self.write_beside(folder)
        write_json_atomic(folder / RESULTS, self.results)


@dataclass(frozen=True)
class Evaluation(Figures):
    """Retrieval, with queries.json and embeddings.safetensors."""

    queries: dict[str, list[str]]
    tensors: dict[str, Tensor]

    def write_beside(self, folder: Path) -> None:
        save_tensors_atomic(folder / EMBEDDINGS, self.tensors)
        write_json_atomic(folder / QUERIES, self.queries)


@dataclass(frozen=True)
class AnsweredQuestions(Figures):
    """Answers to questions, with answers.json."""

    answers: list[dict[str, Any]]
    """A row for each kept question."""

    def write_beside(self, folder: Path) -> None:
        write_json_atomic(folder / ANSWERS, self.answers)


def set_aside(run_dir: Path, results: dict[str, Any] | None = None) -> Path | None:
    """Make room in a run's folder for the figures that its training ends with.

    Others may lie there: of an evaluation before the last epoch. They move to a folder of their own, or are copied
    there if those that need the room take their place right afterwards.

    Args:
        run_dir: the run's own folder.
        results: the figures that need room; None: any, which are yet to come.

    Returns:
        The folder of the others; None if there are none.
    """
    if not (run_dir / RESULTS).is_file() or (results is not None and same_figures(run_dir, results)):
        return None

    require_no_link(run_dir, EVALUATIONS)
    places = (
        run_dir / EVALUATIONS / name
        for name in itertools.chain([BEFORE], (f"{BEFORE}-{number}" for number in itertools.count(2)))
    )
    there = (run_dir / RESULTS).read_bytes()
    for folder in places:
        if not os.path.lexists(folder):
            with whole_folder(folder) as partial:
                _copy_records(run_dir, partial)
                for name in KEPT:
                    if (run_dir / name).is_file():
                        shutil.copyfile(run_dir / name, partial / name)
                if (partial / EMBEDDINGS).is_file():
                    note_copy(run_dir / EMBEDDINGS, partial / EMBEDDINGS)
            break
        # An earlier try was ended between the two steps.
        if (folder / RESULTS).is_file() and (folder / RESULTS).read_bytes() == there:
            break

    if results is not None:
        return folder
    with together(run_dir):
        for name in KEPT:
            remove(run_dir / name)
        forget(run_dir / EMBEDDINGS)
    return folder


def _copy_records(run_dir: Path, folder: Path) -> None:
    for name in OF_TRAINING:
        if (run_dir / name).is_file():
            write_text_atomic(folder / name, (run_dir / name).read_text(encoding="utf-8"))
    write_json_atomic(folder / EVALUATION, {"run": run_dir})


def what_differs(run: RunConfig, asked: RunConfig, split: str) -> str:
    """The settings of an evaluation that are not the run's, as the name of a folder; "" if there are none.

    Settings that another `emcl.mode` brings along are not named.
    """
    by_itself = in_mode(run, asked.emcl.mode)
    usual = {**_settings("eval", by_itself.eval), **_settings("emcl", by_itself.emcl)}
    usual |= {"emcl.mode": run.emcl.mode, "split": "test"}
    found = {**_settings("eval", asked.eval), **_settings("emcl", asked.emcl), "split": split}

    parts = [
        f"{name.removeprefix('eval.').replace('_', '-')}-{str(value).lower()}"
        for name, value in found.items()
        if name not in NOT_MEASURED and value != usual[name]
    ]
    name = "_".join(parts)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def place_for(results: dict[str, Any], run_dir: Path, name: str, again: str) -> tuple[Path, Path | None]:
    """The folder for the results of an evaluation: the first in which no other figures lie.

    Args:
        results: the figures.
        run_dir: the run's own folder.
        name: `what_differs`.
        again: name for results of the run's own settings, if the run's folder has others.

    Returns:
        The folder; the last one that was passed over for its figures, or None.

    Raises:
        UserError: a folder inside the run's is a link.
    """
    passed_over = None
    for folder in _places(run_dir, name, again):
        if folder != run_dir:
            require_no_link(run_dir, EVALUATIONS, folder.name)
        if not (folder / RESULTS).is_file() or same_figures(folder, results):
            return folder, passed_over
        passed_over = folder
    raise AssertionError("numbers do not end")


def same_figures(folder: Path, results: dict[str, Any]) -> bool:
    """Whether a folder's results.json has these figures, or is damaged, so that nothing is lost with it."""
    names = FIGURES if "rows" in results else FIGURES_OF_ANSWERS
    there = json_if_whole(folder / RESULTS)
    if not isinstance(there, dict) or not there.keys() >= set(names):
        return True

    ours = as_json(results)
    return all(there[key] == ours[key] for key in names)


def _places(run_dir: Path, name: str, again: str) -> Iterator[Path]:
    if not name:
        yield run_dir
    inside = run_dir / EVALUATIONS
    yield inside / (name or again)
    yield from (inside / f"{name or again}-{number}" for number in itertools.count(2))


def _settings(section: str, config: Any) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in asdict(config).items()}
