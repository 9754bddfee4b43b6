"""What nvcc said of the CUDA kernels: every architecture compiled, nothing spilled, and shared memory within limits.

Read from the report that the build keeps, so nothing is compiled here. Shared memory that a launch asks for is not in
it; the emulator refuses what a device would not give.
"""

import shutil
import subprocess
from typing import Any

import pytest

from emcl_kernels.backends import cuda
from emcl_kernels.info import build_info

BUILT: dict[str, Any] = build_info().get("targets", {}).get("cuda", {})
SHARED_MEMORY = {"80": 163 * 1024, "90": 227 * 1024}  # bytes that a block can have
MOST_REGISTERS = 255  # of a thread

needs_library = pytest.mark.skipif(not BUILT.get("built"), reason=f"no CUDA library: {BUILT.get('reason')}")


def faults(kernels: list[dict[str, Any]], architectures: set[str]) -> list[str]:
    """What is wrong with kernels as the build reports them, in words."""
    found = []
    compiled: dict[str, set[str]] = {}
    for each in kernels:
        where = f"{each['kernel']} in {each['source']} for {each['architecture']}"
        compiled.setdefault(each["kernel"], set()).add(each["architecture"])
        if each["spill_stores"] or each["spill_loads"]:
            found.append(f"{where} spills {each['spill_stores']} + {each['spill_loads']} bytes")
        if each["registers"] > MOST_REGISTERS:
            found.append(f"{where} has {each['registers']} registers")
        limit = SHARED_MEMORY.get(each["architecture"], min(SHARED_MEMORY.values()))
        if each["shared"] > limit:
            found.append(f"{where} has {each['shared']} bytes of shared memory, more than {limit}")
    found += [
        f"{name} is not compiled for {architectures - got}" for name, got in compiled.items() if got != architectures
    ]
    return found if kernels else ["no kernel was reported"]


def readable(text: str) -> str:
    """With the names of kernels as they are written, where c++filt is there."""
    if shutil.which("c++filt") is None:
        return text
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


@needs_library
def test_every_kernel_is_compiled_for_every_architecture_without_spills_and_within_the_device() -> None:
    architectures = {name.removesuffix("+PTX") for name in BUILT["isas"]}
    assert readable("\n".join(faults(BUILT["kernels"], architectures))) == ""


@needs_library
def test_every_source_with_kernels_is_in_the_report() -> None:
    sources = {each["source"] for each in BUILT["kernels"]}
    assert {"moments.cu", "fit.cu", "fit_backward.cu", "reconstruct.cu"} <= sources
    assert any(source.startswith("pooled") for source in sources)


def test_the_emulated_library_is_there_where_the_kernels_are_tested() -> None:
    emulated = build_info().get("targets", {}).get("emulated")
    if emulated is None or "EMCL_BUILD_EMULATED" in emulated["reason"]:
        pytest.skip("it was not asked for; EMCL_BUILD_EMULATED=1 python setup.py build_ext --inplace")
    assert emulated["reason"] == ""
    assert cuda._load_emulated() == ""


KERNEL = {"source": "a.cu", "kernel": "_Z1kv", "stack": 0, "spill_stores": 0, "spill_loads": 0, "registers": 255,
          "shared": 163 * 1024}  # fmt: skip


def kernels(**changed: Any) -> list[dict[str, Any]]:
    return [KERNEL | {"architecture": "80"}, KERNEL | {"architecture": "90"} | changed]


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (kernels(), None),
        (kernels(shared=227 * 1024), None),
        (kernels(spill_stores=4, spill_loads=8), "_Z1kv in a.cu for 90 spills 4 + 8 bytes"),
        (kernels(spill_loads=8), "_Z1kv in a.cu for 90 spills 0 + 8 bytes"),
        (kernels(shared=228 * 1024), "_Z1kv in a.cu for 90 has 233472 bytes of shared memory, more than 232448"),
        (kernels(architecture="80", shared=164 * 1024), "_Z1kv in a.cu for 80 has 167936 bytes of shared memory"),
        (kernels()[:1], "_Z1kv is not compiled for {'90'}"),
        ([], "no kernel was reported"),
    ],
)
def test_a_fault_in_the_report_is_found(report: list[dict[str, Any]], fault: str | None) -> None:
    found = faults(report, {"80", "90"})
    assert found == [] if fault is None else fault in found[0]
