"""The backend "triton": its kernels as a table of functions, and the reason if they cannot run.

Importing this package needs neither triton nor a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from emcl_kernels import forms, reference
from emcl_kernels.backends import Declared, Implementation, PythonBackend, gpu

UNAVAILABLE: str | None = None
"""Why no op of this backend can run in this process, or None."""

FUNCTIONS: dict[str, Implementation] = {}
"""Implementation of each op."""

INTERPRETED = False
"""Whether Triton's interpreter runs the kernels, on any device."""

try:
    import triton  # noqa: F401
except (ImportError, OSError) as error:
    UNAVAILABLE = f"triton cannot be imported ({error}); install it with `pip install triton`"

if UNAVAILABLE is None:
    from .common import INTERPRETED
    from .fit import fit, fit_backward
    from .moments import moments, moments_backward
    from .pooled import pooled_cosine, pooled_cosine_backward, pooled_moments, pooled_moments_backward
    from .reconstruct import reconstruct, reconstruct_backward

    def project(
        x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float, linear: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The Gram form from rows to result: y, mean_bases, responsibilities, scale."""
        if forms.few(x.shape[-2]):
            return gpu.project_few_rows(x, init, num_iters, temperature, residual_weight, eps)

        gram, colsum = moments(x)
        # The start of one value per row is one more product of a library's kind.
        logits = reference.start_logits(x.float() if init.dim() == x.dim() else x, colsum, init.float())
        responsibilities, scale = fit(gram, logits, num_iters, temperature, eps)
        mean_bases = reference.mean_of_bases(colsum, responsibilities, scale, x.shape[-2])
        return reconstruct(x, responsibilities, scale, residual_weight), mean_bases, responsibilities, scale

    FUNCTIONS = {
        "em_moments": moments,
        "_em_moments_backward": moments_backward,
        "em_fit": fit,
        "_em_fit_backward": fit_backward,
        "em_reconstruct": reconstruct,
        "_em_reconstruct_backward": reconstruct_backward,
        "_em_project_fixed": project,
        "_pooled_moments": pooled_moments,
        "_pooled_moments_backward": pooled_moments_backward,
        "_pooled_cosine": pooled_cosine,
        "_pooled_cosine_backward": pooled_cosine_backward,
    }


class Triton(PythonBackend):
    """Triton kernels, on a GPU or in Triton's interpreter."""

    uniform = False

    def unavailable(self, device: torch.device) -> str | None:
        if UNAVAILABLE is not None:
            return UNAVAILABLE
        if device.type != "cuda" and not INTERPRETED:
            return f"tensors are on {device}, not on cuda; TRITON_INTERPRET=1 before the start runs it on the CPU"
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
        return None

    def supports(self, op: Declared, args: tuple[Any, ...]) -> str | None:
        return self.unavailable(args[op.main].device) or gpu.over_limits(op, args)


backend = Triton("triton", FUNCTIONS)
