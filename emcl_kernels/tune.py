"""Measure CUDA against Triton on this GPU, and write the table by which ops choose: python -m emcl_kernels.tune"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import __version__, dispatch, tables
from emcl_kernels.ops import fit, moments, pooled, project, reconstruct
from emcl_kernels.ops.define import OPS, Op

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

Run = Callable[[], None]
Measure = Callable[[Run], float]


def microseconds(run: Run) -> float:
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


def work(op: str, sizes: dict[str, int], dtype: torch.dtype, device: str) -> tuple[Op, tuple[Any, ...], Run]:
    """What to measure of an op.

    Returns:
        The op by whose arguments a backend is chosen, these arguments, and a function that runs it both ways.
    """

    def random(*shape: int, as_dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=device).to(as_dtype)

    if op == "pooled_similarity":
        texts, videos, frames, width = sizes.values()
        text = random(texts, width, as_dtype=dtype)
        clips = random(videos, frames, width, as_dtype=dtype)
        mask = torch.ones(videos, frames, device=device)
        fitted = (random(width, 32).softmax(0), random(32).exp())
        given = (text, clips, mask, 3.0, True)

        def pooled_similarity() -> None:
            _, _, kept = pooled.moments_op.call(*given)
            inputs = (text, clips, mask, kept, *fitted)
            cosine, length = pooled.cosine_op.call(*inputs, 3.0, 3.0, False)
            OPS["_pooled_cosine_backward"].call(cosine, *inputs, cosine, length, 3.0, 3.0, False)

        return pooled.moments_op, given, pooled_similarity

    problems, width, num_bases = sizes["problems"], sizes["width"], sizes.get("bases", 1)
    x = random(problems, sizes.get("rows", width), width, as_dtype=dtype)
    gram, colsum = random(problems, width, width), random(problems, width)
    responsibilities, scale = random(problems, width, num_bases).softmax(-2), random(problems, num_bases).exp()
    fitting = (gram, responsibilities, ITERATIONS, 1.0, 1e-6)
    mapping = (x, responsibilities, scale, 3.0)
    projecting = (x, scale, ITERATIONS, 1.0, 3.0, 1e-6, False)

    def em_moments() -> None:
        moments.op.call(x)
        OPS["_em_moments_backward"].call(gram, colsum, x)

    def em_fit() -> None:
        fit.op.call(*fitting)
        OPS["_em_fit_backward"].call(responsibilities, scale, *fitting)

    def em_reconstruct() -> None:
        reconstruct.op.call(*mapping)
        OPS["_em_reconstruct_backward"].call(x, *mapping)

    def em_project() -> None:
        project.fixed.call(*projecting)

    chosen_by: dict[str, tuple[Op, tuple[Any, ...], Run]] = {
        "em_moments": (moments.op, (x,), em_moments),
        "em_fit": (fit.op, fitting, em_fit),
        "em_reconstruct": (reconstruct.op, mapping, em_reconstruct),
        "em_project": (project.fixed, projecting, em_project),
    }
    return chosen_by[op]


def rows(gpu: str, origin: str, measure: Measure, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """One row for each cell in which a backend runs, as it is measured."""
    for op, dtype in product(GRIDS, DTYPES):
        if op == "em_fit" and dtype != torch.float32:
            continue  # it is in float32 whatever the rows are
        for sizes in cells(op):
            by, args, run = work(op, sizes, dtype, device)
            times = {}
            for name in tables.BACKENDS:
                if dispatch.BACKENDS[name].supports(by, args) is None:
                    with dispatch.use_backend(name):
                        times[name] = round(measure(run), 1)
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
        if reason := dispatch.BACKENDS[name].unavailable(torch.device("cuda")):
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
