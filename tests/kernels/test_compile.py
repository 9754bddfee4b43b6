"""torch.compile without a graph break: a layer and a training step. In a process of its own, without type checks."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("case", ["layer", "step", "pooled"])
def test_compiled_equals_eager(case: str) -> None:
    script = Path(__file__).with_name("compiled.py")
    run = subprocess.run([sys.executable, str(script), case], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    assert "equal" in run.stdout
