"""em_moments: Gram matrix and column sums of the rows."""

from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks
from emcl_kernels.checks import ACCUMULATION
from emcl_kernels.ops.define import Gradient, Op, Spec


def em_moments(x: Float[Tensor, "*G N D"]) -> tuple[Float[Tensor, "*G D D"], Float[Tensor, "*G D"]]:
    """Gram matrix and column sums of the rows: all that EM needs to know of them (docs/math.md, G).

    Args:
        x: rows `[*, N, D]` in float32, bfloat16, float16 or float64.

    Returns:
        gram, xᵀx `[*, D, D]`, and colsum, xᵀ1 `[*, D]`, accumulated in float32 (float64 for float64).

    Raises:
        ValueError: `x` has fewer than two dimensions or is empty.
        TypeError: `x` is no tensor of floats.

    Examples:
        >>> gram, colsum = em_moments(torch.randn(1000, 512))
        >>> gram.shape, colsum.shape
        (torch.Size([512, 512]), torch.Size([512]))
    """
    checks.inputs(x=x)
    return op.call(x)


def _accept(x: Tensor) -> None:
    checks.rows(x, "x")


def _shapes(x: Tensor) -> tuple[Spec, ...]:
    dtype = ACCUMULATION[x.dtype]
    width = x.shape[-1]
    leading = x.shape[:-2]
    return ((*leading, width, width), dtype), ((*leading, width), dtype)


op = Op(
    "em_moments(Tensor x) -> (Tensor gram, Tensor colsum)",
    accept=_accept,
    shapes=_shapes,
    gradient=Gradient(to=("x",)),
    public=em_moments,
)
