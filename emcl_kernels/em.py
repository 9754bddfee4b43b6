"""EM from moments: the one place where moments, the fitted map and the settings of EM are put together.

moments = em.Moments.of(x)                               what EM needs of the rows; it adds up
fitted, mean_bases = em.fit(moments, logits, settings)   all iterations
y = fitted.apply(x, weight=3.0, gradient="linear")       on any rows
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks, reference
from emcl_kernels.ops.finite import op as finite
from emcl_kernels.ops.fit import op as em_fit
from emcl_kernels.ops.moments import em_moments
from emcl_kernels.ops.reconstruct import em_reconstruct

Gradient = Literal["identity", "linear", "full"]
Count = int | torch.SymInt | Tensor


class Settings(NamedTuple):
    """How EM runs, and what is done with its result, in the order of the ops' arguments.

    Attributes:
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.
        gradient: see `em_project`.
        relative: multiply the weight by ‖x‖ / ‖reconstruction‖.
    """

    num_iters: int = 9
    temperature: float = 1.0
    residual_weight: float = 3.0
    eps: float = 1e-6
    gradient: Gradient = "identity"
    relative: bool = False


class Moments(NamedTuple):
    """All that EM needs to know of rows. The moments of two sets of rows add up to those of both.

    Attributes:
        gram: xᵀx `[*, D, D]`, in float32, or float64 for rows in float64.
        colsum: xᵀ1 `[*, D]`, in the same dtype.
        num_rows: how many rows, a number or a tensor `[*]` with one for each problem.

    Examples:
        >>> total = Moments.of(first) + Moments.of(second)
        >>> fitted = EMCL(num_bases=32).fit(*total)
    """

    gram: Float[Tensor, "*G D D"]
    colsum: Float[Tensor, "*G D"]
    num_rows: Count

    @classmethod
    def of(cls, x: Float[Tensor, "*G N D"]) -> "Moments":
        """The moments of rows, by one pass over them.

        Args:
            x: rows `[*, N, D]` in float32, bfloat16, float16 or float64.

        Returns:
            Their moments; autograd goes through them to `x`.
        """
        gram, colsum = em_moments(x)
        return cls(gram, colsum, x.shape[-2])

    def __add__(self, other: "Moments") -> "Moments":  # type: ignore[override]
        return Moments(self.gram + other.gram, self.colsum + other.colsum, self.num_rows + other.num_rows)

    def scaled(self, factor: int) -> "Moments":
        """The moments as they would be if each row were there `factor` times, which may be negative."""
        return Moments(self.gram * factor, self.colsum * factor, self.num_rows * factor)

    def pack(self) -> Float[Tensor, " M"]:
        """One vector of D² + D + 1 numbers, which add up over processes; for a single problem."""
        num_rows = self.num_rows
        if not isinstance(num_rows, Tensor):
            num_rows = torch.full_like(self.colsum[:1], float(num_rows))
        return torch.cat([self.gram.flatten(), self.colsum, num_rows.view(1).to(self.colsum.dtype)])

    @classmethod
    def unpack(cls, vector: Float[Tensor, " M"], width: int) -> "Moments":
        """The moments from what `pack` gave.

        Args:
            vector: `[D² + D + 1]`.
            width: D of the rows.

        Returns:
            Views of the vector.
        """
        gram, colsum, num_rows = vector.split([width * width, width, 1])
        return cls(gram.view(width, width), colsum, num_rows[0])

    def summed(self, add_up: Callable[[Tensor], Tensor]) -> "Moments":
        """The moments summed over processes.

        Args:
            add_up: returns the sum of one vector over the processes.

        Returns:
            The moments of the rows of all processes.

        Raises:
            TypeError: add_up returned no tensor of the shape that it was given.
        """
        packed = self.pack()
        total = add_up(packed)
        checks.sum_of(packed, total)
        return Moments.unpack(total, self.colsum.shape[-1])


class Map(NamedTuple):
    """What EM found: x ↦ x + weight · (x·(responsibilities·scale))·responsibilitiesᵀ, for any weight.

    Attributes:
        responsibilities: `[*, D, K]`; each column sums to one over the channels.
        scale: `[*, K]`, one number a basis.
    """

    responsibilities: Float[Tensor, "*G D K"]
    scale: Float[Tensor, "*G K"]

    def apply(self, x: Float[Tensor, "*G N D"], *, weight: float, gradient: str) -> Float[Tensor, "*G N D"]:
        """Map rows.

        Args:
            x: rows `[*, N, D]`, which need not be the rows that were fitted.
            weight: of the reconstruction.
            gradient: with "identity" what is added to `x` is a constant to autograd.

        Returns:
            The mapped rows, like `x`.
        """
        if gradient != "identity":
            return em_reconstruct(x, self.responsibilities, self.scale, weight=weight)
        fixed = x.detach()
        return x + (em_reconstruct(fixed, self.responsibilities, self.scale, weight=weight) - fixed)

    def relative(self, gram: Float[Tensor, "*G D D"]) -> "Map":
        """The map with ‖x‖ / ‖reconstruction‖ in its scale, over all rows of `gram` `[*, D, D]`; it is looked at."""
        factor = relative_scale(gram, self.responsibilities, self.scale)
        return Map(self.responsibilities, self.scale * factor.unsqueeze(-1)).looked_at()

    def looked_at(self) -> "Map":
        """The same map; on the CPU a ValueError if it is not finite. em_fit has looked at what it returns itself."""
        return Map(self.responsibilities, finite.call(self.scale))


def fit(moments: Moments, logits: Float[Tensor, "*G D K"], settings: Settings) -> tuple[Map, Float[Tensor, "*G K"]]:
    """All of EM on moments (docs/math.md, GE to GI).

    Args:
        moments: of the rows.
        logits: start of the E-step `[*, D, K]`, see `reference.start_logits`.
        settings: how EM runs; residual_weight and gradient are not used here.

    Returns:
        The fitted map, and the mean over the rows of the last bases `[*, K]`.
    """
    responsibilities, scale = em_fit.call(moments.gram, logits, settings.num_iters, settings.temperature, settings.eps)

    num_rows = moments.num_rows
    if isinstance(num_rows, Tensor) and num_rows.dim() > 0:
        num_rows = num_rows.unsqueeze(-1)
    mean_bases = reference.mean_of_bases(moments.colsum, responsibilities, scale, num_rows)  # (GI)

    fitted = Map(responsibilities, scale)
    return fitted.relative(moments.gram) if settings.relative else fitted, mean_bases


def relative_scale(
    gram: Float[Tensor, "*G D D"], responsibilities: Float[Tensor, "*G D K"], scale: Float[Tensor, "*G K"]
) -> Float[Tensor, "*G"]:
    """‖x‖ / ‖reconstruction‖ over all rows, both from the Gram matrix. It makes a weight independent of N.

    Args:
        gram: xᵀx over all rows `[*, D, D]`.
        responsibilities: `[*, D, K]`.
        scale: `[*, K]`.

    Returns:
        One number `[*]` for each problem; 0 if every row is zero, and so is its reconstruction; NaN if its square
        overflows.
    """
    scaled = responsibilities * scale.unsqueeze(-2)
    squared = ((scaled.mT @ gram @ scaled) * (responsibilities.mT @ responsibilities)).sum((-2, -1))
    rows = gram.diagonal(dim1=-2, dim2=-1).sum(-1)

    empty = squared <= 0
    ratio = rows.masked_fill(empty, 1) / squared.masked_fill(empty, 1)
    # Infinity below would give 0, which looks like rows that are zero.
    return torch.where(empty, 0, torch.where(squared.isfinite(), ratio, math.nan).sqrt())
