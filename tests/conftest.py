"""What every test stands on: fixed seeds, two threads, and memory that is never zero by luck."""

import importlib.util
import os
import random
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch

# Without it cuBLAS raises in the deterministic mode; it is read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parent.parent
TYPE_CHECKS = importlib.util.find_spec("beartype") is not None and os.environ.get("TRITON_INTERPRET") != "1"
if TYPE_CHECKS:
    # Types and shapes of arguments and results are checked in every call. A GPU machine has no beartype, and the
    # decorator of Triton's interpreter does not bear it.
    from jaxtyping import install_import_hook

    install_import_hook(["emcl_kernels", "emcl_train"], "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the kernel tests run")
    parser.addoption("--backend", help="only kernel tests of these backends, separated by commas; triton on the CPU "
                     "needs TRITON_INTERPRET=1 in the environment")  # fmt: skip
    parser.addoption("--every", type=int, default=1, help="only every so many-th case of each kernel test")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda":
        # They differ from one torch to another.
        config.addinivalue_line("filterwarnings", "default")


def pytest_report_header(config: pytest.Config) -> str:
    return f"emcl: types are {'checked in every call' if TYPE_CHECKS else 'not checked'}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave tests that need a browser or packages of an extra to those who name them, as `make test-browser` does."""
    apart = ("browser", "browser_search", "lora", "openclip", "ray", "search")
    if collection_path not in {ROOT / "tests" / name for name in apart}:
        return None
    return (
        None
        if any(Path(name.partition("::")[0]).resolve().is_relative_to(collection_path) for name in config.args)
        else True
    )


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def fill_uninitialized_memory() -> Iterator[None]:
    """Fill new memory with NaN, so that an output which a kernel did not write cannot pass.

    Torch does this inside the allocation, for `torch.empty` in Python and in C++ alike, in its deterministic mode.
    An operation that has no deterministic form raises there, and the kernels must never use one either.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets, which lies beside some checkouts; see CONTRIBUTING.md."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that tests/slow.txt names as slow."""
    lines = (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    for item in items:
        name = f"{item.path.name}::{item.name.partition('[')[0]}"
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            item.add_marker(pytest.mark.slow)
