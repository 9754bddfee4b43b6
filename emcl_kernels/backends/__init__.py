"""What a backend is, and what it is told of an op. One module or package a backend; all four are objects of one type.

`PythonBackend` is a table of functions on tensors: the reference and Triton. `library.CompiledBackend` calls the ops of
a C++ or CUDA library.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Implementation = Callable[..., Any]
"""Takes an op's arguments in the order of its schema, and returns its outputs."""


@runtime_checkable
class Declared(Protocol):
    """What a backend knows of an op (`emcl_kernels.ops.define.Op`)."""

    name: str
    """Of the op and of its implementation in every backend: "em_fit", "_em_fit_backward"."""
    family: str
    """The public op that it is a part of; errors, logs and tables name that."""
    main: int
    """Position of the tensor whose device and dtype decide: x, text or gram."""
    tensors: tuple[str, ...]
    """Names of the arguments that are tensors; they come first."""
    fallback: Implementation | None
    """For a backend that has no implementation, in terms of other ops."""

    @property
    def position(self) -> Mapping[str, int]:
        """Where in the arguments each of them stands, by its name."""
        ...

    def allocate(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The outputs, to be written to."""
        ...


@runtime_checkable
class Backend(Protocol):
    """One way to compute the ops."""

    name: str
    uniform: bool
    """Whether `supports` answers alike for all tensors of a device, so that an answer can be kept."""

    def unavailable(self, device: torch.device) -> str | None:
        """Why nothing runs on a device, or None."""
        ...

    def supports(self, op: Declared, args: tuple[Any, ...]) -> str | None:
        """Why the op cannot run on these arguments, or None if it can."""
        ...

    def implementation(self, op: Declared, args: tuple[Any, ...]) -> Implementation | None:
        """The function that computes the op, or None if the backend has none."""
        ...


class PythonBackend:
    """Functions on tensors, each under the name of its op. By itself it runs on any device, as the reference does.

    Args:
        name: as `use_backend` and errors have it.
        functions: implementation of each op.
    """

    uniform = True

    def __init__(self, name: str, functions: Mapping[str, Implementation]) -> None:
        self.name = name
        self.functions = dict(functions)

    def implement(self, function: Implementation, name: str | None = None) -> Implementation:
        """Add the implementation of an op of one's own; the function's name is that of the op."""
        self.functions[name or function.__name__] = function
        return function

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def supports(self, op: Declared, args: tuple[Any, ...]) -> str | None:
        return None

    def implementation(self, op: Declared, args: tuple[Any, ...]) -> Implementation | None:
        return self.functions.get(op.name)
