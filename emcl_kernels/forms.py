"""Which of the two forms of EM a backend runs on given rows. Both give the same result (docs/math.md).

The loop reads all rows in every iteration; the Gram form reads them once, whatever the number of iterations is.
"""

import torch

FEW_ROWS = 16
"""Fewer rows go by the loop everywhere: their Gram matrix cancels in float32 if their sum is small."""

Size = int | torch.SymInt


def few(rows: Size) -> bool:
    """Whether the Gram matrix of so many rows is not exact enough."""
    return bool(rows < FEW_ROWS)


def takes_loop(rows: Size, width: Size, num_bases: Size, num_iters: Size) -> bool:
    """Whether the loop is the better form: for few rows by its rounding, for others by its arithmetic.

    The arithmetic is counted as in csrc/plan.h, by which the C++ kernels decide. GPU kernels have the Gram form only
    and go by `few` alone.
    """
    if rows < FEW_ROWS:
        return True
    gram = rows * width * (width + 1) + 2 * width * width * num_bases * num_iters + 4 * rows * width * num_bases
    loop = 4 * rows * width * num_bases * num_iters + 2 * rows * width * num_bases
    return bool(loop < gram)
