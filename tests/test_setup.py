"""The build in a copy of the checkout: with compilers, without them, and with sources that do not compile."""

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import emcl_kernels

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "emcl_kernels/_C/libemcl_cpu.so"
CUDA_LIBRARY = "emcl_kernels/_C/libemcl_cuda.so"
EMULATED_LIBRARY = "emcl_kernels/_C/libemcl_emulated.so"
BUILD_INFO = "emcl_kernels/_C/build_info.json"
# It is the build that is tested: sources that compile in no time stand in for the real ones.
TINY_SOURCES = {
    "csrc/value.h": "#define VALUE 7\n",
    "csrc/cpu/kernels.cpp": """\
#include "value.h"
#define PASTE(a, b) a##b
#define NAME(isa) PASTE(value_, isa)
extern "C" __attribute__((visibility("default"))) int NAME(EMCL_ISA)() { return VALUE; }
""",
    "csrc/cpu/dispatch.cpp": 'extern "C" int hidden() { return 7; }\n',
    "csrc/ops/seven.cpp": 'extern "C" __attribute__((visibility("default"))) int seven() { return 7; }\n',
    "csrc/bindings.cpp": """\
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_bindings", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__bindings() { return PyModule_Create(&definition); }
""",
}
TINY_CUDA_SOURCES = {
    "csrc/cuda/rows/kernels.cu": """\
#include "value.h"
extern "C" __attribute__((visibility("default"))) int cuda_value() { return VALUE; }
""",
    "csrc/cuda/library.cpp": """\
#ifdef EMCL_EMULATED
#define EMCL_CUDA_ARCHITECTURES "emulated"
#endif
extern "C" __attribute__((visibility("default"))) const char* architectures() { return EMCL_CUDA_ARCHITECTURES; }
""",
    "csrc/cuda/emulator/emulator.cpp": "",
}
# What setup.py asks of nvcc; it compiles with the C++ compiler, and reports as nvcc's assembler does.
NVCC = f"""\
#!{sys.executable}
import re, subprocess, sys
from pathlib import Path

toolkit, arguments = Path(__file__).resolve().parent.parent, sys.argv[1:]
if arguments == ["--version"]:
    print(f"Cuda compilation tools, release {{toolkit.name}}, V{{toolkit.name}}.88")
elif arguments == ["--list-gpu-arch"]:
    print("compute_80", "compute_90", "compute_120", sep="\\n")
elif "--dryrun" in arguments:
    print(f'#$ INCLUDES="-I{{toolkit}}/include"', f'#$ LIBRARIES=  "-L{{toolkit}}/lib"', sep="\\n")
else:
    for architecture in re.findall("code=.?sm_([0-9a-f]+)", " ".join(arguments)):
        print(f"ptxas said this of sm_{{architecture}}")
    own = ("-gencode", "-Xptxas", "-Xcompiler", "-x=")
    known = [argument for argument in arguments if not argument.startswith(own)]
    sys.exit(subprocess.call(["c++", "-x", "c++", "-fPIC", "-fvisibility=hidden", *known]))
"""
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler on this machine"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a build needs."""
    copy = tmp_path / "checkout"
    for folder in ("emcl_kernels", "emcl_train"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "_C", "*.so"))
    for file in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / file, copy / file)
    (copy / "README.md").write_text("# EMCL\n")
    for source, content in TINY_SOURCES.items():
        (copy / source).parent.mkdir(parents=True, exist_ok=True)
        (copy / source).write_text(content)
    return copy


@pytest.fixture
def cuda_checkout(checkout: Path) -> Path:
    for source, content in TINY_CUDA_SOURCES.items():
        (checkout / source).parent.mkdir(parents=True, exist_ok=True)
        (checkout / source).write_text(content)
    return checkout


def toolkit(path: Path) -> Path:
    """A CUDA toolkit as far as setup.py looks; its version is the name of its folder."""
    for folder in ("bin", "include", "lib"):
        (path / folder).mkdir(parents=True)
    (path / "bin" / "nvcc").write_text(NVCC)
    (path / "bin" / "nvcc").chmod(0o755)
    (path / "include" / "cuda_runtime.h").touch()
    (path / "lib" / "libcudart_static.a").write_text("!<arch>\n")
    return path


def run(checkout: Path, *command: str, compiler: bool = True, fails: bool = False, **environment: str) -> str:
    """Run python in the copy and return what it prints; without a compiler, nothing at all is on PATH."""
    own = ("EMCL_", "CXX", "CUDA_HOME", "CUDA_PATH")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    if not compiler:
        (checkout / "empty").mkdir(exist_ok=True)
        variables["PATH"] = str(checkout / "empty")
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=variables | environment, capture_output=True, text=True
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + (done.stderr if fails else "")


def build(checkout: Path, *, without: tuple[str, ...] = (), **environment: Any) -> str:
    """Build in place, as if the modules in `without` were not installed."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({without!r}))"
    start = "import runpy; sys.argv = ['setup.py', '-q', 'build_ext', '--inplace']; runpy.run_path('setup.py')"
    return run(checkout, "-c", f"{hide}; {start}", **environment)


def targets(checkout: Path) -> dict[str, Any]:
    return dict(json.loads((checkout / BUILD_INFO).read_text())["targets"])


@needs_compiler
@pytest.mark.parametrize("without", [(), ("ninja",)], ids=["ninja", "without ninja"])
def test_kernels_are_compiled_once_for_each_instruction_set(checkout: Path, without: tuple[str, ...]) -> None:
    assert f"emcl: built {LIBRARY}" in build(checkout, without=without)
    library = ctypes.CDLL(str(checkout / LIBRARY))
    isas = targets(checkout)["cpu"]["isas"]
    assert isas == (["baseline", "avx2", "avx512"] if platform.machine() == "x86_64" else ["baseline"])
    assert [getattr(library, f"value_{isa}")() for isa in isas] == [7] * len(isas)
    assert library.seven() == 7
    assert not hasattr(library, "hidden")

    for path in (str(checkout), sys.prefix):  # what is built must work on another machine
        assert path not in (checkout / BUILD_INFO).read_text()
        assert path.encode() not in (checkout / LIBRARY).read_bytes()


@needs_compiler
def test_a_changed_header_is_compiled_again(checkout: Path) -> None:
    build(checkout)
    before = (checkout / LIBRARY).read_bytes()
    (checkout / "csrc" / "value.h").write_text("#define VALUE 8\n")
    build(checkout)
    assert (checkout / LIBRARY).read_bytes() != before


def test_without_a_compiler_the_package_is_built_and_works(checkout: Path) -> None:
    printed = build(checkout, compiler=False)
    assert f"emcl: not built: {LIBRARY}: no C++ compiler was found (c++, g++, clang++); install g++" in printed
    assert {target["built"] for target in targets(checkout).values()} == {False}

    use = "import torch; from emcl_kernels import em_project, info; print(info.describe())"
    described = run(checkout, "-c", f"{use}; print(em_project(torch.ones(3, 4), torch.ones(2))[0].shape)")
    assert "libemcl_cpu.so: no: no C++ compiler was found" in described
    assert re.search(r"em_project +cpu +reference", described)
    assert "torch.Size([3, 4])" in described


@needs_compiler
def test_sources_that_do_not_compile_are_explained_and_leave_no_old_library(checkout: Path) -> None:
    (checkout / LIBRARY).parent.mkdir()
    (checkout / LIBRARY).write_text("of an earlier build")
    (checkout / "csrc" / "cpu" / "broken.cpp").write_text("#error on purpose\n")
    printed = build(checkout)
    assert re.search("emcl: not built: .*compilation failed: .*#error on purpose", printed)
    assert "#error on purpose" in targets(checkout)["cpu"]["reason"]
    assert not (checkout / LIBRARY).exists()
    assert targets(checkout)["bindings"]["built"]


@pytest.mark.parametrize(
    ("without", "environment", "reasons"),
    [
        (
            ("pybind11",),
            {"EMCL_BUILD_CPU": "0", "EMCL_BUILD_CUDA": "0"},
            {
                "cpu": "EMCL_BUILD_CPU=0 was set",
                "cuda": "EMCL_BUILD_CUDA=0 was set",
                "bindings": "pybind11 is not installed",
            },
        ),
        ((), {"CXX": "no-such"}, dict.fromkeys(("cpu", "cuda", "bindings"), "no C++ compiler was found (no-such)")),
        (("torch",), {}, dict.fromkeys(("cpu", "cuda"), "torch is not installed where the build runs")),
        ((), {"CUDA_HOME": "/nowhere"}, {"cuda": "CUDA_HOME is /nowhere, which has no bin/nvcc; set it to a CUDA"}),
        ((), {"compiler": False}, {"cuda": "nvcc was not found at install (CUDA_HOME, CUDA_PATH, PATH)"}),
    ],
    ids=["asked not to", "wrong CXX", "without torch", "wrong CUDA_HOME", "without nvcc"],
)
def test_what_is_left_out_has_its_reason(
    cuda_checkout: Path,
    without: tuple[str, ...],
    environment: dict[str, Any],
    reasons: dict[str, str],
    tmp_path: Path,
) -> None:
    environment = {"CUDA_HOME": str(toolkit(tmp_path / "13.7"))} | environment
    if "compiler" in environment:
        del environment["CUDA_HOME"]
    printed = build(cuda_checkout, without=without, **environment)
    for target, reason in reasons.items():
        assert targets(cuda_checkout)[target]["reason"].startswith(reason)
        assert f": {reason}" in printed


@needs_compiler
@pytest.mark.parametrize("without", [(), ("ninja",)], ids=["ninja", "without ninja"])
def test_the_cuda_library_is_built_and_what_its_kernels_use_is_kept(
    cuda_checkout: Path, without: tuple[str, ...], tmp_path: Path
) -> None:
    home = toolkit(tmp_path / "13.7")
    printed = build(cuda_checkout, without=without, CUDA_HOME=str(home))
    assert f"emcl: built {CUDA_LIBRARY} for 80, 90+PTX" in printed
    library = ctypes.CDLL(str(cuda_checkout / CUDA_LIBRARY))
    library.architectures.restype = ctypes.c_char_p
    assert library.architectures() == b"80 90+PTX"
    assert library.cuda_value() == library.seven() == 7
    info = targets(cuda_checkout)["cuda"]
    assert info["nvcc"] == "13.7"
    (report,) = cuda_checkout.glob("build/native-*/cuda.kernels.ptxas")
    assert report.read_text() == "ptxas said this of sm_80\nptxas said this of sm_90\n"
    for path in (str(cuda_checkout), sys.prefix, str(home)):  # what is built must work on another machine
        assert path not in (cuda_checkout / BUILD_INFO).read_text()
        assert path.encode() not in (cuda_checkout / CUDA_LIBRARY).read_bytes()


@needs_compiler
def test_architectures_are_those_asked_for(cuda_checkout: Path, tmp_path: Path) -> None:
    build(cuda_checkout, CUDA_HOME=str(toolkit(tmp_path / "13.7")), EMCL_CUDA_ARCHS="80, 90a;120+PTX;")
    used = [flag for flag in targets(cuda_checkout)["cuda"]["flags"] if "gencode" in flag]
    code = {"80": "sm_80", "90a": "sm_90a", "120": "[sm_120,compute_120]"}
    assert set(used) == {f"-gencode=arch=compute_{number},code={code[number]}" for number in code}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"EMCL_CUDA_ARCHS": "8.0"}, 'EMCL_CUDA_ARCHS is "8.0", where "8.0" is no architecture from 80 on; expected'),
        ({"EMCL_CUDA_ARCHS": "80;70"}, 'where "70" is no architecture from 80 on; expected such as "80;90.PTX", "90a"'),
        (
            {"EMCL_CUDA_ARCHS": "100"},
            "EMCL_CUDA_ARCHS names 100: .*nvcc does not know 100, only compute_80, compute_90",
        ),
        ({"EMCL_BUILD_CUDA": "yes"}, 'EMCL_BUILD_CUDA is "yes"; expected 0 or 1'),
        (
            {"EMCL_BUILD_CUDA": "1", "CUDA_HOME": "/nowhere"},
            "EMCL_BUILD_CUDA=1 was set, but .*libemcl_cuda.so cannot be built: CUDA_HOME is /nowhere",
        ),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_one_clear_error(
    cuda_checkout: Path, environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    printed = build(
        cuda_checkout, without=("torch",), fails=True, **{"CUDA_HOME": str(toolkit(tmp_path / "13.7"))} | environment
    )
    assert re.search(f"^emcl: .*{message}", printed, re.MULTILINE), printed
    assert "Traceback" not in printed


@needs_compiler
def test_the_toolkit_is_that_of_cuda_home_then_cuda_path_then_path(cuda_checkout: Path, tmp_path: Path) -> None:
    home, path, third = (toolkit(tmp_path / version) for version in ("13.1", "13.2", "13.3"))
    script = tmp_path / "bin" / "nvcc"  # one that only starts another, as some installations have it
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {third}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    environment = {"PATH": f"{script.parent}:{os.environ['PATH']}", "CUDA_PATH": str(path), "CUDA_HOME": str(home)}
    for name, version in (("CUDA_HOME", "13.1"), ("CUDA_PATH", "13.2"), ("PATH", "13.3")):
        build(cuda_checkout, without=("torch",), **environment)
        assert targets(cuda_checkout)["cuda"]["nvcc"] == version
        del environment[name]


@pytest.mark.parametrize("missing", ["include/cuda_runtime.h", "lib/libcudart_static.a", "compute_90"])
def test_a_toolkit_that_is_old_or_not_whole_is_explained(cuda_checkout: Path, missing: str, tmp_path: Path) -> None:
    home = toolkit(tmp_path / "13.7")
    expected = f"nvcc has no {Path(missing).name}; install the whole CUDA toolkit, or set CUDA_HOME"
    if missing == "compute_90":
        (home / "bin" / "nvcc").write_text(NVCC.replace('"compute_90", ', ""))
        expected = "nvcc does not know 90+PTX, only compute_80, compute_120; set CUDA_HOME to a later toolkit"
    else:
        (home / missing).unlink()
    build(cuda_checkout, without=("torch",), CUDA_HOME=str(home))
    assert expected in targets(cuda_checkout)["cuda"]["reason"]


@needs_compiler
def test_the_emulated_library_is_built_for_those_who_ask_and_both_after_a_change(
    cuda_checkout: Path, tmp_path: Path
) -> None:
    home = str(toolkit(tmp_path / "13.7"))
    printed = build(cuda_checkout, CUDA_HOME=home, EMCL_BUILD_EMULATED="1")
    assert f"emcl: built {EMULATED_LIBRARY}" in printed
    (cuda_checkout / "csrc" / "value.h").write_text("#define VALUE 8\n")
    build(cuda_checkout, CUDA_HOME=home, EMCL_BUILD_EMULATED="1")
    for library in (CUDA_LIBRARY, EMULATED_LIBRARY):
        assert ctypes.CDLL(str(cuda_checkout / library)).cuda_value() == 8
        assert ctypes.CDLL(str(cuda_checkout / library)).seven() == 7
    assert "emulated" not in build(cuda_checkout, CUDA_HOME=home, without=("torch",))
    assert not (cuda_checkout / EMULATED_LIBRARY).exists()


@pytest.mark.parametrize("compiler", [pytest.param(True, marks=needs_compiler), False], ids=["compiler", "no compiler"])
def test_a_wheel_has_what_was_built(checkout: Path, compiler: bool) -> None:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", "wheels")
    run(checkout, "-m", "pip", "wheel", *options, ".", compiler=compiler)
    (wheel,) = (checkout / "wheels").iterdir()
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert (LIBRARY in names) == any(name.startswith("emcl_kernels/_bindings") for name in names) == compiler
    assert {BUILD_INFO, "emcl_kernels/py.typed", "emcl_train/py.typed", "emcl_train/cli.py"} <= set(names)

    # What parses and prints comes with a plain install; all else that commands need is the extra's.
    (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    required = dict.fromkeys(re.findall(r"^Requires-Dist: ([\w-]+)(?:[^;\n]*)$", metadata, re.MULTILINE))
    assert {"tyro", "rich"} <= required.keys()
    assert not {"av", "transformers", "pyyaml"} & required.keys()
    assert re.search(r"^Requires-Dist: av>=17; extra == [\"']train[\"']$", metadata, re.MULTILINE)
    assert "emcl_kernels/include/emcl/op.h" in names  # for an op of one's own
    assert not [name for name in names if name.startswith(("tests", "csrc", "benchmarks"))]


def test_the_version_is_the_same_everywhere() -> None:
    """It is written in emcl_kernels/__init__.py; a citation and the changelog repeat it."""
    assert 'version = { attr = "emcl_kernels.__version__" }' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = emcl_kernels.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [head for head in heads if head != "Not released"]
    assert re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", released[0])


def test_the_version_is_read_without_torch(checkout: Path) -> None:
    """A build asks for it before torch is there."""
    hide = "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version']"
    assert run(checkout, "-c", f"{hide}; runpy.run_path('setup.py')").strip() == emcl_kernels.__version__
