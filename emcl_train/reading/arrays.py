"""NumPy's files that may come from anybody: numbers alone, and as many as the file holds."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from emcl_train.reading.archives import require_unpacked_size
from emcl_train.reading.plain_files import require_regular

MAGIC = b"\x93NUMPY"
NUMBERS = "fiub"
"""Kinds of dtypes that are numbers or truths: no objects, no texts, no records."""
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
NAME = ".npy"


def open_npy(path: Path) -> np.ndarray:
    """The array of a `.npy`, mapped into memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no array of numbers, or declares more of them than it holds.
    """
    require_regular(path)
    with path.open("rb") as file:
        _require_header(file, path.stat().st_size)
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_npz(path: Path, name: str) -> np.ndarray:
    """An array of a `.npz`, in memory.

    Args:
        path: the file.
        name: of the array, which is there.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no array of numbers, declares more of them than it holds, or unpacks to far more bytes than
            the file has.
    """
    require_regular(path)
    require_unpacked_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            member = name if name in archive.namelist() else f"{name}{NAME}"
            with archive.open(member) as file:
                _require_header(file, archive.getinfo(member).file_size)
        with np.load(path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[name]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError) as error:
        raise ValueError(str(error)) from error
    return array


def _require_header(file: Any, size: int) -> None:
    """Read the header of an array, and raise a ValueError where it promises what is not there."""
    beginning = file.read(len(MAGIC) + 2)
    if beginning[: len(MAGIC)] != MAGIC or len(beginning) < len(MAGIC) + 2:
        raise ValueError(f"it begins with {beginning!r}, as no array does")
    read = READERS.get((beginning[-2], beginning[-1]))
    if read is None:
        raise ValueError(f"it is of version {beginning[-2]}.{beginning[-1]} of the format, expected 1.0 or 2.0")

    try:
        header: tuple[tuple[int, ...], bool, Any] = read(file)
        shape, _, dtype = header
    except Exception as error:  # the header is an expression, and what is none raises all kinds of errors
        raise ValueError(f"its header cannot be read: {' '.join(str(error).split())[:200]}") from error

    # In the words of NumPy, which refuses it too.
    if dtype.hasobject:
        raise ValueError("Array can't be memory-mapped: Python objects in dtype.")
    if dtype.kind not in NUMBERS:
        raise ValueError(f"it has values of type {dtype}, expected numbers")
    if any(isinstance(length, bool) or length < 0 for length in shape):
        raise ValueError(f"it declares the shape {shape}")
    declared = math.prod(shape) * dtype.itemsize
    if declared > size:
        raise ValueError(f"it declares {declared} bytes, those of shape {list(shape)}, and has {size}")
