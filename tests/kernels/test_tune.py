"""`python -m emcl_kernels.tune`: its grid, the table that it writes, and what it says without a GPU."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.mark.parametrize("op", list(tune.GRIDS))
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
        ran.clear()
        run()
        return float(len(ran))

    class Slower(PythonBackend):
        """Runs on the reference. Wide fits are faster in Triton, their gradient in torch, everything else in CUDA."""

        uniform = False

        def supports(self, op: Any, args: tuple[Any, ...]) -> str | None:
            fastest = "cuda"
            if op.family == "em_fit" and args[op.main].shape[-1] > 16:
                fastest = "triton" if op.name == "em_fit" else "torch"
            self.cost = 1 if self.name == fastest else 2
            return "not here" if op.family == "em_moments" and self.name == "cuda" else None

        def implementation(self, op: Any, args: tuple[Any, ...]) -> Any:
            ran.extend(["run"] * self.cost)
            return super().implementation(op, args)

    for name in tables.BACKENDS:
        monkeypatch.setitem(dispatch.BACKENDS, name, Slower(name, reference.backend.functions))
    path = tmp_path / "table.json"
    measured = tune.rows("a GPU", "measured on a test", measure, tune.cells(tf32=False), device="cpu")
    tune.measure_into(path, [], measured)
    rows = tables.read(path)
    assert {row.op for row in rows} == {part for parts in tune.PARTS.values() for part in parts}

    def chosen(op: str, dtype: str = "float32", **sizes: int) -> tables.Row:
        return next(row for row in rows if row.fits("a GPU", "9.0", op, dtype, sizes))

    assert chosen("em_fit", problems=9, width=15, bases=100).backend == "cuda"
    assert chosen("em_fit", problems=9, width=17, bases=1).backend == "triton"
    assert chosen("_em_fit_backward", problems=9, width=17, bases=1).backend == "torch"
    assert chosen("em_moments", "bfloat16", problems=1, rows=1, width=1).backend == "triton"
    assert chosen("pooled_similarity", texts=1, videos=1, frames=1, width=1).backend == "cuda"
    assert "measured on a test: cuda" in chosen("em_fit", problems=1, width=8, bases=2).origin
    assert not any(row.fits("another GPU", "9.0", "em_fit", "float32", {}) for row in rows)


def test_cells_that_would_not_fit_into_memory_are_left_out() -> None:
    sizes = list(tune.sizes_of("em_moments"))
    assert {"problems": 64, "rows": 4096, "width": 1024} in sizes
    assert {"problems": 64, "rows": 65536, "width": 128} not in sizes
    pairs = list(tune.sizes_of("pooled_similarity"))
    assert {"texts": 4096, "videos": 4096, "frames": 12, "width": 512} in pairs
    assert {"texts": 4096, "videos": 4096, "frames": 64, "width": 512} not in pairs


def test_what_is_usual_is_measured_first_and_a_gradient_before_its_op() -> None:
    cells = tune.cells(tf32=False)
    usual = [cell for cell in cells if all(size == tune.USUAL[name] for name, size in cell.sizes.items())]
    assert cells[: len(usual)] == usual
    assert {cell.op for cell in usual} == set(tune.GRIDS)
    for before, after in pairwise(cells):
        if after.part.endswith("_backward"):
            assert (before.op, before.sizes) != (after.op, after.sizes) or before.dtype != after.dtype
    assert {cell.dtype for cell in tune.cells(tf32=True)} == {torch.float32}


# ---- a run that ends early -------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when it is told so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def entries(clock: Clock, seconds: float, origin: str = "test 1") -> Iterator[dict[str, Any]]:
    """Rows without end, each after some seconds."""
    for width in range(1, 1000):
        clock.now += seconds
        shape = {"width": [width, width]}
        yield {"device": "a GPU", "op": "em_fit", "dtype": "float32", "tf32": False, "shape": shape,
               "backend": "cuda", "origin": f"{origin}: cuda 1 µs at {width}"}  # fmt: skip


def test_a_run_ends_within_its_time_by_the_slowest_cell_so_far(tmp_path: Path) -> None:
    for seconds in (7.0, 30.0):
        clock = Clock()
        count = tune.measure_into(tmp_path / "table.json", [], entries(clock, seconds), tune.Time(240.0, clock))
        assert 240 - 2 * seconds < clock.now <= 240
        assert len(tables.read(tmp_path / "table.json")) == count > 0


def test_a_run_that_is_killed_leaves_the_rows_so_far(tmp_path: Path) -> None:
    path = tmp_path / "table.json"

    def until_killed() -> Iterator[dict[str, Any]]:
        for number, entry in enumerate(entries(Clock(), 0.0)):
            assert not path.exists() or len(tables.read(path)) == number
            if number == 3:
                raise KeyboardInterrupt
            yield entry

    with pytest.raises(KeyboardInterrupt):
        tune.measure_into(path, [], until_killed())
    assert len(tables.read(path)) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_run_goes_on_where_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "GRIDS", TINY)
    path = tmp_path / "table.json"
    wanted = tune.cells(tf32=False)

    def measured(cells: list[tune.Cell]) -> Iterator[dict[str, Any]]:
        return tune.rows("a GPU", "version 2", lambda run: 1.0, cells, device="cpu")

    other = {"device": "another GPU", "backend": "triton", "origin": "version 1: triton 1 µs"}
    stale = {"device": "a GPU", "backend": "triton", "origin": "version 1: triton 1 µs"}
    tune.measure_into(path, [other, stale], measured(wanted[:5]))

    kept = tune.kept(path, "a GPU", "version 2")
    assert kept[0] == other
    assert stale not in kept
    assert tune.missing(wanted, kept, "a GPU", tf32=False) == wanted[5:]
    assert tune.missing(wanted, kept, "a third GPU", tf32=False) == wanted
    assert len(tune.missing(tune.cells(tf32=True), kept, "a GPU", tf32=True)) == len(tune.cells(tf32=True))
    tune.measure_into(path, kept, measured(wanted[5:]))
    assert len(tables.read(path)) == 1 + len(wanted)
    assert tune.kept(tmp_path / "missing.json", "a GPU", "version 2") == []
    assert json.loads(path.read_text())["rows"][0] == other


def test_where_torch_is_chosen_for_pairs_its_row_ends_where_its_memory_might() -> None:
    sizes = {"texts": 4096, "videos": 32, "frames": 12, "width": 512}
    row = tune.Cell("pooled_similarity", "pooled_similarity", torch.bfloat16, sizes).row()
    assert row["shape"] == {"texts": [2049, None], "videos": [None, 181], "frames": [None, 27]}
    assert tune.bounded(row, "cuda", sizes) == row
    assert tune.bounded(row, "torch", sizes)["shape"]["texts"] == [2049, 8192]
    cell = tune.Cell("pooled_similarity", "pooled_similarity", torch.bfloat16, sizes)
    for backend in tables.BACKENDS:
        known = tune.bounded(row, backend, sizes) | {"device": "a GPU", "backend": backend}
        assert tune.missing([cell], [known], "a GPU", tf32=False) == []


def test_a_backend_without_enough_memory_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(run: Any) -> float:
        raise torch.OutOfMemoryError("too much")

    cell = tune.Cell("em_fit", "em_fit", torch.float32, {"problems": 1, "width": 8, "bases": 2})
    assert tune.times_of(cell, measure, "cpu") == {}
    assert "torch has not enough memory for em_fit torch.float32" in capsys.readouterr().out


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Run the command as on a GPU, whose tensors are on the CPU and whose calls take a microsecond; gives its rows."""
    path = tmp_path / "table.json"
    on_gpu = tune.rows
    monkeypatch.setattr(tune, "GRIDS", TINY)
    monkeypatch.setattr(tune, "rows", lambda *args: on_gpu(*args, device="cpu"))
    monkeypatch.setattr(tune, "microseconds", lambda run: 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def run(*arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["tune", "--out", str(path), *arguments])
        tune.main()
        return list(json.loads(path.read_text())["rows"]) if path.exists() else []

    return run


def test_the_command_goes_on_when_it_is_asked_to(
    command: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--minutes", "0") == []
    count = len(tune.cells(tf32=False))
    assert f"Not measured: {count} of {count} cells. --resume goes on" in capsys.readouterr().out

    rows = command()
    assert len(rows) == count
    assert "Not measured" not in capsys.readouterr().out
    assert command("--resume") == rows


def test_the_command_measures_tf32_in_rows_of_its_own(command: Callable[..., list[dict[str, Any]]]) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        rows = [*command(), *command("--resume", "--tf32")]
    finally:
        torch.set_float32_matmul_precision(before)
    assert {row.get("tf32") for row in rows if row["dtype"] == "float32"} == {False, True}
    assert {row.get("tf32") for row in rows if row["dtype"] != "float32"} == {None}
