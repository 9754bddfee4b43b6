"""The Triton backend as dispatch sees it: plain functions on tensors, and the reason where they cannot run.

Importing this file needs neither triton nor a GPU.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from emcl_kernels import reference
from emcl_kernels.checks import LOOP_ROWS

UNAVAILABLE: str | None = None
"""Why no op of this backend can run in this process, or None."""

try:
    import triton  # noqa: F401
except (ImportError, OSError) as error:
    UNAVAILABLE = f"triton cannot be imported ({error}); install it with `pip install triton`"

MAX_BASES = 128
MAX_FRAMES = 64
FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
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
        allowed = FLOAT_TYPES if op != "em_fit" else (torch.float32,)
        if tensor.dtype not in allowed:
            return f"it takes {', '.join(str(dtype) for dtype in allowed)}, not {tensor.dtype}"
    if tensors and tensors[0].is_cuda and torch.cuda.get_device_capability(tensors[0].device) < (8, 0):
        return f"{torch.cuda.get_device_name(tensors[0].device)} is older than compute capability 8.0"
    for tensor in tensors[1:] if op != "em_moments" else ():
        if op == "pooled_similarity" and tensor.dim() == 3:
            if tensor.shape[1] > MAX_FRAMES:
                return f"{tensor.shape[1]} frames do not fit into one tile of {MAX_FRAMES}"
        elif tensor.shape[-1] > MAX_BASES:
            return f"{tensor.shape[-1]} bases do not fit into one tile of {MAX_BASES}"
    return None


def project(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The Gram form from rows to result: (y, mean_bases, responsibilities, scale).

    A handful of rows goes by the loop, as torch has it: their Gram matrix cancels in float32 where their sum is small.
    """
    if x.shape[-2] < LOOP_ROWS:
        bases, responsibilities, scale = reference.em_loop(
            x.float(), init.float(), num_iters=num_iters, temperature=temperature, eps=eps
        )
        return reconstruct(x, responsibilities, scale, residual_weight), bases.mean(-2), responsibilities, scale
    gram, colsum = moments(x)
    # The start of one value per row is one more product of a library's kind.
    logits = reference.start_logits(x.float() if init.dim() == x.dim() else x, colsum, init.float())
    responsibilities, scale = fit(gram, logits, num_iters, temperature, eps)
    mean_bases = reference.mean_of_bases(colsum, responsibilities, scale, x.shape[-2])
    return reconstruct(x, responsibilities, scale, residual_weight), mean_bases, responsibilities, scale
