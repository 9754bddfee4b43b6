"""Go on with a whole tiny run, in OUT/run: `torchrun --nproc-per-node 2 resumed_processes.py ROOT OUT/run`."""

import io
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from several_processes import whole_run_config

from emcl_train.processes import leave
from emcl_train.training import trainer

if __name__ == "__main__":
    trainer.write_report = lambda out: out  # its plots take longer than all the rest
    config = whole_run_config(Path(sys.argv[1]), Path(sys.argv[2]).parent)
    trainer.train(replace(config, resume=True), Console(file=io.StringIO()))
    leave()
