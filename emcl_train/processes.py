"""Several processes: each keeps its own texts, and they exchange frame features and sums; in training with gradient.

Every process computes the one loss over all pairs and calls backward on it. What then arrives at a process's features
and parameters is their gradient of the sum of all those equal losses: too large by the number of processes. Each
process holds the part that went through its own pairs; DistributedDataParallel adds the parts up and divides by the
number of processes, which gives exactly the gradient of the one loss.

Both functions with a gradient are our own; docs/design/our-own-collectives-and-schedule.md says why.

What can fail in one process alone (reading, decoding, encoding, writing) is done inside `agreed`, or between two of
them with no other exchange behind it: then whatever one process has met reaches the others at their next `agreed`.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Its functions have the group that there is when it is imported as their default, and would keep that one's threads
# for as long as the process lives. So it is imported before there is a group.
import torch.distributed.nn.functional
from torch import Tensor

from emcl_train.errors import NotFinite, UserError
from emcl_train.runs.lock import RECORD
from emcl_train.runs.machine import COUNTS, RANKS, this_machine

Result = TypeVar("Result")

PATIENCE = timedelta(hours=12)
"""How long the others wait while the first process prepares data or evaluates; torch's own 10 to 30 minutes would end
the run."""


class EndedElsewhere(UserError):
    """What another process has met. The first one says it."""

    of_all_processes = True
    told = True


class NotFiniteElsewhere(EndedElsewhere, NotFinite):
    """Numbers of another process that are NaN or infinite."""


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

    told = None if problem is None else (str(problem), isinstance(problem, NotFinite))
    met = next((of_one for of_one in gather_objects(told) if of_one is not None), None)
    if met is None:
        return result
    if problem is None:
        said, of_numbers = met
        raise (NotFiniteElsewhere if of_numbers else EndedElsewhere)(said)
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


def of_first(work: Callable[[], Result]) -> Result:
    """What the first process finds, in all of them: a plan that they have to share.

    Raises:
        UserError: the first process met it.
    """
    rank, world = rank_and_world()
    if world == 1:
        return work()
    found: list[Any] = agreed(lambda: [work()] if rank == 0 else [None])
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[no-any-return]


def require_seen(folder: Path) -> None:
    """Refuse to write into a folder that a process does not see as the first one does, which has it locked.

    Raises:
        UserError: there is no such folder on a process's machine, or it is another one.
    """
    record = of_first(lambda: (folder / RECORD).read_bytes())

    def look() -> None:
        if not (folder / RECORD).is_file() or (folder / RECORD).read_bytes() != record:
            raise UserError(
                f"process {rank_and_world()[0]}, on {this_machine().name}, does not see the {folder} of the first "
                f"process; choose a folder on a disk that all machines have, or start the processes on one machine"
            )

    agreed(look)


def rows_of_each(count: int, batch_size: int) -> list[range]:
    """The rows of each process of so many, in whole batches, which are then those of a single process."""
    world = rank_and_world()[1]
    batches = -(-count // batch_size)
    bounds = [min(process * batches // world * batch_size, count) for process in range(world + 1)]
    return [range(start, end) for start, end in pairwise(bounds)]


def own_rows(count: int, batch_size: int) -> range:
    """This process's of `rows_of_each`."""
    return rows_of_each(count, batch_size)[rank_and_world()[0]]


def rounds_of(count: int, batch_size: int) -> int:
    """How many batches the process has that has most."""
    return max(-(-len(rows) // batch_size) for rows in rows_of_each(count, batch_size))


def own_share(items: Sequence[Result], size: Callable[[Result], int]) -> list[Result]:
    """This process's part of some work, in order: about as much of it as each other one has.

    Args:
        items: the same in all processes.
        size: how much work an item is.
    """
    rank, world = rank_and_world()
    loads = [0] * world
    own = []
    # The largest first, each to the process that has the least.
    for place in sorted(range(len(items)), key=lambda place: -size(items[place])):
        process = loads.index(min(loads))
        loads[process] += max(1, size(items[place]))
        if process == rank:
            own.append(place)
    return [items[place] for place in sorted(own)]


def passed_to_first(own: Iterable[Result], rounds: int) -> Iterator[Result]:
    """What each process gets ready, in the first one; the others get nothing. No more than a round of it lives there.

    Args:
        own: of this process; it may raise a UserError, which ends all.
        rounds: how many the process has that has most.
    """
    if rank_and_world()[1] == 1:
        yield from own
        return
    left = iter(own)
    for _ in range(rounds):
        ready = agreed(lambda: list(islice(left, 1)))
        yield from gather_lists(ready) or []


def gather_lists(values: list[Result]) -> list[Result] | None:
    """The lists of all processes, one behind the other, in the first process; None in the others."""
    rank, world = rank_and_world()
    gathered: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(values, gathered)
    return None if gathered is None else [value for of_process in gathered for value in of_process]


def rows_in_all(own: Mapping[str, Tensor], parts: Sequence[range]) -> dict[str, Tensor]:
    """Rows of all processes, one below the other, in each of them, on the CPU.

    Args:
        own: this process's rows by name; empty if it has none. All share the first dimension.
        parts: the rows of each process; one at least has some.
    """
    rank = rank_and_world()[0]
    found = {}
    for name, whole in _empty(own, parts[-1].stop).items():
        if parts[rank]:
            whole[parts[rank].start : parts[rank].stop] = own[name]
        for process, rows in enumerate(parts):
            if rows:
                part = _Carried(whole[rows.start : rows.stop])
                dist.broadcast(part.tensor, src=process)
                part.put_back()
        found[name] = whole
    return found


def rows_in_first(own: Mapping[str, Tensor], parts: Sequence[range]) -> dict[str, Tensor] | None:
    """The same in the first process alone; None in the others.

    Args:
        own: as of `rows_in_all`.
        parts: likewise.
    """
    rank, world = rank_and_world()
    found = {}
    for name, whole in _empty(own, parts[-1].stop if rank == 0 else 0).items():
        if rank == 0 and parts[0]:
            whole[parts[0].start : parts[0].stop] = own[name]
        for process in range(1, world):
            rows = parts[process]
            if rank == 0 and rows:
                part = _Carried(whole[rows.start : rows.stop])
                dist.recv(part.tensor, src=process)
                part.put_back()
            elif rank == process and rows:
                dist.send(_Carried(own[name].contiguous()).tensor, dst=0)
        found[name] = whole
    return found if rank == 0 else None


def moved_rows(own: Mapping[str, Tensor], parts: Sequence[range], wanted: Sequence[range]) -> dict[str, Tensor]:
    """This process's rows of another division; a row goes only from the process that has it to that which wants it.

    Args:
        own: as of `rows_in_all`.
        parts: the rows that each process has.
        wanted: the rows that each is to have.
    """
    rank, world = rank_and_world()
    found = {}
    for name, rows in _empty(own, len(wanted[rank])).items():
        # All go through the pairs in one order, so that nobody waits for one who waits for others.
        for source, target in product(range(world), repeat=2):
            common = _common(parts[source], wanted[target])
            if not common or rank not in (source, target):
                continue
            there = slice(common.start - parts[source].start, common.stop - parts[source].start)
            here = slice(common.start - wanted[target].start, common.stop - wanted[target].start)
            if source == target:
                rows[here] = own[name][there]
            elif rank == source:
                dist.send(_Carried(own[name][there].contiguous()).tensor, dst=target)
            else:
                part = _Carried(rows[here])
                dist.recv(part.tensor, src=source)
                part.put_back()
        found[name] = rows
    return found


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _empty(own: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """So many rows of each kind that any process has; one without rows does not know their shapes."""
    kinds = gather_objects({name: (value.shape[1:], value.dtype) for name, value in own.items()})
    known = next(of_process for of_process in kinds if of_process)
    return {name: torch.empty(count, *shape, dtype=dtype) for name, (shape, dtype) in known.items()}


class _Carried:
    """Rows on the CPU as the group takes them: NCCL from a GPU, and no group takes truth values."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows.view(torch.uint8) if rows.dtype == torch.bool else rows
        self.tensor = self._rows.to(carrier())

    def put_back(self) -> None:
        """Have the rows be what has arrived."""
        if self.tensor is not self._rows:
            self._rows.copy_(self.tensor)


def carrier() -> torch.device:
    """Where tensors have to lie that the group exchanges."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def summed_if_agreed(vector: Tensor) -> Tensor:
    """The sum of every process's vector, without gradient, as long as none of them has met an error before it."""
    agreed(lambda: None)
    return _summed(vector.detach().to(carrier())).to(vector.device)


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
