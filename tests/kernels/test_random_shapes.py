"""The CUDA kernels at random shapes, forward and backward, blocks that are not full among them.

In the emulator the shapes of an op are shared out among the orders of threads and copies, the sums of both kinds,
architectures and ways of the fit. On a GPU, Triton has them too. `make test-random` takes 200 shapes an op.
"""

import os
import random
from collections.abc import Callable, Iterator

import pytest
import test_fit
import test_moments
import test_pooled
import test_project
import test_reconstruct
import torch
from compare import HALF, Problem, compare
from emulator import MANNERS, emulate

from emcl_kernels import em_fit, em_project, pooled_similarity, reference
from emcl_kernels.testing import clustered_rows

SHAPES = int(os.environ.get("EMCL_TEST_SHAPES", "8"))  # of an op
DTYPES = [torch.float32, torch.float32, *HALF]
# Compares an op at a shape that it draws, on a backend and a device.
Check = Callable[[random.Random, str, str], None]


def size(draw: random.Random, usual: int, rare: int) -> int:
    """Mostly small, one in eight larger than a tile."""
    return draw.randint(1, rare if draw.random() < 1 / 8 else usual)


def rows_of(draw: random.Random) -> tuple[tuple[int, ...], int, int]:
    """Leading dimensions, rows, width."""
    return draw.choice([(), (), (2,)]), size(draw, 70, 300), size(draw, 60, 150)


def clips_of(draw: random.Random) -> tuple[int, ...]:
    """Texts, videos, frames, width, bases. Of width 1, cosines are 1 or -1, and gradients nothing but rounding."""
    return size(draw, 40, 140), size(draw, 3, 8), size(draw, 8, 64), 1 + size(draw, 20, 80), size(draw, 8, 40)


def moments(draw: random.Random, backend: str, device: str) -> None:
    leading, rows, width = rows_of(draw)
    given = Problem({"x": clustered_rows(*leading, rows, width)}, draw.choice(DTYPES), ("x",), ("x",))
    compare(backend, device, given, test_moments.ours, test_moments.formula, may_be_useless=True)


def fit(draw: random.Random, backend: str, device: str) -> None:
    leading, _, width = rows_of(draw)
    iters = draw.randint(1, 3)
    given = test_fit.problem(leading, width, size(draw, 40, 128), iters, torch.float32)
    functions = test_fit.fit(em_fit, iters), test_fit.fit(reference.em_fit, iters)
    compare(backend, device, given, *functions, may_be_useless=True)


def reconstruct(draw: random.Random, backend: str, device: str) -> None:
    leading, rows, width = rows_of(draw)
    given = test_reconstruct.problem(leading, rows, width, size(draw, 40, 128), draw.choice(DTYPES))
    compare(backend, device, given, test_reconstruct.ours, test_reconstruct.formula, may_be_useless=True)


def project(draw: random.Random, backend: str, device: str) -> None:
    leading, rows, width = rows_of(draw)
    iters, gradient = draw.randint(1, 3), draw.choice(["linear", "full"])
    bases = size(draw, min(40, width), min(128, width))
    given = test_project.problem(
        leading, rows, width, bases, iters, draw.choice(DTYPES), gradient, per_row=draw.random() < 0.25
    )
    given.differentiate = ("x",)  # to the start, gradients may cancel to nothing
    functions = (test_project.project(f, gradient, iters) for f in (em_project, reference.em_project_loop))
    compare(backend, device, given, *functions, may_be_useless=True)


def pooled(draw: random.Random, backend: str, device: str) -> None:
    gradient = draw.choice(["identity", "linear", "full"])
    given = test_pooled.problem(clips_of(draw), draw.choice(DTYPES))
    ours = test_pooled.similarity(pooled_similarity, gradient)
    formula = test_pooled.similarity(reference.pooled_similarity_materialized, gradient)
    compare(backend, device, given, ours, formula, may_be_useless=True)


def blocks(draw: random.Random, backend: str, device: str) -> None:
    shape = clips_of(draw)
    em_block = draw.randint(max(1, shape[0] // 4), shape[0] + 1)
    relative = draw.random() < 0.25
    test_pooled.check_blocks(
        backend, device, shape, draw.choice(DTYPES), em_block, relative=relative, may_be_useless=True
    )


OPS: dict[str, Check] = {
    "em_moments": moments,
    "em_fit": fit,
    "em_reconstruct": reconstruct,
    "em_project": project,
    "pooled_similarity": pooled,
    "pooled_similarity_blocks": blocks,
}


def emulate_any(draw: random.Random, manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else that can be asked of the emulator."""
    architecture = draw.choice([80, 90, 90])
    emulate(monkeypatch, **MANNERS[manner], ARCHITECTURE=architecture, SUMS=draw.choice(["exact", "hopper"]))
    ways = ["cluster8", "cluster16", "steps"] if architecture >= 90 else ["steps"]
    monkeypatch.setenv("EMCL_FIT", draw.choice(ways))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's, which has little to do here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_random_shapes(backend: str, device: str, name: str, manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []
    for i in range(SHAPES // len(MANNERS)):
        seed = f"{name}, {manner}, {i}"
        draw = random.Random(seed)
        torch.manual_seed(draw.randrange(2**31))
        if device == "cpu":
            emulate_any(draw, manner, monkeypatch)
        try:
            OPS[name](draw, backend, device)
        except (AssertionError, RuntimeError, ValueError) as error:
            failures.append(f"{seed}: {error}")
    assert not failures, "\n".join(failures)
