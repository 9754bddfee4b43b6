"""Rows as users have them (torch tensors, numpy arrays, files mapped into memory), read in chunks of float64."""

import math
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emcl_kernels import checks
from emcl_kernels.refine import few_rows

CHUNK_NUMBERS = 1 << 22  # of a chunk [rows, D] in float64: 32 MiB, a handful of which live at a time
NUMPY_DTYPES = (np.float16, np.float32, np.float64)


def require(x: Any, name: str, *, width: int | None = None, width_of: str = "", ndim: int | None = None) -> None:
    """Refuse what cannot be used as rows.

    Args:
        x: what was passed.
        name: what errors call it.
        width: D that is expected; None: any.
        width_of: where that width is known from, for errors.
        ndim: 2 if only `[N, D]` is taken; None: `[*, D]`.

    Raises:
        TypeError: `x` is no array of floats.
        ValueError: its shape or width is another.
    """
    if isinstance(x, Tensor):
        checks.floating(x, name)
    elif not (hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "__getitem__")):
        raise TypeError(
            f"{name} is a {type(x).__name__}; expected a torch tensor or a numpy array; pass np.asarray({name})"
        )
    elif np.dtype(x.dtype).type not in NUMPY_DTYPES:
        raise TypeError(f"{name} is {x.dtype}; expected float16, float32 or float64; pass {name}.astype('float32')")

    shape = list(x.shape)
    if (ndim is not None and len(shape) != ndim) or not shape or shape[-1] == 0:
        raise ValueError(
            f"{name} has shape {shape}; expected {'[N, D]' if ndim == 2 else '[*, D]'}, one row per text or video"
        )
    if width is not None and shape[-1] != width:
        raise ValueError(
            f"{name} has shape {shape} but {width_of} is {width} wide; both must come from one joint space"
        )


def chunks(x: Any, name: str) -> Iterator[tuple[int, Tensor]]:
    """Every row once, in float64. Pages of a mapped file are handed back as soon as they are read.

    Args:
        x: `[N, D]`, a torch tensor or a numpy array.
        name: what errors call it.

    Yields:
        The number of the chunk's first row, and the rows `[n, D]`, on the device of `x`.

    Raises:
        ValueError: a row is not finite.
    """
    count, width = x.shape
    size = max(1, CHUNK_NUMBERS // width)
    release = _page_release(x)
    for start in range(0, count, size):
        part = x if isinstance(x, Tensor) and count <= size else x[start : start + size]
        if isinstance(part, Tensor):
            # Metal has no float64, and there its rows are few.
            rows = (part.detach().cpu() if part.device.type == "mps" else part.detach()).double()
        else:
            rows = torch.from_numpy(np.array(part, dtype=np.float64, subok=False))
        release()

        # One pass: a sum is finite of finite numbers only. That of large ones may overflow, so it proves no more.
        if not math.isfinite(few_rows.total(rows)) and not bool((finite := torch.isfinite(rows).all(-1)).all()):
            bad = start + int((~finite).nonzero()[0])
            raise ValueError(
                f"{name} holds NaN or infinite values in {int((~finite).sum())} of its rows {start} to "
                f"{start + len(rows) - 1}, first in row {bad}; leave such rows out"
            )

        yield start, rows


def few(x: Any) -> np.ndarray | None:
    """Few rows in plain memory, as numpy sees them without a copy; None if they are many, or anything else.

    Args:
        x: `[N, D]`, a torch tensor or a numpy array.

    Returns:
        The same memory in float32 or float64, from and to which numpy rounds as torch does.
    """
    if type(x) is Tensor:
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.is_neg():
            return None
        x = x.detach().numpy()
    elif type(x) is not np.ndarray or x.dtype not in (np.float32, np.float64) or _page_release(x) is not _nothing:
        return None
    return x if 0 < x.size <= few_rows.MOST_NUMBERS else None


def empty_like(x: Any, shape: tuple[int, ...]) -> Any:
    """Memory for refined rows, of the kind, dtype and device of `x`."""
    if isinstance(x, Tensor):
        return x.new_empty(shape)
    return np.empty(shape, dtype=x.dtype)


def flat(x: Any) -> Any:
    """The same memory as `[N, D]`.

    Args:
        x: `[*, D]`, a torch tensor or a numpy array.

    Returns:
        A view of it.

    Raises:
        ValueError: it is not contiguous, so that it would have to be copied.
    """
    if len(x.shape) == 2:
        return x
    if isinstance(x, Tensor):
        if not x.is_contiguous():
            raise ValueError(f"an array of shape {list(x.shape)} is not contiguous; pass its .contiguous()")
        return x.view(-1, x.shape[-1])
    if not x.flags.c_contiguous:
        raise ValueError(f"an array of shape {list(x.shape)} is not contiguous; pass np.ascontiguousarray of it")
    return x.reshape(-1, x.shape[-1])


def put(out: Any, start: int, rows: Tensor) -> None:
    """Write float64 rows into `out`, rounded as torch does; pages of a mapped file are handed back."""
    end = start + rows.shape[0]
    if isinstance(out, Tensor):
        (out if rows.shape == out.shape else out[start:end]).copy_(rows)
    else:
        dtype = {2: torch.float16, 4: torch.float32, 8: torch.float64}[np.dtype(out.dtype).itemsize]
        out[start:end] = rows.cpu().to(dtype).numpy()
        _page_release(out)()


def _page_release(x: Any) -> Any:
    """A call that drops the pages of `x` from memory if it is a mapped file; they count as the process's own."""
    if isinstance(x, Tensor):
        return _nothing
    base = x
    modes = set()
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            modes.add(base.mode)
        base = base.base

    # Pages in mode "c" are private: nothing else holds what was written to them, so they stay. Only np.memmap knows its
    # mode, so pages of a mapping without one stay as well.
    if isinstance(base, mmap.mmap) and modes and modes <= {"r", "r+", "w+"} and hasattr(mmap, "MADV_DONTNEED"):
        return lambda: base.madvise(mmap.MADV_DONTNEED)
    return _nothing


def _nothing() -> None:
    """There are no pages to hand back."""
