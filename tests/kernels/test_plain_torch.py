"""The backend "torch": its products, and that it is the reference but for them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compare import HALF
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from emcl_kernels import em_moments, em_project, em_reconstruct, pooled_similarity, use_backend
from emcl_kernels.backends import plain_torch, products
from emcl_kernels.backends.products import Narrow
from emcl_kernels.ops import moments, project
from emcl_kernels.testing import assert_close, bound, clustered_rows, distinct_init

ROUNDED = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def with_gradients(call: Callable[..., tuple[Tensor, ...]], *leaves: Tensor) -> tuple[Tensor, ...]:
    """Results of a call, and the gradients of the sum of the first."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    results = call(*leaves)
    return *(result.detach() for result in results), *torch.autograd.grad(results[0].cos().sum(), leaves)


@pytest.mark.parametrize("gradient", ["linear", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_narrow_have_the_bits_of_the_reference(dtype: torch.dtype, gradient: Any) -> None:
    x = clustered_rows(2, 70, 20).to(dtype)
    text = clustered_rows(9, 20).to(dtype)
    frames = clustered_rows(5, 3, 20).to(dtype)
    mask = torch.ones(5, 3, dtype=torch.bool)
    init = distinct_init(4).to(dtype)

    def run() -> list[Tensor]:
        rows = with_gradients(lambda x: em_project(x, init, gradient=gradient), x)
        pairs = with_gradients(lambda t, f: pooled_similarity(t, f, mask, init, gradient=gradient), text, frames)
        return [*rows, *pairs]

    with use_backend("reference"):
        expected = run()
    with use_backend("torch"):
        actual = run()
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)


# ---- numbers that a narrow dtype does not hold -----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
@pytest.mark.parametrize("half", HALF, ids=str)
def test_a_factor_of_any_size_keeps_its_digits(half: torch.dtype, scale: float) -> None:
    """A gradient of a Gram matrix may be beyond float16 at either end; so may one problem's and not another's."""
    x = clustered_rows(2, 30, 24).to(half)
    d_gram = torch.randn(2, 24, 24) * torch.tensor([scale, 1.0]).view(2, 1, 1)
    for left, right in ((x, d_gram), (d_gram, x.mT)):
        expected = left.double() @ right.double()
        for of, allowed in ((Narrow().of, ROUNDED[half]), (Narrow().precise, ROUNDED[half] ** 2)):
            product = of(left, right)
            assert product.dtype == torch.float32
            for problem in (0, 1):
                assert_close("product", product[problem], expected[problem], max(allowed, bound(torch.float32, 30)))


@pytest.mark.parametrize("half", HALF, ids=str)
def test_a_row_that_is_not_finite_harms_no_other(half: torch.dtype) -> None:
    x = clustered_rows(12, 8).to(half)
    fitted = torch.rand(8, 3), torch.rand(3)
    with use_backend("torch"):
        expected = em_reconstruct(x, *fitted)
        for value in (float("nan"), float("inf")):
            broken = x.clone()
            broken[5] = value
            y = em_reconstruct(broken, *fitted)
            assert not y[5].isfinite().any()
            assert torch.equal(y[:5], expected[:5])


def test_sums_stay_in_float32() -> None:
    """70 000 rows of ones: no 16-bit dtype counts so far in steps of one, and float16 has no such number."""
    for half in HALF:
        x = torch.full((70_000, 2), 1.0, dtype=half)
        with use_backend("torch"):
            gram, colsum = em_moments(x)
        assert gram.unique().tolist() == [70_000.0]
        assert colsum.tolist() == [70_000.0, 70_000.0]


# ---- how torch is called on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Take the way of CUDA on the CPU: its two ops with `out_dtype` are made of what a CPU has. Returns their calls."""
    calls: list[str] = []

    def multiply(name: str, dimensions: int) -> Callable[[Tensor, Tensor, torch.dtype], Tensor]:
        def run(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
            assert left.dtype == right.dtype
            assert left.dtype in HALF
            assert out_dtype == torch.float32
            assert left.dim() == right.dim() == dimensions
            calls.append(name)
            return left.float() @ right.float()

        return run

    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", multiply("mm", 2), "CPU")
    library.impl("bmm.dtype", multiply("bmm", 3), "CPU")
    monkeypatch.setattr(products, "adds_in_float32", lambda x: True)
    yield calls
    library._destroy()


SHAPES = [
    ((7, 5), (5, 3)),
    ((2, 7, 5), (5, 3)),
    ((2, 7, 5), (2, 5, 3)),
    ((2, 3, 7, 5), (2, 3, 5, 4)),
    ((0, 7, 5), (0, 5, 3)),
    ((7, 5), (5, 0)),
    ((7, 0), (0, 3)),
    ((2, 7, 0), (2, 0, 3)),
    ((2, 7, 0), (0, 3)),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("half", HALF, ids=str)
def test_the_way_of_cuda_multiplies_alike(
    half: torch.dtype,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    as_on_cuda: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, right = torch.randn(shapes[0]).to(half), torch.randn(shapes[1])
    exact = left.double() @ right.double()
    transposed = right.mT.contiguous().mT
    for factor in (right, transposed, right.to(half)):
        product = Narrow().of(left, factor)
        assert product.dtype == torch.float32
        assert_close("product", product, exact, ROUNDED[half])
    assert as_on_cuda == ["mm" if right.dim() == 2 else "bmm"] * 3

    # One row for all, and a row for each; by one call of cuBLAS, or with the sums in float32.
    for addend in (torch.randn(*exact.shape[:-2], 1, exact.shape[-1]), torch.randn(exact.shape).to(half)):
        for short in (products.SHORT, 0):
            monkeypatch.setattr(products, "SHORT", short)
            as_on_cuda.clear()
            total = Narrow().added(addend, left, right, -2.0)
            assert total.dtype == half
            assert_close("total", total, addend.double() - 2 * exact, 4 * ROUNDED[half])
            assert bool(as_on_cuda) is (left.shape[-1] > short or half == torch.float16)


def test_when_the_way_of_cuda_is_taken() -> None:
    """On a GPU; and one call of cuBLAS, unless its sums are long and the result too small to fill the GPU."""
    with FakeTensorMode():
        assert products.adds_in_float32(torch.empty(2, 2, device="cuda:0"))
    assert not products.adds_in_float32(torch.empty(2, 2))

    def in_one_sum(rows: int, inner: int, columns: int) -> bool:
        return products._in_one_sum(torch.empty(rows, inner, device="meta"), torch.empty(inner, columns, device="meta"))

    assert in_one_sum(7, 256, 5)
    assert not in_one_sum(7, 257, 5)
    assert in_one_sum(8192, 257, 512)
    assert not in_one_sum(8191, 257, 512)


@pytest.mark.parametrize("half", HALF, ids=str)
def test_the_ops_take_the_way_of_cuda(half: torch.dtype, request: pytest.FixtureRequest) -> None:
    x = clustered_rows(2, 40, 24).to(half)
    text = clustered_rows(9, 24).to(half)
    frames = clustered_rows(5, 3, 24).to(half)
    mask = torch.ones(5, 3, dtype=torch.bool)
    init = distinct_init(4).float()

    def run() -> list[Tensor]:
        with use_backend("torch"):
            rows = with_gradients(lambda x: em_project(x, init, gradient="full"), x)
            pairs = with_gradients(lambda t, f: pooled_similarity(t, f, mask, init, gradient="full"), text, frames)
        return [*rows, *pairs]

    expected = run()
    calls = request.getfixturevalue("as_on_cuda")
    for a, b in zip(run(), expected, strict=True):
        assert_close("as on the CPU", a, b, 4 * ROUNDED[half])
    assert {"mm", "bmm"} == set(calls)


def test_a_gpu_without_bfloat16_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        """What `supports` asks of a tensor."""

        is_cuda = True
        device = torch.device("cuda", 0)

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    supports: Any = plain_torch.backend.supports
    assert supports(moments.op, (OnGPU(torch.bfloat16),)) == "compute capability 7.5 has no products in bfloat16"
    assert supports(moments.op, (OnGPU(torch.float16),)) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert supports(project.fixed, (OnGPU(torch.bfloat16),)) is None


@pytest.mark.parametrize("leading", [(), (3,)], ids=str)
@pytest.mark.parametrize("rows", [40, 40_000])
@pytest.mark.parametrize("half", HALF, ids=str)
def test_torch_takes_the_calls_of_cuda(
    half: torch.dtype, rows: int, leading: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own checks of dtypes and shapes, which need neither a GPU nor memory."""
    monkeypatch.setattr(products, "adds_in_float32", lambda x: True)
    functions = plain_torch.backend.functions

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(*leading, rows, 512, dtype=half)
    fitted = empty(*leading, 512, 32), empty(*leading, 32)
    gram, colsum = functions["em_moments"](x)
    assert (gram.shape, colsum.shape) == ((*leading, 512, 512), (*leading, 512))
    assert functions["_em_moments_backward"](gram, colsum, x).dtype == half
    y, mean_bases, *_ = functions["_em_project_fixed"](x, fitted[1], 9, 1.0, 3.0, 1e-6, False)
    assert (y.shape, y.dtype, mean_bases.dtype) == (x.shape, half, torch.float32)
    d_x, *d_fitted = functions["_em_reconstruct_backward"](y, x, *fitted, 3.0)
    assert [d_x.dtype, *(d.dtype for d in d_fitted)] == [half, torch.float32, torch.float32]

    text, frames, mask = empty(9, 512, dtype=half), empty(5, 12, 512, dtype=half), empty(5, 12)
    fitted = empty(512, 32), empty(32)
    gram, colsum, kept = functions["_pooled_moments"](text, frames, mask, 3.0, True)
    cosine, length = functions["_pooled_cosine"](text, frames, mask, kept, *fitted, 3.0, 3.0, False)
    given = (text, frames, mask, kept, *fitted, cosine, length, 3.0, 3.0, False, True, True, True)
    gradients = functions["_pooled_cosine_backward"](cosine, *given)
    gradients += functions["_pooled_moments_backward"](gram, colsum, text, frames, mask, kept, 3.0, True, True, True)
    assert [g.dtype for g in gradients] == [half, half, torch.float32, torch.float32, half, half]
