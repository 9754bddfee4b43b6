"""The ops that EM is made of, with their gradients, and what torch checks of every op."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import DEVICE, DTYPES, Problem, compare, unavailable
from torch import Tensor

import emcl_kernels
from emcl_kernels import reference, use_backend
from emcl_kernels.testing import assert_close, clustered_rows, relative_error

sys.path.append(str(Path(__file__).parent.parent / "kernels"))
from test_ops import arguments, op_of  # the table of arguments of every op

SHAPES = [((), 1, 16), ((2,), 7, 63), ((), 41, 130), ((3,), 63, 1), ((), 1000, 41), ((2, 2), 130, 512), ((), 257, 1024)]
BASES = [(1, 1, 1), (16, 1, 9), (63, 7, 9), (130, 32, 1), (41, 33, 4), (512, 32, 9), (256, 128, 3), (1024, 32, 9)]
LARGE = [((), 16512, 512), ((), 4000, 1024)]


@pytest.mark.short
def test_backend_is_available(backend: str) -> None:
    assert unavailable(backend) == ""


def test_new_memory_holds_nan() -> None:
    """What the other tests rely on: an output that no kernel wrote cannot pass."""
    assert bool(torch.empty(1000, device=DEVICE).isnan().all())


def moments(x: Tensor) -> dict[str, Tensor]:
    gram, colsum = emcl_kernels.em_moments(x)
    return {"gram": gram, "colsum": colsum}


def moments_formula(x: Tensor) -> dict[str, Tensor]:
    gram, colsum = reference.em_moments(x)
    return {"gram": gram, "colsum": colsum}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("leading", "rows", "width"), SHAPES)
def test_moments(backend: str, leading: tuple[int, ...], rows: int, width: int, dtype: torch.dtype) -> None:
    x = clustered_rows(*leading, rows, width)
    compare(backend, Problem({"x": x}, dtype, ("x",), ("x",)), moments, moments_formula)


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("leading", "rows", "width"), LARGE)
def test_moments_of_many_rows(backend: str, leading: Any, rows: int, width: int, dtype: torch.dtype) -> None:
    test_moments(backend, leading, rows, width, dtype)


def fit_problem(leading: tuple[int, ...], width: int, bases: int) -> Problem:
    """Not symmetric: the gradient must be right for any matrix, though EM only sees xᵀx."""
    x = 3 * clustered_rows(*leading, 2 * width, width)
    # one start per row: from one value per basis, nine iterations can amplify rounding until no float32 agrees
    start = torch.randn(*leading, 2 * width, bases, dtype=torch.float64)
    logits = x.mT @ (start / torch.linalg.vector_norm(start, dim=-2, keepdim=True))
    gram = x.mT @ x
    tensors = {"gram": gram + 1e-3 * torch.rand(gram.shape, dtype=torch.float64), "logits": logits}
    return Problem(tensors, torch.float32, (), ("gram", "logits"))


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize(("width", "bases", "iters"), BASES)
def test_fit(backend: str, leading: tuple[int, ...], width: int, bases: int, iters: int) -> None:
    def ours(gram: Tensor, logits: Tensor) -> dict[str, Tensor]:
        responsibilities, scale = emcl_kernels.em_fit(gram, logits, num_iters=iters)
        return {"responsibilities": responsibilities, "scale": scale}

    def formula(gram: Tensor, logits: Tensor) -> dict[str, Tensor]:
        responsibilities, scale = reference.em_fit(gram, logits, num_iters=iters, temperature=1.0)
        return {"responsibilities": responsibilities, "scale": scale}

    compare(backend, fit_problem(leading, width, bases), ours, formula, through_em=True)


@pytest.mark.large
def test_fit_of_many_problems(backend: str) -> None:
    """The same few problems again and again: each has the result of the first."""
    problem = fit_problem((4,), 512, 32)
    gram, logits = (tensor.float().to(DEVICE) for tensor in problem.tensors.values())
    expected, _ = reference.em_fit(*problem.tensors.values(), num_iters=9, temperature=1.0)
    with use_backend(backend):
        responsibilities, _ = emcl_kernels.em_fit(gram.repeat(256, 1, 1), logits.repeat(256, 1, 1))
    assert torch.equal(responsibilities, responsibilities[:4].repeat(256, 1, 1))
    with use_backend("reference"):
        plain, _ = emcl_kernels.em_fit(gram, logits)
    allowed = max(1e-5, 4 * relative_error(plain.cpu(), expected))
    assert_close("responsibilities", responsibilities[:4].cpu(), expected, allowed)


def reconstruct_problem(leading: tuple[int, ...], rows: int, width: int, bases: int, dtype: torch.dtype) -> Problem:
    tensors = {
        "x": clustered_rows(*leading, rows, width),
        "responsibilities": torch.rand(*leading, width, bases, dtype=torch.float64),
        "scale": torch.rand(*leading, bases, dtype=torch.float64) / width,
    }
    return Problem(tensors, dtype, ("x",), ("x", "responsibilities", "scale"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bases", [1, 7, 32, 128])
@pytest.mark.parametrize(("leading", "rows", "width"), SHAPES)
def test_reconstruct(
    backend: str, leading: tuple[int, ...], rows: int, width: int, bases: int, dtype: torch.dtype
) -> None:
    def ours(x: Tensor, responsibilities: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"y": emcl_kernels.em_reconstruct(x, responsibilities, scale, weight=-2.0)}

    def formula(x: Tensor, responsibilities: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"y": reference.em_reconstruct(x, responsibilities, scale, weight=-2.0)}

    compare(backend, reconstruct_problem(leading, rows, width, bases, dtype), ours, formula)


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("leading", "rows", "width"), LARGE)
def test_reconstruct_of_many_rows(backend: str, leading: Any, rows: int, width: int, dtype: torch.dtype) -> None:
    test_reconstruct(backend, leading, rows, width, 32, dtype)


def on_device(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().to(DEVICE).requires_grad_(argument.requires_grad)


# opcheck itself looks at .grad of the intermediate tensors of a composed op
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("case", list(arguments()))
def test_opcheck(backend: str, case: str) -> None:
    with use_backend(backend):
        torch.library.opcheck(op_of(case), tuple(on_device(argument) for argument in arguments()[case]))
