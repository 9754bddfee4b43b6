"""`python -m emcl_kernels.tune`: its grid, the table that it writes, and what it says without a GPU."""

import subprocess
import sys
from itertools import pairwise, product
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

from emcl_kernels import dispatch, tables, tune
from emcl_kernels.backends import PythonBackend, reference

TINY = {
    "em_moments": {"problems": (1, 2), "rows": (20, 80), "width": (8,)},
    "em_fit": {"problems": (1,), "width": (8, 32), "bases": (2, 8)},
    "em_reconstruct": {"problems": (1,), "rows": (20,), "width": (8,), "bases": (2,)},
    "em_project": {"problems": (1,), "rows": (20,), "width": (8,), "bases": (2,)},
    "pooled_similarity": {"texts": (3,), "videos": (2,), "frames": (2,), "width": (8,)},
}


def test_without_a_gpu_it_says_so_and_succeeds(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "table.json"
    command = [sys.executable, "-m", "emcl_kernels.tune", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "There is no CUDA device to measure on; nothing was written.\n"
    assert done.stderr == ""
    assert not out.exists()


@pytest.mark.parametrize("op", list(tables.SIZES))
def test_every_shape_goes_with_one_cell(op: str) -> None:
    assert tuple(tune.GRIDS[op]) == tables.SIZES[op]
    reaches = [
        tune.reach(op, dict(zip(tune.GRIDS[op], values, strict=True))) for values in product(*tune.GRIDS[op].values())
    ]
    edges = [
        (1, 10**6, *(int(sqrt(a * b)) + step for a, b in pairwise(grid) for step in (0, 1)))
        for grid in tune.GRIDS[op].values()
    ]
    for values in product(*edges):
        sizes = dict(zip(tune.GRIDS[op], values, strict=True))
        rows = [
            tables.Row("cuda", "", op=op, shape={name: (low, high) for name, (low, high) in reach.items()})
            for reach in reaches
        ]
        assert sum(row.fits("", "", op, "float32", sizes) for row in rows) == 1


def test_the_faster_backend_of_each_cell_is_written_and_then_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "GRIDS", TINY)
    ran: list[str] = []

    def measure(run: Any) -> float:
        run()
        return float(len(ran))

    class Slower(PythonBackend):
        """Runs on the reference; wide fits are faster in Triton, everything else in CUDA."""

        uniform = False

        def supports(self, op: Any, args: tuple[Any, ...]) -> str | None:
            ran.clear()
            slow = (self.name == "cuda") == (op.family == "em_fit" and args[op.main].shape[-1] > 16)
            self.cost = 2 if slow else 1
            return "not here" if op.family == "em_moments" and self.name == "cuda" else None

        def implementation(self, op: Any, args: tuple[Any, ...]) -> Any:
            ran.extend(["run"] * self.cost)
            return super().implementation(op, args)

    for name in tables.BACKENDS:
        monkeypatch.setitem(dispatch.BACKENDS, name, Slower(name, reference.backend.functions))
    path = tmp_path / "table.json"
    tune.write(path, list(tune.rows("a GPU", "measured on a test", measure, device="cpu")))
    rows = tables.read(path)
    assert {row.op for row in rows} == set(tables.SIZES)

    def chosen(op: str, dtype: str = "float32", **sizes: int) -> tables.Row:
        return next(row for row in rows if row.fits("a GPU", "9.0", op, dtype, sizes))

    assert chosen("em_fit", problems=9, width=15, bases=100).backend == "cuda"
    assert chosen("em_fit", problems=9, width=17, bases=1).backend == "triton"
    assert chosen("em_moments", "bfloat16", problems=1, rows=1, width=1).backend == "triton"
    assert chosen("pooled_similarity", texts=1, videos=1, frames=1, width=1).backend == "cuda"
    assert "measured on a test: cuda" in chosen("em_fit", problems=1, width=8, bases=2).origin
    assert not any(row.fits("another GPU", "9.0", "em_fit", "float32", {}) for row in rows)


def test_cells_that_would_not_fit_into_memory_are_left_out() -> None:
    sizes = list(tune.cells("em_moments"))
    assert {"problems": 64, "rows": 4096, "width": 1024} in sizes
    assert {"problems": 64, "rows": 65536, "width": 128} not in sizes
