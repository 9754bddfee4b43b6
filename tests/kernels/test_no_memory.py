"""Memory that is not there, also where threads ask for it: MemoryError, and the process goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emcl_kernels.backends import cpu

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(bool(cpu.backend.reason), reason=cpu.backend.reason)
@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")
def test_every_allocation_of_every_op_may_fail(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path / "libfailing.so"
    source = HERE / "failing_allocator.c"
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)

    environment = os.environ | {"LD_PRELOAD": str(library)}
    command = [sys.executable, str(HERE / "no_memory.py"), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    *_, last = done.stdout.strip().splitlines() or [""]
    assert done.returncode == 0, f"{last}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    assert int(last.removeprefix("failed: ")) > 100
