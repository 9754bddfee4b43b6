"""Arrays that are written through a mapping of their file, whose space is the file's own before the first value.

A write into a mapped file that has no space on the disk yet ends the process by SIGBUS when the disk is full: no error
could be raised. Nothing here needs torch.
"""

import errno
import math
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import open_memmap

from emcl_train.errors import UserError
from emcl_train.runs.files import DISK_FULL

NOT_RESERVED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
"""How a file system says that it cannot reserve."""
PIECE = 1 << 20
GIGABYTE = 1e9


def new_mapped(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    *,
    what: object,
    way_out: str,
    folder: Path | None = None,
) -> np.memmap:
    """An array in a new `.npy` file, to be filled.

    Args:
        path: the file, which is made, or written anew.
        shape: of the array.
        dtype: of its values.
        what: what needs the space, for errors: the path that the file is to have.
        way_out: what to do if the disk is too small, as the end of the sentence.
        folder: whose disk it is, for errors; None: that of the file.

    Raises:
        UserError: the disk, or what this user may have of it, is too small; the file is then gone.
        OSError: it cannot be written for another reason; it is gone then, too.
    """
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        if needed > (free := shutil.disk_usage(path.parent).free):
            raise _too_large(what, folder or path.parent, needed, free, way_out)
        array: np.memmap = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with path.open("r+b") as file:
            reserve(file)
        return array
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in (*DISK_FULL, errno.EFBIG):
            raise _too_large(
                what, folder or path.parent, needed, shutil.disk_usage(path.parent).free, way_out
            ) from error
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def reserve(file: BinaryIO) -> None:
    """Give every byte of an open file its space on the disk; it was made longer without, and holds zeros there.

    Raises:
        OSError: there is not enough.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # not on every system
        pass
    except OSError as error:
        if error.errno not in NOT_RESERVED:
            raise

    # What a new file holds, once more: bytes that are written have space.
    place = file.seek(0)
    while piece := file.read(PIECE):
        file.seek(place)
        file.write(piece)
        place = file.tell()
    file.flush()
    os.fsync(file.fileno())


def _too_large(what: object, folder: Path, needed: int, free: int, way_out: str) -> UserError:
    return UserError(
        f"the disk is full: {what} takes {needed / GIGABYTE:.3g} GB, and {folder} has {free / GIGABYTE:.3g} GB left; "
        f"{way_out}"
    )
