"""Start a program in several processes that exchange what they find, as torchrun does."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PATIENCE = 900
"""Seconds; each process imports torch, which a busy machine may take a minute for."""


def launched(*program: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """What became of it. A process that leaves a thread of the exchange behind has failed: see launched/.

    Args:
        program: a script, or "-m" and a module, and its arguments.
        processes: how many.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    path = os.pathsep.join([str(TESTS / "launched"), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*launch, *map(str, program)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
