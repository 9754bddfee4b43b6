"""Files of a run folder, each written whole or not at all, and the full state from which a run goes on.

Every file is written beside its place as `.<name>.partial`, flushed to the disk, and renamed. Whatever kills the
process, a file that carries its real name is complete.
"""

import errno
import fcntl
import hashlib
import json
import os
import random
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.flags import again, flag, takes
from emcl_train.torch_file import load_torch_file

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.jsonl"
SEED_FOLDER = re.compile(r"seed-(\d+)")
"""Name of a run's folder among runs that differ in their seed."""
WEIGHTS, STATE = "model.safetensors", "state/latest.pt"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CLIP_CONFIG = "clip_config.json"
"""Of the towers, in transformers' format: a run is evaluated without the checkpoint that it started from."""


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file in the same folder, which then takes the place of `path`.

    Raises: UserError where the disk is full; `path` is then as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch.save reports a failed write as a RuntimeError that carries the OSError as its context.
        raise_if_disk_full(error, path)
        raise


def raise_if_disk_full(error: BaseException, path: Path) -> None:
    """Raise a UserError if `error` means that nothing more can be written."""
    cause: BaseException | None = error
    while cause is not None:
        # safetensors gives the number in the text alone.
        in_text = isinstance(cause, SafetensorError) and any(f"(os error {code})" in str(cause) for code in DISK_FULL)
        if in_text or (isinstance(cause, OSError) and cause.errno in DISK_FULL):
            raise UserError(
                f"the disk is full: {path} could not be written, and is as it was before; free some space there and "
                f"{again()}" + (f", or choose another folder with {flag('out')}" if takes("out") else "")
            ) from error
        cause = cause.__cause__ or cause.__context__


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder; whatever ends this one lets the next one in.

    Raises: UserError where another process is in it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        busy = UserError(f"another process writes to {folder}; wait for it, or pass another folder")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        # Between the two calls the other one may have renamed or removed the folder.
        if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise busy
        yield
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json_atomic(path: Path, value: object) -> None:
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def save_tensors_atomic(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file. Tensors that share memory are written once each."""
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    write_atomic(path, lambda file: file.write(data))


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of a new one in its folder: safetensors makes files that only their owner may read."""
    probe = path.with_name(f".{path.name}.mode.partial")
    try:
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink(missing_ok=True)


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A fingerprint of names, shapes and values; the same whatever file they were read from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)};".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def append_line(path: Path, value: object) -> None:
    """One JSON line in one system call, so that a killed process leaves whole lines."""
    line = (json.dumps(value) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        size, written = file.seek(0, os.SEEK_END), 0
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError as error:
            if written:
                file.truncate(size)
            raise_if_disk_full(error, path)
            raise


def keep_lines(path: Path, count: int) -> None:
    """Cut a file back to its first `count` lines."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if len(lines) < count:
        raise UserError(
            f"{path} has {len(lines)} lines but the saved state was written after {count}; "
            f"the run folder was changed by hand, start again with another --out"
        )
    write_text_atomic(path, b"".join(lines[:count]).decode())


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def remove_partial_files(run_dir: Path) -> None:
    """What a killed process was about to write."""
    for partial in run_dir.rglob(".*.partial"):
        partial.unlink(missing_ok=True)


def save_config(run_dir: Path, config: RunConfig) -> None:
    write_json_atomic(run_dir / CONFIG, asdict(config))


def seed_folders(path: Path) -> list[Path]:
    """The run folders in a folder of seeds, by seed; none where `path` is no such folder."""
    found = [entry for entry in path.iterdir() if SEED_FOLDER.fullmatch(entry.name)] if path.is_dir() else []
    return sorted(found, key=lambda entry: int(entry.name.removeprefix("seed-")))


def require_run(run_dir: Path) -> None:
    """Raise a UserError unless a folder holds one run; of a folder of runs it names these."""
    way_out = "pass the --out folder of `emcl-train train`"
    if not run_dir.is_dir():
        what = "it is a file" if run_dir.exists() else "no such folder"
        raise UserError(f"{run_dir} is not a run folder: {what}; {way_out}")
    if (run_dir / CONFIG).is_file():
        return
    if runs := seed_folders(run_dir):
        named = ", ".join(map(str, runs[:5])) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        raise UserError(f"{run_dir} holds {len(runs)} runs with different seeds; pass one of them: {named}")
    raise UserError(f"{run_dir} is not a run folder: it has no {CONFIG}; {way_out}")


def load_config(run_dir: Path) -> RunConfig:
    """The configuration that a run was started with.

    Raises: UserError where the folder holds no run, or one that this version cannot read.
    """
    require_run(run_dir)
    path = run_dir / CONFIG
    try:
        return _from_json(RunConfig, json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as the configuration of a run: {error}; train again") from error


def load_environment(run_dir: Path) -> dict[str, Any]:
    """What a run was started on; {} where that was not recorded.

    Raises: UserError where the file is damaged.
    """
    path = run_dir / ENVIRONMENT
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy it again, or train anew") from error


def _from_json(kind: Any, value: Any) -> Any:
    """Nested dataclasses, paths and tuples back from plain JSON values."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        unknown = value.keys() - {field.name for field in fields(kind)}
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
        return kind(**{name: _from_json(hints[name], entry) for name, entry in value.items()})
    if kind is Path or (value is not None and Path in get_args(kind)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


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


def save_state(run_dir: Path, state: TrainingState) -> None:
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    write_atomic(run_dir / STATE, lambda file: torch.save(values, file))


def load_state(run_dir: Path) -> TrainingState | None:
    """The last full state of a run; None where it was ended before the first was written."""
    path = run_dir / STATE
    if not path.is_file():
        return None
    try:
        return TrainingState(**load_torch_file(path))
    except (ValueError, TypeError) as error:
        message = f"{path} cannot be read as the state of a run: {error}; start again with another --out"
        raise UserError(message) from error


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
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
