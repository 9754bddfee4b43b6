"""The C++ kernels for the CPU: loads their library, and keeps the reason when it cannot."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from emcl_kernels.backends import compiled
from emcl_kernels.checks import DTYPES

_CPU_LIBRARY = compiled.FOLDER / "libemcl_cpu.so"


def _load() -> tuple[str, str]:
    """Instruction set in use, or why there is none."""
    if not _CPU_LIBRARY.exists():
        return "", f"the C++ library {compiled.not_built('cpu')}"
    try:
        torch.ops.load_library(str(_CPU_LIBRARY))
        library = ctypes.CDLL(str(_CPU_LIBRARY))
        library.emcl_isa.restype = ctypes.c_char_p
        return library.emcl_isa().decode(), ""
    except (OSError, AttributeError) as error:
        return "", f"the C++ library {_CPU_LIBRARY} does not load: {error}"


_isa, _reason = _load()


def status() -> dict[str, Any]:
    """What `python -m emcl_kernels.info` prints of this backend."""
    return {"loaded": not _reason, "path": str(_CPU_LIBRARY), "isa": _isa, "reason": _reason}


def supports(op: str, *tensors: Tensor) -> str | None:
    if _reason:
        return _reason
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, the tensors are on {tensor.device}"
        if tensor.dtype not in DTYPES:
            return f"it has no kernel for {tensor.dtype}"
    return None


_kernels = compiled.Kernels(lambda tensor: compiled.NATIVE)
moments, moments_backward = _kernels.moments, _kernels.moments_backward
fit, fit_backward = _kernels.fit, _kernels.fit_backward
reconstruct, reconstruct_backward = _kernels.reconstruct, _kernels.reconstruct_backward
project = _kernels.project
pooled_moments, pooled_moments_backward = _kernels.pooled_moments, _kernels.pooled_moments_backward
pooled_cosine, pooled_cosine_backward = _kernels.pooled_cosine, _kernels.pooled_cosine_backward
pooled_blocks = _kernels.pooled_blocks
