"""Checksums of binary files, in which one changed byte gives other figures without a word. Nothing here needs torch.

`checksums.json` lies beside the files that it names: `{"model.safetensors": ["crc32:…"]}`. While a file is replaced
it names the new one and, behind it, all that may still be in its place. So whatever kills a process, a file that is
whole is never taken for a damaged one.
"""

import functools
import os
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from emcl_train.errors import UserError
from emcl_train.runs.files import current, read_json, whole, write_json_atomic
from emcl_train.terminal import escaped, say

CHECKSUMS = "checksums.json"
CRC32 = "crc32"
"""The algorithm, in front of each checksum. It finds every change within four bytes, and misses one of four billion
others. At 3 GB/s it adds 3 % to the opening of a run on CLIP ViT-B/32; SHA-256 would add 6 % (docs/LOG.md)."""
ABSENT = ""
"""Among the checksums of a file: it may not be there yet."""
PIECE = 1 << 20


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
        UserError: the disk is full, or the checksums that are there already are damaged.
    """
    before = read_checksums(path.parent).get(path.name)
    if before is None:
        before = [checksum_of(path) if path.is_file() else ABSENT]
    with whole(path) as partial:
        yield partial
        checksum = checksum_of(partial)
        note(path, [checksum, *(other for other in before if other != checksum)])
    note(path, [checksum])


def note(path: Path, checksums: Collection[str]) -> None:
    """Write down the checksum of a file, first, and those of what else may be in its place."""
    noted = read_checksums(path.parent)
    write_json_atomic(path.parent / CHECKSUMS, noted | {path.name: checksums})


def note_all(folder: Path, names: list[str]) -> None:
    """Write down the checksums of files that lie in a folder, and of no others."""
    write_json_atomic(folder / CHECKSUMS, {name: [checksum_of(folder / name)] for name in names})


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
    noted = read_checksums(path.parent)
    if noted.pop(path.name, None) is not None:
        write_json_atomic(path.parent / CHECKSUMS, noted)


def require_unchanged(path: Path, way_out: str) -> None:
    """Compare a file with its checksum; what has none is said, once for each folder.

    Args:
        path: a file that is there.
        way_out: what to do if it has changed, as the end of the sentence.

    Raises:
        UserError: a byte has changed, or the checksums are damaged.
        OSError: the file cannot be read.
    """
    noted = read_checksums(path.parent).get(path.name)
    if noted is None:
        _say_unnoted(path.parent)
    elif checksum_of(path) not in noted:
        raise UserError(
            f"{path} is damaged or was replaced: it is not what {CHECKSUMS} beside it says; {way_out}; if you replaced "
            f"it on purpose, `emcl-train verify {path.parent} --accept` takes it as it is"
        )


@functools.cache
def _say_unnoted(folder: Path) -> None:
    say(
        f"{escaped(folder)} has files without checksums, as folders of earlier versions: whether they have changed "
        f"cannot be seen; `emcl-train verify {escaped(folder)} --accept` gives them checksums"
    )
