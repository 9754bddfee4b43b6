"""Can the best score tell whether anything fits, and what does the automatic cut-off get wrong? On real embeddings.

    PYTHONPATH=. python benchmarks/search_cutoff.py FOLDER [--splits N] [--out FOLDER] [--name NAME]

FOLDER holds arrays [2, N, D] of videos (or images) and texts, `.npy`, as for `make refine` (docs/refine.md says which).
Each split draws 2/5 of the pairs for the bank, of which the texts are known, 2/5 for the gallery, whose texts are the
queries that have an answer, and 1/5 for queries that have none: a third of the queries. A refiner is fitted to the
bank's texts and the gallery's videos, as a library's is; no query is seen beforehand. Writes <date>-cutoff.{json,md}.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

from record import RESULTS, AlreadyThere, refuse_to_overwrite, write_whole  # noqa: E402
from search_cutoff_table import markdown  # noqa: E402
from search_cutoff_ways import CHOSEN, MISSES, WAYS  # noqa: E402

import emcl_kernels  # noqa: E402
from benchmarks.refine.run import DEVELOPMENT, SETS  # noqa: E402
from emcl_kernels import Refiner  # noqa: E402
from emcl_kernels.refine import Whitening  # noqa: E402
from emcl_train.runs.code import commit, processor  # noqa: E402
from emcl_train.search.cutoff import FOLDS, SHARE, unrelated_scores  # noqa: E402

COSINE = "cosine"
MAP = "refined"
BANK = "refined, with the bank"
BANK_ALONE = "the bank without a map (CSLS)"
COMPARED = (COSINE, MAP, BANK, BANK_ALONE)
CONTAMINATED = (0.0, 0.05, 0.1, 0.2)
"""Shares of a bank that the gallery answers."""
SHARES = (0.5, 0.8, 0.9, 0.95)
SPLITS = 200
FEWER_SPLITS = 20
"""Of what is asked several times a split."""
RESAMPLES = 2000
LEVEL = 0.95

NEIGHBORS, WEIGHT = Refiner().num_neighbors, Refiner().bank_weight

Rows = np.ndarray


@dataclass(frozen=True)
class Split:
    """Places of pairs in a set."""

    bank: np.ndarray
    gallery: np.ndarray
    """Texts of these are the queries that have an answer."""
    unanswerable: np.ndarray


@dataclass(frozen=True)
class Kind:
    """Rows as one way compares them, by inner product, and the best scores of the bank."""

    items: Rows
    queries: Callable[[Rows], Rows]
    """Of texts of length one."""
    of_bank: Rows
    """Each text as if it had not been known: what the tool takes."""
    of_bank_in_map: Rows
    """Each left out of the bank alone, where there is one; the map is fitted to it."""
    of_bank_in_all: Rows
    """None left out."""


@dataclass(frozen=True)
class Set:
    """Rows of length one, float64; pairs share their place."""

    text: Rows
    video: Rows


def unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def load(path: Path) -> Set:
    """Texts, and videos or images."""
    video, text = (unit(side) for side in np.load(path).astype(np.float64))
    return Set(text, video)


def splits(count: int, number: int, seed: int = 0) -> Iterator[Split]:
    """Random splits of so many pairs into 2/5, 2/5 and 1/5."""
    draw = np.random.default_rng(seed)
    for _ in range(number):
        order = draw.permutation(count)
        first, second = 2 * count // 5, 4 * count // 5
        yield Split(order[:first], order[first:second], order[second:])


def of_other_kind(text: Rows, number: int) -> Iterator[Split]:
    """The same, where the bank is of one half of the subjects and the queries without an answer of the other.

    Halves are of the direction in which the texts vary most.
    """
    centred = text - text.mean(0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    lower, upper = np.array_split(np.argsort(along), 2)
    draw = np.random.default_rng(1)
    for turn in range(number):
        bank_half, other_half = (lower, upper) if turn % 2 else (upper, lower)
        bank = draw.permutation(bank_half)[: 2 * len(text) // 5]
        unanswerable = draw.permutation(other_half)[: len(text) // 5]
        rest = np.setdiff1d(np.arange(len(text)), np.concatenate([bank, unanswerable]))
        yield Split(bank, rest, unanswerable)


def kinds(of: Set, bank: np.ndarray, gallery: np.ndarray, compared: tuple[str, ...] = COMPARED) -> dict[str, Kind]:
    """A bank's texts and a gallery's videos in every way that they are compared."""
    text, video = of.text[bank], of.video[gallery]
    found = {}
    if COSINE in compared:
        found[COSINE] = without_bank(text, video, lambda rows: rows)
    if {MAP, BANK} & set(compared):
        by_map, by_bank = held_out(text, video)
        of_text, of_video = whitened(text, video)
        found[MAP] = replace(without_bank(of_text(text), of_video(video), of_text), of_bank=by_map)
        found[BANK] = replace(with_bank(of_text(text), of_video(video), of_text), of_bank=by_bank)
    if BANK_ALONE in compared:
        found[BANK_ALONE] = with_bank(text, video, lambda rows: rows)
    return {name: found[name] for name in compared}


def without_bank(text: Rows, items: Rows, queries: Callable[[Rows], Rows]) -> Kind:
    """Rows of length one, compared by cosine."""
    best = unrelated_scores(text, [items])
    return Kind(items, queries, best, best, best)


def with_bank(text: Rows, items: Rows, queries: Callable[[Rows], Rows]) -> Kind:
    """The same with the number by which texts correct each item."""
    queried, corrected = one_more(text), corrected_by(text, items)
    left_out = unrelated_scores(queried, [corrected], num_neighbors=NEIGHBORS, bank_weight=WEIGHT)
    return Kind(
        corrected, lambda rows: one_more(queries(rows)), left_out, left_out, unrelated_scores(queried, [corrected])
    )


def one_more(rows: Rows) -> Rows:
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def corrected_by(text: Rows, items: Rows) -> Rows:
    largest = np.partition(items @ text.T, len(text) - NEIGHBORS, axis=1)[:, -NEIGHBORS:]
    return np.concatenate([items, -WEIGHT * largest.mean(1, keepdims=True)], axis=1)


def whitened(text: Rows, video: Rows) -> tuple[Callable[[Rows], Rows], Callable[[Rows], Rows]]:
    """What `Refiner()` fitted to these rows makes of texts and of videos, brought to length one.

    The same equations by plain products, and by the smaller one of both moments: a tenth of the refiner's time, which
    gives rows alone the bits that they have in a batch.
    """
    settings = Whitening()
    means = [side.mean(0) for side in (text, video)]
    spread = np.concatenate(
        [(side - settings.fit_mean_share * side.mean(0)) / np.sqrt(len(side)) for side in (text, video)]
    )
    per_mean_eigenvalue = settings.strength * spread.shape[1] / np.square(spread).sum()

    # The map is I + left · right. Where rows are fewer than numbers in them, their products have the same eigenvalues.
    fewer_rows = len(spread) < spread.shape[1]
    values, directions = np.linalg.eigh(spread @ spread.T if fewer_rows else spread.T @ spread)
    values = values.clip(min=0)
    change = 1 / np.sqrt(1 + per_mean_eigenvalue * values) - 1
    if fewer_rows:
        alive = values > 1e-12 * values[-1]
        directions = spread.T @ (directions[:, alive] / np.sqrt(values[alive]))
        change = change[alive]
    left, right = directions * change, directions.T

    def of_side(mean: Rows) -> Callable[[Rows], Rows]:
        return lambda rows: unit(rows + (rows @ left) @ right - settings.mean_share * mean)

    return of_side(means[0]), of_side(means[1])


def held_out(text: Rows, video: Rows) -> tuple[Rows, Rows]:
    """Best scores of texts by a map that does not know them: without the bank, and with it (`held_out_scores`)."""
    by_map, by_bank = np.empty(len(text), np.float32), np.empty(len(text), np.float32)
    fold_of = np.arange(len(text)) % FOLDS
    for fold in range(FOLDS):
        held = fold_of == fold
        of_text, of_video = whitened(text[~held], video)
        queries, items = of_text(text), of_video(video)
        by_map[held] = unrelated_scores(queries[held], [items])
        by_bank[held] = with_bank(queries, items, of_text).of_bank[held]
    return by_map, by_bank


# ---- what is measured ------------------------------------------------------------------------------------------------


class Pooled:
    """What every text did as a query over all splits, so that texts can be drawn again and again.

    All splits have as many queries of each kind, so that a mean over splits is one over all of their queries.
    """

    def __init__(self, count: int) -> None:
        self.wins = np.zeros((count, count))
        self.pairs = np.zeros((count, count))
        self.queries = {name: np.zeros((2, count)) for name in ("false alarms", "misses", "first, missed", "R@1")}
        """By figure: how often it was so, and how often it was asked, of each text."""

    def add(self, split: Split, answered: Rows, first: np.ndarray, unanswered: Rows, cut: float) -> None:
        higher = (answered[:, None] > unanswered) + 0.5 * (answered[:, None] == unanswered)
        self.wins[np.ix_(split.gallery, split.unanswerable)] += higher
        self.pairs[np.ix_(split.gallery, split.unanswerable)] += 1
        self._count("false alarms", split.unanswerable, unanswered > cut)
        self._count("misses", split.gallery, answered <= cut)
        self._count("first, missed", split.gallery[first], answered[first] <= cut)
        self._count("R@1", split.gallery, first)

    def _count(self, name: str, places: np.ndarray, so: np.ndarray) -> None:
        self.queries[name][0, places] += so
        self.queries[name][1, places] += 1

    def figures(self, drawn: Rows) -> dict[str, Rows]:
        """Every figure, in percent, for each row of how often texts were drawn `[R, N]`."""
        found = {"AUROC": ((drawn @ self.wins) * drawn).sum(1) / ((drawn @ self.pairs) * drawn).sum(1)}
        found |= {name: (drawn @ so) / (drawn @ asked) for name, (so, asked) in self.queries.items()}
        found["balanced error"] = (found["false alarms"] + found["misses"]) / 2
        return {name: 100 * values for name, values in found.items()}


def auroc(answered: Rows, unanswered: Rows) -> float:
    return float((answered[:, None] > unanswered).mean() + 0.5 * (answered[:, None] == unanswered).mean())


def least_balanced_error(answered: Rows, unanswered: Rows) -> float:
    """Of the best of all scores as the cut-off, which only who knows the answers can choose."""
    cuts = np.sort(np.concatenate([answered, unanswered]))
    missed = np.searchsorted(np.sort(answered), cuts, side="right") / len(answered)
    alarms = 1 - np.searchsorted(np.sort(unanswered), cuts, side="right") / len(unanswered)
    return float(min(0.5, ((missed + alarms) / 2).min()))


def errors(of: Set, number: int) -> dict[str, Any]:
    """AUROC and the errors at the automatic cut-off, by every way of comparing."""
    pooled = {name: Pooled(len(of.text)) for name in COMPARED}
    per_split: dict[str, dict[str, list[float]]] = {name: {} for name in COMPARED}
    for split in splits(len(of.text), number):
        for name, kind in kinds(of, split.bank, split.gallery).items():
            scores = kind.queries(of.text[split.gallery]) @ kind.items.T
            answered = scores.max(1)
            first = scores.argmax(1) == np.arange(len(scores))
            unanswered = best_of(kind, of.text[split.unanswerable])
            pooled[name].add(split, answered, first, unanswered, WAYS[CHOSEN](kind.of_bank, SHARE))
            for figure, value in figures_of(kind, answered, first, unanswered).items():
                per_split[name].setdefault(figure, []).append(100 * float(value))
    return {"per split": per_split, "intervals": intervals(pooled, len(of.text))}


def best_of(kind: Kind, text: Rows) -> Rows:
    """The best score of each text."""
    return (kind.queries(text) @ kind.items.T).max(1)


def figures_of(kind: Kind, answered: Rows, first: np.ndarray, unanswered: Rows) -> dict[str, float]:
    """What one split comes to, as shares of 1."""
    cut = WAYS[CHOSEN](kind.of_bank, SHARE)
    found = {
        "AUROC": auroc(answered, unanswered),
        "false alarms": (unanswered > cut).mean(),
        "misses": (answered <= cut).mean(),
        "least balanced error": least_balanced_error(answered, unanswered),
        "R@1": first.mean(),
    }
    found["balanced error"] = (found["false alarms"] + found["misses"]) / 2

    for share in SHARES:
        at = WAYS[CHOSEN](kind.of_bank, share)
        found[f"false alarms at {share:g}"] = (unanswered > at).mean()
        if first.any():
            found[f"first, missed at {share:g}"] = (answered[first] <= at).mean()
    for known, scores in (("in the map", kind.of_bank_in_map), ("in all", kind.of_bank_in_all)):
        found[f"false alarms, {known}"] = (unanswered > WAYS[CHOSEN](scores, SHARE)).mean()
    return found


def intervals(pooled: Mapping[str, Pooled], count: int) -> dict[str, dict[str, list[float]]]:
    """Mean and 95 % interval of each figure, and of its gain over cosine, by drawing texts anew.

    A drawn text brings what it did in every way, so what makes it hard for both cancels. Galleries stay as they are.
    """
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    once = np.ones((1, count))
    resampled = {name: of.figures(drawn) for name, of in pooled.items()}
    means = {name: of.figures(once) for name, of in pooled.items()}

    found: dict[str, dict[str, list[float]]] = {}
    for name in pooled:
        found[name] = {}
        for figure in means[name]:
            draws = resampled[name][figure]
            gains = draws - resampled[COSINE][figure]
            found[name][figure] = interval(means[name][figure][0], draws)
            found[name][f"gain in {figure}"] = interval(means[name][figure][0] - means[COSINE][figure][0], gains)
    return found


def interval(mean: float, draws: Rows) -> list[float]:
    return [float(mean), *(float(end) for end in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))]


def estimates(of: Set, number: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """False alarms at the score that each way finds, by how much of the bank has an answer."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for place, split in enumerate(splits(len(of.text), number, seed=2)):
        draw = np.random.default_rng(place)
        for share in CONTAMINATED:
            bank = split.bank.copy()
            replaced = round(share * len(bank))
            bank[:replaced] = draw.choice(split.gallery, replaced, replace=False)
            bank = draw.permutation(bank)
            for name, kind in kinds(of, bank, split.gallery, (COSINE, MAP, BANK)).items():
                unanswered = best_of(kind, of.text[split.unanswerable])
                for way, cut in WAYS.items():
                    alarms = found.setdefault(way, {}).setdefault(f"{share:g}", {}).setdefault(name, [])
                    alarms.append(100 * float((unanswered > cut(kind.of_bank, SHARE)).mean()))
                answered = best_of(kind, of.text[np.setdiff1d(split.gallery, bank)])
                missed = found.setdefault(MISSES, {}).setdefault(f"{share:g}", {}).setdefault(name, [])
                missed.append(100 * float((answered <= WAYS[CHOSEN](kind.of_bank, SHARE)).mean()))
    return found


def shifted(of: Set, number: int) -> dict[str, list[float]]:
    """False alarms where the bank is of another kind than the queries that come."""
    found: dict[str, list[float]] = {}
    for split in of_other_kind(of.text, number):
        for name, kind in kinds(of, split.bank, split.gallery).items():
            cut = WAYS[CHOSEN](kind.of_bank, SHARE)
            unanswered = best_of(kind, of.text[split.unanswerable])
            found.setdefault(name, []).append(100 * float((unanswered > cut).mean()))
    return found


# ---- the record ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of arrays [2, N, D] of videos (or images) and texts, .npy")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--sets", nargs="*", help="file names of the sets to measure; by default all of the folder")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", help="of the record's files; by default <date>-cutoff")
    arguments = parser.parse_args()

    now = datetime.now(timezone.utc)
    name = arguments.name or f"{now:%Y-%m-%d}-cutoff"
    try:
        refuse_to_overwrite(arguments.out, name)
    except AlreadyThere as error:
        parser.error(str(error))
    names = arguments.sets or sorted(
        (path.name for path in arguments.data.glob("*.npy")),
        key=lambda file: (file not in DEVELOPMENT, (arguments.data / file).stat().st_size),
    )
    missing = [file for file in names if not (arguments.data / file).is_file()]
    if missing or not names:
        parser.error(
            f"{arguments.data} has no {', no '.join(missing) or '.npy'}; docs/refine.md says where sets are from"
        )

    torch.set_num_threads(1)
    fewer = min(FEWER_SPLITS, arguments.splits)
    record: dict[str, Any] = {
        "title": "Telling when nothing fits",
        "date": f"{now:%Y-%m-%d %H:%M:%S} UTC",
        "commit": commit(),
        "command": " ".join(["python", "benchmarks/search_cutoff.py", "FOLDER", *sys.argv[2:]]),
        "machine": {"processor": processor(), "threads": 1},
        "versions": {"Python": platform.python_version(), "torch": torch.__version__, "emcl": emcl_kernels.__version__},
        "seconds of processor": 0.0,
        "splits": arguments.splits,
        "fewer splits": fewer,
        "share": SHARE,
        "way": CHOSEN,
        "development": [SETS[file] for file in DEVELOPMENT],
        "running": True,
        "sets": {},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for file in names:
        of = load(arguments.data / file)
        record["sets"][SETS.get(file, Path(file).stem)] = {
            "pairs": len(of.text),
            "errors": errors(of, arguments.splits),
            "estimates": estimates(of, fewer),
            "shifted": shifted(of, fewer),
        }
        record["seconds of processor"] = round(time.process_time())
        record["running"] = file != names[-1]
        kept = rounded(record)
        write_whole(arguments.out / f"{name}.json", as_text(kept) + "\n")
        write_whole(arguments.out / f"{name}.md", markdown(kept) + "\n")
        print(f"{file}: {record['seconds of processor']} s of processor so far", flush=True)
    print(markdown(kept))


def as_text(record: dict[str, Any]) -> str:
    """JSON with every list of numbers in one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def rounded(value: Any) -> Any:
    """Figures to four decimals, which keeps a record readable."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
