"""Script for test_wrong_arguments.py: calls every op of a namespace with one argument after the other replaced.

wrong_arguments.py NAMESPACE, in a process of its own, as what is wrong may end it. Before each call it prints what is
wrong; at the end how many calls were refused. All tensors lie inside of larger ones, whose rest may not change.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from op_arguments import arguments, names
from torch import Tensor

from emcl_kernels.backends import cuda
from emcl_kernels.ops import define

NAMESPACE = sys.argv[1]
REFUSED = (RuntimeError, ValueError, TypeError, IndexError)
ROOM = 4096
FILL = 1  # as a bool, too

DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)
INTEGERS = (0, -1, 2**31, 2**62, 2**63 - 1, -(2**63))
FLOATS = (float("nan"), float("inf"), float("-inf"), 1e39, -1.0, 0.0, 1e-320)


class Guard:
    """Tensors with room on both sides, and whether anything was written there."""

    def __init__(self) -> None:
        self.rooms: list[Tensor] = []

    def place(self, tensor: Tensor) -> Tensor:
        around = torch.full((2 * ROOM + tensor.numel(),), FILL, dtype=tensor.dtype)
        inside = around[ROOM : ROOM + tensor.numel()].view(tensor.shape)
        inside.copy_(tensor)
        self.rooms += [around[:ROOM], around[ROOM + tensor.numel() :]]
        return inside

    def check(self, what: str) -> None:
        if any(bool((room != FILL).any()) for room in self.rooms):
            raise AssertionError(f"{what}: memory beside the tensors was written to")


def right(name: str) -> list[Any]:
    """Arguments that are taken; for a library with the outputs behind them."""
    given = list(arguments(name, grad=False, kept=torch.ones(3, 2, 4)))
    if NAMESPACE == "emcl":
        return given

    op = define.OPS[name]
    given = list(op._accept(*given) or given)
    outputs = op.allocate(tuple(given))
    return [*given[: len(given) - op.switches], *(output.zero_() for output in outputs)]


def wrong(value: Any) -> Iterator[tuple[str, Any]]:
    """Values in the place of a right one, each with a name."""
    if isinstance(value, Tensor):
        yield "None", None
        for dim in range(value.dim()):
            for change in (-1, 1, 100):
                shape = list(value.shape)
                shape[dim] = max(0, shape[dim] + change)
                yield f"of shape {shape}", torch.ones(shape, dtype=value.dtype)
            shape = list(value.shape)
            shape[dim] = 0
            yield f"of shape {shape}", torch.ones(shape, dtype=value.dtype)
        yield "flat", value.flatten()
        yield "one number", torch.ones((), dtype=value.dtype)
        yield "empty", torch.ones(0, dtype=value.dtype)
        if value.dim() > 1 and value.shape[-1] != value.shape[-2]:
            yield "transposed", value.mT.contiguous()
        yield from ((str(dtype), value.to(dtype)) for dtype in DTYPES if dtype != value.dtype)
        yield "on meta", value.to("meta")
        yield "without its memory", value[..., :1].expand(value.shape) if value.dim() else value
        yield "sparse", value.to_sparse() if value.dim() else value.reshape(1).to_sparse()
    elif isinstance(value, bool | str):
        return
    elif isinstance(value, int):
        yield from ((str(number), number) for number in INTEGERS)
    elif isinstance(value, float):
        yield from ((str(number), number) for number in FLOATS)


def is_taken(name: str, given: list[Any]) -> bool:
    """Whether these arguments are right, too, by what the op's declaration says of inputs and outputs."""
    op = define.OPS[name]
    end = len(op.position) - op.switches
    inputs = [*given[:end], *[True] * op.switches]
    outputs = given[end:]
    tensors = [value for value in given if isinstance(value, Tensor)]
    if any(t.device.type != "cpu" or t.layout != torch.strided or not t.is_contiguous() for t in tensors):
        return False
    try:
        accepted = op._accept(*inputs) or tuple(inputs)
    except REFUSED:
        return False
    if any(a.dtype != b.dtype for a, b in zip(accepted, inputs, strict=True) if isinstance(b, Tensor) and b.numel()):
        return False  # Python converts it, a library does not
    specs = op._shapes(*accepted)
    may_be_empty = op.switches > 0 or name == "_pooled_moments"  # what is not needed, or not kept
    return all(
        (tuple(shape), dtype) == (tuple(output.shape), output.dtype) or (may_be_empty and output.numel() == 0)
        for (shape, dtype), output in zip(specs, outputs, strict=True)
    )


def main() -> None:
    if NAMESPACE == "emcl_emulated" and (reason := cuda._load_emulated()):
        print(f"skipped: {reason}")
        return

    refused = 0
    for name in names():
        if NAMESPACE != "emcl" and name not in define.OPS:
            continue
        call = getattr(getattr(torch.ops, NAMESPACE), name).default
        arguments_of = [argument.name for argument in call._schema.arguments]
        sound = right(name)
        call(*sound)

        for i, value in enumerate(sound):
            for what, replaced in wrong(value):
                line = f"{name}: {arguments_of[i]} {what}"
                print(line, flush=True)
                guard = Guard()
                given = [guard.place(v) if isinstance(v, Tensor) else v for v in sound]
                own = isinstance(replaced, Tensor) and replaced.device.type == "cpu" and replaced.is_contiguous()
                given[i] = guard.place(replaced) if own and replaced.layout == torch.strided else replaced
                try:
                    call(*given)
                except REFUSED:
                    refused += 1
                else:
                    if NAMESPACE != "emcl":
                        assert is_taken(name, given), f"{line}: it was taken"
                guard.check(line)
    print(f"refused: {refused}")


main()
