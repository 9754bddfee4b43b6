"""How far a run has come: finished, still training, or stopped, and the command that goes on with it.

Nothing here needs torch, and nothing is written: a run may be looked at while another process trains it.
"""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.runs.contents import METRICS, RESULTS, load_config, load_environment, run_of
from emcl_train.runs.files import json_if_whole
from emcl_train.runs.finished import BEGUN, is_finished
from emcl_train.runs.lock import Writer, writer_of
from emcl_train.runs.records import ACCURACY, read_records, score_of


@dataclass(frozen=True)
class Standing:
    """How far a run has come."""

    run_dir: Path
    finished: bool
    """Or an evaluation, which says itself of what."""
    writer: Writer | None
    """Who trains or writes there now."""
    step: int
    """Steps done, as the records say."""
    steps: int | None
    """In all; None if it is not known."""
    epoch: int
    """Which the last step was of."""
    epochs: int
    """In all."""
    last: dict[str, Any] | None
    """The last validation."""

    @property
    def training(self) -> bool:
        """Whether a process goes on with it now."""
        return not self.finished and self.writer is not None

    @property
    def ending(self) -> bool:
        """Whether it has done all its steps, and whoever trains it measures and writes its page."""
        return self.training and self.steps is not None and self.step >= self.steps

    @property
    def how_far(self) -> str:
        """How far it came, in a few words."""
        if not self.step:
            return "before its first step" + (f" of {self.steps}" if self.steps else "")
        of_steps = f" of {self.steps}" if self.steps else ""
        return f"epoch {self.epoch} of {self.epochs}, step {self.step}{of_steps}"

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return f"emcl-train resume {shlex.quote(str(self.run_dir))}"

    def sentences(self) -> list[str]:
        """What a reader must know before all figures; nothing of a finished run."""
        if self.finished:
            return []
        ended = self.steps is not None and self.step >= self.steps
        if self.training:
            doing = "all steps are done, its figures are being measured" if ended else "what follows is so far"
            said = [
                f"{self.run_dir} is still training: {self.how_far} ({self.writer}); {doing}. Should it stop, "
                f"`{self.resume}` goes on with it."
            ]
        else:
            missing = "; its figures are not complete" if ended else ""
            said = [f"{self.run_dir} was stopped: {self.how_far}{missing}. `{self.resume}` goes on with it."]
        if self.last is not None:
            split = "test" if self.last.get("split") == "test" else "validation"
            said.append(f"Last {split}, after epoch {self.last['epoch']}: {_figures(self.last)}.")
        return said


def standing_of(run_dir: Path) -> Standing:
    """How far the run in a folder has come.

    Raises:
        UserError: the folder holds no run, or a file that says how far it came is damaged.
    """
    config = load_config(run_dir)
    writer = writer_of(run_dir)
    # Whoever trains asks for a report when all but the mark is there.
    ending = writer is not None and writer.is_this_process and (run_dir / RESULTS).is_file()
    finished = run_of(run_dir) is not None or ending or is_finished(run_dir)

    records = read_records(run_dir / METRICS) if (run_dir / METRICS).is_file() else []
    trained = [one for one in records if one["kind"] == "train" and _is_count(one.get("step"))]
    validations = [one for one in records if one["kind"] == "validation" and _is_validation(one)]
    steps = _steps(run_dir, config, validations)
    per_epoch = steps[0]
    total = steps[1]
    epochs = math.ceil(total / per_epoch) if total and per_epoch else config.train.epochs
    return Standing(
        run_dir,
        finished,
        writer,
        step=max((one["step"] for one in trained), default=0),
        steps=total,
        epoch=max((one["epoch"] for one in trained if _is_count(one.get("epoch"))), default=0),
        epochs=epochs,
        last=validations[-1] if validations else None,
    )


def _steps(run_dir: Path, config: RunConfig, validations: list[dict[str, Any]]) -> tuple[int | None, int | None]:
    """Steps of an epoch, and in all; None where nothing says it."""
    try:
        per_epoch = load_environment(run_dir).get("steps_per_epoch")
    except UserError:  # whoever shows it says so
        per_epoch = None
    if not _is_count(per_epoch) or not per_epoch:  # of an earlier version: a validation follows each epoch
        first = validations[0] if validations else {}
        known = _is_count(first.get("step")) and _is_count(first.get("epoch")) and first["epoch"] > 0
        per_epoch = first["step"] // first["epoch"] if known else None
    if per_epoch:
        every = config.train.epochs * per_epoch
        return per_epoch, every if config.train.max_steps is None else min(every, config.train.max_steps)

    begun = json_if_whole(run_dir / BEGUN)
    total = begun.get("steps") if isinstance(begun, dict) else None
    return None, total if _is_count(total) else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _figures(validation: dict[str, Any]) -> str:
    """What a sentence says of a validation."""
    if "accuracies" in validation:
        questions = validation.get("questions")
        of_questions = f", of {questions} questions" if _is_count(questions) else ""
        return f"accuracy {score_of(validation):.1f}{of_questions}"
    clips = validation.get("clips")
    by_chance = f" (chance {100 / clips:.1f}, of {clips} clips)" if _is_count(clips) and clips else ""
    return f"R@1 text→video {score_of(validation):.1f}, video→text {validation['video_to_text']['R@1']:.1f}{by_chance}"


def _is_validation(record: dict[str, Any]) -> bool:
    """Whether a record has what a sentence says of it; others are named when the run is read."""
    accuracies = record.get("accuracies")
    if isinstance(accuracies, dict):
        return _is_count(record.get("epoch")) and type(accuracies.get(ACCURACY)) in (int, float)
    recalls = [record.get(way) for way in ("text_to_video", "video_to_text")]
    numbers = [one.get("R@1") if isinstance(one, dict) else None for one in recalls]
    return _is_count(record.get("epoch")) and all(type(one) in (int, float) for one in numbers)
