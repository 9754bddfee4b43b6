"""Which backend runs an op, and why not the others.

Asked for by name (`use_backend`, EMCL_BACKEND), a backend runs or raises. Otherwise the first that can run is taken:
native then reference on the CPU; on CUDA what the tables say of the device and the shape (tables/__init__.py), then the
other of cuda and triton, then reference. EMCL_LOG=debug logs each choice once.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, get_args

import torch

from emcl_kernels import tables
from emcl_kernels.backends import Backend as BackendType
from emcl_kernels.backends import Declared, Implementation, cpu, cuda, reference, triton

Backend = Literal["reference", "native", "triton", "cuda"]

BACKENDS: dict[str, BackendType] = {
    "reference": reference.backend,
    "native": cpu.backend,
    "triton": triton.backend,
    "cuda": cuda.backend,
}
_AUTOMATIC = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "reference")}
_log = logging.getLogger("emcl_kernels")
_from_environment: str | None = None
_inside: list[list[str]] = []  # the names that use_backend was entered with and not left yet
_entering = threading.Lock()


class _Asked:
    """What `use_backend` and EMCL_BACKEND ask for."""

    backend: str | None = None


asked = _Asked()
choices: dict[tuple[str, str, str | None], Implementation] = {}
"""Choices that hold for all tensors of a device, by op, kind of device, and the backend that is asked for."""


def _named(name: str, source: str) -> str:
    if name not in get_args(Backend):
        raise ValueError(f'{source} is "{name}"; expected one of {", ".join(get_args(Backend))}')
    return name


def _set_up_from_environment() -> None:
    global _from_environment
    if level := os.environ.get("EMCL_LOG"):
        number = logging.getLevelNamesMapping().get(level.upper()) if hasattr(logging, "getLevelNamesMapping") else None
        number = number or getattr(logging, level.upper(), None)
        if not isinstance(number, int):
            raise ValueError(f'EMCL_LOG is "{level}"; expected debug, info, warning or error')
        logging.basicConfig(format="%(name)s: %(message)s")
        _log.setLevel(number)
    if name := os.environ.get("EMCL_BACKEND"):
        asked.backend = _from_environment = _named(name, "EMCL_BACKEND")


_set_up_from_environment()


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run every op inside through one backend, or raise where it cannot run.

    Holds for the whole process, since backward may run on threads of torch's; of several threads inside, the one that
    entered last decides.

    Raises: ValueError for a name that is none; inside, RuntimeError with the reason where the backend cannot run.
    """
    entry = [_named(name, "backend")]
    with _entering:
        _inside.append(entry)
        asked.backend = entry[0]
    try:
        yield
    finally:
        with _entering:  # whoever leaves, in whatever order
            _inside[:] = [other for other in _inside if other is not entry]
            asked.backend = _inside[-1][0] if _inside else _from_environment


def report() -> list[dict[str, Any]]:
    """One entry for each backend and device: whether it can run there, and why not."""
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

    Raises:
        RuntimeError: no backend can, or the one that was asked for cannot, with the reason.
    """
    by_name = asked.backend
    name, implementation, refused = _first_that_runs(op, args)

    # A backend that was refused may come later, with a library that is loaded then.
    if not refused and BACKENDS[name].uniform:
        choices[op.name, args[op.main].device.type, by_name] = implementation
    return implementation


def _first_that_runs(op: Declared, args: tuple[Any, ...]) -> tuple[str, Implementation, list[str]]:
    """The backend that is taken, its function, and why those before it were not."""
    order, why = candidates(op, args)
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

    if asked.backend is not None:
        raise RuntimeError(
            f'backend "{asked.backend}" is not available for {op.family}: {reason}. Use another of '
            f"{', '.join(name for name in BACKENDS if name != asked.backend)}, or see python -m emcl_kernels.info"
        )
    raise RuntimeError(f"no backend can run {op.family}: {'; '.join(refused)}")


def which(op: Declared, args: tuple[Any, ...]) -> tuple[str, str]:
    """Name of the backend that would run an op, and why it and not another."""
    name, _, refused = _first_that_runs(op, args)
    return name, "; ".join(refused) or candidates(op, args)[1]


def candidates(op: Declared, args: tuple[Any, ...]) -> tuple[tuple[str, ...], str]:
    """Names of the backends as they are tried, and why the first comes first."""
    if asked.backend is not None:
        return (asked.backend,), "asked for by name"
    device = args[op.main].device.type
    order = _AUTOMATIC.get(device, ("reference",))
    if device != "cuda":
        return order, "first choice"
    first, origin = tables.first_choice(op, args)
    return (first, *(name for name in order if name != first)), f"table: {origin}"


@lru_cache(maxsize=1024)
def _explain(op: str, name: str, reason: str) -> None:
    _log.debug("%s runs on %s (%s)", op, name, reason)
