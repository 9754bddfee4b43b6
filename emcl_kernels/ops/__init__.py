"""The ops of torch.ops.emcl: one file an op, with its function, what it accepts, its shapes and its gradient.

How such a file is read: `define.py`. What an op computes: `emcl_kernels/reference.py`. Which backend computes it:
`emcl_kernels/dispatch.py`.
"""

import sys
from typing import Any

FUNCTIONS = (
    "em_fit", "em_moments", "em_project", "em_reconstruct", "pooled_cosine_similarity", "pooled_similarity",
    "pooled_similarity_blocks",
)  # fmt: skip
"""Names of the package that `emcl_kernels.ops` had, too, when it was one module."""


def __getattr__(name: str) -> Any:
    """Functions of the ops, by the place that version 0.1 gave them; they stand in their files and in the package."""
    if name in FUNCTIONS:
        return getattr(sys.modules[__name__.rpartition(".")[0]], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
