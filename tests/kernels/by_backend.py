"""Every op through one backend, as a function with the arguments of its schema."""

from collections.abc import Callable
from typing import Any

from emcl_kernels import use_backend
from emcl_kernels.ops.define import OPS

SHORT = {
    "moments": "em_moments",
    "moments_backward": "_em_moments_backward",
    "fit": "em_fit",
    "fit_backward": "_em_fit_backward",
    "reconstruct": "em_reconstruct",
    "reconstruct_backward": "_em_reconstruct_backward",
    "project": "_em_project_fixed",
    "pooled_moments": "_pooled_moments",
    "pooled_moments_backward": "_pooled_moments_backward",
    "pooled_cosine": "_pooled_cosine",
    "pooled_cosine_backward": "_pooled_cosine_backward",
    "pooled_blocks": "_pooled_blocks",
}


class Functions:
    """`Functions("native").moments(x)` is `em_moments` of the C++ library."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = OPS[SHORT[name]]

        def function(*args: Any) -> Any:
            with use_backend(self.backend):
                return op.call(*args)

        return function
