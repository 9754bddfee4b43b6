"""The largest inner products of rows with the rows of a large array, exact, block by block, in bounded memory."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BLOCK = 8192  # rows of the large array at a time
BLOCK_SCORES = 1 << 24  # of a block of scores in float32: 64 MiB


def nearest(
    rows: Float[Tensor, "N D"], others: Float[Tensor, "M D"], count: int
) -> tuple[Float[Tensor, "N C"], Int64[Tensor, "N C"]]:
    """The largest inner products of each row with others, in falling order.

    Args:
        rows: `[N, D]` in float32.
        others: `[M, D]` in float32.
        count: C, at most M.

    Returns:
        The products `[N, C]`, rounded as a matrix product rounds them, and the places of their rows in `others`.
    """
    products = rows.new_empty(len(rows), count)
    places = torch.empty(len(rows), count, dtype=torch.int64, device=rows.device)

    for start, part in _parts(rows, max(1, BLOCK_SCORES // min(BLOCK, len(others)))):
        best = rows.new_empty(len(part), 0)
        where = torch.empty(len(part), 0, dtype=torch.int64, device=rows.device)
        for first, block in _parts(others, BLOCK):
            scores = part @ block.T
            found = scores.topk(min(count, len(block)))

            # The best of all blocks so far.
            best = torch.cat([best, found.values], dim=1)
            where = torch.cat([where, found.indices + first], dim=1)
            best, chosen = best.topk(min(count, best.shape[1]))
            where = where.gather(1, chosen)

        products[start : start + len(part)] = best
        places[start : start + len(part)] = where
    return products, places


def _parts(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
