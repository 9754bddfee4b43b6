"""What every op promises torch: opcheck, gradcheck, autocast, vmap, second derivatives refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emcl_kernels
from emcl_kernels import dispatch, reference, use_backend
from emcl_kernels.backends import triton as triton_backend
from emcl_kernels.ops import moments
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

ops = torch.ops.emcl


def arguments(dtype: torch.dtype = torch.float32, grad: bool = True) -> dict[str, tuple[Any, ...]]:
    """Arguments of every op, with a batch where it takes one."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).detach().requires_grad_(grad)

    x, init = clustered_rows(2, 9, 6), distinct_init(2, 3)
    gram, colsum = x.mT @ x, x.sum(-2)
    logits = colsum.unsqueeze(-1) * init.unsqueeze(-2)
    r, s = reference.em_fit(gram, logits, num_iters=9, temperature=1.0)
    text, frames, mask = clustered_rows(4, 6), clustered_rows(3, 2, 6), torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    em, nothing = (9, 0.5, 3.0, 1e-6), torch.empty(0, dtype=dtype)
    table: dict[str, tuple[Any, ...]] = {
        "em_moments": (leaf(x),),
        "em_fit": (leaf(gram), leaf(logits), 4, 0.5, 1e-6),
        "em_reconstruct": (leaf(x), leaf(r), leaf(s), -2.0),
        "_em_project_fixed": (leaf(x), leaf(init), *em, True),
        "_pooled_moments": (leaf(text), leaf(frames), mask, 2.0, True),
        "_snapshot": (leaf(init),),
        "_pooled_cosine": (leaf(text), leaf(frames), mask, nothing, leaf(r[0]), leaf(s[0]), 3.0, 2.0, True),
        "_pooled_cosine.constant_map": (
            *(leaf(text), leaf(frames), mask, nothing, r[0].to(dtype), s[0].to(dtype)),
            *(3.0, 2.0, False),
        ),
        "_pooled_blocks": (text.to(dtype), frames.to(dtype), mask, init[0].to(dtype), 2, 3.0, *em, True),
        "pooled_similarity_blocks": (text.to(dtype), frames.to(dtype), mask, init[0].to(dtype), 2, 3.0, *em, True),
        "_em_moments_backward": (gram.to(dtype), colsum.to(dtype), x.to(dtype)),
        "_em_fit_backward": (r.to(dtype), s.to(dtype), gram.to(dtype), logits.to(dtype), 4, 0.5, 1e-6),
        "_em_reconstruct_backward": (x.to(dtype), x.to(dtype), r.to(dtype), s.to(dtype), -2.0),
        "_pooled_moments_backward": (
            gram[0].to(dtype),
            colsum[0].to(dtype),
            text.to(dtype),
            frames.to(dtype),
            mask,
            nothing,
            2.0,
            True,
        ),
        "_pooled_cosine_backward": (
            torch.ones(4, 3, dtype=dtype),
            text.to(dtype),
            frames.to(dtype),
            mask,
            nothing,
            r[0].to(dtype),
            s[0].to(dtype),
            torch.ones(4, 3, dtype=dtype) / 2,
            torch.ones(4, 3, dtype=dtype),
            3.0,
            2.0,
            False,
        ),
    }
    for gradient in ("identity", "linear", "full"):
        table[f"em_project.{gradient}"] = (leaf(x), leaf(init), *em, gradient)
        table[f"em_project.{gradient}.per_row"] = (leaf(x), leaf(distinct_init(2, 9, 3)), *em, gradient)
        table[f"pooled_similarity.{gradient}"] = (leaf(text), leaf(frames), mask, leaf(init[0]), 3.0, *em, gradient)
    return table


def op_of(case: str) -> Callable[..., Any]:
    return getattr(ops, case.split(".")[0]).default


CASES = list(arguments())
# "identity" and "linear" hold EM constant by definition, so gradcheck does not apply; they are compared elsewhere
EXACT = [
    "em_moments",
    "em_fit",
    "em_reconstruct",
    "em_project.full",
    "em_project.full.per_row",
    "_pooled_moments",
    "_pooled_cosine",
    "pooled_similarity.full",
]
BACKENDS = ["triton"] if triton_backend.INTERPRETED else ["reference", "native"]


@pytest.mark.skipif(triton_backend.INTERPRETED, reason="this is that process")
def test_opcheck_in_tritons_interpreter() -> None:
    """Triton reads TRITON_INTERPRET when it is imported, so this file runs again in a process of its own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    # without the type checks, which the kernels' own decorator does not bear
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", __file__, "-k", "test_opcheck and not per_row"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]


# opcheck itself looks at .grad of the intermediate tensors of a composed op
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str, case: str) -> None:
    with use_backend(backend):
        torch.library.opcheck(op_of(case), arguments()[case])


@pytest.mark.parametrize("case", EXACT)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_gradcheck(backend: str, case: str) -> None:
    with use_backend(backend):
        assert torch.autograd.gradcheck(op_of(case), arguments(torch.float64)[case], atol=1e-6)


@pytest.mark.parametrize("case", ["em_project.identity", "em_project.full", "pooled_similarity.identity"])
def test_autocast_computes_as_without(case: str) -> None:
    args = arguments()[case]
    expected = op_of(case)(*args)
    for backend in ("reference", "native"):
        with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
            actual = op_of(case)(*args)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == b.dtype
            assert_close(case, a, b)


def test_autocast_takes_text_and_frames_of_different_dtypes() -> None:
    text, frames, *rest = arguments(grad=False)["pooled_similarity.identity"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity, _ = ops.pooled_similarity(text.bfloat16(), frames, *rest)
    assert similarity.dtype == torch.float32


@pytest.mark.parametrize("case", ["em_moments", "em_fit", "em_reconstruct", "em_project.identity", "em_project.full"])
def test_vmap_equals_a_loop(case: str) -> None:
    tensors = [arg for arg in arguments(torch.float64, grad=False)[case] if isinstance(arg, Tensor)]
    rest = [arg for arg in arguments(torch.float64)[case] if not isinstance(arg, Tensor)]
    op = op_of(case)

    def call(*inputs: Tensor) -> Any:
        return op(*inputs, *rest)

    actual = torch.vmap(call)(*tensors)
    expected = [call(*(tensor[i] for tensor in tensors)) for i in range(2)]
    actual = actual if isinstance(actual, tuple) else (actual,)
    expected = [out if isinstance(out, tuple) else (out,) for out in expected]
    for i, a in enumerate(actual):
        assert_close(case, a, torch.stack([out[i] for out in expected]), 1e-12)


def test_vmap_of_the_pooled_similarity() -> None:
    text, frames, mask, init, *rest = arguments(torch.float64, grad=False)["pooled_similarity.identity"]
    texts = torch.stack([text, -text])
    actual, _ = torch.vmap(lambda t: ops.pooled_similarity(t, frames, mask, init, *rest))(texts)
    expected = torch.stack([ops.pooled_similarity(t, frames, mask, init, *rest)[0] for t in texts])
    assert_close("similarity", actual, expected, 1e-12)


def test_second_derivatives_are_refused() -> None:
    x = clustered_rows(5, 4).requires_grad_()
    (d_x,) = torch.autograd.grad(emcl_kernels.em_moments(x)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        d_x.sum().backward()


def test_the_same_input_gives_the_same_bits() -> None:
    args = arguments(grad=False)["pooled_similarity.identity"]
    assert torch.equal(ops.pooled_similarity(*args)[0], ops.pooled_similarity(*args)[0])


def test_backend_by_name_runs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clustered_rows(5, 4)
    monkeypatch.setattr(dispatch.BACKENDS["native"], "reason", "it is not here")
    dispatch.choices.clear()
    with use_backend("native"), pytest.raises(RuntimeError, match=r'backend "native" is not available .*not here'):
        emcl_kernels.em_moments(x)
    assert dispatch.which(moments.op, (x,))[0] == "reference"


def test_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._explain.cache_clear()
    dispatch.choices.clear()
    with caplog.at_level("DEBUG", logger="emcl_kernels"), use_backend("reference"):
        emcl_kernels.em_moments(clustered_rows(5, 4))
    assert "em_moments runs on reference (asked for by name)" in caplog.text
