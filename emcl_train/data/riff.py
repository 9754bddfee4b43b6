"""Whether an AVI file has all the chunks that it is made of: RIFF, in it a list "movi", and in that the packets."""

import os
from pathlib import Path
from typing import BinaryIO

HEAD = 8
"""Bytes of a chunk's name and length."""


def is_whole(path: Path) -> bool:
    """Whether every chunk of the film is there.

    A chunk of length 0 is a frame that was dropped. Where a chunk's name should be and zeros are, the file was
    overwritten, or never came that far: a download may reserve the whole length first.

    Args:
        path: an AVI file, of one RIFF or, above a gigabyte, of several.
    """
    size = path.stat().st_size
    place = 0
    films = 0
    with path.open("rb") as file:
        while place + HEAD <= size:
            name, length = _head(file, place)
            if name == bytes(4):
                return False  # the next RIFF of a long film never came
            if name != b"RIFF":
                break  # what somebody wrote behind the film
            end = place + HEAD + length
            if not length or end > size:
                return False  # it was never finished, or is cut off

            found = _films_of(file, place + HEAD + 4, end)
            if found is None:
                return False
            films += found
            place = end + length % 2
    return films > 0


def _films_of(file: BinaryIO, place: int, end: int) -> int | None:
    """How many lists of packets a RIFF has; None if one of its chunks is no chunk, or goes beyond its end."""
    films = 0
    while place + HEAD <= end:
        name, length = _head(file, place)
        inside = place + HEAD
        if not _is_name(name) or inside + length > end:
            return None

        if name == b"LIST" and file.read(4) in (b"movi", b"rec "):
            if _films_of(file, inside + 4, inside + length) is None:
                return None
            films += 1
        place = inside + length + length % 2
    return films


def _head(file: BinaryIO, place: int) -> tuple[bytes, int]:
    file.seek(place, os.SEEK_SET)
    head = file.read(HEAD)
    return head[:4], int.from_bytes(head[4:], "little")


def _is_name(name: bytes) -> bool:
    """Four characters that can be seen, or spaces at the end."""
    return len(name) == 4 and name.isascii() and name.decode().isprintable() and name[:1] != b" "
