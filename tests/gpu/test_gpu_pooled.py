"""The pooled similarity: values and every gradient against the release's formula in float64."""

from typing import Any

import pytest
import torch
from compare import DEVICE, DTYPES, GRADIENTS, Function, Problem, compare, pooled_problem
from torch import Tensor

from emcl_kernels import (
    pooled,
    pooled_cosine_similarity,
    pooled_similarity,
    pooled_similarity_blocks,
    reference,
    use_backend,
)
from emcl_kernels.testing import assert_close, relative_error

# (texts, videos, frames, width, bases)
ODD = [
    (1, 1, 1, 16, 1),
    (5, 3, 1, 63, 7),
    (3, 7, 5, 32, 32),
    (41, 3, 12, 63, 7),
    (130, 5, 7, 41, 7),
    (9, 2, 64, 63, 33),
    (7, 3, 17, 130, 128),
]
REAL = [(64, 64, 12, 512, 32), (32, 32, 64, 512, 32), (40, 24, 12, 1024, 64)]
LARGE = [(1024, 1024, 12, 512, 32), (128, 128, 64, 512, 32), (256, 256, 12, 1024, 32)]


def similarity(function: Any, gradient: str, iters: int = 3) -> Function:
    """Three iterations by default: EM amplifies rounding, and these are no tests of EM."""

    def run(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
        result, _ = function(text, frames, mask, init, gradient=gradient, num_iters=iters, pooling_temperature=2.0)
        return {"similarity": result}

    return run


def check(backend: str, shape: tuple[int, ...], dtype: torch.dtype, gradient: str, **options: Any) -> None:
    compare(
        backend,
        pooled_problem(*shape, dtype),  # type: ignore[arg-type]
        similarity(pooled_similarity, gradient),
        options.pop("formula", similarity(reference.pooled_similarity_materialized, gradient)),
        through_em=gradient == "full",
        **options,
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_odd_sizes(backend: str, shape: tuple[int, ...], dtype: torch.dtype, gradient: str) -> None:
    check(backend, shape, dtype, gradient)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", REAL, ids=str)
def test_real_sizes(backend: str, shape: tuple[int, ...], dtype: torch.dtype, gradient: str) -> None:
    check(backend, shape, dtype, gradient)


@pytest.mark.parametrize("gradient", ["identity", "full"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*ODD[3:6], *REAL], ids=str)
def test_inner_products_made_again(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there are too many of them to be kept."""
    monkeypatch.setattr(pooled, "KEPT_PRODUCTS", 0)
    check(backend, shape, dtype, gradient)


@pytest.mark.large
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_batches(backend: str, shape: tuple[int, ...], dtype: torch.dtype, gradient: str) -> None:
    """Against the Gram form in float64, which agrees with the release's to 1e-13 and makes no tensor [A, B, D]."""
    in_torch = similarity(pooled_similarity, gradient)
    plain = similarity(reference.pooled_similarity_materialized, gradient) if dtype != torch.float32 else in_torch
    check(backend, shape, dtype, gradient, formula=in_torch, plain=plain)


@pytest.mark.short
@pytest.mark.parametrize("gradient", ["identity", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_before_a_benchmark(backend: str, dtype: torch.dtype, gradient: str) -> None:
    check(backend, (64, 64, 12, 512, 32), dtype, gradient)
    check(backend, (41, 3, 12, 63, 7), dtype, gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*ODD, *REAL], ids=str)
def test_without_em(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def run(function: Any) -> Function:
        return lambda text, frames, mask, init: {"similarity": function(text, frames, mask, pooling_temperature=2.0)}

    problem = pooled_problem(*shape, dtype)  # type: ignore[arg-type]
    compare(backend, problem, run(pooled_cosine_similarity), run(reference.pooled_cosine_similarity))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "em_block"), [((9, 7, 5, 63, 7), 4), ((70, 70, 12, 512, 32), 32), ((5, 40, 3, 130, 7), 16)]
)
def test_blocks(backend: str, shape: tuple[int, ...], em_block: int, dtype: torch.dtype, relative: bool) -> None:
    def ours(text: Tensor, frames: Tensor, mask: Tensor, init: Tensor) -> dict[str, Tensor]:
        weight = 0.2 if relative else 3.0
        result = pooled_similarity_blocks(
            text, frames, mask, init, em_block=em_block, residual_weight=weight, relative=relative
        )
        return {"similarity": result}

    problem = pooled_problem(*shape, dtype, differentiate=())  # type: ignore[arg-type]
    compare(backend, problem, ours, ours)


@pytest.mark.short
def test_blocks_before_a_benchmark(backend: str) -> None:
    test_blocks(backend, (70, 70, 12, 512, 32), 32, torch.float32, relative=False)


@pytest.mark.large
def test_blocks_of_a_whole_evaluation(backend: str) -> None:
    """A thousand texts and videos in blocks of 32: blocks that hold the same clips have the same result."""
    problem = pooled_problem(200, 200, 12, 512, 32, torch.float32)
    text, frames, mask, init = on_device(problem)
    many = (text.repeat(5, 1), frames.repeat(5, 1, 1), mask.repeat(5, 1), init)
    with use_backend("reference"):
        expected = pooled_similarity_blocks(*problem.tensors.values(), em_block=40)
    with use_backend(backend):
        actual = pooled_similarity_blocks(*many, em_block=40)
    assert torch.equal(actual, actual[:200, :200].repeat(5, 5))
    assert_close("similarity", actual[:200, :200].cpu(), expected, 1e-5)


def test_a_clip_without_valid_frames_has_similarity_zero(backend: str) -> None:
    text, frames, mask, init = on_device(pooled_problem(9, 5, 7, 63, 7, torch.float32))
    mask[1] = False
    text, frames = text.requires_grad_(), frames.requires_grad_()
    with use_backend(backend):
        result, _ = pooled_similarity(text, frames, mask, init)
        gradients = torch.autograd.grad(result.sum(), (text, frames))
    assert not result[:, 1].any()
    assert bool((result[:, 0].abs() > 1e-3).any())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_mean_of_bases(backend: str) -> None:
    problem = pooled_problem(41, 6, 7, 63, 7, torch.float32)
    _, expected = reference.pooled_similarity_materialized(*problem.tensors.values(), num_iters=3)
    arguments = on_device(problem)
    with use_backend("reference"):
        _, plain = pooled_similarity(*arguments, num_iters=3)
    with use_backend(backend):
        _, actual = pooled_similarity(*arguments, num_iters=3)
    assert_close("mean_bases", actual.cpu(), expected, max(1e-5, 4 * relative_error(plain.cpu(), expected)))


def on_device(problem: Problem) -> list[Tensor]:
    """text, frames, mask, init."""
    return [
        tensor.to(DEVICE, problem.dtype) if tensor.is_floating_point() else tensor.to(DEVICE)
        for tensor in problem.tensors.values()
    ]
