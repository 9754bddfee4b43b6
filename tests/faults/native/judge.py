"""Make a call, and say what is wrong with what came of it. What no test can see, a sanitizer ends the process for."""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from native.calls import Call, Given, arguments, function, schema

# Errors that the ops raise for arguments that they do not take.
REFUSALS = (ValueError, TypeError, RuntimeError, NotImplementedError, MemoryError, OverflowError)
# What torch says of a fault of its own, or of ours.
INTERNAL = ("INTERNAL ASSERT", "Unknown exception", "unknown error")
# Ops that promise an error on the CPU if their input is not finite, and those that promise it of their result.
REFUSE_NAN = ("emcl::em_project", "emcl::pooled_similarity", "emcl::pooled_similarity_blocks")
PROMISE_FINITE = (*REFUSE_NAN, "emcl::em_fit")
LARGEST_COSINE = 1 + 1e-6


class Fault(Exception):
    """What did not hold."""


def judge(call: Call) -> str:
    """Make the call.

    Returns:
        "returned" or "refused".

    Raises:
        Fault: it did neither properly.
    """
    torch.set_num_threads(call.threads)
    given = arguments(call)
    before = {name: memory.clone() for name, memory in given.storages.items()}

    try:
        with filled_memory(), mode_of(call):
            outputs, gradients = make(call, given)
    except REFUSALS as error:
        refused(call, error)
        return "refused"
    except Exception as error:
        raise Fault(f"{type(error).__name__} instead of an error that says what is wrong: {error}") from error

    unchanged(call, given, before)
    if call.is_right:
        right(call, outputs, gradients)
    return "returned"


@contextlib.contextmanager
def filled_memory() -> Iterator[None]:
    """Memory that torch gives to outputs is not a number."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def mode_of(call: Call) -> Any:
    if call.mode == "inference":
        return torch.inference_mode()
    if call.mode == "autocast":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def make(call: Call, given: Given) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients."""
    op = function(call.op)
    values = list(given.values.values())

    if call.mode == "vmap" and call.is_right:
        dims = tuple(0 if isinstance(value, Tensor) else None for value in values)
        stacked = [torch.stack([value, value]) if isinstance(value, Tensor) else value for value in values]
        return tensors_of(torch.vmap(op, in_dims=dims)(*stacked)), []

    leaves = []
    if call.mode == "backward" and not call.op.endswith("_backward"):
        for i, (name, value) in enumerate(given.values.items()):
            if isinstance(value, Tensor) and value.is_floating_point() and name not in ("frame_mask", "kept"):
                values[i] = value.detach().requires_grad_()
                leaves.append(values[i])

    outputs = tensors_of(op(*values))
    if call.of_library:
        written = {name for name, _, is_written in schema(call.op) if is_written}
        outputs = [value for name, value in given.values.items() if name in written and isinstance(value, Tensor)]

    with_gradient = [output for output in outputs if output.requires_grad]
    if not leaves or not with_gradient or "blocks" in call.op:
        return [output.detach() for output in outputs], []
    generator = torch.Generator().manual_seed(call.seed)
    to = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in with_gradient]
    found = torch.autograd.grad(with_gradient, leaves, to, allow_unused=True)
    return [output.detach() for output in outputs], [gradient for gradient in found if gradient is not None]


def tensors_of(outputs: Any) -> list[Tensor]:
    if outputs is None:
        return []
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


# ---- what must hold --------------------------------------------------------------------------------------------------


def refused(call: Call, error: Exception) -> None:
    no_fault_inside(error)
    message = str(error)
    # No CUDA kernel takes float64, and says so.
    without_double = call.dtype == "float64" and os.environ.get("EMCL_CUDA_EMULATED") == "1"
    if without_double and any(words in message for words in ("not torch.float64", "no kernel for Double")):
        return
    if call.is_right and not (call.values != "tame" and "finite" in message):
        raise Fault(f"a call that is right was refused: {type(error).__name__}: {message}") from error


def no_fault_inside(error: BaseException) -> None:
    message = str(error)
    if not message.strip() and not isinstance(error, MemoryError):
        raise Fault(f"{type(error).__name__} without a word") from error
    if any(word in message for word in INTERNAL):
        raise Fault(f"{type(error).__name__} of a fault inside: {message}") from error


def unchanged(call: Call, given: Given, before: dict[str, Tensor]) -> None:
    """Inputs are what they were, and so is the memory around every tensor."""
    written = {name for name, _, is_written in schema(call.op) if is_written}
    for name, memory in given.storages.items():
        now, then = memory, before[name]
        if name in written:
            if call.layouts.get(name) != "offset":
                continue
            now, then = (torch.cat([each[:1], each[-4:]]) for each in (now, then))
        if not torch.equal(bits(now), bits(then)):
            raise Fault(f"{name} was written to" if name not in written else f"the memory around {name} was written to")


def bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat.new_empty(flat.shape).copy_(flat).view(torch.uint8)


def right(call: Call, outputs: list[Tensor], gradients: list[Tensor]) -> None:
    """What an op promises of arguments that are right."""
    finite = all(bool(torch.isfinite(each).all()) for each in outputs)
    finite_gradients = all(bool(torch.isfinite(each).all()) for each in gradients)
    tame = call.values == "tame"
    if tame and not finite:
        raise Fault("an output is not finite, or was never written")
    if tame and not finite_gradients:
        raise Fault("a gradient is not finite, or was never written")
    if call.op in REFUSE_NAN and call.values in ("nan", "inf") and outputs and outputs[0].numel():
        raise Fault(f"{call.values} in the input was not refused")
    if call.op in PROMISE_FINITE and not finite:
        raise Fault("a result that is not finite was returned")

    # Inner products that were drawn, and not kept from these texts and frames, give cosines without a meaning.
    has_cosine = call.pooled and outputs and not call.op.endswith(("_moments", "_backward"))
    if has_cosine and finite and ("_cosine" not in call.op or "kept" in call.empty):
        largest = float(outputs[0].abs().max()) if outputs[0].numel() else 0.0
        if largest > LARGEST_COSINE:
            raise Fault(f"a cosine of {largest}")


def same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        if not torch.equal(bits(a), bits(b)):
            raise Fault(f"the same call gave other bits at once with others: {describe(a, b)}")


def describe(a: Tensor, b: Tensor) -> str:
    difference = (a.double() - b.double()).abs().max().item() if a.numel() else math.nan
    return f"up to {difference:.1e} apart in {a.dtype} {list(a.shape)}"
