"""Calls of the ops with their gradients, on inputs that a seed determines: for tests of bits, graphs and streams."""

from collections.abc import Callable

import torch
from compare import GRADIENTS
from torch import Tensor

from emcl_kernels import em_fit, em_project, pooled_similarity, pooled_similarity_blocks
from emcl_kernels.testing import clustered_rows, distinct_init

Tensors = tuple[Tensor, ...]
# Outputs and gradients of a call.
Call = Callable[[Tensors], Tensors]
# Inputs by seed, device and size.
Inputs = Callable[..., Tensors]


def rows(seed: int, device: str, count: int = 130, width: int = 63, bases: int = 7) -> Tensors:
    """x, init, d_y."""
    torch.manual_seed(seed)
    x = clustered_rows(count, width).float()
    return x.to(device), distinct_init(bases).float().to(device), torch.randn(count, width).to(device)


def clips(seed: int, device: str, pairs: int = 41, frames: int = 5, width: int = 33, bases: int = 7) -> Tensors:
    """text, frames, init, d_similarity."""
    torch.manual_seed(seed)
    tensors = (clustered_rows(pairs, width), clustered_rows(pairs // 4, frames, width), distinct_init(bases))
    return *(tensor.float().to(device) for tensor in tensors), torch.randn(pairs, pairs // 4).to(device)


def project(gradient: str) -> Call:
    def run(inputs: Tensors) -> Tensors:
        x, init, d_y = inputs
        x = x.detach().requires_grad_()
        init = init.detach().requires_grad_(gradient == "full")
        y, mean_bases = em_project(x, init, gradient=gradient, num_iters=3)  # type: ignore[arg-type]
        leaves = (x, init) if gradient == "full" else (x,)
        return y.detach(), mean_bases.detach(), *torch.autograd.grad(y, leaves, d_y)

    return run


def pooled(gradient: str) -> Call:
    def run(inputs: Tensors) -> Tensors:
        text, frames, init, d_similarity = inputs
        text = text.detach().requires_grad_()
        frames = frames.detach().requires_grad_()
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        similarity, mean_bases = pooled_similarity(text, frames, mask, init, gradient=gradient, num_iters=3)  # type: ignore[arg-type]
        return similarity.detach(), mean_bases.detach(), *torch.autograd.grad(similarity, (text, frames), d_similarity)

    return run


def blocks(inputs: Tensors) -> Tensors:
    text, frames, init, _ = inputs
    mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    return (pooled_similarity_blocks(text, frames, mask, init, em_block=16),)


def fit(inputs: Tensors) -> Tensors:
    x, init, _ = inputs
    gram = (x.mT @ x).requires_grad_()
    responsibilities, scale = em_fit(gram, x.sum(0).unsqueeze(-1) * init, num_iters=3)
    (d_gram,) = torch.autograd.grad(responsibilities.cos().sum() + scale.cos().sum(), gram)
    return responsibilities.detach(), scale.detach(), d_gram


CALLS: dict[str, tuple[Call, Inputs]] = {
    **{f"em_project {gradient}": (project(gradient), rows) for gradient in GRADIENTS},
    **{f"pooled_similarity {gradient}": (pooled(gradient), clips) for gradient in GRADIENTS},
    "pooled_similarity_blocks": (blocks, clips),
    "em_fit": (fit, rows),
}


def assert_equal(actual: Tensors, expected: Tensors) -> None:
    """Bit by bit."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert bool(a.isfinite().all()), f"result {i} is not finite"
        assert torch.equal(a, b), f"result {i} differs by up to {float((a - b).abs().max()):.1e}"
