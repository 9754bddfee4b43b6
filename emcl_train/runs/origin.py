"""Where figures come from: weights, step and code, recorded with the figures and compared with what lies beside them.

`results.json` has this as "origin". Figures of earlier versions have none, which tables say.
"""

import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.runs.checksums import CHECKSUMS, checksum_of, identity_of, read_checksums
from emcl_train.runs.code import commit
from emcl_train.runs.contents import METRICS, WEIGHTS, run_of
from emcl_train.runs.finished import epoch_of_weights
from emcl_train.runs.likeness import Optional
from emcl_train.runs.places import EVALUATIONS
from emcl_train.runs.records import read_records
from emcl_train.runs.state import hash_of_tensors

ORIGIN = "origin"
"""Its name in results.json."""
IN_ORIGIN = {
    "weights": str,
    "checksum": Optional(str),
    "epoch": Optional(int),
    "step": Optional(int),
    "emcl": str,
    "commit": Optional(str),
}
"""What a report needs of it."""
SHOWN = 8
"""Letters of a fingerprint that sentences have."""


@dataclass(frozen=True)
class Origin:
    """What figures were measured with."""

    weights: str
    """Fingerprint of their names, shapes and values."""
    emcl: str
    """Version of the code."""
    commit: str | None = None
    """Of the checkout that the code ran from, with "+" if it was changed; None: it was no checkout."""
    checksum: str | None = None
    """Of the file of the weights, so that they need not be read to see that they are the same."""
    epoch: int | None = None
    step: int | None = None

    @classmethod
    def of_results(cls, results: Mapping[str, Any]) -> "Origin | None":
        """That of results.json; None if it was not recorded."""
        record = results.get(ORIGIN)
        return None if record is None else cls(**{name: record.get(name) for name in IN_ORIGIN})

    @property
    def code(self) -> str:
        """Version and commit in a few words."""
        return f"emcl {self.emcl}" + (f", commit {self.commit}" if self.commit else "")

    def __str__(self) -> str:
        known = [f"{name} {value}" for name, value in (("epoch", self.epoch), ("step", self.step)) if value is not None]
        return f"weights {self.weights[:SHOWN]}" + (f" ({', '.join(known)})" if known else "")


def origin_of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The record for figures of tensors that no training selected, such as a map, and of this code."""
    return _record(Origin(hash_of_tensors(tensors), _version(), commit()))


def origin_of_run(run_dir: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The record for figures of a run's weights, measured by this code.

    Args:
        run_dir: the run's own folder.
        weights: as `read_weights` read them there.
    """
    epoch = epoch_of_weights(run_dir)
    checksum = _checksum(run_dir / WEIGHTS)
    step = step_of(run_dir, epoch)
    return _record(Origin(hash_of_tensors(weights), _version(), commit(), checksum, epoch, step))


def step_of(run_dir: Path, epoch: int | None) -> int | None:
    """The step after which an epoch's weights were validated; None if the records do not say it."""
    path = run_dir / METRICS
    if epoch is None or not path.is_file():
        return None
    try:
        records = read_records(path)
    except UserError:  # whoever needs the records says it
        return None
    steps = [one.get("step") for one in records if one["kind"] == "validation" and one.get("epoch") == epoch]
    return steps[-1] if steps and type(steps[-1]) is int else None


def sentence_of(results: Mapping[str, Any]) -> str:
    """Which weights and which code figures come from, for under a table."""
    origin = Origin.of_results(results)
    if origin is None:
        return (
            "Weights and code of these figures are not recorded, as in earlier versions; `emcl-train eval RUN` "
            "measures them again."
        )
    return f"Measured on {origin} by {origin.code}."


def what_is_stale(folder: Path, results: Mapping[str, Any]) -> str | None:
    """What to say of figures that are not those of the weights beside them; None if they are, or nobody can know.

    Only where the checksums differ are the weights read.

    Args:
        folder: of the results: a run, or an evaluation of one.
        results: what results.json there holds.
    """
    origin = Origin.of_results(results)
    run_dir = run_beside(folder)
    path = run_dir / WEIGHTS
    if origin is None or not path.is_file():
        return None
    try:
        if origin.checksum is not None and origin.checksum == _checksum(path):
            return None
        now = _fingerprint(path, identity_of(path))
    except (OSError, UserError) as error:
        return f"perhaps not those of {WEIGHTS} beside them, which cannot be read ({error}); copy it again"
    if now == origin.weights:
        return None

    epoch = epoch_of_weights(run_dir)
    step = step_of(run_dir, epoch)
    older = step is not None and origin.step is not None and step > origin.step
    what = "older than the weights beside them" if older else "not those of the weights beside them"
    then = origin.weights[:SHOWN] + ("" if origin.step is None else f" at step {origin.step}")
    there = now[:SHOWN] + ("" if step is None else f" of step {step}")
    settings = "" if run_dir == folder else f" with the settings of {folder.name}"
    return (
        f"{what}: measured on {then}, {WEIGHTS} is now {there}; `emcl-train eval {run_dir}`{settings} measures "
        f"these, in a folder of their own (after `emcl-train verify {run_dir} --accept`, if they were replaced on "
        f"purpose)"
    )


def run_beside(folder: Path) -> Path:
    """The run whose weights a folder's figures are of: that around an evaluation, wherever it was moved, or itself."""
    run = run_of(folder)
    if run is None:
        return folder
    return folder.parent.parent if folder.absolute().parent.name == EVALUATIONS else Path(run)


def _record(origin: Origin) -> dict[str, Any]:
    return {name: value for name, value in asdict(origin).items() if value is not None}


def _version() -> str:
    try:
        return importlib.metadata.version("emcl")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _checksum(path: Path) -> str:
    """The checksum of a file: that in the list beside it, unless the file is younger than the list.

    The time is that of the change of the file itself, which copies do not keep.

    Raises:
        OSError: the file cannot be read.
    """
    beside = path.parent / CHECKSUMS
    try:
        noted = list(read_checksums(path.parent).get(path.name, ()))
    except UserError:  # damaged; their readers say it
        noted = []
    if len(noted) == 1 and path.stat().st_ctime_ns <= beside.stat().st_ctime_ns:
        return noted[0]
    return checksum_of(path)


@functools.lru_cache(maxsize=64)
def _fingerprint(path: Path, identity: tuple[int, ...]) -> str:
    """The fingerprint of a file of weights; `identity` is the file's, so that another one in its place is read."""
    try:
        return hash_of_tensors(load_file(path))
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the library, and torch behind it, raise whatever damaged bytes lead to
        raise UserError(f"{path} cannot be read as safetensors ({error})") from error
