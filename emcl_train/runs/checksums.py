"""Checksums of binary files, in which one changed byte gives other figures without a word. Nothing here needs torch.

`checksums.json` lies beside the files that it names: `{"model.safetensors": ["crc32:…"]}`. While a file is replaced
it names the new one and, behind it, all that may still be in its place. So whatever kills a process, a file that is
whole is never taken for a damaged one.
"""

import functools
import os
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from emcl_train.errors import UserError
from emcl_train.runs.files import current, read_json, whole, write_json_atomic
from emcl_train.runs.machine import is_first_process
from emcl_train.runs.places import STATE_FOLDER
from emcl_train.terminal import escaped, say

Value = TypeVar("Value")

CHECKSUMS = "checksums.json"
CRC32 = "crc32"
"""The algorithm, in front of each checksum. It finds every change within four bytes, and misses one of four billion
others. At 3 GB/s it adds 2.5 % to a process that opens 630 MB; SHA-256 would add 6 % to it (docs/LOG.md)."""
ABSENT = ""
"""Among the checksums of a file: it may not be there yet."""
PIECE = 1 << 18
TRIES = 20
"""How often a file is compared that somebody replaces meanwhile."""


def checksum_of(path: Path) -> str:
    """The checksum of all of a file, with the algorithm in front: "crc32:0a1b2c3d".

    Raises:
        OSError: the file cannot be read.
    """
    found = 0
    piece = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            found = zlib.crc32(piece[:count], found)
    return f"{CRC32}:{found:08x}"


def read_checksums(folder: Path) -> dict[str, Collection[str]]:
    """What `checksums.json` in a folder says of the files beside it, by their names; {} if there is none.

    Raises:
        UserError: it is damaged, or has checksums of another algorithm.
    """
    path = current(folder / CHECKSUMS)
    if not path.exists():
        return {}

    way_out = f"if you trust the files beside it, `emcl-train verify {folder} --accept` writes it again"
    noted: dict[str, Collection[str]] = read_json(path, way_out, what="checksums", keys=())
    for name, checksums in noted.items():
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise UserError(f"{path} names {name!r}, expected the name of a file beside it; {way_out}")
        if not isinstance(checksums, list) or not checksums or not all(map(_is_checksum, checksums)):
            raise UserError(
                f'{path} must hold a list of checksums such as "{CRC32}:0a1b2c3d" for {name!r}, got {checksums!r}; '
                f"{way_out}"
            )
    return noted


def _is_checksum(value: object) -> bool:
    return isinstance(value, str) and (value == ABSENT or value.startswith(f"{CRC32}:"))


@contextmanager
def whole_noted(path: Path) -> Iterator[Path]:
    """A file that appears when it is whole, and whose checksum then lies beside it; the like of `whole`.

    Inside the block the file is written to the path that is given.

    Raises:
        UserError: the disk is full.
    """
    before = _checksums_or_none(path.parent, quiet=True).get(path.name)  # `note` says it
    if before is None:
        before = [checksum_of(path) if path.is_file() else ABSENT]
    with whole(path) as partial:
        yield partial
        checksum = checksum_of(partial)
        note(path, [checksum, *(other for other in before if other != checksum)])
    note(path, [checksum])


def note(path: Path, checksums: Collection[str]) -> None:
    """Write down the checksum of a file, first, and those of what else may be in its place."""
    noted = _checksums_or_none(path.parent)
    write_json_atomic(path.parent / CHECKSUMS, noted | {path.name: checksums})


def note_all(folder: Path, names: Collection[str], *, others: bool = False) -> None:
    """Write down the checksums of files that lie in a folder.

    Args:
        folder: it.
        names: of the files.
        others: keep the checksums of others that are there; else these are all.
    """
    noted = _checksums_or_none(folder) if others else {}
    noted = {name: checksums for name, checksums in noted.items() if os.path.lexists(folder / name)}
    write_json_atomic(folder / CHECKSUMS, noted | {name: [checksum_of(current(folder / name))] for name in names})


def note_copy(path: Path, copy: Path) -> None:
    """Give a copy the checksum of its original: if that was damaged, the copy is found to be, too."""
    if (noted := _checksums_or_none(path.parent).get(path.name)) is not None:
        note(copy, noted)


def narrow(folder: Path) -> None:
    """Note of each file the one checksum that it has, where a process was killed while it replaced the file.

    Raises:
        UserError: the checksums are damaged.
        OSError: a file cannot be read.
    """
    noted = read_checksums(folder)
    if all(len(checksums) == 1 for checksums in noted.values()):
        return
    for name in [name for name, checksums in noted.items() if len(checksums) > 1]:
        path = folder / name
        found = checksum_of(path) if path.is_file() else ABSENT
        if found == ABSENT and ABSENT in noted[name]:
            del noted[name]
        elif found in noted[name]:  # else it is damaged, which its reader says
            noted[name] = [found]
    write_json_atomic(folder / CHECKSUMS, noted)


def forget(path: Path) -> None:
    """Take a file that has gone out of the checksums of its folder."""
    noted = _checksums_or_none(path.parent)
    if noted.pop(path.name, None) is not None:
        write_json_atomic(path.parent / CHECKSUMS, noted)


def _checksums_or_none(folder: Path, *, quiet: bool = False) -> dict[str, Collection[str]]:
    """For writers: damaged checksums are written anew, which is said; no training ends for them at its next save."""
    try:
        return read_checksums(folder)
    except UserError as error:
        if not quiet:
            say(
                f"[yellow]warning:[/yellow] {escaped(error)}; until then only what is written from now on has checksums"
            )
        return {}


def has_checksum(path: Path) -> bool:
    """Whether a file that may be anybody's has a checksum; a list of checksums that cannot be read is said."""
    try:
        return path.name in read_checksums(path.parent)
    except UserError as error:
        say(f"[yellow]warning:[/yellow] {escaped(error)}; whether {escaped(path)} has changed cannot be seen")
        return False


def is_unchanged(path: Path) -> bool | None:
    """Whether a file is what its checksum says; None if it has none. Somebody may replace both meanwhile.

    Raises:
        UserError: the checksums are damaged.
        OSError: the file cannot be read.
    """
    for _ in range(TRIES):
        noted = read_checksums(path.parent).get(path.name)
        if noted is None:
            return None
        before = identity_of(path)
        if checksum_of(path) in noted:
            return True
        if noted == read_checksums(path.parent).get(path.name) and before == identity_of(path):
            break
    return False


def identity_of(path: Path) -> tuple[int, ...]:
    """What tells a file from the one that takes its place."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def require_unchanged(path: Path, way_out: str) -> None:
    """Compare a file with its checksum; what has none is said, once for each folder.

    Args:
        path: a file that is there.
        way_out: what to do if it has changed, as the end of the sentence.

    Raises:
        UserError: a byte has changed, or the checksums are damaged.
        OSError: the file cannot be read.
    """
    unchanged = is_unchanged(path)
    if unchanged is None:
        say_without_checksums(path.parent)
    elif not unchanged:
        raise UserError(
            f"{path} is damaged or was replaced: it is not what {CHECKSUMS} beside it says; {way_out}; if you replaced "
            f"it on purpose, `emcl-train verify {path.parent} --accept` takes it as it is"
        )


def read_unchanged(path: Path, way_out: str, read: Callable[[Path], Value]) -> Value:
    """What `read` makes of a file, of the very bytes that `require_unchanged` has compared.

    Raises:
        UserError: as there, or the file is replaced again and again.
        OSError: the file cannot be read.
    """
    for _ in range(TRIES):
        before = identity_of(path)
        require_unchanged(path, way_out)
        value = read(path)
        if identity_of(path) == before:
            return value
    raise UserError(f"{path} is replaced again and again while it is read; wait until its writer has ended")


def say_without_checksums(folder: Path) -> None:
    """Say of a run, or of another folder, that it has files without checksums: once, and by the first process alone."""
    if is_first_process():
        _say_without_checksums(folder.parent if folder.name == STATE_FOLDER else folder)


@functools.cache
def _say_without_checksums(folder: Path) -> None:
    say(
        f"{escaped(folder)} has files without checksums, as folders of earlier versions: whether they have changed "
        f"cannot be seen; `emcl-train verify {escaped(folder)} --accept` gives them checksums"
    )
