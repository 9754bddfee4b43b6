"""The same tests in processes of their own: Triton's interpreter, and the instruction sets that this one does not use.

Triton reads TRITON_INTERPRET, and the C++ library EMCL_ISA, when they are loaded; torch reads ATEN_CPU_CAPABILITY.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OPS = [HERE / f"test_{name}.py" for name in ("moments", "fit", "reconstruct", "project", "pooled", "cancelling")]


def run_tests(backend: str, files: list[Path], environment: dict[str, str], *arguments: str) -> None:
    """Raises: AssertionError with what failed, or if nothing ran."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", backend, *arguments]
    done = subprocess.run(
        [*command, *map(str, files)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moments", "fit", "reconstruct", "project", "pooled", "cancelling", "ops"])
def test_triton_in_its_interpreter(name: str) -> None:
    pytest.importorskip("triton")
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "EMCL_TEST_THREADS": "1"}
    # A loop over blocks, of which each takes the interpreter seconds: one size of them.
    selection = ["-k", "not (blocks_equal or last_blocks) or 11-9-4"]
    if name == "cancelling":
        selection = ["-k", "mapped_rows or takes_nearly"]
    # The interpreter computes with numpy, which warns of the infinite values that a test is about.
    selection += ["-W", "ignore::RuntimeWarning"]
    run_tests("triton", [HERE / f"test_{name}.py"], environment, *selection)


# Other machines have other instructions in the C++ kernels, and a torch that rounds otherwise. No tolerance may
# depend on either.
PROCESSORS = {
    "without AVX": ("reference,native", {"EMCL_ISA": "baseline", "ATEN_CPU_CAPABILITY": "default"}),
    "AVX2": ("native", {"EMCL_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_as_on_another_processor(processor: str) -> None:
    backends, environment = PROCESSORS[processor]
    run_tests(backends, OPS, environment, "-m", "not compiled")
