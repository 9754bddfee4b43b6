"""Whether the parts that a file is made of are all there, which its packets alone do not tell.

Demuxers look for the next packet that they understand, so what was overwritten with zeros, as in a download that
stopped in a file of its full length, is passed over without a word.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ReadAt = Callable[[int, int], bytes]
"""Up to so many bytes, the second number, from a place on, the first."""

ZEROS = bytes(8)

ASF_FILE = bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")
ASF_HEADER = 30
ASF_DATA_HEADER = 50

EBML_HEADER = 0x1A45DFA3
SEGMENT = 0x18538067
CLUSTER = 0x1F43B675


def fault_of(path: Path, kind: str) -> str | None:
    """What is wrong with how a file is put together; None if nothing is, or if nothing tells.

    Args:
        path: a file that FFmpeg can open.
        kind: FFmpeg's name of its format.
    """
    looks: dict[str, Callable[[ReadAt, int], str | None]] = {
        "asf": _fault_of_asf,
        "mov": _fault_of_boxes,
        "matroska": _fault_of_ebml,
    }
    look = looks.get(kind.split(",")[0])
    if look is None or not path.is_file():
        return None
    with path.open("rb", buffering=0) as file:
        return look(lambda place, count: os.pread(file.fileno(), count, place), path.stat().st_size)


def segment_is_cut(path: Path) -> bool:
    """Whether a Matroska file is shorter than its one large element says; False for any other file."""
    with path.open("rb") as file:
        beginning = file.read(4096)

    place = 0
    while (element := _element(beginning[place : place + 12])) is not None:
        if element.length is None or (not place and element.name != EBML_HEADER):
            return False
        place += element.head + element.length
        if element.name == SEGMENT:
            return place > path.stat().st_size
    return False


def _overwritten(place: int) -> str:
    return f"it is damaged: at byte {place} there are zeros, where its next part should begin"


def _cut(end: int, size: int) -> str:
    return f"it is truncated: it should have {end} bytes and has {size}"


def _fault_of_boxes(read: ReadAt, size: int) -> str | None:
    """MP4 and MOV: boxes, of which those with pictures must not reach beyond the file."""
    place = 0
    in_fragments = False
    name = b""
    while place + 8 <= size:
        head = read(place, 16)
        name = head[4:8]
        length = int.from_bytes(head[:4], "big")
        if head[:8] == ZEROS and in_fragments:
            return _overwritten(place)
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            return None  # it reaches to the end, or is none
        if name in (b"moof", b"mdat", b"moov") and place + length > size:
            return _cut(place + length, size)
        in_fragments = in_fragments or name == b"moof"
        place += length
    # A box that was begun, or pictures that are announced and do not follow.
    if in_fragments and (place < size or name == b"moof"):
        return _cut(place + 8, size)
    return None


def _fault_of_asf(read: ReadAt, size: int) -> str | None:
    """WMV: a header that counts packets of one size, unless the film was broadcast, and then the packets."""
    header = int.from_bytes(read(16, 8), "little")
    place = ASF_HEADER
    while place + 104 <= min(header, size):
        head = read(place, 104)
        if head[:16] == ASF_FILE:
            break
        place += max(24, int.from_bytes(head[16:24], "little"))
    else:
        return None

    number, flags, least, most = (
        int.from_bytes(head[begin:end], "little") for begin, end in ((56, 64), (88, 92), (92, 96), (96, 100))
    )
    if flags & 1 or least != most or not least:
        return None
    begin = header + ASF_DATA_HEADER
    if begin + number * least > size:
        return _cut(begin + number * least, size)

    # A packet begins with what its fields are, and has some.
    for place in range(begin, begin + number * least, least):
        if read(place, 8) == ZEROS:
            return _overwritten(place)
    return None


class _Element(NamedTuple):
    """What stands at the beginning of an element of Matroska."""

    name: int
    length: int | None
    """Bytes behind the head. None: it is not known."""
    head: int
    """Bytes of name and length."""


def _element(head: bytes) -> _Element | None:
    """The element that begins with these up to 12 bytes; None if none does."""
    if not head or not head[0]:
        return None
    id_bytes = 9 - head[0].bit_length()
    if id_bytes > 4 or len(head) <= id_bytes or not head[id_bytes]:
        return None

    # A length of n bytes begins with n - 1 zero bits and a one; of ones alone it is not known.
    length_bytes = 9 - head[id_bytes].bit_length()
    unknown = (1 << 7 * length_bytes) - 1
    length = int.from_bytes(head[id_bytes : id_bytes + length_bytes], "big") & unknown
    name = int.from_bytes(head[:id_bytes], "big")
    return _Element(name, None if length == unknown else length, id_bytes + length_bytes)


def _fault_of_ebml(read: ReadAt, size: int) -> str | None:
    """Matroska and WebM: elements, of which those with packets in them are looked into. No id begins with a zero."""
    place = 0
    end = size
    while place < end:
        head = read(place, 12)
        element = _element(head)
        if element is None:
            # Neither a name nor a length begins with a zero.
            id_bytes = 9 - head[0].bit_length()
            zero = not head[0] or (id_bytes <= 4 and len(head) > id_bytes)
            return _overwritten(place) if zero else None
        if not place and element.name != EBML_HEADER:
            return None

        place += element.head
        if element.name == SEGMENT:
            end = size if element.length is None else min(size, place + element.length)
        elif element.name != CLUSTER:
            if element.length is None:
                return None
            place += element.length
    return None
