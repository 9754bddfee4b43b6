"""em_fit over every backend: EM on a Gram matrix, forward and backward."""

import pytest
import torch
from compare import Problem, compare
from refusals import Refusal, refusals
from torch import Tensor

from emcl_kernels import em_fit, reference, use_backend
from emcl_kernels.testing import clustered_rows

# (leading, width, bases, iterations)
ODD = [
    ((), 1, 1, 1),
    ((), 16, 1, 9),
    ((3,), 7, 16, 2),
    ((), 63, 7, 9),
    ((2, 2), 24, 41, 2),
    ((), 130, 32, 1),
    ((), 41, 33, 4),
    ((), 40, 128, 1),
]
BIG = [((3,), 512, 32, 9), ((), 256, 128, 3), ((), 1000, 32, 9)]
SHAPES = [*ODD, *(pytest.param(*shape, marks=pytest.mark.compiled) for shape in BIG)]


def problem(leading: tuple[int, ...], width: int, bases: int, iters: int, sums: torch.dtype) -> Problem:
    """A start for each row: from one value a basis, nine iterations can amplify rounding until no float32 agrees."""
    x = 3 * clustered_rows(*leading, 2 * width, width)
    start = torch.randn(*leading, 2 * width, bases, dtype=torch.float64)
    logits = x.mT @ (start / torch.linalg.vector_norm(start, dim=-2, keepdim=True))
    # Not symmetric: the gradient must be right for any matrix, though EM only sees xᵀx.
    gram = x.mT @ x + 1e-3 * torch.rand(*leading, width, width, dtype=torch.float64)
    return Problem({"gram": gram, "logits": logits}, sums, (), ("gram", "logits"), steps=iters)


@pytest.mark.parametrize(("leading", "width", "bases", "iters"), SHAPES)
def test_values_and_gradients(
    backend: str, sums: torch.dtype, device: str, leading: tuple[int, ...], width: int, bases: int, iters: int
) -> None:
    def ours(gram: Tensor, logits: Tensor) -> dict[str, Tensor]:
        responsibilities, scale = em_fit(gram, logits, num_iters=iters, temperature=1.5, eps=1e-3)
        return {"responsibilities": responsibilities, "scale": scale}

    def formula(gram: Tensor, logits: Tensor) -> dict[str, Tensor]:
        responsibilities, scale = reference.em_fit(gram, logits, num_iters=iters, temperature=1.5, eps=1e-3)
        return {"responsibilities": responsibilities, "scale": scale}

    compare(backend, device, problem(leading, width, bases, iters, sums), ours, formula)


def test_two_bases_by_hand(backend: str, sums: torch.dtype, device: str) -> None:
    # x = [[1, 0]]: gram = [[1, 0], [0, 0]]. Logits [[ln 3, 0], [0, 0]] give p = [[3/4, 1/4], [1/2, 1/2]],
    # r = [[3/5, 1/3], [2/5, 2/3]], gram·r = [[3/5, 1/3], [0, 0]], and the bases' lengths are 3/5 and 1/3.
    gram = torch.tensor([[1.0, 0.0], [0.0, 0.0]], device=device, dtype=sums)
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]], device=device, dtype=sums).log()
    responsibilities, scale = em_fit(gram, logits, num_iters=1, eps=0.0)
    torch.testing.assert_close(responsibilities.cpu(), torch.tensor([[3 / 5, 1 / 3], [2 / 5, 2 / 3]], dtype=sums))
    torch.testing.assert_close(scale.cpu(), torch.tensor([5 / 3, 3.0], dtype=sums))


def test_rows_of_zeros_have_finite_gradients(backend: str, sums: torch.dtype, device: str) -> None:
    gram = torch.zeros(16, 16, device=device, dtype=sums).requires_grad_()
    logits = torch.randn(16, 7, device=device, dtype=sums).requires_grad_()
    fitted = em_fit(gram, logits, num_iters=2)
    gradients = torch.autograd.grad(fitted, (gram, logits), [torch.randn_like(output) for output in fitted])
    assert all(bool(tensor.isfinite().all()) for tensor in (*fitted, *gradients))


def test_nan_is_not_hidden(backend: str, sums: torch.dtype, device: str) -> None:
    """On the CPU it is an error, which a device cannot raise without being waited for."""
    gram = torch.eye(20, device=device, dtype=sums)
    gram[3, 5] = float("nan")
    logits = torch.randn(20, 7, device=device, dtype=sums)
    if device == "cpu":
        with pytest.raises(ValueError, match=r"em_fit: .* not finite"):
            em_fit(gram, logits)
    else:
        assert bool(em_fit(gram, logits)[1].isnan().all())


@pytest.mark.parametrize("sums", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("start", [[1.0], [1.0, -1.0, 1.0, 1.0, -1.0], [0.3, 0.3, -2.0, 0.5]])
def test_bases_that_start_alike_have_the_same_bits(start: list[float], sums: torch.dtype) -> None:
    """The C++ kernels run EM on one of each."""
    x = clustered_rows(300, 40).to(sums)
    with use_backend("native"):
        responsibilities, scale = em_fit(x.mT @ x, x.sum(0)[:, None] * torch.tensor(start, dtype=sums), temperature=0.3)
    for k, value in enumerate(start):
        first = start.index(value)
        assert torch.equal(responsibilities[:, k], responsibilities[:, first])
        assert torch.equal(scale[k], scale[first])


@pytest.mark.large
def test_many_problems_have_the_results_of_a_few(backend: str, device: str) -> None:
    given = problem((4,), 512, 32, 9, torch.float32)
    gram, logits = (tensor.float().to(device) for tensor in given.tensors.values())
    few = em_fit(gram, logits)
    many = em_fit(gram.repeat(256, 1, 1), logits.repeat(256, 1, 1))
    for a, b in zip(many, few, strict=True):
        assert torch.equal(a, b.repeat(256, *(1 for _ in b.shape[1:])))


gram, logits = torch.eye(4), torch.ones(4, 3)
BAD: list[Refusal] = [
    ("temperature zero", lambda: em_fit(gram, logits, temperature=0.0), ValueError, "temperature is 0.0; expected"),
    ("gram not square", lambda: torch.ops.emcl.em_fit(gram[:3], logits, 9, 1.0, 1e-6), ValueError,
     r"gram has shape \[3, 4\]"),
    ("logits of another width", lambda: torch.ops.emcl.em_fit(gram, logits[:3], 9, 1.0, 1e-6), ValueError,
     r"logits has shape \[3, 3\] but gram has shape \[4, 4\]; pass logits of shape \[4, K\]"),
    ("gram in half precision", lambda: em_fit(gram.half(), logits.half()), TypeError, "gram is torch.float16"),
    ("logits in another dtype", lambda: em_fit(gram, logits.double()), TypeError, r"pass logits.to\(gram.dtype\)"),
]  # fmt: skip


test_bad_input_is_refused_with_the_way_out = refusals(BAD)
