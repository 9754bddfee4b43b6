"""Files: each written whole or not at all, and read or refused with the reason. Nothing here needs torch.

Every file is written beside its place under a name that nobody can know beforehand, `.<name>.<…>.partial`, flushed to
the disk, and renamed. Whatever kills the process, a file that carries its real name is complete. A partial file says in
its name who writes it, so that what a killed process left is known, and goes with the next write there.
"""

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from emcl_train.endings import held_back
from emcl_train.errors import UserError, causes
from emcl_train.flags import again, flag, takes
from emcl_train.reading.plain_files import LARGEST_JSON, parse_json, read_regular
from emcl_train.runs.machine import runs, this_machine

JOURNAL = ".changing.json"
"""Says what is left of a change of several files; see `together.py`."""
PARTIAL = re.compile(
    r"(?P<inner>\.(?=.*\.partial\.[0-9a-f]{16}\.partial$))?"
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{16}\.partial"
    r"(?(inner)\.[0-9a-f]{16}\.partial)",
    re.DOTALL,
)
"""Name of a file that is not whole yet, or of what is to become one: the kernels' files are written whole too."""
LONGEST_NAME = 255
"""Bytes of a file's name, on most disks."""
FORGOTTEN_AFTER = 86400.0
"""Seconds without a write after which a partial file is nobody's, if its process cannot be seen from here."""
NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a file is opened that must not be there yet, as a link neither."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_json(
    path: Path,
    way_out: str,
    *,
    what: str = "JSON",
    keys: Collection[str] | None = None,
    largest: int = LARGEST_JSON,
) -> Any:
    """Read a JSON file that has to be there.

    Args:
        path: the file.
        way_out: what to do if it cannot be read, as the end of the sentence.
        what: what the file is meant to be.
        keys: what the file's object must hold; None if it may hold any value.
        largest: bytes that the file may have.

    Returns:
        The value. With `keys` it is an object that has them.

    Raises:
        UserError: the file cannot be read, or is not what it should be.
    """
    try:
        value = parse_json(read_regular(path, largest).decode("utf-8"))
    except (OSError, ValueError) as error:  # broken JSON and broken UTF-8 are ValueErrors
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
        return parse_json(read_regular(path).decode("utf-8"))
    except (OSError, ValueError):
        return None


def as_json(value: object) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole: a name that nobody can know before, with the process that has it."""
    writer = f".{this_machine().tag}-{os.getpid()}-{secrets.token_hex(8)}.partial"
    return path.with_name(f".{_kept(path.name)}{writer}")


def new_partial(path: Path) -> Path:
    """Create an empty file for what is to become `path`; see `partial_of`. No link is followed."""
    partial = partial_of(path)
    os.close(os.open(partial, os.O_WRONLY | NEW, 0o666))
    return partial


def _kept(name: str) -> str:
    """As much of a name as a longer one may begin with."""
    return os.fsdecode(os.fsencode(name)[: LONGEST_NAME - 60])


@contextmanager
def whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A file that appears when it is whole.

    Inside the block the file is written to the path that is given. At its end that takes the place of `path`, or, in
    the block of a change of several files (`together.py`), with all the others. If the block raises, `path` is as it
    was, and nothing else is left.

    Args:
        path: the file.
        shared: several processes may write the file at once, each with the same content. It can be made again, so it is
            not flushed to the disk.

    Raises:
        UserError: the disk is full.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_once(path.parent)
        with held_back():
            partial = new_partial(path)
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial

        # safetensors makes files that only their owner may read.
        if stat.S_IMODE(partial.stat().st_mode) != mode:
            partial.chmod(mode)
        if not shared:
            flush(partial)
        place(partial, path)
    except BaseException as error:
        if partial is not None:
            discard(partial)
        raise_what_the_disk_said(error, path)
        raise


@contextmanager
def whole_folder(path: Path, another: str = "choose another --out") -> Iterator[Path]:
    """A folder that appears when it is whole; the like of `whole`.

    Args:
        path: the folder, which must not exist.
        another: how to name another one, for errors.

    Raises:
        UserError: the disk is full, or it exists by now.
    """
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_once(path.parent)
        partial.mkdir()
        yield partial

        for folder, _, names in os.walk(partial):
            for name in names:
                flush(Path(folder, name))
            flush(Path(folder))
        if os.path.lexists(path):
            raise UserError(f"{path} exists by now and is not overwritten; {another}, or remove it")
        os.rename(partial, path)
    except Exception as error:
        raise_what_the_disk_said(error, path)
        raise
    finally:
        discard_folder(partial)


def flush(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have no such call for a folder.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@dataclass
class Pending:
    """What has been written of a change of several files in one folder, none of which is in its place yet."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    """The partial file by the name that it gets."""
    removed: set[str] = field(default_factory=set)
    """Names that go with the change."""


pending: ContextVar[Pending | None] = ContextVar("pending", default=None)
"""The change that this block of the program is in."""


def place(partial: Path, path: Path) -> None:
    """Give a whole file its name: at once, or with the change that it belongs to."""
    change = pending.get()
    if change is None or path.parent != change.folder:
        os.replace(partial, path)
        return

    if (earlier := change.files.pop(path.name, None)) is not None:
        discard(earlier)
    change.removed.discard(path.name)
    change.files[path.name] = partial


def remove(path: Path) -> None:
    """Remove a file that may be there: at once, or with the change that it belongs to."""
    change = pending.get()
    if change is None or path.parent != change.folder:
        path.unlink(missing_ok=True)
        return

    if (written := change.files.pop(path.name, None)) is not None:
        discard(written)
    change.removed.add(path.name)


def current(path: Path) -> Path:
    """Where the content of a file lies by now: in a change, what was written inside it already."""
    change = pending.get()
    if change is None or path.parent != change.folder:
        return path
    return change.files.get(path.name, path)


# What killed processes left.

_cleared: set[Path] = set()


def clear_once(folder: Path) -> None:
    """Remove partial files of processes that have ended, the first time that this process writes into a folder."""
    if folder not in _cleared:
        _cleared.add(folder)
        clear_partial(folder)


def clear_partial(folder: Path, *, of: str | None = None, ours: bool = False) -> None:
    """Remove what was left half written in a folder. Links are not followed, and files of other users stay.

    Args:
        folder: where to look; not in what it holds.
        of: the name of the file that it was to become; None: of any.
        ours: nobody else has the folder locked, so that files of processes that cannot be seen from here were left.
    """
    kept = None if of is None else _kept(of)
    if os.path.lexists(folder / JOURNAL):  # what is there is needed still
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return

    for entry in entries:
        made = PARTIAL.fullmatch(entry.name)
        if made is None or (kept is not None and made["name"] != kept):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
            age = math.inf if ours else time.time() - status.st_mtime
            if status.st_uid != os.geteuid() or not _was_left(made, age):
                continue
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        except OSError:  # its process has just ended it, or it cannot be removed
            continue


def _was_left(made: re.Match[str], age: float) -> bool:
    """Whether the process that made a partial file has ended, as far as is known from here."""
    if made["machine"] == this_machine().tag:
        return not runs(int(made["process"]))
    return age > FORGOTTEN_AFTER


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
    if isinstance(error, UserError):  # which says it already, and how much room is wanted
        return
    for cause in causes(error):
        if _system_error(cause) in DISK_FULL:
            raise UserError(
                f"the disk is full: {path} could not be written, and is as it was before; free some space there and "
                f"{again()}" + (f", or choose another folder with {flag('out')}" if takes("out") else "")
            ) from error


def raise_what_the_disk_said(error: BaseException, path: Path) -> None:
    """Raise a UserError if the disk is full, or the OSError behind a library's error that could not write to `path`.

    torch.save reports a failed write as a RuntimeError that carries the OSError as its context.
    """
    raise_if_disk_full(error, path)
    if not (isinstance(error, RuntimeError) or _is_of_rust(error)):
        return
    for cause in causes(error):
        if (code := _system_error(cause)) is not None:
            raise OSError(code, os.strerror(code), str(path)) from error


def _system_error(error: BaseException) -> int | None:
    """The number of the system's error that one is, or has in its text, as safetensors and tokenizers give it."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if _is_of_rust(error) else None
    return None if found is None else int(found[1])


def _is_of_rust(error: BaseException) -> bool:
    return isinstance(error, SafetensorError) or type(error) is Exception  # that of tokenizers


def discard(path: Path) -> None:
    """Remove a file that nobody needs any more: a partial one, or a note on who is at work.

    A disk that fails once is asked once more. What still lies there afterwards goes with the next command.
    """
    for _ in range(2):
        with suppress(OSError):
            path.unlink(missing_ok=True)
            return


def discard_folder(path: Path) -> None:
    """The same for a folder with all that is in it."""
    for _ in range(2):
        shutil.rmtree(path, ignore_errors=True)


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of a new one in its folder: safetensors makes files that only their owner may read."""
    with held_back():
        probe = new_partial(path)
        try:
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
    write_atomic(path, lambda file: file.write(b"".join(lines[:count])))


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def require_folder(folder: Path, what: str) -> None:
    """Raise a UserError where a folder that is to be read is not there; `what` says what it should hold."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass the one that holds {what}")


def require_no_link(run_dir: Path, *names: str) -> None:
    """Raise a UserError where a folder inside a run is a link: what is written there would land somewhere else.

    Args:
        run_dir: the run.
        names: of folders inside it, which need not be there, in the order of who holds whom.
    """
    folder = run_dir
    for name in names:
        folder /= name
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link to {os.readlink(folder)}; what belongs to a run is written inside its own folder "
                "alone: put a folder in the link's place, or remove it"
            )


def require_free(out: Path, another: str = "choose another --out") -> None:
    """Raise a UserError where a file or folder that is to be made is there already."""
    if os.path.lexists(out):
        raise UserError(f"{out} exists already and is not overwritten; {another}, or remove it")
