"""em_fit: all iterations of EM on a Gram matrix."""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks
from emcl_kernels.checks import LARGEST, LEAST_EPS, MOST_ITERATIONS, SMALLEST
from emcl_kernels.ops.define import Gradient, Op, Spec


def em_fit(
    gram: Float[Tensor, "*G D D"],
    logits: Float[Tensor, "*G D K"],
    *,
    num_iters: int = 9,
    temperature: float = 1.0,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """Fit K bases to rows that are known only by their Gram matrix (docs/math.md, GE and GM).

    Args:
        gram: xᵀx `[*, D, D]` over all rows, of any number; float32 or float64.
        logits: start of the E-step `[*, D, K]`, before the temperature, in the dtype of `gram`.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        eps: added to the sums and lengths that are divided by.

    Returns:
        responsibilities `[*, D, K]`, each column summing to one over D, and scale `[*, K]`, 1 / (eps + length of the
        basis).

    Raises:
        ValueError: shapes disagree, num_iters < 1, or temperature <= 0. On the CPU also if the result is not finite;
            on other devices NaN passes through, because looking would stall the device.
        TypeError: a dtype is not as above.

    Examples:
        >>> gram, colsum = em_moments(x)
        >>> responsibilities, scale = em_fit(gram, colsum.unsqueeze(-1) * torch.randn(32))
    """
    checks.inputs(gram=gram, logits=logits)
    return op.call(gram, logits, num_iters, temperature, eps)


def _accept(gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float) -> None:
    iterates = 1 <= num_iters <= MOST_ITERATIONS and SMALLEST <= temperature <= LARGEST
    if not (iterates and (LEAST_EPS <= eps <= LARGEST or eps == 0)):
        checks.iteration(num_iters, temperature, eps)  # says which; small calls are spared this one
    if gram.device != logits.device:
        checks.same_device(gram, "gram", logits, "logits")
    if gram.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"gram is {gram.dtype}; expected float32 or float64, as em_moments gives it")
    if logits.dtype != gram.dtype:
        raise TypeError(f"logits is {logits.dtype} but gram is {gram.dtype}; pass logits.to(gram.dtype)")
    if gram.dim() < 2 or gram.shape[-1] != gram.shape[-2] or gram.shape[-1] == 0:
        raise ValueError(f"gram has shape {list(gram.shape)}; expected [*, D, D]")
    if logits.dim() != gram.dim() or logits.shape[:-1] != gram.shape[:-1] or logits.shape[-1] == 0:
        raise ValueError(
            f"logits has shape {list(logits.shape)} but gram has shape {list(gram.shape)}; "
            f"pass logits of shape [{', '.join(str(size) for size in gram.shape[:-1])}, K]"
        )


def _shapes(gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float) -> tuple[Spec, ...]:
    *leading, _, num_bases = logits.shape
    return (logits.shape, logits.dtype), ((*leading, num_bases), logits.dtype)


op = Op(
    "em_fit(Tensor gram, Tensor logits, int num_iters=9, float temperature=1.0, float eps=1e-6) "
    "-> (Tensor responsibilities, Tensor scale)",
    accept=_accept,
    shapes=_shapes,
    verify=(1, checks.finite_scale),
    gradient=Gradient(to=("gram", "logits")),
    public=em_fit,
)
