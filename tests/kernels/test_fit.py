"""em_fit over every backend: EM on a Gram matrix, forward and backward."""

from typing import Any

import pytest
import torch
from compare import Function, Problem, compare
from emulator import emulate
from refusals import Refusal, refusals
from torch import Tensor

from emcl_kernels import em_fit, reference, use_backend
from emcl_kernels.testing import assert_close, clustered_rows

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


def fit(function: Any, iters: int) -> Function:
    def run(gram: Tensor, logits: Tensor) -> dict[str, Tensor]:
        responsibilities, scale = function(gram, logits, num_iters=iters, temperature=1.5, eps=1e-3)
        return {"responsibilities": responsibilities, "scale": scale}

    return run


def check(backend: str, device: str, shape: tuple[tuple[int, ...], int, int, int], sums: torch.dtype) -> None:
    iters = shape[-1]
    compare(backend, device, problem(*shape, sums), *(fit(function, iters) for function in (em_fit, reference.em_fit)))


@pytest.mark.parametrize(("leading", "width", "bases", "iters"), SHAPES)
def test_values_and_gradients(
    backend: str, sums: torch.dtype, device: str, leading: tuple[int, ...], width: int, bases: int, iters: int
) -> None:
    check(backend, device, (leading, width, bases, iters), sums)


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
    """With the same bits, except by cuBLAS, which takes another kernel for more problems."""
    given = problem((4,), 512, 32, 9, torch.float32)
    gram, logits = (tensor.float().to(device) for tensor in given.tensors.values())
    few = em_fit(gram, logits)
    many = em_fit(gram.repeat(256, 1, 1), logits.repeat(256, 1, 1))
    for a, b in zip(many, few, strict=True):
        expected = b.repeat(256, *(1 for _ in b.shape[1:]))
        if backend == "torch":
            assert_close("many", a, expected, 1e-4)
        else:
            assert torch.equal(a, expected)


# ---- in how many blocks and launches the CUDA kernels fit ------------------------------------------------------------

WAYS = ("cluster8", "cluster16", "steps")


# Of 8 blocks, 300 channels leave the last one idle; of 16, six.
@pytest.mark.slow
@pytest.mark.parametrize("shape", [((2,), 41, 7, 3), ((), 300, 33, 2)], ids=str)
def test_every_way_agrees_with_the_reference(
    shape: tuple[tuple[int, ...], int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate(monkeypatch)
    for way in WAYS:
        monkeypatch.setenv("EMCL_FIT", way)
        check("cuda", "cpu", shape, torch.float32)


def test_the_way_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    given = problem((), 300, 7, 1, torch.float32)
    results = {}
    for way in (*WAYS, "auto", ""):
        monkeypatch.setenv("EMCL_FIT", way)
        with use_backend("cuda"):
            results[way] = torch.cat([part.flatten() for part in em_fit(*map(Tensor.float, given.tensors.values()))])
    for way in WAYS[1:]:
        assert not torch.equal(results[way], results["cluster8"])
        assert_close(way, results[way], results["cluster8"])
    assert torch.equal(results["auto"], results["cluster8"])
    assert torch.equal(results[""], results["cluster8"])


@pytest.mark.parametrize(
    ("way", "device", "width", "reason"),
    [
        ("sideways", {}, 4, 'EMCL_FIT is "sideways"; expected auto, cluster8, cluster16 or steps'),
        (
            "cluster8",
            {"ARCHITECTURE": 80},
            4,
            "cluster8, but clusters need architecture 90, not 80; set it to steps",
        ),
        ("cluster16", {"ARCHITECTURE": 120}, 4, "cluster16, but architecture 120 has clusters of up to 8 blocks"),
        ("cluster8", {}, 513, "a Gram matrix of width 513 is wider than the 512 that it holds"),
        ("cluster16", {}, 769, "a Gram matrix of width 769 is wider than the 768 that it holds"),
        ("cluster8", {"SHARED": 101376}, 512, "is more than the 101376 bytes of shared memory that a block may have"),
        ("cluster16", {"CLUSTER": 8}, 300, "this device has no room for 16 blocks of .* bytes at once"),
    ],
)
def test_a_way_that_cannot_be_is_refused_with_the_reason(
    way: str, device: dict[str, int], width: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate(monkeypatch, **device)
    monkeypatch.setenv("EMCL_FIT", way)
    with use_backend("cuda"), pytest.raises(ValueError, match=reason):
        em_fit(torch.eye(width), torch.ones(width, 3), num_iters=1)


def test_where_there_is_no_room_for_16_blocks_it_goes_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that 8 blocks do not hold."""
    given = [tensor.float() for tensor in problem((), 520, 3, 1, torch.float32).tensors.values()]
    results = {}
    for name, way, device in (("steps", "steps", {}), ("no room", "auto", {"CLUSTER": 8}), ("room", "auto", {})):
        emulate(monkeypatch, **device)
        monkeypatch.setenv("EMCL_FIT", way)
        with use_backend("cuda"):
            results[name] = em_fit(*given, num_iters=1)[0]
    assert torch.equal(results["no room"], results["steps"])
    assert not torch.equal(results["room"], results["steps"])


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
