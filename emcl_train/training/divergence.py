"""Training that has diverged: whatever shows it first (loss, gradient, weights, validation) is said in one line."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.runs import contents


class Diverged(UserError):
    """The weights of a run have become useless. Each of several processes raises it; the first one says it."""

    of_all_processes = True


@dataclass
class Watch:
    """What is known of a run when its numbers are no numbers any more."""

    config: RunConfig
    saved_step: int | None = None
    """That the state on the disk is of; None before there is one."""
    last_step: int | None = None
    """The last one of this start whose loss was finite."""
    last_loss: float = math.nan

    def loss_was(self, step: int, loss: float) -> None:
        """Remember a finite loss.

        Args:
            step: counted from 1.
            loss: of that step.
        """
        self.last_step = step
        self.last_loss = loss

    def diverged(self, what: str, *, step: int, epoch: int, damaged: bool = True) -> Diverged:
        """The error to raise: what shows it, since when, what to change, and what there is to go back to.

        Args:
            what: is not finite, as the beginning of a sentence.
            step: at which it shows, counted from 1.
            epoch: the same.
            damaged: whether there are weights by now that are not to be kept.
        """
        train = self.config.train
        since = "" if self.last_step is None else f", after a loss of {self.last_loss:.4g} at step {self.last_step}"
        precision = "" if train.precision == "no" else f", or {flag('train.precision')} no"
        start_from = f"; look at what it starts from, {_start(self.config)}, too" if self.last_step is None else ""
        state = self.config.out / Path(contents.STATE).parent
        saved = f"no state was saved in {state}"
        if self.saved_step is not None:
            saved = f"the state in {state} is of step {self.saved_step}, before it"
        kept = "; the damaged weights are not saved" if damaged else ""
        return Diverged(
            f"training has diverged: {what} at step {step} (epoch {epoch}){since}; begin another run, with another "
            f"{flag('out')}, and try a lower {flag('train.lr')} (it is {train.lr:g}), a longer "
            f"{flag('train.warmup')} (it is {train.warmup:g}){precision}{start_from}; {saved}{kept}"
        )


def _start(config: RunConfig) -> str:
    """What the numbers of the first step come from."""
    system = config.model.system
    if system == "clip":
        made = [config.from_features or config.model.clip]
    else:
        text = [] if system != "mmt" or config.experts.text == "random" else [config.experts.text]
        made = [f"the features in {config.data.root}", *text]
    start = [] if config.model.init_from is None else [config.model.init_from]
    return " and ".join(map(str, [*made, *start]))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is NaN or infinite; of sharded tensors, in the part of this process."""
    found = []
    for value in tensors:
        local = value.detach()
        if isinstance(local, DTensor):
            local = local.to_local()
        if local.is_floating_point() and local.numel():
            found.append(torch.isfinite(local).all())
    return all(bool(torch.stack(of_device).all()) for of_device in _by_device(found).values())


def _by_device(values: Iterable[Tensor]) -> Mapping[torch.device, list[Tensor]]:
    """Adam counts its steps on the CPU, whatever device has the weights."""
    groups: dict[torch.device, list[Tensor]] = {}
    for value in values:
        groups.setdefault(value.device, []).append(value)
    return groups


def moments_of(optimizer: Optimizer) -> Iterable[Tensor]:
    """The tensors that an optimizer keeps of its weights."""
    states: Iterable[dict[str, Any]] = optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]
