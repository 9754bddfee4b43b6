"""The same tests in processes of their own, in Triton's interpreter, which TRITON_INTERPRET chooses at the import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moments", "fit", "reconstruct", "project", "pooled", "cancelling", "ops"])
def test_triton_in_its_interpreter(name: str) -> None:
    pytest.importorskip("triton")
    # A loop over blocks, of which each takes the interpreter seconds: one size of them.
    selection = (
        "mapped_rows or takes_nearly" if name == "cancelling" else "(not (blocks_equal or last_blocks) or 11-9-4)"
    )
    if name == "ops":  # the bits of every call are compared in test_one_shape_after_another too
        selection += " and not test_the_same_input"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "triton", "-k", selection]
    # The interpreter computes with numpy, which warns of the infinite values that a test is about.
    command += ["-W", "ignore::RuntimeWarning"]

    done = subprocess.run(
        [*command, str(HERE / f"test_{name}.py")],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "EMCL_TEST_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
