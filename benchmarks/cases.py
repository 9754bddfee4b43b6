"""Named shapes of the benchmarks, and their inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

ITERS = 9


@dataclass(frozen=True)
class ProjectCase:
    """Rows into EM, float32, K = 32, T = 9."""

    name: str
    rows: int
    width: int = 512
    bases: int = 32


@dataclass(frozen=True)
class PooledCase:
    """`pairs` texts against as many videos, float32, K = 32, T = 9."""

    name: str
    pairs: int
    frames: int = 12
    width: int = 512
    bases: int = 32
    em_block: int | None = None

    @property
    def materialized_gib(self) -> float:
        """The release's first tensor [A, B, D]; it makes about ten of that size."""
        return self.pairs**2 * self.width * 4 / 2**30


PROJECT = (
    ProjectCase("small-batch", 256),
    ProjectCase("eval-block-32x32", 1056),
    ProjectCase("gallery-1k", 2000),
    ProjectCase("msrvtt-train-b128", 16512),
    ProjectCase("msrvtt-train-b256", 65536),
)
TRAINING = (
    PooledCase("b64-f12", 64),
    PooledCase("msrvtt-train-b128-f12", 128),
    PooledCase("b256-f12", 256),
    PooledCase("b512-f12", 512),
    PooledCase("large-b1024", 1024),
    PooledCase("large-b2048", 2048),
    PooledCase("activitynet-train-b128-f64", 128, frames=64),
)
EVALUATION = (PooledCase("msrvtt-eval-1k", 1000, em_block=32),)


def rows(case: ProjectCase) -> tuple[Tensor, Tensor]:
    """Rows of length one, and bases that start apart."""
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(case.rows, case.width, generator=generator), dim=-1)
    return x, torch.randn(case.bases, generator=generator)


def released_start(bases: int) -> Tensor:
    """±1, as in the release: two bases that are really different."""
    return torch.randn(bases, generator=torch.Generator().manual_seed(0)).sign()


def pairs(case: PooledCase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """text, frames, frame_mask, init."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(case.pairs, case.width, generator=generator), dim=-1)
    frames = normalize(torch.randn(case.pairs, case.frames, case.width, generator=generator), dim=-1)
    mask = torch.ones(case.pairs, case.frames, dtype=torch.bool)
    return text, frames, mask, torch.randn(case.bases, generator=generator)
