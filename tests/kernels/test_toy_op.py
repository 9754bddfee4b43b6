"""An op of somebody else's: one declaration, one implementation a backend, and no other file (docs/adding.md)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emcl_kernels import checks, use_backend
from emcl_kernels.backends import reference
from emcl_kernels.ops.define import Gradient, Op, Spec
from tests.kernels.toy.build import DOUBLE_ROWS, build

# ---- the declaration -------------------------------------------------------------------------------------------------


def _accept(x: Tensor, factor: float) -> None:
    checks.rows(x, "x")


def _shapes(x: Tensor, factor: float) -> tuple[Spec, ...]:
    return ((x.shape, x.dtype),)


op = Op(
    "double_rows(Tensor x, float factor=1.0) -> Tensor y",
    accept=_accept,
    shapes=_shapes,
    gradient=Gradient(to=("x",)),
)


# ---- the reference ---------------------------------------------------------------------------------------------------


@reference.backend.implement
def double_rows(x: Tensor, factor: float) -> Tensor:
    return 2 * factor * x


@reference.backend.implement
def _double_rows_backward(d_y: Tensor, x: Tensor, factor: float) -> Tensor:
    return 2 * factor * d_y


# ---- what follows ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The op's C++ file as a library of its own, which registers itself when it is loaded."""
    x = torch.ones(2, 3)
    with use_backend("native"), pytest.raises(RuntimeError, match="it has no implementation of double_rows"):
        op.call(x)
    path = build(DOUBLE_ROWS, tmp_path_factory.mktemp("toy"))
    torch.ops.load_library(str(path))
    return path


BACKENDS = ["reference", "native"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 41), (2, 3, 5)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward(backend: str, shape: tuple[int, ...], dtype: torch.dtype, library: Path) -> None:
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    weights = torch.randn(shape, dtype=dtype)
    with use_backend(backend):
        y = torch.ops.emcl.double_rows(x, 3.0)
        (d_x,) = torch.autograd.grad((y * weights).sum(), x)
    assert torch.equal(y, x * 6)
    assert torch.equal(d_x, weights * 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_torch_asks_of_an_op(backend: str, library: Path) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with use_backend(backend):
        torch.library.opcheck(torch.ops.emcl.double_rows.default, (x,))
        torch.library.opcheck(torch.ops.emcl._double_rows_backward.default, (x.detach(), x.detach(), 2.0))
        assert torch.autograd.gradcheck(torch.ops.emcl.double_rows, (x,))
        assert torch.equal(torch.vmap(torch.ops.emcl.double_rows)(x.detach().expand(5, 4, 3))[2], x * 2)

        compiled = torch.compile(_twice, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), x * 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.ops.emcl.double_rows(x).dtype == x.dtype


def _twice(x: Tensor) -> Any:
    return torch.ops.emcl.double_rows(torch.ops.emcl.double_rows(x))


def test_fake_tensors_and_bad_input() -> None:
    assert torch.ops.emcl.double_rows(torch.empty(5, 2, device="meta")).shape == (5, 2)
    with pytest.raises(ValueError, match=r"x has shape \[3\]; expected \[\*, N, D\]"):
        torch.ops.emcl.double_rows(torch.ones(3))
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        torch.ops.emcl.double_rows(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"_double_rows_backward got torch.float32 of shape \[1, 2\]"):
        torch.ops.emcl._double_rows_backward(torch.ones(1, 2), torch.ones(3, 2), 2.0)
