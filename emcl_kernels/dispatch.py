"""Which backend runs an op, why not the others, and the one place that calls it.

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
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from emcl_kernels import checks, pooled, tables
from emcl_kernels.backends import cuda, native, plain, triton_backend

Backend = Literal["reference", "native", "triton", "cuda"]

MODULES: dict[str, ModuleType] = {
    "reference": plain,
    "native": native,
    "triton": triton_backend,
    "cuda": cuda,
}
_AUTOMATIC = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "reference")}
_log = logging.getLogger("emcl_kernels")
_forced: str | None = None
_from_environment: str | None = None
_inside: list[list[str]] = []  # the names that use_backend was entered with and not left yet
_entering = threading.Lock()


def _named(name: str, source: str) -> str:
    if name not in get_args(Backend):
        raise ValueError(f'{source} is "{name}"; expected one of {", ".join(get_args(Backend))}')
    return name


def _set_up_from_environment() -> None:
    global _forced, _from_environment
    if level := os.environ.get("EMCL_LOG"):
        number = logging.getLevelNamesMapping().get(level.upper()) if hasattr(logging, "getLevelNamesMapping") else None
        number = number or getattr(logging, level.upper(), None)
        if not isinstance(number, int):
            raise ValueError(f'EMCL_LOG is "{level}"; expected debug, info, warning or error')
        logging.basicConfig(format="%(name)s: %(message)s")
        _log.setLevel(number)
    if name := os.environ.get("EMCL_BACKEND"):
        _forced = _from_environment = _named(name, "EMCL_BACKEND")


_set_up_from_environment()


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run every op inside through one backend, or raise where it cannot run.

    Holds for the whole process, since backward may run on threads of torch's; of several threads inside, the one that
    entered last decides.

    Raises: ValueError for a name that is none; inside, RuntimeError with the reason where the backend cannot run.
    """
    global _forced
    entry = [_named(name, "backend")]
    with _entering:
        _inside.append(entry)
        _forced = entry[0]
    try:
        yield
    finally:
        with _entering:  # whoever leaves, in whatever order
            _inside[:] = [other for other in _inside if other is not entry]
            _forced = _inside[-1][0] if _inside else _from_environment


def report() -> list[dict[str, Any]]:
    """One entry for each backend and device: whether it can run there, and why not."""
    entries = []
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            entries += [
                {"backend": n, "device": device, "available": False, "reason": "no CUDA device"} for n in MODULES
            ]
            continue
        x = torch.ones(2, 2, device=device)
        for name, module in MODULES.items():
            reason = module.supports("em_moments", x)
            entries.append({"backend": name, "device": device, "available": reason is None, "reason": reason or ""})
    return entries


def choose(op: str, *tensors: Tensor) -> ModuleType:
    """The backend for these tensors."""
    order, why = candidates(op, *tensors)
    refused: list[str] = []
    for name in order:
        reason = MODULES[name].supports(op, *tensors)
        if reason is None:
            _explain(op, name, "; ".join(refused) or why)
            return MODULES[name]
        refused.append(f"{name}: {reason}")
    if _forced is not None:
        raise RuntimeError(
            f'backend "{_forced}" is not available for {op}: {reason}. Use another of '
            f"{', '.join(name for name in MODULES if name != _forced)}, or see python -m emcl_kernels.info"
        )
    raise RuntimeError(f"no backend can run {op}: {'; '.join(refused)}")


def candidates(op: str, *tensors: Tensor) -> tuple[tuple[str, ...], str]:
    """Names of the backends as they are tried, and why the first comes first."""
    if _forced is not None:
        return (_forced,), "asked for by name"
    device = tensors[0].device.type
    order = _AUTOMATIC.get(device, ("reference",))
    if device != "cuda":
        return order, "first choice"
    first, origin = tables.first_choice(op, *tensors)
    return (first, *(name for name in order if name != first)), f"table: {origin}"


@lru_cache(maxsize=1024)
def _explain(op: str, name: str, reason: str) -> None:
    _log.debug("%s runs on %s (%s)", op, name, reason)


# ---- the ops' kernels: check, choose, call ---------------------------------------------------------------------------


def em_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    checks.rows(x, "x")
    return choose("em_moments", x).moments(x)


def em_moments_backward(x: Tensor, d_gram: Tensor, d_colsum: Tensor) -> Tensor:
    return choose("em_moments", x, d_gram).moments_backward(x, d_gram, d_colsum)


def em_fit(gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float) -> tuple[Tensor, Tensor]:
    checks.fit(gram, logits, num_iters, temperature, eps)
    responsibilities, scale = choose("em_fit", gram, logits).fit(gram, logits, num_iters, temperature, eps)
    checks.finite_scale("em_fit", scale)
    return responsibilities, scale


def em_fit_backward(
    gram: Tensor,
    logits: Tensor,
    d_responsibilities: Tensor,
    d_scale: Tensor,
    num_iters: int,
    temperature: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    backend = choose("em_fit", gram, logits)
    return backend.fit_backward(gram, logits, d_responsibilities, d_scale, num_iters, temperature, eps)


def em_reconstruct(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
    checks.reconstruct(x, responsibilities, scale)
    return choose("em_reconstruct", x, responsibilities).reconstruct(x, responsibilities, scale, weight)


def em_reconstruct_backward(
    d_y: Tensor, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    backend = choose("em_reconstruct", x, responsibilities)
    return backend.reconstruct_backward(d_y, x, responsibilities, scale, weight)


def em_project_fixed(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float, linear: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole projection in one call. `linear` matters to the gradient only."""
    checks.rows(x, "x")
    checks.start(x, init)
    checks.iterations(num_iters, temperature, eps)
    start = init.to(checks.accumulation_dtype(x.dtype))
    backend = choose("em_project", x, start)
    y, mean_bases, responsibilities, scale = backend.project(x, start, num_iters, temperature, residual_weight, eps)
    checks.finite_scale("em_project", scale)
    return y, mean_bases, responsibilities, scale


def pooled_moments(
    text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """keep: the inner products too, where they are few enough."""
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    keep = keep and pooled.keeps_products(text.shape[0], *frames.shape[:2])
    gram, colsum, kept = choose("pooled_similarity", text, frames).pooled_moments(
        text, frames, frame_mask, pooling_temperature, keep
    )
    return gram, colsum, kept


def pooled_moments_backward(
    d_gram: Tensor,
    d_colsum: Tensor,
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    pooling_temperature: float,
) -> tuple[Tensor, Tensor]:
    backend = choose("pooled_similarity", text, frames)
    return backend.pooled_moments_backward(d_gram, d_colsum, text, frames, frame_mask, kept, pooling_temperature)


def pooled_cosine(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
    linear: bool,
) -> tuple[Tensor, Tensor]:
    """`linear` matters to the gradient only."""
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    backend = choose("pooled_similarity", text, frames, responsibilities)
    cosine, length = backend.pooled_cosine(
        text, frames, frame_mask, kept, responsibilities, scale, weight, pooling_temperature
    )
    return cosine, length


def pooled_cosine_backward(
    d_cosine: Tensor,
    cosine: Tensor,
    length: Tensor,
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
    linear: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backend = choose("pooled_similarity", text, frames, responsibilities)
    return backend.pooled_cosine_backward(
        d_cosine,
        cosine,
        length,
        text,
        frames,
        frame_mask,
        kept,
        responsibilities,
        scale,
        weight,
        pooling_temperature,
        linear,
    )


def pooled_blocks(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    init: Tensor,
    em_block: int,
    pooling_temperature: float,
    num_iters: int,
    temperature: float,
    residual_weight: float,
    eps: float,
    relative: bool,
) -> Tensor:
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    checks.shared_start(text, init)
    checks.iterations(num_iters, temperature, eps)
    checks.block(em_block)
    start = init.to(checks.accumulation_dtype(text.dtype))
    settings = (em_block, pooling_temperature, num_iters, temperature, residual_weight, eps, relative)
    backend = choose("pooled_similarity", text, frames, start)
    similarity = getattr(backend, "pooled_blocks", pooled.blocks)(text, frames, frame_mask, start, *settings)
    checks.finite_similarity(similarity)
    return similarity
