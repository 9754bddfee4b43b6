"""The results as a table and as pictures."""

from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.refine.measure import mean_gain, set_of
from benchmarks.refine.methods import DEFAULT, EM_DEFAULT, NOTHING, WITH_BANK

COLOURS = ("#2a7fd4", "#e0662e", "#3a9b57", "#8d5bbf", "#777777", "#b8860b")
MARKERS = ("o", "s", "^", "D", "v", "x")
AGAINST = {"without a bank": (DEFAULT, EM_DEFAULT), "with a bank": (WITH_BANK, "CSLS (k 10)")}
"""By the group of ways: ours, and the one that all are compared with."""


def write(results: dict[str, Any], out: Path) -> None:
    """Write table.md, strength.png and sign.png."""
    (out / "table.md").write_text(table(results))
    sweep_picture(results, out / "strength.png")
    sign_picture(results, out / "sign.png")


def table(results: dict[str, Any]) -> str:
    """All that docs/refine.md says of gains."""
    environment = results["environment"]
    sets = ", ".join(f"{name} ({rows} pairs)" for name, rows in results["sets"].items())
    lines = [
        "# Refinement of embeddings that exist already",
        "",
        f"Sets: {sets}. Defaults were chosen on {' and '.join(results['development'])} alone.",
        f"`{results['default']}` and `{results['em']}`; torch {environment['torch']}, {environment['isa']}.",
        "Made by `make refine`; never edited.",
        "",
        "Gains in R@1 over no refinement, in points, as means over sets and directions. *Chosen by the other sets*:",
        "of each set the setting that is best on the others. ± is the deviation over splits, which overlap, so that",
        "it is no error of the mean. *Worst* is the smallest mean gain of a direction of a set.",
        *(f"Means are without {name}; *with it* counts it as well." for name in results["rendered"]),
    ]
    for protocol, groups in results["protocols"].items():
        for group, ways in groups.items():
            lines += ["", f"## {protocol}, {group}", "", *_ways(ways, *AGAINST[group], results["rendered"])]

    lines += ["", "## Each set", "", *_rows(results)]
    lines += ["", "## Texts and videos in one gallery", "", *_mixed(results)]
    lines += ["", "## Hubs", "", *_hubs(results)]
    lines += ["", "## Few rows", "", *_few_rows(results)]
    return "\n".join([*lines, "", *_sign_table(results), ""])


def _ways(ways: dict[str, Any], ours: str, other: str, rendered: list[str]) -> list[str]:
    """A line for each way, the best first, with how often it is ahead of one that all are compared with."""
    cells = list(ways[ours]["gains"])
    head = ["", "mean", *(["with it"] if rendered else []), "worst", f"ahead of {other}", *cells]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    against = mean_gain(ways[other]["gains"], rendered)
    order = sorted(ways, key=lambda name: -mean(mean_gain(ways[name]["gains"], rendered)))
    for name in order:
        of_cells = ways[name]["gains"]
        of_splits = mean_gain(of_cells, rendered)
        spread = f" ± {pstdev(of_splits):.2f}" if len(of_splits) > 1 else ""
        ahead = sum(a > b for a, b in zip(of_splits, against, strict=True))
        worst = min(mean(values) for cell, values in of_cells.items() if set_of(cell) not in rendered)
        columns = [
            f"**{name}**" if name == ours else name,
            f"{mean(of_splits):+.2f}{spread}",
            *([f"{mean(mean_gain(of_cells)):+.2f}"] if rendered else []),
            f"{worst:+.2f}",
            f"{ahead} of {len(of_splits)}" if name not in (other, NOTHING) else "",
            *(f"{mean(of_cells[cell]):+.1f}" for cell in cells),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    chosen = {name: ways[name]["choice"] for name in order if "choice" in ways[name]}
    lines += ["", *(f"- {name}: {_choices(choice)}" for name, choice in chosen.items())]
    return lines


def _choices(choice: dict[str, str]) -> str:
    """Settings with the sets that they were chosen for."""
    settings = dict.fromkeys(choice.values())
    if len(settings) == 1:
        return next(iter(settings))
    return "; ".join(f"{setting} for {', '.join(n for n, s in choice.items() if s == setting)}" for setting in settings)


def _rows(results: dict[str, Any]) -> list[str]:
    ours, em = (results["rows"][name] for name in (DEFAULT, EM_DEFAULT))
    lines = [
        "R@1 of the evaluated sets, with the gain and its 95 % interval (paired bootstrap over queries); ± over seeds.",
        "",
        f"| | before | {DEFAULT} | gain | {EM_DEFAULT} | gain |",
        "|---|---|---|---|---|---|",
    ]
    for cell, found in ours.items():
        lines.append(
            f"| {cell} | {found['before']:.1f} | {found['after']:.1f} | {_interval(found)} | "
            f"{em[cell]['after']:.1f} ± {em[cell]['deviation']:.1f} | {_interval(em[cell])} |"
        )
    return lines


def _interval(found: dict[str, Any]) -> str:
    gain, low, high = found["gain"]
    return f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"


def _mixed(results: dict[str, Any]) -> list[str]:
    return [
        "R@10 on halves, where a query searches all texts and videos but itself. With a bank, every item is corrected",
        "by the bank of the query's side.",
        "",
        *_means(results["mixed"], 1),
    ]


def _hubs(results: dict[str, Any]) -> list[str]:
    return [
        "Skewness of how often an item is among the ten nearest of a query, on halves.",
        "",
        *_means(results["hubness"], 2),
    ]


def _few_rows(results: dict[str, Any]) -> list[str]:
    """A line for each number of rows; sets whose half has fewer are left out of it."""
    found = {count: of_cells for count, of_cells in results["few rows"].items() if of_cells}
    cells = list(dict.fromkeys(cell for of_cells in found.values() for cell in of_cells))
    lines = [
        f"Gains in R@1 on halves of `{DEFAULT}`, fitted to so many rows a side alone. *Worst* is the smallest",
        "mean gain of a direction of a set.",
        "",
        "| rows | mean | worst | " + " | ".join(cells) + " |",
        "|---|---|---|" + "---|" * len(cells),
    ]
    for count, of_cells in found.items():
        means = {cell: mean(values) for cell, values in of_cells.items()}
        shown = [f"{means[cell]:+.1f}" if cell in means else "" for cell in cells]
        lines.append(f"| {count} | {mean(means.values()):+.2f} | {min(means.values()):+.2f} | {' | '.join(shown)} |")
    return lines


def _means(ways: dict[str, Any], digits: int) -> list[str]:
    """A line for each way: the mean over splits of each cell, and the mean of those."""
    cells = list(next(iter(ways.values())))
    lines = ["| | mean | " + " | ".join(cells) + " |", "|---|---|" + "---|" * len(cells)]
    for name, of_cells in ways.items():
        means = [mean(of_cells[cell]) for cell in cells]
        lines.append(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in (mean(means), *means)) + " |")
    return lines


def _sign_table(results: dict[str, Any]) -> list[str]:
    lines = ["## What the directions hold that EM finds", ""]
    lines += [
        "Directions of EM's default map, strongest first: share of the squared gap between the sides' means, share of",
        "the rows' squared length, and hubness and R@1, means of both directions, if the direction is left out whole.",
    ]
    for name, found in results["sign"].items():
        before = found["before"]
        lines += [
            "",
            f"**{name}**; with all directions: hubness {before['hubness']:.2f}, R@1 {before['recall']:.1f}",
            "",
        ]
        lines += ["| direction | gap | rows | hubness without | R@1 without |", "|---|---|---|---|---|"]
        rows = [(str(i + 1), held) for i, held in enumerate(found["directions"])]
        rows += [("these together", found["leading together"]), ("as many random ones", found["random"])]
        lines += [
            f"| {label} | {held['gap']:.1%} | {held['rows']:.1%} | {held['hubness']:.2f} | {held['recall']:.1f} |"
            for label, held in rows
        ]
    return lines


def sweep_picture(results: dict[str, Any], path: Path) -> None:
    """Mean gain on halves of each set against one setting of whitening, the other at its default."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for panel, (setting, of_sets) in zip(axes, results["sweep"].items(), strict=True):
        for number, (name, of_values) in enumerate(of_sets.items()):
            at = [float(value) for value in of_values]
            panel.plot(
                at,
                list(of_values.values()),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                linewidth=1.4,
                label=name,
            )
        panel.axhline(0, color="#999999", linewidth=0.8)
        panel.set(xlabel=setting, ylabel="gain in R@1 on halves")
        if setting == "strength":
            panel.set_xscale("symlog", linthresh=at[1])
            panel.set_xticks(at, [f"{value:g}" for value in at], fontsize=7)
            panel.minorticks_off()
            panel.set_xlim(-at[1] / 8, at[-1] * 1.3)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sign_picture(results: dict[str, Any], path: Path) -> None:
    """Hubness and gap against the weight of EM's map."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for number, (name, found) in enumerate(results["sign"].items()):
        at = [float(weight) for weight in found["weight"]]
        for panel, what in zip(axes, ("hubness", "gap"), strict=True):
            values = [found["weight"][weight][what] for weight in found["weight"]]
            panel.plot(
                at, values, color=COLOURS[number], marker=MARKERS[number], label=name, linewidth=1.6, markersize=4
            )
    axes[0].set(xlabel="weight", ylabel="hubness (skewness of N10)")
    axes[1].set(xlabel="weight", ylabel="length of the gap after the map")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
