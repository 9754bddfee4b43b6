"""Two runs query by query: how much the second differs from the first, and whether that may be chance."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.evaluation.bootstrap import Interval, paired_bootstrap, signed
from emcl_train.report.groups import Group
from emcl_train.report.notes import chance_of
from emcl_train.report.ranks import text_ranks, video_ranks
from emcl_train.runs.folder import Run

METRICS = ("R@1", "R@5", "R@10", "MnR")
DIRECTIONS = ("T→V", "V→T")
STRICT = 1 - 0.05 / (len(METRICS) * len(DIRECTIONS))
"""Level of the intervals that verdicts go by: together they are wrong by chance in at most one comparison of twenty."""
FEWEST = 8
"""Clips below which no difference is called shown: even if all of them agreed, that could be chance."""


@dataclass(frozen=True)
class Difference:
    """One metric of both runs over the queries that they share."""

    direction: str
    metric: str
    first: float
    second: float
    interval: Interval
    """Of second − first, 95 %."""
    strict: Interval
    """The same, of level STRICT."""
    clips: int
    """That the runs share."""

    @property
    def shown(self) -> bool:
        """Whether the strict interval leaves zero out, and clips are enough to say so."""
        return self.clips >= FEWEST and (self.strict.low > 0 or self.strict.high < 0)

    @property
    def verdict(self) -> str:
        """A few words."""
        if self.shown:
            return f"second is {'better' if (self.interval.mean > 0) == (self.metric != 'MnR') else 'worse'}"
        alone = self.clips >= FEWEST and (self.interval.low > 0 or self.interval.high < 0)
        return "not beside seven others" if alone else "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """All metrics, and what a reader must know of them."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One sentence."""
        shown = [f"{d.direction} {d.metric} {d.interval}" for d in self.differences if d.shown]
        fewest = min(d.clips for d in self.differences)
        if fewest < FEWEST:
            return f"no difference shown: the runs share {fewest} clips, too few to tell one from chance."
        if not shown:
            return f"no difference shown: every {100 * STRICT:.1f} % interval holds zero."
        return f"a difference is shown in {', '.join(shown)}."


def compare(first: Group, second: Group, *, seed: int = 0) -> Comparison:
    """Compare two runs, or two sets of runs with different seeds, whose scores of a query are then averaged.

    Text→video queries are captions, video→text queries are clips (by best similarity). Captions of one clip are not
    independent: what is drawn in the bootstrap is clips, with all their captions.

    Raises:
        UserError: the runs share no query.
    """
    notes: list[str] = []

    # The same run on both sides?
    of_first, of_second = ({run.path.resolve() for run in group.runs} for group in (first, second))
    if of_first == of_second:
        notes.append(f"{second.path} is compared with itself, which shows nothing.")
    elif both := of_first & of_second:
        notes.append(f"{', '.join(sorted(map(str, both)))}: on both sides, so that the difference looks smaller.")

    # The same queries? A caption is known by its text and clip, or by its text alone if clips have other ids.
    keys = [caption_keys(group.runs[0]) for group in (first, second)]
    alike = set(keys[0]) == set(keys[1])
    by_text = are_paired_by_text(first, second)
    if by_text:
        notes.append("The captions are the same, but some belong to other clips in the second run.")
    elif not alike:
        common = len(set(keys[0]) & set(keys[1]))
        notes.append(
            f"Only {common} captions with their clip are in both: {first.path} has {len(keys[0])}, {second.path} has "
            f"{len(keys[1])}. The galleries differ too, so that this is no fair comparison."
        )

    differences = []
    for direction in DIRECTIONS:
        tables = [mean_scores(group, direction, by_text=by_text) for group in (first, second)]
        shared = [key for key in tables[0] if key in tables[1]]
        if not shared:
            raise UserError(
                f"{first.path} and {second.path} share no {'caption' if direction == 'T→V' else 'clip'}, so that they "
                "cannot be compared query by query; evaluate both on the same split of the same data set"
            )

        # What is drawn are clips, with all that belongs to them.
        owners = _owners(first.runs[0], by_text=by_text) if direction == "T→V" else {key: key for key in shared}
        scores = [np.stack([table[key] for key in shared]) for table in tables]
        cluster = [owners[key] for key in shared]
        clips = len(set(cluster))

        for column, metric in enumerate(METRICS):
            before, after = (values[:, column] for values in scores)
            clustered = _by_cluster(before, after, cluster)
            usual = paired_bootstrap(*clustered, seed=seed)
            strict = paired_bootstrap(*clustered, seed=seed, level=STRICT)
            differences.append(
                Difference(direction, metric, float(before.mean()), float(after.mean()), usual, strict, clips)
            )

    for group in (first, second):
        if len(group.runs) > 1:
            notes.append(
                f"{group.path}: scores of a query are averaged over {len(group.runs)} seeds; the interval is about "
                "other queries, not about other seeds."
            )
    return Comparison(tuple(differences), tuple(notes))


def are_paired_by_text(first: Group, second: Group) -> bool:
    """Whether captions are the same in both, but some belong to other clips in the second."""
    runs = first.runs[0], second.runs[0]
    alike = set(caption_keys(runs[0])) == set(caption_keys(runs[1]))
    return not alike and Counter(runs[0].captions) == Counter(runs[1].captions)


def render_comparison_of(first: Group, second: Group, comparison: Comparison) -> Lines:
    """A table with an interval for each metric, and the verdict; for `console.print`."""
    table = Table(
        title=Text(f"{second.path} against {first.path}, query by query"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        title_justify="left",
    )
    for name in ("", "first", "second", "difference", "95 % interval"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_column("")  # narrow, words are on two lines, and no figure loses its end
    for d in comparison.differences:
        table.add_row(*cells_of(d), d.verdict, style="bold" if d.shown else None)
    return Lines(
        table,
        *(Text(f"· {line}", style="dim") for line in notes_of(first, second, comparison)),
        Text(f"Verdict: {comparison.verdict}", style="bold"),
    )


def cells_of(difference: Difference) -> list[str]:
    """What is compared, in both runs, their difference, and its interval."""
    interval = difference.interval
    return [
        f"{difference.direction} {difference.metric}",
        f"{difference.first:.1f}",
        f"{difference.second:.1f}",
        signed(interval.mean),
        f"{signed(interval.low)} to {signed(interval.high)}",
    ]


def notes_of(first: Group, second: Group, comparison: Comparison) -> list[str]:
    """What a reader must know of the differences, for under their table."""
    return [
        "Paired bootstrap over clips with their captions, 10 000 resamples; R@k in points, MnR in ranks.",
        f"Eight metrics are looked at: a difference is shown where the {100 * STRICT:.1f} % interval leaves zero out.",
        *chance_notes(first, second),
        *comparison.notes,
    ]


def chance_notes(first: Group, second: Group) -> list[str]:
    """What chance gives of the metrics that are compared, in the gallery of each run."""
    said: dict[str, list[str]] = {}
    for name, group in (("first", first), ("second", second)):
        row = chance_of(group.runs[0].results)
        ways = zip(DIRECTIONS, ("text_to_video", "video_to_text"), strict=True)
        values = [f"{way} " + ", ".join(f"{metric} {row[key][metric]:.1f}" for metric in METRICS) for way, key in ways]
        said.setdefault("; ".join(values), []).append(name)
    if len(said) == 1:
        return [f"By chance: {text}." for text in said]
    return [f"By chance, {name}: {text}." for text, (name,) in said.items()]


def caption_keys(run: Run) -> list[tuple[str, str, int]]:
    """(clip, caption, how many times both came before) of every caption query."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for caption, clip in zip(run.captions, run.tensors["caption_clip"].tolist(), strict=True):
        pair = (run.video_ids[clip], caption)
        keys.append((*pair, seen[pair]))
        seen[pair] += 1
    return keys


def query_keys(run: Run, *, by_text: bool) -> Sequence[Hashable]:
    """What a caption query is known by in both runs."""
    return _text_keys(run) if by_text else caption_keys(run)


def _text_keys(run: Run) -> list[tuple[str, int]]:
    """(caption, how many times it came before): the k-th of equal captions in both runs is one query."""
    seen: Counter[str] = Counter()
    keys = []
    for caption in run.captions:
        keys.append((caption, seen[caption]))
        seen[caption] += 1
    return keys


def _owners(run: Run, *, by_text: bool) -> dict[Hashable, Hashable]:
    """The clip of each caption query."""
    keys = query_keys(run, by_text=by_text)
    return {key: run.video_ids[i] for key, i in zip(keys, run.tensors["caption_clip"].tolist(), strict=True)}


def mean_scores(group: Group, direction: str, *, by_text: bool) -> dict[Hashable, Float[np.ndarray, " M"]]:
    """What each query adds to each of METRICS, averaged over the runs of a group that all have it."""
    tables = []
    for run in group.runs:
        keys: Sequence[Hashable]
        if direction == "T→V":
            keys = query_keys(run, by_text=by_text)
            values = text_ranks(run)
        else:
            keys = run.video_ids
            values = video_ranks(run)
        tables.append(dict(zip(keys, _scores(values), strict=True)))
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    return {key: np.mean([table[key] for table in tables], axis=0) for key in shared}


def _scores(values: Tensor) -> Float[np.ndarray, "Q M"]:
    rank = values.double().numpy()
    return np.stack([rank if metric == "MnR" else 100.0 * (rank <= int(metric[2:])) for metric in METRICS], axis=1)


def _by_cluster(
    before: Float[np.ndarray, " Q"], after: Float[np.ndarray, " Q"], cluster: Sequence[Hashable]
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """One score for each cluster, such that their mean is the mean of all queries."""
    number = {key: index for index, key in enumerate(dict.fromkeys(cluster))}
    place = np.array([number[key] for key in cluster])
    share = len(number) / len(place)  # sums of clusters over the mean size of one
    first, second = (np.bincount(place, weights=scores) * share for scores in (before, after))
    return first, second
