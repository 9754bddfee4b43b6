"""The maps that a refiner can fit: each is settings, and a fit to the moments of both sides (docs/math.md, F)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks
from emcl_kernels.em import Moments
from emcl_kernels.refine.moments import gram_without_mean, mean
from emcl_kernels.refine.signed import signed_map

Fitted = dict[str, Tensor]
"""Tensors of a fitted map, in float64: `offset_text` and `offset_video` `[D]`, and of the linear part either `change`
`[D, D]`, or `left` and `right` `[D, R]` with change = left·rightᵀ, or none, for a change of zero."""

WIDEST_IN_ONE_THREAD = 1024
"""Rows of this width or less have the eigenvalues of their moments in less than half a second of one thread."""


def offsets(text: Moments, video: Moments, share: float) -> Fitted:
    """A share of each side's mean, before the linear part (FO)."""
    return {"offset_text": share * mean(text), "offset_video": share * mean(video)}


def both_sides(text: Moments, video: Moments, share: float) -> Float[Tensor, "D D"]:
    """Second moments of both sides without a share of their means (FG)."""
    return gram_without_mean(text, share) + gram_without_mean(video, share)


@dataclass(frozen=True)
class Whitening:
    """Directions in which rows vary much are shortened: P = (I + strength · C / mean eigenvalue of C)^(−½).

    C are the second moments of both sides, and I + strength · C in units of its mean eigenvalue is what shrinkage
    leaves of them: a strength of 0.02 is a shrinkage of 0.98. The map is symmetric, has no seed and no iterations.

    Raises:
        ValueError: a setting is out of its range.
    """

    name: ClassVar[str] = "whitening"
    linear: ClassVar[tuple[str, ...]] = ("change",)

    strength: float = 0.02
    """How much is shortened: an average direction by 1 − 1/√(1 + strength)."""
    mean_share: float = 0.4
    """Share of each side's mean that is subtracted from its rows after P. The mean is that of rows before P."""
    fit_mean_share: float = 0.7
    """Share of each side's mean that is subtracted before C is taken."""

    def __post_init__(self) -> None:
        _finite(self)
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength}; expected 0 or more: whitening shortens")

    def fit(self, text: Moments, video: Moments) -> Fitted:
        moments = both_sides(text, video, self.fit_mean_share)
        values, directions = _eigen(moments)

        # Rounding may leave a direction in which nothing varies slightly below zero.
        values = values.clamp_min(0)
        shortened = (1 + self.strength * values / values.mean()).rsqrt()
        change = (directions * (shortened - 1)) @ directions.T
        return {"change": (change + change.T) / 2, **offsets(text, video, self.mean_share)}


@dataclass(frozen=True)
class EM:
    """EMCL's map I + weight · reconstruction, by EM on the channels of both sides and their negatives.

    Raises:
        ValueError: a setting is out of its range.
    """

    name: ClassVar[str] = "em"
    linear: ClassVar[tuple[str, ...]] = ("left", "right")

    num_bases: int = 32
    """Bases K of one run of EM, at most the width of the embeddings."""
    num_starts: int = 4
    """Runs of EM from different channels, whose maps are averaged. A single run depends on its draw."""
    num_iters: int = 5
    """E-steps and M-steps."""
    temperature: float = 0.6
    """Of the E-step's softmax, in units of the root mean square length of the channels, so that neither the number of
    rows nor the width changes what it means."""
    weight: float = -0.07
    """Of the reconstruction, in units of the rows' own size: -0.05 takes out 5 %."""
    mean_share: float = 0.58
    """Share of each side's mean that is subtracted from its rows."""
    fit_mean_share: float = 0.7
    """Share of each side's mean that is subtracted before EM. If nothing is, EM finds little else than the mean."""
    seed: int = 0
    """Which channels the bases start from."""
    eps: float = 1e-6
    """Added to the sums and lengths that are divided by."""

    def __post_init__(self) -> None:
        for name in ("num_bases", "num_starts"):
            count = getattr(self, name)
            if not checks.is_count(count):
                raise ValueError(f"{name} is {count}; expected at least 1, a whole number")
        checks.iteration(self.num_iters, self.temperature, self.eps)
        _finite(self)

    def fit(self, text: Moments, video: Moments) -> Fitted:
        left, right = signed_map(
            both_sides(text, video, self.fit_mean_share),
            num_bases=self.num_bases,
            num_starts=self.num_starts,
            num_iters=self.num_iters,
            temperature=self.temperature,
            seed=self.seed,
            eps=self.eps,
        )
        return {"left": self.weight * left, "right": right, **offsets(text, video, self.mean_share)}


@dataclass(frozen=True)
class Mean:
    """Takes a share of each side's mean out, and nothing else: the simplest map, to compare with.

    Raises:
        ValueError: the share is not finite.
    """

    name: ClassVar[str] = "mean"
    linear: ClassVar[tuple[str, ...]] = ()

    mean_share: float = 0.7
    """Share of each side's mean that is subtracted from its rows."""

    def __post_init__(self) -> None:
        _finite(self)

    def fit(self, text: Moments, video: Moments) -> Fitted:
        return offsets(text, video, self.mean_share)


@dataclass(frozen=True)
class Unchanged:
    """Leaves rows as they are, for a bank alone."""

    name: ClassVar[str] = "none"
    linear: ClassVar[tuple[str, ...]] = ()

    def fit(self, text: Moments, video: Moments) -> Fitted:
        return offsets(text, video, 0.0)


Map = Whitening | EM | Mean | Unchanged
"""Settings of one kind of map, with `name`, the names of its tensors besides the offsets in `linear`, and `fit`."""
KINDS: dict[str, type[Any]] = {kind.name: kind for kind in (Whitening, EM, Mean, Unchanged)}


def map_of(given: Any) -> Map:
    """The map that a user names, or has made.

    Args:
        given: the name of one of `KINDS`, or a map.

    Returns:
        The map.

    Raises:
        ValueError: there is no such map.
    """
    if isinstance(given, Whitening | EM | Mean | Unchanged):
        return given
    if not isinstance(given, str) or given not in KINDS:
        raise ValueError(f"map is {given!r}; expected one of {', '.join(map(repr, KINDS))}, or such a map itself")
    named: Map = KINDS[given]()
    return named


def change_of(fitted: Fitted, width: int) -> Float[Tensor, "D D"]:
    """What the linear part adds to the identity."""
    if "left" in fitted:
        return fitted["left"] @ fitted["right"].T
    return fitted["change"] if "change" in fitted else torch.zeros(width, width, dtype=torch.float64)


def _eigen(moments: Float[Tensor, "D D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
    """Eigenvalues and directions, of usual widths in one thread.

    Several threads wait for each other at each column. Where other programs use the cores, that takes them a hundred
    times as long as one, and where none do, little is gained.
    """
    threads = torch.get_num_threads()
    if len(moments) > WIDEST_IN_ONE_THREAD or threads == 1:
        return torch.linalg.eigh(moments)
    torch.set_num_threads(1)
    try:
        return torch.linalg.eigh(moments)
    finally:
        torch.set_num_threads(threads)


def _finite(settings: Any) -> None:
    for name, value in _floats(settings):
        if not -1e6 < value < 1e6:
            raise ValueError(f"{name} is {value}; expected a finite number")


def _floats(settings: Any) -> Iterator[tuple[str, float]]:
    for field in fields(settings):
        if field.type in (float, "float"):
            yield field.name, getattr(settings, field.name)
