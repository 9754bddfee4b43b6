"""A record of benchmarks/search_cutoff.py in Markdown."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, pstdev
from typing import Any

from search_cutoff_ways import MISSES, WAYS

Record = Mapping[str, Any]
COSINE = "cosine"
PAGE = {COSINE: "cosine", "refined": "refined, no bank", "refined, with the bank": "refined, with a bank"}
"""Ways that the page shows, as it calls them."""


def markdown(record: Record) -> str:
    sets = record["sets"]
    names = ", ".join(f"{name} ({found['pairs']} pairs)" for name, found in sets.items())
    facts: dict[str, Any] = {"date": record["date"], "commit": record["commit"], "command": f"`{record['command']}`"}
    facts |= record["machine"] | record["versions"] | {"seconds of processor": record["seconds of processor"]}
    return "\n".join(
        [
            f"# {record['title']}",
            "",
            *(f"- {key}: {value}" for key, value in facts.items()),
            *(["", "**This run has not ended yet, or was cut off.**"] if record["running"] else []),
            "",
            f"Sets: {names}. Chosen on {' and '.join(record['development'])} alone: the way of finding the cut-off, "
            "and the refiner's settings. Texts search videos or images.",
            "",
            f"{record['splits']} random splits: 2/5 of the pairs are the bank, of which the texts are known, 2/5 the "
            "gallery, whose texts are the queries with an answer, 1/5 queries without one. A refiner is fitted to the "
            "bank's texts and the gallery's videos. All in percent. Brackets: 95 % interval, texts drawn anew; ±: "
            "deviation over splits, which overlap, so that it is no error of the mean.",
            "",
            *answers(sets),
            "",
            *of_shares(sets),
            "",
            *of_ways(sets, record),
            "",
            *of_leaving_out(sets),
            "",
            *of_other_kind(sets),
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def bracketed(found: Sequence[float], *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    mean, low, high = found
    return f"{mean:{plus}.1f} [{low:{plus}.1f}, {high:{plus}.1f}]"


def answers(sets: Record) -> list[str]:
    """What the best score tells, and what is wrong at the cut-off."""
    rows = []
    for name, found in sets.items():
        of_intervals, of_splits = found["errors"]["intervals"], found["errors"]["per split"]
        for way, figures in of_intervals.items():
            values = of_splits[way]
            ahead = sum(mine > other for mine, other in zip(values["AUROC"], of_splits[COSINE]["AUROC"], strict=True))
            gain = "" if way == COSINE else f"{bracketed(figures['gain in AUROC'], sign=True)}, {ahead}"
            rows.append(
                [
                    name if way == COSINE else "",
                    way,
                    f"{figures['R@1'][0]:.1f}",
                    f"{bracketed(figures['AUROC'])} ± {pstdev(values['AUROC']):.1f}",
                    gain,
                    f"{bracketed(figures['false alarms'])} ± {pstdev(values['false alarms']):.1f}",
                    bracketed(figures["first, missed"]),
                    bracketed(figures["misses"]),
                    f"{bracketed(figures['balanced error'])} ± {pstdev(values['balanced error']):.1f}",
                    f"{fmean(values['least balanced error']):.1f}",
                ]
            )
    head = [
        "",
        "compared by",
        "R@1",
        "AUROC of the best score",
        "gain over cosine, and in how many splits",
        "false alarms: of queries without an answer, above the cut-off",
        "misses: of queries whose right item is first, below it",
        "of all queries with an answer, below it",
        "balanced error",
        "the least that a cut-off could have",
    ]
    return ["## AUROC, and errors at the automatic cut-off", "", *table(head, rows)]


def of_shares(sets: Record) -> list[str]:
    """What other shares than 95 % would cost."""
    rows = []
    for name, found in sets.items():
        for way, values in found["errors"]["per split"].items():
            shares = [figure.rpartition(" ")[2] for figure in values if figure.startswith("false alarms at ")]
            cells = [
                f"{fmean(values[f'false alarms at {share}']):.0f} / {fmean(values[f'first, missed at {share}']):.0f}"
                for share in shares
            ]
            rows.append([name if way == COSINE else "", way, *cells])
    head = ["", "compared by", *(f"{100 * float(share):g} of 100" for share in shares)]
    return ["## Other shares: false alarms / misses of queries whose right item is first", "", *table(head, rows)]


def of_ways(sets: Record, record: Record) -> list[str]:
    """Every way of finding the score, by how much of the bank is answered."""
    groups = {"development sets": [name for name in sets if name in record["development"]]}
    groups["the others"] = [name for name in sets if name not in record["development"]]
    lines = [
        "## Ways to find the cut-off, on banks of which a part is answered by the gallery",
        "",
        f"False alarms of new queries without an answer, 5 are meant: mean, and in brackets root mean square of the "
        f"distance from 5, of {record['fewer splits']} splits; means over sets and over cosine and refined rows with "
        "and without the bank. The last column is the mean of the brackets.",
    ]
    for group, names in groups.items():
        if not names:
            continue
        rows = []
        for way in [*WAYS, MISSES]:
            of_banks = {
                share: [values for name in names for values in sets[name]["estimates"][way][share].values()]
                for share in sets[names[0]]["estimates"][way]
            }
            losses = {share: fmean(map(root_mean_square, values)) for share, values in of_banks.items()}
            cells = [
                f"{fmean(fmean(one) for one in values):.1f} ({losses[share]:.1f})" for share, values in of_banks.items()
            ]
            if way == MISSES:
                missed = [f"{fmean(fmean(one) for one in values):.1f}" for values in of_banks.values()]
                rows.append([f"misses at the {record['way']}, of all queries with an answer", *missed, ""])
                continue
            label = f"**{way}**" if way == record["way"] else way
            rows.append([label, *cells, f"{fmean(losses.values()):.2f}"])
        head = [group, *(f"{100 * float(share):g} % answered" for share in of_banks), "loss"]
        lines += ["", *table(head, rows)]
    return lines


def root_mean_square(alarms: Sequence[float], meant: float = 5.0) -> float:
    return sqrt(fmean((one - meant) ** 2 for one in alarms))


def of_leaving_out(sets: Record) -> list[str]:
    """What it does that the texts of the bank are known to the map and correct what they are compared with."""
    figures = ("false alarms", "false alarms, in the map", "false alarms, in all")
    rows = [
        [name, way, *(f"{fmean(values[figure]):.1f}" for figure in figures)]
        for name, found in sets.items()
        for way, values in found["errors"]["per split"].items()
        if way != COSINE
    ]
    head = ["", "compared by", "left out of both", "left out of the bank alone", "left out of neither"]
    return [
        "## A bank that fits the map, corrects the gallery and finds the cut-off",
        "",
        "False alarms, 5 are meant, by what each text of the bank was left out of when it was scored.",
        "",
        *table(head, rows),
    ]


def of_other_kind(sets: Record) -> list[str]:
    rows = [
        [name, *(f"{fmean(alarms):.1f} ± {pstdev(alarms):.1f}" for alarms in found["shifted"].values())]
        for name, found in sets.items()
    ]
    head = ["", *(next(iter(sets.values()))["shifted"])]
    return [
        "## A bank of another kind than the queries that come",
        "",
        "False alarms, 5 are meant: the bank is of one half of the subjects, by the direction in which texts vary "
        "most, and queries without an answer of the other.",
        "",
        *table(head, rows),
    ]


def of_page(record: Record) -> list[str]:
    """The table of docs/own-videos.md: what a user of the tool meets."""
    rows = []
    for name, found in record["sets"].items():
        for way, figures in found["errors"]["intervals"].items():
            if way in PAGE:
                label = f"{name}{' (chosen on)' if name in record['development'] else ''}"
                cells = [bracketed(figures[figure]) for figure in ("AUROC", "false alarms", "first, missed")]
                rows.append([label if way == COSINE else "", PAGE[way], *cells, bracketed(figures["balanced error"])])
    head = ["", "compared by", "AUROC", "false alarms", "cut although right and first", "balanced error"]
    return table(head, rows)
