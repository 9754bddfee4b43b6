"""em_moments over every backend: xᵀx and column sums of rows, and their gradient."""

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


def test_gram_is_symmetric_to_the_bit(backend: str, dtype: torch.dtype, device: str) -> None:
    gram, _ = em_moments(clustered_rows(2, 130, 63).to(device, dtype))
    # cuBLAS multiplies two matrices, and does not know that they are one.
    assert torch.equal(gram, gram.mT) or (backend == "torch" and device == "cuda")


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
