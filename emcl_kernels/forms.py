"""Which of the two forms of EM a backend runs on given rows. Both give the same result (docs/math.md).

The loop reads all rows in every iteration; the Gram form reads them once, whatever the number of iterations is.
"""

import torch
from torch import Tensor

from emcl_kernels import reference

FEW_ROWS = 16
"""With fewer rows every backend runs the loop: their Gram matrix cancels in float32 if their sum is small."""

Size = int | torch.SymInt


def few(rows: Size) -> bool:
    """Whether there are too few rows for their Gram matrix to be exact enough."""
    return bool(rows < FEW_ROWS)


def takes_loop(rows: Size, width: Size, num_bases: Size, num_iters: Size) -> bool:
    """Whether the loop is the better form: for few rows because it rounds less, for more rows if it is less arithmetic.

    The arithmetic is counted as in csrc/plan.h, which decides for the C++ kernels. GPU kernels have the Gram form only,
    so `few` alone decides for them.

    Args:
        rows: N.
        width: D.
        num_bases: K.
        num_iters: E-steps and M-steps.

    Returns:
        Whether to run the loop.
    """
    if rows < FEW_ROWS:
        return True

    gram = rows * width * (width + 1) + 2 * width * width * num_bases * num_iters + 4 * rows * width * num_bases
    loop = 4 * rows * width * num_bases * num_iters + 2 * rows * width * num_bases
    return bool(loop < gram)


def project_by_loop(
    x: Tensor, init: Tensor, *, num_iters: int, temperature: float, residual_weight: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `reference.em_project` returns, by the loop: y, mean_bases, responsibilities, scale."""
    bases, responsibilities, scale = reference.em_loop(x, init, num_iters=num_iters, temperature=temperature, eps=eps)
    y = reference.em_reconstruct(x, responsibilities, scale, weight=residual_weight)
    return y, bases.mean(-2), responsibilities, scale
