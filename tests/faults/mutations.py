"""Files that were whole, changed by a seed: bytes, numbers in headers, values in JSON, and operations of pickles."""

import io
import json
import pickle
import random
import struct
import zipfile
from typing import Any

NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 10**12, -(2**31))
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", "x",
    "9" * 400, "../../../etc/passwd", "/dev/zero", "/etc/passwd", "http://127.0.0.1:9/x", "\x00", "a\x1b[2Jb",
    "<b>x</b>", "\ud800",
    "x" * 100_000, [], {}, [[]], [0] * 1000, {"": ""}, {"__class__": "x"}, ["/dev/stdin"], "-", "~", "random",
    "kernels-community/flash-attn", "eager", {"auto_map": {"AutoTokenizer": "x.Y"}},
]  # fmt: skip


def mutated(data: bytes, name: str, draw: random.Random) -> bytes:
    """A changed copy of a file, in a way that fits its kind."""
    ways = [_bytes, _bytes, _header]
    if name.endswith((".json", ".jsonl")):
        ways = [_json, _json, _json, _bytes]
    elif name.endswith((".csv", ".txt")):
        ways = [_lines, _bytes]
    elif name.endswith(".safetensors"):
        ways = [_safetensors, _safetensors, _bytes, _header]
    elif name.endswith((".pt", ".bin", ".npz")):
        ways = [_archive, _archive, _archive, _bytes]
    elif name.endswith(".npy"):
        ways = [_npy, _npy, _bytes, _header]
    elif name.endswith(".pkl"):
        ways = [_pickle, _pickle, _bytes]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(ways)(data, draw)
    return data


def _bytes(data: bytes, draw: random.Random) -> bytes:
    """Flipped, cut, repeated, moved, overwritten."""
    changed = bytearray(data)
    size = len(changed)
    if size == 0:
        return bytes(draw.randbytes(draw.randint(1, 64)))
    start = draw.randrange(size)
    length = draw.choice((1, 2, 4, 8, 64, 1024, size))
    how = draw.randrange(7)
    if how == 0:
        changed[start] ^= 1 << draw.randrange(8)
    elif how == 1:
        del changed[start:]
    elif how == 2:
        del changed[start : start + length]
    elif how == 3:
        changed[start:start] = changed[start : start + length] * draw.choice((1, 2, 16))
    elif how == 4:
        part = changed[start : start + length]
        changed[start : start + length] = bytes([draw.choice((0, 0x20, 0x7F, 0xFF))]) * len(part)
    elif how == 5:
        changed[start : start + length] = draw.randbytes(min(length, size - start))
    else:
        changed += draw.randbytes(draw.choice((1, 100, 10_000)))
    return bytes(changed)


def _header(data: bytes, draw: random.Random) -> bytes:
    """A number of 4 or 8 bytes in the beginning."""
    if len(data) < 16:
        return _bytes(data, draw)
    changed = bytearray(data)
    size = draw.choice((4, 8))
    start = draw.randrange(min(len(data) - size, 256))
    number = draw.choice(NUMBERS) & (2 ** (8 * size) - 1)
    changed[start : start + size] = number.to_bytes(size, draw.choice(("little", "big")))
    return bytes(changed)


def _json(data: bytes, draw: random.Random) -> bytes:
    """Another value, key or form in one place; or a form that is hard on readers."""
    how = draw.randrange(12)
    if how == 0:
        deep = draw.choice((900, 1100, 100_000, 5_000_000))
        return b"[" * deep + b"]" * draw.choice((0, deep))
    if how == 1:
        return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    if how == 2:
        return b"1" * draw.choice((4000, 5000, 3_000_000))
    if how == 3:
        return bytes(draw.choice((b"", b"null", b"[]", b"{}", b"0", b'""', b"\xff\xfe", b"\xef\xbb\xbf{}", b"NaN")))
    try:
        lines = data.split(b"\n") if data.count(b"\n{") else [data]
        number = draw.randrange(len(lines))
        value = json.loads(lines[number])
        lines[number] = json.dumps(_changed(value, draw)).encode()
        return b"\n".join(lines)
    except (ValueError, IndexError, RecursionError):
        return _bytes(data, draw)


def _changed(value: Any, draw: random.Random) -> Any:
    """One place of a value, at whatever depth, is another one."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.05:
        return draw.choice(VALUES)
    if isinstance(value, dict):
        key = draw.choice(sorted(value))
        how = draw.random()
        if how < 0.08:
            return {name: entry for name, entry in value.items() if name != key}
        if how < 0.16:
            return {
                **value,
                draw.choice(("x", "", "__class__", "auto_map", "_attn_implementation")): draw.choice(VALUES),
            }
        return {**value, key: _changed(value[key], draw)}
    place = draw.randrange(len(value))
    if draw.random() < 0.1:
        return [*value[:place], *value[place + 1 :]]
    return [*value[:place], _changed(value[place], draw), *value[place + 1 :]]


def _lines(data: bytes, draw: random.Random) -> bytes:
    """Cells of a table."""
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    cells = lines[place].split(b",")
    value = draw.choice(
        (b"", b'"', b'"""', b"\x00", b"../../x", b"/dev/zero", b"x" * 200_000, b"\xff\xfe", b"1e999", b"-1", b"a,b,c")
    )
    cells[draw.randrange(len(cells))] = value
    lines[place] = b",".join(cells)
    return b"\n".join(lines)


def _safetensors(data: bytes, draw: random.Random) -> bytes:
    """Its header: names, types, shapes and places of tensors."""
    try:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        rest = data[8 + size :]
        name = draw.choice(sorted(header))
        how = draw.randrange(6)
        if how == 0:
            header[name] = _changed(header[name], draw)
        elif how == 1 and "shape" in header[name]:
            header[name]["shape"] = draw.choice(([2**62, 4], [0], [], [-1], [2**32, 2**32], [1] * 1000, [1, 2, 3]))
        elif how == 2 and "data_offsets" in header[name]:
            header[name]["data_offsets"] = [draw.choice(NUMBERS), draw.choice(NUMBERS)]
        elif how == 3 and "dtype" in header[name]:
            header[name]["dtype"] = draw.choice(("F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", 1, "U8"))
        elif how == 4:
            header[draw.choice(("", "x" * 100_000, "a.b", "../x"))] = header.pop(name)
        else:
            header["__metadata__"] = draw.choice(VALUES)
        text = json.dumps(header).encode()
        shown = draw.choice((len(text), len(text), len(text), *NUMBERS)) % 2**64
        return struct.pack("<Q", shown) + text + rest
    except (ValueError, struct.error, IndexError, KeyError, TypeError, RecursionError):
        return _bytes(data, draw)


def _npy(data: bytes, draw: random.Random) -> bytes:
    """Its header: type and shape."""
    try:
        length = struct.unpack("<H", data[8:10])[0]
        rest = data[10 + length :]
        descr = draw.choice(
            ("'<f4'", "'|O'", "'<f8'", "'<U1000000'", "'<c16'", "[('x', '<f4')]", "'<f2'", "'|V0'", "'>f4'", "1")
        )
        shape = draw.choice(
            ("(2, 3)", f"({2**62}, 4)", "(-1, 4)", "(0, 0)", "()", "(1,) * 70", "(4, 4, 4)", "(10**12,)", "'x'")
        )
        order = draw.choice(("True", "False", "1"))
        text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
        return data[:8] + struct.pack("<H", draw.choice((len(text), len(text), 0, 65535))) + text + rest
    except (struct.error, IndexError):
        return _bytes(data, draw)


def _archive(data: bytes, draw: random.Random) -> bytes:
    """One entry of a zip archive: changed, gone, twice, packed, or with another name."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            entries = [(entry.filename, source.read(entry)) for entry in source.infolist()]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        return _bytes(data, draw)
    if not entries:
        return _bytes(data, draw)
    place = draw.randrange(len(entries))
    pickles = [n for n, (name, _) in enumerate(entries) if name.endswith(".pkl")]
    if pickles and draw.random() < 0.5:
        place = pickles[0]
    name, content = entries[place]
    packed = zipfile.ZIP_STORED
    how = draw.randrange(6)
    if how == 0:
        del entries[place]
    elif how == 1:
        entries.append((name, content))
    elif how == 2:
        entries[place] = (draw.choice(("../x", "/x", "x" * 5000, "archive/data.pkl", "")), content)
    elif how == 3:
        packed = zipfile.ZIP_DEFLATED
        entries[place] = (name, content + bytes(draw.choice((0, 1000, 50_000_000))))
    else:
        entries[place] = (name, (_pickle if name.endswith(".pkl") else _bytes)(content, draw))
    target = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", packed) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            archive.writestr(name or "empty", content)
    return target.getvalue()


class _Runs:
    """A pickle that calls something when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _pickle(data: bytes, draw: random.Random) -> bytes:
    """Operations that run code, build what is never built, or grow without end."""
    how = draw.randrange(8)
    protocol = draw.choice((0, 2, 4))
    if how == 0:
        import os

        return pickle.dumps(_Runs(os.system, "echo it-was-run >&2; touch it-was-run"), protocol)
    if how == 1:
        return pickle.dumps({"x": [_Runs(eval, "__import__('os').mkdir('it-was-run')")]}, protocol)
    if how == 2:  # 2^40 paths to one list
        inner = b"]q\x00"
        return b"\x80\x02" + inner + b"".join(b"](h%c" % n * 2 + b"e" + b"q" + bytes([n + 1]) for n in range(40)) + b"."
    if how == 3:
        return b"\x80\x02" + b"(" * draw.choice((1000, 100_000)) + b"."
    if how == 4:
        return b"\x80\x02]" + b"q\x00h\x00a" * 50_000 + b"."
    if how == 5:
        return b"\x80\x04\x8d" + draw.choice(NUMBERS[:-1]).__abs__().to_bytes(9, "little")[:8] + b"x."
    if how == 6:
        return b"\x80\x02cposix\nsystem\nX\x10\x00\x00\x00touch it-was-run\x85R."
    return _bytes(data, draw)
