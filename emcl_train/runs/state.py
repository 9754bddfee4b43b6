"""Tensors of a run folder: its weights, and the full state from which a run goes on."""

import hashlib
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.reading.plain_files import require_regular
from emcl_train.runs.checksums import read_unchanged, whole_noted
from emcl_train.runs.contents import STATE, WEIGHTS, run_of
from emcl_train.runs.finished import EPOCH, require_weights_of_the_end
from emcl_train.runs.torch_file import load_torch_file


def save_tensors_atomic(path: Path, tensors: dict[str, Tensor], *, epoch: int | None = None) -> None:
    """A safetensors file. Tensors that share memory are written once each.

    Args:
        path: the file.
        tensors: by their names.
        epoch: which the tensors are of, as `epoch_of_weights` reads it.
    """
    metadata = None if epoch is None else {EPOCH: str(epoch)}
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata)
    with whole_noted(path) as partial:
        partial.write_bytes(data)


def read_tensors(path: Path, way_out: str) -> dict[str, Tensor]:
    """Read a safetensors file, onto the CPU.

    Args:
        path: the file.
        way_out: what to do if it cannot be read, as the end of the sentence.

    Raises:
        UserError: the file cannot be read, or has changed since it was written.
    """
    try:
        require_regular(path)
        return read_unchanged(path, way_out, load_file)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # the library, and torch behind it, raise whatever damaged bytes lead to
        raise UserError(f"{path} cannot be read as safetensors ({error}); {way_out}") from error


def read_weights(run_dir: Path) -> dict[str, Tensor]:
    """The weights that training selected.

    Raises:
        UserError: they are not there yet, or damaged.
    """
    path = run_dir / WEIGHTS
    if not path.is_file() and (run := run_of(run_dir)):
        raise UserError(f"{run_dir} holds the results of an evaluation, and no weights; pass the run itself, {run}")
    if not path.is_file():
        raise UserError(
            f"{run_dir} has no {WEIGHTS} yet, which holds the weights of the best epoch; let the training run finish "
            f"an epoch, or go on with it by `emcl-train resume {run_dir}`"
        )
    weights = read_tensors(path, "copy it again, or train again")
    require_weights_of_the_end(run_dir, compared=True)
    return weights


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A fingerprint of names, shapes and values; the same whatever file they were read from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)};".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass
class TrainingState:
    """Everything that the rest of a run depends on."""

    epoch: int
    """Epoch to go on with, counted from 0."""
    batch: int
    """Batches of that epoch already done."""
    step: int
    """Steps done in all."""
    best_score: float
    best_epoch: int
    metrics_lines: int
    """Lines of metrics.jsonl that belong to the steps done."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    """Of the gradient scaler in fp16, else empty."""
    random: dict[str, Any]
    """States of the generators of python, numpy and torch."""
    steps: dict[str, Any] = field(default_factory=dict)
    """What the pairs of its steps follow from; {} in a state that is older than this record."""
    chooses: bool = True
    """Whether validation chooses the epoch, as it always did when states did not say so; else the last one is kept."""


def save_state(run_dir: Path, state: TrainingState) -> None:
    """The same values make the same bytes, whether the run went on from an earlier state or not."""
    values = {entry.name: getattr(state, entry.name) for entry in fields(state)}
    values |= {name: _sharing_nothing(values[name]) for name in ("optimizer", "scaler", "random", "steps")}
    with whole_noted(run_dir / STATE) as partial, partial.open("wb") as file:
        torch.save(values, file)


def _sharing_nothing(value: Any) -> Any:
    """Equal containers and texts, of which a pickle writes each where it stands, or always refers back to it.

    A value that was loaded shares other parts with others than one that was built, and pickles write shared parts once.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_sharing_nothing(name): _sharing_nothing(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_sharing_nothing(part) for part in value)
    return value


def load_state(run_dir: Path) -> TrainingState | None:
    """The last full state of a run; None where it was ended before the first was written."""
    path = run_dir / STATE
    if not path.is_file():
        return None
    try:
        way_out = "bring back a copy of it, or start again with another --out"
        return TrainingState(**read_unchanged(path, way_out, load_torch_file))
    except (ValueError, TypeError) as error:
        message = f"{path} cannot be read as the state of a run: {error}; start again with another --out"
        raise UserError(message) from error
    except (OSError, MemoryError) as error:
        raise UserError(f"{path} could not be read now: {error}; the run is as it was; try again") from error


def random_states() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    name, keys, position, has_gauss, gauss = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        # The machine that the state was written on may have had more of them.
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
