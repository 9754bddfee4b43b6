"""The backend "torch": the Gram form in plain torch, which on CUDA is cuBLAS. Products run in the dtype of the rows.

Its functions are those of the backend "reference", with `products.Narrow`. EM itself and the softmax over frames stay
in float32, and rows in float64 in float64.
"""

from typing import Any

import torch

from emcl_kernels import forms
from emcl_kernels.backends import Declared, PythonBackend
from emcl_kernels.backends.products import Narrow
from emcl_kernels.backends.reference import Functions

OLDEST_FOR_BFLOAT16 = (8, 0)  # compute capability


def takes_loop(rows: int, width: int, num_bases: int, num_iters: int) -> bool:
    """Like the other GPU backends, which have the Gram form only, but for few rows."""
    return forms.few(rows)


class Torch(PythonBackend):
    """Functions on tensors, on any device."""

    uniform = False

    def supports(self, op: Declared, args: tuple[Any, ...]) -> str | None:
        x = args[op.main]
        if x.is_cuda and x.dtype == torch.bfloat16:
            capability = torch.cuda.get_device_capability(x.device)
            if capability < OLDEST_FOR_BFLOAT16:
                return f"compute capability {capability[0]}.{capability[1]} has no products in bfloat16"
        return None


backend = Torch("torch", Functions(Narrow(), takes_loop).table())
