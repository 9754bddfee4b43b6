"""Refinement of real embeddings, ours against simpler means: `python -m benchmarks.refine.run DATA_DIR`.

Writes results/results.json, table.md, weight-and-temperature.png and sign.png beside this file. Deterministic.
"""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import emcl_kernels
from benchmarks.refine import report
from benchmarks.refine.methods import DEFAULT, Method, Sides, centred, methods, refined, unchanged
from benchmarks.refine.sign import what_directions_hold
from emcl_train.evaluation.bootstrap import paired_bootstrap
from emcl_train.evaluation.metrics import ranks, retrieval_metrics
from emcl_train.evaluation.rerank import inverted_softmax, qb_norm

RESULTS = Path(__file__).resolve().parent / "results"
SETS = {"COCO-500, CLIP ViT-B/16": "coco500_clip_vitb16.npy", "MSR-VTT-100, VideoCLIP": "msrvtt100_videoclip.npy"}
METRICS = ("R@1", "R@5", "R@10", "MnR")
WEIGHTS = (-0.3, -0.2, -0.15, -0.1, -0.07, -0.05, -0.03, 0.0, 0.03, 0.07, 0.15, 0.3)
TEMPERATURES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.9, 1.5, 3.0)
Rerank = Callable[[Tensor], tuple[Tensor, Tensor]]


def load(path: Path) -> Sides:
    """Texts and videos (or images) of length one, float64; pairs share their place."""
    video, text = torch.from_numpy(np.load(path)).double()
    return normalize(text, dim=-1), normalize(video, dim=-1)


def plain(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [texts, videos] of text→video, and [videos, texts] of video→text."""
    return similarity, similarity.T


def by_inverted_softmax(similarity: Tensor) -> tuple[Tensor, Tensor]:
    return inverted_softmax(similarity, 0.01, axis=0), inverted_softmax(similarity, 0.01, axis=1).T


def by_qb_norm(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """The sets have no training split: the bank is the test queries themselves, which its paper tries as well."""
    return qb_norm(similarity, similarity, temperature=0.05), qb_norm(similarity.T, similarity.T, temperature=0.05)


def query_ranks(sides: Sides, rerank: Rerank = plain) -> tuple[Tensor, Tensor]:
    text, video = (normalize(side, dim=-1) for side in sides)
    own = torch.arange(len(text))
    text_to_video, video_to_text = rerank(text @ video.T)
    return ranks(text_to_video, own), ranks(video_to_text, own)


def row(
    data: dict[str, Sides], method: Callable[[Tensor, Tensor, int], Sides], seeds: int, rerank: Rerank = plain
) -> dict[str, Any]:
    """Figures of one method on every set in both directions: mean and deviation over seeds, gains with intervals."""
    found: dict[str, Any] = {}
    for name, (text, video) in data.items():
        of_seeds = [query_ranks(method(text, video, seed), rerank) for seed in range(seeds)]
        for which, direction in enumerate(("text→video", "video→text")):
            runs = [retrieval_metrics(both[which]) for both in of_seeds]
            hits = torch.stack([100.0 * (both[which] <= 1) for both in of_seeds]).mean(0).numpy()
            before = 100.0 * (query_ranks((text, video))[which] <= 1).double().numpy()
            gain = paired_bootstrap(before, hits.astype(np.float64), seed=0)
            found[f"{name}, {direction}"] = {
                "mean": {metric: float(np.mean([run[metric] for run in runs])) for metric in METRICS},
                "deviation": {metric: float(np.std([run[metric] for run in runs])) for metric in METRICS},
                "gain": [gain.mean, gain.low, gain.high],
            }
    return {"figures": found, "seeds": seeds, "gain": float(np.mean([cell["gain"][0] for cell in found.values()]))}


def halves(data: dict[str, Sides], best: dict[str, str], count: int = 20) -> dict[str, list[float]]:
    """Mean gain in R@1 over sets and directions on random halves of every set, fitted on the half alone.

    Args: best: group → name of the setting that was best on the whole sets.
    """
    found: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    for seed in range(count):
        chosen = {
            name: torch.randperm(len(text), generator=generator)[: len(text) // 2] for name, (text, _) in data.items()
        }
        half = {name: (text[chosen[name]], video[chosen[name]]) for name, (text, video) in data.items()}
        for group, name in best.items():
            method = methods()[group][name][0]
            gain = row(half, partial(_with_seed, method, seed), 1)["gain"]
            found.setdefault(f"{group}: {name}", []).append(gain)
    return found


def _with_seed(method: Any, fixed: int, text: Tensor, video: Tensor, seed: int) -> Sides:
    return method(text, video, fixed)


def experiment(data: dict[str, Sides]) -> dict[str, Any]:
    groups = {
        group: {name: row(data, method, seeds) for name, (method, seeds) in members.items()}
        for group, members in methods().items()
    }
    reranks = {"inverted softmax": by_inverted_softmax, "QB-Norm": by_qb_norm}
    firsts: dict[str, tuple[Method, int]] = {"": (unchanged, 1), "0.7 of the means, ": (partial(centred, share=0.7), 1)}
    groups["with re-ranking"] = {
        f"{first}{name}": row(data, method, seeds, rerank)
        for name, rerank in reranks.items()
        for first, (method, seeds) in (firsts | {"EMRefiner, ": (refined, 10)}).items()
    }
    best = {group: max(groups[group], key=lambda name: groups[group][name]["gain"]) for group in report.BASELINES}
    best["EMRefiner"] = "default"
    return {
        "environment": {
            "emcl": emcl_kernels.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "isa": torch.backends.cpu.get_cpu_capability(),
        },
        "default": repr(DEFAULT),
        "groups": groups,
        "halves": halves(data, best),
        "weight": {str(value): row(data, partial(refined, weight=value), 10)["figures"] for value in WEIGHTS},
        "temperature": {
            str(value): row(data, partial(refined, temperature=value), 10)["figures"] for value in TEMPERATURES
        },
        "sign": {name: what_directions_hold(*sides) for name, sides in data.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with " + " and ".join(SETS.values()))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    arguments = parser.parse_args()
    missing = [file for file in SETS.values() if not (arguments.data / file).is_file()]
    if missing:
        parser.error(f"{arguments.data} has no {', no '.join(missing)}; they are arrays [2, N, D] of videos and texts")
    torch.set_num_threads(2)
    results = experiment({name: load(arguments.data / file) for name, file in SETS.items()})
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    report.write(results, arguments.out)
    print((arguments.out / "table.md").read_text())


if __name__ == "__main__":
    main()
