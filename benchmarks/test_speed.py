"""Speed on the CPU, float32. Each way is first compared with the float64 truth, then timed."""

from typing import Any

import pytest
import torch
from cases import POOLED, PROJECT, PooledCase, ProjectCase, pairs, rows
from memory import peak_mib
from ways import POOLED_WAYS, PROJECT_WAYS, pooled_step, project_forward, project_step

from emcl_kernels import reference
from emcl_kernels.testing import relative_error


def time(benchmark: Any, run: Any, rounds: int) -> None:
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=2, iterations=1)


def rounds_for(seconds: float) -> int:
    return max(5, min(60, int(2.5 / seconds)))


@pytest.mark.parametrize("case", PROJECT, ids=lambda case: case.name)
@pytest.mark.parametrize("way", PROJECT_WAYS)
def test_project_forward(benchmark: Any, case: ProjectCase, way: str) -> None:
    x, init = rows(case)
    run = project_forward(PROJECT_WAYS[way], x, init)
    if case.rows <= 2000:
        truth = reference.em_project_loop(x.double(), init.double())[0] - x.double()
        assert relative_error(run()[0].double() - x.double(), truth) < 1e-4  # type: ignore[index]
    benchmark.group = f"em_project [{case.rows}, {case.width}] forward"
    time(benchmark, run, rounds_for(case.rows * 1.2e-5))


@pytest.mark.parametrize("case", PROJECT[1:4], ids=lambda case: case.name)
@pytest.mark.parametrize("way", PROJECT_WAYS)
def test_project_forward_and_full_backward(benchmark: Any, case: ProjectCase, way: str) -> None:
    benchmark.group = f"em_project [{case.rows}, {case.width}] forward + backward full"
    time(benchmark, project_step(PROJECT_WAYS[way], *rows(case)), rounds_for(case.rows * 6e-5))


@pytest.mark.parametrize("case", POOLED, ids=lambda case: case.name)
@pytest.mark.parametrize("way", POOLED_WAYS)
def test_pooled_similarity_forward_and_backward(benchmark: Any, case: PooledCase, way: str) -> None:
    inputs = pairs(case)
    if case.pairs <= 128:
        truth = reference.pooled_similarity_materialized(*(t if t.dtype == torch.bool else t.double() for t in inputs))
        assert relative_error(POOLED_WAYS[way](*inputs)[0], truth[0]) < 1e-5
    benchmark.group = f"pooled_similarity A=B={case.pairs} F={case.frames} D={case.width} forward + backward"
    benchmark.extra_info["peak_mib"] = peak_mib(case.name, way)
    time(benchmark, pooled_step(POOLED_WAYS[way], inputs), 5)
