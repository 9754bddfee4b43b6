"""What backends on a GPU share: the limits of tiles, TF32, and EM on a few rows."""

from typing import Any

import torch
from torch import Tensor

from emcl_kernels import forms
from emcl_kernels.backends import Declared

MAX_BASES = 128
MAX_FRAMES = 64
FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)

_ENDS_IN_BASES = ("init", "logits", "responsibilities")
"""Arguments whose last dimension is K."""


def over_limits(op: Declared, args: tuple[Any, ...]) -> str | None:
    """Why the GPU kernels cannot take these arguments of an op, or None if they can."""
    allowed = FLOAT_TYPES if op.family != "em_fit" else (torch.float32,)
    dtype = args[op.main].dtype
    if dtype not in allowed:
        return f"it takes {', '.join(str(dtype) for dtype in allowed)}, not {dtype}"

    for name in _ENDS_IN_BASES:
        at = op.position.get(name)
        if at is not None and args[at].shape[-1] > MAX_BASES:
            return f"{args[at].shape[-1]} bases do not fit into one tile of {MAX_BASES}"

    at = op.position.get("frames")
    if at is not None and args[at].shape[1] > MAX_FRAMES:
        return f"{args[at].shape[1]} frames do not fit into one tile of {MAX_FRAMES}"
    return None


def tf32_allowed() -> bool:
    """Whether torch may round float32 factors to TF32 on CUDA, by whichever of its settings that was said.

    `torch.get_float32_matmul_precision` raises an error if `torch.backends.cuda.matmul.fp32_precision` was set.
    """
    return str(torch.backends.cuda.matmul.fp32_precision) == "tf32"


def without_bases(op: Declared, args: tuple[Any, ...]) -> bool:
    """Whether K is 0."""
    positions = (op.position.get(name) for name in _ENDS_IN_BASES)
    return any(at is not None and args[at].shape[-1] == 0 for at in positions)


def project_few_rows(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EM by the loop in plain torch, because the kernels have the Gram form only (see `emcl_kernels.forms`).

    Args:
        x: rows `[*, N, D]`.
        init: start of the bases, `[*, K]` or `[*, N, K]`.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.

    Returns:
        y in the dtype of `x`, and mean_bases, responsibilities and scale in float32.
    """
    y, mean_bases, responsibilities, scale = forms.project_by_loop(
        x.float(),
        init.float(),
        num_iters=num_iters,
        temperature=temperature,
        residual_weight=residual_weight,
        eps=eps,
    )
    return y.to(x.dtype), mean_bases, responsibilities, scale
