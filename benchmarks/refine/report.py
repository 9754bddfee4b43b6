"""The results as a table and as two pictures."""

from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#2a7fd4", "#e0662e")
DASHES = ("-", "--")
BASELINES = ("centring", "top directions", "shrinkage whitening", "EMCL as released")


def write(results: dict[str, Any], out: Path) -> None:
    (out / "table.md").write_text(table(results))
    sweep_picture(results, out / "weight-and-temperature.png")
    sign_picture(results, out / "sign.png")


def table(results: dict[str, Any]) -> str:
    groups = results["groups"]
    cells = list(groups["no refinement"]["no refinement"]["figures"])
    lines = [
        "# Refinement of embeddings that exist already",
        "",
        f"`{results['default']}`; torch {results['environment']['torch']}. Made by `make refine`; never edited.",
        "",
        "R@1 with its gain over no refinement in points and the 95 % interval of that (paired bootstrap over queries);",
        "± is the deviation over ten seeds where a way has one. *gain* is the mean over sets and directions.",
        "",
        "| | gain | " + " | ".join(cells) + " |",
        "|---|---|" + "---|" * len(cells),
    ]
    for group, members in groups.items():
        if group != "no refinement":
            lines.append(f"| **{group}** | |" + " |" * len(cells))
        for name, row in members.items():
            lines.append(f"| {name} | {row['gain']:+.2f} | " + " | ".join(map(_cell, row["figures"].values())) + " |")
    best = {group: max(groups[group].items(), key=lambda item: item[1]["gain"]) for group in BASELINES}
    lines += ["", "Best single setting of each simple way, chosen on these very sets, against our default:", ""]
    lines += [f"- {group}: {name}, {row['gain']:+.2f}" for group, (name, row) in best.items()]
    default = groups["EMRefiner"]["default"]
    lines += [f"- EMRefiner: default, {default['gain']:+.2f}", "", *_halves_table(results)]
    lines += ["", "## R@5, R@10 and mean rank", ""]
    lines += [
        "| | " + " | ".join(f"{cell}: R@5 / R@10 / MnR" for cell in cells) + " |",
        "|---|" + "---|" * len(cells),
    ]
    for group, members in groups.items():
        for name, row in members.items():
            more = [
                " / ".join(_mean(cell, metric) for metric in ("R@5", "R@10", "MnR")) for cell in row["figures"].values()
            ]
            lines.append(f"| {group + ': ' if group != name else ''}{name} | " + " | ".join(more) + " |")
    return "\n".join([*lines, "", *_sign_table(results), ""])


def _halves_table(results: dict[str, Any]) -> list[str]:
    """The same settings on random halves of the sets."""
    halves = results["halves"]
    ours = halves["EMRefiner: default"]
    lines = [
        f"The same on {len(ours)} random halves of both sets, fitted on the half alone; the halves overlap, and the",
        "deviation is one half's, not the mean's:",
        "",
        "| | gain, mean ± deviation | EMRefiner ahead by | in how many halves |",
        "|---|---|---|---|",
    ]
    for name, gains in halves.items():
        ahead = [a - b for a, b in zip(ours, gains, strict=True)]
        wins = sum(gain > 0 for gain in ahead)
        rest = f"{mean(ahead):+.2f} | {wins} of {len(ahead)}" if gains is not ours else " | "
        lines.append(f"| {name} | {mean(gains):+.2f} ± {pstdev(gains):.2f} | {rest} |")
    return lines


def _mean(cell: dict[str, Any], metric: str) -> str:
    deviation = f" ±{cell['deviation'][metric]:.1f}" if cell["deviation"][metric] else ""
    return f"{cell['mean'][metric]:.1f}{deviation}"


def _cell(cell: dict[str, Any]) -> str:
    gain, low, high = cell["gain"]
    return f"{_mean(cell, 'R@1')} ({gain:+.1f} [{low:+.1f}, {high:+.1f}])"


def _sign_table(results: dict[str, Any]) -> list[str]:
    lines = ["## What the directions hold that EM finds", ""]
    lines += [
        "Directions of the default's map, strongest first: share of the squared gap between the sides' means, share of",
        "the rows' squared length, and hubness (skewness of how often an item is among the ten nearest) and R@1, means",
        "of both directions, when the direction is left out whole.",
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
    """R@1 against weight and temperature, a panel for each set."""
    cells = results["groups"]["no refinement"]["no refinement"]["figures"]
    sets = list(dict.fromkeys(cell.rsplit(", ", 1)[0] for cell in cells))
    figure, axes = plt.subplots(2, len(sets), figsize=(5 * len(sets), 6.4), constrained_layout=True)
    for column, name in enumerate(sets):
        for line, setting in enumerate(("weight", "temperature")):
            panel = axes[line][column]
            for colour, direction in zip(COLOURS, ("text→video", "video→text"), strict=True):
                cell = f"{name}, {direction}"
                at = [float(value) for value in results[setting]]
                figures = [results[setting][value][cell] for value in results[setting]]
                middle = [figure["mean"]["R@1"] for figure in figures]
                spread = [figure["deviation"]["R@1"] for figure in figures]
                panel.plot(at, middle, color=colour, label=direction, linewidth=1.6, marker="o", markersize=3)
                low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
                panel.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
                panel.axhline(cells[cell]["mean"]["R@1"], color=colour, linestyle=":", linewidth=1)
            panel.set(xlabel=setting, ylabel="R@1")
            if setting == "temperature":
                panel.set_xscale("log")
            if line == 0:
                panel.set_title(name)
    axes[0][0].legend(frameon=False, title="dotted: no refinement")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sign_picture(results: dict[str, Any], path: Path) -> None:
    """Hubness and gap against the weight."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for colour, (name, found) in zip(COLOURS, results["sign"].items(), strict=True):
        at = [float(weight) for weight in found["weight"]]
        for panel, what in zip(axes, ("hubness", "gap"), strict=True):
            values = [found["weight"][weight][what] for weight in found["weight"]]
            panel.plot(at, values, color=colour, label=name, linewidth=1.6, marker="o", markersize=3)
    axes[0].set(xlabel="weight", ylabel="hubness (skewness of N10)")
    axes[1].set(xlabel="weight", ylabel="length of the gap after the map")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
