"""Write checkpoints of TensorFlow, whole or with lies that no checksum tells. Shares no code with the reader."""

import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19, "uint8": 4}
PLAIN, SNAPPY = 0, 1
MAGIC = bytes.fromhex("57fb808b247547db")


def checksum(data: bytes) -> int:
    """CRC-32C bit by bit, as LevelDB stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value) if value else b""


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


@dataclass
class Entry:
    """What the index says of a variable."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    slices: bool = False

    def encoded(self) -> bytes:
        axes = b"".join(message(2, number(1, length)) for length in self.shape)
        return (
            number(1, self.dtype) + message(2, axes) + number(3, self.shard) + number(4, self.offset)
            + number(5, self.size) + varint(6 << 3 | 5) + struct.pack("<I", self.crc)
            + (message(7, message(1, b"")) if self.slices else b"")
        )  # fmt: skip


def header(shards: int, *, endianness: int = 0, needs: int = 0) -> bytes:
    return number(1, shards) + number(2, endianness) + message(3, number(1, 1) + number(2, needs))


def block(entries: list[tuple[bytes, bytes]], *, restart_every: int = 16) -> bytes:
    found, restarts, before = bytearray(), [], b""
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % restart_every:
            shared = bisect_left(range(1, min(len(key), len(before)) + 1), True, key=lambda n: key[:n] != before[:n])
        else:
            restarts.append(len(found))
        found += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    places = restarts or [0]
    return bytes(found) + struct.pack(f"<{len(places) + 1}I", *places, len(places))


def table(
    entries: list[tuple[bytes, bytes]], *, block_bytes: int = 4096, compression: int = PLAIN, restart_every: int = 16
) -> bytes:
    """Entries in the order that they are given."""
    found = bytearray()

    def put(content: bytes) -> bytes:
        handle = varint(len(found)) + varint(len(content))
        found.extend(content + bytes([compression]))
        found.extend(struct.pack("<I", checksum(content + bytes([compression]))))
        return handle

    handles: list[tuple[bytes, bytes]] = []
    part: list[tuple[bytes, bytes]] = []
    taken = 0
    for index, (key, value) in enumerate(entries):
        part.append((key, value))
        taken += len(key) + len(value)
        if taken >= block_bytes or index == len(entries) - 1:
            handles.append((part[-1][0], put(block(part, restart_every=restart_every))))
            part, taken = [], 0
    about, index_handle = put(block([])), put(block(handles, restart_every=1))
    return bytes(found) + (about + index_handle).ljust(40, b"\0") + MAGIC


def write_bundle(
    prefix: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    shards: int = 1,
    lies: Mapping[str, Mapping[str, object]] | None = None,
    about: bytes | None = None,
    block_bytes: int = 4096,
    compression: int = PLAIN,
) -> Path:
    """A checkpoint of these arrays.

    Args:
        prefix: `model.ckpt-1`.
        arrays: by name.
        shards: how many files of data they are dealt to.
        lies: fields of `Entry` that are to say something else, by name of the variable.
        about: the message without a name; None: a true one.
        block_bytes: after how many a block of the index ends.
        compression: what blocks of the index say of themselves.
    """
    data = [bytearray() for _ in range(shards)]
    entries = [(b"", header(shards) if about is None else about)]
    for index, name in enumerate(sorted(arrays, key=str.encode)):
        array = np.asarray(arrays[name])
        content, shard = array.tobytes(), index % shards
        entry = Entry(DTYPES[str(array.dtype)], array.shape, shard, len(data[shard]), len(content), checksum(content))
        entries.append((name.encode(), replace(entry, **(lies or {}).get(name, {})).encoded()))
        data[shard] += content

    prefix.with_name(f"{prefix.name}.index").write_bytes(
        table(entries, block_bytes=block_bytes, compression=compression)
    )
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05}-of-{shards:05}").write_bytes(content)
    return prefix
