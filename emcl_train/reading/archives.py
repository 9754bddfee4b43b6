"""Archives that may come from anybody: what they unpack to is bounded by what they take on the disk."""

import struct
import zipfile
from pathlib import Path

MOST_TIMES = 32
"""Bytes that a byte of an archive may unpack to: weights and text come to less than ten."""
ALWAYS = 1 << 26
"""Bytes that any archive may unpack to: a small one of zeros is no danger."""


def most_bytes(path: Path) -> int:
    """What a file of weights or arrays may come to in memory."""
    return MOST_TIMES * path.stat().st_size + ALWAYS


def require_unpacked_size(path: Path) -> None:
    """Raise a ValueError where a zip archive unpacks to far more than its size; other files pass.

    Members that share their bytes, so that a small archive unpacks to a large one, count once each.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"its archive is damaged: {error}") from error
    if unpacked > most_bytes(path):
        raise ValueError(
            f"its archive has {path.stat().st_size} bytes and unpacks to {unpacked}, more than {MOST_TIMES} times that"
        )
