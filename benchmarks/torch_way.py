"""The third way on a GPU: the Gram form in plain torch, as functions that torch.compile sees through.

They are those of the backend "torch". Its ops are opaque to torch.compile, so here they are put together by hand, with
backward passes that are called and not derived: what one would write who has no kernels, and compiles it whole.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from cases import ITERS
from torch import Tensor

from emcl_kernels import dispatch
from emcl_kernels.checks import ACCUMULATION
from emcl_kernels.ops.pooled import KEPT_PRODUCTS

NAME = "torch"
TEMPERATURE = 1.0
POOLING_TEMPERATURE = 3.0
WEIGHT = 3.0
EPS = 1e-6
EM = (ITERS, TEMPERATURE, EPS)
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def missing() -> str:
    """Why there is no such way, or nothing."""
    return "" if NAME in dispatch.BACKENDS else f"emcl_kernels has no backend {NAME}"


def functions() -> Mapping[str, Callable[..., Any]]:
    """The backend's functions by the names of the ops, each with the op's arguments in the schema's order."""
    return dispatch.BACKENDS[NAME].functions  # type: ignore[attr-defined, no-any-return]


def project(wrap: Wrap, x: Tensor, init: Tensor) -> Callable[[], Any]:
    """em_project forward."""
    table = functions()

    def forward(x: Tensor, init: Tensor) -> tuple[Tensor, Tensor]:
        y, mean_bases, _, _ = table["_em_project_fixed"](x, init, ITERS, TEMPERATURE, WEIGHT, EPS, False)
        return y, mean_bases

    return calling(wrap(forward), x, init.to(ACCUMULATION[x.dtype]))


def project_step(wrap: Wrap, x: Tensor, init: Tensor) -> Callable[[], Any]:
    """em_project forward and backward through every iteration, for the gradient that ways.project_step has."""
    table = functions()

    def step(x: Tensor, init: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gram, colsum = table["em_moments"](x)
        logits = colsum.unsqueeze(-1) * init
        responsibilities, scale = table["em_fit"](gram, logits, *EM)
        y = table["em_reconstruct"](x, responsibilities, scale, WEIGHT)

        d_y = torch.ones_like(y)
        d_x, d_responsibilities, d_scale = table["_em_reconstruct_backward"](d_y, x, responsibilities, scale, WEIGHT)
        d_gram, d_logits = table["_em_fit_backward"](d_responsibilities, d_scale, gram, logits, *EM)
        d_colsum = (d_logits * init).sum(-1)
        d_init = (d_logits * colsum.unsqueeze(-1)).sum(-2)
        return y, d_x + table["_em_moments_backward"](d_gram, d_colsum, x), d_init

    return calling(wrap(step), x, init.to(ACCUMULATION[x.dtype]))


def fit(wrap: Wrap, gram: Tensor, logits: Tensor) -> Callable[[], Any]:
    table = functions()

    def forward(gram: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return table["em_fit"](gram, logits, *EM)  # type: ignore[no-any-return]

    return calling(wrap(forward), gram, logits)


def similarity(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """pooled_similarity; and what its backward takes."""
    table = functions()
    keep = text.shape[0] * frames.shape[0] * frames.shape[1] <= KEPT_PRODUCTS
    gram, colsum, kept = table["_pooled_moments"](text, frames, mask, POOLING_TEMPERATURE, keep)
    fitted = table["em_fit"](gram, colsum.unsqueeze(-1) * init, *EM)
    given = (text, frames, mask, kept, *fitted)
    cosine, length = table["_pooled_cosine"](*given, WEIGHT, POOLING_TEMPERATURE, False)
    return cosine, (*given, cosine, length, WEIGHT, POOLING_TEMPERATURE, False, True, True, False)


def training_step(wrap: Wrap, *inputs: Tensor) -> Callable[[], Any]:
    """pooled_similarity forward and backward, for the loss that ways.training_step has."""
    table = functions()

    def step(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cosine, saved = similarity(text, frames, mask, init)
        d_cosine = torch.eye(*cosine.shape, device=cosine.device, dtype=cosine.dtype)
        d_text, d_frames, _, _ = table["_pooled_cosine_backward"](d_cosine, *saved)
        return cosine.to(text.dtype), d_text, d_frames

    return calling(wrap(step), *as_numbers(*inputs))


def block(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> Tensor:
    """One block of pooled_similarity_blocks."""
    return similarity(*as_numbers(text, frames, mask, init))[0]


def as_numbers(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the ops hand them to a backend."""
    dtype = ACCUMULATION[text.dtype]
    return text, frames, mask.to(dtype), init.to(dtype)


def calling(function: Callable[..., Any], *inputs: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return run
