"""Measure CUDA against Triton on this GPU, and write the table by which ops choose: python -m emcl_kernels.tune"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from math import sqrt
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import __version__, dispatch, tables

# Sizes that are measured. A size in between goes with the nearest, by ratio.
GRIDS = {
    "em_moments": {"problems": (1, 64), "rows": (256, 4096, 65536), "width": (128, 512, 1024)},
    "em_fit": {"problems": (1, 64), "width": (128, 512, 1024), "bases": (8, 32, 64)},
    "em_reconstruct": {"problems": (1, 64), "rows": (256, 4096, 65536), "width": (512,), "bases": (8, 32, 64)},
    "em_project": {"problems": (1, 64), "rows": (256, 4096, 65536), "width": (512,), "bases": (8, 32, 64)},
    "pooled_similarity": {"texts": (32, 1024), "videos": (32, 1024), "frames": (12, 64), "width": (512,)},
}
DTYPES = (torch.float32, torch.bfloat16)
MOST_ELEMENTS = 1 << 28  # of the rows: larger cells are left out, and go by the shipped table
REPEATS = 20
ITERATIONS = 9

Measure = Callable[[Callable[[], Any]], float]


def microseconds(run: Callable[[], Any]) -> float:
    """Median time of a call on the GPU."""
    for _ in range(3):
        run()
    times = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return statistics.median(times)


def cells(op: str) -> Iterator[dict[str, int]]:
    """The sizes of every cell of an op's grid that is not too large."""
    for values in product(*GRIDS[op].values()):
        sizes = dict(zip(GRIDS[op], values, strict=True))
        rows = (
            sizes["texts"] + sizes["videos"] * sizes["frames"]
            if "texts" in sizes
            else sizes.get("rows", sizes["width"])
        )
        if sizes.get("problems", 1) * rows * sizes["width"] <= MOST_ELEMENTS:
            yield sizes


def reach(op: str, sizes: dict[str, int]) -> dict[str, list[int | None]]:
    """The range of each size that goes with a cell: halfway, by ratio, to its neighbours."""
    ranges: dict[str, list[int | None]] = {}
    for name, size in sizes.items():
        grid = GRIDS[op][name]
        at = grid.index(size)
        low = int(sqrt(grid[at - 1] * size)) + 1 if at > 0 else None
        high = int(sqrt(size * grid[at + 1])) if at + 1 < len(grid) else None
        if low is not None or high is not None:
            ranges[name] = [low, high]
    return ranges


def work(op: str, sizes: dict[str, int], dtype: torch.dtype, device: str) -> tuple[tuple[Tensor, ...], Any]:
    """The op's tensors as dispatch has them, and a function that runs it, forward and backward, through a backend."""

    def random(*shape: int, as_dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=device).to(as_dtype)

    if op == "pooled_similarity":
        texts, videos, frames, width = sizes.values()
        text, clips = random(texts, width, as_dtype=dtype), random(videos, frames, width, as_dtype=dtype)
        mask, map_ = torch.ones(videos, frames, device=device), (random(width, 32).softmax(0), random(32).exp(), 3.0)

        def pooled(backend: ModuleType) -> None:
            _, _, kept = backend.pooled_moments(text, clips, mask, 3.0, True)
            cosine, length = backend.pooled_cosine(text, clips, mask, kept, *map_, 3.0)
            backend.pooled_cosine_backward(cosine, cosine, length, text, clips, mask, kept, *map_, 3.0, False)

        return (text, clips), pooled

    problems, width, bases = sizes["problems"], sizes["width"], sizes.get("bases", 1)
    x = random(problems, sizes.get("rows", width), width, as_dtype=dtype)
    gram, colsum = random(problems, width, width), random(problems, width)
    responsibilities, scale = random(problems, width, bases).softmax(-2), random(problems, bases).exp()
    fitting = (ITERATIONS, 1.0, 1e-6)

    def moments(backend: ModuleType) -> None:
        backend.moments(x)
        backend.moments_backward(x, gram, colsum)

    def fit(backend: ModuleType) -> None:
        backend.fit(gram, responsibilities, *fitting)
        backend.fit_backward(gram, responsibilities, responsibilities, scale, *fitting)

    def reconstruct(backend: ModuleType) -> None:
        backend.reconstruct(x, responsibilities, scale, 3.0)
        backend.reconstruct_backward(x, x, responsibilities, scale, 3.0)

    def project(backend: ModuleType) -> None:
        backend.project(x, scale, ITERATIONS, 1.0, 3.0, 1e-6)

    tensors = {"em_moments": (x,), "em_fit": (gram, responsibilities), "em_reconstruct": (x, responsibilities)}
    functions = {"em_moments": moments, "em_fit": fit, "em_reconstruct": reconstruct, "em_project": project}
    return tensors.get(op, (x, scale)), functions[op]


def rows(gpu: str, origin: str, measure: Measure, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """One row for each cell in which a backend runs, as it is measured."""
    for op, dtype in product(GRIDS, DTYPES):
        if op == "em_fit" and dtype != torch.float32:
            continue  # it is in float32 whatever the rows are
        for sizes in cells(op):
            tensors, run = work(op, sizes, dtype, device)
            times = {}
            for name in tables.BACKENDS:
                backend = dispatch.MODULES[name]
                if backend.supports(op, *tensors) is None:
                    times[name] = round(measure(partial(run, backend)), 1)
            if times:
                shown = ", ".join(f"{name} {time} µs" for name, time in times.items())
                yield {
                    "device": gpu,
                    "op": op,
                    "dtype": str(dtype).removeprefix("torch."),
                    "shape": reach(op, sizes),
                    "backend": min(times, key=times.__getitem__),
                    "origin": f"{origin}: {shown} at {'×'.join(map(str, sizes.values()))}",
                }


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    """One row a line, so that two tables can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
    path.write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")


def commit() -> str:
    """ " at commit ..." where this is a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return f" at commit {done.stdout.strip()}" if done.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m emcl_kernels.tune", description=__doc__)
    parser.add_argument("--out", type=Path, help=f"file to write; without it {tables.user_table()}, which is then used")
    out: Path = parser.parse_args().out or tables.user_table()
    if not torch.cuda.is_available():
        print("There is no CUDA device to measure on; nothing was written.")
        return
    for name in tables.BACKENDS:
        if reason := dispatch.MODULES[name].supports("em_moments", torch.ones(2, 2, device="cuda")):
            print(f"{name} is left out: {reason}")
    gpu = torch.cuda.get_device_name()
    origin = f"measured on {gpu}, emcl {__version__}{commit()}, torch {torch.__version__}"
    entries = []
    for entry in rows(gpu, origin, microseconds):
        print(f"{entry['op']} {entry['dtype']}: {entry['backend']}, {entry['origin'].partition(': ')[2]}", flush=True)
        entries.append(entry)
    write(out, entries)
    print(
        f"Wrote {len(entries)} rows to {out}" + ("" if out == tables.user_table() else f"; EMCL_TABLE={out} uses them")
    )


if __name__ == "__main__":
    main()
