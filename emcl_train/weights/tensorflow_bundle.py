"""Checkpoints of TensorFlow, read without TensorFlow: named arrays of `model.ckpt-N.index` and `.data-00000-of-00001`.

The index is a table of LevelDB's format, in which each variable has a message that says its type, its shape, and where
its bytes stand in which file of data, with their checksum. The entry without a name says how many files there are.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto

Nothing is executed: the `.meta` beside them, which holds the graph, is never opened.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emcl_train.errors import UserError
from emcl_train.reading.crc32c import crc32c, unmasked
from emcl_train.reading.leveldb_table import Compressed, table_entries
from emcl_train.reading.plain_files import read_regular, require_regular
from emcl_train.reading.protobuf import messages_in, number_in
from emcl_train.weights.hub import OF_FILES

DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
"""TensorFlow's numbers of types."""
LARGEST_INDEX = 1 << 22
"""Bytes of an index: a variable takes less than a hundred."""
MOST_AXES = 8
VERSION = 1
"""Of the format; a file may say that it needs a reader of a later one."""
OF_OTHERS = tuple(ending for ending in OF_FILES if ending != ".ckpt")
"""Endings of files that others than TensorFlow write."""
ENDINGS = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")


@dataclass(frozen=True)
class Variable:
    """Where a variable stands."""

    dtype: int
    """TensorFlow's number of it."""
    shape: tuple[int, ...]
    file: int
    """Which of the files of data."""
    offset: int
    size: int
    """Bytes."""
    checksum: int
    in_slices: bool
    """Whether it was stored in several parts, which are not put together here."""


class TensorFlowBundle:
    """A checkpoint whose index was read; arrays are read one at a time, when they are asked for.

    Args:
        path: `model.ckpt-N`, or any of its files.

    Attributes:
        variables: by name, in the order of names.

    Raises:
        UserError: it is not there, damaged, cut off, compressed, or of the format before TensorFlow 1.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(ENDINGS.sub("", path.name))
        index = self._beside(".index")
        if not index.is_file():
            raise UserError(_no_index(self.path, index))

        with _blamed(index):
            header, self.variables = _index(read_regular(index, LARGEST_INDEX))
            self._files = number_in(header, 1)
            _require_readable(header)
        self._require_files()

    def read(self, name: str) -> np.ndarray:
        """The array of a variable, whose memory is its own.

        Raises:
            UserError: it is of another type than numbers, in slices, or its bytes are not those that were written.
        """
        variable = self.variables[name]
        data = self._data(variable.file)
        with _blamed(data):
            dtype = _dtype(name, variable)
            content = bytearray(variable.size)
            with data.open("rb") as file:
                file.seek(variable.offset)
                found = file.readinto(content)
            if found < variable.size or crc32c(content) != variable.checksum:
                raise ValueError(f"the bytes of {name} do not have the checksum that is stored in the index")
        return np.frombuffer(content, dtype=dtype).reshape(variable.shape)

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _data(self, number: int) -> Path:
        return self._beside(f".data-{number:05}-of-{self._files:05}")

    def _require_files(self) -> None:
        """Raise a UserError where a variable would stand beyond its file, or variables would share bytes."""
        promised: dict[int, int] = {}
        for variable in self.variables.values():
            promised[variable.file] = promised.get(variable.file, 0) + variable.size

        sizes = {}
        for number, total in promised.items():
            data = self._data(number)
            if not data.is_file():
                raise UserError(f"{data} is missing: {self.path} has variables in it; copy all files of the checkpoint")
            with _blamed(data):
                require_regular(data)
                sizes[number] = data.stat().st_size
                if total > sizes[number]:
                    raise ValueError(f"its variables come to {total} bytes, and it has {sizes[number]}")

        for name, variable in self.variables.items():
            if variable.offset + variable.size > sizes[variable.file]:
                raise UserError(
                    f"{self._data(variable.file)} cannot be read: {name} ends at byte "
                    f"{variable.offset + variable.size}, and the file has {sizes[variable.file]}; copy it again"
                )


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Name the file that a block could not read."""
    try:
        yield
    except Compressed as error:
        raise UserError(
            f"{path} cannot be read: {error}, which TensorFlow itself does not write; restore the checkpoint with "
            f"TensorFlow and save it again"
        ) from error
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as part of a checkpoint of TensorFlow: {error}; copy it again, or save it anew "
            f"with tf.train.Saver"
        ) from error


def _no_index(path: Path, index: Path) -> str:
    if path.is_file() and path.suffix.lower() in OF_OTHERS:
        return f"{path} is no checkpoint of TensorFlow; expected {index.name} beside {path.name}.data-00000-of-00001"
    if path.is_file():
        return (
            f"{path} is one file, as TensorFlow wrote checkpoints before 1.0; expected {index.name} beside files of "
            f"data: restore it with TensorFlow and save it again with tf.train.Saver"
        )
    return f"{index} is missing; pass the beginning that all files of a checkpoint share, such as model.ckpt-400000"


def _index(table: bytes) -> tuple[bytes, dict[str, Variable]]:
    """The message about the checkpoint, and its variables."""
    entries = table_entries(table)
    first = next(entries, None)
    if first is None or first[0] != b"":
        raise ValueError("it does not begin with the entry that says how many files there are")

    variables = {}
    for key, message in entries:
        name = key.decode("utf-8", errors="backslashreplace")
        try:
            variables[name] = _variable(message)
        except ValueError as error:
            raise ValueError(f"its entry {name!r} is damaged: {error}") from error
    return first[1], variables


def _variable(message: bytes) -> Variable:
    shape = [number_in(axis, 1) for given in messages_in(message, 2) for axis in messages_in(given, 2)]
    found = Variable(
        dtype=number_in(message, 1),
        shape=tuple(shape),
        file=number_in(message, 3),
        offset=number_in(message, 4),
        size=number_in(message, 5),
        checksum=unmasked(number_in(message, 6) & 0xFFFFFFFF),
        in_slices=bool(messages_in(message, 7)),
    )
    if len(shape) > MOST_AXES or min([found.file, found.offset, found.size, *shape]) < 0:
        raise ValueError(f"it declares the shape {shape[:MOST_AXES]} at byte {found.offset} of file {found.file}")
    return found


def _require_readable(header: bytes) -> None:
    files, big_endian = number_in(header, 1), number_in(header, 2)
    if not 0 < files < 100_000:
        raise ValueError(f"it says that there are {files} files of data")
    if big_endian:
        raise ValueError("it was written by a machine of the other byte order")
    needed = max((number_in(version, 2) for version in messages_in(header, 3)), default=0)
    if needed > VERSION:
        raise ValueError(f"it needs a reader of version {needed}, and this one is of version {VERSION}")


def _dtype(name: str, variable: Variable) -> str:
    if variable.in_slices:
        raise ValueError(f"{name} is stored in slices, as partitioned variables are, which are not put together here")
    if variable.dtype not in DTYPES:
        raise ValueError(f"{name} is of TensorFlow's type {variable.dtype}, expected one of {sorted(DTYPES)}")
    dtype = DTYPES[variable.dtype]
    expected = math.prod(variable.shape) * np.dtype(dtype).itemsize
    if expected != variable.size:
        raise ValueError(
            f"{name} has {variable.size} bytes, and its shape {list(variable.shape)} needs {expected} of them"
        )
    return dtype
