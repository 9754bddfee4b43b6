"""What nvcc made of the CUDA kernels: every architecture, no spills, shared memory and code within a device's limits.

Read from the library, and from the reports that the build leaves beside its objects: nothing is compiled here. Shared
memory that a launch asks for is not in them; the emulator refuses what a device would not give.
"""

import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from emcl_kernels.backends import cuda
from emcl_kernels.info import build_info

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
BUILT: dict[str, Any] = build_info().get("targets", {}).get("cuda", {})
SHARED_MEMORY = {"80": 163 * 1024, "90": 227 * 1024}  # bytes that a block can have
INSTRUCTION_CACHE = 128 * 1024  # bytes; a larger kernel would fetch its code from the second cache again and again
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?, (?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def faults(report: str, architectures: set[str]) -> list[str]:
    """What is wrong with the kernels of one source, in words."""
    found, compiled = [], {}
    for kernel in KERNEL.finditer(report):
        compiled.setdefault(kernel["name"], set()).add(kernel["architecture"])
        where = f"{kernel['name']} for {kernel['architecture']}"
        if int(kernel["stores"]) or int(kernel["loads"]):
            found.append(f"{where} spills {kernel['stores']} + {kernel['loads']} bytes")
        limit = SHARED_MEMORY.get(kernel["architecture"], min(SHARED_MEMORY.values()))
        if int(kernel["shared"] or 0) > limit:
            found.append(f"{where} has {kernel['shared']} bytes of shared memory, more than {limit}")
    for name, got in compiled.items():
        if got != architectures:
            found.append(f"{name} is not compiled for {', '.join(sorted(architectures - got))}")
    if len(compiled) != len(set(re.findall(r"Compiling entry function '(\w+)'", report))):
        found.append("a kernel has no resources in the report")
    return found if compiled else ["no kernel was reported"]


def readable(text: str) -> str:
    """With the names of kernels as they are written, where c++filt is there."""
    if shutil.which("c++filt") is None:
        return text
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not BUILT.get("built"), reason=f"there is no CUDA library: {BUILT.get('reason')}")
@pytest.mark.parametrize("source", sorted(path.stem for path in (ROOT / "csrc" / "cuda").rglob("*.cu")))
def test_every_kernel_is_compiled_for_every_architecture_without_spills_and_within_the_device(source: str) -> None:
    report = (REPORTS / f"cuda.{source}.ptxas").read_text(encoding="utf-8")
    architectures = {name.removesuffix("+PTX") for name in BUILT["isas"]}
    assert readable("\n".join(faults(report, architectures))) == ""


def test_the_emulated_library_is_there_where_the_kernels_are_tested() -> None:
    emulated = build_info().get("targets", {}).get("emulated")
    if emulated is None or "EMCL_BUILD_EMULATED" in emulated["reason"]:
        pytest.skip("it was not asked for; EMCL_BUILD_EMULATED=1 python setup.py build_ext --inplace")
    assert emulated["reason"] == ""
    assert cuda._load_emulated() == ""


def made_up(architecture: str, stores: int = 0, loads: int = 0, shared: str = "") -> str:
    return f"""\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_Z1kv' for 'sm_{architecture}'
ptxas info    : Function properties for _Z1kv
    8 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers{shared}, 364 bytes cmem[0]
ptxas info    : Compile time = 2.402 ms
"""


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (made_up("80") + made_up("90"), None),
        (made_up("80") + made_up("90", shared=", 232448 bytes smem"), None),
        (made_up("80", stores=4, loads=8) + made_up("90"), "_Z1kv for 80 spills 4 + 8 bytes"),
        (made_up("80") + made_up("90", loads=8), "_Z1kv for 90 spills 0 + 8 bytes"),
        (
            made_up("80", shared=", 166913 bytes smem") + made_up("90"),
            "_Z1kv for 80 has 166913 bytes of shared memory, more than 166912",
        ),
        (made_up("80"), "_Z1kv is not compiled for 90"),
        (made_up("80") + made_up("90").replace("_Z1kv", "_Z1av", 1).partition("Used")[0], "no resources in the report"),
        ("ptxas info    : 28 bytes gmem\n", "no kernel was reported"),
    ],
)
def test_a_fault_in_a_report_is_found(report: str, fault: str | None) -> None:
    found = faults(report, {"80", "90"})
    assert found == [] if fault is None else fault in "\n".join(found)


# ---- size of the code ------------------------------------------------------------------------------------------------


def code_sizes(elf: bytes) -> dict[str, int]:
    """Bytes of the code of each kernel in a 64-bit ELF file: the sections `.text.NAME`."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * entry) for i in range(count)]
    names = sections[names_at][4]

    sizes = {}
    for name_at, _, _, _, _, size in sections:
        start = names + name_at
        name = elf[start : elf.index(b"\0", start)].decode()
        if name.startswith(".text."):
            sizes[name.removeprefix(".text.")] = size
    return sizes


def cuobjdump() -> str | None:
    """That of the toolkit, or the one in Triton's wheel."""
    in_triton = Path(sysconfig.get_path("purelib")) / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or (str(in_triton) if in_triton.exists() else None)


@pytest.mark.skipif(not BUILT.get("built"), reason=f"there is no CUDA library: {BUILT.get('reason')}")
def test_the_code_of_every_kernel_stays_in_the_instruction_cache(tmp_path: Path) -> None:
    tool = cuobjdump()
    if tool is None:
        pytest.skip("neither the CUDA toolkit's cuobjdump nor Triton's is there")
    library = ROOT / "emcl_kernels" / "_C" / "libemcl_cuda.so"
    subprocess.run([tool, "-xelf", "all", str(library)], cwd=tmp_path, check=True, capture_output=True)

    sizes = {
        f"{name} for {file.suffixes[-2].removeprefix('.')}": size
        for file in tmp_path.glob("*.cubin")
        for name, size in code_sizes(file.read_bytes()).items()
    }
    assert any("backward_kernel" in name for name in sizes)
    too_large = {name: size for name, size in sizes.items() if size >= INSTRUCTION_CACHE}
    assert readable("\n".join(f"{name} has {size} bytes of code" for name, size in too_large.items())) == ""
