"""The backend "cuda": loads the library of CUDA kernels, and knows why they cannot run on a device.

With EMCL_CUDA_EMULATED=1 the backend takes CPU tensors too, if it is asked for by name: the same kernels, compiled as
C++ into libemcl_emulated.so, run in an emulator. It is for tests, and thousands of times slower than a GPU.
"""

import ctypes
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import environment, forms
from emcl_kernels.backends import Declared, Implementation, gpu, library, plain_torch

_CUDA_LIBRARY = library.FOLDER / "libemcl_cuda.so"
_EMULATED_LIBRARY = library.FOLDER / "libemcl_emulated.so"
OLDEST = (8, 0)  # compute capability
MANY_ROWS = 16384
"""From so many 16-bit rows on, a product takes longer than torch's launches around it, by arithmetic."""


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why it is not loaded."""
    if not _CUDA_LIBRARY.exists():
        return None, f"the CUDA library {library.not_built('cuda')}"
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"

    try:
        torch.ops.load_library(str(_CUDA_LIBRARY))
        loaded = ctypes.CDLL(str(_CUDA_LIBRARY))
        loaded.emcl_cuda_architectures.restype = ctypes.c_char_p
        return loaded, ""
    except (OSError, AttributeError) as error:
        return None, f"the CUDA library {_CUDA_LIBRARY} does not load: {error}"


_library, _reason = _load()


def emulated() -> bool:
    """Whether the backend takes CPU tensors, in the emulator."""
    return environment.chosen("EMCL_CUDA_EMULATED") == "1"


@cache
def _load_emulated() -> str:
    """Load the emulated library, once; why it cannot be loaded, or nothing."""
    if not _EMULATED_LIBRARY.exists():
        return "libemcl_emulated.so was not built; EMCL_BUILD_EMULATED=1 python setup.py build_ext --inplace"
    try:
        torch.ops.load_library(str(_EMULATED_LIBRARY))
    except OSError as error:
        return f"the emulated library {_EMULATED_LIBRARY} does not load: {error}"
    return ""


if emulated():
    _load_emulated()


def architectures() -> list[str]:
    """What the library was compiled for, such as ["80", "90+PTX"]; empty if it is not loaded."""
    return [] if _library is None else _library.emcl_cuda_architectures().decode().split()


def status() -> dict[str, Any]:
    """What `python -m emcl_kernels.info` prints about this backend."""
    return {"loaded": not _reason, "path": str(_CUDA_LIBRARY), "architectures": architectures(), "reason": _reason}


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a compute capability.

    "80" runs on the same major version, from its own minor version on. "80+PTX" runs on everything later as well: the
    driver compiles it. "90a" runs on exactly that capability. "100f" runs on its own major version.

    Args:
        architecture: as nvcc has it, without "sm_", with "+PTX" if the library holds PTX code.
        capability: major and minor version of the GPU.

    Returns:
        Whether it runs.
    """
    number, kind, ptx = re.fullmatch(r"(\d+)([af]?)(\+PTX)?", architecture).groups()  # type: ignore[union-attr]
    least = int(number[:-1]), int(number[-1])
    if kind == "a":
        return capability == least
    return capability >= least and (capability[0] == least[0] or (bool(ptx) and not kind))


@cache
def _device_reason(index: int) -> str | None:
    """Why the library cannot run on a device, or None."""
    assert _library is not None
    name = torch.cuda.get_device_name(index)
    capability = torch.cuda.get_device_capability(index)
    shown = f"{name} has compute capability {capability[0]}.{capability[1]}"
    if capability < OLDEST:
        return f"{shown}, older than {OLDEST[0]}.{OLDEST[1]}"
    if not any(runs_on(architecture, capability) for architecture in architectures()):
        number = f"{capability[0]}{capability[1]}"
        return f"{shown} and the library is for {', '.join(architectures())}; reinstall with EMCL_CUDA_ARCHS={number}"

    # Code for 8.0 runs on 8.6 and 8.9, and PTX on 12.0, but a block is allowed less there.
    needed = _library.emcl_cuda_shared_memory()
    properties: Any = torch.cuda.get_device_properties(index)  # torch's stub does not know all of them
    allowed = properties.shared_memory_per_block_optin
    if allowed < needed:
        return (
            f"{shown} and allows a block {allowed} bytes of shared memory, but the kernels need {needed}; "
            'use backend="triton"'
        )

    # Minor versions of CUDA are compatible with each other, major versions are not.
    built = _library.emcl_cuda_runtime()
    driver = _library.emcl_cuda_driver()
    if driver // 1000 < built // 1000:
        return (
            f"the library is built with CUDA {_version(built)}, the driver knows CUDA up to {_version(driver)}; "
            "update the driver, or reinstall with CUDA_HOME of an older toolkit"
        )
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class CUDA:
    """CUDA C++ kernels. They run on the CPU too, in the emulator, if they are asked for by name."""

    name = "cuda"
    uniform = False

    def __init__(self) -> None:
        self._on_gpu = library.Kernels(library.NATIVE, "CUDA")
        self._in_emulator = library.Kernels(library.EMULATED, "CPU")

    def unavailable(self, device: torch.device) -> str | None:
        if device.type == "cpu" and emulated():
            return _load_emulated() or None
        if device.type != "cuda":
            return _reason or f"tensors are on {device}, not on cuda"
        return _reason or _device_reason(torch.cuda.current_device() if device.index is None else device.index)

    def supports(self, op: Declared, args: tuple[Any, ...]) -> str | None:
        reason = self.unavailable(args[op.main].device)
        if reason is None and op.family != "pooled_similarity" and gpu.without_bases(op, args):
            reason = "there are no bases"
        return reason or gpu.over_limits(op, args)

    def implementation(self, op: Declared, args: tuple[Any, ...]) -> Implementation | None:
        x = args[op.main]
        if op.name == "_em_project_fixed" and forms.few(x.shape[-2]):
            return _project_few_rows
        if x.device.type != "cuda":
            return self._in_emulator[op]

        if _by_cublas(op, x):
            return None if op.name == "_em_project_fixed" else plain_torch.backend.functions[op.name]
        return self._on_gpu[op]


def _by_cublas(op: Declared, x: Tensor) -> bool:
    """Whether an op on a GPU is, or holds, a plain product of large matrices that torch computes faster.

    Moments and their backward have no more than such a product. Of float32, ours keep all digits; if torch may round
    them to TF32, its own are ahead, and the projection, as None is its implementation, runs in parts. The products of
    the pooled similarity stay ours: what they save is the tensor [A, B, F] that torch would write and read.
    """
    if x.dtype == torch.float32:
        return op.name in ("em_moments", "_em_moments_backward", "_em_project_fixed") and gpu.tf32_allowed()
    return op.name == "_em_moments_backward" and x.shape[-2] >= MANY_ROWS


def _project_few_rows(x: Tensor, init: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_iters, temperature, residual_weight, eps, _ = settings
    return gpu.project_few_rows(x, init, num_iters, temperature, residual_weight, eps)


backend = CUDA()
