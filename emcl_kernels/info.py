"""What was built, what was loaded, what was not, and why: python -m emcl_kernels.info"""

import argparse
import importlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from emcl_kernels import __version__, dispatch, tables
from emcl_kernels.backends import cpu, cuda
from emcl_kernels.backends.library import BUILD_INFO
from emcl_kernels.ops.define import OPS, Op


def build_info() -> dict[str, Any]:
    """What setup.py wrote about the build.

    Returns:
        The content of its file, or {"reason": why there is none}.
    """
    if not BUILD_INFO.exists():
        return {"reason": "the native parts were never built here; run `make setup`, or `pip install .`"}
    try:
        content = json.loads(BUILD_INFO.read_text(encoding="utf-8"))
    except ValueError as error:
        return {"reason": f"{BUILD_INFO} is not JSON ({error}); reinstall"}
    return dict(content)


def bindings_info() -> dict[str, Any]:
    """What the pybind11 module says of itself.

    Returns:
        Its build information, or {"reason": why the module is not there}.
    """
    try:
        return dict(importlib.import_module("emcl_kernels._bindings").build_info())
    except ImportError as error:
        return {"reason": str(error)}


def which_backend(op: str, device: str) -> str:
    """The backend that would run an op on small float32 tensors, and why.

    Args:
        op: a public op, such as "em_project".
        device: "cpu" or "cuda".

    Returns:
        The backend with the reason in brackets, or "none: " with the reason.

    Examples:
        >>> which_backend("em_project", "cpu")
        'native  (first choice)'
    """
    if device == "cuda" and not torch.cuda.is_available():
        return "none: no CUDA device"

    first = families()[op]
    try:
        name, why = dispatch.which(first, _small(first, device))
    except (RuntimeError, ValueError) as error:
        return f"none: {error}"
    return f"{name}  ({why})"


def families() -> dict[str, Op]:
    """Each public op that backends serve, with the first of its parts."""
    families: dict[str, Op] = {}
    for op in OPS.values():
        families.setdefault(op.family, op)
    return families


def _small(op: Op, device: str) -> tuple[Any, ...]:
    """Arguments on which a backend can be chosen."""
    shapes = {"x": (64, 4), "gram": (4, 4), "logits": (4, 4), "responsibilities": (4, 4), "frames": (2, 2, 4)}
    args: list[Any] = list(op.arguments)
    for name in op.tensors:
        args[op.position[name]] = torch.ones(shapes.get(name, (4,)), device=device)
    return tuple(args)


def describe() -> str:
    """All of it as text."""
    return "\n".join([*_versions(), "", *_built(), "", *_loaded(), "", *_chosen()])


def _versions() -> list[str]:
    try:
        triton = importlib.import_module("triton").__version__
    except (ImportError, OSError) as error:
        triton = f"not importable ({error})"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"

    return [
        f"emcl {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"torch {torch.__version__}, triton {triton}",
        f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; CUDA: {gpu}",
    ]


def _built() -> list[str]:
    info = build_info()
    if "reason" in info:
        return ["Built", f"  nothing: {info['reason']}"]

    lines = [f"Built with {info['compiler'] or 'no compiler'}, torch {info['torch']}, Python {info['python']}"]
    for target in info["targets"].values():
        if target["built"]:
            nvcc = f", by nvcc {target['nvcc']}" if "nvcc" in target else ""
            isas = f", for {', '.join(target['isas'])}" if target["isas"] else ""
            lines.append(f"  {target['file']}: yes{isas}{nvcc}")
        else:
            lines.append(f"  {target['file']}: no: {target['reason']}")
    return lines


def _loaded() -> list[str]:
    on_cpu = cpu.backend.status()
    on_gpu = cuda.status()
    bindings = bindings_info()
    uses = f"yes, uses {on_cpu['isa']}" if on_cpu["loaded"] else f"no: {on_cpu['reason']}"
    kernels = f"yes, for {', '.join(on_gpu['architectures'])}" if on_gpu["loaded"] else f"no: {on_gpu['reason']}"
    module = f"no: {bindings['reason']}" if "reason" in bindings else f"yes, compiled by {bindings['compiler']}"
    return [
        "Loaded",
        f"  {Path(on_cpu['path']).name}: {uses}",
        f"  {Path(on_gpu['path']).name}: {kernels}",
        f"  _bindings: {module}",
    ]


def _chosen() -> list[str]:
    forced = os.environ.get("EMCL_BACKEND")
    lines = ["Backends" + (f" (EMCL_BACKEND={forced})" if forced else "")]
    for entry in dispatch.report():
        name = f"{entry['backend']} on {entry['device']}"
        lines.append(f"  {name:<18} " + ("available" if entry["available"] else f"not available: {entry['reason']}"))
    if cuda.emulated():
        lines.append("  EMCL_CUDA_EMULATED=1: by name, cuda takes CPU tensors too, in an emulator; for tests only")

    lines += ["", "CUDA, Triton or torch is chosen by", *(f"  {path} ({_rows(path)})" for path in tables.paths())]

    lines += ["", "Runs (float32)"]
    for op in families():
        lines += [f"  {op:<18} {device:<5} {which_backend(op, device)}" for device in ("cpu", "cuda")]
    return lines


def _rows(path: Path) -> str:
    """How many rows a table has and how many nobody has measured, or what is wrong with it."""
    try:
        rows = tables.read(path)
    except ValueError as error:
        return str(error)
    guessed = sum(row.origin.startswith(tables.BY_ARITHMETIC) for row in rows)
    return f"rows: {len(rows)}" + (f", {tables.BY_ARITHMETIC}: {guessed}" if guessed else "")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m emcl_kernels.info", description=__doc__).parse_args()
    print(describe())
