"""What a reader must know of a table of results: its columns, its errors, and the sentences that belong under it.

The terminal (`terminal.py`) and the page (`html.py`) say the same.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emcl_train.evaluation.metrics import chance
from emcl_train.evaluation.table import CHANCE
from emcl_train.report.published import published_sentences
from emcl_train.runs.origin import Origin, sentence_of
from emcl_train.runs.records import weights_sentence

Results = dict[str, Any]
"""results.json of a run."""

COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
ACTIVITYNET_COLUMNS = ("R@1", "R@5", "R@50", "MdR", "MnR")
BY_RANK = "↳ by best rank"
"""Name of the row that has a clip's rank by its best caption."""
NAMED = 5
"""Clips that are named one by one where more were left out."""


def columns_of(results: Results) -> tuple[str, ...]:
    """The metrics that the literature gives for this data set."""
    return ACTIVITYNET_COLUMNS if results.get("protocol", {}).get("layout") == "activitynet" else COLUMNS


def sentences(results: Results) -> list[str]:
    """What belongs under the table of a run."""
    return [
        _what_is_ranked(results),
        f"Ties take the mean rank. One standard error of T→V R@1 is {standard_error(results):.1f} points.",
        *_where_em_runs(results),
        weights_sentence(str(results["selection"])),
        sentence_of(results),
        *(f"{row['name']}: {row['note']}." for row in results["rows"] if row.get("note")),
        *left_out_of(results),
        *results.get("notes", []),
        *published_sentences(results),
    ]


def chance_of(results: Results) -> dict[str, Any]:
    """The row of a model that knows nothing; of older results without the one that has a clip's best caption."""
    found = results.get("chance")
    if found is not None:
        return dict(found)
    of_clips = chance(results["gallery"])
    return {"name": CHANCE, "text_to_video": of_clips, "video_to_text": of_clips, "video_to_text_by_rank": None}


def differences(runs: Sequence[tuple[Path, Results]]) -> list[str]:
    """Where runs differ in what was measured, so that their figures must not be compared."""
    facts = {
        "split": "split",
        "queries": "captions",
        "gallery": "clips",
        "em_block": "EM block",
        "em_rows": "rows of EM",
        "experts": "experts",
        "sampler": "video sampler",
        "sampling": "sampled frames",
        "pictures": "pictures",
        "decoder": "decoder",
        "compression": "compression of the videos",
    }
    lines = []
    for key, name in facts.items():
        compared = [(path, results) for path, results in runs if _is_compared(key, results)]
        values = [results.get(key) for _, results in compared]
        if key == "pictures" and None in values:
            continue  # of an older run, the version of the sampler says how its pictures came about
        if len(set(map(str, values))) > 1:
            each = ", ".join(f"{path.name}: {_shown(value)}" for (path, _), value in zip(compared, values, strict=True))
            lines.append(f"Not measured alike: {name} ({each}).")
    return lines


def _is_compared(fact: str, results: Results) -> bool:
    """Whether a run could differ from another in a fact: not in where EM runs if it has none."""
    if fact == "em_rows":
        return results.get("emcl", {}).get("mode") != "off" and results.get("em_block") is None
    return fact != "experts" or bool(results.get(fact))


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def other_code(runs: Sequence[tuple[Path, Results]]) -> list[str]:
    """A sentence where runs were measured by other code, as far as that was recorded."""
    origins = [Origin.of_results(results) for _, results in runs]
    codes = ["not recorded" if origin is None else origin.code for origin in origins]
    if len(set(codes)) == 1:
        return []
    each = ", ".join(f"{path.name}: {code}" for (path, _), code in zip(runs, codes, strict=True))
    return [f"Not measured by the same code: {each}."]


def standard_error(results: Results) -> float:
    """Of the first row's text→video R@1 in points, as a share of that many independent queries."""
    return error_of_share(results["rows"][0]["text_to_video"]["R@1"] / 100, results["queries"])


def error_of_share(share: float, queries: int) -> float:
    """One standard error of a share of independent queries, in points.

    If none or all of the queries are right, the formula gives 0, which is too sure: one more right and one more wrong
    query are then assumed.
    """
    if share in (0.0, 1.0):
        share = (share * queries + 1) / (queries + 2)
    return 100 * math.sqrt(share * (1 - share) / queries)


def left_out_of(results: Results) -> list[str]:
    """Which clips could not be decoded, the first of them by name."""
    left_out = results.get("left_out", {})
    if not left_out:
        return []
    named = "; ".join(f"{name} ({reason})" for name, reason in list(left_out.items())[:NAMED])
    more = f"; and {len(left_out) - NAMED} more, see results.json" if len(left_out) > NAMED else ""
    plural = "clip was" if len(left_out) == 1 else "clips were"
    return [f"{len(left_out)} {plural} left out: {named}{more}."]


def _what_is_ranked(results: Results) -> str:
    """How many queries of each direction there are, and what each is compared with."""
    queries = results["queries"]
    gallery = results["gallery"]
    if queries > gallery:
        of_clips = (
            f"{gallery} sets of captions, each by its most similar one (best similarity); the line below each ranks a "
            f"clip's best caption among all {queries} captions (best rank)."
        )
    else:
        of_clips = f"{queries} captions, one per clip."
    of_captions = f"{queries} captions against {gallery} clips"
    return f"T→V text→video: {of_captions}. V→T video→text: {gallery} clips against {of_clips}"


def _where_em_runs(results: Results) -> list[str]:
    """Over how many pairs EM runs at a time; nothing if the run has no EM."""
    if results.get("emcl", {}).get("mode") == "off":
        return []
    block = results["em_block"]
    if results.get("system") is not None:
        return [_where_em_of_experts_runs(block, results.get("em_rows"))]
    if block is None:
        return ["EM runs over all pairs at once."]
    return [f"EM runs in blocks of {block} texts × {block} clips, in dataset order."]


def _where_em_of_experts_runs(block: int | None, rows: int | None) -> str:
    if block is not None:
        return (
            f"EM of each expert runs inside blocks of {block} matching pairs, in dataset order, as released: a caption "
            f"is embedded together with its own video, which a search could not do."
        )
    as_if = "" if rows is None else f", as if they were {rows}"
    return f"EM of each expert is one map, fitted to all captions and videos{as_if}, whichever belong together."
