"""Which of CUDA and Triton runs an op on a GPU: rows of a table, of which the first that fits decides.

    {"rows": [{"device": "NVIDIA H200*", "capability": "9.*", "op": "em_fit", "dtype": "float32",
               "shape": {"width": [256, 1024], "bases": [1, 64]}, "backend": "cuda", "origin": "measured on ..."}]}

A field that is left out fits everything; a range holds both its ends, and null is an open end. Every row says where it
comes from. `EMCL_TABLE`, or else what `python -m emcl_kernels.tune` wrote into the user's cache folder, is asked before
the table that is shipped. Nothing is measured while ops run.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from emcl_kernels.backends import Declared

BACKENDS: tuple[Literal["cuda", "triton"], ...] = ("cuda", "triton")
SHIPPED = Path(__file__).with_name("shipped.json")
# Names of the sizes that a row may restrict.
SIZES = {
    "em_moments": ("problems", "rows", "width"),
    "em_fit": ("problems", "width", "bases"),
    "em_reconstruct": ("problems", "rows", "width", "bases"),
    "em_project": ("problems", "rows", "width", "bases"),
    "pooled_similarity": ("texts", "videos", "frames", "width"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    backend: str
    origin: str
    device: str = "*"
    capability: str = "*"
    op: str = "*"
    dtype: str = "*"
    shape: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def fits(self, device: str, capability: str, op: str, dtype: str, sizes: Mapping[str, int]) -> bool:
        return (
            fnmatchcase(device, self.device)
            and fnmatchcase(capability, self.capability)
            and self.op in ("*", op)
            and self.dtype in ("*", dtype)
            and all(
                (low is None or low <= sizes[name]) and (high is None or sizes[name] <= high)
                for name, (low, high) in self.shape.items()
            )
        )


def user_table() -> Path:
    """Where `python -m emcl_kernels.tune` writes, and where its table is found."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emcl" / "table.json"


def paths() -> list[Path]:
    """The tables in use, in the order in which they are asked."""
    if named := os.environ.get("EMCL_TABLE"):
        return [Path(named), SHIPPED]
    return [path for path in (user_table(), SHIPPED) if path.exists()]


def read(path: Path) -> list[Row]:
    """The rows of one table.

    Raises: ValueError where the file is not there or not a table, with the row that is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a table ({error!r}); write one with python -m emcl_kernels.tune") from error
    return [_row(entry, f"{path}, row {number}") for number, entry in enumerate(content, 1)]


def _row(entry: dict[str, Any], place: str) -> Row:
    shape = {}
    for name, ends in entry.get("shape", {}).items():
        if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, int | None) for end in ends):
            raise ValueError(f"{place}: {name} is {ends}; expected [least, most], where null is an open end")
        shape[name] = (ends[0], ends[1])
    try:
        row = Row(**{**entry, "shape": shape})
    except TypeError as error:
        raise ValueError(f"{place}: {error}") from error
    if row.backend not in BACKENDS:
        raise ValueError(f'{place}: backend is "{row.backend}"; expected one of {", ".join(BACKENDS)}')
    if row.op not in ("*", *SIZES):
        raise ValueError(f'{place}: op is "{row.op}"; expected one of {", ".join(SIZES)}')
    names = SIZES.get(row.op, ())
    for name in row.shape:
        if name not in names:
            raise ValueError(f'{place}: shape has "{name}"; expected one of {", ".join(names) or "nothing for op *"}')
    return row


@cache
def rows() -> list[Row]:
    """The rows of all tables in use."""
    return [row for path in paths() for row in read(path)]


def sizes(op: Declared, args: tuple[Any, ...]) -> dict[str, int]:
    """The sizes that decide, from an op's arguments."""
    shape = args[op.main].shape
    if "frames" in op.position:
        videos, frames, _ = args[op.position["frames"]].shape
        return {"texts": shape[0], "videos": videos, "frames": frames, "width": shape[1]}

    known = {"problems": prod(shape[:-2]), "rows": shape[-2], "width": shape[-1]}
    for name in ("init", "logits", "responsibilities"):
        if name in op.position:
            known["bases"] = args[op.position[name]].shape[-1]
    return {name: known[name] for name in SIZES[op.family]}


def first_choice(op: Declared, args: tuple[Any, ...]) -> tuple[str, str]:
    """The backend for tensors on a GPU, and where that comes from. An op that no table knows goes to the first."""
    if op.family not in SIZES:
        return BACKENDS[0], "no table has this op"
    x = args[op.main]
    return _look_up(x.device, op.family, x.dtype, tuple(sizes(op, args).items()))


@lru_cache(maxsize=4096)
def _look_up(
    device: torch.device, op: str, dtype: torch.dtype, named_sizes: tuple[tuple[str, int], ...]
) -> tuple[str, str]:
    major, minor = torch.cuda.get_device_capability(device)
    return choice(torch.cuda.get_device_name(device), f"{major}.{minor}", op, dtype, dict(named_sizes))


def choice(device: str, capability: str, op: str, dtype: torch.dtype, sizes: Mapping[str, int]) -> tuple[str, str]:
    """Backend and origin of the first row that fits; the shipped table ends with one that fits everything."""
    name = str(dtype).removeprefix("torch.")
    row = next(row for row in rows() if row.fits(device, capability, op, name, sizes))
    return row.backend, row.origin
