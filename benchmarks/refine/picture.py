"""The picture of the README, from the committed figures of `make refine`: `python -m benchmarks.refine.picture`."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.refine.methods import DEFAULT, WITH_BANK

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "refine" / "results" / "results.json"
PICTURE = ROOT / "docs" / "before-and-after.png"
COLOURS = ("#b9bec6", "#2a7fd4", "#153f6a")
LABELS = ("embeddings as they are", "refined", "refined, with a bank of other queries")


def draw(results: dict[str, Any], path: Path) -> None:
    """Three bars for each set: R@1 as the embeddings are, refined, and refined with a bank; means of both directions.

    All are measured on halves: what refines them was fitted to the other half, without its pairs.
    """
    protocol = results["protocols"]["halves"]
    gains = [protocol["without a bank"][DEFAULT]["gains"], protocol["with a bank"][WITH_BANK]["gains"]]
    before = results["recall"]["halves"]

    figure, axes = plt.subplots(figsize=(8.4, 3.1), dpi=110, constrained_layout=True)
    sets = list(results["sets"])
    for place, name in enumerate(sets):
        old = mean(mean(values) for cell, values in before.items() if cell.startswith(f"{name}, "))
        gain = [mean(mean(v) for cell, v in way.items() if cell.startswith(f"{name}, ")) for way in gains]
        bars = zip((-0.27, 0.0, 0.27), (old, old + gain[0], old + gain[1]), COLOURS, LABELS, strict=True)
        for shift, height, colour, label in bars:
            axes.bar(place + shift, height, 0.25, color=colour, label=label if place == 0 else None)
        axes.text(place - 0.27, old + 1, f"{old:.1f}", ha="center", fontsize=8, color="#555555")
        for shift, of_way in zip((0.0, 0.27), gain, strict=True):
            axes.text(place + shift, old + of_way + 1, f"{of_way:+.1f}", ha="center", fontsize=7, weight="bold")

    axes.set_xticks(range(len(sets)), [name.replace(", ", "\n") for name in sets], fontsize=8)
    axes.set_ylim(0, 112)
    axes.set_ylabel("R@1 (%), mean of both directions", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper left", fontsize=8)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text(encoding="utf-8")), PICTURE)
    print(PICTURE.relative_to(ROOT))
