"""The backend "native": loads the C++ library for the CPU, and keeps the reason if it cannot."""

import ctypes
from typing import Any

import torch

from emcl_kernels import environment
from emcl_kernels.backends import Declared, Implementation, library

_PATH = library.FOLDER / "libemcl_cpu.so"


def _load() -> tuple[str, str]:
    """Instruction set that the library uses, and why it is not loaded; one of the two is empty."""
    if not _PATH.exists():
        return "", f"the C++ library {library.not_built('cpu')}"

    asked = environment.chosen("EMCL_ISA")
    try:
        torch.ops.load_library(str(_PATH))
        loaded = ctypes.CDLL(str(_PATH))
        loaded.emcl_isa.restype = ctypes.c_char_p
        isa = loaded.emcl_isa().decode()
    except (OSError, AttributeError) as error:
        return "", f"the C++ library {_PATH} does not load: {error}"

    if asked and isa != asked:
        raise ValueError(
            f"EMCL_ISA is {asked}, which this machine or this build of {_PATH.name} lacks; expected one of "
            f"{', '.join(environment.ISAS)} that it has, or unset it for the widest"
        )
    return isa, ""


class CPU:
    """C++ kernels, for all dtypes that the ops take."""

    name = "native"
    uniform = True

    def __init__(self) -> None:
        self.isa, self.reason = _load()
        self._kernels = library.Kernels(library.NATIVE, "CPU")

    def status(self) -> dict[str, Any]:
        """What `python -m emcl_kernels.info` prints about this backend."""
        return {"loaded": not self.reason, "path": str(_PATH), "isa": self.isa, "reason": self.reason}

    def unavailable(self, device: torch.device) -> str | None:
        if self.reason:
            return self.reason
        return None if device.type == "cpu" else f"it runs on the CPU, the tensors are on {device}"

    def supports(self, op: Declared, args: tuple[Any, ...]) -> str | None:
        return self.unavailable(args[op.main].device)

    def implementation(self, op: Declared, args: tuple[Any, ...]) -> Implementation | None:
        return self._kernels[op]


backend = CPU()
