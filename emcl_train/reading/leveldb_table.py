"""A table of LevelDB's format that may come from anybody: keys in their order, each with its value.

The file ends with a footer that says where the index block is. The index block says where the data blocks are. A block
is a row of entries, each key given by how much of the one before it begins with; behind it stand its compression and
its checksum. https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from collections.abc import Iterator

from emcl_train.reading.crc32c import crc32c, unmasked
from emcl_train.reading.protobuf import taken, varint

FOOTER = 48
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
PLAIN, SNAPPY = 0, 1
"""Compressions of a block."""
MOST_LETTERS = 1 << 24
"""Of all keys of a table. A file could ask for far more: an entry of four bytes repeats a key of any length."""


class Compressed(ValueError):
    """A block is compressed, which is not read here."""


def table_entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each key and its value, keys ascending.

    Args:
        table: the whole file.

    Raises:
        Compressed: a block is compressed.
        ValueError: the file is damaged or cut off.
    """
    footer = table[-FOOTER:]
    if len(footer) < FOOTER or footer[-len(MAGIC) :] != MAGIC:
        raise ValueError("it does not end as a table of LevelDB does: it is cut off, or of another format")
    about, at = _block_at(footer, 0)
    index, _ = _block_at(footer, at)
    _block(table, about)  # it names blocks about blocks, of which such files have none; a look at its checksum is all

    before: bytes | None = None
    letters = 0
    for _, handle in _entries(_block(table, index)):
        place, _ = _block_at(handle, 0)
        content = list(_entries(_block(table, place)))
        if not content:  # which nobody writes, and an index could name as often as it likes
            raise ValueError("its index names a block without entries")
        for key, value in content:
            # Otherwise an index could name one block a million times.
            if before is not None and key <= before:
                raise ValueError("its keys do not ascend")
            letters += len(key)
            if letters > MOST_LETTERS:
                raise ValueError(f"its keys come to more than {MOST_LETTERS} letters")
            before = key
            yield key, value


def _block_at(data: bytes, start: int) -> tuple[tuple[int, int], int]:
    """Where a block begins and how long it is, and where the next thing begins."""
    offset, start = varint(data, start)
    size, start = varint(data, start)
    return (offset, size), start


def _block(table: bytes, place: tuple[int, int]) -> bytes:
    """What stands in a block, after a look at its checksum."""
    offset, size = place
    checked, end = taken(table, offset, size + 1)
    stored, _ = taken(table, end, 4)

    compression = checked[-1]
    if crc32c(checked) != unmasked(int.from_bytes(stored, "little")):
        raise ValueError(f"its block at byte {offset} does not have the checksum that is stored with it")
    if compression != PLAIN:
        name = "snappy" if compression == SNAPPY else f"method {compression}"
        raise Compressed(f"its block at byte {offset} is compressed with {name}")
    return checked[:-1]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    # At the end: where entries with whole keys begin, and how many these are. Whoever reads all needs neither.
    if len(block) < 4:
        raise ValueError("it has a block without an end")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError(f"it has a block of {len(block)} bytes that promises {restarts} places in it")

    entries = block[:end]
    key, at = b"", 0
    while at < end:
        shared, at = varint(entries, at)
        own, at = varint(entries, at)
        length, at = varint(entries, at)
        if shared > len(key):
            raise ValueError(f"it has a key that begins as {shared} letters of one which has {len(key)}")
        rest, at = taken(entries, at, own)
        value, at = taken(entries, at, length)
        key = key[:shared] + rest
        yield key, value
