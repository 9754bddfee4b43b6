"""A command of several processes, and the threads that each has when it ends.

As a script: `torchrun --nproc-per-node 2 ending_processes.py FOLDER ROOT OUT`, which trains, or with the arguments of
`eval` in place of ROOT and OUT.
"""

import atexit
import os
import sys
from pathlib import Path

from emcl_train import cli


def note_threads(folder: Path) -> None:
    names = [Path("/proc/self/task", task, "comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    (folder / f"threads{os.environ['RANK']}").write_text("\n".join(names))


def train_instead(root: Path, out: Path) -> None:
    """Let the program train, on what the tests render."""
    from tiny_run import tiny_run  # not for eval, which imports what it needs when it has joined the others

    from emcl_train.training import trainer

    trainer.write_report = lambda out: out  # its plots take longer than all the rest
    config = tiny_run(root, out, tracker="none", epochs=1)
    cli.dispatch = lambda arguments: trainer.train(config) and 0


if __name__ == "__main__":
    atexit.register(note_threads, Path(sys.argv.pop(1)))
    if sys.argv[1] != "eval":
        train_instead(*map(Path, sys.argv[1:]))
    cli.program()
