"""The pooled similarity against the release's formula, which makes the [A, B, D] tensor."""

import pytest
import torch
from torch import Tensor

from emcl_kernels import pooled_cosine_similarity, pooled_similarity, reference, use_backend
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

SHAPES = [(1, 1, 1, 16, 1), (5, 5, 1, 16, 7), (9, 4, 3, 63, 7), (3, 11, 12, 32, 32), (16, 16, 6, 130, 7)]


def sample(a: int, b: int, f: int, d: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask = torch.rand(b, f) < 0.7
    mask[:, 0] = True
    return 3 * clustered_rows(a, d), 3 * clustered_rows(b, f, d), mask, distinct_init(k)


def gradients(op: object, inputs: tuple[Tensor, ...], dtype: torch.dtype, gradient: str) -> tuple[Tensor, list[Tensor]]:
    text, frames, mask, init = inputs
    leaves = [text.to(dtype).requires_grad_(), frames.to(dtype).requires_grad_(), init.to(dtype).requires_grad_()]
    similarity, _ = op(*leaves[:2], mask, leaves[2], temperature=0.5, gradient=gradient)  # type: ignore[operator]
    weight = torch.linspace(-1, 1, similarity.numel(), dtype=dtype).view_as(similarity).cos()
    return similarity, list(torch.autograd.grad((similarity * weight).sum(), leaves[: 3 if gradient == "full" else 2]))


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_values_and_gradients(backend: str, shape: tuple[int, int, int, int, int], gradient: str) -> None:
    inputs = sample(*shape)
    truth, truth_gradients = gradients(reference.pooled_similarity_materialized, inputs, torch.float64, gradient)
    for dtype, value_tolerance, gradient_tolerance in ((torch.float64, 1e-10, 1e-9), (torch.float32, 1e-5, 1e-5)):
        with use_backend(backend):
            similarity, ours = gradients(pooled_similarity, inputs, dtype, gradient)
        assert_close("similarity", similarity, truth, value_tolerance)
        for name, a, b in zip(("d_text", "d_frames", "d_init"), ours, truth_gradients, strict=False):
            if float(b.abs().max()) < 1e-9:
                assert float(a.abs().max()) < 1e-5
            elif name != "d_init" or dtype == torch.float64:  # in float32 the start's gradient is rounding only
                # float32: what is left after the cosine's own cancellation
                assert_close(name, a, b, gradient_tolerance if dtype == torch.float64 else 3 * gradient_tolerance)


def test_mean_of_bases_and_numeric_masks() -> None:
    text, frames, mask, init = sample(6, 5, 4, 32, 7)
    weights = mask.double() * torch.rand(mask.shape, dtype=torch.float64)
    ours = pooled_similarity(text, frames, weights, init)
    truth = reference.pooled_similarity_materialized(text, frames, weights, init)
    assert_close("similarity", ours[0], truth[0])
    assert_close("mean_bases", ours[1], truth[1])


def test_a_clip_without_valid_frames_has_similarity_zero() -> None:
    text, frames, mask, init = sample(4, 3, 5, 16, 7)
    mask[1] = False
    text, frames = text.requires_grad_(), frames.requires_grad_()
    similarity, _ = pooled_similarity(text, frames, mask, init)
    similarity.sum().backward()
    assert torch.equal(similarity[:, 1], torch.zeros(4, dtype=torch.float64))
    assert text.grad is not None
    assert frames.grad is not None
    assert bool(torch.isfinite(text.grad).all() and torch.isfinite(frames.grad).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_without_em(shape: tuple[int, int, int, int, int]) -> None:
    text, frames, mask, _ = sample(*shape)
    results = []
    for function in (pooled_cosine_similarity, reference.pooled_cosine_similarity):
        leaves = [text.clone().requires_grad_(), frames.clone().requires_grad_()]
        similarity = function(*leaves, mask, pooling_temperature=2.0)
        weight = torch.arange(similarity.numel(), dtype=torch.float64).view_as(similarity).cos()
        results.append((similarity, *torch.autograd.grad((similarity * weight).sum(), leaves)))
    for name, a, b in zip(("similarity", "d_text", "d_frames"), *results, strict=True):
        assert_close(name, a, b, 1e-9)


def test_no_tensor_of_the_materialized_size_is_made() -> None:
    a, b, f, d = 40, 36, 3, 96
    text, frames, mask, init = sample(a, b, f, d, 8)
    text, frames = text.requires_grad_(), frames.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        pooled_similarity(text, frames, mask, init)[0].sum().backward()
    sizes = [
        torch.Size(shape).numel()
        for event in profile.events()
        for shape in event.input_shapes
        if shape and all(isinstance(size, int) for size in shape)
    ]
    assert sizes
    assert max(sizes) < a * b * d
