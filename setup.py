"""Build the native parts: emcl_kernels/_C/libemcl_cpu.so and the module emcl_kernels._bindings.

The package works without them, so whatever cannot be built is left out and the installation goes on. The reason is
printed, and written to emcl_kernels/_C/build_info.json, from where `python -m emcl_kernels.info` shows it.

EMCL_BUILD_CPU=0 leaves the C++ CPU library out. CXX chooses the compiler.
"""

import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPU_LIBRARY = "emcl_kernels/_C/libemcl_cpu.so"
BUILD_INFO = "emcl_kernels/_C/build_info.json"
BINDINGS = f"emcl_kernels/_bindings{sysconfig.get_config_var('EXT_SUFFIX')}"

COMMON_FLAGS = ["-O3", "-fPIC", "-fvisibility=hidden", "-Wall"]
# Torch's stable ABI: one build serves every torch from 2.10 on.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
# Contraction to FMA only: -ffast-math would reorder sums, and the same inputs must give the same bits.
CPU_FLAGS = ["-std=c++20", *COMMON_FLAGS, "-ffp-contract=fast", "-fno-math-errno", *STABLE_ABI]
BINDINGS_FLAGS = ["-std=c++17", *COMMON_FLAGS]
# kernels.cpp is compiled once for each of these; the library picks one when it is loaded.
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mf16c"],
}


class CannotBuild(Exception):
    """Why a target is left out, and the way to get it."""


@dataclass
class Object:
    """One compilation: a source file, with its flags."""

    source: Path
    output: Path
    flags: list[str]


@dataclass
class Target:
    """One shared library, or the reason why it is left out."""

    name: str
    file: str
    objects: list[Object] = field(default_factory=list)
    link_flags: list[str] = field(default_factory=list)
    isas: list[str] = field(default_factory=list)
    reason: str = ""

    def describe(self) -> dict[str, Any]:
        """The target's entry in build_info.json; no path of the building machine is in it."""
        flags = sorted({flag for each in self.objects for flag in each.flags if not flag.startswith("-I")})
        return {"built": not self.reason, "file": Path(self.file).name, "reason": self.reason,
                "isas": self.isas, "flags": flags}  # fmt: skip


class BuildNative(build_ext):
    """Build what can be built; explain the rest."""

    def run(self) -> None:
        temp = self._temp_folder()
        temp.mkdir(parents=True, exist_ok=True)
        out = ROOT if self.inplace else Path(self.build_lib)
        targets = [self._plan(plan_cpu_library, "cpu", CPU_LIBRARY, temp),
                   self._plan(plan_bindings, "bindings", BINDINGS, temp)]  # fmt: skip
        compiler = find_compiler()
        build(targets, compiler, temp)

        for target in targets:
            place(target, temp, out)
        info = {"version": self.distribution.get_version(), "python": platform.python_version(),
                "machine": platform.machine(), "torch": torch_version(),
                "compiler": describe_compiler(compiler),
                "targets": {target.name: target.describe() for target in targets}}  # fmt: skip
        (out / BUILD_INFO).parent.mkdir(parents=True, exist_ok=True)
        (out / BUILD_INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        for target in targets:
            print(f"emcl: not built: {target.file}: {target.reason}" if target.reason else f"emcl: built {target.file}")

    def get_outputs(self) -> list[str]:
        """Files in the build folder, for the wheel."""
        files = (CPU_LIBRARY, BINDINGS, BUILD_INFO)
        root = ROOT if self.inplace else Path(self.build_lib)
        return [os.path.join(self.build_lib, file) for file in files if (root / file).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Where the files of `get_outputs` really are, for an editable installation."""
        if not self.inplace:
            return {}
        return {output: os.path.relpath(output, self.build_lib) for output in self.get_outputs()}

    def _temp_folder(self) -> Path:
        # An editable installation asks for a new folder each time; a lasting one keeps rebuilds incremental.
        tag = f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        return ROOT / "build" / tag if self.inplace else Path(self.build_temp).resolve() / tag

    def _plan(self, plan: Any, name: str, file: str, temp: Path) -> Target:
        target = Target(name, file)
        try:
            plan(target, temp, self.distribution.get_version())
        except CannotBuild as why:
            target.objects, target.reason = [], str(why)
        return target


def plan_cpu_library(target: Target, temp: Path, version: str) -> None:
    """Torch's stable ABI, without Python: every csrc/cpu/*.cpp, kernels.cpp once per instruction set."""
    if os.environ.get("EMCL_BUILD_CPU") == "0":
        raise CannotBuild("EMCL_BUILD_CPU=0 was set; reinstall without it")
    require_unix()
    sources = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    if not sources:
        raise CannotBuild("csrc/cpu has no sources; install from a complete checkout or sdist")
    include, library = torch_paths()
    flags = [*CPU_FLAGS, f"-I{ROOT / 'csrc'}", *(f"-I{path}" for path in include)]

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    target.isas = list(ISA_FLAGS) if x86 else ["baseline"]
    for source in sources:
        if source.name == "kernels.cpp":
            for isa in target.isas:
                output = temp / f"kernels.{isa}.o"
                target.objects.append(Object(source, output, [*flags, f"-DEMCL_ISA={isa}", *ISA_FLAGS[isa]]))
        else:
            target.objects.append(Object(source, temp / f"{source.stem}.o", flags))
    # No rpath: torch is imported, and so in the process, before the library is loaded.
    target.link_flags = [f"-L{library}", "-ltorch", "-ltorch_cpu", "-lc10"]


def plan_bindings(target: Target, temp: Path, version: str) -> None:
    """The pybind11 module: build information and the cost model, nothing with tensors."""
    require_unix()
    if importlib.util.find_spec("pybind11") is None:
        raise CannotBuild("pybind11 is not installed; pip install pybind11 and reinstall with --no-build-isolation")
    import pybind11

    include = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = [*BINDINGS_FLAGS, f'-DEMCL_VERSION="{version}"', *(f"-I{path}" for path in include)]
    target.objects = [Object(ROOT / "csrc" / "bindings.cpp", temp / "bindings.o", flags)]
    # Symbols of the interpreter are found in the process; macOS wants to be told.
    target.link_flags = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []


def require_unix() -> None:
    if sys.platform == "win32":
        raise CannotBuild("building on Windows is not supported; use WSL")


def torch_version() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return str(torch.__version__)


def torch_paths() -> tuple[list[str], str]:
    """Torch's include folders and the folder of its libraries."""
    version = torch_version()
    if version is None:
        raise CannotBuild("torch is not installed where the build runs; reinstall with --no-build-isolation")
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 10):
        raise CannotBuild(f"torch {version} is older than the stable ABI; install torch 2.10 or later and reinstall")
    from torch.utils.cpp_extension import include_paths, library_paths

    return include_paths(), library_paths()[0]


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of the usual names on PATH."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def describe_compiler(compiler: str | None) -> str | None:
    if compiler is None:
        return None
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]


def build(targets: list[Target], compiler: str | None, temp: Path) -> None:
    """Compile and link the targets into `temp`; a target that fails gets its reason."""
    wanted = [target for target in targets if not target.reason]
    if compiler is None:
        looked_for = os.environ.get("CXX") or "c++, g++, clang++"
        for target in wanted:
            target.reason = f"no C++ compiler was found ({looked_for}); install g++ or set CXX, and reinstall"
        return
    run_steps = run_directly if importlib.util.find_spec("ninja") is None else run_ninja
    for target in wanted:
        try:
            run_steps(target, compiler, temp)
        except subprocess.CalledProcessError as error:
            lines = (error.stdout or "").strip().splitlines()
            print("\n".join(lines))
            first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else str(error))
            target.reason = f"compilation failed: {first.strip()}; correct this and reinstall, -v shows all of it"


def compile_command(compiler: str, each: Object) -> list[str]:
    return [compiler, *each.flags, "-c", str(each.source), "-o", str(each.output)]


def link_command(compiler: str, target: Target, temp: Path) -> list[str]:
    objects = [str(each.output) for each in target.objects]
    return [compiler, "-shared", *objects, "-o", str(temp / Path(target.file).name), *target.link_flags]


def run_ninja(target: Target, compiler: str, temp: Path) -> None:
    """Compile in parallel, and only what has changed."""
    from ninja import BIN_DIR, ninja_syntax

    file = temp / f"{target.name}.ninja"
    with file.open("w", encoding="utf-8") as stream:
        writer = ninja_syntax.Writer(stream, width=10_000)  # type: ignore[arg-type]
        writer.variable("builddir", str(temp))
        writer.rule("compile", "$arguments -MMD -MF $out.d", depfile="$out.d", deps="gcc", description="compile $out")
        writer.rule("link", "$arguments", description="link $out")
        for each in target.objects:
            arguments = ninja_syntax.escape(shlex.join(compile_command(compiler, each)))
            writer.build([str(each.output)], "compile", [str(each.source)], variables={"arguments": arguments})
        arguments = ninja_syntax.escape(shlex.join(link_command(compiler, target, temp)))
        objects = [str(each.output) for each in target.objects]
        writer.build([str(temp / Path(target.file).name)], "link", objects, variables={"arguments": arguments})
    subprocess.run([os.path.join(BIN_DIR, "ninja"), "-f", str(file)], check=True, text=True,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def run_directly(target: Target, compiler: str, temp: Path) -> None:
    """Where ninja is missing: compile everything anew."""

    def run(command: list[str]) -> None:
        subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, [compile_command(compiler, each) for each in target.objects]))
    run(link_command(compiler, target, temp))


def place(target: Target, temp: Path, out: Path) -> None:
    """Put a library where it is loaded from; one from an earlier build that is not built now is removed."""
    destination = out / target.file
    if target.reason:
        destination.unlink(missing_ok=True)
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Copied beside it and renamed: a process that has the old library loaded keeps it whole.
    partial = destination.with_suffix(".partial")
    shutil.copy2(temp / Path(target.file).name, partial)
    os.replace(partial, destination)


setup(
    # Tells setuptools that the package has native parts; BuildNative decides what they are.
    ext_modules=[Extension("emcl_kernels._bindings", ["csrc/bindings.cpp"], optional=True)],
    cmdclass={"build_ext": BuildNative},
)
