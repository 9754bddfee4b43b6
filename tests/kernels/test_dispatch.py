"""Which backend runs an op: what the tables say, what is forced, and the reasons that are given."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import emcl_kernels
from emcl_kernels import checks, dispatch, em_moments, tables, use_backend
from emcl_kernels.backends import Declared, cpu, cuda, plain_torch, triton
from emcl_kernels.backends import gpu as shared_by_gpus
from emcl_kernels.ops import fit, moments, pooled, project, reconstruct
from emcl_kernels.ops.define import OPS
from emcl_kernels.testing import clustered_rows

H200 = ("NVIDIA H200", "9.0")
SIZES = {"problems": 1, "width": 512, "bases": 32}


@pytest.fixture(autouse=True)
def fresh_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No table of this user, and nothing remembered from one test to the next."""
    monkeypatch.delenv("EMCL_TABLE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def forget() -> None:
        tables.rows.cache_clear()
        tables._look_up.cache_clear()
        dispatch._explain.cache_clear()
        dispatch.choices.clear()

    forget()
    yield
    forget()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an H200 where every backend can run: `choose` is asked with tensors that only say where they are."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: H200[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for backend in (cuda.backend, triton.backend, plain_torch.backend):
        runs(backend, monkeypatch)


def runs(backend: Any, monkeypatch: pytest.MonkeyPatch, reason: str | None = None) -> None:
    """Have a backend take everything, or nothing for a reason; its function returns its name."""
    monkeypatch.setattr(backend, "supports", lambda op, args: reason)
    monkeypatch.setattr(backend, "implementation", lambda op, args: lambda *_: backend.name)


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor that says it is on a GPU, and has no memory."""
    with FakeTensorMode():
        return torch.empty(shape, device="cuda:0", dtype=dtype)


def table(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows}))
    return path


def fitting(width: int = 512, bases: int = 32) -> tuple[Declared, tuple[Any, ...]]:
    """em_fit and its arguments."""
    return fit.op, (on_gpu(width, width), on_gpu(width, bases), 9, 1.0, 1e-6)


def test_the_shipped_table_answers_for_every_op_and_says_where_it_comes_from() -> None:
    for op, names in tables.SIZES.items():
        backend, origin = tables.choice("any", "12.0", op, torch.bfloat16, dict.fromkeys(names, 1))
        assert backend in tables.BACKENDS
        assert origin.startswith((tables.BY_ARITHMETIC, "measured on "))
    last = tables.read(tables.SHIPPED)[-1]
    assert (last.device, last.capability, last.op, last.dtype, last.shape) == ("*", "*", "*", "*", {})


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ({}, True),
        ({"op": "em_fit"}, True),
        ({"op": "em_moments"}, False),
        ({"op": "_em_fit_backward"}, False),
        ({"tf32": False}, True),
        ({"tf32": True}, False),
        ({"device": "NVIDIA H*", "capability": "9.*", "dtype": "float32"}, True),
        ({"device": "NVIDIA A100*"}, False),
        ({"capability": "8.*"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"op": "em_fit", "shape": {"width": [512, 512], "bases": [None, 32]}}, True),
        ({"op": "em_fit", "shape": {"width": [513, None]}}, False),
        ({"op": "em_fit", "shape": {"width": [1, 1024], "bases": [1, 31]}}, False),
    ],
)
def test_a_row_decides_where_it_fits(row: dict[str, Any], fits: bool, tmp_path: Path) -> None:
    path = table(tmp_path / "table.json", row | {"backend": "triton", "origin": "a test"})
    assert tables.read(path)[0].fits(*H200, "em_fit", "float32", SIZES) == fits


def test_a_row_for_an_op_is_for_its_parts_and_one_for_a_part_is_not_for_others(tmp_path: Path) -> None:
    """Blocks are an op of their own: a backend without a kernel for them runs a loop, whatever it is at one block."""
    names = ("em_fit", "_em_fit_backward", "pooled_similarity", "pooled_similarity_blocks")
    rows = tables.read(table(tmp_path / "table.json", *({"backend": "torch", "origin": "", "op": op} for op in names)))
    fitting = {
        op: [row.op for row in rows if row.fits(*H200, op, "float32", {})]
        for op in ("em_fit", "_em_fit_backward", "_pooled_cosine", "_pooled_blocks")
    }
    assert fitting == {
        "em_fit": ["em_fit"],
        "_em_fit_backward": ["em_fit", "_em_fit_backward"],
        "_pooled_cosine": ["pooled_similarity"],
        "_pooled_blocks": ["pooled_similarity_blocks"],
    }
    assert {part for part in tables.PARTS if part in OPS} == set(tables.PARTS)


@pytest.mark.parametrize(
    ("op", "dtype", "sizes", "expected"),
    [
        ("em_moments", torch.float32, (1, 16384, 512), "cuda"),
        ("em_moments", torch.bfloat16, (1, 16384, 512), "triton"),
        ("em_moments", torch.bfloat16, (1, 16384, 64), "cuda"),
        ("_em_moments_backward", torch.float32, (1, 16384, 512), "cuda"),
        ("_em_moments_backward", torch.bfloat16, (1, 16384, 512), "torch"),
        ("_em_moments_backward", torch.bfloat16, (1, 256, 512), "cuda"),
        ("em_fit", torch.float32, (1, 512, 32), "cuda"),
        ("em_project", torch.bfloat16, (1, 1056, 512, 32), "cuda"),
        ("em_project", torch.bfloat16, (1, 2**20, 512, 32), "triton"),
        ("_pooled_cosine_backward", torch.bfloat16, (1024, 1024, 12, 512), "cuda"),
        ("_pooled_cosine_backward", torch.bfloat16, (8192, 8192, 12, 512), "torch"),
        ("_pooled_cosine_backward", torch.float32, (8192, 8192, 12, 512), "cuda"),
        ("_pooled_blocks", torch.bfloat16, (8192, 8192, 12, 512), "cuda"),
    ],
)
def test_the_shipped_order_is_that_of_arithmetic(
    op: str, dtype: torch.dtype, sizes: tuple[int, ...], expected: str
) -> None:
    names = tables.SIZES[tables.PARTS.get(op, op)]
    backend, origin = tables.choice(*H200, op, dtype, dict(zip(names, sizes, strict=True)))
    assert backend == expected
    assert origin.startswith(tables.BY_ARITHMETIC)


def test_where_tf32_is_allowed_torch_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, expected in ((False, "cuda"), (True, "torch")):
        monkeypatch.setattr(shared_by_gpus, "tf32_allowed", lambda allowed=allowed: allowed)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: H200[0])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert tables.first_choice(moments.op, (on_gpu(16384, 512),))[0] == expected


def test_tf32_is_seen_by_either_setting_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for precision, allowed in (("high", True), ("medium", True), ("highest", False)):
            torch.set_float32_matmul_precision(precision)
            assert shared_by_gpus.tf32_allowed() is allowed
        # After this, the older setting cannot be read.
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert shared_by_gpus.tf32_allowed()
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("allowed", [False, True])
def test_plain_products_of_the_cuda_backend_are_torchs_where_those_are_faster(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """Float32 where TF32 is allowed, and 16-bit moments' backward; a projection then runs in parts."""
    monkeypatch.setattr(shared_by_gpus, "tf32_allowed", lambda: allowed)

    def ours(*args: torch.Tensor) -> torch.Tensor:
        return args[0]

    monkeypatch.setattr(cuda.backend, "_on_gpu", dict.fromkeys(OPS.values(), ours))

    def taken(name: str, dtype: torch.dtype, rows: int = 300) -> object:
        x = on_gpu(rows, 16, dtype=dtype)
        found = cuda.backend.implementation(OPS[name], (x,) * len(OPS[name].arguments))
        return "ours" if found is ours else "parts" if found is None else "torch"

    names = ("em_moments", "_em_moments_backward", "_em_project_fixed", "em_reconstruct", "_pooled_moments")
    float32 = ("torch", "torch", "parts", "ours", "ours") if allowed else ("ours",) * 5
    assert tuple(taken(name, torch.float32) for name in names) == float32
    for dtype in (torch.bfloat16, torch.float16):
        assert tuple(taken(name, dtype) for name in names) == ("ours",) * 5
        many = tuple(taken(name, dtype, rows=16384) for name in names)
        assert many == ("ours", "torch", "ours", "ours", "ours")


def test_triton_rounds_to_tf32_where_torch_may(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from emcl_kernels.backends.triton import common

    for allowed, precision in ((False, "ieee"), (True, "tf32")):
        monkeypatch.setattr(shared_by_gpus, "tf32_allowed", lambda allowed=allowed: allowed)
        assert common.float32_precision() == precision


def test_the_named_table_comes_before_the_users_and_both_before_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def origin() -> str:
        tables.rows.cache_clear()
        return tables.choice(*H200, "em_fit", torch.float32, SIZES)[1]

    shipped = origin()
    table(tables.user_table(), {"backend": "triton", "origin": "the user's", "op": "em_fit"})
    assert origin() == "the user's"
    named = table(tmp_path / "named.json", {"backend": "triton", "origin": "named", "op": "em_fit"})
    monkeypatch.setenv("EMCL_TABLE", str(named))
    assert origin() == "named"
    assert tables.choice(*H200, "em_moments", torch.float32, {})[1] == shipped


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is not a table \(FileNotFoundError"),
        ("{", r"is not a table \(JSONDecodeError"),
        ("[]", r"is not a table \(TypeError"),
        ('{"rows": [{"backend": "native", "origin": ""}]}',
         'row 1: backend is "native"; expected one of cuda, triton, torch'),
        ('{"rows": [{"backend": "cuda", "origin": "", "tf32": "high"}]}', "row 1: tf32 is 'high'; expected true"),
        ('{"rows": [{"backend": "cuda"}]}', "row 1: .*'origin'"),
        ('{"rows": [{"backend": "cuda", "origin": "", "gpu": "x"}]}', "row 1: .*'gpu'"),
        ('{"rows": [{"backend": "cuda", "origin": "", "op": "fit"}]}', 'row 1: op is "fit"; expected one of em_mom'),
        ('{"rows": [{"backend": "cuda", "origin": "", "op": "em_fit", "shape": {"rows": [1, 2]}}]}',
         'row 1: shape has "rows"; expected one of problems, width, bases'),
        ('{"rows": [{"backend": "cuda", "origin": "", "op": "em_fit", "shape": {"width": 3}}]}',
         r"row 1: width is 3; expected \[least, most\]"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_with_its_row(
    content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("EMCL_TABLE", str(path))
    with pytest.raises(ValueError, match=message):
        tables.choice(*H200, "em_fit", torch.float32, SIZES)


def test_sizes_are_those_of_the_op() -> None:
    x, init = torch.ones(2, 3, 7, 5), torch.ones(4)
    assert tables.sizes(moments.op, (x,)) == {"problems": 6, "rows": 7, "width": 5}
    assert tables.sizes(project.fixed, (x, init)) == {"problems": 6, "rows": 7, "width": 5, "bases": 4}
    assert tables.sizes(fit.op, (torch.ones(5, 5), torch.ones(5, 4))) == {"problems": 1, "width": 5, "bases": 4}
    of_pooled = tables.sizes(pooled.moments_op, (torch.ones(2, 5), torch.ones(3, 6, 5), torch.ones(3, 6)))
    assert of_pooled == {"texts": 2, "videos": 3, "frames": 6, "width": 5}


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_the_table_chooses_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    narrow = {"backend": "triton", "origin": "measured on a test", "op": "em_fit", "shape": {"width": [1, 100]}}
    monkeypatch.setenv("EMCL_TABLE", str(table(tmp_path / "table.json", narrow)))
    with caplog.at_level("DEBUG", logger="emcl_kernels"):
        assert dispatch.choose(*fitting(width=64))() == "triton"
        assert dispatch.choose(*fitting(width=512))() == "cuda"
    assert "em_fit runs on triton (table: measured on a test)" in caplog.text
    assert "em_fit runs on cuda (table: by arithmetic" in caplog.text


@pytest.mark.usefixtures("gpu")
def test_where_the_first_choice_cannot_run_the_next_does_and_the_reason_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs(cuda.backend, monkeypatch, "not for this device")
    with caplog.at_level("DEBUG", logger="emcl_kernels"):
        assert dispatch.choose(*fitting())() == "triton"
        runs(triton.backend, monkeypatch, "not here")
        assert dispatch.choose(*fitting())() == "torch"
        runs(plain_torch.backend, monkeypatch, "too large")
        assert dispatch.choose(*fitting()) is dispatch.BACKENDS["reference"].functions["em_fit"]
    assert "em_fit runs on triton (cuda: not for this device)" in caplog.text
    assert "em_fit runs on torch (cuda: not for this device; triton: not here)" in caplog.text
    assert "runs on reference (cuda: not for this device; triton: not here; torch: too large)" in caplog.text


@pytest.mark.usefixtures("gpu")
def test_the_choice_of_a_table_holds_for_its_shape_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the backend takes every tensor of the device."""
    narrow = {"backend": "torch", "origin": "a test", "op": "em_fit", "shape": {"width": [1, 100]}}
    monkeypatch.setenv("EMCL_TABLE", str(table(tmp_path / "table.json", narrow)))
    monkeypatch.setattr(plain_torch.backend, "uniform", True, raising=False)
    assert dispatch.choose(*fitting(width=64))() == "torch"
    assert dispatch.choices == {}
    assert dispatch.choose(*fitting(width=512))() == "cuda"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["triton", "cuda", "torch", "reference"])
def test_a_backend_asked_for_by_name_runs_whatever_the_table_says(name: Any) -> None:
    with use_backend(name):
        assert dispatch.which(*fitting())[0] == name


def test_a_backend_asked_for_by_name_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMCL_CUDA_EMULATED", raising=False)
    monkeypatch.setattr(cuda, "_reason", "nvcc is missing")
    x = torch.ones(3, 4)
    with (
        use_backend("cuda"),
        pytest.raises(RuntimeError, match=r'"cuda" is not available for em_moments: nvcc is missing'),
    ):
        em_moments(x)
    monkeypatch.setattr(cuda, "_reason", "")
    assert cuda.backend.supports(moments.op, (x,)) == "tensors are on cpu, not on cuda"


@pytest.mark.parametrize("name", ["cuda", "triton", "torch", "reference", "native"])
def test_the_environment_forces_a_backend(name: str) -> None:
    program = "from emcl_kernels import dispatch; print(dispatch.asked.backend)"
    done = subprocess.run([sys.executable, "-c", program], env={"EMCL_BACKEND": name, "PYTHONPATH": ":".join(sys.path)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == name


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("80", (8, 0), True),
        ("80", (8, 9), True),
        ("80", (9, 0), False),
        ("86", (8, 0), False),
        ("80+PTX", (12, 0), True),
        ("90+PTX", (8, 0), False),
        ("90a", (9, 0), True),
        ("90a", (9, 1), False),
        ("100f", (10, 3), True),
        ("100f", (12, 0), False),
        ("120", (12, 1), True),
    ],
)
def test_which_device_an_architecture_serves(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert cuda.runs_on(architecture, capability) == runs


class Library:
    """What libemcl_cuda.so says of itself."""

    def __init__(self, built: int, driver: int) -> None:
        self.emcl_cuda_architectures = lambda: b"80 90+PTX"
        self.emcl_cuda_runtime, self.emcl_cuda_driver = lambda: built, lambda: driver
        self.emcl_cuda_shared_memory = lambda: 163 * 1024


def is_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], shared: int = 227 * 1024) -> None:
    """As on a GPU that allows a block so many bytes of shared memory."""
    properties = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.mark.parametrize(
    ("capability", "built", "driver", "reason"),
    [
        ((7, 5), 13000, 13000, "has compute capability 7.5, older than 8.0"),
        ((8, 7), 13000, 13000, None),
        ((10, 0), 13000, 13010, None),
        ((9, 0), 13010, 13000, None),  # within a major version, an older driver serves
        ((9, 0), 13000, 12080, "built with CUDA 13.0, the driver knows CUDA up to 12.8; update the driver"),
    ],
)
def test_devices_and_drivers_that_cannot_run_have_their_reason(
    capability: tuple[int, int], built: int, driver: int, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_library", Library(built, driver))
    is_a_gpu(monkeypatch, capability)
    said = cuda._device_reason.__wrapped__(0)
    assert said is None if reason is None else reason in said


def test_an_architecture_that_was_not_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(13000, 13000)
    library.emcl_cuda_architectures = lambda: b"90a"
    monkeypatch.setattr(cuda, "_library", library)
    is_a_gpu(monkeypatch, (10, 0))
    assert "the library is for 90a; reinstall with EMCL_CUDA_ARCHS=100" in cuda._device_reason.__wrapped__(0)


@pytest.mark.parametrize(
    ("capability", "shared", "enough"),
    [
        ((8, 0), 163 * 1024, True),
        ((8, 6), 101376, False),
        ((8, 9), 101376, False),
        ((12, 0), 101376, False),
        ((9, 0), 227 * 1024, True),
    ],
)
def test_a_gpu_whose_blocks_may_have_too_little_shared_memory_is_left_to_triton(
    capability: tuple[int, int],
    shared: int,
    enough: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Code for 8.0 runs there, but no launch of the larger kernels would."""
    monkeypatch.setattr(cuda, "_library", Library(13000, 13000))
    monkeypatch.setattr(cuda, "_reason", "")
    monkeypatch.setattr(cuda, "_device_reason", cuda._device_reason.__wrapped__)
    is_a_gpu(monkeypatch, capability, shared)
    monkeypatch.setattr(cuda.backend, "implementation", lambda op, args: lambda *_: "cuda")
    runs(triton.backend, monkeypatch)

    with caplog.at_level("DEBUG", logger="emcl_kernels"):
        assert dispatch.choose(*fitting())() == ("cuda" if enough else "triton")
    number = f"{capability[0]}.{capability[1]}"
    reason = (
        f"a GPU has compute capability {number} and allows a block {shared} bytes of shared memory, but the kernels "
        'need 166912; use backend="triton"'
    )
    assert (f"em_fit runs on triton (cuda: {reason})" in caplog.text) is not enough


@pytest.mark.parametrize(
    ("op", "shapes", "reason"),
    [
        (fit.op, [(5, 5), (5, 129)], "129 bases"),
        (fit.op, [(5, 5), (5, 128)], None),
        (reconstruct.op, [(3, 5), (5, 0), (0,)], "there are no bases"),
        (pooled.moments_op, [(3, 5), (2, 65, 5), (2, 65)], "65 frames"),
        (pooled.cosine_op, [(3, 5), (2, 64, 5), (2, 64), (0,), (5, 0), (0,)], None),
        (moments.op, [(3, 1000)], None),
    ],
)
def test_sizes_beyond_a_tile_are_refused(
    op: Declared, shapes: list[tuple[int, ...]], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMCL_CUDA_EMULATED", "1")
    monkeypatch.setattr(cuda, "_load_emulated", lambda: "")
    said = cuda.backend.supports(op, tuple(torch.ones(shape) for shape in shapes))
    assert said is None if reason is None else reason in said


def test_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCL_CUDA_EMULATED", "1")
    monkeypatch.setattr(cuda, "_load_emulated", lambda: "")
    halves = (torch.ones(4, 4).half(), torch.ones(4, 4).half())
    assert "not torch.float64" in str(cuda.backend.supports(moments.op, (torch.ones(3, 4, dtype=torch.float64),)))
    assert "it takes torch.float32, not" in str(cuda.backend.supports(fit.op, halves))


def test_the_emulated_library_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCL_CUDA_EMULATED", "1")
    monkeypatch.setattr(cuda, "_load_emulated", lambda: "")
    x = (torch.ones(3, 4),)
    assert dispatch.which(moments.op, x)[0] != "cuda"
    monkeypatch.setattr(cuda.backend, "implementation", lambda op, args: lambda x: "emulated")
    with use_backend("cuda"):
        assert dispatch.which(moments.op, x)[0] == "cuda"


def test_backend_by_name_runs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clustered_rows(5, 4)
    monkeypatch.setattr(cpu.backend, "reason", "it is not here")
    with use_backend("native"), pytest.raises(RuntimeError, match=r'backend "native" is not available .*not here'):
        emcl_kernels.em_moments(x)
    assert dispatch.which(moments.op, (x,))[0] == "reference"


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(Exception, match="reference"), use_backend("metal"):  # type: ignore[arg-type]
        pass


def test_a_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="emcl_kernels"), use_backend("reference"):
        emcl_kernels.em_moments(clustered_rows(5, 4))
    assert "em_moments runs on reference (asked for by name)" in caplog.text


def test_threads_that_leave_their_backends_in_another_order_leave_none_behind() -> None:
    x = clustered_rows(5, 4)
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with use_backend("reference"):
            entered.set()
            left.wait(120)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(120)
    before_second = dispatch.asked.backend
    with use_backend("native"):
        within = dispatch.asked.backend
        left.set()
        thread.join()
        still = dispatch.asked.backend
    assert (before_second, within, still) == ("reference", "native", "native")
    assert dispatch.which(moments.op, (x,))[1] == "first choice"


def test_a_missing_cpp_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_PATH", cpu._PATH.with_name("missing.so"))
    isa, reason = cpu._load()
    assert isa == ""
    assert "was not built" in reason


def test_without_triton_its_backend_says_why() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from emcl_kernels import em_moments, use_backend\n"
        "with use_backend('triton'): em_moments(torch.ones(2, 2))\n"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert 'RuntimeError: backend "triton" is not available for em_moments: triton cannot be imported' in done.stderr


# ---- checks of any argument ------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers() -> None:
    checks.count(np.int64(4), "num_bases")
    checks.number(np.float32(2.0), "temperature")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.count(2.5, "num_bases"), "num_bases is 2.5; expected a whole number"),
        (lambda: checks.count(True, "num_bases"), "num_bases is True; expected a whole number"),
        (
            lambda: checks.number(nn.Parameter(torch.ones(())), "residual_weight"),
            r"residual_weight is Parameter[^;]*; expected a finite number, which is a constant to autograd",
        ),
        (lambda: checks.tensors(text=[torch.ones(1)]), "text is a list; expected a torch tensor"),
    ],
)
def test_a_bad_argument_is_named(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
