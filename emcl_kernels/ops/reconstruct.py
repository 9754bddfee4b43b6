"""em_reconstruct: apply a fitted map to rows."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks
from emcl_kernels.ops.define import Gradient, Op, Spec


def em_reconstruct(
    x: Float[Tensor, "*G N D"],
    responsibilities: Float[Tensor, "*G D K"],
    scale: Float[Tensor, "*G K"],
    *,
    weight: float = 3.0,
) -> Float[Tensor, "*G N D"]:
    """Apply a fitted map: x + weight · (x·(responsibilities·scale))·responsibilitiesᵀ (docs/math.md, GR).

    One pass over the rows.

    Args:
        x: rows `[*, N, D]`, which need not be the rows that were fitted.
        responsibilities: `[*, D, K]` from `em_fit`, in float32 (float64 for float64).
        scale: `[*, K]` from `em_fit`, in the same dtype.
        weight: of the reconstruction.

    Returns:
        A tensor like `x`. NaN and infinite values pass through.

    Raises:
        ValueError: shapes disagree.
        TypeError: responsibilities or scale have not the dtype of `em_fit`.

    Examples:
        >>> y = em_reconstruct(x, *em_fit(gram, logits), weight=3.0)
    """
    checks.inputs(x=x, responsibilities=responsibilities, scale=scale)
    return op.call(x, responsibilities, scale, weight)


def _accept(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> None:
    checks.rows(x, "x")
    checks.fitted(x, responsibilities, scale, weight, (*x.shape[:-2], x.shape[-1]))


def _shapes(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> tuple[Spec, ...]:
    return ((x.shape, x.dtype),)


def _to_rows_alone(
    ctx: Any, saved: tuple[Tensor, ...], d_y: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """With a constant map, d_x = d_y·Pᵀ is the map itself, since P = I + w·r·diag(scale)·rᵀ is symmetric."""
    _, to_responsibilities, to_scale, _ = ctx.needs_input_grad[:4]
    if to_responsibilities or to_scale:
        return None
    _, responsibilities, scale = saved
    return op.call(d_y, responsibilities, scale, *ctx.settings), None, None


op = Op(
    "em_reconstruct(Tensor x, Tensor responsibilities, Tensor scale, float weight=3.0) -> Tensor y",
    accept=_accept,
    shapes=_shapes,
    gradient=Gradient(to=("x", "responsibilities", "scale"), short=_to_rows_alone),
    public=em_reconstruct,
)
