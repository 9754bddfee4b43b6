"""Whether a run is finished: what the mark says that its training writes last, not that figures lie in its folder.

`finished.json` holds the epochs and steps that were trained, and the checksum of the weights. Runs of versions that
wrote none count as finished if they have results and their last step is the planned one. Nothing here needs torch.
"""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from emcl_train.errors import UserError
from emcl_train.runs.checksums import checksum_of, read_checksums, say_without_checksums
from emcl_train.runs.contents import (
    FINISHED,
    METRICS,
    RESULTS,
    STATE,
    WEIGHTS,
    load_config,
    load_environment,
    run_of,
)
from emcl_train.runs.files import json_if_whole, read_json, write_json_atomic
from emcl_train.runs.records import epoch_in, read_records, selection_of
from emcl_train.terminal import escaped, say

ENDS_WITH = "ends_with"
"""In environment.json, the name of the file that training writes last; absent in runs of versions without one."""
EPOCH = "epoch"
"""In the metadata of a run's weights, the epoch that they are of; absent in runs of earlier versions."""
BEGUN = "state/begun.json"
"""Says that a training has begun and no state of it was saved yet."""


def mark_finished(run_dir: Path, *, epochs: int, steps: int) -> None:
    """Write the mark, when everything else of a run is in its place.

    Args:
        run_dir: the run's folder.
        epochs: that were trained.
        steps: likewise.
    """
    mark = {"epochs": epochs, "steps": steps, "weights": checksum_of(run_dir / WEIGHTS)}
    write_json_atomic(run_dir / FINISHED, mark)


def read_mark(run_dir: Path) -> dict[str, Any] | None:
    """The mark of a run; None if it has none.

    Raises:
        UserError: it is damaged.
    """
    path = run_dir / FINISHED
    if not path.exists():
        return None
    return dict(read_json(path, f"remove it, and let `emcl-train resume {run_dir}` write it again", keys=()))


def is_finished(run_dir: Path) -> bool:
    """Whether a run's training has ended and its own figures are in their place. What an older run lacks is said.

    Raises:
        UserError: a file that says so is damaged.
    """
    mark = read_mark(run_dir)
    finished = mark is not None or _ended_before_there_were_marks(run_dir)
    if finished and "weights" not in (mark or {}) and WEIGHTS not in read_checksums(run_dir):
        say_without_checksums(run_dir)
    return finished


def _ended_before_there_were_marks(run_dir: Path) -> bool:
    if not (run_dir / RESULTS).is_file() or ENDS_WITH in load_environment(run_dir):
        return False

    try:
        records = read_records(run_dir / METRICS)
    except (OSError, UserError):  # going on with the run cuts off what cannot be read
        return False
    steps = [step for record in records if type(step := record.get("step")) is int]
    ends = [step for record in records if record["kind"] == "validation" and type(step := record.get("step")) is int]
    if not ends:
        return False

    # An epoch has as many steps as were done before the first validation.
    train = load_config(run_dir).train
    planned = min(train.epochs * ends[0], train.max_steps or train.epochs * ends[0])
    if max(steps) != planned or ends[-1] != planned:
        return False

    # The results may be those of an evaluation before the last epoch, of other weights.
    results = json_if_whole(run_dir / RESULTS)
    chosen = epoch_in(str(results.get("selection", ""))) if isinstance(results, dict) else None
    return chosen is None or chosen == epoch_in(selection_of(run_dir))


def require_finished(run_dir: Path) -> None:
    """Raise a UserError unless a folder holds a finished run, or an evaluation, which says itself of what."""
    if run_of(run_dir) is None and not is_finished(run_dir):
        raise UserError(
            f"{run_dir} is not the folder of a finished run: it has no {FINISHED}, which training writes last; go on "
            f"with it by `emcl-train resume {run_dir}`, or evaluate it so far: `emcl-train eval {run_dir}`"
        )


def require_weights_of_the_end(run_dir: Path, *, compared: bool = False) -> None:
    """Raise a UserError if the weights of a finished run are there, and are not those that its training ended with.

    Args:
        run_dir: the run's folder.
        compared: whether the weights were compared with `checksums.json` already, so that they need not be read again.
    """
    noted = (read_mark(run_dir) or {}).get("weights")
    path = run_dir / WEIGHTS
    if noted is None or not path.is_file():
        return
    known = read_checksums(run_dir).get(WEIGHTS) if compared else None
    if noted not in (known or [checksum_of(path)]):
        raise UserError(
            f"{path} is damaged or was replaced: it is not what the training ended with, as {FINISHED} beside it says; "
            "copy it again, or train again with another --out"
        )


def say_if_unfinished(run_dir: Path) -> None:
    """Say whose weights are taken where a run is not finished."""
    if not is_finished(run_dir):
        say(f"{escaped(run_dir)} is not finished: its weights are those of {weights_so_far(run_dir)}")


def weights_so_far(run_dir: Path) -> str:
    """Which weights a run has that is not finished."""
    epoch = epoch_in(selection_of(run_dir, up_to=epoch_of_weights(run_dir)))
    return "its training so far" if epoch is None else f"epoch {epoch} of {load_config(run_dir).train.epochs}"


def epoch_of_weights(run_dir: Path) -> int | None:
    """The epoch that a run's weights are of; None if they do not say it.

    While a run is trained, its metrics may know of a better epoch, whose weights are not written yet.
    """
    try:
        with safe_open(run_dir / WEIGHTS, framework="numpy") as file:
            epoch = (file.metadata() or {}).get(EPOCH, "")
    except (OSError, ValueError, SafetensorError):
        return None
    return int(epoch) if re.fullmatch(r"[0-9]{1,9}", epoch) else None


def require_state(run_dir: Path) -> None:
    """Raise a UserError where going on with a run would begin it anew, over what it has."""
    if (run_dir / STATE).is_file():
        return
    if (run_dir / FINISHED).exists() or is_finished(run_dir):
        raise UserError(
            f"{run_dir} is finished, and without {STATE} there is nothing to go on with: it is not trained again over "
            f"its own results. `emcl-train eval {run_dir}` evaluates its weights; to train again, choose another --out"
        )

    # A training that was ended before its first state begins anew, and comes to the same.
    if (run_dir / BEGUN).is_file():
        return
    there = [name for name in (WEIGHTS, METRICS, RESULTS) if _holds_something(run_dir / name)]
    if there:
        raise UserError(
            f"{run_dir} has {' and '.join(there)} but no {STATE}, which the run would go on from: it would begin anew "
            "over them, as would a run of an earlier version that was ended before its first state. Bring that file "
            "back, or start a new run with another --out"
        )


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
