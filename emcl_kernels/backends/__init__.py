"""What a backend is, and what it knows of an op. Each of the five is one object, in a module or package of its own.

`PythonBackend` is a table of functions on tensors: the reference, torch and Triton are of this kind. `cpu.CPU` and
`cuda.CUDA` call the ops of a C++ or CUDA library through `library.Kernels`.
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
    """Name of the op, and of its implementation in every backend: "em_fit", "_em_fit_backward"."""
    family: str
    """The public op that it is a part of; errors, logs and tables have this name."""
    main: int
    """Position of the tensor whose device and dtype decide: x, text or gram."""
    tensors: tuple[str, ...]
    """Names of the arguments that are tensors; they come first."""
    fallback: Implementation | None
    """In terms of other ops, for a backend that has no implementation; or None."""
    switches: int
    """How many of the last arguments say which outputs are needed."""

    @property
    def position(self) -> Mapping[str, int]:
        """Position of each argument, by its name."""
        ...

    def allocate(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """The outputs, to be written to."""
        ...


@runtime_checkable
class Backend(Protocol):
    """One way to compute the ops."""

    name: str
    uniform: bool
    """Whether `supports` gives the same answer for all tensors of a device, so that it can be kept."""

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
    """Functions on tensors, each under the name of its op. They run on any device, unless a subclass says otherwise.

    Args:
        name: as `use_backend` and errors have it.
        functions: the implementation of each op, by its name.
    """

    uniform = True

    def __init__(self, name: str, functions: Mapping[str, Implementation]) -> None:
        self.name = name
        self.functions = dict(functions)

    def implement(self, function: Implementation, name: str | None = None) -> Implementation:
        """Add the implementation of an op of your own; usable as a decorator.

        Args:
            function: takes the op's arguments in the schema's order.
            name: of the op; None: the function has the op's name.

        Returns:
            The function.
        """
        self.functions[name or function.__name__] = function
        return function

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def supports(self, op: Declared, args: tuple[Any, ...]) -> str | None:
        return None

    def implementation(self, op: Declared, args: tuple[Any, ...]) -> Implementation | None:
        return self.functions.get(op.name)
