"""Measure CUDA, Triton and torch on this GPU, and write the table by which ops choose: python -m emcl_kernels.tune

Cells come in the order of their importance, and the table is written after each, so that a run may end at any time:
when its minutes are over, or when it is killed. With --resume the next one goes on from there.
"""

import argparse
import json
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcl_kernels import __version__, dispatch, tables
from emcl_kernels.backends import gpu
from emcl_kernels.ops import fit, moments, pooled, project, reconstruct
from emcl_kernels.ops.define import OPS, Op

# Sizes that are measured. A size in between is served by the nearest of these, by ratio.
GRIDS = {
    "em_moments": {"problems": (1, 64), "rows": (256, 4096, 65536), "width": (128, 512, 1024)},
    "em_fit": {"problems": (1, 64), "width": (128, 512, 1024), "bases": (8, 32, 64)},
    "em_reconstruct": {"problems": (1, 64), "rows": (256, 4096, 65536), "width": (512,), "bases": (8, 32, 64)},
    "em_project": {"problems": (1, 64), "rows": (256, 4096, 65536), "width": (512,), "bases": (8, 32, 64)},
    "pooled_similarity": {"texts": (32, 1024, 4096), "videos": (32, 1024, 4096), "frames": (12, 64), "width": (512,)},
}
# What is measured of an op, and has a row of its own. The first row that fits decides, so the op itself comes last.
PARTS = {
    "em_moments": ("_em_moments_backward", "em_moments"),
    "em_fit": ("_em_fit_backward", "em_fit"),
    "em_reconstruct": ("_em_reconstruct_backward", "em_reconstruct"),
    "em_project": ("em_project",),
    "pooled_similarity": ("pooled_similarity",),
}
# A batch of the release's training. The more sizes of a cell are others, the later it is measured.
USUAL = {"problems": 1, "rows": 4096, "width": 512, "bases": 32, "texts": 1024, "videos": 1024, "frames": 12}
DTYPES = (torch.float32, torch.bfloat16)
MOST_ELEMENTS = 1 << 28  # of a tensor: larger cells are left out, and the shipped table decides about them
MOST_REPEATS = 20
LEAST_REPEATS = 3
MICROSECONDS_OF_A_CELL = 60_000.0  # fewer repeats of a call that takes longer
MINUTES = 4.0
ITERATIONS = 9

Run = Callable[[], None]
Measure = Callable[[Run], float]


@dataclass(frozen=True)
class Cell:
    """What one row of the table is measured by.

    Args:
        op: a key of `GRIDS`.
        part: the op, or its backward; one of `PARTS`.
        dtype: of the rows.
        sizes: by their names.
    """

    op: str
    part: str
    dtype: torch.dtype
    sizes: dict[str, int]

    def row(self) -> dict[str, Any]:
        """What its row is about: which part of an op, dtype and sizes."""
        return {"op": self.part, "dtype": str(self.dtype).removeprefix("torch."), "shape": reach(self.op, self.sizes)}


class Time:
    """The time that a run may take, as if every cell were as slow as the slowest so far.

    Args:
        seconds: from now on.
        clock: gives seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cell_began = clock()
        self._end = self._cell_began + seconds
        self._slowest = 0.0

    def is_left(self) -> bool:
        """Whether another cell can be measured; to be asked before each."""
        now = self._clock()
        self._slowest = max(self._slowest, now - self._cell_began)
        self._cell_began = now
        return now + self._slowest <= self._end


def microseconds(run: Run) -> float:
    """Median time of a call on the GPU, in microseconds."""
    # The first call compiles, and the next fill caches; the last of them says how many more there is time for.
    for _ in range(2):
        run()
    once = _elapsed(run)
    repeats = min(MOST_REPEATS, max(LEAST_REPEATS, int(MICROSECONDS_OF_A_CELL / once)))
    return statistics.median(_elapsed(run) for _ in range(repeats))


def _elapsed(run: Run) -> float:
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end)


def sizes_of(op: str) -> Iterator[dict[str, int]]:
    """The sizes of every cell of an op's grid that is not too large."""
    for values in product(*GRIDS[op].values()):
        sizes = dict(zip(GRIDS[op], values, strict=True))
        if "texts" in sizes:
            rows = sizes["texts"] + sizes["videos"] * sizes["frames"]
            pairs = sizes["texts"] * sizes["videos"] * sizes["frames"]
        else:
            rows = sizes.get("problems", 1) * sizes.get("rows", sizes["width"])
            pairs = 0
        if max(pairs, rows * sizes["width"]) <= MOST_ELEMENTS:
            yield sizes


def cells(*, tf32: bool) -> list[Cell]:
    """All cells, in the order in which they are measured.

    Args:
        tf32: whether torch may round float32 factors; rows of other dtypes are not about that, and are left out then.
    """
    found = []
    for op, dtype in product(GRIDS, DTYPES):
        if dtype != torch.float32 and (tf32 or op == "em_fit"):
            continue  # the fit is in float32 whatever the rows are
        found += [Cell(op, part, dtype, sizes) for sizes in sizes_of(op) for part in PARTS[op]]
    return sorted(found, key=lambda cell: sum(size != USUAL[name] for name, size in cell.sizes.items()))


def reach(op: str, sizes: dict[str, int]) -> dict[str, list[int | None]]:
    """The range of each size that a cell decides about: halfway, by ratio, to its neighbours.

    Args:
        op: a key of `GRIDS`.
        sizes: of the cell.

    Returns:
        [least, most] by the name of the size, both ends included; None is an open end. A size that is open at both ends
        is left out.
    """
    ranges: dict[str, list[int | None]] = {}
    for name, size in sizes.items():
        grid = GRIDS[op][name]
        at = grid.index(size)
        low = int(sqrt(grid[at - 1] * size)) + 1 if at > 0 else None
        high = int(sqrt(size * grid[at + 1])) if at + 1 < len(grid) else None

        if low is not None or high is not None:
            ranges[name] = [low, high]
    return ranges


def work(cell: Cell, device: str) -> tuple[Op, tuple[Any, ...], Run]:
    """What to measure for a cell.

    Args:
        cell: what is asked for.
        device: where tensors are made.

    Returns:
        The op by whose arguments a backend is chosen, these arguments, and a function that runs it; the pooled
        similarity runs forward and backward.
    """
    op = cell.op
    sizes = cell.sizes
    dtype = cell.dtype

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
            OPS["_pooled_cosine_backward"].call(cosine, *inputs, cosine, length, 3.0, 3.0, False, True, True, False)

        return pooled.moments_op, given, pooled_similarity

    problems = sizes["problems"]
    width = sizes["width"]
    num_bases = sizes.get("bases", 1)
    x = random(problems, sizes.get("rows", width), width, as_dtype=dtype)
    gram = random(problems, width, width)
    colsum = random(problems, width)
    responsibilities = random(problems, width, num_bases).softmax(-2)
    scale = random(problems, num_bases).exp()

    fitting = (gram, responsibilities, ITERATIONS, 1.0, 1e-6)
    mapping = (x, responsibilities, scale, 3.0)
    projecting = (x, scale, ITERATIONS, 1.0, 3.0, 1e-6, False)

    parts: dict[str, tuple[Op, tuple[Any, ...]]] = {
        "em_moments": (moments.op, (x,)),
        "_em_moments_backward": (OPS["_em_moments_backward"], (gram, colsum, x)),
        "em_fit": (fit.op, fitting),
        "_em_fit_backward": (OPS["_em_fit_backward"], (responsibilities, scale, *fitting)),
        "em_reconstruct": (reconstruct.op, mapping),
        "_em_reconstruct_backward": (OPS["_em_reconstruct_backward"], (x, *mapping)),
        "em_project": (project.fixed, projecting),
    }
    part, args = parts[cell.part]
    return part, args, lambda: part.call(*args)


def times_of(cell: Cell, measure: Measure, device: str) -> dict[str, float]:
    """Time of each backend that can run a cell, in microseconds, by its name."""
    by, args, run = work(cell, device)
    times: dict[str, float] = {}
    for name in tables.BACKENDS:
        if dispatch.BACKENDS[name].supports(by, args) is not None:
            continue
        try:
            with dispatch.use_backend(name):
                times[name] = round(measure(run), 1)
        except torch.OutOfMemoryError:
            print(f"{name} has not enough memory for {cell.part} {cell.dtype} {cell.sizes}", flush=True)
    return times


def rows(
    device_name: str, origin: str, measure: Measure, wanted: Collection[Cell], device: str = "cuda"
) -> Iterator[dict[str, Any]]:
    """Measure cells, and give one row of the table for each that a backend runs.

    Args:
        device_name: of the GPU, as rows have it.
        origin: where the row comes from, as rows have it; the times are added.
        measure: gives the time of a call in microseconds.
        wanted: the cells, in their order.
        device: where tensors are made.

    Yields:
        A row, as soon as it is measured.
    """
    tf32 = gpu.tf32_allowed()
    for cell in wanted:
        times = times_of(cell, measure, device)
        if not times:
            continue
        backend = min(times, key=times.__getitem__)
        shown = ", ".join(f"{name} {time} µs" for name, time in times.items())
        yield {
            "device": device_name,
            **bounded(cell.row(), backend, cell.sizes),
            # Products of 16-bit rows are the same whatever is said about float32.
            **({"tf32": tf32} if cell.dtype == torch.float32 else {}),
            "backend": backend,
            "origin": f"{origin}: {shown} at {'×'.join(map(str, cell.sizes.values()))}",
        }


def bounded(row: dict[str, Any], backend: str, sizes: dict[str, int]) -> dict[str, Any]:
    """A row that holds up to twice the measured pairs, if torch is chosen: of more, its [A, B, F] might not fit."""
    if row["op"] != "pooled_similarity" or backend != "torch":
        return row
    shape = dict(row["shape"])
    for name in ("texts", "videos", "frames"):
        low, high = shape.get(name, [None, None])
        shape[name] = [low, high if high is not None else 2 * sizes[name]]
    return {**row, "shape": shape}


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    """One row a line, so that two tables can be compared; as a whole, so that nobody ever reads half a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # where nobody can have put a link
    with partial.open("x", encoding="utf-8") as file:
        file.write(f'{{"rows": [\n{lines}\n]}}\n')
    partial.replace(path)


def kept(path: Path, device_name: str, origin: str) -> list[dict[str, Any]]:
    """Rows of an earlier table that a new run need not measure, and those of other cards.

    Args:
        path: of the table; it need not exist.
        device_name: of this GPU.
        origin: as the rows of the new run will have it.

    Returns:
        The rows of this card with the same origin (the same versions), and all rows of other cards.
    """
    if not path.exists():
        return []
    tables.read(path)  # says what is wrong with it
    entries = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row for row in entries if row.get("device") != device_name or row["origin"].startswith(f"{origin}: ")]


def missing(wanted: list[Cell], entries: list[dict[str, Any]], device_name: str, *, tf32: bool) -> list[Cell]:
    """The cells that have no row yet."""
    known = [row for row in entries if row.get("device") == device_name]

    def is_of(cell: Cell, row: dict[str, Any]) -> bool:
        about = bounded(cell.row(), row["backend"], cell.sizes)
        about["tf32"] = tf32 if cell.dtype == torch.float32 else None
        return all(row.get(name) == value for name, value in about.items())

    return [cell for cell in wanted if not any(is_of(cell, row) for row in known)]


def measure_into(
    path: Path, entries: list[dict[str, Any]], measured: Iterator[dict[str, Any]], left: Time | None = None
) -> int:
    """Print each row and write the table after it, until there are no more or the time is up.

    Args:
        path: of the table.
        entries: rows that are in it already; the new ones are added.
        measured: gives new rows, each when it is asked for.
        left: the time; None: without end.

    Returns:
        How many rows were measured.
    """
    before = len(entries)
    while left is None or left.is_left():
        entry = next(measured, None)
        if entry is None:
            break
        print(f"{entry['op']} {entry['dtype']}: {entry['backend']}, {entry['origin'].partition(': ')[2]}", flush=True)
        entries.append(entry)
        write(path, entries)
    return len(entries) - before


def commit() -> str:
    """The commit of this checkout, as " at commit ..."; nothing if this is no checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return f" at commit {done.stdout.strip()}" if done.returncode == 0 else ""


def main() -> None:
    """Measure, print each row, and write the table."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m emcl_kernels.tune", description=summary)
    parser.add_argument("--out", type=Path, help=f"file to write; without it {tables.user_table()}, which is then used")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="end before so many (default: %(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="keep what the file has of these versions; other cards too"
    )
    parser.add_argument("--tf32", action="store_true", help="measure float32 where torch may round it to TF32")
    options = parser.parse_args()
    out: Path = options.out or tables.user_table()

    if not torch.cuda.is_available():
        print("There is no CUDA device to measure on; nothing was written.")
        return
    left = Time(60 * options.minutes)
    for name in tables.BACKENDS:
        if reason := dispatch.BACKENDS[name].unavailable(torch.device("cuda")):
            print(f"{name} is left out: {reason}")
    if options.tf32:
        torch.set_float32_matmul_precision("high")

    device_name = torch.cuda.get_device_name()
    origin = f"measured on {device_name}, emcl {__version__}{commit()}, torch {torch.__version__}"
    entries = kept(out, device_name, origin) if options.resume else []
    wanted = missing(cells(tf32=options.tf32), entries, device_name, tf32=gpu.tf32_allowed())

    count = measure_into(out, entries, rows(device_name, origin, microseconds, wanted), left)
    if count < len(wanted):
        print(
            f"Not measured: {len(wanted) - count} of {len(wanted)} cells. --resume goes on, --minutes gives more time."
        )
    print(f"{out} has {len(entries)} rows" + ("" if out == tables.user_table() else f"; EMCL_TABLE={out} uses them"))


if __name__ == "__main__":
    main()
