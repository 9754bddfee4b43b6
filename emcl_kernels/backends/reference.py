"""The backend "reference": any device, accumulation in float32 (float64 for float64), output like the input.

The maths is in emcl_kernels/reference.py, and of the pooled similarity in reference_pooled.py.
"""

from torch import Tensor

from emcl_kernels import forms, reference
from emcl_kernels.backends import PythonBackend, reference_pooled
from emcl_kernels.checks import ACCUMULATION


def em_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return reference.em_moments(x.to(ACCUMULATION[x.dtype]))


def em_moments_backward(d_gram: Tensor, d_colsum: Tensor, x: Tensor) -> Tensor:
    return reference.em_moments_backward(x.to(d_gram.dtype), d_gram, d_colsum).to(x.dtype)


def em_fit_backward(
    d_responsibilities: Tensor,
    d_scale: Tensor,
    gram: Tensor,
    logits: Tensor,
    num_iters: int,
    temperature: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return reference.em_fit_backward(
        gram, logits, d_responsibilities, d_scale, num_iters=num_iters, temperature=temperature, eps=eps
    )


def em_reconstruct(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
    return reference.em_reconstruct(x.to(scale.dtype), responsibilities, scale, weight=weight).to(x.dtype)


def em_reconstruct_backward(
    d_y: Tensor, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = scale.dtype
    d_x, d_responsibilities, d_scale = reference.em_reconstruct_backward(
        d_y.to(dtype), x.to(dtype), responsibilities, scale, weight=weight
    )
    return d_x.to(x.dtype), d_responsibilities, d_scale


def em_project_fixed(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float, linear: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.to(init.dtype)
    num_rows, width = rows.shape[-2:]

    if forms.takes_loop(num_rows, width, init.shape[-1], num_iters):
        bases, responsibilities, scale = reference.em_loop(
            rows, init, num_iters=num_iters, temperature=temperature, eps=eps
        )
        mean_bases = bases.mean(-2)
    else:
        gram, colsum = reference.em_moments(rows)
        logits = reference.start_logits(rows, colsum, init)
        responsibilities, scale = reference.em_fit(gram, logits, num_iters=num_iters, temperature=temperature, eps=eps)
        mean_bases = reference.mean_of_bases(colsum, responsibilities, scale, num_rows)

    y = reference.em_reconstruct(rows, responsibilities, scale, weight=residual_weight)
    return y.to(x.dtype), mean_bases, responsibilities, scale


backend = PythonBackend(
    "reference",
    {
        "em_moments": em_moments,
        "_em_moments_backward": em_moments_backward,
        "em_fit": reference.em_fit,
        "_em_fit_backward": em_fit_backward,
        "em_reconstruct": em_reconstruct,
        "_em_reconstruct_backward": em_reconstruct_backward,
        "_em_project_fixed": em_project_fixed,
        "_pooled_moments": reference_pooled.moments,
        "_pooled_moments_backward": reference_pooled.moments_backward,
        "_pooled_cosine": reference_pooled.cosine,
        "_pooled_cosine_backward": reference_pooled.cosine_backward,
    },
)
