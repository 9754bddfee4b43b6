"""What a case of the GPU benchmark is: inputs, ways to run them, and the float64 truth of each.

Rows are clustered, made on the device. Independent random rows would let EM end at uniform responsibilities, and a
kernel that computes those wrongly would pass.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from gpu_targets import Target
from torch import Tensor

from emcl_kernels.testing import distinct_init

WEIGHT = 3.0
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass
class Case:
    """One shape. Subclasses say what runs there.

    flush: the inputs are not in the cache when a call begins. captured: also timed as a CUDA graph, of `copies` calls.
    seconds: for all rounds together. kinds: what each backend runs. baselines: what it is compared with.
    """

    name: str
    dtype: torch.dtype = torch.float32
    targets: tuple[Target, ...] = ()
    flush: bool = True
    captured: bool = True
    copies: int = 1
    seconds: float = 8.0
    kinds: tuple[str, ...] = field(default=("ours",), init=False)
    baselines: tuple[str, ...] = field(default=("loop", "loop compiled", "torch compiled"), init=False)

    @property
    def shape(self) -> str:
        raise NotImplementedError

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def run(self, kind: str, inputs: tuple[Tensor, ...], wrap: Wrap) -> Callable[[], Any]:
        """A call of one kind.

        kind: "loop" (the release's formula), "batched" (the same over all problems at once), "torch" (the Gram form of
        torch_way.py); or, by the backend that is asked for, "ours" or "EMCL off". wrap: compiles a function, or returns
        it as it is.
        """
        raise NotImplementedError

    def missing(self) -> str:
        """Why the case cannot run on this machine, or nothing."""
        return ""

    def errors(self, kind: str, inputs: tuple[Tensor, ...], outputs: Any) -> dict[str, float]:
        """‖out − truth‖ / ‖truth‖ by output, against float64 on the device."""
        raise NotImplementedError

    def cost(self, kind: str) -> dict[str, float] | None:
        """FLOPs and bytes of the cost model, where it has this case."""
        return None

    def least_bytes(self) -> float | None:
        """Rows read twice and written once."""
        return None

    def tiny(self) -> "Case":
        """The same in a size for the tests of this program."""
        small = {"rows": 40, "problems": 3, "pairs": 10, "frames": 3, "width": 16, "bases": 4, "em_block": 4}
        small |= {"words": 4, "layers": 1, "hidden": 32, "side": 32, "patch": 16}
        names = {each.name for each in fields(self)}
        return replace(self, seconds=0.0, **{n: min(v, getattr(self, n)) for n, v in small.items() if n in names})

    @property
    def type_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def bindings() -> Any:
    """The cost model, or None where it was not built."""
    try:
        return importlib.import_module("emcl_kernels._bindings")
    except ImportError:
        return None


def clustered(*shape: int, device: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """As emcl_kernels.testing.clustered_rows, on the device and in pieces: rows of length one around 8 directions."""
    generator = torch.Generator(device).manual_seed(seed)
    *leading, rows, width = shape
    centres = torch.randn(*leading, 8, width, device=device, generator=generator)
    x = torch.empty(shape, device=device, dtype=dtype)
    for start in range(0, rows, 1 << 17):
        member = torch.arange(start, min(rows, start + (1 << 17)), device=device) % 8
        part = torch.randn(*leading, len(member), width, device=device, generator=generator)
        part.mul_(0.3).add_(centres[..., member, :])
        x[..., start : start + len(member), :] = torch.nn.functional.normalize(part, dim=-1)
    return x


def start(bases: int, device: str, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    return distinct_init(bases).to(device, dtype)
