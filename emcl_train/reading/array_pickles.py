"""Pickles of NumPy's arrays, `{id: array}`, read without running anything in them; arrays stay where they are.

A pickle of features is a dict with an array for each clip, or NaN where there is none, or a list of arrays. It was
written by Python 2 or 3 with a NumPy of any year. The names that such a pickle asks for are on a list here, and each
stands for a few lines of ours: nothing of NumPy is called by its name. The bytes of an array are not copied: an array
is a view of the file, which is mapped into memory. So a file of several gigabytes takes what its ids and shapes take.
In protocols 0 to 2, Python 3 writes bytes as a text, of which one letter stands for each: these arrays are in memory,
and take while the file is read up to three times what they have in it. Files of Python 2 have no such texts.
"""

import codecs
import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from os import SEEK_CUR
from pathlib import Path
from typing import Any

import numpy as np

from emcl_train.reading.archives import ALWAYS
from emcl_train.reading.arrays import NUMBERS
from emcl_train.reading.pickles import ASK, PLAIN, BoundedUnpickler, Visits
from emcl_train.reading.plain_files import require_regular
from emcl_train.reading.shown import shortened

ArrayValue = np.ndarray | list[np.ndarray] | None
"""What a clip has: one array, several (of its captions, say), or nothing, for which pickles have NaN."""

SHORT = 512
"""Bytes of a text below which it is taken into memory: ids and codes of types, which are no arrays."""
LATIN = ("latin1", "latin-1", "iso-8859-1")
"""Encodings in which Python 3 writes bytes for Python 2: every byte is a letter."""
MOST_DIMENSIONS = 32


@dataclass(frozen=True, eq=False)
class _Span:
    """Bytes that stay in the file."""

    offset: int
    length: int


class _Type:
    """A dtype in the making: a code such as "f4", and the order of its bytes."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError(f"it has a type {self.code} of several fields")
        order = _text(state[1])
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it has the order of bytes {order!r}")
        self.order = "=" if order == "|" else order

    @property
    def is_object(self) -> bool:
        return self.code[:1] == "O"

    def dtype(self) -> np.dtype:
        try:
            if self.code[:1] in NUMBERS and self.code[1:].isdecimal():
                return np.dtype(self.order + self.code)
        except (TypeError, ValueError, OverflowError):  # a width that NumPy does not have
            pass
        raise ValueError(f"it has values of type {self.code[:20]!r}, expected numbers")


class _Array:
    """An array in the making."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.type = _Type("f4")
        self.data: Any = b""
        self.fortran = False

    def build(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5:  # newer ones begin with a version
            state = state[1:]
        if not isinstance(state, tuple) or len(state) != 4 or not isinstance(state[1], _Type):
            raise pickle.UnpicklingError("it has an array without a shape, a type and values")
        self.shape = _shape(state[0])
        self.type = state[1]
        self.fortran = bool(state[2])
        self.data = state[3]


@dataclass(frozen=True, eq=False)
class _Name:
    """What a name on the list stands for."""

    name: str
    call: Callable[[tuple[Any, ...]], Any] | None = None
    """What a call of it does; None: it is only handed on to others."""


def _encode(arguments: tuple[Any, ...]) -> bytes:
    text, encoding = arguments
    if not isinstance(text, str) or _text(encoding) not in LATIN:
        raise pickle.UnpicklingError("it encodes a text in other ways than byte by byte")
    return codecs.latin_1_encode(text)[0]


def _from_buffer(arguments: tuple[Any, ...]) -> _Array:
    data, kind, shape, order = arguments
    array = _Array()
    array.build((shape, kind, _text(order) == "F", data))
    return array


def _scalar(arguments: tuple[Any, ...]) -> _Array:
    kind, data = arguments
    array = _Array()
    array.build(((), kind, False, data))
    return array


def _empty_bytes(arguments: tuple[Any, ...]) -> bytes:
    if arguments:
        raise pickle.UnpicklingError("it asks for bytes of a value")
    return b""


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict, and defaultdict, whose makers of values are not asked."""
    return {}


NAMES: dict[str, Callable[[tuple[Any, ...]], Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": lambda arguments: _Type(_text(arguments[0])),
    "_codecs.encode": _encode,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
}
for _core in ("numpy.core", "numpy._core"):
    NAMES[f"{_core}.multiarray._reconstruct"] = lambda arguments: _Array()
    NAMES[f"{_core}.multiarray.scalar"] = _scalar
    NAMES[f"{_core}.numeric._frombuffer"] = _from_buffer
for _builtin in ("builtins", "__builtin__"):
    NAMES[f"{_builtin}.bytes"] = _empty_bytes
    NAMES[f"{_builtin}.list"] = NAMES[f"{_builtin}.dict"] = None


class _ArrayUnpickler(BoundedUnpickler):
    """Reads plain values and NumPy's arrays from a mapped file."""

    allowed = (*PLAIN, *ASK, pickle.REDUCE, pickle.BUILD, pickle.BINBYTES8, pickle.BYTEARRAY8)
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    _file: mmap

    def __init__(self, file: mmap) -> None:
        super().__init__(file, encoding="bytes")
        steps = self.__dict__["dispatch"]

        # Frames are bytes that follow each other like all others: read as such, their arrays stay in the file.
        steps[pickle.FRAME[0]] = lambda unpickler: unpickler.read(8)
        for code, size in (
            (pickle.BINSTRING, "<i"), (pickle.SHORT_BINSTRING, "<B"), (pickle.BINBYTES, "<I"),
            (pickle.SHORT_BINBYTES, "<B"), (pickle.BINBYTES8, "<Q"), (pickle.BYTEARRAY8, "<Q"),
        ):  # fmt: skip
            steps[code[0]] = self._bytes_of(size)
        steps[pickle.REDUCE[0]] = _ArrayUnpickler._call
        steps[pickle.BUILD[0]] = _ArrayUnpickler._build

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        if asked not in NAMES:
            raise pickle.UnpicklingError(f"it asks for the global {asked}")
        return _Name(asked, NAMES[asked])

    @staticmethod
    def _bytes_of(size: str) -> Callable[[Any], None]:
        width = struct.calcsize(size)

        def take(unpickler: "_ArrayUnpickler") -> None:
            (length,) = struct.unpack(size, unpickler.read(width))
            file = unpickler._file
            at = file.tell()
            if not 0 <= length <= len(file) - at:
                raise pickle.UnpicklingError(f"it declares {length} bytes at byte {at}, and has {len(file) - at} left")
            if length < SHORT:
                unpickler.append(unpickler.read(length))
                return
            file.seek(length, SEEK_CUR)
            unpickler.append(_Span(at, length))

        return take

    def _call(self) -> None:
        arguments = self.stack.pop()
        called = self.stack[-1]
        if not isinstance(called, _Name) or called.call is None or not isinstance(arguments, tuple):
            what = called.name if isinstance(called, _Name) else shortened(called)
            raise pickle.UnpicklingError(f"it asks for a call of {what}")
        self.stack[-1] = called.call(arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, (_Array, _Type)):
            raise pickle.UnpicklingError(f"it asks for a state of {shortened(target)}")
        target.build(state)


def read_arrays(path: Path) -> dict[str, ArrayValue]:
    """What a pickle of `{id: array, NaN, or a list of arrays}` holds.

    Args:
        path: of Python 2 or 3, in any protocol. It stays mapped into memory as long as one of its arrays lives.

    Returns:
        The arrays by ids, of any dtypes and shapes; None where the pickle has NaN or None.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, or asks for a name that no array needs; nothing of it has run then.
    """
    require_regular(path)
    with path.open("rb") as opened:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        file = mmap(opened.fileno(), 0, access=ACCESS_READ)

    try:
        content = _ArrayUnpickler(file).load()
    except Exception as error:  # whatever the bytes lead to: nothing in them can be called
        if isinstance(error, MemoryError):
            raise
        said = str(error) or type(error).__name__
        refused = isinstance(error, pickle.UnpicklingError)
        raise ValueError(said if refused else f"it cannot be read as a pickle: {said}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"it holds {_shown(content)}, expected a dict {{id: array}}")
    return _values(content, file)


def _values(content: dict[Any, Any], file: mmap) -> dict[str, ArrayValue]:
    """The values by ids; their arrays come to no more bytes than the file has, whatever they refer to."""
    visits = Visits(len(file))
    left = [len(file) + ALWAYS]

    def array_of(value: _Array) -> np.ndarray:
        array = _view(value, file)
        left[0] -= array.nbytes
        if left[0] < 0:
            raise ValueError("its values refer to the same arrays so often that they have more bytes than the file")
        return array

    found: dict[str, ArrayValue] = {}
    for key, value in visits.each(content.items()):
        if not isinstance(key, (str, bytes)):
            raise ValueError(f"it has the id {_shown(key)}, expected a text")
        video_id = _text(key)
        if video_id in found:
            raise ValueError(f"it has the id {video_id!r} twice, as a text of Python 2 and of Python 3")
        try:
            found[video_id] = _value(value, array_of, visits)
        except ValueError as error:
            raise ValueError(f"{video_id}: {error}") from None
    return found


def _value(value: Any, array_of: Callable[[_Array], np.ndarray], visits: Visits) -> ArrayValue:
    """One array, a list of them, or None for NaN."""
    if isinstance(value, _Array) and value.type.is_object:
        value = value.data  # a list, as NumPy writes arrays of objects
    if isinstance(value, _Array):
        array = array_of(value)
        if array.ndim == 0 and not _is_nan(value := array.item()):
            raise ValueError(f"it has {_shown(value)}, expected an array, NaN, or a list of arrays")
        return array if array.ndim else None
    if value is None or _is_nan(value):
        return None
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"it has {_shown(value)}, expected an array, NaN, or a list of arrays")

    arrays = []
    for one in visits.each(value):
        if not isinstance(one, _Array) or one.type.is_object:
            raise ValueError(f"its list has {_shown(one)}, expected arrays")
        arrays.append(array_of(one))
    return arrays


def _view(value: _Array, file: mmap) -> np.ndarray:
    """The array itself: a view of the file, or of bytes that were read."""
    dtype = value.type.dtype()
    data = value.data
    if not isinstance(data, (_Span, bytes)):
        raise ValueError(f"an array has {_shown(data)} for values")
    length = data.length if isinstance(data, _Span) else len(data)
    count = math.prod(value.shape)
    if count * dtype.itemsize != length:
        raise ValueError(f"an array of shape {list(value.shape)} and type {dtype} has {length} bytes")
    if not count:
        return np.zeros(value.shape, dtype)

    flat = (
        np.frombuffer(file, dtype, count, data.offset) if isinstance(data, _Span) else np.frombuffer(data, dtype, count)
    )
    return flat.reshape(value.shape, order="F" if value.fortran else "C")


def _shape(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, tuple) and len(value) <= MOST_DIMENSIONS
    if not whole or not all(type(length) is int and 0 <= length < 1 << 40 for length in value):
        raise pickle.UnpicklingError(f"it has an array of shape {_shown(value)}")
    shape: tuple[int, ...] = value
    return shape


def _text(value: Any) -> str:
    """A text; those of Python 2 are bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if not isinstance(value, str):
        raise pickle.UnpicklingError(f"it has {_shown(value)} where a text belongs")
    return value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: Any) -> str:
    if isinstance(value, (_Array, _Span, _Type, _Name)):
        return "an array" if isinstance(value, _Array) else "a part of an array"
    return shortened(value)
