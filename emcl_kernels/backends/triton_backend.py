"""The Triton backend as dispatch sees it: plain functions on tensors, and the reason where they cannot run.

Importing this file needs neither triton nor a GPU.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from emcl_kernels import reference
from emcl_kernels.backends import few_rows, limits
from emcl_kernels.checks import LOOP_ROWS

UNAVAILABLE: str | None = None
"""Why no op of this backend can run in this process, or None."""

try:
    import triton  # noqa: F401
except (ImportError, OSError) as error:
    UNAVAILABLE = f"triton cannot be imported ({error}); install it with `pip install triton`"

OPS = ("em_moments", "em_fit", "em_reconstruct", "em_project", "pooled_similarity")

if UNAVAILABLE is None:
    from .triton_common import INTERPRETED
    from .triton_fit import fit, fit_backward
    from .triton_moments import moments, moments_backward
    from .triton_pooled import pooled_cosine, pooled_cosine_backward, pooled_moments, pooled_moments_backward
    from .triton_reconstruct import reconstruct, reconstruct_backward
else:
    INTERPRETED = False

    def _unavailable(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f'backend "triton" is not available: {UNAVAILABLE}, or use backend="reference"')

    moments = moments_backward = fit = fit_backward = reconstruct = reconstruct_backward = _unavailable
    pooled_moments = pooled_moments_backward = pooled_cosine = pooled_cosine_backward = _unavailable


def supports(op: str, *tensors: Tensor) -> str | None:
    """Reason why op, forward and backward, cannot run on its tensors, or None where it can.

    Args: tensors: the op's inputs in order, at least the one that ends in K (`logits`, `responsibilities`, `init`), and
        `frames` where there are any.
    """
    if UNAVAILABLE is not None:
        return UNAVAILABLE
    if op not in OPS:
        return f"it has Triton kernels for {', '.join(OPS)} only"
    for tensor in tensors:
        if not tensor.is_cuda and not INTERPRETED:
            return (
                f"tensors are on {tensor.device}, not on cuda; TRITON_INTERPRET=1 before the start runs it on the CPU"
            )
    if tensors and tensors[0].is_cuda and torch.cuda.get_device_capability(tensors[0].device) < (8, 0):
        return f"{torch.cuda.get_device_name(tensors[0].device)} is older than compute capability 8.0"
    return limits.reason(op, *tensors)


def project(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The Gram form from rows to result: (y, mean_bases, responsibilities, scale).

    Fewer than LOOP_ROWS rows go by the loop.
    """
    if x.shape[-2] < LOOP_ROWS:
        return few_rows.project(reconstruct, x, init, num_iters, temperature, residual_weight, eps)
    gram, colsum = moments(x)
    # The start of one value per row is one more product of a library's kind.
    logits = reference.start_logits(x.float() if init.dim() == x.dim() else x, colsum, init.float())
    responsibilities, scale = fit(gram, logits, num_iters, temperature, eps)
    mean_bases = reference.mean_of_bases(colsum, responsibilities, scale, x.shape[-2])
    return reconstruct(x, responsibilities, scale, residual_weight), mean_bases, responsibilities, scale
