"""R@1 of every way on every set, direction and split, and R@10 where texts and videos share one gallery."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.refine.methods import NOTHING, Method, Seen, Sides, unchanged
from benchmarks.refine.protocols import PROTOCOLS
from emcl_kernels.refine import hubness
from emcl_train.evaluation.bootstrap import paired_bootstrap
from emcl_train.evaluation.metrics import ranks

DIRECTIONS = ("text→video", "video→text")
Gains = dict[str, list[float]]
"""Of a way: by "set, direction", the gain in R@1 over no refinement in points, one number a split."""


def first(scores: Tensor) -> Tensor:
    """Whether the own item is the best, for each query. Ties share their mean rank."""
    return (ranks(scores, torch.arange(len(scores))) <= 1).double()


def hits(method: Method, seen: Seen, test: Sides, seed: int, seeds: int) -> Tensor:
    """[2, queries]: how often each query has its own item first, over the seeds of a way."""
    found = [torch.stack([first(scores) for scores in method.scores(seen, test, seed + i)]) for i in range(seeds)]
    return torch.stack(found).mean(0)


def gains(data: Mapping[str, Sides], methods: Mapping[str, Method], protocol: str) -> dict[str, Gains]:
    """Gains of ways under one protocol. With several splits, each has a seed of its own."""
    found: dict[str, Gains] = {name: {} for name in methods}
    nothing = methods[NOTHING]
    for set_name, sides in data.items():
        for number, split in enumerate(PROTOCOLS[protocol](*sides)):
            before = hits(nothing, split.seen, split.test, 0, 1)
            for name, method in methods.items():
                if method.only_evaluated and protocol != "evaluated set":
                    continue
                seeds = method.seeds if protocol == "evaluated set" else 1
                after = hits(method, split.seen, split.test, number, seeds)
                for direction, gain in zip(DIRECTIONS, 100 * (after - before).mean(1), strict=True):
                    found[name].setdefault(f"{set_name}, {direction}", []).append(float(gain))
    return {name: of_cells for name, of_cells in found.items() if of_cells}


def few_rows(data: Mapping[str, Sides], method: Method, counts: Sequence[int]) -> dict[str, Gains]:
    """By the number of rows a side that a way is fitted to: its gains on halves, of sets whose half has as many."""
    found: dict[str, Gains] = {}
    for count in counts:
        enough = {name: sides for name, sides in data.items() if len(sides[0]) // 2 >= count}
        ways = {NOTHING: Method(unchanged), str(count): method.of_rows(count)}
        found[str(count)] = gains(enough, ways, "halves").get(str(count), {})
    return found


def recall(data: Mapping[str, Sides], protocol: str) -> Gains:
    """R@1 without refinement, by "set, direction", one number a split."""
    found: Gains = {}
    for set_name, sides in data.items():
        for split in PROTOCOLS[protocol](*sides):
            for direction, scores in zip(DIRECTIONS, _plain(*split.test), strict=True):
                found.setdefault(f"{set_name}, {direction}", []).append(100 * float(first(scores).mean()))
    return found


def chosen_by_others(family: dict[str, Gains]) -> tuple[Gains, dict[str, str]]:
    """For each set the setting whose mean gain on the other sets is largest, and which that is."""
    cells = list(next(iter(family.values())))
    sets = list(dict.fromkeys(set_of(cell) for cell in cells))
    together: Gains = {}
    choice = {}
    for name in sets:
        others = [cell for cell in cells if set_of(cell) != name]
        best = max(family, key=lambda setting: np.mean([family[setting][cell] for cell in others or cells]))
        choice[name] = best
        together |= {cell: family[best][cell] for cell in cells if set_of(cell) == name}
    return together, choice


def mean_gain(of_cells: Gains, without: Collection[str] = ()) -> list[float]:
    """The mean over directions and sets, but those left out, for each split."""
    counted = [values for cell, values in of_cells.items() if set_of(cell) not in without]
    return [float(np.mean(of_split)) for of_split in zip(*counted, strict=True)]


def rows_and_intervals(data: Mapping[str, Sides], method: Method, seeds: int) -> dict[str, Any]:
    """On the evaluated sets: R@1 before and after, the deviation over seeds, and the gain with its 95 % interval."""
    found = {}
    for name, (text, video) in data.items():
        seen = Seen(text, video)
        before = [first(scores) for scores in _plain(text, video)]
        of_seeds = [[first(scores) for scores in method.scores(seen, (text, video), seed)] for seed in range(seeds)]
        for which, direction in enumerate(DIRECTIONS):
            after = torch.stack([both[which] for both in of_seeds])
            gain = paired_bootstrap(100 * before[which].numpy(), 100 * after.mean(0).numpy(), seed=0)
            found[f"{name}, {direction}"] = {
                "before": 100 * float(before[which].mean()),
                "after": 100 * float(after.mean()),
                "deviation": float((100 * after.mean(1)).std(correction=0)),
                "gain": [gain.mean, gain.low, gain.high],
            }
    return found


def mixed_gallery(data: Mapping[str, Sides], methods: Mapping[str, Method]) -> dict[str, Gains]:
    """R@10 of halves where texts and videos lie in one gallery: the query itself is left out, its own pair is meant.

    With a bank, every item is corrected by the bank of the queries' side.
    """
    found: dict[str, Gains] = {name: {} for name in methods}
    for set_name, sides in data.items():
        for number, split in enumerate(PROTOCOLS["halves"](*sides)):
            for name, method in methods.items():
                banks, (text, video) = method.map(split.seen, split.test, number)
                own = torch.arange(len(text))
                for direction, query, gallery, bank in (
                    ("text→video", text, torch.cat([video, text]), banks),
                    ("video→text", video, torch.cat([text, video]), banks[::-1]),
                ):
                    scores = query @ gallery.T if method.rerank is None else method.rerank(query, gallery, *bank)
                    scores[own, len(own) + own] = -torch.inf
                    recall = 100 * float((ranks(_finite(scores), own) <= 10).double().mean())
                    found[name].setdefault(f"{set_name}, {direction}", []).append(recall)
    return found


def hubs(data: Mapping[str, Sides], methods: Mapping[str, Method]) -> dict[str, dict[str, list[float]]]:
    """Skewness of N_10 on halves, by "set, direction", one number a split; of ways without a bank."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in methods}
    for set_name, sides in data.items():
        for number, split in enumerate(PROTOCOLS["halves"](*sides)):
            for name, method in methods.items():
                _, (text, video) = method.map(split.seen, split.test, number)
                for direction, pair in zip(DIRECTIONS, ((text, video), (video, text)), strict=True):
                    found[name].setdefault(f"{set_name}, {direction}", []).append(hubness(*pair))
    return found


def _plain(text: Tensor, video: Tensor) -> Sides:
    similarity = text @ video.T
    return similarity, similarity.T


def _finite(scores: Tensor) -> Tensor:
    """Minus infinity as a number below all others, for the ranks take numbers alone."""
    return scores.nan_to_num(neginf=float(scores[scores.isfinite()].min()) - 1)


def set_of(cell: str) -> str:
    """The set's name in "set, direction"."""
    return cell.rsplit(", ", 1)[0]
