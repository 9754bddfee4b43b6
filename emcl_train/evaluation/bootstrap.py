"""Intervals of a difference between two ways of ranking the same queries."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

CHUNK_DRAWS = 1 << 22  # queries drawn at a time: 32 MiB of indices


@dataclass(frozen=True)
class Interval:
    """A mean difference `after − before` and the central part, such as 95 %, of what resampled queries make of it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"


def signed(value: float) -> str:
    """A difference to one decimal with its sign, which zero does not have."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def paired_bootstrap(
    before: Float[np.ndarray, " _"],
    after: Float[np.ndarray, " _"],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of the mean difference, over queries: each resample draws Q queries with replacement.

    A drawn query brings both of its scores, so what makes it hard for both cancels. It says what other queries of the
    same kind could have given; the gallery stays as it is.

    Args:
        before: float64, one score per query, such as 100.0 if the rank is 1 and else 0.0.
        after: the same queries in the same order.
        seed: of the draws; the same arguments give the same interval.
        resamples: how many.
        level: share of the resamples that the interval holds.

    Returns:
        The mean difference with its interval, in the unit of the scores.

    Raises:
        ValueError: the shapes disagree, there are no queries, a score is not finite, resamples < 1, or level is not
            between 0 and 1.

    Examples:
        >>> print(paired_bootstrap(np.zeros(4), np.full(4, 2.5)))
        +2.5 [+2.5, +2.5]
    """
    if before.shape != after.shape:
        raise ValueError(
            f"before and after must hold scores of the same queries, got shapes {list(before.shape)} and "
            f"{list(after.shape)}; evaluate both on one split"
        )
    if before.size == 0:
        raise ValueError("before and after must hold at least one query, got none; the split is empty")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}; 10000 is usual")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; 0.95 is usual")
    difference = after.astype(np.float64) - before.astype(np.float64)
    if not np.isfinite(difference).all():
        raise ValueError("before and after must be finite, got NaN or infinity; look for queries without a rank")

    # Some resamples at a time, from one generator, so that the size of a chunk changes no draw.
    generator = np.random.default_rng(seed)
    queries = len(difference)
    chunk = max(1, CHUNK_DRAWS // queries)
    means = []
    for start in range(0, resamples, chunk):
        drawn = generator.integers(queries, size=(min(chunk, resamples - start), queries))
        means.append(difference[drawn].mean(axis=1))

    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(math.fsum(difference) / queries, float(low), float(high))
