"""Which backend runs an op, and why not the others.

A backend that is asked for by name (`use_backend`, EMCL_BACKEND) runs or raises an error. Otherwise the first that can
run is taken. On the CPU that is native, then reference. On CUDA it is cuda, triton or torch, as the tables have it for
the device and the shape (tables/__init__.py), then the others of the three, then reference. EMCL_LOG=debug logs each
choice once.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, get_args

import torch

from emcl_kernels import environment, tables
from emcl_kernels.backends import Backend as BackendType
from emcl_kernels.backends import Declared, Implementation, cpu, cuda, plain_torch, reference, triton

Backend = Literal["reference", "native", "triton", "cuda", "torch"]

BACKENDS: dict[str, BackendType] = {
    "reference": reference.backend,
    "native": cpu.backend,
    "triton": triton.backend,
    "cuda": cuda.backend,
    "torch": plain_torch.backend,
}
_AUTOMATIC = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "torch", "reference")}
_log = logging.getLogger("emcl_kernels")
_from_environment: str | None = None
_inside: list[list[str]] = []  # names of the `use_backend` blocks that are open; a list each, so that equal ones differ
_entering = threading.Lock()


class _Asked:
    """What `use_backend` and EMCL_BACKEND ask for."""

    backend: str | None = None


asked = _Asked()
choices: dict[tuple[str, str, str | None], Implementation] = {}
"""Choices that hold for all tensors of a device, by op, kind of device, and the backend that is asked for."""


def _set_up_from_environment() -> None:
    global _from_environment
    environment.check()
    if level := os.environ.get("EMCL_LOG"):
        number = logging.getLevelNamesMapping().get(level.upper()) if hasattr(logging, "getLevelNamesMapping") else None
        number = number or getattr(logging, level.upper(), None)
        if not isinstance(number, int):
            raise ValueError(f'EMCL_LOG is "{level}"; expected debug, info, warning or error')
        logging.basicConfig(format="%(name)s: %(message)s")
        _log.setLevel(number)
    if name := environment.chosen("EMCL_BACKEND"):
        asked.backend = _from_environment = name


_set_up_from_environment()


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run every op inside the block through one backend. An op that it cannot run raises an error.

    It holds for the whole process, because backward may run on torch's own threads. If several threads are inside such
    blocks, the one that entered last decides.

    Args:
        name: "reference", "native", "triton", "cuda" or "torch".

    Raises:
        ValueError: there is no such backend.
        RuntimeError: inside the block, an op cannot run on the backend; the message says why.

    Examples:
        >>> with use_backend("reference"):
        ...     y, mean_bases = em_project(x, init)
    """
    if name not in get_args(Backend):
        raise ValueError(f'backend is "{name}"; expected one of {", ".join(get_args(Backend))}')
    entry: list[str] = [name]
    with _entering:
        _inside.append(entry)
        asked.backend = entry[0]
    try:
        yield
    finally:
        with _entering:  # threads may leave in another order than they entered
            _inside[:] = [other for other in _inside if other is not entry]
            asked.backend = _inside[-1][0] if _inside else _from_environment


def report() -> list[dict[str, Any]]:
    """What can run here.

    Returns:
        One entry for each backend and device: "backend", "device", "available", and "reason" if it is not available.
    """
    entries = []
    for device in ("cpu", "cuda"):
        for name, backend in BACKENDS.items():
            if device == "cuda" and not torch.cuda.is_available():
                reason: str | None = "no CUDA device"
            else:
                reason = backend.unavailable(torch.device(device))
            entries.append({"backend": name, "device": device, "available": reason is None, "reason": reason or ""})
    return entries


def choose(op: Declared, args: tuple[Any, ...]) -> Implementation:
    """The function that computes an op on its arguments.

    Args:
        op: what is called.
        args: its arguments, in the schema's order.

    Returns:
        The implementation of the backend that is taken.

    Raises:
        RuntimeError: no backend can, or the one that was asked for cannot, with the reason.
    """
    by_name = asked.backend  # read once: another thread may enter `use_backend` meanwhile
    name, implementation, refused = _first_that_runs(op, args, by_name)

    # Not kept: the choice of a table, which is for one shape; and one after a refusal, as a library may load later.
    device = args[op.main].device.type
    by_table = by_name is None and device == "cuda"
    if not refused and not by_table and BACKENDS[name].uniform:
        choices[op.name, device, by_name] = implementation
    return implementation


def _first_that_runs(op: Declared, args: tuple[Any, ...], by_name: str | None) -> tuple[str, Implementation, list[str]]:
    """The backend that is taken, its function, and why those before it were not."""
    order, why = candidates(op, args, by_name)
    refused: list[str] = []
    for name in order:
        reason = BACKENDS[name].supports(op, args)
        if reason is None:
            implementation = BACKENDS[name].implementation(op, args) or op.fallback
            if implementation is not None:
                _explain(op.family, name, "; ".join(refused) or why)
                return name, implementation, refused
            reason = f"it has no implementation of {op.name}"
        refused.append(f"{name}: {reason}")

    if by_name is not None:
        raise RuntimeError(
            f'backend "{by_name}" is not available for {op.family}: {reason}. Use another of '
            f"{', '.join(name for name in BACKENDS if name != by_name)}, or see python -m emcl_kernels.info"
        )
    raise RuntimeError(f"no backend can run {op.family}: {'; '.join(refused)}")


def which(op: Declared, args: tuple[Any, ...]) -> tuple[str, str]:
    """Name of the backend that would run an op on these arguments, and why it is taken."""
    by_name = asked.backend
    name, _, refused = _first_that_runs(op, args, by_name)
    return name, "; ".join(refused) or candidates(op, args, by_name)[1]


def candidates(op: Declared, args: tuple[Any, ...], by_name: str | None) -> tuple[tuple[str, ...], str]:
    """Names of the backends as they are tried, and why the first comes first. by_name: the one that is asked for."""
    if by_name is not None:
        return (by_name,), "asked for by name"
    device = args[op.main].device.type
    order = _AUTOMATIC.get(device, ("reference",))
    if device != "cuda":
        return order, "first choice"
    first, origin = tables.first_choice(op, args)
    return (first, *(name for name in order if name != first)), f"table: {origin}"


@lru_cache(maxsize=1024)
def _explain(op: str, name: str, reason: str) -> None:
    _log.debug("%s runs on %s (%s)", op, name, reason)
