"""Several processes: each keeps its own texts, and they exchange frame features and sums, all of it with gradient.

Every process computes the one loss over all pairs and calls backward on it. What then arrives at a process's features
and parameters is their gradient of the sum of all those equal losses: too large by the number of processes. Each
process holds the part that went through its own pairs; DistributedDataParallel adds the parts up and divides by the
number of processes, which gives exactly the gradient of the one loss.

Both functions with a gradient are our own; docs/design/our-own-collectives-and-schedule.md says why.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Its functions have the group that there is when it is imported as their default, and would keep that one's threads
# for as long as the process lives. So it is imported before there is a group.
import torch.distributed.nn.functional
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.runs.machine import COUNTS, RANKS

Result = TypeVar("Result")

PATIENCE = timedelta(hours=12)
"""How long the others wait while the first process prepares data or evaluates; torch's own 10 to 30 minutes would end
the run."""


class EndedElsewhere(UserError):
    """What another process has met. The first one says it."""

    of_all_processes = True
    told = True


@contextmanager
def joined() -> Iterator[None]:
    """Let the processes that a launcher has started exchange what lies on the CPU.

    torch reads torchrun's variables; of mpirun's they follow, for processes of one machine.
    """
    if "RANK" not in os.environ:
        ranks = zip(RANKS, COUNTS, strict=True)
        rank, count = next((names for names in ranks if names[0] in os.environ), ("RANK", "WORLD_SIZE"))
        os.environ |= {"RANK": os.environ.get(rank, "0"), "WORLD_SIZE": os.environ.get(count, "1")}
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """End this process's part in the group, if it has one. The last exchange must have ended in it.

    A thread of gloo lets go of a tensor after the exchange has ended. If the interpreter has ended by then as well,
    the process aborts.
    """
    if dist.is_initialized():
        # Models that DistributedDataParallel has wrapped keep the group, and are parts of circles.
        gc.collect()
        dist.destroy_process_group()


def agreed(work: Callable[[], Result]) -> Result:
    """Do something in every process, or something else in each. If one cannot, all end, and none waits for it.

    Such work may hold exchanges, and other work of this kind, if it does so in every process.

    Raises:
        UserError: one of the processes met it; the first one says it.
    """
    rank, world = rank_and_world()
    if world == 1:
        return work()

    problem: UserError | None = None
    try:
        result = work()
    except UserError as error:
        if error.told:
            raise
        problem = error

    met = next((text for text in gather_objects(None if problem is None else str(problem)) if text is not None), None)
    if met is None:
        return result
    if problem is None:
        raise EndedElsewhere(met)
    problem.told = True
    problem.of_all_processes = rank > 0
    raise problem


def first_then_others(work: Callable[[], Result]) -> Result:
    """Do something in the first process, and then in the others, which find what that one has written.

    Raises:
        UserError: one of the processes met it.
    """
    if rank_and_world()[0] == 0:
        return agreed(work)
    agreed(lambda: None)
    return work()


def own_rows(count: int, batch_size: int) -> range:
    """This process's rows of so many, in whole batches, which are then those of a single process."""
    rank, world = rank_and_world()
    batches = -(-count // batch_size)
    start, end = (number * batches // world * batch_size for number in (rank, rank + 1))
    return range(start, min(end, count))


def gather_lists(values: list[Result]) -> list[Result] | None:
    """The lists of all processes, one behind the other, in the first process; None in the others."""
    rank, world = rank_and_world()
    gathered: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(values, gathered)
    return None if gathered is None else [value for of_process in gathered for value in of_process]


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
