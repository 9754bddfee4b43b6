"""Go on with a tiny run: `torchrun --nproc-per-node 2 resumed_processes.py ROOT OUT`."""

import io
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tiny_run import tiny_run

from emcl_train.training import trainer

if __name__ == "__main__":
    trainer.write_report = lambda out: out  # its plots take longer than all the rest
    trainer.train(replace(tiny_run(Path(sys.argv[1]), Path(sys.argv[2])), resume=True), Console(file=io.StringIO()))
