"""What needs processes of its own: two that share a GPU, and the memory checker."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compare import DEVICE

HERE = Path(__file__).parent
FOUND = 86  # exit code by which the memory checker says that it found something
PATIENCE = 150  # seconds; below the silence after which run.py takes a test for hung


def test_two_processes_on_one_gpu_equal_one(backend: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(HERE / "ddp_step.py"), backend, DEVICE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert done.stdout.count("equal") == 2


def test_the_script_of_the_memory_checker_runs(backend: str) -> None:
    command = [sys.executable, str(HERE / "small_case.py"), backend, DEVICE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.cuda_only
def test_the_memory_checker_finds_nothing(backend: str) -> None:
    checker = memory_checker()
    if checker is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [
        checker,
        "--tool",
        "memcheck",
        "--report-api-errors",
        "no",
        "--error-exitcode",
        str(FOUND),
        sys.executable,
    ]
    # without torch's cache every tensor is an allocation of its own, and an access beyond its end is seen
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            [*command, str(HERE / "small_case.py"), backend, DEVICE],
            capture_output=True, text=True, timeout=PATIENCE, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"compute-sanitizer did not end within {PATIENCE} s")
    output = done.stdout + done.stderr
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this device or machine")
    assert done.returncode == 0, output[-6000:]


def memory_checker() -> str | None:
    """compute-sanitizer on PATH, or beside nvcc."""
    folders = [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"), os.environ.get("PATH", "")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
