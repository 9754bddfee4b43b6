"""The wheel: what is in it, what its libraries need, and that it runs where there is no compiler."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from emcl_kernels import __version__, info

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("libemcl_cpu.so", "libemcl_cuda.so")
DATA = ("emcl_train/report/templates", "emcl_train/search/server/page")
"""Folders whose files are pages and what they need."""
# C functions of torch's stable ABI, and what the operating system and the compiler bring.
STABLE = re.compile(r"(aoti_torch_\w+|torch_\w+)")
SYSTEM = re.compile(r"\S+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+")
# Weak references of every shared library, and what the C++ library has: it is without a version where the linker found
# it in one of torch's libraries first.
ALWAYS = re.compile(
    r"_ITM_\w+TMCloneTable|__gmon_start__|__cxa_\w+|_Z(N[KVRO]*|T[ISV]N?)?S[taso](?!\S*\d(c10|at|torch))\S*"
)


def built(name: str) -> bool:
    targets = info.build_info().get("targets", {})
    return bool(targets.get(name.removeprefix("libemcl_").removesuffix(".so"), {}).get("built"))


pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists() or not built(LIBRARIES[0]),
                                reason="there is no checkout with a compiled library")  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout; what `make setup` compiled is taken from build/, so that only linking is left."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder / "build"),
               "bdist_wheel", "--bdist-dir", str(folder / "bdist"), "--dist-dir", str(folder)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment that has the wheel, and sees the torch of this one."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*install, str(wheel)], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = environment.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(torch.__file__).parents[1])}
    (site / "torch_of_the_tests.pth").write_text("\n".join(sorted(paths)) + "\n")
    return python


def run(python: Path, folder: Path, program: str, **environment: str) -> str:
    """Output of a program in another folder, with nothing on PATH and nothing of this checkout."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("EMCL_", "PYTHON", "CUDA_"))}
    done = subprocess.run([str(python), "-c", program], cwd=folder, env=variables | {"PATH": ""} | environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_name_says_for_whom_it_is(wheel: Path) -> None:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.startswith(f"emcl-{__version__}-{python}-{python}-")
    assert wheel.name.endswith(f"{platform.system().lower()}_{platform.machine()}.whl")


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    native = {f"emcl_kernels/_C/{name}" for name in LIBRARIES if built(name)} | {"emcl_kernels/_C/build_info.json"}
    assert native == {name for name in names if name.startswith("emcl_kernels/_C/")}
    assert "emcl_kernels/tables/shipped.json" in names
    assert {name.partition("/")[0] for name in names} == {"emcl_kernels", "emcl_train", f"emcl-{__version__}.dist-info"}
    assert "emcl_train/search/unrelated.txt" in names
    data = {name for name in names if name.startswith(tuple(f"{folder}/" for folder in DATA))}
    assert data == {f"{folder}/{path.name}" for folder in DATA for path in (ROOT / folder).iterdir()}
    kinds = {Path(name).suffix for name in names if ".dist-info" not in name and name not in data}
    assert kinds <= {".py", ".typed", ".json", ".so", ".h", ".txt"}


def test_no_path_of_this_machine_is_in_it(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    paths = [str(ROOT), sys.prefix, str(Path(torch.__file__).parents[1]), str(wheel.parent)]
    found = [(name, path) for name in archive.namelist() for path in paths if path.encode() in archive.read(name)]
    assert found == []


def test_the_ops_run_without_a_compiler_from_another_folder(installed: Path, tmp_path: Path) -> None:
    program = """
import torch
import emcl_kernels
from emcl_kernels import em_project, info, pooled_similarity, use_backend
x = torch.randn(40, 16, dtype=torch.float64)
init = torch.randn(5, dtype=torch.float64)
ys = []
for backend in ("native", "reference"):
    with use_backend(backend):
        leaf = x.clone().requires_grad_()
        y, _ = em_project(leaf, init, gradient="full")
        similarity, _ = pooled_similarity(x, x.view(10, 4, 16), torch.ones(10, 4), init)
        ys.append([y, similarity, *torch.autograd.grad(y.cos().sum(), leaf)])
for a, b in zip(*ys):
    torch.testing.assert_close(a, b)
print(emcl_kernels.__file__)
print(info.describe())
"""
    printed = run(installed, tmp_path, program)
    assert printed.startswith(str(installed.parent.parent))
    assert re.search(r"libemcl_cpu.so: yes, uses \w+", printed)
    assert re.search(r"em_project +cpu +native", printed)
    assert "shipped.json (rows: " in printed


def test_the_cuda_library_says_why_it_does_not_run_here(installed: Path, tmp_path: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    printed = run(installed, tmp_path, "from emcl_kernels.backends import cuda; print(cuda.status()['reason'])")
    reason = "is built without CUDA; install a CUDA build" if built(LIBRARIES[1]) else "the CUDA library was not built"
    assert reason in printed


def unstable(symbols: str) -> list[str]:
    """Names in `nm`'s output that are neither the system's nor of torch's stable ABI."""
    names = [line.split()[-1] for line in symbols.splitlines() if line.strip()]
    return [name for name in names if not any(kind.fullmatch(name) for kind in (STABLE, SYSTEM, ALWAYS))]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_needs_only_the_stable_abi_of_torch(name: str) -> None:
    if not built(name):
        pytest.skip(f"{name} was not built here")
    if shutil.which("nm") is None:
        pytest.skip("there is no nm to list symbols with")
    path = Path(info.__file__).parent / "_C" / name
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True)
    assert "aoti_torch_library_init_impl" in symbols.stdout or "torch_library_impl" in symbols.stdout
    assert ("aoti_torch_get_current_cuda_stream" in symbols.stdout) == ("cuda" in name)
    assert unstable(symbols.stdout) == []
    target = info.build_info()["targets"][name.removeprefix("libemcl_").removesuffix(".so")]
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in target["flags"]
    assert "-DTORCH_STABLE_ONLY" in target["flags"]


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
        "_ZN2at5emptyEN3c108ArrayRefIlEENS0_13TensorOptionsE",
        "_ZNK5torch8autograd4Node4nameEv",
        "_ZTIN3c105ErrorE",
        "THPVariable_Wrap",
        "_ZNSt6vectorIN3c1010ScalarTypeESaIS1_EED1Ev",
        "cudaGetDevice",
        "cudaLaunchKernel@libcudart.so.12",
    ],
)
def test_a_symbol_of_torchs_cplusplus_or_of_cuda_is_found(symbol: str) -> None:
    assert unstable(f"                 U {symbol}\n") == [symbol]
