"""The ways that are compared: the release's formula in eager torch, the same compiled, and ours."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import (
    em_project,
    pooled_cosine_similarity,
    pooled_similarity,
    pooled_similarity_blocks,
    reference,
)


@cache
def compiled_project() -> Callable[..., Any]:
    return torch.compile(reference.em_project_loop, dynamic=False)


def compiled(*args: Any, **settings: Any) -> Any:
    """Compiled at the first call: importing torch's compiler takes seconds, and most who import this never need it."""
    return compiled_project()(*args, **settings)


PROJECT_WAYS: dict[str, Callable[..., Any]] = {
    "eager": reference.em_project_loop,
    "compiled": compiled,
    "ours": em_project,
}


def release(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> Tensor:
    return reference.pooled_similarity_materialized(text, frames, mask, init)[0]


def ours(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> Tensor:
    return pooled_similarity(text, frames, mask, init)[0]


def ours_without_em(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> Tensor:
    return pooled_cosine_similarity(text, frames, mask)


TRAINING_WAYS: dict[str, Callable[..., Tensor]] = {"eager": release, "EMCL off": ours_without_em, "ours": ours}


def in_blocks(
    function: Callable[..., Tensor], text: Tensor, frames: Tensor, mask: Tensor, init: Tensor, em_block: int
) -> Tensor:
    """The release's evaluation: a loop over blocks of texts and videos."""
    clips = list(zip(frames.split(em_block), mask.split(em_block), strict=True))
    return torch.cat([torch.cat([function(t, f, m, init) for f, m in clips], dim=1) for t in text.split(em_block)])


def release_in_blocks(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor, em_block: int) -> Tensor:
    return in_blocks(release, text, frames, mask, init, em_block)


def ours_in_blocks(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor, em_block: int) -> Tensor:
    return pooled_similarity_blocks(text, frames, mask, init, em_block=em_block)


EVALUATION_WAYS: dict[str, Callable[..., Tensor]] = {"eager": release_in_blocks, "ours": ours_in_blocks}


def project_forward(function: Callable[..., Any], x: Tensor, init: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return function(x, init)

    return run


def project_step(function: Callable[..., Any], x: Tensor, init: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward through every iteration."""
    x, init = x.clone().requires_grad_(), init.clone().requires_grad_()
    d_y = torch.ones_like(x)

    def run() -> tuple[Tensor, ...]:
        y, _ = function(x, init, gradient="full")
        return y.detach(), *torch.autograd.grad(y, (x, init), d_y)

    return run


def training_step(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Forward and backward with the release's gradient."""
    text, frames, mask, init = inputs
    text, frames = text.clone().requires_grad_(), frames.clone().requires_grad_()

    def run() -> object:
        similarity = function(text, frames, mask, init)
        return similarity.detach(), *torch.autograd.grad(similarity.diagonal().sum(), (text, frames))

    return run
