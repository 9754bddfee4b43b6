"""Several processes: each keeps its own texts, and they exchange frame features and sums, all of it with gradient.

Every process computes the one loss over all pairs and calls backward on it. What then arrives at a process's features
and parameters is their gradient of the sum of all those equal losses: too large by the number of processes. Each
process holds the part that went through its own pairs; DistributedDataParallel adds the parts up and divides by the
number of processes, which gives exactly the gradient of the one loss.

Both functions with a gradient are our own; docs/design/our-own-collectives-and-schedule.md says why.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) if nobody started several."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather_rows(rows: Tensor) -> Tensor:
    """`rows` [n, ...] of every process as [world · n, ...], in the order of ranks, with gradient."""
    if rank_and_world()[1] == 1:
        return rows
    if rows.dtype == torch.bool:
        return _GatherRows.apply(rows.to(torch.uint8)).bool()
    return _GatherRows.apply(rows)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's `value`, bit for bit the same in all of them, with gradient."""
    if rank_and_world()[1] == 1:
        return value
    return _Sum.apply(value)


def max_over_processes(value: Tensor) -> Tensor:
    """The largest of every process's `value`, element by element; a constant to autograd."""
    largest = value.detach().clone(memory_format=torch.contiguous_format)
    if rank_and_world()[1] > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def gather_objects(value: Any) -> list[Any]:
    """`value` of every process in the order of ranks: anything that can be pickled, all of it in the memory of each."""
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


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
        parts = list(grad_outputs[0].contiguous().split(context.rows))
        gradient = torch.empty_like(parts[0])
        # One collective, which leaves each process the sum for its own rows.
        dist.reduce_scatter(gradient, parts)
        return gradient


class _Sum(torch.autograd.Function):
    """The sum over processes, in each of them. So every process's loss depends on our part: backward sums as well."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(context: Any, *grad_outputs: Tensor) -> Tensor:
        return _summed(grad_outputs[0])


def _summed(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
