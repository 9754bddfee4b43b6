"""Settings that are numbers, by one rule for ops, layers and refiners: NaN, infinity and the like are refused."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from emcl_kernels import (
    EMCL,
    EMRefiner,
    Refiner,
    em_fit,
    em_project,
    em_reconstruct,
    pooled_cosine_similarity,
    pooled_similarity,
    pooled_similarity_blocks,
    use_backend,
)
from emcl_kernels.refine import Whitening
from emcl_kernels.stream import pooled_cosine_similarity_stream, pooled_similarity_stream
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

x = clustered_rows(20, 8).float()
text, frames, mask = clustered_rows(5, 8).float(), clustered_rows(4, 3, 8).float(), torch.ones(4, 3).bool()
init = distinct_init(3).float()
fitted = torch.rand(8, 3), torch.rand(3)
gram, logits = torch.eye(8), torch.rand(8, 3)

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "em_fit": (em_fit, (gram, logits)),
    "em_reconstruct": (em_reconstruct, (x, *fitted)),
    "em_project": (em_project, (x, init)),
    "em_project of few rows": (em_project, (x[:5], init)),
    "pooled_similarity": (pooled_similarity, (text, frames, mask, init)),
    "pooled_similarity_blocks": (pooled_similarity_blocks, (text, frames, mask, init)),
    "pooled_cosine_similarity": (pooled_cosine_similarity, (text, frames, mask)),
    "pooled_similarity_stream": (pooled_similarity_stream, (text, frames, mask, init)),
    "pooled_cosine_similarity_stream": (pooled_cosine_similarity_stream, (text, frames, mask)),
    "EMCL": (EMCL, ()),
    "EMRefiner": (EMRefiner, ()),
    "Refiner": (Refiner, ()),
    "Whitening": (Whitening, ()),
}
OF_FLOATS = [
    (name, setting)
    for name, (function, _) in FUNCTIONS.items()
    for setting, parameter in inspect.signature(function).parameters.items()
    if isinstance(parameter.default, float)
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e39, -1e300])
@pytest.mark.parametrize(("name", "setting"), OF_FLOATS)
def test_a_setting_that_is_not_finite_is_refused_by_name(name: str, setting: str, value: float) -> None:
    function, given = FUNCTIONS[name]
    with pytest.raises(ValueError, match=f"^{setting} is {value}".replace("+", r"\+")):
        function(*given, **{setting: value})


def test_every_setting_is_covered() -> None:
    names = {setting for _, setting in OF_FLOATS}
    assert names >= {"temperature", "residual_weight", "eps", "pooling_temperature", "weight", "momentum", "mean_share"}


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("rows", [5, 20])
def test_a_weight_that_is_not_finite_at_every_path(rows: int, relative: bool, gradient: Any) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"weight is {value}; expected a finite number"):
            em_project(x[:rows], init, residual_weight=value, gradient=gradient, relative=relative)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-320])
@pytest.mark.parametrize("name", [name for name, setting in OF_FLOATS if setting.endswith("temperature")])
def test_a_temperature_that_float32_cannot_divide_by_is_refused(name: str, value: float) -> None:
    function, given = FUNCTIONS[name]
    for setting in ("temperature", "pooling_temperature"):
        if (name, setting) in OF_FLOATS:
            with pytest.raises(ValueError, match=f"^{setting} is {value}; expected a number above 0"):
                function(*given, **{setting: value})


# ---- eps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1e-30, 1e-19, 1e-30, 1e-300])
@pytest.mark.parametrize("name", [name for name, setting in OF_FLOATS if setting == "eps"])
def test_an_eps_whose_square_no_float_divides_by_is_refused(name: str, value: float) -> None:
    function, given = FUNCTIONS[name]
    with pytest.raises(ValueError, match=f"^eps is {value}; expected 0 or a small number above it"):
        function(*given, eps=value)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("eps", [1e-18, 1e-15, 1e-12, 1e-6])
@pytest.mark.parametrize("rows", [5, 40, 300])
def test_a_basis_without_a_channel(backend: str, device: str, rows: int, eps: float, relative: bool) -> None:
    """Of such a basis eps alone is left to divide by, more than once. It adds nothing."""
    rows_ = (clustered_rows(rows, 8).float() + 1).to(device)
    start = torch.tensor([1e4, 5e3, -1e4], device=device)
    y, mean_bases = em_project(rows_, start, num_iters=1, eps=eps, temperature=1e-2, relative=relative)
    only, _ = em_project(rows_, start[:1], num_iters=1, eps=eps, temperature=1e-2, relative=relative)
    assert bool(y.isfinite().all())
    assert bool(mean_bases.isfinite().all())
    assert_close("y", y.double(), only.double(), 1e-5)


# ---- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bases", [2, 3, 8, 17])
@pytest.mark.parametrize("size", [1e3, 1e9, 3e12, 1e20, 1e30])
def test_one_basis_takes_a_channel_however_large_the_logits(
    backend: str, sums: torch.dtype, device: str, size: float, bases: int
) -> None:
    """A third of every logit is no number of base two, so that the product with 1/temperature is rounded."""
    torch.manual_seed(0)
    order = torch.stack([torch.randperm(bases) for _ in range(24)])
    logits = ((1 + order.to(sums)) * size).to(device)
    responsibilities, _ = em_fit(torch.eye(24, dtype=sums, device=device), logits, num_iters=1, temperature=3.0)
    taken = torch.nn.functional.one_hot(order.argmax(1), bases).to(sums)
    expected = taken / (1e-6 + taken.sum(0))
    torch.testing.assert_close(responsibilities.cpu(), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("rows", [5, 40])
def test_rows_of_any_size_find_the_same_responsibilities(backend: str, device: str, rows: int) -> None:
    """From some size on a softmax is a choice, and a larger size changes nothing."""
    torch.manual_seed(0)
    given, start = clustered_rows(rows, 24).float().to(device), torch.tensor([3.0, 1.0, -1.0, -2.0], device=device)
    results: list[Tensor] = []
    for temperature in (1e-6, 1e-10, 1e-14, 1e-20):
        y, _ = em_project(given, start, num_iters=1, temperature=temperature)
        results.append(y)
    for y in results[1:]:
        assert_close("y", y.double(), results[0].double(), 1e-4)


# ---- integers --------------------------------------------------------------------------------------------------------

LARGE = (2**31, 2**32 + 1, 2**62, sys.maxsize - 8, sys.maxsize)


@pytest.mark.parametrize("value", [*LARGE, 1_000_001, 0, -1, -(2**63)])
@pytest.mark.parametrize(
    "name", [n for n, (f, _) in FUNCTIONS.items() if "num_iters" in inspect.signature(f).parameters]
)
def test_iterations_beyond_any_use_are_refused(name: str, value: int) -> None:
    function, given = FUNCTIONS[name]
    with pytest.raises(ValueError, match=f"^num_iters is {value}; "):
        function(*given, num_iters=value)


@pytest.mark.parametrize("em_block", LARGE)
def test_a_block_of_any_size_holds_everything(backend: str, device: str, em_block: int) -> None:
    given = [tensor.to(device) for tensor in (text, frames, mask, init)]
    expected = pooled_similarity_blocks(*given, em_block=5)
    assert torch.equal(pooled_similarity_blocks(*given, em_block=em_block), expected)
    assert torch.equal(torch.cat(list(pooled_similarity_stream(*given, em_block=em_block))), expected)


@pytest.mark.parametrize("chunk", [*LARGE, 2**63, 2**200])
@pytest.mark.parametrize("em_block", [None, 3, sys.maxsize])
def test_a_chunk_of_any_size_holds_everything(em_block: int | None, chunk: int) -> None:
    expected = torch.cat(list(pooled_similarity_stream(text, frames, mask, init, em_block=em_block)))
    found = list(pooled_similarity_stream(text, frames, mask, init, em_block=em_block, chunk=chunk))
    assert torch.equal(torch.cat(found), expected)
    assert len(list(pooled_cosine_similarity_stream(text, frames, mask, chunk=chunk))) == 1


@pytest.mark.parametrize("shape", [(2**43, 4, 4), (2**43, 20, 4), (2**62, 4, 4), (2**31, 2**31, 4, 4)], ids=str)
def test_rows_that_no_memory_holds_are_an_error(backend: str, device: str, shape: tuple[int, ...]) -> None:
    """One number in the place of all: a tensor may be said to be of any size."""
    with pytest.raises((RuntimeError, MemoryError, ValueError)):
        em_project(torch.ones((), device=device).expand(shape), torch.ones(3, device=device))


@pytest.mark.parametrize("name", ["native", "reference"])
def test_bases_that_no_memory_holds_are_an_error(name: Any) -> None:
    with use_backend(name), pytest.raises((RuntimeError, MemoryError)):
        em_project(x, torch.ones(()).expand(2**60))
