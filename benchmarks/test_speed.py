"""Speed on the CPU, float32. Each way is first compared with the float64 truth, then timed."""

from typing import Any

import pytest
import torch
from cases import EVALUATION, ITERS, PROJECT, TRAINING, PooledCase, ProjectCase, pairs, released_start, rows
from memory import peak_mib
from ways import (
    EVALUATION_WAYS,
    PROJECT_WAYS,
    TRAINING_WAYS,
    project_forward,
    project_step,
    training_step,
)

from emcl_kernels import reference
from emcl_kernels.ops.pooled import KEPT_PRODUCTS
from emcl_kernels.testing import relative_error

MOST_MATERIALIZED_GIB = 0.5


def time(benchmark: Any, run: Any, rounds: int, warmup_rounds: int = 2) -> None:
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=warmup_rounds, iterations=1)


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


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
@pytest.mark.parametrize("way", TRAINING_WAYS)
def test_training_step(benchmark: Any, case: PooledCase, way: str) -> None:
    if way == "eager" and case.materialized_gib > MOST_MATERIALIZED_GIB:
        pytest.skip(
            f"the release's first tensor alone takes {case.materialized_gib:.1f} GiB, and backward keeps several"
        )
    inputs = pairs(case)
    if case.pairs <= 128 and way != "EMCL off":
        truth = reference.pooled_similarity_materialized(*(t if t.dtype == torch.bool else t.double() for t in inputs))
        assert relative_error(TRAINING_WAYS[way](*inputs), truth[0]) < 1e-5
    benchmark.group = f"{case.name} A=B={case.pairs} F={case.frames} D={case.width} forward + backward"
    benchmark.extra_info["peak_mib"] = peak_mib(case.name, way)
    if way != "eager":
        benchmark.extra_info |= cost_of(case, 0 if way == "EMCL off" else case.bases)
    time(benchmark, training_step(TRAINING_WAYS[way], inputs), rounds=9 if case.pairs <= 512 else 3)


@pytest.mark.parametrize("start", ["distinct", "released"])
@pytest.mark.parametrize("case", EVALUATION, ids=lambda case: case.name)
@pytest.mark.parametrize("way", EVALUATION_WAYS)
def test_evaluation_in_blocks(benchmark: Any, case: PooledCase, start: str, way: str) -> None:
    *features, init = pairs(case)
    inputs = (*features, init if start == "distinct" else released_start(case.bases))
    with torch.no_grad():
        ours, release = (
            EVALUATION_WAYS[w](*(t[:70] for t in features), inputs[3], case.em_block) for w in ("ours", "eager")
        )
        assert relative_error(ours, release) < 1e-5
        benchmark.group = (
            f"{case.name} {case.pairs} × {case.pairs} F={case.frames} em_block={case.em_block} {start} start"
        )
        time(benchmark, lambda: EVALUATION_WAYS[way](*inputs, case.em_block), rounds=3, warmup_rounds=1)


def cost_of(case: PooledCase, bases: int) -> dict[str, float]:
    """What the cost model says of a training step."""
    kept = case.pairs * case.pairs * case.frames <= KEPT_PRODUCTS
    cost = pytest.importorskip("emcl_kernels._bindings").pooled_cost(
        case.pairs, case.pairs, case.frames, case.width, bases, ITERS, kept=kept
    )
    return {
        "gflop": sum(part["flops"] for part in cost.values()) / 1e9,
        "mbyte": sum(part["bytes"] for part in cost.values()) / 1e6,
    }
