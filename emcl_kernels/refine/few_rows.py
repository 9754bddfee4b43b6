"""What affine.py does, for a few rows in memory, in numpy: its calls start sooner than torch's, and a query is one row.

Every sum here is exact and the rest is elementwise, so that both give the same bits (docs/design/a-row-alone.md). The
formulas are those of affine.py, which explains them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

MOST_NUMBERS = 1 << 14
"""Of rows with more numbers, torch is as quick: 32 of 512."""
SLICE_BITS = 26
TINY = np.finfo(np.float64).tiny

Rows = Float64[np.ndarray, "N D"]


def served(rows: Tensor) -> bool:
    """Whether rows are few, and plain memory that numpy can read."""
    return rows.numel() <= MOST_NUMBERS and type(rows) is Tensor and rows.device.type == "cpu" and not rows.is_neg()


@np.errstate(all="ignore")  # as torch, which warns of none
def total(rows: Tensor) -> float:
    """The sum of all numbers, in numpy or torch."""
    return float(np.add.reduce(rows.numpy(), None) if served(rows) else rows.sum())


def finite(rows: Rows) -> bool:
    """Whether the sum of squares is finite: numbers are then; those whose squares overflow may be as well."""
    numbers = rows.reshape(-1)
    return math.isfinite(np.dot(numbers, numbers))


def lengths(rows: Rows) -> Float64[np.ndarray, "N 1"]:
    """Euclidean length of each row; see `affine.lengths`."""
    part = np.abs(rows)
    largest = np.maximum(np.maximum.reduce(part, 1, keepdims=True), TINY)
    squares = np.divide(rows, largest, out=part)
    squares *= squares

    step = 2.0 ** (math.ceil(math.log2(squares.shape[1])) - 52)
    to_step = 1.5 * step * 2.0**52
    upper = squares + to_step
    upper -= to_step
    lower = squares
    lower -= upper
    lower += to_step * step
    lower -= to_step * step

    # A product with ones adds up exactly too, and starts sooner than a sum.
    ones = _ones(squares.shape[1])
    found: np.ndarray = largest * np.sqrt(upper @ ones + lower @ ones)
    return found


@functools.lru_cache(maxsize=16)
def _ones(width: int) -> Float64[np.ndarray, "D 1"]:
    return np.ones((width, 1))


def unit(rows: Rows) -> Rows:
    """Rows of length one; a row of zeros stays zero."""
    length = lengths(rows)
    length += length == 0
    return rows / length


@np.errstate(all="ignore")
def mapped(
    rows: Rows,
    of_change: list[np.ndarray],
    column_scale: Float64[np.ndarray, "1 D"],
    bias: Float64[np.ndarray, " D"],
    *,
    normalize: bool,
) -> Rows:
    """rows + rows·change + bias; see `affine.AffineMap`.

    Args:
        rows: `[N, D]`.
        of_change: one slice `[D, D]` of the change, or two.
        column_scale: `[1, D]`, of its columns.
        bias: `[D]`.
        normalize: whether to bring the rows to length one first.

    Returns:
        `[N, D]`.
    """
    if normalize:
        rows = unit(rows)
    row_scale = None if normalize else _power_of_two(lengths(rows))
    of_rows = slices(rows if row_scale is None else rows / row_scale, len(of_change), np.rint)

    product = of_rows[0] @ of_change[0]
    if len(of_change) == 2:
        product = product + (of_rows[0] @ of_change[1] + of_rows[1] @ of_change[0])
    product *= column_scale
    if row_scale is not None:
        product *= row_scale
    product += rows
    product += bias
    return product


def _power_of_two(length: np.ndarray) -> np.ndarray:
    return np.ldexp(1.0, np.where(length > 0, np.frexp(length)[1], 0))


def slices(x: Any, count: int, nearest: Callable[[Any], Any]) -> list[Any]:
    """Parts of a matrix whose rows (or columns) have length at most one, with 26 bits each below that length.

    Args:
        x: `[N, D]`, an array of numpy or a tensor.
        count: of parts.
        nearest: rounds to whole numbers, `np.rint` or `torch.round`.
    """
    parts: list[Any] = []
    below = 1.0
    for _ in range(count):
        grid = below * 2.0**-SLICE_BITS
        if parts:
            x = x - parts[-1]
        parts.append(nearest(x / grid) * grid)

        # What is left of each number is at most half a step of the grid.
        below = grid * 2.0 ** math.ceil(math.log2(x.shape[-1]) / 2)
    return parts
