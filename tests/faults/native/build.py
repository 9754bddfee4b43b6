"""Builds of the kernels for the sanitizers, in build/faults, and the environments in which Python loads them.

A build has the flags of setup.py and those of its sanitizer. It lies in a copy of the package that is made of links,
with a folder `_C` of its own: with that copy first in PYTHONPATH, `import emcl_kernels` finds it beside the same
sources. The interpreter and torch have no sanitizer inside, so its runtime is loaded before them.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from parts import BUILD, ROOT, CannotRun

HERE = Path(__file__).resolve().parent
PLAIN = "plain"
"""The name of what setup.py built, without a sanitizer."""
FLAGS = {
    "address": ["-fsanitize=address"],
    # Undefined behaviour ends a process too, else it would only be printed. Compiling takes three times as long.
    "address-undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
RUNTIMES = {"address": "libasan.so", "address-undefined": "libasan.so", "thread": "libtsan.so"}
"""What is loaded before the interpreter."""
# The last -O counts. Line numbers are for reports.
ALL_FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer"]
# Fibers change their stacks behind the sanitizer's back, so in the emulator it looks at the memory of tensors alone.
EMULATED_FLAGS = ["--param", "asan-stack=0"]


@dataclass(frozen=True)
class Build:
    """A build, and how Python is started with it.

    Args:
        sanitizer: of `FLAGS`, or `PLAIN`.
        isas: instruction sets that it has, the widest last.
        folder: the copy of the package lies in here; empty for `PLAIN`.
    """

    sanitizer: str
    isas: tuple[str, ...]
    folder: Path

    def command(self) -> list[str]:
        """What starts Python."""
        before = without_random_addresses() if self.sanitizer == "thread" else ()
        return [*before, sys.executable]

    def environment(self, isa: str, preload: tuple[str, ...] = ()) -> dict[str, str]:
        """All variables of a process that uses one instruction set.

        Args:
            isa: one of `isas`.
            preload: libraries that are loaded first of all, after the sanitizer's own.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMCL_")}
        environment["EMCL_ISA"] = isa
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (self.folder, HERE.parent)))

        # The C++ library too: the sanitizer asks it for its exceptions before anything else brings it.
        first = [RUNTIMES[self.sanitizer], "libstdc++.so.6"] if self.sanitizer in RUNTIMES else []
        environment["LD_PRELOAD"] = " ".join([*map(runtime, first), *preload])
        environment |= sanitizer_options(self.sanitizer)
        return environment


def sanitizer_options(sanitizer: str) -> dict[str, str]:
    """What each sanitizer is told, by its variable."""
    suppressions = HERE / "suppressions"
    if sanitizer.startswith("address"):
        options = {
            "exitcode": "99",
            "detect_leaks": "0",  # the interpreter never gives back all
            "allocator_may_return_null": "1",  # no memory is an error of the op, not of the test
            "max_allocation_size_mb": "2048",
            "malloc_fill_byte": "255",  # not a number, in every type of floats
            "max_malloc_fill_size": str(1 << 26),
            "suppressions": str(suppressions / "address.txt"),
        }
        undefined = {"print_stacktrace": "1", "exitcode": "99", "suppressions": str(suppressions / "undefined.txt")}
        return {"ASAN_OPTIONS": joined(options), "UBSAN_OPTIONS": joined(undefined)}
    if sanitizer == "thread":
        options = {
            "exitcode": "99",
            "suppressions": str(suppressions / "thread.txt"),
            "ignore_noninstrumented_modules": "1",  # the interpreter's and torch's own, which it sees in parts
            "history_size": "4",
        }
        return {"TSAN_OPTIONS": joined(options)}
    return {}


@cache
def without_random_addresses() -> tuple[str, ...]:
    """What starts a command so, where that is allowed: the thread sanitizer knows few layouts of an address space."""
    command = ("setarch", platform.machine(), "-R")
    allowed = shutil.which(command[0]) and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if allowed else ()


def joined(options: dict[str, str]) -> str:
    return ":".join(f"{name}={value}" for name, value in options.items())


# ---- compilers -------------------------------------------------------------------------------------------------------


@cache
def setup() -> ModuleType:
    """setup.py, without the call at its end: its flags and its way to compile are ours."""
    spec = importlib.util.spec_from_file_location("emcl_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with mock.patch("setuptools.setup"):
        spec.loader.exec_module(module)
    return module


@cache
def compiler() -> str:
    found = setup().find_compiler()
    if found is None:
        raise CannotRun("no C++ compiler was found; install g++, or set CXX")
    return str(found)


@cache
def runtime(name: str) -> str:
    """Where the compiler has a library that is loaded first."""
    path = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        raise CannotRun(f"{compiler()} has no {name}; install the sanitizers of g++ (libasan, libubsan, libtsan)")
    return os.path.realpath(path)


def machine_isas() -> tuple[str, ...]:
    """Instruction sets of this machine that the kernels know, the widest last."""
    known = list(setup().ISA_FLAGS)
    with contextlib.suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
        needed = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512vl", "avx512dq", "avx512bw"}}
        return tuple(isa for isa in known if needed.get(isa, set()) <= words)
    return ("baseline",)


def helper(source: str) -> str:
    """Compile one of the small libraries of this folder; where it lies."""
    BUILD.mkdir(parents=True, exist_ok=True)
    path = HERE / source
    library = BUILD / f"lib{path.stem}.so"
    if not library.exists() or library.stat().st_mtime < path.stat().st_mtime:
        command = [compiler(), "-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-Wall", str(path), "-o", str(library)]
        run(command, source)
    return str(library)


def loaded_helper(source: str) -> ctypes.CDLL:
    """One of them, in a process that has loaded it already."""
    return ctypes.CDLL(str(BUILD / f"lib{Path(source).stem}.so"))


def run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"{what} does not compile:\n{done.stdout}{done.stderr}")


# ---- builds ----------------------------------------------------------------------------------------------------------


def plain() -> Build:
    """What setup.py built, as it is."""
    if not (ROOT / "emcl_kernels" / "_C" / "libemcl_cpu.so").exists():
        raise CannotRun("emcl_kernels/_C/libemcl_cpu.so was not built; make setup")
    return Build(PLAIN, machine_isas(), ROOT)


def build(sanitizer: str, isas: tuple[str, ...], *, emulated: bool = False) -> Build:
    """Compile the kernels with a sanitizer, unless that was done already.

    Args:
        sanitizer: of `FLAGS`.
        isas: of the CPU kernels; the others are left out, which saves most of the time.
        emulated: the CUDA kernels for the emulator too.

    Returns:
        The build.

    Raises:
        CannotRun: it does not compile.
    """
    folder = BUILD / f"{sanitizer}-{'-'.join(isas)}"
    objects = folder / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    runtime(RUNTIMES[sanitizer])

    targets = [cpu_library(sanitizer, isas, objects)]
    if emulated:
        targets.append(emulated_library(sanitizer, objects))
    setup().build(targets, compiler(), objects)
    for target in targets:
        if target.reason:
            raise CannotRun(f"{target.file} with the {sanitizer} sanitizer: {target.reason}")

    link_package(folder)
    for target in targets:
        setup().place(target, objects, folder)
    return Build(sanitizer, isas, folder)


def cpu_library(sanitizer: str, isas: tuple[str, ...], objects: Path) -> Any:
    """The plan of setup.py for some instruction sets, with the sanitizer's flags."""
    target = setup().Target("cpu", setup().CPU_LIBRARY)
    setup().plan_cpu_library(target, objects, "faults")

    # Without the kernels of the other instruction sets; an empty table stands for them.
    others = [isa for isa in target.isas if isa not in isas]
    target.objects = [each for each in target.objects if each.output.name not in {f"kernels.{isa}.o" for isa in others}]
    flags = target.objects[-1].flags
    for isa in others:
        source = objects / f"no_{isa}.cpp"
        write_if_changed(
            source,
            f"""\
#include "cpu/isa.h"
namespace emcl {{
extern const Kernels k{isa.capitalize()}[kElements] = {{}};
}}
""",
        )
        target.objects.append(setup().Object(source, objects / f"no_{isa}.o", flags))
    add_flags(target, sanitizer)
    return target


def emulated_library(sanitizer: str, objects: Path) -> Any:
    target = setup().Target("emulated", setup().EMULATED_LIBRARY)
    with mock.patch.dict(os.environ, EMCL_BUILD_EMULATED="1"):
        setup().plan_emulated_library(target, objects, "faults")
    add_flags(target, sanitizer, EMULATED_FLAGS)
    return target


def add_flags(target: Any, sanitizer: str, more: list[str] | None = None) -> None:
    flags = [*ALL_FLAGS, *FLAGS[sanitizer], *(more or [])]
    for each in target.objects:
        each.flags = [*each.flags, *flags]
    target.link_flags = [*target.link_flags, *FLAGS[sanitizer]]


def link_package(folder: Path) -> None:
    """A package of links to the files of the checkout, with a folder `_C` of its own."""
    package = folder / "emcl_kernels"
    (package / "_C").mkdir(parents=True, exist_ok=True)
    source = ROOT / "emcl_kernels"
    wanted = {path.name: path for path in source.iterdir() if path.name not in ("_C", "__pycache__")}
    for path in package.iterdir():
        if path.is_symlink() and path.name not in wanted:
            path.unlink()
    for name, path in wanted.items():
        link = package / name
        if not link.is_symlink():
            link.symlink_to(path)


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
