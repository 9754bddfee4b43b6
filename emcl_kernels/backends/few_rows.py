"""EM on a handful of rows, for the backends whose kernels have the Gram form only."""

from collections.abc import Callable

from torch import Tensor

from emcl_kernels import reference


def project(
    reconstruct: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    x: Tensor,
    init: Tensor,
    num_iters: int,
    temperature: float,
    residual_weight: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the loop, as torch has it: the Gram matrix of few rows cancels in float32 where their sum is small.

    Returns: y, mean_bases, responsibilities, scale.
    """
    bases, responsibilities, scale = reference.em_loop(
        x.float(), init.float(), num_iters=num_iters, temperature=temperature, eps=eps
    )
    return reconstruct(x, responsibilities, scale, residual_weight), bases.mean(-2), responsibilities, scale
