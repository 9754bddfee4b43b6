"""Messages of protocol buffers that may come from anybody, field by field, without their description.

A message is a row of fields: a number, a kind, and a value. A field that nobody asks for is passed over.
"""

from collections.abc import Iterator

MOST_BITS = 64
SIGN = 1 << 63
FIXED = {1: 8, 5: 4}
"""Kinds of fixed width, with their bytes; both are little-endian."""
VARINT, BYTES = 0, 2
"""Kinds of other widths: a number, and as many bytes as a number before them says."""


def varint(data: bytes, start: int) -> tuple[int, int]:
    """A number of as many bytes as it needs, seven bits a byte, the lowest first.

    Returns:
        The number, below 2⁶⁴; where the next thing begins.

    Raises:
        ValueError: the bytes end within it, or it has more than 64 bits.
    """
    value = 0
    for index, shift in enumerate(range(0, MOST_BITS + 6, 7), start):
        if index >= len(data):
            raise ValueError("it ends within a number")
        value |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:
            if value >> MOST_BITS:
                break
            return value, index + 1
    raise ValueError("it has a number of more than 64 bits")


def taken(data: bytes, start: int, count: int) -> tuple[bytes, int]:
    """As many bytes as are said to be there, and where the next thing begins.

    Raises:
        ValueError: fewer are.
    """
    if count > len(data) - start:
        raise ValueError(f"it promises {count} bytes where it has {len(data) - start}")
    return data[start : start + count], start + count


def fields_of(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field of a message: its number, and its value, which is bytes if the field is a text or a message.

    Numbers are those of int32 and int64: from 2⁶³ on they stand for negative ones.

    Raises:
        ValueError: the bytes are no message.
    """
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, value - 2 * SIGN if value >= SIGN else value
        elif kind == BYTES:
            length, at = varint(message, at)
            content, at = taken(message, at, length)
            yield number, content
        elif kind in FIXED:
            content, at = taken(message, at, FIXED[kind])
            yield number, int.from_bytes(content, "little")
        else:
            raise ValueError(f"it has a field of kind {kind}, which no message has")


def number_in(message: bytes, wanted: int) -> int:
    """A number of a message by its field; 0 where it is not there, as protocol buffers have it."""
    found = 0
    for number, value in fields_of(message):
        if number == wanted:
            if not isinstance(value, int):
                raise ValueError(f"its field {number} is no number")
            found = value
    return found


def messages_in(message: bytes, wanted: int) -> list[bytes]:
    """All values of a field that holds messages or texts, in their order."""
    found = []
    for number, value in fields_of(message):
        if number == wanted:
            if not isinstance(value, bytes):
                raise ValueError(f"its field {number} is a number, expected a message")
            found.append(value)
    return found
