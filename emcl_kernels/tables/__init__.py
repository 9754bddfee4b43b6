"""Which of CUDA, Triton and torch runs an op on a GPU, by tables: the first row that fits decides.

    {"rows": [{"device": "NVIDIA H200*", "capability": "9.*", "op": "em_fit", "dtype": "float32", "tf32": false,
               "shape": {"width": [256, 1024], "bases": [1, 64]}, "backend": "cuda", "origin": "measured on ..."}]}

A field that is left out fits everything. "op" is a public op, with all its parts, or one part such as its backward. A
range includes both its ends; null is an open end. Every row says where it comes from. The file in `EMCL_TABLE` is asked
first, or else what `python -m emcl_kernels.tune` wrote into the user's cache folder; then the table that is shipped.
Nothing is measured while ops run.
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

from emcl_kernels.backends import Declared, gpu

BACKENDS: tuple[Literal["cuda", "triton", "torch"], ...] = ("cuda", "triton", "torch")
SHIPPED = Path(__file__).with_name("shipped.json")
# Names of the sizes that a row may restrict.
SIZES = {
    "em_moments": ("problems", "rows", "width"),
    "em_fit": ("problems", "width", "bases"),
    "em_reconstruct": ("problems", "rows", "width", "bases"),
    "em_project": ("problems", "rows", "width", "bases"),
    "pooled_similarity": ("texts", "videos", "frames", "width"),
    "pooled_similarity_blocks": ("texts", "videos", "frames", "width"),
}
# The public op that a part belongs to. Rows may name a part where its order differs from that of the others.
PARTS = {
    "_em_moments_backward": "em_moments",
    "_em_fit_backward": "em_fit",
    "_em_reconstruct_backward": "em_reconstruct",
    "_pooled_moments": "pooled_similarity",
    "_pooled_moments_backward": "pooled_similarity",
    "_pooled_cosine": "pooled_similarity",
    "_pooled_cosine_backward": "pooled_similarity",
    "_pooled_blocks": "pooled_similarity_blocks",
}
BY_ARITHMETIC = "by arithmetic"
"""How the origin of a row begins that nobody has measured."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        backend: "cuda", "triton" or "torch".
        origin: where the row comes from.
        device: pattern of the GPU's name, as `fnmatch` has patterns.
        capability: pattern of the compute capability, such as "9.*".
        op: a public op, a part of one, or "*".
        dtype: of the rows, such as "float32", or "*".
        tf32: whether torch may round float32 factors to TF32; None: either.
        shape: least and most of each size that is restricted; None is an open end.
    """

    backend: str
    origin: str
    device: str = "*"
    capability: str = "*"
    op: str = "*"
    dtype: str = "*"
    tf32: bool | None = None
    shape: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def fits(
        self, device: str, capability: str, op: str, dtype: str, sizes: Mapping[str, int], *, tf32: bool = False
    ) -> bool:
        """Whether the row decides about an op, or a part of one, of these sizes on this device."""
        return (
            fnmatchcase(device, self.device)
            and fnmatchcase(capability, self.capability)
            and self.op in ("*", op, PARTS.get(op))
            and self.dtype in ("*", dtype)
            and self.tf32 in (None, tf32)
            and all(
                (low is None or low <= sizes[name]) and (high is None or sizes[name] <= high)
                for name, (low, high) in self.shape.items()
            )
        )


def user_table() -> Path:
    """Where `python -m emcl_kernels.tune` writes, and where its table is found."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "emcl" / "table.json"


def paths() -> list[Path]:
    """The tables in use, in the order in which they are asked."""
    if named := os.environ.get("EMCL_TABLE"):
        return [Path(named), SHIPPED]
    # Not `Path.exists`: a home folder that this user may not look into has no table, and is no error.
    return [path for path in (user_table(), SHIPPED) if os.path.exists(path)]


def read(path: Path) -> list[Row]:
    """The rows of one table.

    Args:
        path: its file.

    Returns:
        Its rows, in their order.

    Raises:
        ValueError: the file does not exist or is not a table; the message names the row that is wrong.
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
    if not isinstance(entry.get("tf32"), bool | None):
        raise ValueError(f"{place}: tf32 is {entry['tf32']!r}; expected true, false, or null for either")

    try:
        row = Row(**{**entry, "shape": shape})
    except TypeError as error:
        raise ValueError(f"{place}: {error}") from error

    if row.backend not in BACKENDS:
        raise ValueError(f'{place}: backend is "{row.backend}"; expected one of {", ".join(BACKENDS)}')
    if row.op not in ("*", *SIZES, *PARTS):
        raise ValueError(f'{place}: op is "{row.op}"; expected one of {", ".join((*SIZES, *PARTS))}')
    names = SIZES.get(PARTS.get(row.op, row.op), ())
    for name in row.shape:
        if name not in names:
            raise ValueError(f'{place}: shape has "{name}"; expected one of {", ".join(names) or "nothing for op *"}')
    return row


@cache
def rows() -> list[Row]:
    """The rows of all tables in use."""
    return [row for path in paths() for row in read(path)]


def sizes(op: Declared, args: tuple[Any, ...]) -> dict[str, int]:
    """The sizes that decide, by their names, from an op's arguments."""
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
    """The backend for tensors on a GPU, and where that choice comes from.

    Args:
        op: what is called; an op that no table knows runs on the first backend.
        args: its arguments.

    Returns:
        The name of the backend, and the origin of the row that decided.
    """
    if op.family not in SIZES:
        return BACKENDS[0], "no table has this op"
    x = args[op.main]
    name = op.name if op.name in PARTS else op.family
    return _look_up(x.device, name, x.dtype, tuple(sizes(op, args).items()), gpu.tf32_allowed())


@lru_cache(maxsize=4096)
def _look_up(
    device: torch.device, op: str, dtype: torch.dtype, named_sizes: tuple[tuple[str, int], ...], tf32: bool
) -> tuple[str, str]:
    major, minor = torch.cuda.get_device_capability(device)
    return choice(torch.cuda.get_device_name(device), f"{major}.{minor}", op, dtype, dict(named_sizes), tf32=tf32)


def choice(
    device: str, capability: str, op: str, dtype: torch.dtype, sizes: Mapping[str, int], *, tf32: bool = False
) -> tuple[str, str]:
    """The first row that fits. There is one, because the last row of the shipped table fits everything.

    Args:
        device: name of the GPU.
        capability: its compute capability, such as "9.0".
        op: a public op, or a part of one.
        dtype: of the rows.
        sizes: by their names, as `SIZES` has them.
        tf32: whether torch may round float32 factors to TF32.

    Returns:
        Backend and origin of the row.
    """
    name = str(dtype).removeprefix("torch.")
    row = next(row for row in rows() if row.fits(device, capability, op, name, sizes, tf32=tf32))
    return row.backend, row.origin
