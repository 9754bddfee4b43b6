"""The device that a command computes on: the one that was asked for, else the first GPU, else the CPU.

torch is imported only when a device is looked for.
"""

import os
import re
from typing import TYPE_CHECKING

from emcl_train.errors import UserError

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"cpu|cuda(?::([0-9]{1,3}))?")
OF_ACCELERATE = "ACCELERATE_TORCH_DEVICE"
"""Where accelerate reads which device to take."""

_asked: str | None = None
_told = False


def use_device(name: str | None) -> None:
    """From now on, compute on this device.

    Args:
        name: "cpu", "cuda" or "cuda:1"; None: as the machine has it.

    Raises:
        UserError: it is no name of a device; whether there is such a device is asked later, when torch is there.
    """
    global _asked
    if name is not None and NAME.fullmatch(name) is None:
        raise UserError(f"device is {name!r}, expected cpu, cuda or cuda:N; pass --device with one of them")
    if name is not None and name.startswith("cuda:") and int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise UserError(f"device is {name}, and there are several processes; pass --device cuda: each takes its own")
    _asked = name


def device() -> "torch.device":
    """The device.

    Raises:
        UserError: the machine has no such device; those that there are are named.
    """
    import torch

    if _asked is None:
        return own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    if _asked == "cpu":
        return torch.device("cpu")

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there and _asked == "cuda":
        return own_gpu()
    number = int(_asked.partition(":")[2] or 0)
    if number >= there:
        names = ["cpu", *(f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(there))]
        why = "" if there else "; this torch sees no GPU"
        raise UserError(f"device is {_asked}, and there is {', '.join(names)}{why}; pass --device with one of them")
    chosen = torch.device("cuda", number)
    torch.cuda.set_device(chosen)
    return chosen


def own_gpu() -> "torch.device":
    """The GPU of this process: of several processes on a machine, each takes its own."""
    import torch

    local = os.environ.get("LOCAL_RANK", "")
    return torch.device("cuda", (int(local) if local.isdecimal() else 0) % torch.cuda.device_count())


def asked_of_accelerate() -> bool | None:
    """Tell accelerate the device that was asked for. Returns whether it is the CPU; None if none was asked for."""
    global _told
    if _told:  # by an earlier command of this process
        del os.environ[OF_ACCELERATE]
    _told = False
    if _asked is None:
        return None
    chosen = device()
    if ":" in _asked:
        os.environ[OF_ACCELERATE] = str(chosen)
        _told = True
    return chosen.type == "cpu"
