"""Which backends and dtypes the kernel tests run over, and on which device.

A test that takes `backend` runs over every backend of the device, and over every dtype of the backend if it takes
`dtype`, `sums`, `half` or `float64` too. By default the backends are reference, native, in its emulator cuda, and
torch where it is not the reference itself: some tests in 16-bit dtypes. Triton's interpreter and other instruction sets
need a process of their own: test_jobs.py starts one for some of the cases (--every), `make test-triton` for all.
`--device cuda` runs the same tests on a GPU, where tests/run_on_gpu.py keeps one from hiding another.
"""

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from compare import HALF

from emcl_kernels import dispatch, use_backend

BACKENDS = {"cpu": ("reference", "native", "cuda", "torch"), "cuda": ("triton", "cuda", "torch")}
TAKES_FLOAT64 = ("reference", "native", "torch")
NARROW_PRODUCTS = ("test_values_and_gradient", "test_values_and_gradients", "test_half_precision")


def backends_of(config: pytest.Config) -> tuple[str, ...]:
    chosen = config.getoption("--backend")
    return tuple(chosen.split(",")) if chosen else BACKENDS[config.getoption("--device")]


def is_emulated(backend: str, config: pytest.Config) -> bool:
    return backend in ("cuda", "triton") and config.getoption("--device") == "cpu"


def as_reference(backend: str, config: pytest.Config) -> bool:
    """Whether a backend runs the very functions of the reference, but for products in 16-bit dtypes."""
    return backend == "torch" and config.getoption("--device") == "cpu" and not config.getoption("--backend")


def dtypes_of(backend: str, kind: str, config: pytest.Config) -> list[torch.dtype]:
    if as_reference(backend, config):
        return HALF if kind in ("half", "dtype") else []
    sums = [torch.float64, torch.float32] if backend in TAKES_FLOAT64 else [torch.float32]
    return {"sums": sums, "half": HALF, "dtype": [*sums, *HALF], "float64": sums[:-1]}[kind]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend` alone, or with each of its dtypes: those that are summed in, the narrow ones, or all."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "backend" not in metafunc.fixturenames or any("backend" in mark.args[0] for mark in marks):
        return
    backends = backends_of(metafunc.config)
    kind = next((name for name in ("sums", "half", "dtype", "float64") if name in metafunc.fixturenames), None)
    if kind is None:
        metafunc.parametrize("backend", [name for name in backends if not as_reference(name, metafunc.config)])
        return
    cases = [(backend, dtype) for backend in backends for dtype in dtypes_of(backend, kind, metafunc.config)]
    ids = [f"{backend}-{str(dtype).removeprefix('torch.')}" for backend, dtype in cases]
    metafunc.parametrize(("backend", kind), cases, ids=ids)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another job runs, and what is too large where it would run."""
    on_gpu = config.getoption("--device") == "cuda"
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
    kept = [item for item in items if belongs(item, on_gpu, bool(config.getoption("--backend")))]
    kept = thinned(kept, config.getoption("--every"))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def thinned(items: list[pytest.Item], every: int) -> list[pytest.Item]:
    """The first case of each test, and every so many-th after it."""
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        name = item.nodeid.partition("[")[0]
        if seen[name] % every == 0:
            kept.append(item)
        seen[name] += 1
    return kept


def is_slow(item: pytest.Item) -> bool:
    """Whole files that compile or trace; and emulated backends, which run every thread of a GPU on the CPU.

    Of the latter, rows, which are quick, are enough between edits.
    """
    if item.path.stem in ("test_triton_compile", "test_ops", "test_on_gpu", "test_pooled"):
        return True
    backend = backend_of(item)
    quick = ("test_moments", "test_fit", "test_reconstruct")
    if backend == "torch" or (backend == "reference" and item.path.stem not in quick):
        return True  # as the C++ kernels beside it, which are what one changes; their truth is the loop
    return backend is not None and is_emulated(backend, item.config) and item.path.stem not in quick


def backend_of(item: pytest.Item) -> str | None:
    """The backend that a test was parametrized with."""
    call = getattr(item, "callspec", None)
    return call.params.get("backend") if call else None


def belongs(item: pytest.Item, on_gpu: bool, one_backend: bool) -> bool:
    if not on_gpu and any(item.get_closest_marker(name) for name in ("cuda_only", "large")):
        return False
    backend = backend_of(item)
    if backend is None:
        return not on_gpu and not one_backend
    if backend not in backends_of(item.config):
        return False
    if as_reference(backend, item.config):
        return getattr(item, "originalname", "") in NARROW_PRODUCTS and not item.get_closest_marker("compiled")
    return not (item.get_closest_marker("compiled") and is_emulated(backend, item.config))


@pytest.fixture
def device(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.getoption("--device"))


@pytest.fixture(autouse=True)
def on_its_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test that takes `backend` on it. One that cannot run here is skipped, but for the test of that."""
    if "backend" not in request.fixturenames:
        yield
        return
    backend = request.getfixturevalue("backend")
    if is_emulated(backend, request.config) and backend == "cuda":
        request.getfixturevalue("monkeypatch").setenv("EMCL_CUDA_EMULATED", "1")
    reason = unavailable(backend, request.getfixturevalue("device"))
    if reason and "available" not in request.node.name:
        pytest.skip(f"{backend}: {reason}")
    with use_backend(backend):
        yield


def unavailable(backend: str, device: str) -> str:
    """Why a backend cannot run on a device, or an empty string."""
    for entry in dispatch.report():
        if (entry["backend"], entry["device"]) == (backend, device):
            return str(entry["reason"])
    return f"emcl_kernels has no backend {backend}"


@pytest.fixture(autouse=True, scope="session")
def threads() -> None:
    """Those that the job was given: on a GPU machine, float64 references of real sizes are computed on the CPU."""
    if count := os.environ.get("EMCL_TEST_THREADS"):
        torch.set_num_threads(int(count))
