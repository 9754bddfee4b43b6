"""Build the native parts: libemcl_cpu.so and libemcl_cuda.so in emcl_kernels/_C, and the module emcl_kernels._bindings.

The package works without them, so whatever cannot be built is left out and the installation goes on. The reason is
printed, and written to emcl_kernels/_C/build_info.json, from where `python -m emcl_kernels.info` shows it.

CXX                   the C++ compiler
CUDA_HOME, CUDA_PATH  the CUDA toolkit; without them, that of the nvcc on PATH
EMCL_CUDA_ARCHS       what the CUDA kernels are compiled for, "80;90+PTX" where it is not set; also "90a", "100", "120"
EMCL_BUILD_CPU=0      leaves the C++ library out
EMCL_BUILD_CUDA=0|1   leaves the CUDA library out, or makes it an error that it cannot be built
EMCL_BUILD_EMULATED=1 builds libemcl_emulated.so too, the CUDA kernels for tests on the CPU; in a checkout only
"""

import importlib.util
import json
import os
import platform
import re
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
CUDA_LIBRARY = "emcl_kernels/_C/libemcl_cuda.so"
EMULATED_LIBRARY = "emcl_kernels/_C/libemcl_emulated.so"
BUILD_INFO = "emcl_kernels/_C/build_info.json"
BINDINGS = f"emcl_kernels/_bindings{sysconfig.get_config_var('EXT_SUFFIX')}"

COMMON_FLAGS = ["-O3", "-fPIC", "-fvisibility=hidden", "-Wall"]
# Torch's stable ABI: one build serves every torch from 2.10 on.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
# Contraction to FMA only: -ffast-math would reorder sums, and the same inputs must give the same bits.
CPU_FLAGS = ["-std=c++20", *COMMON_FLAGS, "-ffp-contract=fast", "-fno-math-errno", *STABLE_ABI]
BINDINGS_FLAGS = ["-std=c++17", *COMMON_FLAGS]
CUDA_FLAGS = ["-std=c++20", "-O3", "-DUSE_CUDA", "-DEMCL_CUDA", "-DEMCL_KEY=CUDA", *STABLE_ABI, "-Xptxas=-v",
              "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]  # fmt: skip
# No _FORTIFY_SOURCE, which some compilers set themselves: it takes a jump to another fiber's stack for an attack.
EMULATED_FLAGS = ["-std=c++20", *COMMON_FLAGS, "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-DEMCL_CUDA",
                  "-DEMCL_EMULATED", "-DEMCL_NAMESPACE=emcl_emulated", *STABLE_ABI]  # fmt: skip
DEFAULT_ARCHS = "80;90+PTX"
OLDEST_ARCH = 80
# cpu/kernels.cpp is compiled once for each of these; the library picks one when it is loaded.
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mf16c"],
}


class CannotBuild(Exception):
    """Why a target is left out, and the way to get it."""


class NotAskedFor(CannotBuild):
    """A target that is left out without a word."""


@dataclass
class Object:
    """One compilation: a source file, with its flags, and where what nvcc says of its kernels is kept."""

    source: Path
    output: Path
    flags: list[str]
    report: Path | None = None


@dataclass
class Target:
    """One shared library, or the reason why it is left out."""

    name: str
    file: str
    objects: list[Object] = field(default_factory=list)
    link_flags: list[str] = field(default_factory=list)
    compiler: list[str] = field(default_factory=list)  # the command, where it is not the C++ compiler
    isas: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    asked_for: bool = True

    def describe(self) -> dict[str, Any]:
        """The target's entry in build_info.json; no path of the building machine is in it."""
        paths = ("-I", "-fmacro-prefix-map", "-Xcompiler=-fmacro-prefix-map")
        flags = sorted({flag for each in self.objects for flag in each.flags if not flag.startswith(paths)})
        return {"built": not self.reason, "file": Path(self.file).name, "reason": self.reason,
                "isas": self.isas, "flags": flags, **self.facts}  # fmt: skip


class BuildNative(build_ext):
    """Build what can be built; explain the rest."""

    def run(self) -> None:
        temp = self._temp_folder()
        temp.mkdir(parents=True, exist_ok=True)
        out = ROOT if self.inplace else Path(self.build_lib)
        targets = [self._plan(plan_cpu_library, "cpu", CPU_LIBRARY, temp),
                   self._plan(plan_cuda_library, "cuda", CUDA_LIBRARY, temp),
                   self._plan(plan_bindings, "bindings", BINDINGS, temp)]  # fmt: skip
        if self.inplace:
            targets.append(self._plan(plan_emulated_library, "emulated", EMULATED_LIBRARY, temp))
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
        for target in filter(lambda target: target.asked_for, targets):
            for_what = f" for {', '.join(target.isas)}" if target.isas else ""
            print(f"emcl: not built: {target.file}: {target.reason}" if target.reason else
                  f"emcl: built {target.file}{for_what}")  # fmt: skip
        if cuda_wanted() and (reason := targets[1].reason):
            raise SystemExit(f"emcl: EMCL_BUILD_CUDA=1 was set, but {CUDA_LIBRARY} cannot be built: {reason}")

    def get_outputs(self) -> list[str]:
        """Files in the build folder, for the wheel."""
        files = (CPU_LIBRARY, CUDA_LIBRARY, BINDINGS, BUILD_INFO)
        root = ROOT if self.inplace else Path(self.build_lib)
        return [os.path.join(self.build_lib, file) for file in files if (root / file).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Where the files of `get_outputs` really are, for an editable installation."""
        if not self.inplace:
            return {}
        return {output: os.path.relpath(output, self.build_lib) for output in self.get_outputs()}

    def _temp_folder(self) -> Path:
        # An installation asks for a new folder each time; a lasting one keeps rebuilds incremental.
        return ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def _plan(self, plan: Any, name: str, file: str, temp: Path) -> Target:
        target = Target(name, file)
        try:
            plan(target, temp, self.distribution.get_version())
        except CannotBuild as why:
            target.objects, target.reason, target.asked_for = [], str(why), not isinstance(why, NotAskedFor)
        return target


def plan_cpu_library(target: Target, temp: Path, version: str) -> None:
    """Torch's stable ABI, without Python: the ops and every csrc/cpu/*.cpp, kernels.cpp once per instruction set."""
    if os.environ.get("EMCL_BUILD_CPU") == "0":
        raise CannotBuild("EMCL_BUILD_CPU=0 was set; reinstall without it")
    require_unix()
    kernels = ROOT / "csrc" / "cpu" / "kernels.cpp"
    if not kernels.exists():
        raise CannotBuild("csrc/cpu has no sources; install from a complete checkout or sdist")
    sources = sorted(set(kernels.parent.glob("*.cpp")) - {kernels})
    include, library = torch_paths()
    flags = [*CPU_FLAGS, *without_paths(include), *includes(include)]

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    target.isas = list(ISA_FLAGS) if x86 else ["baseline"]
    for isa in target.isas:  # first, because they take the longest
        output = temp / f"kernels.{isa}.o"
        target.objects.append(Object(kernels, output, [*flags, f"-DEMCL_ISA={isa}", *ISA_FLAGS[isa]]))
    for source in [*sources, *op_sources()]:
        target.objects.append(Object(source, temp / f"{source.stem}.o", flags))
    # No rpath: torch is imported, and so in the process, before the library is loaded.
    target.link_flags = [f"-L{library}", "-ltorch", "-ltorch_cpu", "-lc10"]


def plan_cuda_library(target: Target, temp: Path, version: str) -> None:
    """The CUDA kernels, for every architecture asked for. Needs nvcc, but neither a GPU nor a torch with CUDA."""
    wanted = cuda_wanted()
    architectures = cuda_architectures()
    if wanted is False:
        raise CannotBuild("EMCL_BUILD_CUDA=0 was set; reinstall without it")
    require_unix()
    sources = cuda_sources()
    nvcc = find_nvcc()
    target.facts["nvcc"], runtime = check_nvcc(nvcc, architectures)
    include, library = torch_paths()
    flags = [*CUDA_FLAGS, *includes(include), f"-Xcompiler={','.join(without_paths(include))}"]

    target.isas = [architecture for architecture, _ in architectures]
    generate = [flag for _, flag in architectures]
    for source in sources:
        output = temp / f"cuda.{source.stem}.o"
        target.objects.append(Object(source, output, [*flags, *generate], output.with_suffix(".ptxas")))
    for source in op_sources():  # plain C++
        target.objects.append(Object(source, temp / f"cuda.{source.stem}.op.o", flags))
    # No kernels in it, so one architecture is enough.
    names = " ".join(target.isas)
    flags = [*flags, "-x=cu", generate[0], f'-DEMCL_CUDA_ARCHITECTURES="{names}"']
    target.objects.append(Object(ROOT / "csrc" / "cuda" / "library.cpp", temp / "cuda.library.o", flags))
    target.compiler = [nvcc, *(["-ccbin", os.environ["CXX"]] if os.environ.get("CXX") else [])]
    # CUDA's runtime is in the library and seen by nobody else; torch may bring another one. Through libtorch.so, which
    # nothing here uses by itself, the symbols of torch's own CUDA library are found.
    target.link_flags = ["-Wl,--exclude-libs,ALL,--no-as-needed", f"-L{library}", "-ltorch", "-ltorch_cpu", "-lc10",
                         f"-L{runtime}", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]  # fmt: skip


def plan_emulated_library(target: Target, temp: Path, version: str) -> None:
    """The CUDA kernels as C++, in the emulator, for CPU tensors."""
    if os.environ.get("EMCL_BUILD_EMULATED") != "1":
        raise NotAskedFor("EMCL_BUILD_EMULATED=1 was not set; it is for tests: python setup.py build_ext --inplace")
    require_unix()
    folder = ROOT / "csrc" / "cuda"
    include, library = torch_paths()
    flags = [*EMULATED_FLAGS, *without_paths(include), *includes(include)]
    for source in cuda_sources():
        target.objects.append(Object(source, temp / f"emulated.{source.stem}.o", [*flags, "-x", "c++"]))
    for source in op_sources():
        target.objects.append(Object(source, temp / f"emulated.{source.stem}.op.o", flags))
    for source in (folder / "library.cpp", folder / "emulator" / "emulator.cpp"):
        target.objects.append(Object(source, temp / f"emulated.{source.stem}.o", flags))
    target.link_flags = [f"-L{library}", "-ltorch", "-ltorch_cpu", "-lc10"]


def op_sources() -> list[Path]:
    """The ops: the same files for every library, each of which registers itself."""
    return sorted((ROOT / "csrc" / "ops").glob("*.cpp"))


def includes(torch: list[str]) -> list[str]:
    """Our own headers, the public ones, and torch's."""
    return [f"-I{path}" for path in (ROOT / "csrc", ROOT / "emcl_kernels" / "include", *torch)]


def cuda_sources() -> list[Path]:
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    if not sources:
        raise CannotBuild("csrc/cuda has no kernels; install from a complete checkout or sdist")
    return sources


def cuda_wanted() -> bool | None:
    """EMCL_BUILD_CUDA: whether the CUDA library must be built, must not, or (None) is built where it can be."""
    value = os.environ.get("EMCL_BUILD_CUDA", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f'emcl: EMCL_BUILD_CUDA is "{value}"; expected 0 or 1')
    return bool(int(value)) if value else None


def cuda_architectures() -> list[tuple[str, str]]:
    """Name and flag of nvcc for each of EMCL_CUDA_ARCHS. "+PTX": later ones compile it when it is loaded."""
    value = os.environ.get("EMCL_CUDA_ARCHS") or DEFAULT_ARCHS
    result = []
    for item in re.split(r"[;, ]+", value.strip("; ,")):
        found = re.fullmatch(r"(\d{2,3})([af]?)(\+PTX)?", item)
        if found is None or int(found[1]) < OLDEST_ARCH:
            raise SystemExit(f'emcl: EMCL_CUDA_ARCHS is "{value}", where "{item}" is no architecture from '
                             f'{OLDEST_ARCH} on; expected such as "{DEFAULT_ARCHS}", "90a" or "120+PTX"')  # fmt: skip
        number = found[1] + found[2]
        code = f"[sm_{number},compute_{number}]" if found[3] else f"sm_{number}"
        result.append((item, f"-gencode=arch=compute_{number},code={code}"))
    return result


def find_nvcc() -> str:
    """The nvcc of CUDA_HOME, of CUDA_PATH, or the one on PATH."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            if found := shutil.which("nvcc", path=os.path.join(home, "bin")):
                return found
            raise CannotBuild(f"{variable} is {home}, which has no bin/nvcc; set it to a CUDA toolkit, or unset it")
    if found := shutil.which("nvcc"):
        return found
    raise CannotBuild("nvcc was not found at install (CUDA_HOME, CUDA_PATH, PATH); set CUDA_HOME and reinstall")


def check_nvcc(nvcc: str, architectures: list[tuple[str, str]]) -> tuple[str, Path]:
    """Nvcc's version and the folder of CUDA's runtime, where it has CUDA's headers and knows the architectures."""

    def ask(*arguments: str) -> str:
        done = subprocess.run([nvcc, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            last = done.stdout.strip().rpartition("\n")[2]
            raise CannotBuild(f"{nvcc} does not run: {last}; set CUDA_HOME and reinstall")
        return done.stdout

    # It may be a script that starts another one, so where it looks for files is asked and not guessed.
    plan = ask("--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    system = ("/usr/include", "/usr/lib", f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}")
    folders = [Path(folder) for folder in (*re.findall(r'"-[IL]([^"]+)"', plan), *system)]
    holders = {file: [folder for folder in folders if (folder / file).exists()]
               for file in ("cuda_runtime.h", "libcudart_static.a")}  # fmt: skip
    for file, found in holders.items():
        if not found:
            raise CannotBuild(f"{nvcc} has no {file}; install the whole CUDA toolkit, or set CUDA_HOME, and reinstall")
    known = ask("--list-gpu-arch").split()
    for name, flag in architectures:
        if re.sub(r"[af]?,.*", "", flag.partition("arch=")[2]) not in known:
            message = f"{nvcc} does not know {name}, only {', '.join(known)}"
            if os.environ.get("EMCL_CUDA_ARCHS"):
                raise SystemExit(f"emcl: EMCL_CUDA_ARCHS names {name}: {message}")
            raise CannotBuild(f"{message}; set CUDA_HOME to a later toolkit, or EMCL_CUDA_ARCHS, and reinstall")
    release = re.search(r"release ([\d.]+)", ask("--version"))
    return release[1] if release else "unknown", holders["libcudart_static.a"][0].resolve()


def plan_bindings(target: Target, temp: Path, version: str) -> None:
    """The pybind11 module: build information and the cost model, nothing with tensors."""
    require_unix()
    if importlib.util.find_spec("pybind11") is None:
        raise CannotBuild("pybind11 is not installed; pip install pybind11 and reinstall with --no-build-isolation")
    import pybind11

    include = [str(ROOT / "csrc"), pybind11.get_include(), sysconfig.get_path("include")]
    flags = [*BINDINGS_FLAGS, *without_paths(include), f'-DEMCL_VERSION="{version}"',
             *(f"-I{path}" for path in include)]  # fmt: skip
    target.objects = [Object(ROOT / "csrc" / "bindings.cpp", temp / "bindings.o", flags)]
    # Symbols of the interpreter are found in the process; macOS wants to be told.
    target.link_flags = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []


def without_paths(include: list[str]) -> list[str]:
    """Flags that keep this machine's folders out of the messages that headers compile in."""
    return [f"-fmacro-prefix-map={folder}/=" for folder in (ROOT, *include)]


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
            first = first.strip().replace(f"{ROOT}/", "")
            target.reason = f"compilation failed: {first}; correct this and reinstall, -v shows all of it"


def compile_command(target: Target, compiler: str, each: Object) -> list[str]:
    return [*(target.compiler or [compiler]), *each.flags, "-c", str(each.source), "-o", str(each.output)]


def link_command(target: Target, compiler: str, temp: Path) -> list[str]:
    objects = [str(each.output) for each in target.objects]
    return [compiler, "-shared", *objects, "-o", str(temp / Path(target.file).name), *target.link_flags]


def run_ninja(target: Target, compiler: str, temp: Path) -> None:
    """Compile in parallel, and only what has changed."""
    from ninja import BIN_DIR, ninja_syntax

    file = temp / f"{target.name}.ninja"
    with file.open("w", encoding="utf-8") as stream:
        writer = ninja_syntax.Writer(stream, width=10_000)  # type: ignore[arg-type]
        writer.variable("builddir", str(temp))
        writer.rule("compile", "$arguments -MMD -MF $out.d $keep", depfile="$out.d", deps="gcc",
                    description="compile $out")  # fmt: skip
        writer.rule("link", "$arguments", description="link $out")
        for each in target.objects:
            arguments = ninja_syntax.escape(shlex.join(compile_command(target, compiler, each)))
            report = ninja_syntax.escape(shlex.quote(str(each.report)))
            keep = f"> {report} 2>&1 || (cat {report}; false)" if each.report else ""
            writer.build([str(each.output)], "compile", [str(each.source)],
                         variables={"arguments": arguments, "keep": keep})  # fmt: skip
        arguments = ninja_syntax.escape(shlex.join(link_command(target, compiler, temp)))
        objects = [str(each.output) for each in target.objects]
        writer.build([str(temp / Path(target.file).name)], "link", objects, variables={"arguments": arguments})
    subprocess.run([os.path.join(BIN_DIR, "ninja"), "-f", str(file)], check=True, text=True,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def run_directly(target: Target, compiler: str, temp: Path) -> None:
    """Where ninja is missing: compile everything anew."""

    def run(command: list[str]) -> str:
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout

    def compile(each: Object) -> None:
        said = run(compile_command(target, compiler, each))
        if each.report:
            each.report.write_text(said, encoding="utf-8")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile, target.objects))
    run(link_command(target, compiler, temp))


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
