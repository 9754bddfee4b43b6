"""The picture of the README, from the committed figures of `make refine`: `python -m benchmarks.refine.picture`."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "refine" / "results" / "results.json"
PICTURE = ROOT / "docs" / "before-and-after.png"
BEFORE = "#b9bec6"
AFTER = "#2a7fd4"
# As results.json has them → as a reader has them. The items of COCO are images.
CELLS = {
    "MSR-VTT-100, VideoCLIP, text→video": "text → video\nMSR-VTT, VideoCLIP",
    "MSR-VTT-100, VideoCLIP, video→text": "video → text\nMSR-VTT, VideoCLIP",
    "COCO-500, CLIP ViT-B/16, text→video": "text → image\nCOCO, CLIP",
    "COCO-500, CLIP ViT-B/16, video→text": "image → text\nCOCO, CLIP",
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Two bars for each set and direction: R@1 of the embeddings as they are, and refined."""
    groups = results["groups"]
    before = groups["no refinement"]["no refinement"]["figures"]
    after = groups["EMRefiner"]["default"]["figures"]

    figure, axes = plt.subplots(figsize=(8.2, 2.9), dpi=110, constrained_layout=True)
    for place, cell in enumerate(CELLS):
        old = before[cell]["mean"]["R@1"]
        new = after[cell]["mean"]["R@1"]
        gain, low, high = after[cell]["gain"]
        axes.bar(place - 0.2, old, 0.38, color=BEFORE, label="embeddings as they are" if place == 0 else None)
        axes.bar(place + 0.2, new, 0.38, color=AFTER, label="the same, refined" if place == 0 else None)

        axes.text(place - 0.2, old + 1, f"{old:.1f}", ha="center", fontsize=9, color="#555555")
        axes.text(place + 0.2, new + 1, f"{new:.1f}", ha="center", fontsize=9, weight="bold")
        interval = f"+{gain:.1f}  [{low:+.1f}, {high:+.1f}]"
        axes.text(place, 2, interval, ha="center", fontsize=8, color="#222222",
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5})  # fmt: skip

    axes.set_xticks(range(len(CELLS)), list(CELLS.values()), fontsize=9)
    axes.set(ylabel="R@1 (%)", ylim=(0, 72))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper left", fontsize=9)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text(encoding="utf-8")), PICTURE)
    print(PICTURE.relative_to(ROOT))
