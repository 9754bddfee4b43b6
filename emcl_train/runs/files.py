"""Files: each written whole or not at all, and read or refused with the reason. Nothing here needs torch.

Every file is written beside its place as `.<name>.partial`, flushed to the disk, and renamed. Whatever kills the
process, a file that carries its real name is complete.
"""

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from emcl_train.errors import UserError
from emcl_train.flags import again, flag, takes

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def read_json(path: Path, way_out: str, *, what: str = "JSON", keys: Collection[str] | None = None) -> Any:
    """Read a JSON file that has to be there.

    Args:
        path: the file.
        way_out: what to do if it cannot be read, as the end of the sentence.
        what: what the file is meant to be.
        keys: what the file's object must hold; None if it may hold any value.

    Returns:
        The value. With `keys` it is an object that has them.

    Raises:
        UserError: the file cannot be read, or is not what it should be.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # broken JSON and broken UTF-8 are ValueErrors
        raise UserError(f"{path} cannot be read as {what}: {error}; {way_out}") from error

    if keys is None:
        return value

    there = value.keys() if isinstance(value, dict) else set()
    absent = sorted(set(keys) - there)
    if absent:
        expected = f"a JSON object with {', '.join(sorted(keys))}; it lacks {absent}"
        raise UserError(f"{path} must hold {expected}; {way_out}")
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got a {type(value).__name__}; {way_out}")
    return value


def json_if_whole(path: Path) -> Any:
    """The value of a JSON file that may be missing or damaged, since it can be found out again; None then."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def as_json(value: object) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def partial_of(path: Path, *, shared: bool = False) -> Path:
    """Where a file is written until it is whole; see `whole`."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial" if shared else f".{path.name}.partial")


@contextmanager
def whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A file that appears when it is whole.

    Inside the block the file is written to the path that is given. At its end that takes the place of `path`. If the
    block raises, `path` is as it was, and nothing else is left.

    Args:
        path: the file.
        shared: several processes may write the file at once, each with the same content. It can be made again, so it is
            not flushed to the disk.

    Raises:
        UserError: the disk is full.
    """
    partial = partial_of(path, shared=shared)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial

        if not shared:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch.save reports a failed write as a RuntimeError that carries the OSError as its context.
        raise_if_disk_full(error, path)
        raise


@contextmanager
def whole_folder(path: Path, another: str = "choose another --out") -> Iterator[Path]:
    """A folder that appears when it is whole; the like of `whole`.

    Args:
        path: the folder, which must not exist.
        another: how to name another one, for errors.

    Raises:
        UserError: the disk is full, another process makes the same folder, or it exists by now.
    """
    partial = partial_of(path)
    partial.mkdir(parents=True, exist_ok=True)
    with alone(partial):
        # What a process left that was killed.
        for left in partial.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

        try:
            yield partial
            if path.exists():
                raise UserError(f"{path} exists by now and is not overwritten; {another}, or remove it")
            partial.rename(path)
        except Exception as error:  # safetensors reports a full disk by an exception of its own
            raise_if_disk_full(error, path)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file.
        write: called with a file in the same folder, open for writing, which then takes the place of `path`.

    Raises:
        UserError: the disk is full; `path` is then as it was.
    """
    with whole(path) as partial, partial.open("wb") as file:
        write(file)


def write_text_atomic(path: Path, text: str) -> None:
    # Names of files that are no UTF-8, and halves of letters from broken JSON, have no bytes; JSON reads their escapes.
    write_atomic(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json_atomic(path: Path, value: object) -> None:
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def raise_if_disk_full(error: BaseException, path: Path) -> None:
    """Raise a UserError if `error`, or what caused it, means that nothing more can be written to `path`."""
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


_locking = True


@contextmanager
def without_locks() -> Iterator[None]:
    """Lock no folder inside the block, for file systems that cannot: nobody else may write there then."""
    global _locking
    before, _locking = _locking, False
    try:
        yield
    finally:
        _locking = before


def _lock(descriptor: int, folder: Path, how: int) -> None:
    """Lock an open folder.

    Raises:
        BlockingIOError: another process has it, and `how` says not to wait.
        UserError: it cannot be locked.
    """
    if not _locking:
        return
    try:
        fcntl.flock(descriptor, how)
    except (BlockingIOError, InterruptedError):
        raise
    except OSError as error:
        # Network file systems without a lock service, and some that are programs themselves.
        raise UserError(
            f"{folder} cannot be locked: {error.strerror}; its file system has no locks. Choose a folder on another "
            f"disk, or pass --no-lock if no other process writes there"
        ) from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder; whatever ends this one lets the next one in.

    Raises:
        UserError: another process is in it, or it cannot be locked.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        busy = UserError(f"another process writes to {folder}; wait for it, or pass another folder")
        try:
            _lock(descriptor, folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Wait for other processes that are in here for the same folder.

    Raises:
        UserError: it cannot be locked.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
        size = file.seek(0, os.SEEK_END)
        written = 0
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


def require_folder(folder: Path, what: str) -> None:
    """Raise a UserError where a folder that is to be read is not there; `what` says what it should hold."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass the one that holds {what}")


def require_free(out: Path, another: str = "choose another --out") -> None:
    """Raise a UserError where a file or folder that is to be made is there already."""
    if out.exists():
        raise UserError(f"{out} exists already and is not overwritten; {another}, or remove it")
