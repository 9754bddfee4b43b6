"""Refinement of real embeddings, ours against others: `python -m benchmarks.refine.run DATA_DIR [--run RUN]`.

Writes results/results.json, table.md and two pictures beside this file. Deterministic.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

import emcl_kernels
from benchmarks.refine import report
from benchmarks.refine.measure import (
    chosen_by_others,
    few_rows,
    gains,
    hubs,
    mixed_gallery,
    recall,
    rows_and_intervals,
)
from benchmarks.refine.methods import (
    DEFAULT,
    EM_DEFAULT,
    FAMILIES,
    FAMILIES_WITH_BANK,
    FIXED,
    FIXED_WITH_BANK,
    FOR_MIXED_GALLERIES,
    NOTHING,
    WITH_BANK,
    Method,
    Sides,
    by_refiner,
)
from benchmarks.refine.protocols import PROTOCOLS
from benchmarks.refine.sign import what_directions_hold
from emcl_kernels import EMRefiner, Refiner
from emcl_kernels.refine import Whitening
from emcl_train.tools.sides import read_sides

RESULTS = Path(__file__).resolve().parent / "results"
SETS = {
    "coco500_clip_vitb16.npy": "COCO-500, CLIP ViT-B/16",
    "msrvtt100_videoclip.npy": "MSR-VTT-100, VideoCLIP",
    "amazon996_clip_vitb32.npy": "Amazon-996, CLIP ViT-B/32",
    "shopsphere1126_clip.npy": "ShopSphere-1126, fashion CLIP",
    "things200_openclip_vith14.npy": "THINGS-200, OpenCLIP ViT-H/14",
}
"""Names of the files that docs/refine.md says how to get. Others in the folder are measured under their own."""
DEVELOPMENT = ("coco500_clip_vitb16.npy", "msrvtt100_videoclip.npy")
"""Sets that defaults were chosen on; the other ones were not looked at before."""
OF_RUN = "bundled clips, EMCL-Net"
"""Rendered, and embedded by a model that was trained with EMCL: measured like the others, and left out of the means."""
MAPS = (NOTHING, DEFAULT, EM_DEFAULT, "all of each side's mean (GR-CLIP, I0T)")
"""Ways whose hubs are counted, and that are tried in mixed galleries."""
STRENGTHS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ROWS = (2, 5, 10, 20, 50, 100, 200)
MEAN_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def load(path: Path) -> Sides:
    """Texts and videos (or images) of length one, float64; pairs share their place.

    Args:
        path: an array `[2, N, D]` of videos and texts.

    Returns:
        Texts and videos.
    """
    video, text = torch.from_numpy(np.load(path)).double()
    return normalize(text, dim=-1), normalize(video, dim=-1)


def of_run(folder: Path) -> Sides:
    """What `emcl-train refine RUN` refines: mean frames of the test split, and the first caption of each clip."""
    sides = read_sides(str(folder), None)
    text, video = (torch.from_numpy(np.array(side.rows)).double() for side in (sides.text, sides.video))
    assert sides.caption_clip is not None  # a run knows its pairs
    first = [sides.caption_clip.eq(clip).nonzero()[0, 0] for clip in range(len(video))]
    return normalize(text[torch.stack(first)], dim=-1), normalize(video, dim=-1)


def named(data: Path) -> dict[str, Sides]:
    """The sets of a folder, those of `SETS` first."""
    files = sorted(
        data.glob("*.npy"), key=lambda path: (list(SETS).index(path.name) if path.name in SETS else 99, path)
    )
    return {SETS.get(path.name, path.stem): load(path) for path in files}


def of_protocol(data: Mapping[str, Sides], protocol: str) -> dict[str, Any]:
    """Gains of all ways under one protocol, in two groups: without a bank and with one."""
    found: dict[str, Any] = {}
    groups = {"without a bank": (FIXED, FAMILIES), "with a bank": (FIXED_WITH_BANK, FAMILIES_WITH_BANK)}
    for group, (fixed, families) in groups.items():
        print(f"{protocol}, {group}", flush=True)
        nothing = {NOTHING: FIXED[NOTHING]}
        found[group] = {name: {"gains": of_cells} for name, of_cells in gains(data, nothing | fixed, protocol).items()}
        for family, members in families.items():
            of_members = gains(data, nothing | members, protocol)
            del of_members[NOTHING]
            of_cells, choice = chosen_by_others(of_members)
            found[group][f"{family}, chosen by the other sets"] = {"gains": of_cells, "choice": choice}
    return found


def sweep(data: Mapping[str, Sides]) -> dict[str, Any]:
    """Mean gain on halves of each set, against one setting of whitening."""
    found: dict[str, Any] = {}
    for setting, values in {"strength": STRENGTHS, "mean_share": MEAN_SHARES}.items():
        ways = {str(value): _whitening(**{setting: value}) for value in values}
        of_ways = gains(data, {NOTHING: FIXED[NOTHING], **ways}, "halves")
        found[setting] = {name: {value: _of_set(of_ways[value], name) for value in ways} for name in data}
    return found


def _whitening(**settings: float) -> Method:
    def refined(seen: Any, test: Sides, seed: int) -> tuple[Sides, Sides]:
        return by_refiner(seen, test, seed, kind=lambda _: Whitening(**settings))

    return Method(refined)


def _of_set(of_cells: dict[str, list[float]], name: str) -> float:
    return float(np.mean([of_cells[cell] for cell in of_cells if cell.startswith(f"{name}, ")]))


def of_rows(data: Mapping[str, Sides]) -> dict[str, Any]:
    """R@1 of each set, before and after, for both maps."""
    return {name: rows_and_intervals(data, FIXED[name], FIXED[name].seeds) for name in (DEFAULT, EM_DEFAULT)}


def of_mixed_galleries(data: Mapping[str, Sides]) -> dict[str, Any]:
    """R@10 where texts and videos lie in one gallery."""
    with_bank = {name: FIXED_WITH_BANK[name] for name in (WITH_BANK, "CSLS (k 10)")}
    return mixed_gallery(data, {name: FIXED[name] for name in MAPS} | with_bank | FOR_MIXED_GALLERIES)


def of_hubs(data: Mapping[str, Sides]) -> dict[str, Any]:
    """Hubness of the maps."""
    return hubs(data, {name: FIXED[name] for name in MAPS})


def of_few_rows(data: Mapping[str, Sides]) -> dict[str, Any]:
    """What the default gains where it is fitted to few rows."""
    return few_rows(data, FIXED[DEFAULT], ROWS)


def of_directions(data: Mapping[str, Sides]) -> dict[str, Any]:
    """What the directions hold that EM finds, of the development sets."""
    return {name: what_directions_hold(*data[name]) for name in (SETS[file] for file in DEVELOPMENT) if name in data}


def experiment(data: Mapping[str, Sides], processes: int) -> dict[str, Any]:
    """All figures, in so many processes."""
    parts: dict[str, Callable[..., Any]] = {
        **{f"protocol {protocol}": partial(of_protocol, protocol=protocol) for protocol in PROTOCOLS},
        "sweep": sweep,
        "mixed": of_mixed_galleries,
        "few rows": of_few_rows,
        "hubness": of_hubs,
        "rows": of_rows,
        "sign": of_directions,
    }
    if processes == 1:
        found = {name: part(data) for name, part in parts.items()}
    else:
        with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            begun = {name: pool.submit(part, data) for name, part in parts.items()}
            found = {name: future.result() for name, future in begun.items()}
    return {
        "environment": {
            "emcl": emcl_kernels.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "isa": torch.backends.cpu.get_cpu_capability(),
        },
        "default": repr(Refiner()),
        "em": repr(EMRefiner()),
        "sets": {name: len(text) for name, (text, _) in data.items()},
        "development": [SETS[file] for file in DEVELOPMENT],
        "rendered": [name for name in data if name == OF_RUN],
        "recall": {protocol: recall(data, protocol) for protocol in PROTOCOLS},
        "protocols": {protocol: found.pop(f"protocol {protocol}") for protocol in PROTOCOLS},
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of arrays [2, N, D] of videos (or images) and texts, .npy")
    parser.add_argument("--run", type=Path, help="folder of a run, whose test split is one more set")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="parts that are computed at a time")
    arguments = parser.parse_args()
    missing = [file for file in SETS if not (arguments.data / file).is_file()]
    if missing:
        parser.error(f"{arguments.data} has no {', no '.join(missing)}; docs/refine.md says where they are from")

    torch.set_num_threads(1)
    data = named(arguments.data)
    if arguments.run is not None:
        data[OF_RUN] = of_run(arguments.run)
    results = experiment(data, arguments.processes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    report.write(results, arguments.out)
    print((arguments.out / "table.md").read_text())


if __name__ == "__main__":
    main()
