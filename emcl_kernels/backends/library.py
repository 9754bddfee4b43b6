"""What the compiled libraries share: a schema for each op, and the call that allocates the outputs and fills them.

The C++ library registers its functions under the CPU key and the CUDA library under the CUDA key, both in the namespace
emcl_native. The emulated CUDA library runs on CPU tensors, so it has a namespace of its own. An op has the same name
there as in torch.ops.emcl; its arguments are those of the op, then the outputs. An output that is not needed is empty.
"""

import json
from pathlib import Path
from typing import Any

import torch

from emcl_kernels.backends import Declared, Implementation

FOLDER = Path(__file__).parent.parent / "_C"
BUILD_INFO = FOLDER / "build_info.json"
NATIVE = "emcl_native"
EMULATED = "emcl_emulated"

_libraries = [torch.library.Library(namespace, "DEF") for namespace in (NATIVE, EMULATED)]


def define(schema: str) -> None:
    """Declare an op in both namespaces. A library may register its function before that or after."""
    for library in _libraries:
        library.define(schema)


def not_built(target: str) -> str:
    """Why the build left a library out, as setup.py wrote it down."""
    try:
        reason = json.loads(BUILD_INFO.read_text(encoding="utf-8"))["targets"][target]["reason"]
    except (OSError, ValueError, KeyError):
        reason = ""
    return f"was not built: {reason or 'the build did not get that far; run `make setup`, or `pip install .`'}"


class Kernels:
    """The functions of one namespace for one kind of device.

    Args:
        namespace: `NATIVE` or `EMULATED`.
        key: the dispatch key that they are registered under, "CPU" or "CUDA".
    """

    def __init__(self, namespace: str, key: str) -> None:
        self._namespace = namespace
        self._key = key
        self._found: dict[str, Implementation] = {}

    def __getitem__(self, op: Declared) -> Implementation | None:
        """The op on this library's kernels, or None if it has none. A library that is loaded later is found then."""
        found = self._found.get(op.name)
        if found is not None:
            return found

        name = f"{self._namespace}::{op.name}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, self._key):
            return None
        self._found[op.name] = _call(op, getattr(getattr(torch.ops, self._namespace), op.name).default)
        return self._found[op.name]


def _call(op: Declared, kernel: Any) -> Implementation:
    """Allocate the outputs, and have them filled from contiguous inputs."""
    count = len(op.tensors)
    end = len(op.position) - op.switches

    def implementation(*args: Any) -> Any:
        outputs = op.allocate(args)
        tensors = [tensor.contiguous() for tensor in args[:count]]
        kernel(*tensors, *args[count:end], *outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    return implementation
