"""Files of a run folder, each written whole or not at all, and what they say of the run; nothing here needs torch.

Every file is written beside its place as `.<name>.partial`, flushed to the disk, and renamed. Whatever kills the
process, a file that carries its real name is complete.
"""

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_type_hints

from safetensors import SafetensorError

from emcl_train.config import RunConfig, differing_settings
from emcl_train.errors import UserError
from emcl_train.flags import again, flag, takes

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.jsonl"
SEED_FOLDER = re.compile(r"seed-(\d+)")
"""Name of a run's folder among runs that differ in their seed."""
FINISHED = "finished.json"
"""Written when a run's training has ended and its figures are there."""
WEIGHTS, STATE = "model.safetensors", "state/latest.pt"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CLIP_CONFIG = "clip_config.json"
"""Of the towers, in transformers' format: a run is evaluated without the checkpoint that it started from."""
TOKENIZER = "tokenizer.json"
WRITTEN_BEFORE_TRAINING = {CONFIG, ENVIRONMENT, CLIP_CONFIG, TOKENIZER}


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


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for other processes that are in here for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json_atomic(path: Path, value: object) -> None:
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of a new one in its folder: safetensors makes files that only their owner may read."""
    probe = path.with_name(f".{path.name}.mode.partial")
    try:
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink(missing_ok=True)


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
    """What a killed training was about to write; what lies in `evaluations` is of others, who may be writing now."""
    for partial in run_dir.rglob(".*.partial"):
        if partial.relative_to(run_dir).parts[0] != "evaluations":
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


def require_folder(folder: Path, what: str) -> None:
    """Raise a UserError where a folder that is to be read is not there; `what` says what it should hold."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass the one that holds {what}")


def require_free(out: Path, another: str = "choose another --out") -> None:
    """Raise a UserError where a file or folder that is to be made is there already."""
    if out.exists():
        raise UserError(f"{out} exists already and is not overwritten; {another}, or remove it")


def check_run_folder(config: RunConfig) -> None:
    """Raise a UserError where a run would be overwritten, there is none to go on with, or it has other settings."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder for the run; choose another one with --out")
    if not config.resume:
        # A run that ended before its first step, for want of a clip or a checkpoint, is nothing to protect.
        if out.is_dir() and not {path.name for path in out.iterdir()} <= WRITTEN_BEFORE_TRAINING:
            raise UserError(f"{out} already holds files; go on with that run by --resume, or choose another --out")
    elif not out.is_dir():
        raise UserError(f"there is no run to resume in {out}; leave out --resume to start one there")
    elif (out / CONFIG).exists() and (different := differing_settings(load_config(out), config)):
        raise UserError(
            f"the run in {out} was started with other settings: {'; '.join(different)}; "
            f"resume with the same ones, or start a new run with another --out"
        )


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
