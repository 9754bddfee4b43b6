"""Changes to whole video files that leave every byte of their pictures where it was: MP4's boxes, AVI's chunks."""

import struct
from collections.abc import Sequence
from pathlib import Path

Matrix = tuple[int, int, int, int, int, int, int, int, int]


def box(data: bytes | bytearray, *names: bytes, start: int = 0, end: int | None = None) -> int:
    """Where the box lies that these names lead to, from the outermost on."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        (size,) = struct.unpack(">I", data[start : start + 4])
        if data[start + 4 : start + 8] == names[0]:
            return start if len(names) == 1 else box(data, *names[1:], start=start + 8, end=start + size)
        start += size
    raise AssertionError(f"there is no box {names[0]!r}")


def set_edits(path: Path, *edits: tuple[float, float]) -> None:
    """Show these parts of an MP4 or MOV, whose boxes lie behind its pictures, one after the other.

    Args:
        path: the file, which is changed.
        *edits: seconds that are shown, and from which second of the pictures on; below 0: nothing is shown.
    """
    data = bytearray(path.read_bytes())
    ticks = {}
    for name, names in (("media", (b"moov", b"trak", b"mdia", b"mdhd")), ("movie", (b"moov", b"mvhd"))):
        place = box(data, *names) + 20
        (ticks[name],) = struct.unpack(">I", data[place : place + 4])

    place = box(data, b"moov", b"trak", b"edts", b"elst")
    (size,) = struct.unpack(">I", data[place : place + 4])
    listed = struct.pack(">II", 0, len(edits))
    for seconds, begin in edits:
        media = round(begin * ticks["media"]) if begin >= 0 else -1
        listed += struct.pack(">IiI", round(seconds * ticks["movie"]), media, 1 << 16)
    data[place : place + size] = struct.pack(">I4s", 8 + len(listed), b"elst") + listed

    longer = 8 + len(listed) - size
    for names in ((b"moov",), (b"moov", b"trak"), (b"moov", b"trak", b"edts")):
        place = box(data, *names)
        (before,) = struct.unpack(">I", data[place : place + 4])
        data[place : place + 4] = struct.pack(">I", before + longer)
    path.write_bytes(data)


def set_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Show an MP4 or MOV by this display matrix, row by row in 16.16 and 2.30 fixed point."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def empty_sample(path: Path, number: int) -> None:
    """Make one sample of an MP4 empty; the one before it has its bytes at its end."""
    data = bytearray(path.read_bytes())
    place = box(data, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz") + 20 + 4 * number
    before, size = struct.unpack(">II", data[place - 4 : place + 4])
    data[place - 4 : place + 4] = struct.pack(">II", before + size, 0)
    path.write_bytes(data)


def append_empty_chunks(path: Path, number: int) -> None:
    """Frames that an AVI counts and that have no bytes, behind the last one."""
    data = bytearray(path.read_bytes())
    index = data.rindex(b"idx1")
    movi = data.index(b"movi") - 8
    length = data.index(b"strh") + 8 + 32
    for place, more in ((4, 8 * number), (movi + 4, 8 * number), (length, number)):
        (before,) = struct.unpack("<I", data[place : place + 4])
        data[place : place + 4] = struct.pack("<I", before + more)
    data[index:index] = struct.pack("<4sI", b"00dc", 0) * number
    path.write_bytes(data)


def overwrite_chunks(path: Path, first: int, number: int | None, *, index: bool) -> None:
    """Write zeros over packets of an AVI, as a download that reserved their place leaves it.

    Args:
        path: the file.
        first: the packet to begin with.
        number: of packets; None: all that follow.
        index: whether the list of packets at the end of the file stays.
    """
    data = bytearray(path.read_bytes())
    places = [data.index(b"movi") + 4]
    end_of_movi = data.rindex(b"idx1")
    while places[-1] < end_of_movi:
        (length,) = struct.unpack("<I", data[places[-1] + 4 : places[-1] + 8])
        places.append(places[-1] + 8 + length + length % 2)

    begin = places[first]
    end = places[-1] if number is None else places[first + number]
    data[begin:end] = bytes(end - begin)
    if not index:
        data[end_of_movi:] = bytes(len(data) - end_of_movi)
    path.write_bytes(data)


def set_avi_count(path: Path, frames: int) -> None:
    """Write another number of frames into the header of an AVI."""
    data = bytearray(path.read_bytes())
    place = data.index(b"strh") + 8 + 32
    data[place : place + 4] = struct.pack("<I", frames)
    path.write_bytes(data)
