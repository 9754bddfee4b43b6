"""The same tests in a process of their own, in Triton's interpreter, which TRITON_INTERPRET chooses at the import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = ("moments", "fit", "reconstruct", "project", "pooled", "cancelling", "ops")
FILES = [HERE / f"test_{name}.py" for name in NAMES]
# A loop over blocks, of which each takes the interpreter seconds: one size of them. The bits of every call are compared
# in test_one_shape_after_another too.
SELECTION = (
    "(test_cancelling and (mapped_rows or takes_nearly)) or "
    "(not test_cancelling and not test_the_same_input and (not (blocks_equal or last_blocks) or 11-9-4))"
)
SHARE = os.environ.get("EMCL_TEST_INTERPRETED", "5")
"""Every how many-th case of a test; `make test-triton` runs them all."""


@pytest.mark.slow
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "triton", "-k", SELECTION]
    # The interpreter computes with numpy, which warns of the infinite values that a test is about.
    command += ["-W", "ignore::RuntimeWarning", "--every", SHARE]

    done = subprocess.run(
        [*command, *map(str, FILES)],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "EMCL_TEST_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
