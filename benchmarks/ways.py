"""The ways that are compared: the release's formula in eager torch, the same compiled, and ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import em_project, pooled_similarity, reference

PROJECT_WAYS: dict[str, Callable[..., Any]] = {
    "eager": reference.em_project_loop,
    "compiled": torch.compile(reference.em_project_loop, dynamic=False),
    "ours": em_project,
}
POOLED_WAYS: dict[str, Callable[..., Any]] = {
    "eager": reference.pooled_similarity_materialized,
    "ours": pooled_similarity,
}


def project_forward(function: Callable[..., Any], x: Tensor, init: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return function(x, init)

    return run


def project_step(function: Callable[..., Any], x: Tensor, init: Tensor) -> Callable[[], object]:
    """Forward and backward through every iteration."""
    x, init = x.clone().requires_grad_(), init.clone().requires_grad_()
    d_y = torch.ones_like(x)

    def run() -> object:
        y, _ = function(x, init, gradient="full")
        return torch.autograd.grad(y, (x, init), d_y)

    return run


def pooled_step(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Forward and backward with the release's gradient."""
    text, frames, mask, init = inputs
    text, frames = text.clone().requires_grad_(), frames.clone().requires_grad_()

    def run() -> object:
        similarity, _ = function(text, frames, mask, init)
        return torch.autograd.grad(similarity.diagonal().sum(), (text, frames))

    return run
