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
FIGURES = {"R@1": "text→video R@1", "geometric-mean": "geometric mean of text→video R@1, R@5 and R@10"}
"""What a table says of `train.select_by`."""
LAST = "the last epoch"
"""How `selection_of` begins where no figure chose."""
MEASURED = ("seconds", "clips_per_second", "memory_bytes")
"""What a step's record has of the machine: two runs of the same configuration differ in these alone."""
ACCURACY = "top1_of_kept"
"""Of the accuracies of a validation, where it has them, the one that chooses."""


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

    Of a run that answers questions, it is the accuracy over the kept questions.

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
            what = "question" if "accuracies" in last else "clip"
            number = int(last[f"{what}s"])
            few = f"{number} validation {what}{' is' if number == 1 else 's are'} too few to choose by"
            return f"{LAST}, since {few}: epoch {int(last['epoch'])}"
        by = str(counted[-1].get("selects_by", "R@1"))
        best = max(counted, key=lambda record: score_of(record, by))
        figure = "accuracy over the kept questions" if "accuracies" in best else FIGURES[by]
        return f"{SELECTED_BY[best.get('split', 'val')]} {figure}: epoch {int(best['epoch'])}"
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has a validation that is damaged ({type(error).__name__}: {error}); copy it again, or go on with "
            f"`emcl-train resume {path.parent}`, which cuts the file back to the last full state"
        ) from error


def score_of(validation: Mapping[str, Any], by: str = "R@1") -> float:
    """What an epoch is chosen by, of the record of its validation.

    Args:
        validation: the record.
        by: which figure of retrieval; questions have one alone.
    """
    if "accuracies" in validation:
        return float(validation["accuracies"][ACCURACY])
    return selecting_score(validation["text_to_video"], by)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; copy it again, or give it its permissions"
        ) from error
