"""The reference as a backend: any device, accumulation in float32 (float64 for float64), output like the input."""

from torch import Tensor

from emcl_kernels import reference
from emcl_kernels.backends import plain_pooled
from emcl_kernels.checks import accumulation_dtype


def supports(op: str, *tensors: Tensor) -> str | None:
    return None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return reference.em_moments(x.to(accumulation_dtype(x.dtype)))


def moments_backward(x: Tensor, d_gram: Tensor, d_colsum: Tensor) -> Tensor:
    return reference.em_moments_backward(x.to(d_gram.dtype), d_gram, d_colsum).to(x.dtype)


def fit(gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float) -> tuple[Tensor, Tensor]:
    return reference.em_fit(gram, logits, num_iters=num_iters, temperature=temperature, eps=eps)


def fit_backward(
    gram: Tensor,
    logits: Tensor,
    d_responsibilities: Tensor,
    d_scale: Tensor,
    num_iters: int,
    temperature: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return reference.em_fit_backward(
        gram, logits, d_responsibilities, d_scale, num_iters=num_iters, temperature=temperature, eps=eps
    )


def reconstruct(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
    return reference.em_reconstruct(x.to(scale.dtype), responsibilities, scale, weight=weight).to(x.dtype)


def reconstruct_backward(
    d_y: Tensor, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = scale.dtype
    d_x, d_responsibilities, d_scale = reference.em_reconstruct_backward(
        d_y.to(dtype), x.to(dtype), responsibilities, scale, weight=weight
    )
    return d_x.to(x.dtype), d_responsibilities, d_scale


def project(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.to(init.dtype)
    if 2 * x.shape[-2] < x.shape[-1]:  # few rows: the loop computes less, and a Gram matrix of few rows cancels more
        bases, responsibilities, scale = reference.em_loop(
            rows, init, num_iters=num_iters, temperature=temperature, eps=eps
        )
        y = reference.em_reconstruct(rows, responsibilities, scale, weight=residual_weight)
        return y.to(x.dtype), bases.mean(-2), responsibilities, scale
    y, mean_bases, responsibilities, scale = reference.em_project(
        rows,
        init,
        num_iters=num_iters,
        temperature=temperature,
        residual_weight=residual_weight,
        eps=eps,
    )
    return y.to(x.dtype), mean_bases, responsibilities, scale


pooled_moments = plain_pooled.moments
pooled_moments_backward = plain_pooled.moments_backward
pooled_cosine = plain_pooled.cosine
pooled_cosine_backward = plain_pooled.cosine_backward
