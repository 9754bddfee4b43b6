"""Every kernel once on small odd shapes: the first thing to run on a GPU, alone and then under compute-sanitizer.

compute-sanitizer --tool memcheck python small_case.py BACKEND DEVICE [tiny]

What is about to run is written to stderr, so that the last line names what crashed or hung. BACKEND is asked for by
name, so nothing else stands in for it. test_on_gpu.py runs this too. "tiny" is for an interpreter.
"""

import sys

import torch

from emcl_kernels import em_project, pooled_similarity, pooled_similarity_blocks, use_backend
from emcl_kernels.testing import clustered_rows, distinct_init

KINDS = ((torch.float32, 63), (torch.bfloat16, 72))
BLOCKS = ((21, 4), (70, 40))  # texts, em_block: the last block is smaller, and in the second case than a split of texts


def main(
    device: str,
    kinds: tuple[tuple[torch.dtype, int], ...] = KINDS,
    rows: int = 130,
    texts: int = 21,
    blocks: tuple[tuple[int, int], ...] = BLOCKS,
) -> None:
    for dtype, width in kinds:
        x, init = clustered_rows(2, rows, width).to(device, dtype), distinct_init(7).to(device, dtype)
        text, frames = clustered_rows(texts, width).to(device, dtype), clustered_rows(3, 5, width).to(device, dtype)
        mask = torch.ones(3, 5, device=device).bool()
        for gradient in ("linear", "full"):
            about(f"em_project and pooled_similarity, {dtype}, forward and backward, gradient {gradient}")
            leaves = [tensor.detach().requires_grad_() for tensor in (x, text, frames)]
            y, _ = em_project(leaves[0], init, gradient=gradient, num_iters=2)  # type: ignore[arg-type]
            similarity, _ = pooled_similarity(*leaves[1:], mask, init, gradient=gradient, num_iters=2)  # type: ignore[arg-type]
            gradients = torch.autograd.grad(y.square().sum() + similarity.square().sum(), leaves)
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        for count, em_block in blocks:
            about(f"pooled_similarity_blocks of {count} texts, {dtype}, blocks of {em_block}")
            some = clustered_rows(count, width).to(device, dtype)
            assert bool(pooled_similarity_blocks(some, frames, mask, init, em_block=em_block).isfinite().all())
    print("done")


def about(what: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    with use_backend(sys.argv[1]):  # type: ignore[arg-type]
        if "tiny" in sys.argv[3:]:
            main(sys.argv[2], KINDS[:1], rows=20, texts=5, blocks=((5, 4),))
        else:
            main(sys.argv[2])
