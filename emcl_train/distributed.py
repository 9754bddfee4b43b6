"""Several processes: features of all of them in one loss, and each process its slice of every batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, one below the other. Backward sums what every process's loss says of our rows."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.rows = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, *grad_outputs: Tensor) -> Tensor:
        gradient = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = dist.get_rank() * context.rows
        return gradient[start : start + context.rows]


def gather_rows(rows: Tensor) -> Tensor:
    """`rows` [n, ...] of every process as [world · n, ...], in the order of ranks, with gradient.

    Each process then computes the same loss over all pairs. The gradients that come back are summed over processes and
    DistributedDataParallel averages them, which gives exactly the gradient of that one loss.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    if rows.dtype == torch.bool:
        return _GatherRows.apply(rows.to(torch.uint8)).bool()
    return _GatherRows.apply(rows)


def slice_of_batch(batch: dict[str, Tensor], *, rank: int, world: int) -> dict[str, Tensor]:
    """This process's part of a batch; every process gets the same number of pairs, a remainder is left out."""
    size = len(batch["index"]) // world
    return {name: value[rank * size : (rank + 1) * size] for name, value in batch.items()}
