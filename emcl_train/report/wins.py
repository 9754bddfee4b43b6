"""The queries of two runs one by one: which of them the second run answers better, which worse, and with what."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from emcl_train.report.compare import DIRECTIONS, METRICS, are_paired_by_text, mean_scores, query_keys
from emcl_train.report.groups import Group
from emcl_train.runs.folder import Run

SHOWN = 6
"""Queries of each kind that a page shows."""
RANK = METRICS.index("MnR")
FIRST = METRICS.index("R@1")


@dataclass(frozen=True)
class Tally:
    """How many queries of one direction the second run ranks better, worse and alike, and what that does to R@1."""

    direction: str
    better: int
    worse: int
    alike: int
    hits_won: int
    """At rank 1 in the second run alone."""
    hits_lost: int
    """At rank 1 in the first run alone."""


@dataclass(frozen=True)
class Query:
    """A caption with its rank in both runs, of seeds the mean, and what each gave at rank 1, of seeds the first."""

    caption: str
    first_rank: float
    second_rank: float
    right: str
    """The right clip, by its name in the first run."""
    first_gave: str
    second_gave: str


@dataclass(frozen=True)
class Wins:
    """Queries that the second run won and lost, those with the largest change of rank first, each clip once."""

    tallies: tuple[Tally, ...]
    won: tuple[Query, ...]
    lost: tuple[Query, ...]


def wins(first: Group, second: Group) -> Wins:
    """Compare two runs, or sets of seeds, query by query.

    Args:
        first: with figures.
        second: likewise; they share queries.
    """
    by_text = are_paired_by_text(first, second)
    scores = {
        direction: [mean_scores(group, direction, by_text=by_text) for group in (first, second)]
        for direction in DIRECTIONS
    }
    tallies = []
    for direction, (before, after) in scores.items():
        shared = [key for key in before if key in after]
        ranks = [(float(before[key][RANK]), float(after[key][RANK])) for key in shared]
        hits = [(float(before[key][FIRST]), float(after[key][FIRST])) for key in shared]
        tallies.append(
            Tally(
                direction,
                better=sum(b < a for a, b in ranks),
                worse=sum(b > a for a, b in ranks),
                alike=sum(b == a for a, b in ranks),
                hits_won=sum(b > a for a, b in hits),
                hits_lost=sum(b < a for a, b in hits),
            )
        )

    before, after = scores[DIRECTIONS[0]]
    places = [_places(group.runs[0], by_text=by_text) for group in (first, second)]
    # By ratio: from rank 2 to 1 is more than from 102 to 101.
    change = {key: math.log(before[key][RANK] / after[key][RANK]) for key in before if key in after}
    by_gain = sorted(change, key=lambda key: -change[key])
    won = [key for key in by_gain if change[key] > 0]
    lost = [key for key in reversed(by_gain) if change[key] < 0]

    def chosen(keys: Sequence[Hashable]) -> tuple[Query, ...]:
        """The first of them, each of another clip."""
        found: dict[str, Query] = {}
        for key in keys:
            caption, right, *gave = _clips_of(first.runs[0], second.runs[0], places[0][key], places[1][key])
            query = Query(caption, float(before[key][RANK]), float(after[key][RANK]), right, gave[0], gave[1])
            found.setdefault(query.right, query)
            if len(found) == SHOWN:
                break
        return tuple(found.values())

    return Wins(tuple(tallies), chosen(won), chosen(lost))


def _places(run: Run, *, by_text: bool) -> dict[Hashable, int]:
    """The number of each caption query in a run."""
    return {key: number for number, key in enumerate(query_keys(run, by_text=by_text))}


def _clips_of(first: Run, second: Run, in_first: int, in_second: int) -> tuple[str, str, str, str]:
    """A caption, its right clip, and the clip that each run gave."""
    gave = [
        run.video_ids[int(run.similarity[number].argmax())] for run, number in ((first, in_first), (second, in_second))
    ]
    right = first.video_ids[int(first.tensors["caption_clip"][in_first])]
    return first.captions[in_first], right, gave[0], gave[1]
