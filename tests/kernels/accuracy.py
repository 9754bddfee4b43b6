"""Errors of a backend's kernels against float64 autograd of the reference, beside those of plain torch.

On clustered rows and distinct starts, on which EM does something. Used by the tests of the Triton and the CUDA kernels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import pooled_cosine_similarity, pooled_similarity, reference, use_backend
from emcl_kernels.testing import clustered_rows, distinct_init, relative_error

EPS, WEIGHT = 1e-6, 3.0


def error_against(expected: Tensor, *terms: Tensor) -> Callable[[Tensor], float]:
    """Relative error, where a result that cancels to nearly nothing is measured by the terms that cancelled."""
    measure = max(float(torch.linalg.vector_norm(tensor.detach())) for tensor in (expected, *terms))
    return lambda actual: float(torch.linalg.vector_norm(actual.detach().double() - expected.detach())) / measure


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).double()


def rows_errors(
    backend: Any, leading: tuple[int, ...], rows: int, width: int, num_bases: int, num_iters: int, dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """(error of a backend's kernels, error of plain torch) of each output, each op fed with the reference's inputs."""
    errors = {}

    def compare(output: str, actual: Tensor, plain: Tensor, expected: Tensor, *terms: Tensor) -> None:
        assert actual.shape == expected.shape, output
        error = error_against(expected, *terms)
        errors[output] = (error(actual), error(plain))

    def low(tensor: Tensor, to: torch.dtype = torch.float32) -> Tensor:
        return tensor.detach().to(to).requires_grad_()

    # Length 3: at length 1 the first responsibilities are nearly uniform, and much could be wrong unseen.
    x = rounded(3 * clustered_rows(*leading, rows, width), dtype).requires_grad_()
    gram, colsum = reference.em_moments(x)
    d_gram, d_colsum = (rounded(torch.randn(tensor.shape), torch.float32) for tensor in (gram, colsum))
    (d_x,) = torch.autograd.grad((gram, colsum), x, (d_gram, d_colsum))
    plain_x = low(x, dtype)
    plain_gram, plain_colsum = reference.em_moments(plain_x)
    gradients = (d_gram.to(dtype), d_colsum.to(dtype))
    (plain_d_x,) = torch.autograd.grad((plain_gram, plain_colsum), plain_x, gradients)
    actual_gram, actual_colsum = backend.moments(x.detach().to(dtype))
    compare("gram", actual_gram, plain_gram, gram)
    compare("colsum", actual_colsum, plain_colsum, colsum)
    compare("moments d_x", backend.moments_backward(d_gram.float(), d_colsum.float(), plain_x), plain_d_x, d_x)

    options = {"num_iters": num_iters, "temperature": 1.0, "eps": EPS}
    # One start per row: from one value per basis, nine iterations can amplify rounding until no float32 agrees.
    bases = torch.randn(*leading, rows, num_bases, dtype=torch.float64)
    start = x.mT @ (bases / torch.linalg.vector_norm(bases, dim=-2, keepdim=True))
    # Not symmetric: the gradient must be right for any matrix, though EM only sees xᵀx.
    gram = rounded(gram + 1e-3 * torch.rand(gram.shape), torch.float32).requires_grad_()
    start = rounded(start, torch.float32).requires_grad_()
    responsibilities, scale = reference.em_fit(gram, start, **options)
    d_r, d_scale = (rounded(torch.randn(tensor.shape), torch.float32) for tensor in (responsibilities, scale))
    d_gram, d_start = torch.autograd.grad((responsibilities, scale), (gram, start), (d_r, d_scale))
    plain_gram, plain_start = low(gram), low(start)
    plain_fit = reference.em_fit(plain_gram, plain_start, **options)
    plain = torch.autograd.grad(plain_fit, (plain_gram, plain_start), (d_r.float(), d_scale.float()))
    actual_fit = backend.fit(plain_gram, plain_start, *options.values())
    actual = backend.fit_backward(d_r.float(), d_scale.float(), plain_gram, plain_start, *options.values())
    compare("responsibilities", actual_fit[0], plain_fit[0], responsibilities)
    compare("scale", actual_fit[1], plain_fit[1], scale)
    compare("d_gram", actual[0], plain[0], d_gram)
    compare("d_logits", actual[1], plain[1], d_start, d_r * responsibilities / options["temperature"])

    r, s = (rounded(tensor, torch.float32).requires_grad_() for tensor in (responsibilities, scale))
    y = reference.em_reconstruct(x, r, s, weight=WEIGHT)
    d_y = rounded(torch.randn(y.shape), dtype)
    d_x, d_r, d_s = torch.autograd.grad(y, (x, r, s), d_y)
    plain_r, plain_s = low(r, dtype), low(s, dtype)
    plain_y = reference.em_reconstruct(plain_x, plain_r, plain_s, weight=WEIGHT)
    plain = torch.autograd.grad(plain_y, (plain_x, plain_r, plain_s), d_y.to(dtype))
    actual_y = backend.reconstruct(x.detach().to(dtype), low(r), low(s), WEIGHT)
    actual = backend.reconstruct_backward(d_y.to(dtype), plain_x, low(r), low(s), WEIGHT)
    compare("reconstruction", actual_y.double() - x, plain_y.double() - x, y - x)
    compare("reconstruct d_x", actual[0].double() - d_y, plain[0].double() - d_y, d_x - d_y)
    compare("d_responsibilities", actual[1], plain[1], d_r)
    compare("d_scale", actual[2], plain[2], d_s)
    return errors


def pooled_sample(a: int, b: int, f: int, d: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """text, frames, frame_mask (bool, or for an even number of frames any numbers), init."""
    mask = torch.rand(b, f) < 0.7
    mask[:, 0] = True
    numbers = mask * (0.5 + torch.rand(b, f, dtype=torch.float64))
    return 3 * clustered_rows(a, d), 3 * clustered_rows(b, f, d), mask if f % 2 else numbers, distinct_init(k)


def pooled_outputs(
    op: Callable[..., Any], inputs: tuple[Tensor, ...], dtype: torch.dtype, **options: Any
) -> dict[str, Tensor]:
    """Similarity and gradients, of text and frames, and of init and mean_bases where EM runs with all its gradient."""
    text, frames, mask, *init = inputs
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (text, frames, *init)]
    similarity, *_ = result if isinstance(result := op(*leaves[:2], mask, *leaves[2:], **options), tuple) else (result,)
    differentiated = leaves if options.get("gradient") == "full" else leaves[:2]
    weight = torch.linspace(-1, 1, similarity.numel(), dtype=dtype).view_as(similarity).cos()
    gradients = torch.autograd.grad((similarity * weight).sum(), differentiated)
    named = {"similarity": similarity} | dict(zip(("d_text", "d_frames", "d_init"), gradients, strict=False))
    return named | ({"mean_bases": result[1]} if isinstance(result, tuple) else {})


def pooled_errors(
    backend: Any, inputs: tuple[Tensor, ...], dtype: torch.dtype, gradient: str | None
) -> dict[str, tuple[float, float]]:
    """(error of a backend, error of plain torch) of each output. gradient: None leaves EM out."""
    if gradient is None:
        ours, truth, inputs = pooled_cosine_similarity, reference.pooled_cosine_similarity, inputs[:3]
        options: dict[str, Any] = {"pooling_temperature": 2.0}
    else:
        ours, truth = pooled_similarity, reference.pooled_similarity_materialized
        # Three iterations, no very low temperature: EM amplifies rounding, and these are no tests of EM.
        options = {"gradient": gradient, "num_iters": 3, "pooling_temperature": 2.0}
    expected = pooled_outputs(truth, inputs, torch.float64, **options)
    with use_backend(backend):
        actual = pooled_outputs(ours, inputs, dtype, **options)
    with use_backend("reference"):
        plain = pooled_outputs(ours, inputs, dtype, **options)
    # With one frame nothing depends on the weights, and with one row of each the cosine is nearly one.
    return {
        output: (relative_error(actual[output], value), relative_error(plain[output], value))
        for output, value in expected.items()
        if float(value.detach().abs().max()) > 1e-9
    }
