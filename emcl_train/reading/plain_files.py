"""Bytes and JSON of files that may come from anybody: regular files of a bounded size, nested to a bounded depth.

Nothing here needs torch.
"""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Levels of nesting in JSON: what walks a value by recursion has room for these."""
LARGEST_JSON = 1 << 30
"""Bytes of a JSON file that is read whole: the lists of a million captions take a tenth of it."""
LARGEST_DESCRIPTION = 1 << 24
"""Bytes of a JSON file that describes a model or a run."""
LARGEST_LIST = 1 << 31
"""Bytes of a list of clips and captions: that of ten million captions takes less."""
LARGEST_LINE = 1 << 24
"""Letters of one clip with all its captions."""


def read_regular(path: Path, largest: int = LARGEST_JSON) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file, or a link to it.
        largest: bytes that it may have.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, such as a named pipe, which would be waited for without end, or is larger.
    """
    # Opened without waiting, and asked what it is afterwards: between a look and the opening it could be replaced.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        _require_regular(status, path)
        if status.st_size > largest:
            raise ValueError(f"it has {status.st_size} bytes, and at most {largest} are read of such a file")
        return file.read(status.st_size)


def require_regular(path: Path) -> None:
    """Ask what a file is before a library opens it, which would wait at a named pipe without end.

    Raises:
        OSError: it cannot be asked.
        ValueError: it is no regular file.
    """
    _require_regular(os.stat(path), path)


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file, but a pipe, a socket or a device")


def parse_json(text: str | bytes, *, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text, in time and memory that are linear in its length.

    Args:
        text: in UTF-8, where it is bytes.
        pairs_hook: makes something else than a dict of an object, given as pairs.

    Raises:
        ValueError: it is no JSON, holds a number of thousands of digits, or is nested deeper than `DEEPEST`.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    if is_deeper(value, DEEPEST):
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return value


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and dicts are nested deeper than this; found level by level, without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return any(isinstance(node, (dict, list)) for node in level)
