"""HDF5 that may come from anybody: data sets of numbers and words, out of the file itself, as many as it holds.

A file of HDF5 can point to others: by links, by data that lie elsewhere, by data sets that are put together of those of
other files. It can ask for filters that are libraries on the disk. None of that is followed. What Hickle pickles inside
such a file is bytes to us, and stays bytes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emcl_train.extras import require_packages
from emcl_train.reading.archives import most_bytes
from emcl_train.reading.arrays import NUMBERS
from emcl_train.reading.plain_files import require_regular

if TYPE_CHECKING:
    import h5py

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
"""Those that h5py brings along; any other would be a library from HDF5's folder of plugins."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
FEW = 64
"""Words that are read at once: each may be as long as the file."""


class Hdf5Error(ValueError):
    """A file of HDF5, or something in it, is not what it should be."""


class Hdf5Group:
    """A group of an open file, or the file itself."""

    def __init__(self, group: "h5py.Group", most: int) -> None:
        self._group = group
        self._most = most

    def __iter__(self) -> Iterator[str]:
        with _damage("its list of names"):
            yield from self._group

    def __len__(self) -> int:
        with _damage("its list of names"):
            return len(self._group)

    def __contains__(self, name: str) -> bool:
        if "/" in name or name in ("", "."):
            return False
        with _damage("its list of names"):
            return name in self._group

    def is_group(self, name: str) -> bool:
        """Whether a member has members of its own."""
        return hasattr(self._member(name), "keys")

    def group(self, name: str) -> "Hdf5Group":
        """A group in this one.

        Raises:
            Hdf5Error: it is no group, or lies in another file.
        """
        member = self._member(name)
        if not hasattr(member, "keys"):
            raise Hdf5Error(f"{name} is a data set, expected a group")
        return Hdf5Group(member, self._most)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array of numbers, without reading it; errors as of `array`."""
        return tuple(self._numbers(name).shape)

    def array(self, name: str) -> np.ndarray:
        """An array of numbers, in memory.

        Raises:
            Hdf5Error: it is something else, lies in another file, or is larger than its file can hold.
            OSError: it cannot be read, since the disk fails or the file is damaged.
        """
        dataset = self._numbers(name)
        with _damage(name):
            return np.asarray(dataset[()])

    def words(self, name: str) -> list[str]:
        """A list of texts; a single one is a list of one.

        Raises:
            Hdf5Error: as of `array`.
        """
        import h5py

        dataset = self._dataset(name)
        with _damage(name):
            is_text = h5py.check_string_dtype(dataset.dtype) is not None
        if not is_text and dataset.dtype.kind != "S":
            raise Hdf5Error(f"{name} has values of type {dataset.dtype}, expected texts")
        if len(dataset.shape) > 1:
            raise Hdf5Error(f"{name} has the shape {list(dataset.shape)}, expected a list of texts")

        count = math.prod(dataset.shape)
        self._require_size(name, count * max(1, dataset.dtype.itemsize))
        left = self._most
        found: list[str] = []
        for start in range(0, count, FEW):
            with _damage(name):
                piece = dataset[start : start + FEW] if dataset.shape else [dataset[()]]
            for value in piece:
                text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
                left -= len(text)
                if left < 0:
                    raise Hdf5Error(f"{name} has texts of more letters than the file can hold")
                found.append(text)
        return found

    def _numbers(self, name: str) -> Any:
        dataset = self._dataset(name)
        if dataset.dtype.kind not in NUMBERS:
            raise Hdf5Error(f"{name} has values of type {dataset.dtype}, expected numbers")
        self._require_size(name, math.prod(dataset.shape) * dataset.dtype.itemsize)
        return dataset

    def _dataset(self, name: str) -> Any:
        member = self._member(name)
        if hasattr(member, "keys") or not hasattr(member, "shape"):
            raise Hdf5Error(f"{name} is no data set")
        with _damage(name):
            if member.shape is None or member.dtype is None:
                raise Hdf5Error(f"{name} is empty: it has no shape")
            if member.external or member.is_virtual:
                raise Hdf5Error(f"{name} has its values in other files, which are not opened")
            filters = member.id.get_create_plist()
            codes = [filters.get_filter(index)[0] for index in range(filters.get_nfilters())]
            chunk = math.prod(member.chunks or ()) * member.dtype.itemsize

        # Whoever reads one number of a chunk has all of it in memory, once for each filter that it passes.
        self._require_size(f"a chunk of {name}", chunk)
        if len(set(codes)) < len(codes):
            raise Hdf5Error(f"{name} is packed by one filter several times, which no program does")
        if unknown := [code for code in codes if code not in FILTERS]:
            raise Hdf5Error(f"{name} is packed by filter {unknown[0]}, expected one of {', '.join(FILTERS.values())}")
        return member

    def _member(self, name: str) -> Any:
        import h5py

        if name not in self:
            raise Hdf5Error(f"it has no {name}")
        with _damage(name):
            link = self._group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise Hdf5Error(f"{name} is a link to elsewhere, which is not followed")
            return self._group[name]

    def _require_size(self, name: str, size: int) -> None:
        if size > self._most:
            raise Hdf5Error(f"{name} declares {size} bytes, and a file of this size is read up to {self._most}")


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5Group]:
    """A file of HDF5, open inside the block.

    Raises:
        UserError: h5py is not installed; the message has the line that installs it.
        Hdf5Error: it is no such file, or damaged.
        OSError: it is not there, or cannot be read.
    """
    opened = opened_hdf5(path)
    try:
        yield opened
    finally:
        opened._group.file.close()


def opened_hdf5(path: Path) -> Hdf5Group:
    """A file of HDF5 that stays open as long as it is used; errors as of `open_hdf5`."""
    require_packages("experts")
    import h5py

    require_regular(path)
    with path.open("rb") as file:
        beginning = file.read(len(SIGNATURE))
    if not h5py.is_hdf5(path):
        raise Hdf5Error(f"it is no file of HDF5: it begins with {beginning!r}" if beginning else "it is empty")
    try:
        # Without a lock: folders that are only read, and those on a network, may have none.
        return Hdf5Group(h5py.File(path, "r", locking=False), most_bytes(path))
    except (OSError, RuntimeError) as error:
        raise Hdf5Error(f"it cannot be opened as HDF5: {_one_line(error)}") from error


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """What the library says of bytes that make no sense is said of the file: it has errors of many kinds for them."""
    try:
        yield
    except (Hdf5Error, MemoryError):
        raise
    except Exception as error:
        raise Hdf5Error(f"{name} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
