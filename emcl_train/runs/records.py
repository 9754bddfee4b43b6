"""The lines of metrics.jsonl, and how they say that the weights of a run were chosen."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emcl_train.errors import UserError
from emcl_train.reading.plain_files import parse_json
from emcl_train.runs.contents import METRICS

SELECTED_BY = {"val": "validation", "test": "TEST SET (which makes the figures too high)"}
"""What a table says of the split that an epoch was selected on."""
LAST = "the last epoch"
"""How `selection_of` begins where no figure chose."""
MEASURED = ("seconds", "clips_per_second", "memory_bytes")
"""What a step's record has of the machine: two runs of the same configuration differ in these alone."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl.

    Raises:
        UserError: a line is no record; it is named.
    """
    records = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = parse_json(line)
            if not (isinstance(record, dict) and isinstance(record.get("kind"), str)):
                raise ValueError('expected an object with "kind"')
        except ValueError as error:  # broken JSON and broken UTF-8 are ValueErrors too
            raise record_error(path, number, error) from error
        records.append(record)
    return records


def record_error(path: Path, number: int, wrong: object) -> UserError:
    """What to say of a line that is no record."""
    return UserError(
        f"{path}, line {number}, is not readable as a record ({wrong}); remove that line, or go on with "
        f"`emcl-train resume {path.parent}`, which cuts the file back to the last full state"
    )


def epoch_in(selection: str) -> int | None:
    """The epoch that `selection_of` names, or None."""
    found = re.search(r"epoch (\d+)$", selection)
    return int(found[1]) if found else None


def selecting_score(recalls: Mapping[str, float], by: str) -> float:
    """What an epoch is compared with others by: `train.select_by` of its text→video figures.

    Examples:
        >>> selecting_score({"R@1": 1.0, "R@5": 8.0, "R@10": 27.0}, "geometric-mean")
        6.0
    """
    if by == "geometric-mean":
        return round((recalls["R@1"] * recalls["R@5"] * recalls["R@10"]) ** (1 / 3), 9)
    return float(recalls["R@1"])


def weights_sentence(selection: str) -> str:
    """What stands under a table of how the weights were chosen, as `selection_of` says it."""
    return f"Weights of {selection}." if selection.startswith(LAST) else f"Weights chosen by {selection}."


def selection_of(run_dir: Path, *, up_to: int | None = None) -> str:
    """How the weights of a run were chosen: the first of the best by text→video recall, or the last one.

    Args:
        run_dir: the run.
        up_to: the last epoch that counts; None: all of them.
    """
    path = run_dir / METRICS
    records = read_records(path) if path.is_file() else []
    validations = [record for record in records if record["kind"] == "validation"]
    if not validations:
        return f"an unknown rule: {METRICS} has no validation"

    try:
        counted = [record for record in validations if up_to is None or int(record["epoch"]) <= up_to]
        counted = counted or validations
        if counted[-1].get("selects", True) is False:
            last = counted[-1]
            if last.get("keeps") == "last":
                return f"{LAST}, as was asked: epoch {int(last['epoch'])}"
            clips = int(last["clips"])
            few = f"{clips} validation clip{' is' if clips == 1 else 's are'} too few to choose by"
            return f"{LAST}, since {few}: epoch {int(last['epoch'])}"
        by = str(counted[-1].get("selects_by", "R@1"))
        best = max(counted, key=lambda record: selecting_score(record["text_to_video"], by))
        figure = "geometric mean of text→video R@1, R@5 and R@10" if by == "geometric-mean" else "text→video R@1"
        return f"{SELECTED_BY[best.get('split', 'val')]} {figure}: epoch {int(best['epoch'])}"
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has a validation that is damaged ({type(error).__name__}: {error}); copy it again, or go on with "
            f"`emcl-train resume {path.parent}`, which cuts the file back to the last full state"
        ) from error


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; copy it again, or give it its permissions"
        ) from error
