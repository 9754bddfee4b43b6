"""How the backends in plain torch multiply rows: "reference" in the dtype of sums, "torch" in that of the rows.

Both add up in float32. On CUDA torch has products of 16-bit matrices with a result in float32, for two matrices and for
batches of them (`out_dtype`, from 2.8 on). Elsewhere the same numbers come from the rounded factors in float32, so a
CPU shows what rounding does on a GPU.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from emcl_kernels.reference import Products

NARROW = (torch.bfloat16, torch.float16)
LARGEST = 2.0**14
"""Of a factor in float16, whose numbers end at 2¹⁶; what is this large leaves 2⁻²⁸ of itself before digits are lost."""
SMALLEST = 2.0**-100
"""A matrix of nothing larger is taken as it is, so that LARGEST / SMALLEST is still a number."""

SHORT = 256
"""Sums of so many numbers are not split among blocks of a GPU."""
FILLS = 2**22
"""Nor are the sums of a result of so many numbers, as they fill the GPU without that."""


class Upcast(Products):
    """Products of rows that were brought to the dtype in which they are summed."""

    rows: Callable[[Tensor, torch.dtype], Tensor] = staticmethod(torch.Tensor.to)
    """Rows as they are multiplied; takes them and the dtype in which they are summed."""

    precise: Callable[[Tensor, Tensor], Tensor] = staticmethod(torch.matmul)
    """left·right, where the one that is not rows keeps more digits than rows have."""

    def factor(self, matrix: Tensor, rows: Tensor) -> Tensor:
        """A matrix that is multiplied with such rows more than once, prepared for that."""
        return matrix


class Narrow(Upcast):
    """Products in the dtype of the rows, summed in float32: of 16-bit rows the other factor is rounded to their dtype.

    Results are in float32, but for `added` to 16-bit rows, whose result would be rounded in the next step anyway.
    """

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x

    def of(self, left: Tensor, right: Tensor) -> Tensor:
        dtype = _narrow(left, right)
        return left @ right if dtype is None else _rounded(left, right, dtype)

    def precise(self, left: Tensor, right: Tensor) -> Tensor:
        dtype = _narrow(left, right)
        if dtype is None:
            return left @ right

        # What rounding takes away from the wide factor is multiplied, too.
        if left.dtype == dtype:
            high = _as_rounded(right, dtype)
            return _rounded(left, high, dtype) + _rounded(left, right - high, dtype)
        high = _as_rounded(left, dtype)
        return _rounded(high, right, dtype) + _rounded(left - high, right, dtype)

    def factor(self, matrix: Tensor, rows: Tensor) -> Tensor:
        return matrix.to(rows.dtype) if rows.dtype == torch.bfloat16 else matrix

    def added(self, addend: Tensor, left: Tensor, right: Tensor, weight: float = 1.0) -> Tensor:
        dtype = _narrow(addend, left, right)
        if dtype is None:
            return super().added(addend, left, right, weight)
        if dtype == torch.bfloat16 and adds_in_float32(left) and _in_one_sum(left, right):
            return _added(addend.to(dtype), left.to(dtype), right.to(dtype), weight)

        # float16 does not hold every sum, so there only the total is rounded.
        if dtype == torch.bfloat16:
            addend = addend.to(dtype)
        return (addend.float() + weight * _rounded(left, right, dtype)).to(dtype)


def adds_in_float32(x: Tensor) -> bool:
    """Whether torch multiplies 16-bit matrices with sums in float32 on the device of a tensor."""
    return x.is_cuda


def _in_one_sum(left: Tensor, right: Tensor) -> bool:
    """Whether cuBLAS has no reason to split the sums of left·right; torch lets it add the parts in 16 bits.

    (`allow_bf16_reduced_precision_reduction` is on by default.)
    """
    inner = left.shape[-1]
    return inner <= SHORT or left.numel() // inner * right.shape[-1] >= FILLS


def _narrow(*tensors: Tensor) -> torch.dtype | None:
    """The 16-bit dtype among those of the tensors, or None."""
    return next((tensor.dtype for tensor in tensors if tensor.dtype in NARROW), None)


def _rounded(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left·right in float32, of the factors as a 16-bit dtype has them."""
    left, left_factor = _fitting(left, dtype)
    right, right_factor = _fitting(right, dtype)
    product = _multiplied(left, right) if adds_in_float32(left) else left.float() @ right.float()

    for factor in (left_factor, right_factor):
        if factor is not None:
            product = product / factor
    return product


def _fitting(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A matrix in a 16-bit dtype, and by what it was multiplied so that it fits, `[*, 1, 1]`; None: by nothing."""
    if matrix.dtype == dtype or dtype == torch.bfloat16 or matrix.numel() == 0:
        return matrix.to(dtype), None

    # A row that is not finite is the only one that suffers from it.
    finite = torch.where(matrix.isfinite(), matrix.abs(), 0)
    factor = LARGEST / finite.amax((-2, -1), keepdim=True).clamp_min(SMALLEST)
    return (matrix * factor).to(dtype), factor


def _as_rounded(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix in float32 with the digits that a product in a 16-bit dtype sees."""
    narrow, factor = _fitting(matrix, dtype)
    return narrow.float() if factor is None else narrow.float() / factor


def _multiplied(left: Tensor, right: Tensor) -> Tensor:
    """left·right in float32 of 16-bit tensors: left `[*, M, K]`, and right `[K, N]` or batches as left has them."""
    # One product, if the right factor is one for all.
    if right.dim() == 2:
        product = torch.mm(_flat(left), right, out_dtype=torch.float32)
        return product.view(*left.shape[:-1], right.shape[-1])

    leading = left.shape[:-2]
    lefts = left.reshape(prod(leading), *left.shape[-2:])
    rights = right.reshape(prod(leading), *right.shape[-2:])
    return torch.bmm(lefts, rights, out_dtype=torch.float32).view(*leading, left.shape[-2], right.shape[-1])


def _flat(x: Tensor) -> Tensor:
    """All rows of a batch in one matrix; -1 for their number would not do where a row has no numbers."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def _added(addend: Tensor, left: Tensor, right: Tensor, weight: float) -> Tensor:
    """addend + weight · left·right in their 16-bit dtype, rounded once; right `[K, N]`, or batches as left has them."""
    shape = (*left.shape[:-1], right.shape[-1])
    if right.dim() == 2:
        # One row for all is a bias, which cuBLAS adds as it writes.
        bias = addend.flatten() if addend.numel() == shape[-1] else _flat(addend.expand(shape))
        return torch.addmm(bias, _flat(left), right, alpha=weight).view(shape)

    count = prod(shape[:-2])
    batches = [tensor.reshape(count, *tensor.shape[-2:]) for tensor in (addend.expand(shape), left, right)]
    return torch.baddbmm(*batches, alpha=weight).view(shape)
