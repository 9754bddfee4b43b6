"""Whether a run goes on with the pairs that it would have had: what its steps are made of, recorded with its state.

The order of an epoch follows from seed, epoch, clips, and pairs a step. Processes only share the pairs of a step: any
number of them may go on with a run if together they take as many pairs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcl_train.data.clips import Split
from emcl_train.errors import UserError


@dataclass(frozen=True)
class Steps:
    """What the pairs of every step follow from, besides the configuration."""

    pairs: int
    """Of a step, over all processes."""
    processes: int
    clips: int
    """To train on."""
    order: str
    """Fingerprint of the clips in their order, and of which caption belongs to which."""

    @classmethod
    def of(cls, split: Split, pairs: int, processes: int) -> "Steps":
        """Those of a training split.

        Args:
            split: that is trained on.
            pairs: of a step, over all processes.
            processes: how many there are.

        Returns:
            The record.
        """
        order = json.dumps([[clip.video_id for clip in split.clips], list(split.caption_clip)])
        return cls(pairs, processes, len(split.clips), hashlib.sha256(order.encode()).hexdigest()[:16])


def pairs_per_step(
    asked: int, chunks: int, items: int, processes: int, say: Callable[[str], None], *, what: str = "clips"
) -> int:
    """`train.batch_size`, or all training clips if there are fewer, which is said; less what processes cannot share.

    Args:
        asked: `train.batch_size`.
        chunks: `train.chunks`.
        items: to train on.
        processes: how many there are.
        say: takes a line for the terminal.
        what: the items are.

    Raises:
        UserError: a batch would leave a process without a pair, or a pair without another one.
    """
    # All processes together.
    size = min(asked, items)
    if size < max(2, processes):
        raise UserError(
            f"a batch has {size} pairs (train.batch_size is {asked}, the training split has {items} {what}), "
            f"expected at least {max(2, processes)}, for {processes} processes; add {what}, or start fewer processes"
        )
    if size < asked:
        say(f"the training split has {items} {what}, fewer than train.batch_size {asked}: each step takes all")

    # Each process, which encodes its own pairs in chunks.
    own = size // processes
    if chunks > own:
        raise UserError(
            f"train.chunks is {chunks}, expected 1 to {own}, the pairs that each process has of a batch of "
            f"{size} (processes: {processes}); pass --train.chunks {own} or less"
        )
    if size % processes:
        say(f"{processes} processes do not divide {size} pairs: each step takes {own * processes}")
    return own * processes


def require_same_steps(out: Path, saved: Mapping[str, Any], now: Steps, *, batch_size: int, chunks: int) -> None:
    """Refuse to go on where the rest of the run would have other pairs in its steps.

    Args:
        out: the run folder.
        saved: `Steps` as the state has it, or {} in one that is older than this record, which goes on.
        now: what the run would go on with.
        batch_size: `train.batch_size`.
        chunks: `train.chunks`.

    Raises:
        UserError: pairs a step, or the clips, are not those of before.
    """
    if not saved:
        return
    if saved["order"] != now.order:
        others = ", which are others or in another order" if saved["clips"] == now.clips else ""
        raise UserError(
            f"the run in {out} was trained on {saved['clips']} clips and would go on with {now.clips}{others}: pairs "
            "of its epoch would be skipped or repeated. Bring back the annotations and videos that it began with, "
            "or start a new run with another --out"
        )
    if saved["pairs"] == now.pairs:
        return

    size = min(batch_size, now.clips)
    fitting = [str(n) for n in range(1, size // chunks + 1) if size // n * n == saved["pairs"]]
    fitting = fitting or [str(saved["processes"])]
    numbers = " or ".join(filter(None, [", ".join(fitting[:-1]), fitting[-1]]))
    raise UserError(
        f"the run in {out} takes {saved['pairs']} pairs a step ({_processes(saved['processes'])}, train.batch_size "
        f"{batch_size}) and would go on with {now.pairs} ({_processes(now.processes)}): pairs of its epoch would be "
        f"skipped or repeated, and its schedule would be another one. Go on with {numbers} "
        f"process{'' if fitting == ['1'] else 'es'}, or start a new run with another --out"
    )


def require_same_sharding(out: Path, optimizer: Mapping[str, Any], *, sharded: bool) -> None:
    """Refuse to put the optimizer's state of sharded weights into whole ones, or the other way round.

    Args:
        out: the run folder.
        optimizer: its state, by the names of weights if these were sharded, else by their numbers.
        sharded: whether they are now.

    Raises:
        UserError: they were not then what they are now.
    """
    names = optimizer.get("state", {})
    if not names or any(isinstance(name, str) for name in names) == sharded:
        return
    was, now = ("whole", "sharded (FSDP)") if sharded else ("sharded (FSDP)", "whole")
    raise UserError(
        f"the state of the run in {out} is of {was} weights, and this start has {now} ones; start the processes as "
        "then, or start a new run with another --out"
    )


def _processes(count: int) -> str:
    return f"{count} process" if count == 1 else f"{count} processes"
