"""The backend "reference": any device; sums in float32 (float64 for float64), output in the dtype of the input.

The maths is in emcl_kernels/reference.py, that of the pooled similarity in reference_pooled.py.
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
    by_loop = forms.takes_loop(rows.shape[-2], rows.shape[-1], init.shape[-1], num_iters)
    project = forms.project_by_loop if by_loop else reference.em_project
    y, mean_bases, responsibilities, scale = project(
        rows, init, num_iters=num_iters, temperature=temperature, residual_weight=residual_weight, eps=eps
    )
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
