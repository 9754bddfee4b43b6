"""em_moments over every backend: xᵀx and column sums of rows, and their gradient."""

import math

import pytest
import torch
from compare import Problem, compare
from refusals import Refusal, refusals
from torch import Tensor

from emcl_kernels import em_moments, reference
from emcl_kernels.testing import assert_close, bound, clustered_rows

# (leading, rows, width)
ODD = [
    ((), 1, 1),
    ((), 1, 16),
    ((2,), 7, 63),
    ((), 41, 130),
    ((3,), 63, 1),
    ((), 300, 1),
    ((2, 2), 33, 24),
    ((), 1000, 41),
    ((), 50, 300),
]
BIG = [((), 1037, 512), ((2, 2), 130, 512), ((), 257, 1024)]
LARGE = [((), 16512, 512), ((), 4000, 1024)]
SHAPES = [
    *ODD,
    *(pytest.param(*shape, marks=pytest.mark.compiled) for shape in BIG),
    *(pytest.param(*shape, marks=pytest.mark.large) for shape in LARGE),
]


def ours(x: Tensor) -> dict[str, Tensor]:
    gram, colsum = em_moments(x)
    return {"gram": gram, "colsum": colsum}


def formula(x: Tensor) -> dict[str, Tensor]:
    gram, colsum = reference.em_moments(x)
    return {"gram": gram, "colsum": colsum}


@pytest.mark.parametrize(("leading", "rows", "width"), SHAPES)
def test_values_and_gradient(
    backend: str, dtype: torch.dtype, device: str, leading: tuple[int, ...], rows: int, width: int
) -> None:
    x = clustered_rows(*leading, rows, width)
    compare(backend, device, Problem({"x": x}, dtype, ("x",), ("x",)), ours, formula)


# float32 may be multiplied as pairs of 16 bits, if those keep 22: each number is then off by 2^-22 of itself at most,
# of either sign, which averages out over rows. Sums in tensor cores are cut and not rounded, by 2^-24 on average and
# six times in 32 rows. Together that is less than this.
PAIRS = 2.0**-21


def float32_rows(rows: int, width: int, order: str) -> Tensor:
    """Positive, so that nothing cancels and errors of one sign add up; by `order`, in scales that differ."""
    x = torch.rand(rows, width, dtype=torch.float64) + 0.1
    scales = torch.logspace(-12, 0, rows, dtype=torch.float64)
    if order == "growing":
        x *= scales[:, None]
    elif order == "shrinking":
        x *= scales.flip(0)[:, None]
    elif order == "mixed":
        x *= 10.0 ** torch.randint(-3, 4, (rows, 1))
    elif order == "channels":
        x *= torch.logspace(-12, 12, width, dtype=torch.float64)
    elif order == "zeros first":
        x[: rows // 2, ::2] = 0
        x[: rows // 3] = 0
    elif order == "large once":
        x[rows // 2, width // 2] *= 1e7
    return x.float()


@pytest.mark.parametrize("order", ["alike", "growing", "shrinking", "mixed", "channels", "zeros first", "large once"])
def test_products_of_float32_are_exact_to_22_bits_whatever_the_scales(backend: str, device: str, order: str) -> None:
    for rows, width in ((300, 130), (33, 7)):
        x = float32_rows(rows, width, order)
        gram, colsum = em_moments(x.to(device))
        expected, expected_colsum = reference.em_moments(x.double())

        # Each number against the lengths of its two channels: a small channel counts as much as a large one.
        length = expected.diagonal().sqrt()
        error = (gram.double().cpu() - expected).abs() / length[:, None] / length
        assert float(error.square().mean().sqrt()) < PAIRS
        assert_close("colsum", colsum.cpu(), expected_colsum, 1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e-4, 1e4, 1e15])
def test_a_scale_of_all_rows_changes_no_bit(backend: str, device: str, scale: float) -> None:
    scale = 2.0 ** round(math.log2(scale))
    x = clustered_rows(70, 130).float().to(device)
    for scaled, expected in zip(em_moments(x * scale), em_moments(x), strict=True):
        power = scale**2 if scaled.ndim == 2 else scale
        assert torch.equal(scaled, expected * power)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_spoils_its_own_channel_alone(backend: str, device: str, value: float) -> None:
    x = clustered_rows(70, 130).float().to(device)
    expected, _ = em_moments(x)
    x[40:, 5] = value
    gram, _ = em_moments(x)
    others = torch.arange(130, device=device) != 5
    assert torch.equal(gram[others][:, others], expected[others][:, others])
    assert not bool(gram[5].isfinite().any() or gram[:, 5].isfinite().any())


def test_gram_is_symmetric_to_the_bit(backend: str, dtype: torch.dtype, device: str) -> None:
    gram, _ = em_moments(clustered_rows(2, 130, 63).to(device, dtype))
    # A library's product of two matrices does not know that they are one: cuBLAS, and on some processors the CPU's,
    # which is numpy's own for a tile in Triton's interpreter.
    library = backend in ("torch", "reference") or (backend == "triton" and device == "cpu")
    assert torch.equal(gram, gram.mT) or library


def test_memory_that_starts_anywhere_and_views_are_taken(backend: str, dtype: torch.dtype, device: str) -> None:
    x = clustered_rows(40, 33).to(device, dtype)
    # One number from an address that 16 divides.
    shifted = torch.empty(x.numel() + 1, dtype=dtype, device=device)[1:].view(40, 33).copy_(x)
    expected = em_moments(x)
    for view in (shifted, torch.cat([x, x], 1)[:, :33], x.T.contiguous().T, x.expand(2, 40, 33)[1]):
        for a, b in zip(em_moments(view), expected, strict=True):
            assert_close("moments", a, b, bound(a.dtype, 40))
            # Torch's own products, of which the reference is made, may add in another order.
            assert backend in ("reference", "torch") or torch.equal(a, b)


def test_a_gradient_may_be_beyond_the_dtype_of_the_rows(backend: str, half: torch.dtype, device: str) -> None:
    x = (clustered_rows(64, 24) * 2**-12).to(device, half).requires_grad_()
    d_gram = 1e6 * torch.randn(24, 24, device=device)
    (d_x,) = torch.autograd.grad((em_moments(x)[0] * d_gram).sum(), x)
    expected = x.detach().double() @ (d_gram + d_gram.mT).double()
    assert_close("d_x", d_x, expected, bound(half, 24))


def test_no_problems(backend: str, device: str) -> None:
    x = torch.ones(0, 5, 4, device=device, requires_grad=True)
    gram, colsum = em_moments(x)
    assert (gram.shape, colsum.shape) == ((0, 4, 4), (0, 4))
    assert torch.autograd.grad(gram.sum(), x)[0].shape == x.shape


BAD: list[Refusal] = [
    ("one dimension", lambda: torch.ops.emcl.em_moments(torch.ones(4)), ValueError,
     r"x has shape \[4\]; expected \[\*, N, D\]"),
    ("no rows", lambda: em_moments(torch.ones(0, 4)), ValueError, r"x has shape \[0, 4\]; EM needs at least one row"),
    ("integers", lambda: torch.ops.emcl.em_moments(torch.ones(8, 4).long()), TypeError,
     r"x is torch.int64; .* pass x.float\(\)"),
]  # fmt: skip


test_bad_input_is_refused_with_the_way_out = refusals(BAD)
