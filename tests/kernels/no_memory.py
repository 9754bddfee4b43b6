"""Script for test_no_memory.py: every op with each of its allocations failing once, the preloaded allocator's doing.

no_memory.py LIBRARY, in a process of its own, in which LIBRARY is preloaded.
"""

import ctypes
import sys

import torch
from op_arguments import arguments, names

from emcl_kernels import use_backend
from emcl_kernels.ops import define
from emcl_kernels.testing import clustered_rows

allocator = ctypes.CDLL(sys.argv[1])
torch.set_num_threads(2)

# Sizes of which several threads have a part.
LARGE = {
    "text": clustered_rows(300, 24),
    "frames": clustered_rows(64, 4, 24),
    "frame_mask": torch.ones(64, 4),
    "kept": torch.empty(0),
    "d_cosine": torch.ones(300, 64),
    "cosine": torch.full((300, 64), 0.5),
    "length": torch.ones(300, 64),
    "responsibilities": torch.rand(24, 3),
    "scale": torch.rand(3),
    "init": torch.rand(3),
    "d_gram": torch.rand(24, 24),
    "d_colsum": torch.rand(24),
    "em_block": 20,
}


def main() -> None:
    failed = 0
    for name in names():
        if name not in define.OPS:
            continue
        given = arguments(name, grad=False, **(LARGE if "pooled" in name else {}))
        call = getattr(torch.ops.emcl, name).default
        call(*given)

        # Each of the first, and some of those that come later.
        for n in (*range(1, 25), *range(25, 100, 7), *range(100, 10_000, 301)):
            print(f"{name}: allocation {n}", flush=True)
            allocator.fail_at(n)
            try:
                call(*given)
            except MemoryError:
                failed += 1
            if allocator.not_reached() > 0:  # there are fewer
                break
            allocator.fail_at(-1)
        allocator.fail_at(-1)
        call(*given)
    print(f"failed: {failed}")


with use_backend("native"):
    main()
