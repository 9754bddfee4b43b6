"""em_project over every backend: the release's loop in float64 is the truth of values and gradients."""

from typing import Any

import pytest
import torch
from compare import GRADIENTS, Function, Problem, compare
from emulator import MANNERS, emulate
from refusals import Refusal, refusals
from torch import Tensor

from emcl_kernels import em_project, forms, reference, use_backend
from emcl_kernels.ops.project import fixed
from emcl_kernels.testing import SUMMED_IN, assert_close, bound, clustered_rows, distinct_init

# (leading, rows, width, bases, iterations)
ODD = [
    ((), 1, 16, 1, 1),
    ((), 7, 63, 7, 9),
    ((), 41, 130, 7, 9),
    ((), 63, 1, 1, 2),
    ((3,), 130, 24, 32, 4),
    ((), 1000, 41, 7, 1),
    ((2, 2), 17, 24, 5, 3),
    ((), 300, 40, 128, 2),
]
BIG = [((), 1000, 130, 33, 9), ((), 41, 512, 7, 9)]
REAL = [((), 256, 512, 32, 9), ((), 1056, 512, 32, 9), ((), 2000, 512, 32, 9), ((), 300, 1024, 64, 5)]
LARGE = [((), 16512, 512, 32, 9), ((), 5000, 1024, 32, 9), ((), 8000, 256, 128, 9)]
SHAPES = [
    *ODD,
    *(pytest.param(shape, marks=pytest.mark.compiled) for shape in BIG),
    *(pytest.param(shape, marks=pytest.mark.large) for shape in (*REAL, *LARGE)),
]
# None of them as it is by default.
SETTINGS = {"temperature": 0.8, "residual_weight": -2.0, "eps": 1e-3}
# Few iterations, each of which makes a rounding larger.
NARROW = [((), 41, 63, 7, 3), ((2,), 130, 24, 32, 2), pytest.param(((), 1000, 512, 32, 3), marks=pytest.mark.compiled)]


def project(function: object, gradient: str, iters: int) -> Function:
    def run(x: Tensor, init: Tensor) -> dict[str, Tensor]:
        y, mean_bases = function(x, init, num_iters=iters, gradient=gradient, **SETTINGS)  # type: ignore[operator]
        return {"y": y, "mean_bases": mean_bases}

    return run


def problem(
    leading: tuple[int, ...],
    rows: int,
    width: int,
    bases: int,
    iters: int,
    dtype: torch.dtype,
    gradient: str,
    per_row: bool = False,
) -> Problem:
    init = distinct_init(*leading, rows, bases) if per_row else distinct_init(*leading, bases)
    tensors = {"x": clustered_rows(*leading, rows, width), "init": init}
    differentiate = ("x", "init") if gradient == "full" else ("x",)
    return Problem(tensors, dtype, ("x", "init"), differentiate, steps=iters)


def check(backend: str, device: str, shape: Any, dtype: torch.dtype, gradient: str, per_row: bool = False) -> None:
    iters = shape[-1]
    given = problem(*shape, dtype, gradient, per_row)
    compare(backend, device, given, *(project(f, gradient, iters) for f in (em_project, reference.em_project_loop)))


@pytest.mark.parametrize("gradient", ["linear", "full"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(backend: str, sums: torch.dtype, device: str, shape: Any, gradient: str) -> None:
    check(backend, device, shape, sums, gradient)


@pytest.mark.parametrize("gradient", ["linear", "full"])
@pytest.mark.parametrize("shape", ODD[1:5], ids=str)
def test_one_start_for_each_row(backend: str, sums: torch.dtype, device: str, shape: Any, gradient: str) -> None:
    check(backend, device, shape, sums, gradient, per_row=True)


@pytest.mark.parametrize("gradient", ["linear", "full"])
@pytest.mark.parametrize("shape", NARROW, ids=str)
def test_half_precision(backend: str, half: torch.dtype, device: str, shape: Any, gradient: str) -> None:
    check(backend, device, shape, half, gradient)


@pytest.mark.short
@pytest.mark.large
@pytest.mark.parametrize("gradient", ["linear", "full"])
def test_before_a_benchmark(backend: str, dtype: torch.dtype, device: str, gradient: str) -> None:
    iters = 9 if dtype in SUMMED_IN.values() else 3
    check(backend, device, ((), 1056, 512, 32, iters), dtype, gradient)


def test_the_gradient_of_the_release_is_the_identity(backend: str, dtype: torch.dtype, device: str) -> None:
    x = clustered_rows(2, 41, 24).to(device, dtype).requires_grad_()
    y, _ = em_project(x, distinct_init(5).to(device, dtype), gradient="identity")
    d_y = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, d_y)[0], d_y)


@pytest.mark.parametrize("form", ["gram", "loop"])
@pytest.mark.parametrize("shape", [((), 7, 63, 7, 9), ((), 130, 16, 32, 9), ((), 1000, 63, 1, 9)], ids=str)
def test_both_forms_of_the_cpp_kernels(shape: Any, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCL_FORM", form)
    for per_row in (False, True):
        check("native", "cpu", shape, torch.float64, "linear", per_row)


def test_the_cuda_kernels_have_the_gram_form_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCL_CUDA_EMULATED", "1")
    monkeypatch.setenv("EMCL_FORM", "loop")
    with (
        use_backend("cuda"),
        pytest.raises(ValueError, match="form is loop; the CUDA kernels have the Gram form only"),
    ):
        em_project(clustered_rows(20, 8).float(), distinct_init(3).float())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("manner", MANNERS)
def test_both_architectures_of_the_emulator(architecture: str, manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, ARCHITECTURE=architecture, **MANNERS[manner])
    check("cuda", "cpu", ((2,), 41, 63, 32, 2), torch.float32, "full")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_sums_as_hopper_makes_them(shape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the tolerance of exact ones."""
    emulate(monkeypatch, SUMS="hopper")
    check("cuda", "cpu", shape, torch.float32, "full")


def test_one_start_serves_every_problem(backend: str, dtype: torch.dtype, device: str) -> None:
    x = clustered_rows(3, 40, 16).to(device, dtype)
    init = distinct_init(7).to(device, dtype)
    assert torch.equal(em_project(x, init)[0], em_project(x, init.expand(3, 7))[0])


def test_views_and_memory_that_starts_anywhere(backend: str, dtype: torch.dtype, device: str) -> None:
    x = clustered_rows(64, 48).to(device, dtype)
    init = distinct_init(7).to(device, dtype)
    # One number from an address that 16 divides, which accesses of 16 bytes need.
    shifted = torch.empty(x.numel() + 1, dtype=dtype, device=device)[1:].view(64, 48).copy_(x)
    for view in (shifted, x.T, x[::2], x[:, 3:30], x.expand(2, 64, 48), x[1:]):
        expected = em_project(view.clone(memory_format=torch.contiguous_format), init)[0]
        assert_close("y", em_project(view, init)[0], expected, bound(dtype))


def test_no_problems(backend: str, device: str) -> None:
    x = torch.ones(0, 20, 4, device=device)
    assert em_project(x, torch.ones(3, device=device))[0].shape == (0, 20, 4)


@pytest.mark.parametrize("sums", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("bases", [1, 3, 8, 16, 17])
def test_eps_may_be_zero(bases: int, name: str, sums: torch.dtype) -> None:
    """The C++ kernels pad the bases, and there 1 / (eps + 0) is no number."""

    def run(function: Any) -> Function:
        def call(x: Tensor, init: Tensor) -> dict[str, Tensor]:
            y, mean_bases = function(x, init, eps=0.0, num_iters=2, gradient="full")
            return {"y": y, "mean_bases": mean_bases}

        return call

    for rows in (5, 30):
        given = problem((), rows, 20, bases, 2, sums, "linear")
        compare(name, "cpu", given, run(em_project), run(reference.em_project_loop))


@pytest.mark.parametrize("rows", [20, 300])
def test_bases_that_start_alike(backend: str, sums: torch.dtype, device: str, rows: int) -> None:
    """The release's ±1 start: two bases with multiplicities. By the loop, and by the Gram form."""
    for start in ([1.0], [1.0, -1.0, 1.0, 1.0, -1.0]):
        tensors = {"x": clustered_rows(rows, 40), "init": torch.tensor(start, dtype=torch.float64)}
        given = Problem(tensors, sums, ("x", "init"), ("x",), steps=9)
        compare(backend, device, given, *(project(f, "full", 9) for f in (em_project, reference.em_project_loop)))


@pytest.mark.parametrize("rows", [15, 16])
def test_few_rows_take_the_loop(backend: str, device: str, rows: int) -> None:
    """Bit by bit: of width 2 the Gram form is the cheaper one. The C++ kernels' own loop is in test_native_calls.py."""
    if backend == "native":
        pytest.skip("it has a loop of its own")
    x, init = clustered_rows(rows, 2).to(device, torch.float32), distinct_init(3).to(device, torch.float32)
    settings = {"num_iters": 9, "temperature": 0.8, "residual_weight": -2.0, "eps": 1e-3}
    by_loop = torch.cat([part.flatten() for part in forms.project_by_loop(x, init, **settings)[:2]])
    result = torch.cat([part.flatten() for part in em_project(x, init, **settings)])
    assert torch.equal(result, by_loop) is (rows < 16)


def test_the_parts_make_the_whole(backend: str, sums: torch.dtype, device: str) -> None:
    """What a backend falls back to that has no projection of its own."""
    x = clustered_rows(2, 41, 24).to(device, sums)
    args = (x, distinct_init(2, 5).to(device, sums), 9, 0.8, -2.0, 1e-3, False)
    assert fixed.fallback is not None
    for i, (part, whole) in enumerate(zip(fixed.fallback(*args), fixed.call(*args), strict=True)):
        assert_close(f"result {i}", part, whole, 1e-4)


def test_rows_of_zeros_have_no_nan(backend: str, sums: torch.dtype, device: str) -> None:
    zero = torch.zeros(20, 16, device=device, dtype=sums).requires_grad_()
    y, _ = em_project(zero, distinct_init(4).to(device, sums), gradient="full")
    assert not torch.autograd.grad(y.sum(), zero)[0].isnan().any()


@pytest.mark.large
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_thousand_problems_of_the_released_evaluation(backend: str, device: str, gradient: Any) -> None:
    """[1056, 512] × 1024: the same 8 problems again and again, each time with the same bits.

    cuBLAS takes another kernel for more problems; its sums are then in another order.
    """
    problems = 8
    times = 128 if gradient == "identity" else 16
    few = clustered_rows(problems, 1056, 512).float().to(device)
    init = distinct_init(32).float().to(device)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        y, _ = em_project(x, init, gradient=gradient)
        return y.detach(), torch.autograd.grad(y, x, x.detach().cos())[0]

    for many, expected in zip(run(few.repeat(times, 1, 1)), run(few.clone()), strict=True):
        if backend == "torch":
            assert_close("many", many, expected.repeat(times, 1, 1), 1e-4)
        else:
            assert torch.equal(many, expected.repeat(times, 1, 1))


@pytest.mark.large
def test_more_numbers_than_an_int32_counts(backend: str, device: str) -> None:
    """x holds the same 16 384 rows 257 times over, so EM in float64 needs to see them only once.

    With the weight 3000 what is added is of the size of x, which is rounded to bfloat16.
    """
    times = 257
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GiB")
    base = clustered_rows(16384, 512, dtype=torch.bfloat16)
    init = distinct_init(32).bfloat16()
    gram, colsum = (times * moment for moment in reference.em_moments(base.double()))
    logits = reference.start_logits(base.double(), colsum, init.double())
    fitted = reference.em_fit(gram, logits, num_iters=9, temperature=1.0)
    expected = reference.em_reconstruct(base.double(), *fitted, weight=3000.0) - base.double()
    y, _ = em_project(base.to(device).repeat(times, 1), init.to(device), residual_weight=3000.0)
    assert y.numel() > 2**31
    growth = 1 + float(torch.linalg.vector_norm(base.double()) / torch.linalg.vector_norm(expected))
    for part in (y[: len(base)], y[-len(base) :]):
        allowed = bound(torch.bfloat16, len(base), conditioning=growth)
        assert_close("y - x", part.double().cpu() - base.double(), expected, allowed)


x, init = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.ones(3)
op = torch.ops.emcl.em_project
BAD: list[Refusal] = [
    ("start of another size", lambda: op(x, torch.ones(5, 3), 9, 1.0, 3.0, 1e-6, "full"), ValueError,
     r"init has shape \[5, 3\] but x has shape \[8, 4\]; pass init of shape \[K\] or \[8, K\]"),
    ("start of another batch", lambda: em_project(x.expand(2, 8, 4), torch.ones(3, 5)), ValueError,
     r"pass init of shape \[K\], \[2, K\] or \[2, 8, K\]"),
    ("scalar start", lambda: op(x, torch.ones(()), 9, 1.0, 3.0, 1e-6, "identity"), ValueError,
     r"init has shape \[\]; expected \[K\]"),
    ("start on another device", lambda: op(x, torch.ones(3, device="meta"), 9, 1.0, 3.0, 1e-6, "identity"),
     ValueError, "init is on meta but x is on cpu"),
    ("zero iterations", lambda: em_project(x, init, num_iters=0), ValueError, "num_iters is 0; EM needs at least one"),
    ("eps below zero", lambda: em_project(x, init, eps=-1.0), ValueError, "eps is -1.0; expected 0 or a small number"),
    ("unknown gradient", lambda: em_project(x, init, gradient="none"), Exception,  # the type check may speak first
     "gradient"),
    ("NaN", lambda: em_project(x / torch.zeros(8, 4), init), ValueError,
     "em_project: .* not finite, because the features or the start hold NaN"),
    ("NaN in the start", lambda: em_project(x, init * float("nan")), ValueError, "the features or the start hold NaN"),
]  # fmt: skip


test_bad_input_is_refused_with_the_way_out = refusals(BAD)
