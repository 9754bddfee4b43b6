"""The score that unrelated queries do not reach: where `search --min auto` cuts. docs/own-videos.md says it in words.

An unrelated query is a text that none of the videos answers. Its best score is the best of a wrong answer. The cut-off
is the score below which 95 of 100 such queries stay, measured on queries that are known beforehand (the bank).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import Refiner
from emcl_train.errors import UserError

BLOCK_SCORES = 1 << 24
"""Scores that are there at a time: 64 MiB in float32."""
PADDED_TO = 16
"""Tables have rows with zeros behind them, so that their width is a multiple."""
SHARE = 0.95
"""Of the unrelated queries, how many find nothing."""
FOLDS = 2
"""Parts of a small bank, of which each is scored by a map that was fitted to the others. Five are no better."""

Blocks = Iterable[Any]
"""Rows `[n, D]` of one gallery, tensors or arrays, one block after the other."""


@dataclass(frozen=True)
class Cutoff:
    """A score, and how many unrelated queries find nothing above it."""

    score: float
    share: float
    """Of unrelated queries, those whose best score is at most this one."""
    queries: int
    """How many it was measured with."""
    way: str
    """How scores were made: "cosine", "refined", or the name of a head."""

    def said(self) -> str:
        """It in words, for those who search.

        Examples:
            >>> print(Cutoff(0.231, 0.95, 400, "cosine").said())
            95 of 100 unrelated queries find nothing above 0.231; measured with 400 queries: 92.7 to 96.9 of 100
        """
        low, high = likely_shares(self.queries, self.share)
        return (
            f"{100 * self.share:g} of 100 unrelated queries find nothing above {self.score:.3g}; measured with "
            f"{self.queries} queries: {100 * low:.1f} to {100 * high:.1f} of 100"
        )

    def as_json(self) -> dict[str, Any]:
        """For the library."""
        return asdict(self)

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> "Cutoff":
        """What `as_json` gave.

        Raises:
            KeyError: something is missing.
        """
        return cls(float(found["score"]), float(found["share"]), int(found["queries"]), str(found["way"]))


def cutoff_of(best: Float[np.ndarray, " B"], share: float = SHARE, *, way: str = "cosine") -> Cutoff:
    """The score that a share of unrelated queries does not reach.

    It is an order statistic of the scores, at the place (B + 1) · share, between two of them by a straight line. A new
    query of the same kind stays below the j-th of B scores with the probability j / (B + 1), however scores are spread:
    so the share holds on average, with few queries too.

    Args:
        best: of each unrelated query its best score, `[B]`; see `unrelated_scores` and `refined_scores`. With a head,
            the first score of what it ranks.
        share: of unrelated queries that are to find nothing, above 0 and below 1.
        way: how scores were made.

    Returns:
        The cut-off.

    Raises:
        UserError: the queries are too few to say it.
        ValueError: a score is not finite, or the share is out of its range.

    Examples:
        >>> cutoff_of(np.arange(19.0)).score
        18.0
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected a number above 0 and below 1, such as {SHARE}")
    if not np.isfinite(best).all():
        raise ValueError(f"best holds {int((~np.isfinite(best)).sum())} scores that are not finite, of {len(best)}")
    if len(best) < (fewest := fewest_queries(share)):
        raise UserError(
            f"a cut-off for {100 * share:g} of 100 unrelated queries needs {fewest} of them or more, got {len(best)}; "
            f"add lines to the queries of --refine, or name the score: --min 0.25"
        )
    score = np.quantile(best.astype(np.float64), share, method="weibull")
    return Cutoff(float(score), share, len(best), way)


def fewest_queries(share: float) -> int:
    """Queries that a share can be said of: of fewer, (B + 1) · share is beyond the last."""
    return math.ceil(share / (1 - share) - 1e-9)


def likely_shares(queries: int, share: float, level: float = 0.95) -> tuple[float, float]:
    """Between which shares the true one lies in 95 of 100 cases, for so many queries drawn from those that will come.

    The share of new queries below the j-th of B scores has the distribution Beta(j, B + 1 − j), whatever the scores.

    Args:
        queries: B.
        share: of `cutoff_of`.
        level: of 1, how many cases.

    Returns:
        The lower and the upper share.
    """
    place = (queries + 1) * share
    return _beta_quantiles(place, queries + 1 - place, ((1 - level) / 2, (1 + level) / 2))


def unrelated_scores(
    bank: Float[np.ndarray, "B D"] | Float[Tensor, "B D"],
    gallery: Blocks,
    *,
    num_neighbors: int | None = None,
    bank_weight: float = 0.0,
    block_scores: int = BLOCK_SCORES,
) -> Float[np.ndarray, " B"]:
    """The best score of each query of a bank in a gallery, which is read once, block by block.

    Where the bank is also what corrects the gallery's items, a query is itself among those that an item is near to, so
    that the item's score for it is pulled down, which it is not for a query that comes later. So each query is scored
    as if it had not been in the bank: of an item's k + 1 nearest queries, the last takes the place of the query itself.
    That is exact. The map stays as it is: `refined_scores` sees to that.

    Args:
        bank: queries as they are compared, each once: of length one `[B, D]`; of a refiner with a bank, `[B, D + 1]`
            with a 1 at the end, as `transform_text(texts, role="query")` gives them.
        gallery: blocks `[n, D]` or `[n, D + 1]` of the items, in float32, of any sizes. They may have zeros behind, up
            to a multiple of 16.
        num_neighbors: k of the refiner whose bank this is, and that corrected the items by it. None: they were
            corrected by no bank, or by another one.
        bank_weight: α of that refiner.
        block_scores: how many scores are there at a time.

    Returns:
        The largest inner product of each query `[B]`, float32, in the order of the bank.

    Raises:
        ValueError: widths disagree, rows are not finite, the gallery has no item, or the bank has no more than
            num_neighbors queries.
    """
    queries = _rows(bank)
    if num_neighbors is not None and len(queries) <= num_neighbors:
        raise ValueError(
            f"bank has {len(queries)} queries and num_neighbors is {num_neighbors}; expected more queries than that, "
            f"since each is left out in turn"
        )
    if not torch.isfinite(queries).all():
        raise ValueError("bank holds NaN or infinite values; leave such queries out")

    best = torch.full((len(queries),), -math.inf)
    for items in _blocks(gallery, queries.shape[1], max(1, block_scores // max(1, len(queries)))):
        if num_neighbors is None:
            scores = items @ queries.T
        else:
            scores = _as_if_each_were_new(items, queries, num_neighbors, bank_weight)
        best = torch.maximum(best, scores.amax(0))

    if len(queries) and not torch.isfinite(best).all():
        raise ValueError("gallery has no item, or rows that are not finite; a cut-off is that of a library of moments")
    return best.numpy()


def refined_scores(
    texts: Float[np.ndarray, "B D"],
    refiner: Refiner,
    refined: Blocks,
    *,
    raw: Callable[[], Blocks],
    fit: Callable[[Any], Refiner],
) -> Float[np.ndarray, " B"]:
    """The best score of each text of the bank among refined moments, as if the text had not been known.

    The map is fitted to the texts of the bank as well. One that has fewer texts than its rows have numbers shortens
    what is peculiar to each of them, so that they are compared otherwise than texts that come later, and their scores
    are too low. Such a bank is scored by maps that do not know the texts that are scored (`held_out_scores`).

    Args:
        texts: rows of the bank `[B, D]`, raw, each text once.
        refiner: fitted, with this bank.
        refined: blocks of the moments as it refined them; read once, or not at all.
        raw: gives blocks of the same moments as they were before; they are read `FOLDS` times, or not at all.
        fit: a refiner with the settings of `refiner`, fitted to these texts and to the library's videos.

    Returns:
        `[B]`, float32.

    Raises:
        ValueError: as `unrelated_scores` does.
    """
    if len(texts) < texts.shape[1]:
        return held_out_scores(texts, raw, fit)
    queries = refiner.transform_text(texts, role="query")
    return unrelated_scores(queries, refined, num_neighbors=refiner.num_neighbors, bank_weight=refiner.bank_weight)


def held_out_scores(
    texts: Float[np.ndarray, "B D"],
    raw: Callable[[], Blocks],
    fit: Callable[[Any], Refiner],
    *,
    folds: int = FOLDS,
) -> Float[np.ndarray, " B"]:
    """The best score of each text of the bank by a map that was fitted to other texts alone.

    Args:
        texts: rows of the bank `[B, D]`, raw, each text once.
        raw: gives blocks `[n, D]` of the moments, raw; they are read once for each fold.
        fit: a refiner without a bank, fitted to these texts and to the library's videos.
        folds: parts of the texts; a part is scored by a map that was fitted to the others. All texts but the one that
            is scored correct the moments.

    Returns:
        `[B]`, float32.

    Raises:
        ValueError: as `unrelated_scores` does.
    """
    best = np.empty(len(texts), dtype=np.float32)
    fold_of = np.arange(len(texts)) % folds
    for fold in range(folds):
        held = fold_of == fold
        refiner = fit(texts[~held]).set_bank(texts)
        scores = unrelated_scores(
            refiner.transform_text(texts, role="query"),
            (refiner.transform_video(rows, role="gallery") for rows in raw()),
            num_neighbors=refiner.num_neighbors,
            bank_weight=refiner.bank_weight,
        )
        best[held] = scores[held]
    return best


def unrelated_captions() -> list[str]:
    """Captions of many subjects, for a library without a bank: most libraries answer few of them.

    Returns:
        The lines of unrelated.txt.
    """
    lines = files(__package__).joinpath("unrelated.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _as_if_each_were_new(
    items: Float[Tensor, "N E"], queries: Float[Tensor, "B E"], k: int, weight: float
) -> Float[Tensor, "N B"]:
    """Scores of items for the queries that correct them, each left out of the correction of its own scores.

    An item's last number is −weight · the mean of its k largest cosines. Without one of those k the (k + 1)-th moves
    up, so that the mean falls by (cosine − (k + 1)-th) / k, and the score rises by weight times that.
    """
    cosines = items[:, :-1] @ queries[:, :-1].T
    largest, nearest = cosines.topk(k + 1, dim=1)
    regained = (largest[:, :k] - largest[:, k:]) * (weight / k)
    return cosines.add_(items[:, -1:] * queries[:, -1]).scatter_add_(1, nearest[:, :k], regained)


def _blocks(gallery: Iterable[Any], width: int, size: int) -> Iterator[Float[Tensor, "N E"]]:
    """The items in blocks that are small enough, without the zeros behind."""
    for block in gallery:
        rows = _rows(block)
        if not width <= rows.shape[1] < width + PADDED_TO:
            raise ValueError(f"gallery has rows of {rows.shape[1]} numbers and the bank of {width}; expected the same")
        if rows[:, width:].any():
            raise ValueError(
                f"gallery has rows of {rows.shape[1]} numbers, and not zeros alone behind the {width} of the bank; "
                f"pass queries and items of one kind"
            )
        yield from rows[:, :width].split(size)


def _rows(rows: Any) -> Float[Tensor, "N E"]:
    """A block in float32, on the CPU."""
    if isinstance(rows, Tensor):
        return rows.detach().to("cpu", torch.float32)
    # A copy: arrays of a table cannot be written to, which torch warns of.
    return torch.from_numpy(np.array(rows, dtype=np.float32))


def _beta_quantiles(a: float, b: float, probabilities: tuple[float, float]) -> tuple[float, float]:
    """x with P(Beta(a, b) ≤ x) = probability, on a grid of 100 000 shares."""
    grid = (np.arange(100_000) + 0.5) / 100_000
    log_density = (a - 1) * np.log(grid) + (b - 1) * np.log1p(-grid)
    below = np.exp(log_density - log_density.max()).cumsum()
    low, high = grid[np.searchsorted(below, np.array(probabilities) * below[-1])]
    return float(low), float(high)
