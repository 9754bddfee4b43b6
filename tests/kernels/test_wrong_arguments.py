"""Ops called directly, private ones and those of the libraries: one wrong argument is an error, never a crash."""

import subprocess
import sys
from pathlib import Path

import pytest

from emcl_kernels.backends import cpu

SCRIPT = Path(__file__).with_name("wrong_arguments.py")


@pytest.mark.slow
@pytest.mark.parametrize("namespace", ["emcl", "emcl_native", "emcl_emulated"])
def test_every_wrong_argument_of_every_op_is_refused(namespace: str) -> None:
    if namespace == "emcl_native" and (reason := cpu.backend.reason):
        pytest.skip(reason)
    done = subprocess.run([sys.executable, str(SCRIPT), namespace], capture_output=True, text=True, check=False)
    *_, last = done.stdout.strip().splitlines() or [""]
    assert done.returncode == 0, f"{last}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    if last.startswith("skipped"):
        pytest.skip(last)
    assert last.startswith("refused: ")
    assert int(last.removeprefix("refused: ")) > 500
