"""An affine map of rows whose result for a row does not depend on the rows beside it, to the last bit.

A matrix product adds up in an order that depends on how many rows it has and where a row lies among them. Here both
factors are cut into slices of 26 bits: every product of two slices and every sum of such products is then a whole
multiple of one power of two and fits into the 53 bits of a float64, so no order of additions rounds anything. The rest
is elementwise. docs/design/a-row-alone.md.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

SLICE_BITS = 26


def lengths(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Euclidean length of each row, added up in halves: elementwise sums have one order whatever N is."""
    largest = rows.abs().amax(-1, keepdim=True)
    squares = (rows / largest.clamp_min(torch.finfo(rows.dtype).tiny)).square()
    while (width := squares.shape[-1]) > 1:
        half = width // 2
        halves = squares[:, :half] + squares[:, half : 2 * half]
        squares = halves if width % 2 == 0 else torch.cat([halves, squares[:, -1:]], dim=-1)
    return largest * squares.sqrt()


def unit(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Rows of length one; a row of zeros stays zero."""
    length = lengths(rows)
    return rows / torch.where(length > 0, length, 1)


class AffineMap:
    """rows + rows·change + bias in float64, each row as if it were alone.

    What follows from `change` alone is computed once for each device and precision, so that a single row is quick.
    """

    def __init__(self, change: Float[Tensor, "D D"], bias: Float[Tensor, " D"]) -> None:
        self._change, self._bias = change, bias
        self._ready: dict[tuple[torch.device, int], tuple[list[Tensor], Tensor, Tensor]] = {}

    def __call__(self, rows: Float[Tensor, "N D"], *, precise: bool) -> Float[Tensor, "N D"]:
        """Args: precise: two slices of each factor instead of one: the product is right to 1e-13 of the row's length
        instead of 1e-7, which is enough for rows that are rounded to float32 or less afterwards.
        """
        of_change, column_scale, bias = self._on(rows.device, 2 if precise else 1)
        # A power of two, so that scaling is exact; the sums over one row and one column are then below 1.
        row_scale = _power_of_two(lengths(rows))
        of_rows = _slices(rows / row_scale, len(of_change))
        product = of_rows[0] @ of_change[0]
        if precise:
            product = product + (of_rows[0] @ of_change[1] + of_rows[1] @ of_change[0])
        return rows + product * column_scale * row_scale + bias

    def _on(self, device: torch.device, slices: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Slices of the change, the scale of its columns, and the bias, on a device."""
        if (device, slices) not in self._ready:
            change = self._change.to(device)
            column_scale = _power_of_two(lengths(change.T.contiguous())).T
            self._ready[device, slices] = _slices(change / column_scale, slices), column_scale, self._bias.to(device)
        return self._ready[device, slices]


def _power_of_two(length: Tensor) -> Tensor:
    """The smallest power of two above each length; 1 for 0."""
    return torch.ldexp(torch.ones_like(length), torch.where(length > 0, torch.frexp(length).exponent, 0))


def _slices(x: Tensor, count: int) -> list[Tensor]:
    """Parts of a matrix whose rows (or columns) have length at most one, with 26 bits each below that length."""
    parts, below = [], 1.0
    for _ in range(count):
        grid = below * 2.0**-SLICE_BITS
        parts.append(torch.round(x / grid) * grid)
        x = x - parts[-1]
        # What is left of each number is at most half a grid step.
        below = grid * 2.0 ** math.ceil(math.log2(x.shape[-1]) / 2)
    return parts


class UnitLinear(nn.Linear):
    """A linear layer that takes rows of any length and brings them to length one first.

    `weight` and `bias` are those of the map of rows of length one, for folding into another layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        largest = input.abs().amax(-1, keepdim=True)  # whose square may not be a number
        scaled = input / largest.clamp_min(torch.finfo(input.dtype).tiny)
        return super().forward(nn.functional.normalize(scaled, dim=-1))
