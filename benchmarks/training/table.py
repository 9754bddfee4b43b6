"""The table and the plot of all finished runs: python -m benchmarks.training.table writes results/table.md and .png."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.training.run import RESULTS
from benchmarks.training.variants import AFTERWARDS, BASELINE, VARIANTS
from emcl_train.evaluation.bootstrap import Interval

# 97.5 % points of Student's t by degrees of freedom.
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 19: 2.093}
COLUMNS = (("text_to_video", "R@1"), ("text_to_video", "R@5"), ("text_to_video", "MnR"), ("video_to_text", "R@1"))
Runs = dict[str, dict[int, dict[str, Any]]]


def read(path: Path) -> Runs:
    """Row of results by name and seed."""
    runs: Runs = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        runs[row["name"]][row["seed"]] = row
    return runs


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of differences of runs with the same seed, by Student's t."""
    mean, count = statistics.fmean(differences), len(differences)
    half = T975[count - 1] * statistics.stdev(differences) / math.sqrt(count) if count > 1 else math.inf
    return mean, mean - half, mean + half


def differences(runs: Runs, name: str, way: str, metric: str) -> list[float]:
    base = runs[BASELINE]
    return [row[way][metric] - base[seed][way][metric] for seed, row in sorted(runs[name].items()) if seed in base]


def markdown(runs: Runs) -> str:
    """The table, a row for each variant."""
    heads = ["", "T→V R@1", "T→V R@5", "T→V MnR", "V→T R@1", "R@5 against no EMCL", "MnR against no EMCL", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in names(runs):
        rows = list(runs[name].values())
        cells = []
        for way, metric in COLUMNS:
            values = [row[way][metric] for row in rows]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.1f} ± {deviation:.1f}")
        versus = [against(runs, name, metric) for metric in ("R@5", "MnR")]
        lines.append("| " + " | ".join([name, *cells, *versus, str(len(rows))]) + " |")
    return "\n".join(lines) + "\n"


def against(runs: Runs, name: str, metric: str) -> str:
    """The difference of a text→video metric to the baseline, with its interval, bold where that leaves zero out."""
    if name == BASELINE:
        return "–"
    mean, low, high = interval(differences(runs, name, "text_to_video", metric))
    text = str(Interval(mean, low, high))
    return f"**{text}**" if low > 0 or high < 0 else text


def names(runs: Runs) -> list[str]:
    return [name for name in (*(variant.name for variant in VARIANTS), *AFTERWARDS) if name in runs]


def plot(runs: Runs, path: Path) -> None:
    """Every row's difference to the baseline with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in names(runs) if name != BASELINE][::-1]
    figure, axes = pyplot.subplots(figsize=(7, 0.3 * len(shown) + 1), layout="constrained")
    for place, name in enumerate(shown):
        mean, low, high = interval(differences(runs, name, "text_to_video", "R@5"))
        colour = "tab:blue" if low > 0 or high < 0 else "tab:gray"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(mean, place, "o", color=colour, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.set_xlabel("text→video R@5 against no EMCL, 95 % interval")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    runs = read(RESULTS / "runs.jsonl")
    (RESULTS / "table.md").write_text(markdown(runs), encoding="utf-8")
    plot(runs, RESULTS / "table.png")
    print(markdown(runs), end="")


if __name__ == "__main__":
    main()
