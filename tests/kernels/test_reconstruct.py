"""em_reconstruct over every backend: a fitted map applied to rows, forward and backward."""

import pytest
import torch
from compare import Problem, compare
from refusals import Refusal, refusals
from torch import Tensor

from emcl_kernels import em_reconstruct, reference
from emcl_kernels.testing import SUMMED_IN, assert_close, bound, clustered_rows

# (leading, rows, width, bases)
ODD = [
    ((), 1, 1, 1),
    ((), 1, 16, 7),
    ((2,), 7, 63, 32),
    ((), 41, 130, 1),
    ((3,), 63, 1, 7),
    ((2, 2), 33, 24, 41),
    ((), 1000, 41, 7),
    ((), 50, 300, 128),
]
BIG = [((), 1037, 512, 130), ((2, 2), 130, 512, 32), ((), 257, 1024, 128)]
LARGE = [((), 16512, 512, 32), ((), 4000, 1024, 32)]
SHAPES = [
    *ODD,
    *(pytest.param(*shape, marks=pytest.mark.compiled) for shape in BIG),
    *(pytest.param(*shape, marks=pytest.mark.large) for shape in LARGE),
]


def ours(x: Tensor, responsibilities: Tensor, scale: Tensor) -> dict[str, Tensor]:
    return {"y": em_reconstruct(x, responsibilities, scale, weight=-2.0)}


def formula(x: Tensor, responsibilities: Tensor, scale: Tensor) -> dict[str, Tensor]:
    return {"y": reference.em_reconstruct(x, responsibilities, scale, weight=-2.0)}


def problem(leading: tuple[int, ...], rows: int, width: int, bases: int, dtype: torch.dtype) -> Problem:
    tensors = {
        "x": clustered_rows(*leading, rows, width),
        "responsibilities": torch.rand(*leading, width, bases, dtype=torch.float64),
        "scale": torch.rand(*leading, bases, dtype=torch.float64) / width,
    }
    return Problem(tensors, dtype, ("x",), ("x", "responsibilities", "scale"))


@pytest.mark.parametrize(("leading", "rows", "width", "bases"), SHAPES)
def test_values_and_gradients(
    backend: str, dtype: torch.dtype, device: str, leading: tuple[int, ...], rows: int, width: int, bases: int
) -> None:
    compare(backend, device, problem(leading, rows, width, bases, dtype), ours, formula)


def test_a_map_by_hand(backend: str, dtype: torch.dtype, device: str) -> None:
    # x·(r·scale) = [1·½ + 2·½] · 2 = [3]; y = x + 3 · [3]·[½, ½] = [1 + 4½, 2 + 4½].
    x = torch.tensor([[1.0, 2.0]], device=device, dtype=dtype)
    sums = SUMMED_IN[dtype]
    half, two = torch.full((2, 1), 0.5, device=device, dtype=sums), torch.tensor([2.0], device=device, dtype=sums)
    assert em_reconstruct(x, half, two).tolist() == [[5.5, 6.5]]


def test_views_are_read_as_they_are(backend: str, dtype: torch.dtype, device: str) -> None:
    x = clustered_rows(64, 48).to(device, dtype)
    sums = SUMMED_IN[dtype]
    for view in (x.T, x[::2], x[:, 3:30], x.expand(2, 64, 48), x[1:]):
        width = view.shape[-1]
        fitted = torch.rand(*view.shape[:-2], width, 7, device=device, dtype=sums)
        scale = torch.rand(*view.shape[:-2], 7, device=device, dtype=sums) / width
        expected = em_reconstruct(view.contiguous(), fitted, scale)
        assert_close("y", em_reconstruct(view, fitted, scale), expected, bound(dtype))


x, logits = torch.ones(8, 4), torch.ones(4, 3)
BAD: list[Refusal] = [
    ("map of another width", lambda: torch.ops.emcl.em_reconstruct(x, logits[:3], torch.ones(3), 1.0), ValueError,
     r"responsibilities has shape \[3, 3\] but x has shape \[8, 4\]; expected \[4, K\]"),
    ("map in half precision", lambda: em_reconstruct(x, logits.half(), torch.ones(3)), TypeError,
     r"responsibilities is torch.float16; expected torch.float32 .* pass"),
    ("scale of another size", lambda: torch.ops.emcl.em_reconstruct(x, logits, torch.ones(2), 1.0), ValueError,
     r"scale has shape \[2\] .* one value per basis"),
]  # fmt: skip


test_bad_input_is_refused_with_the_way_out = refusals(BAD)
