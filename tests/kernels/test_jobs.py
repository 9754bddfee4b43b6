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
OPS = [HERE / f"test_{name}.py" for name in ("moments", "fit", "reconstruct", "project", "pooled")]


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
@pytest.mark.parametrize("name", ["moments", "fit", "reconstruct", "project", "pooled", "ops"])
def test_triton_in_its_interpreter(name: str) -> None:
    pytest.importorskip("triton")
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "EMCL_TEST_THREADS": "1"}
    # A loop over blocks, of which each takes the interpreter seconds: one size of them.
    selection = ["-k", "not blocks_equal or 11-9-4"]
    run_tests("triton", [HERE / f"test_{name}.py"], environment, *selection)


def isas_of_this_machine() -> list[str]:
    """All but the one that this process uses."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    known = {"baseline": True, "avx2": " avx2" in flags, "avx512": " avx512f" in flags}
    available = [isa for isa, there in known.items() if there]
    return [isa for isa in available if isa != os.environ.get("EMCL_ISA", available[-1])]


@pytest.mark.slow
@pytest.mark.parametrize("isa", isas_of_this_machine())
def test_cpp_kernels_of_another_instruction_set(isa: str) -> None:
    run_tests("native", OPS, {"EMCL_ISA": isa})


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_tolerances_are_those_of_any_processor(capability: str) -> None:
    """Torch rounds otherwise on another processor, and nothing here may depend on that."""
    run_tests("reference,native", OPS, {"ATEN_CPU_CAPABILITY": capability}, "-m", "not compiled")
