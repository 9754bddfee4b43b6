"""Whether a file says that there is more in it than a file of its size can hold, asked before FFmpeg believes it.

FFmpeg makes a table of all packets that the headers of an MP4 announce, some hundred bytes for each, whether there is
one or not: without this, two kilobytes take all memory.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ReadAt = Callable[[int, int], bytes]
"""Up to so many bytes, the second number, from a place on, the first."""

FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx", b"uuid", b"junk")
"""Boxes with which an MP4 or a MOV begins."""
INSIDE = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf")
"""Boxes that hold others of these."""
COUNTS = {
    **dict.fromkeys((b"stts", b"ctts", b"stsc", b"stco", b"co64", b"stss", b"stsd", b"elst", b"trun"), 4),
    **dict.fromkeys((b"stsz", b"stz2"), 8),
}
"""Bytes between the head of a box and the number of its entries."""

MOST_TRACKS = 1000
"""Of which FFmpeg takes as many."""
MOST_BOXES = 5_000_000
"""A day of film in fragments of a second has a fifth of it."""
FEW_PACKETS = 5_000_000
"""Entries of a table that are never too many."""
DEEP = 16


class _Track:
    """What the tables of a track announce."""

    def __init__(self) -> None:
        self.handlers: set[bytes] = set()
        self.steady = True
        """Whether all of its samples last one step of its clock, as those of plain sound."""
        self.packets = 0
        """In a table of their sizes."""
        self.uniform = 0
        """Of one size, of which there is no table."""
        self.edits = 0

    def excess(self, size: int) -> str | None:
        # FFmpeg lists plain sound by its chunks, whose table is in the file: a sample of it may take less than a byte.
        plain_sound = self.handlers == {b"soun"} and self.steady
        packets = max(self.packets, 0 if plain_sound else self.uniform)
        if packets > size:
            return f"its part stsz announces {packets} entries, and the file has {size} bytes"

        # FFmpeg may list the packets of a track anew for each of its edits.
        if packets * self.edits > max(size, FEW_PACKETS):
            return f"a track of {packets} packets has {self.edits} edits, and the file has {size} bytes"
        return None


class _Box(NamedTuple):
    """A part of an MP4 file."""

    name: bytes
    place: int
    """Where what is in it begins."""
    end: int


def excess_of(path: Path) -> str | None:
    """What a file claims that cannot be; None if there is nothing, or if its format has no such tables.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size

        def read(place: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, place)

        if read(4, 4) not in FIRST:
            return None
        return _excess_of_boxes(read, size)


def _excess_of_boxes(read: ReadAt, size: int) -> str | None:
    tracks = 0
    track = _Track()
    for number, box in enumerate(_boxes(read, 0, size, DEEP)):
        if number > MOST_BOXES:
            return f"it has more than {MOST_BOXES} parts"
        if box.name in (b"trak", b"moof"):
            if reason := track.excess(size):
                return reason
            tracks += box.name == b"trak"
            track = _Track()
        if tracks > MOST_TRACKS:
            return f"it has more than {MOST_TRACKS} tracks"
        if box.name == b"hdlr":
            _take_handler(track, read(box.place + 4, 8))
        if box.name not in COUNTS:
            continue

        # No packet is shorter than a byte, and no entry of a table is.
        begin = box.place + COUNTS[box.name]
        entries = int.from_bytes(read(begin, 4), "big")
        if box.name == b"stsz" and any(read(box.place + 4, 4)):
            track.uniform = max(track.uniform, entries)
            continue
        if entries > size:
            return f"its part {box.name.decode()} announces {entries} entries, and the file has {size} bytes"

        if box.name in (b"stsz", b"stz2"):
            track.packets = max(track.packets, entries)
        elif box.name == b"elst":
            track.edits = max(track.edits, entries)
        elif box.name == b"stts":
            track.steady &= entries == 1 and int.from_bytes(read(begin + 8, 4), "big") == 1
    return track.excess(size)


def _take_handler(track: _Track, kinds: bytes) -> None:
    """Take up what a track is of; QuickTime says in the same way where its data are, which says nothing of that."""
    if kinds[:4] != b"dhlr":
        track.handlers.add(kinds[4:])


def _boxes(read: ReadAt, place: int, end: int, deep: int) -> Iterator[_Box]:
    """All boxes between two places, each before those that are in it."""
    while place + 8 <= end:
        head = read(place, 16)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4], "big")
        begin = place + 8
        if length == 1:
            length = int.from_bytes(head[8:], "big")
            begin = place + 16
        elif not length:
            length = end - place  # to the end
        if length < begin - place:
            return

        box = _Box(head[4:8], begin, min(end, place + length))
        yield box
        if box.name in INSIDE and deep:
            yield from _boxes(read, box.place, box.end, deep - 1)
        place += length
