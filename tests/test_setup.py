"""The build in a copy of the checkout: with a compiler, without one, and with sources that do not compile."""

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
    "csrc/cpu/ops.cpp": 'extern "C" int hidden() { return 7; }\n',
    "csrc/bindings.cpp": """\
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_bindings", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__bindings() { return PyModule_Create(&definition); }
""",
}
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
    (copy / "csrc" / "cpu").mkdir(parents=True)
    for source, content in TINY_SOURCES.items():
        (copy / source).write_text(content)
    return copy


def run(checkout: Path, *command: str, compiler: bool = True, **environment: str) -> str:
    """Run python in the copy and return what it prints; without a compiler, nothing at all is on PATH."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("EMCL_") and name != "CXX"}
    if not compiler:
        (checkout / "empty").mkdir(exist_ok=True)
        variables["PATH"] = str(checkout / "empty")
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=variables | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(checkout: Path, *, without: tuple[str, ...] = (), compiler: bool = True, **environment: str) -> str:
    """Build in place, as if the modules in `without` were not installed."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({without!r}))"
    start = "import runpy; sys.argv = ['setup.py', '-q', 'build_ext', '--inplace']; runpy.run_path('setup.py')"
    return run(checkout, "-c", f"{hide}; {start}", compiler=compiler, **environment)


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
        (("pybind11",), {"EMCL_BUILD_CPU": "0"}, {"cpu": "EMCL_BUILD_CPU=0 was set", "bindings": "pybind11 is not"}),
        ((), {"CXX": "no-such"}, dict.fromkeys(("cpu", "bindings"), "no C++ compiler was found (no-such)")),
        (("torch",), {}, {"cpu": "torch is not installed where the build runs"}),
    ],
    ids=["asked not to", "wrong CXX", "without torch"],
)
def test_what_is_left_out_has_its_reason(
    checkout: Path, without: tuple[str, ...], environment: dict[str, str], reasons: dict[str, str]
) -> None:
    printed = build(checkout, without=without, compiler=True, **environment)
    for target, reason in reasons.items():
        assert targets(checkout)[target]["reason"].startswith(reason)
        assert f": {reason}" in printed


@pytest.mark.parametrize("compiler", [pytest.param(True, marks=needs_compiler), False], ids=["compiler", "no compiler"])
def test_a_wheel_has_what_was_built(checkout: Path, compiler: bool) -> None:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", "wheels")
    run(checkout, "-m", "pip", "wheel", *options, ".", compiler=compiler)
    (wheel,) = (checkout / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert (LIBRARY in names) == any(name.startswith("emcl_kernels/_bindings") for name in names) == compiler
    assert {BUILD_INFO, "emcl_kernels/py.typed", "emcl_train/py.typed", "emcl_train/cli.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "csrc", "benchmarks"))]


def test_the_version_is_the_same_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared is not None
    assert declared[1] == emcl_kernels.__version__
    assert f"## {declared[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
