"""A side that needs no gradient costs none: backward leaves out what only that side's gradient is made of."""

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulator import emulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from emcl_kernels import dispatch, em_project, em_reconstruct, pooled_cosine_similarity, pooled_similarity, use_backend
from emcl_kernels.backends import PythonBackend
from emcl_kernels.ops.define import OPS
from emcl_kernels.testing import clustered_rows, distinct_init

A, B, F, D, K = 7, 5, 3, 16, 4

Function = Callable[[Tensor, Tensor], Tensor]


def pooled(gradient: Any) -> Function:
    def function(text: Tensor, frames: Tensor) -> Tensor:
        init = torch.linspace(-1, 1, K, device=text.device, dtype=text.dtype)
        mask = torch.ones(B, F, device=text.device)
        return pooled_similarity(text, frames, mask, init, gradient=gradient, num_iters=3)[0]

    return function


def cosine(text: Tensor, frames: Tensor) -> Tensor:
    return pooled_cosine_similarity(text, frames, torch.ones(B, F, device=text.device))


CASES: dict[str, Function] = {
    "identity": pooled("identity"),
    "linear": pooled("linear"),
    "full": pooled("full"),
    "without EM": cosine,
}
SIDES = {"text": (True, False), "frames": (False, True), "both": (True, True)}


class Seen(TorchDispatchMode):
    """The outputs of the backward ops of this package, by the names that their schemas have."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, dict[str, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function.namespace == "emcl" and function._opname in OPS:
            outputs = output if isinstance(output, tuple) else (output,)
            names = OPS[function._opname].outputs
            self.sizes[function._opname] = {n: t.numel() for n, t in zip(names, outputs, strict=True)}
        return output


def differentiate(function: Function, side: str, device: str) -> tuple[dict[str, Tensor], Seen]:
    """Gradients of the sides that need one, and what the ops gave."""
    torch.manual_seed(0)
    text = clustered_rows(A, D).float().to(device)
    frames = clustered_rows(B, F, D).float().to(device)
    leaves = {
        name: value.requires_grad_()
        for name, value, needed in zip(("text", "frames"), (text, frames), SIDES[side], strict=True)
        if needed
    }
    value = function(text, frames).cos().sum()
    with Seen() as seen:
        gradients = torch.autograd.grad(value, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True)), seen


@pytest.mark.parametrize("side", ["text", "frames"])
@pytest.mark.parametrize("case", CASES)
def test_only_the_gradient_that_is_needed_is_made(backend: str, device: str, case: str, side: str) -> None:
    expected, _ = differentiate(CASES[case], "both", device)
    gradients, seen = differentiate(CASES[case], side, device)
    assert gradients.keys() == {side}
    assert torch.equal(gradients[side], expected[side])

    # Of the other side nothing is written; of the pulls, only where the gradient goes through EM.
    other = "d_frames" if side == "text" else "d_text"
    for op in ("_pooled_cosine_backward", *(["_pooled_moments_backward"] if case == "full" else [])):
        assert seen.sizes[op][other] == 0
        assert seen.sizes[op][f"d_{side}"] > 0
    pulls = (seen.sizes["_pooled_cosine_backward"][name] for name in ("pull_text", "pull_frames"))
    assert all((size > 0) == (case == "full") for size in pulls)


def test_a_frozen_side_under_torch_func_and_vmap(backend: str, device: str) -> None:
    expected, _ = differentiate(CASES["full"], "both", device)
    torch.manual_seed(0)
    text = clustered_rows(A, D).float().to(device)
    frames = clustered_rows(B, F, D).float().to(device)

    def loss(t: Tensor) -> Tensor:
        return CASES["full"](t, frames).cos().sum()

    mapped = torch.vmap(torch.func.grad(loss))(torch.stack([text, text]))
    for found in (torch.func.grad(loss)(text), mapped[1]):
        torch.testing.assert_close(found, expected["text"], rtol=1e-4, atol=1e-5)


def test_rows_of_a_constant_map_need_no_gradient_of_it(backend: str, device: str) -> None:
    x = clustered_rows(40, D).float().to(device).requires_grad_()
    fitted = torch.rand(D, K, device=device) / D, torch.rand(K, device=device)
    with Seen() as seen:
        (d_x,) = torch.autograd.grad(em_reconstruct(x, *fitted).cos().sum(), x)
    assert "_em_reconstruct_backward" not in seen.sizes

    constant = [tensor.requires_grad_() for tensor in fitted]
    expected, *_ = torch.autograd.grad(em_reconstruct(x, *constant).cos().sum(), (x, *constant))
    torch.testing.assert_close(d_x, expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_start_or_frozen_rows_of_em_project(backend: str, device: str) -> None:
    x = clustered_rows(40, D).float().to(device)
    init = distinct_init(K).float().to(device)
    both = [tensor.clone().requires_grad_() for tensor in (x, init)]
    expected = torch.autograd.grad(em_project(*both, gradient="full")[0].cos().sum(), both)
    for place in (0, 1):
        given = [tensor.clone().requires_grad_(i == place) for i, tensor in enumerate((x, init))]
        with Seen() as seen:
            (found,) = torch.autograd.grad(em_project(*given, gradient="full")[0].cos().sum(), given[place])
        torch.testing.assert_close(found, expected[place], rtol=1e-5, atol=1e-6)
        assert ("_em_moments_backward" in seen.sizes) == (place == 0)


@pytest.mark.parametrize("op", ["_pooled_moments_backward", "_pooled_cosine_backward"])
def test_a_backward_op_without_switches_gives_everything(op: str) -> None:
    """torch.compile keeps graphs on disk; those of a version without switches go on."""
    given = arguments_of_backward(op).values()
    with_switches = OPS[op].call(*given, *[True] * OPS[op].switches)
    for a, b in zip(OPS[op].call(*given), with_switches, strict=True):
        assert torch.equal(a, b)
        assert a.numel() > 0


# ---- the work --------------------------------------------------------------------------------------------------------


TEXTS = 70


def arguments_of_backward(op: str) -> dict[str, Any]:
    """Of a backward op, without the switches, by name."""
    torch.manual_seed(0)
    rows = {
        "text": clustered_rows(TEXTS, D).float(),
        "frames": clustered_rows(B, F, D).float(),
        "frame_mask": torch.ones(B, F),
        "kept": torch.empty(0),
    }
    if op == "_pooled_moments_backward":
        before = {"d_gram": torch.rand(D, D), "d_colsum": torch.rand(D)}
        return before | rows | {"pooling_temperature": 1.0, "keep": False}
    fitted = {"responsibilities": torch.rand(D, K).softmax(0), "scale": torch.rand(K)}
    given = {"cosine": torch.full((TEXTS, B), 0.5), "length": torch.ones(TEXTS, B)}
    before = {"d_cosine": torch.rand(TEXTS, B) + 0.5}
    return before | rows | fitted | given | {"weight": 3.0, "pooling_temperature": 1.0, "linear": False}


def switches(op: str, text: bool, frames: bool) -> tuple[bool, ...]:
    return (text, frames) if op == "_pooled_moments_backward" else (text, frames, False)


@pytest.mark.parametrize("op", ["_pooled_moments_backward", "_pooled_cosine_backward"])
def test_the_product_that_makes_a_gradient_is_not_computed(backend: str, op: str) -> None:
    """Multiplications of matrices, counted. Those of the frozen side are the texts times the frames once, at least."""
    functions = dispatch.BACKENDS[backend]
    if not isinstance(functions, PythonBackend):
        pytest.skip("a library is looked at below")

    work = {}
    for name, needed in SIDES.items():
        with FlopCounterMode(display=False) as counter:
            functions.functions[op](*arguments_of_backward(op).values(), *switches(op, *needed))
        work[name] = counter.get_total_flops()
    once = 2 * TEXTS * B * F * D
    assert work["text"] <= work["both"] - once
    assert work["frames"] <= work["both"] - once


# What makes the gradient to one side larger than float32 holds, and nothing else that backward computes.
TOO_LARGE: dict[tuple[str, str], dict[str, Callable[[Any], Any]]] = {
    ("_pooled_moments_backward", "text"): {
        "text": lambda text: 1e12 * text,
        "d_gram": lambda d_gram: 1e30 * d_gram,
        "pooling_temperature": lambda _: 1e12,
    },
    ("_pooled_moments_backward", "frames"): {
        "text": lambda text: 1e12 * text,
        "d_gram": torch.zeros_like,
        "d_colsum": lambda d_colsum: 3e37 * d_colsum,
        "pooling_temperature": lambda _: 1e11,
    },
    ("_pooled_cosine_backward", "text"): {
        "text": lambda text: 1e-12 * text,
        "d_cosine": lambda d_cosine: 1e22 * d_cosine,
        "pooling_temperature": lambda _: 1e-12,
    },
    ("_pooled_cosine_backward", "frames"): {
        "frames": lambda frames: 1e-12 * frames,
        "d_cosine": lambda d_cosine: 1e26 * d_cosine,
        "cosine": torch.zeros_like,
        "length": lambda length: 1e-12 * length,
    },
}
FE_OVERFLOW = 8  # of x86; a processor sets it, and keeps it, at the first result that is too large


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="reads the flags of x86")
@pytest.mark.parametrize(("op", "side"), TOO_LARGE)
def test_a_library_does_not_compute_the_gradient_of_a_frozen_side(
    backend: str, op: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that is too large leaves its trace in the processor, whether or not it is kept."""
    if backend not in ("native", "cuda"):
        pytest.skip("multiplications are counted above")
    if backend == "cuda":
        emulate(monkeypatch)

    given = arguments_of_backward(op)
    for name, change in TOO_LARGE[op, side].items():
        given[name] = change(given[name])
    flags = ctypes.CDLL("libm.so.6")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each thread has flags of its own

    seen = {}
    for name, needed in SIDES.items():
        flags.feclearexcept(FE_OVERFLOW)
        with use_backend(backend):  # type: ignore[arg-type]
            OPS[op].call(*given.values(), *switches(op, *needed))
        seen[name] = bool(flags.fetestexcept(FE_OVERFLOW))
    flags.feclearexcept(FE_OVERFLOW)
    torch.set_num_threads(threads)

    other = "frames" if side == "text" else "text"
    assert seen == {side: True, other: False, "both": True}
