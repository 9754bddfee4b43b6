"""Script for test_on_gpu.py: every kernel once on small odd shapes, to be run under compute-sanitizer.

compute-sanitizer --tool memcheck python small_case.py BACKEND DEVICE
"""

import sys

import torch

from emcl_kernels import em_project, pooled_similarity, pooled_similarity_blocks, use_backend
from emcl_kernels.testing import clustered_rows, distinct_init


def main(device: str) -> None:
    for dtype, width in ((torch.float32, 63), (torch.bfloat16, 72)):
        x, init = clustered_rows(2, 130, width).to(device, dtype), distinct_init(7).to(device, dtype)
        text, frames = clustered_rows(21, width).to(device, dtype), clustered_rows(3, 5, width).to(device, dtype)
        mask = torch.ones(3, 5, device=device).bool()
        for gradient in ("linear", "full"):
            leaves = [tensor.detach().requires_grad_() for tensor in (x, text, frames)]
            y, _ = em_project(leaves[0], init, gradient=gradient, num_iters=2)  # type: ignore[arg-type]
            similarity, _ = pooled_similarity(*leaves[1:], mask, init, gradient=gradient, num_iters=2)  # type: ignore[arg-type]
            gradients = torch.autograd.grad(y.square().sum() + similarity.square().sum(), leaves)
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert bool(pooled_similarity_blocks(text, frames, mask, init, em_block=4).isfinite().all())
    print("done")


if __name__ == "__main__":
    torch.manual_seed(0)
    with use_backend(sys.argv[1]):  # type: ignore[arg-type]
        main(sys.argv[2])
