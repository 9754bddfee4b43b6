"""Named shapes of the benchmarks, and their inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


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


PROJECT = (
    ProjectCase("small-batch", 256),
    ProjectCase("eval-block-32x32", 1056),
    ProjectCase("gallery-1k", 2000),
    ProjectCase("msrvtt-train-b128", 16512),
    ProjectCase("msrvtt-train-b256", 65536),
)
POOLED = (PooledCase("b64-f12", 64), PooledCase("msrvtt-train-b128-f12", 128), PooledCase("b256-f12", 256))


def rows(case: ProjectCase) -> tuple[Tensor, Tensor]:
    """Rows of length one, and bases that start apart."""
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(case.rows, case.width, generator=generator), dim=-1)
    return x, torch.randn(case.bases, generator=generator)


def pairs(case: PooledCase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """text, frames, frame_mask, init."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(case.pairs, case.width, generator=generator), dim=-1)
    frames = normalize(torch.randn(case.pairs, case.frames, case.width, generator=generator), dim=-1)
    mask = torch.ones(case.pairs, case.frames, dtype=torch.bool)
    return text, frames, mask, torch.randn(case.bases, generator=generator)
