"""A run whose weights are sharded over processes, ended in the middle and gone on with.

accelerate turns FSDP on for GPUs alone; torch has it for CPUs too, so the switch is set here.
As a script: `torchrun --nproc-per-node 2 sharded_processes.py ROOT OUT`.
"""

import io
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from rich.console import Console
from several_processes import whole_run_config
from torch.distributed.tensor import DTensor

from emcl_train.config import RunConfig
from emcl_train.processes import leave
from emcl_train.training import trainer


def start_sharded(config: RunConfig) -> Accelerator:
    accelerator = start_processes(config)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["CLIPEncoderLayer"]
    )
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    return accelerator


class Ended(Exception):
    """In place of a kill."""


def interrupted(config: RunConfig, after: int) -> None:
    step = trainer.Run.training_step

    def training_step(run: trainer.Run, batch: dict) -> float:
        if run.step == after:
            raise Ended
        parameters = dict(run.wrapped.named_parameters())
        assert all(isinstance(value, DTensor) for value in parameters.values())
        layer = parameters["towers.clip.text_model.encoder.layers.0.mlp.fc1.weight"]
        assert layer.to_local().numel() * 2 == layer.numel()
        return step(run, batch)

    trainer.Run.training_step = training_step
    try:
        trainer.train(config, Console(file=io.StringIO()))
    except Ended:
        pass
    finally:
        trainer.Run.training_step = step


def require_held(run: trainer.Run) -> None:
    """A logit scale above 100 comes back to it, whichever process has it."""
    parameter = run.model.towers.clip.logit_scale
    assert isinstance(parameter, DTensor)
    torch.nn.init.constant_(parameter, 9.0)
    run.model.hold_logit_scale()
    assert parameter.full_tensor().item() == torch.tensor(math.log(100)).item()


def check_at_the_end(run: trainer.Run) -> None:
    fit(run)
    require_held(run)


if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    start_processes, trainer.start_processes = trainer.start_processes, start_sharded
    trainer.write_report = lambda out: out
    config = whole_run_config(root, out)
    interrupted(config, after=7)
    fit, trainer.Run.fit = trainer.Run.fit, check_at_the_end
    trainer.train(replace(config, resume=True), Console(file=io.StringIO()))
    leave()

    # What torch remembers of sharded tensors keeps the group's threads, whatever is done. The end of the interpreter,
    # which one of them could abort, is left out here.
    os._exit(0)
