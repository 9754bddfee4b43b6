"""em_project on every backend that runs on the CPU: the loop in float64 is the ground truth of values and gradients."""

import itertools

import pytest
import torch
from torch import Tensor

from emcl_kernels import em_project, reference, use_backend
from emcl_kernels.testing import TOLERANCE, assert_close, clustered_rows, distinct_init, relative_error

SIZES = list(itertools.product((1, 7, 41, 130, 1000), (16, 63, 512), (1, 7, 32), (1, 9)))
FORMS = list(itertools.product(((), (3,)), (False, True)))
BACKENDS = ("reference", "native")


def sample(rows: int, width: int, bases: int, batch: tuple[int, ...], per_row: bool) -> tuple[Tensor, Tensor]:
    if batch and rows * width > 100_000:
        batch = (2,)  # the large problems twice are enough
    x = clustered_rows(*batch, rows, width)
    return x, distinct_init(*batch, rows, bases) if per_row else distinct_init(*batch, bases)


def within(name: str, actual: Tensor, expected: Tensor, same_formula: Tensor, factor: float = 2) -> None:
    """Within the table, or, where the problem itself is ill-conditioned, no worse than the loop at that dtype."""
    floor = factor / 2 * TOLERANCE[actual.dtype]  # of a gradient d_y is taken away, after both were rounded
    allowed = max(floor, factor * relative_error(same_formula, expected))
    if float(expected.abs().max()) < 1e-12:  # nothing to compare with, such as K = 1, whose gradient vanishes
        assert float(actual.abs().max()) < 1e-4, name
        return
    assert_close(name, actual, expected, allowed)


@pytest.mark.parametrize(("batch", "per_row"), FORMS)
@pytest.mark.parametrize(("rows", "width", "bases", "iters"), SIZES)
def test_values(rows: int, width: int, bases: int, iters: int, batch: tuple[int, ...], per_row: bool) -> None:
    x64, init = sample(rows, width, bases, batch, per_row)
    for dtype in (torch.float64, torch.float32):
        x = x64.to(dtype)
        truth, truth_mean = reference.em_project_loop(x.double(), init, num_iters=iters)
        same, same_mean = reference.em_project_loop(x, init.to(dtype), num_iters=iters)
        for backend in BACKENDS:
            with use_backend(backend):
                y, mean_bases = em_project(x, init.to(dtype), num_iters=iters)
            within(f"{backend} reconstruction", y - x, truth - x.double(), same - x)
            within(f"{backend} mean_bases", mean_bases, truth_mean, same_mean)


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("batch", "per_row"), FORMS)
@pytest.mark.parametrize(
    ("rows", "width", "bases", "iters"),
    [
        (1, 16, 7, 9),
        (7, 63, 32, 1),
        (41, 512, 7, 9),
        (130, 16, 1, 9),
        (130, 63, 7, 9),
        (1000, 63, 32, 9),
        (1000, 16, 7, 1),
    ],
)
def test_gradients(
    rows: int,
    width: int,
    bases: int,
    iters: int,
    batch: tuple[int, ...],
    per_row: bool,
    dtype: torch.dtype,
    gradient: str,
) -> None:
    x, init = sample(rows, width, bases, batch, per_row)
    x = x.to(dtype).double()
    d_y = torch.randn_like(x)

    def gradients(project: object, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_(), init.to(dtype).requires_grad_(gradient == "full")]
        y, mean_bases = project(*inputs, num_iters=iters, gradient=gradient)  # type: ignore[operator]
        loss = (y * d_y.to(dtype)).sum() + (mean_bases.sum() if gradient == "full" else 0)
        return list(torch.autograd.grad(loss, [tensor for tensor in inputs if tensor.requires_grad]))

    truth = gradients(reference.em_project_loop, torch.float64)
    same = gradients(reference.em_project_loop, dtype)
    for backend in BACKENDS:
        with use_backend(backend):
            ours = gradients(em_project, dtype)
        if gradient == "identity":
            assert torch.equal(ours[0], d_y.to(dtype))
            continue
        within(f"{backend} d_x − d_y", ours[0] - d_y.to(dtype), truth[0] - d_y, same[0] - d_y.to(dtype), 8)
        if gradient == "full" and float(truth[1].abs().max()) > 1e-9:
            within(f"{backend} d_init", ours[1], truth[1], same[1], 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width", "bases"), [(41, 63, 7), (130, 512, 32), (1000, 512, 32)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_no_worse_than_plain_torch(
    backend: str, rows: int, width: int, bases: int, dtype: torch.dtype
) -> None:
    x, init = clustered_rows(rows, width).to(dtype), distinct_init(bases).to(dtype)
    truth, _ = reference.em_project_loop(x.double(), init.double())
    plain, _ = reference.em_project_loop(x, init)
    with use_backend(backend):
        y, mean_bases = em_project(x, init)
    assert y.dtype == dtype
    assert mean_bases.dtype == torch.float32
    expected = truth - x.double()
    assert relative_error(y.double() - x.double(), expected) <= 2 * relative_error(
        plain.double() - x.double(), expected
    )


def test_one_start_serves_every_problem() -> None:
    x, init = clustered_rows(3, 40, 16), distinct_init(7)
    assert torch.equal(em_project(x, init)[0], em_project(x, init.expand(3, 7))[0])


def test_strided_rows_are_read_as_they_are() -> None:
    x = clustered_rows(64, 40)
    init = distinct_init(7)
    for view in (x.T, x[::2], x[:, 3:30], x.expand(2, 64, 40)):
        assert_close("y", em_project(view, init)[0], em_project(view.contiguous(), init)[0], 1e-15)
