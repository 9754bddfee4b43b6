"""What ours should reach on a GPU, and what a record says of it: met, missed or not measured, with the number.

A target is never edited. What was measured later replaces it: `Target(..., was=the target before, since=the record)`,
and each record after that has both in its line.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from record import Record, ratio, without_em

if TYPE_CHECKING:
    from gpu_case import Case

AUTOMATIC = "automatic"
OURS = (AUTOMATIC, "cuda", "triton", "torch", "reference")
"""Ways that a target can speak of; the first that was measured decides. A user gets the automatic choice."""
BASELINES = ("eager", "eager, batched", "compiled + graph", "torch, compiled + graph", "torch, compiled")
"""What nobody should be better off with, as far as it was measured."""
AT_LEAST = ("eager", "compiled")
MEANING = {
    "best": "≤ {bound:g} × the best of eager, compiled with graphs, torch compiled",
    "eager": "≥ {bound:g} × eager",
    "compiled": "≥ {bound:g} × compiled with graphs",
    "limit": "≤ {bound:g} × reading twice and writing once",
    "EMCL off": "≤ {bound:g} × without EMCL",
    "µs": "≤ {bound:g} µs",
    "ms": "≤ {bound:g} ms",
}


@dataclass(frozen=True)
class Target:
    """What ours should reach.

    against: a key of `MEANING`. gpu: a part of the name of the only GPU that the bound is for; on others the number is
    recorded and not judged. gb: memory that it may take besides, inputs included. otherwise: what is as good.
    was, since: the target before this one, and the record whose figure replaced it.
    """

    against: str
    bound: float
    gpu: str = "H200"
    gb: float | None = None
    otherwise: "Target | None" = None
    was: "Target | None" = None
    since: str = ""

    @property
    def words(self) -> str:
        text = MEANING[self.against].format(bound=self.bound)
        if self.gb is not None:
            text += f" in ≤ {self.gb:g} GB"
        if self.otherwise is not None:
            text += f", or {self.otherwise.words}"
        if self.was is not None:
            text += f" (measured in {self.since}; before: {self.was.words})"
        return text


NEVER_SLOWER = Target("best", 1.05, gpu="")
"""Of every case, on every GPU."""


def target_rows(case: "Case", entry: Record, gpu: str) -> list[dict[str, str]]:
    """One row for each target of a case. entry: what the record has of the case. gpu: name of the device."""
    shown = entry["shape"] + ("" if entry["dtype"] == "float32" else f", {entry['dtype']}")
    return [{"case": shown} | target_row(target, entry, gpu) for target in (*case.targets, NEVER_SLOWER)]


def target_row(target: Target, entry: Record, gpu: str) -> dict[str, str]:
    """What was measured, and whether it is enough. What is captured is compared with its like."""
    row = {"target": target.words, "measured": "", "verdict": "not measured"}
    timed = [name for name, way in entry["ways"].items() if "median_s" in way]
    ours = next((way for way in OURS if way in timed), None)
    if ours is None:
        return row
    graph = f"{ours} + graph" if f"{ours} + graph" in timed else None
    measured = {name: value_of(target, entry, name) for name in (ours, graph) if name is not None}
    values = {name: value for name, value in measured.items() if value is not None}
    if not values:
        return row

    row["measured"] = ", ".join(f"{name}: {value:.3g}" for name, value in values.items())
    if target.against == "best":
        row["measured"] += f" (best: {best_baseline(entry)})"
    if target.otherwise is not None:
        row["measured"] += f", in {gigabytes(entry, ours):.3g} GB"

    # Launches are part of eager, and no part of a graph.
    decisive = ours if target.against == "eager" or graph is None else graph
    if decisive not in values:
        return row
    if target.gpu not in gpu:
        row["verdict"] = f"not judged: it is for the {target.gpu}"
        return row
    row["verdict"] = "met" if met(target, entry, decisive) else "missed"
    if "tests" in entry["ways"][decisive]:
        row["verdict"] += ", by a backend whose tests failed"
    return row


def met(target: Target, entry: Record, way: str) -> bool:
    value = value_of(target, entry, way)
    assert value is not None
    enough = value >= target.bound if target.against in AT_LEAST else value <= target.bound
    if target.gb is not None:
        enough = enough and gigabytes(entry, way) <= target.gb
    return enough or (target.otherwise is not None and met(target.otherwise, entry, way))


def value_of(target: Target, entry: Record, way: str) -> float | None:
    """The figure that a target speaks of, for one way; None if it was not measured."""
    measured = entry["ways"][way]
    match target.against:
        case "best":
            best = best_baseline(entry)
            return None if best is None else ratio(entry, way, best)
        case "eager":
            return ratio(entry, "eager", way)
        case "compiled":
            return ratio(entry, "compiled + graph", way)
        case "EMCL off":
            return ratio(entry, way, without_em(way))
        case "limit":
            return measured["median_s"] / entry["limit_s"]
        case "µs":
            return measured["median_s"] * 1e6
        case "ms":
            return measured["median_s"] * 1e3
    raise ValueError(f"target against {target.against}")


def best_baseline(entry: Record) -> str | None:
    """The fastest of `BASELINES`, or None if none was measured."""
    timed = [name for name in BASELINES if "median_s" in entry["ways"].get(name, {})]
    return min(timed, key=lambda name: entry["ways"][name]["median_s"], default=None)


def gigabytes(entry: Record, way: str) -> float:
    """Most memory at a time, inputs included."""
    return (entry["ways"][way]["peak_mib"] + entry["inputs_mib"]) * 2**20 / 1e9
