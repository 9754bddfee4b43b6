"""The backend "reference": any device; sums in float32 (float64 for float64), output in the dtype of the input.

The maths is in emcl_kernels/reference.py, that of the pooled similarity in reference_pooled.py. The backend "torch" is
made of the same functions with other products (products.py).
"""

from collections.abc import Callable

from torch import Tensor

from emcl_kernels import forms, reference
from emcl_kernels.backends import Implementation, PythonBackend
from emcl_kernels.backends.products import Upcast
from emcl_kernels.backends.reference_pooled import PooledFunctions
from emcl_kernels.checks import ACCUMULATION


class Functions:
    """The ops in plain torch, whatever the dtype of their products is.

    Args:
        products: how rows are multiplied.
        takes_loop: whether EM runs by the loop, from the numbers of rows, channels, bases and iterations.
    """

    def __init__(self, products: Upcast, takes_loop: Callable[[int, int, int, int], bool]) -> None:
        self.products = products
        self.takes_loop = takes_loop

    def table(self) -> dict[str, Implementation]:
        """The implementation of each op, by its name."""
        pooled = PooledFunctions(self.products)
        return {
            "em_moments": self.em_moments,
            "_em_moments_backward": self.em_moments_backward,
            "em_fit": reference.em_fit,
            "_em_fit_backward": em_fit_backward,
            "em_reconstruct": self.em_reconstruct,
            "_em_reconstruct_backward": self.em_reconstruct_backward,
            "_em_project_fixed": self.em_project_fixed,
            "_pooled_moments": pooled.moments,
            "_pooled_moments_backward": pooled.moments_backward,
            "_pooled_cosine": pooled.cosine,
            "_pooled_cosine_backward": pooled.cosine_backward,
        }

    def em_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return reference.em_moments(self.products.rows(x, ACCUMULATION[x.dtype]), products=self.products)

    def em_moments_backward(self, d_gram: Tensor, d_colsum: Tensor, x: Tensor) -> Tensor:
        rows = self.products.rows(x, ACCUMULATION[x.dtype])
        return reference.em_moments_backward(rows, d_gram, d_colsum, products=self.products).to(x.dtype)

    def em_reconstruct(self, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
        rows = self.products.rows(x, ACCUMULATION[x.dtype])
        y = reference.em_reconstruct(rows, responsibilities, scale, weight=weight, products=self.products)
        return y.to(x.dtype)

    def em_reconstruct_backward(
        self, d_y: Tensor, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_x, d_responsibilities, d_scale = reference.em_reconstruct_backward(
            self.products.rows(d_y, ACCUMULATION[d_y.dtype]),
            self.products.rows(x, ACCUMULATION[x.dtype]),
            responsibilities,
            scale,
            weight=weight,
            products=self.products,
        )
        return d_x.to(x.dtype), d_responsibilities, d_scale

    def em_project_fixed(
        self,
        x: Tensor,
        init: Tensor,
        num_iters: int,
        temperature: float,
        residual_weight: float,
        eps: float,
        linear: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.takes_loop(x.shape[-2], x.shape[-1], init.shape[-1], num_iters):
            y, mean_bases, responsibilities, scale = forms.project_by_loop(
                x.to(init.dtype),
                init,
                num_iters=num_iters,
                temperature=temperature,
                residual_weight=residual_weight,
                eps=eps,
            )
        else:
            y, mean_bases, responsibilities, scale = reference.em_project(
                self.products.rows(x, init.dtype),
                init,
                num_iters=num_iters,
                temperature=temperature,
                residual_weight=residual_weight,
                eps=eps,
                products=self.products,
            )
        return y.to(x.dtype), mean_bases, responsibilities, scale


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


backend = PythonBackend("reference", Functions(Upcast(), forms.takes_loop).table())
