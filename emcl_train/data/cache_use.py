"""Whose a folder of the user's cache is, when it was used last, and that it is in use.

What is kept of a data set lies in a folder that is called by a fingerprint of the data set's root. `data-set.txt` in it
says the root, its time is that of the last use, and a process that reads the folder holds a shared lock on it. Parts of
films that `serve` has made for browsers lie in such folders too, one a library, in `serve`.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emcl_train.config import DataConfig
from emcl_train.data.cache import cache_folder
from emcl_train.runs.files import partial_of

NAME = "data-set.txt"
SERVED = "serve"
"""The folder with one for each library that was served."""
PART = re.compile(r"(?P<key>[0-9a-f]{32})_(?P<begin>[0-9]+)_(?P<end>[0-9]+)_(?P<flags>[01]{2,3})\.(?P<kind>mp4|webm)")
"""A part of a film: key, the film's seconds at its begin and end in microseconds, whether it goes on, is muted, or was
encoded; parts of an earlier version do not say the last."""

_held: tuple[Path, int] | None = None
"""The folder that this process uses, and the open file whose lock says so. The system frees it with the process."""


def use_cache(config: DataConfig) -> None:
    """Say that this process uses what is kept of a data set in the user's cache, until it ends or takes another one.

    Nothing is said of a folder that is not there, of one that the user has named, or where that is not possible: it
    only keeps `data cache --prune` from what is needed.
    """
    global _held
    folder = cache_folder(config)
    if folder is None or config.cache_dir is not None or not folder.is_dir():
        return
    with suppress(OSError):
        path = folder / NAME
        if _held is not None and _held[0] == folder and path.exists() and _is_same(path, _held[1]):
            os.utime(path)
            return
        descriptor = hold(folder, os.fsencode(config.root.resolve()))
        if _held is not None:
            os.close(_held[1])
        _held = folder, descriptor


def hold(folder: Path, of: bytes) -> int:
    """Say that this process uses a folder of the cache, until it ends or closes what it gets.

    Args:
        folder: which is there.
        of: whose it is: the path of a data set, or of a library.

    Returns:
        The descriptor of an open file.

    Raises:
        OSError: it cannot be written, or is being removed.
    """
    path = folder / NAME
    if not path.exists():
        _make(path, of)
    os.utime(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def nobody_uses(folder: Path) -> Iterator[bool]:
    """Whether no process uses a folder of the cache; inside the block none can begin to."""
    path = folder / NAME
    if not path.exists():
        _make(path, b"")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def root_of(folder: Path) -> str | None:
    """The data set that a folder of the cache is of; None if nothing says it."""
    path = folder / NAME
    if path.is_symlink() or not path.is_file():
        return None
    return os.fsdecode(path.read_bytes()[:4096]) or None


def _make(path: Path, content: bytes) -> None:
    """Write a file that is whole when it appears, and never takes the place of one on which others hold a lock."""
    partial = partial_of(path)
    try:
        partial.write_bytes(content)
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_same(path: Path, descriptor: int) -> bool:
    return os.path.samestat(path.stat(), os.fstat(descriptor))
