"""An affine map of rows. The result for a row does not depend on the other rows, to the last bit.

A matrix product adds up in an order that depends on how many rows it has and where a row lies among them. Here both
factors are cut into slices of 26 bits. Every product of two slices, and every sum of such products, is then a whole
multiple of one power of two and fits into the 53 bits of a float64. So nothing is rounded, whatever the order. The rest
is elementwise. See docs/design/a-row-alone.md.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from emcl_kernels.refine import few_rows


def lengths(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Euclidean length of each row. No sum in it is rounded, so their order does not matter."""
    # Divided by the largest number, so that no square overflows; squares are then at most 1. What is smaller than the
    # smallest normal number is divided by that one.
    largest = rows.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    squares = (rows / largest).square()

    # Each square in two parts, whole multiples of steps so large that a sum of D of them is exact. Adding and taking
    # away again what has such a step itself rounds to it.
    step = 2.0 ** (math.ceil(math.log2(squares.shape[-1])) - 52)
    to_step = 1.5 * step * 2.0**52
    upper = (squares + to_step) - to_step
    lower = ((squares - upper) + to_step * step) - to_step * step
    return largest * _root(upper.sum(-1, keepdim=True) + lower.sum(-1, keepdim=True))


def _root(squares: Tensor) -> Tensor:
    """Square roots as IEEE 754 rounds them: of torch with MKL, one in a hundred is a last digit off."""
    if squares.device.type != "cpu" or type(squares) is not Tensor:
        return squares.sqrt()
    return torch.from_numpy(np.sqrt(squares.numpy(force=True)))


def unit(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Rows of length one; a row of zeros stays zero."""
    length = lengths(rows)
    return rows / torch.where(length > 0, length, 1)


class AffineMap:
    """rows + rows·change + bias in float64, each row as if it were alone.

    What depends on `change` alone is computed once for each device and precision, so that a single row is quick.

    Args:
        change: `[D, D]` in float64, what is added to the identity.
        bias: `[D]` in float64.
    """

    def __init__(self, change: Float[Tensor, "D D"], bias: Float[Tensor, " D"]) -> None:
        self._change = change
        self._bias = bias
        self._ready: dict[tuple[torch.device, int], tuple[list[Tensor], Tensor, Tensor]] = {}
        self._ready_in_numpy: dict[int, tuple[list[np.ndarray], np.ndarray, np.ndarray]] = {}

    def __call__(self, rows: Float[Tensor, "N D"], *, precise: bool, normalize: bool = False) -> Float[Tensor, "N D"]:
        """Map rows.

        Args:
            rows: `[N, D]` in float64.
            precise: whether to use two slices of each factor instead of one. The product is then right to 1e-13 of the
                row's length instead of 1e-7, which is enough for rows that are rounded to float32 or less afterwards.
            normalize: whether to bring the rows to length one first.

        Returns:
            The mapped rows `[N, D]` in float64.
        """
        count = 2 if precise else 1
        if few_rows.served(rows):
            return torch.from_numpy(self.of_few(rows.numpy(), precise=precise, normalize=normalize))
        of_change, column_scale, bias = self._on(rows.device, count)

        # A power of two, so that scaling is exact; the sums over one row and one column are then below 1.
        # Rows of length one are a rounding longer at most, and sums have room for twice as much.
        if normalize:
            rows = unit(rows)
        row_scale = None if normalize else _power_of_two(lengths(rows))
        of_rows = few_rows.slices(rows if row_scale is None else rows / row_scale, count, torch.round)

        # The product of the two second slices is left out: it is smaller than the error that is allowed.
        product = of_rows[0] @ of_change[0]
        if precise:
            product = product + (of_rows[0] @ of_change[1] + of_rows[1] @ of_change[0])
        product = product * column_scale
        return rows + (product if row_scale is None else product * row_scale) + bias

    def of_few(self, rows: few_rows.Rows, *, precise: bool, normalize: bool) -> few_rows.Rows:
        """The same map of a few rows of numpy, with the same bits."""
        return few_rows.mapped(rows, *self._in_numpy(2 if precise else 1), normalize=normalize)

    def _on(self, device: torch.device, slices: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Slices of the change, the scale of its columns, and the bias, on a device."""
        if (device, slices) not in self._ready:
            change = self._change.to(device)
            column_scale = _power_of_two(lengths(change.T.contiguous())).T
            of_change = few_rows.slices(change / column_scale, slices, torch.round)
            self._ready[device, slices] = (of_change, column_scale, self._bias.to(device))
        return self._ready[device, slices]

    def _in_numpy(self, slices: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """The same memory as numpy sees it, once for each precision."""
        if slices not in self._ready_in_numpy:
            of_change, column_scale, bias = self._on(torch.device("cpu"), slices)
            self._ready_in_numpy[slices] = ([part.numpy() for part in of_change], column_scale.numpy(), bias.numpy())
        return self._ready_in_numpy[slices]


def _power_of_two(length: Tensor) -> Tensor:
    """The smallest power of two above each length; 1 for 0."""
    return torch.ldexp(torch.ones_like(length), torch.where(length > 0, torch.frexp(length).exponent, 0))


class UnitLinear(nn.Linear):
    """A linear layer that brings rows of any length to length one first.

    `weight` and `bias` are those of the map of rows of length one, for folding into another layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        # Divided by the largest number first: its square may overflow.
        largest = input.abs().amax(-1, keepdim=True)
        scaled = input / largest.clamp_min(torch.finfo(input.dtype).tiny)
        return super().forward(nn.functional.normalize(scaled, dim=-1))


class QueryLinear(nn.Linear):
    """A linear layer whose result has length one, and the number 1 behind it: a query for a gallery with a bank."""

    def forward(self, input: Tensor) -> Tensor:
        refined = nn.functional.normalize(super().forward(input), dim=-1)
        return torch.cat([refined, refined.new_ones(*refined.shape[:-1], 1)], dim=-1)


class UnitQueryLinear(QueryLinear, UnitLinear):
    """`QueryLinear` of rows of any length, which are brought to length one first."""
