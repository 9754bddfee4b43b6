"""Pickles of features as tables: what each clip has, by its id, without a pickle being read at every start.

A pickle of a few megabytes is read as it is. One of gigabytes, such as features of every word of every caption, is
converted once: into one flat array that is mapped into memory, and the shapes of what lies in it. Both are kept in the
cache folder and hold for one size and time of the pickle (`emcl-train data cache`).
"""

import functools
import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import count, few
from emcl_train.data.cache import cache_folder, only_remembered, place_of
from emcl_train.data.cache_use import use_cache
from emcl_train.data.opening import fingerprint
from emcl_train.data.plain_text import LOOKED_AT, refuse_other_files
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.array_pickles import ArrayValue, read_arrays
from emcl_train.reading.arrays import open_npy
from emcl_train.runs.checksums import checksum_of, identity_of
from emcl_train.runs.files import clear_partial, json_if_whole, whole, write_json_atomic
from emcl_train.runs.machine import is_first_process
from emcl_train.runs.mapped import new_mapped
from emcl_train.terminal import escaped, say

CONVERTED_FROM = 1 << 26
"""Bytes of a pickle from which on it is converted; a smaller one is read in a second."""
OF_TABLE = re.compile(r"experts-[0-9a-f]{16}\.(npy|json)")
"""Names of files of tables. An index may be a stranger's: no other file is opened or removed for it."""
VERSION = 1

Shapes = list[list[int]] | list[int] | None
"""Of what a clip has: a shape, a list of them, or nothing."""


class ArrayTable:
    """What each clip has: an array, a list of arrays, or nothing."""

    def __init__(self, path: Path, values: Mapping[str, ArrayValue]) -> None:
        self.path = path
        """Of the pickle."""
        self._values = values

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._values

    def ids(self) -> Iterable[str]:
        """Of the clips that the pickle names, those that have nothing among them."""
        return self._values.keys()

    def read(self, video_id: str) -> np.ndarray | None:
        """The array of a clip; None if it has nothing, or is not named.

        Raises:
            UserError: it has a list of arrays.
        """
        value = self._values.get(video_id)
        if isinstance(value, list):
            raise UserError(f"{self.path}: {video_id} has a list of {count(len(value), 'array')}, expected one array")
        return value

    def read_list(self, video_id: str) -> list[np.ndarray]:
        """The arrays of a clip, none if it is not named.

        Raises:
            UserError: it has one array, or NaN.
        """
        value = self._values.get(video_id, [])
        if not isinstance(value, list):
            raise UserError(f"{self.path}: {video_id} has one array or NaN, expected a list with one for each caption")
        return value


class _Mapped(Mapping[str, ArrayValue]):
    """The values of a converted pickle."""

    def __init__(self, values: np.ndarray, shapes: Mapping[str, Shapes]) -> None:
        self._values = values
        self._shapes = shapes
        self._starts: dict[str, int] = {}
        start = 0
        for video_id, of_clip in shapes.items():
            self._starts[video_id] = start
            start += _size(of_clip)
        if start != len(values):
            raise ValueError(f"its index is of {start} numbers, and it has {len(values)}")

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Any:
        return iter(self._shapes)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._shapes

    def __getitem__(self, video_id: str) -> ArrayValue:
        shapes = self._shapes[video_id]
        if shapes is None:
            return None
        start = self._starts[video_id]
        if not _is_list(shapes):
            return self._array(start, shapes)
        arrays = []
        for shape in shapes:
            arrays.append(self._array(start, shape))
            start += math.prod(shape)  # type: ignore[arg-type]
        return arrays

    def _array(self, start: int, shape: Any) -> np.ndarray:
        array: np.ndarray = self._values[start : start + math.prod(shape)].reshape(shape)
        return array


def open_table(path: Path, config: DataConfig, *, convert: bool = True) -> ArrayTable:
    """The values of a pickle of features; a large one is converted the first time, which is said.

    Args:
        path: the pickle.
        config: whose cache folder keeps what was converted.
        convert: False: nothing is written, and what would be converted is said.

    Raises:
        UserError: the pickle is not there, or is something else; nothing in it has run.
    """
    file = fingerprint(path)
    if file is None:
        raise UserError(f"there is no file {path}; unpack the archive of features again, or pass {flag('data.root')}")
    if path.stat().st_size < CONVERTED_FROM:
        return ArrayTable(path, _read(path))

    name = f"experts-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
    folder = cache_folder(config)
    if folder is not None and (kept := _kept(folder / f"{name}.json", file)) is not None:
        use_cache(config)
        return ArrayTable(path, kept)

    values: Mapping[str, ArrayValue] = _read(path)
    if not convert:
        size = sum(_size(_shapes(value)) for value in values.values())
        say(
            escaped(
                f"{path} would be converted once into a table of {4 * size / 1e9:.2f} GB in "
                f"{folder or 'the cache folder'}"
            )
        )
        return ArrayTable(path, values)
    with only_remembered(f"features of {path.name}"):
        index = place_of(f"{name}.json", config)
        _convert(path, values, index, file)
        use_cache(config)
        if (kept := _kept(index, file)) is not None:
            values = kept
    return ArrayTable(path, values)


def is_table_index(name: str) -> bool:
    """Whether a file of this name says what a table holds."""
    return OF_TABLE.fullmatch(name) is not None and name.endswith(".json")


def _read(path: Path) -> Mapping[str, ArrayValue]:
    try:
        with path.open("rb") as file:
            refuse_other_files(file.read(LOOKED_AT), path)
        return read_arrays(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the current user access to it") from error
    except (ValueError, struct.error) as error:
        raise UserError(
            f"{path}: {error}; only arrays of numbers are read, and no code is run. Unpack the archive again, or write "
            f"it as a dict {{id: array}}"
        ) from error


def _convert(path: Path, values: Mapping[str, ArrayValue], index: Path, file: list[int]) -> None:
    """Write the arrays one behind the other, and then the index that says so."""
    shapes = {video_id: _shapes(value) for video_id, value in values.items()}
    size = sum(map(_size, shapes.values()))
    if is_first_process():
        say(
            escaped(
                f"{path} is converted into a table in {index.parent}, {4 * size / 1e9:.2f} GB, once: from then on it "
                f"is mapped into memory (`emcl-train data cache` shows it)"
            )
        )

    index.parent.mkdir(parents=True, exist_ok=True)
    clear_partial(index.parent)
    table = index.with_suffix(".npy")
    with whole(table, shared=True) as partial:
        partial.unlink(missing_ok=True)
        way_out = "free some space, or set XDG_CACHE_HOME to a folder with more"
        mapped = new_mapped(partial, (size,), np.float32, what=table, way_out=way_out)
        start = 0
        for value in values.values():
            for array in value if isinstance(value, list) else [] if value is None else [value]:
                mapped[start : start + array.size] = array.reshape(-1)
                start += array.size
        mapped.flush()
        del mapped
        checksum = checksum_of(partial)
    write_json_atomic(index, {"version": VERSION, "of": str(path), "file": file, "checksum": checksum, "clips": shapes})


def _kept(index: Path, file: list[int]) -> _Mapped | None:
    """The table of an index, if it is of the pickle as it is now and both are whole; what is damaged is said."""
    table = index.with_suffix(".npy")
    if not _is_plain(index) or not _is_plain(table):
        return None
    content = json_if_whole(index)
    if not isinstance(content, dict) or content.get("version") != VERSION or content.get("file") != file:
        return None
    shapes = content.get("clips")
    try:
        if not isinstance(shapes, dict) or not all(map(_are_shapes, shapes.values())):
            raise ValueError("its index is damaged")
        if _checksum_of(table, identity_of(table)) != content.get("checksum"):
            raise ValueError(f"it is not what {index.name} beside it says")
        values = open_npy(table)
        if values.ndim != 1 or values.dtype != np.float32:
            raise ValueError(f"it has {values.dtype} of shape {list(values.shape)}")
        return _Mapped(values, shapes)
    except OSError:
        return None
    except ValueError as error:
        if is_first_process():
            say(escaped(f"{table} is damaged: {error}; it is made again"))
        return None


@functools.cache
def _checksum_of(path: Path, identity: tuple[int, ...]) -> str:
    """Of a file as it is now, once a process."""
    return checksum_of(path)


def _shapes(value: ArrayValue) -> Shapes:
    if value is None:
        return None
    return [list(array.shape) for array in value] if isinstance(value, list) else list(value.shape)


def _is_list(shapes: Shapes) -> bool:
    """Whether a clip has a list of arrays. An empty list is one: no array here is without dimensions."""
    return isinstance(shapes, list) and (not shapes or isinstance(shapes[0], list))


def _size(shapes: Shapes) -> int:
    if shapes is None:
        return 0
    if _is_list(shapes):
        return sum(math.prod(shape) for shape in shapes)  # type: ignore[arg-type, misc]
    return math.prod(shapes)  # type: ignore[arg-type]


def _are_shapes(value: Any) -> bool:
    def is_shape(shape: Any) -> bool:
        return isinstance(shape, list) and all(type(length) is int and 0 <= length < 1 << 40 for length in shape)

    return value is None or is_shape(value) or (isinstance(value, list) and all(map(is_shape, value)))


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def merged(tables: Sequence[ArrayTable], what: str) -> dict[str, ArrayTable]:
    """Which of several tables has each clip.

    Raises:
        UserError: two have the same one.
    """
    found: dict[str, ArrayTable] = {}
    for table in tables:
        repeated = [video_id for video_id in table.ids() if video_id in found]
        if repeated:
            raise UserError(
                f"{table.path} and {found[repeated[0]].path} both have {what} of {few(repeated)}; keep one of them"
            )
        found |= dict.fromkeys(table.ids(), table)
    return found
