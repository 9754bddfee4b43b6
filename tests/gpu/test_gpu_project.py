"""em_project: values and every gradient against the release's loop in float64, from one row to over 2³¹ numbers."""

import pytest
import torch
from compare import DEVICE, DTYPES, GRADIENTS, Function, compare, project_problem
from torch import Tensor

from emcl_kernels import em_project, reference, use_backend
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init, relative_error

# (leading, rows, width, bases, iterations)
ODD = [
    ((), 1, 16, 1, 1),
    ((), 7, 63, 7, 9),
    ((2,), 41, 130, 7, 9),
    ((), 63, 1, 1, 2),
    ((3,), 130, 63, 32, 9),
    ((), 1000, 41, 7, 1),
    ((), 1000, 130, 33, 9),
    ((2, 2), 17, 24, 5, 3),
]
REAL = [((), 256, 512, 32, 9), ((), 1056, 512, 32, 9), ((), 2000, 512, 32, 9), ((), 300, 1024, 64, 5)]
LARGE = [((), 16512, 512, 32, 9), ((), 5000, 1024, 32, 9), ((), 8000, 256, 128, 9)]
DEFAULT_BASES = 32


def project(function: object, gradient: str, iters: int) -> Function:
    def run(x: Tensor, init: Tensor) -> dict[str, Tensor]:
        y, mean_bases = function(x, init, num_iters=iters, gradient=gradient)  # type: ignore[operator]
        return {"y": y, "mean_bases": mean_bases}

    return run


def check(backend: str, case: tuple, dtype: torch.dtype, gradient: str, **options: bool) -> None:
    *shape, iters = case
    # d_init is left out: after nine iterations in float32 it is rounding only
    compare(
        backend,
        project_problem(*shape, dtype, **options),
        project(em_project, gradient, iters),
        project(reference.em_project_loop, gradient, iters),
        through_em=gradient == "full",
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ODD, ids=str)
def test_odd_sizes(backend: str, case: tuple, dtype: torch.dtype, gradient: str) -> None:
    check(backend, case, dtype, gradient)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", REAL, ids=str)
def test_real_sizes(backend: str, case: tuple, dtype: torch.dtype, gradient: str) -> None:
    check(backend, case, dtype, gradient)


@pytest.mark.large
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_many_rows(backend: str, case: tuple, dtype: torch.dtype, gradient: str) -> None:
    check(backend, case, dtype, gradient)


@pytest.mark.short
@pytest.mark.parametrize("gradient", ["identity", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_before_a_benchmark(backend: str, dtype: torch.dtype, gradient: str) -> None:
    check(backend, ((), 1056, 512, 32, 9), dtype, gradient)
    check(backend, ((3,), 130, 63, 7, 9), dtype, gradient)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", [((), 41, 63, 7, 3), ((2,), 130, 512, 32, 3)], ids=str)
def test_one_start_per_row(backend: str, case: tuple, gradient: str) -> None:
    check(backend, case, torch.float32, gradient, per_row=True)


@pytest.mark.large
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_thousand_problems_of_the_released_evaluation(backend: str, gradient: str) -> None:
    """[1056, 512] × 1024: the same 8 problems again and again, each time with the same bits."""
    problems, times = 8, 128 if gradient == "identity" else 16
    few, init = clustered_rows(problems, 1056, 512).float(), distinct_init(DEFAULT_BASES).float()

    def run(x: Tensor, init: Tensor, function: object) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        y, _ = function(x, init, gradient=gradient)  # type: ignore[operator]
        (d_x,) = torch.autograd.grad(y, x, x.detach().cos())
        return y.detach(), d_x

    truth, plain = (
        run(few.clone().to(device, dtype), init.to(device, dtype), reference.em_project_loop)
        for device, dtype in (("cpu", torch.float64), (DEVICE, torch.float32))
    )
    with use_backend(backend):
        ours = run(few.to(DEVICE).repeat(times, 1, 1), init.to(DEVICE), em_project)
    for name, actual, same, expected, start in zip(
        ("y", "d_x"), ours, plain, truth, (few.double(), few.double().cos()), strict=True
    ):
        assert torch.equal(actual, actual[:problems].repeat(times, 1, 1)), name
        if gradient == "identity" and name == "d_x":
            assert_close(name, actual[:problems].cpu(), expected, 1e-6)
            continue
        added = expected - start
        allowed = max(1e-5, 8 * relative_error(same.double().cpu() - start, added))
        assert_close(name, actual[:problems].double().cpu() - start, added, allowed)


@pytest.mark.large
def test_more_numbers_than_an_int32_counts(backend: str) -> None:
    """x holds the same 16 384 rows 257 times over, so EM in float64 needs to see them only once.

    With the weight 3000 what is added is of the size of x, which is rounded to bfloat16.
    """
    times, base = 257, clustered_rows(16384, 512, dtype=torch.bfloat16)
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GiB")
    init = distinct_init(DEFAULT_BASES).bfloat16()
    gram, colsum = (times * moment for moment in reference.em_moments(base.double()))
    logits = reference.start_logits(base.double(), colsum, init.double())
    fitted = reference.em_fit(gram, logits, num_iters=9, temperature=1.0)
    expected = reference.em_reconstruct(base.double(), *fitted, weight=3000.0)
    with use_backend(backend):
        y, _ = em_project(base.to(DEVICE).repeat(times, 1), init.to(DEVICE), residual_weight=3000.0)
    assert y.numel() > 2**31
    rounding = relative_error(expected.bfloat16().double() - base.double(), expected - base.double())
    for part in (y[: len(base)], y[-len(base) :]):
        assert_close("y", part.double().cpu() - base.double(), expected - base.double(), 2 * rounding)


def test_strided_rows(backend: str) -> None:
    x, init = clustered_rows(64, 48).float().to(DEVICE), distinct_init(7).float().to(DEVICE)
    with use_backend(backend):
        for view in (x.T, x[::2], x[:, 3:30], x.expand(2, 64, 48), x[1:]):
            assert_close("y", em_project(view, init)[0], em_project(view.contiguous(), init)[0], 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_begin_anywhere(backend: str, dtype: torch.dtype) -> None:
    """Contiguous, but not at a multiple of 16 bytes, which 16-byte accesses need."""
    memory = torch.zeros(1 + 130 * 64, device=DEVICE, dtype=dtype)
    shifted, init = memory[1:].view(130, 64), distinct_init(7).to(DEVICE, dtype)
    shifted.copy_(clustered_rows(130, 64))
    with use_backend(backend):
        actual, expected = em_project(shifted, init)[0], em_project(shifted.clone(), init)[0]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3
    assert_close("y", actual, expected, tolerance)
