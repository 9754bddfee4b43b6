"""What the GPU kernels take, in Triton and in CUDA alike: number types, bases and frames."""

import torch
from torch import Tensor

MAX_BASES = 128
MAX_FRAMES = 64
FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def reason(op: str, *tensors: Tensor) -> str | None:
    """Why the op's tensors are not taken, or None. Tensors: see `triton_backend.supports`."""
    allowed = FLOAT_TYPES if op != "em_fit" else (torch.float32,)
    for tensor in tensors:
        if tensor.dtype not in allowed:
            return f"it takes {', '.join(str(dtype) for dtype in allowed)}, not {tensor.dtype}"
    for tensor in tensors[1:] if op != "em_moments" else ():
        if op == "pooled_similarity" and tensor.dim() == 3:
            if tensor.shape[1] > MAX_FRAMES:
                return f"{tensor.shape[1]} frames do not fit into one tile of {MAX_FRAMES}"
        elif tensor.shape[-1] > MAX_BASES:
            return f"{tensor.shape[-1]} bases do not fit into one tile of {MAX_BASES}"
    return None
