"""Embedding a corpus into shards: two processes of one thread against one process of one thread.

    PYTHONPATH=. python benchmarks/corpora.py VIDEOS MODEL [--clips 200] [--turns 5] [--name NAME]

VIDEOS is a folder of videos, such as data/shapes/videos of `make train`, and MODEL a run or a CLIP. In each turn the
first clips of the folder are embedded once by one process and once by two that were started one by one, in an order
that changes from turn to turn. Every process has one thread, which decodes as well. A time is that from the plan on,
when the first process has loaded its model, to the last shard; the second process may still be loading then. The
record goes to benchmarks/results, and is never edited. With --try none is written.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from intervals import interval
from record import RESULTS, Record, made_here, name_of, save

import emcl_kernels

ONE, TWO = "one process", "two processes"
WAYS = {ONE: 1, TWO: 2}
CLIPS_A_SHARD = 20
LEAST = 1.6
"""Times as fast as one process that two are to be."""

METHOD = (
    "`emcl-train embed VIDEOS --shards`, {clips} clips in shards of 20, every process with one thread, which "
    "decodes as well (`--workers 0`, `OMP_NUM_THREADS=1`). Two processes are two starts that share a folder. "
    "Medians of wall-clock time from the plan on, when the first process has loaded its model and listed the clips, "
    "to the last shard; IQR is the interquartile range. The verdict is of pairs: the median over turns of the ratio "
    "of a turn's two times, and of its logarithm's mean the 95 % interval."
)


def command(clips: Path, model: str, out: Path) -> list[str]:
    asked = ["--out", str(out), "--shards", "--model", model, "--clips-a-shard", str(CLIPS_A_SHARD), "--workers", "0"]
    return [sys.executable, "-m", "emcl_train", "embed", str(clips), *asked, "--quiet"]


def seconds_of(processes: int, clips: Path, model: str, out: Path) -> float:
    """From the plan on to the last shard, of so many processes that share the work."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    started = [subprocess.Popen(command(clips, model, out), env=environment) for _ in range(processes)]
    if any(one.wait() for one in started):
        raise SystemExit("embed has failed; run it by hand with the same arguments")
    written = [path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")]
    return (max(written) - (out / "manifest.json").stat().st_mtime_ns) / 1e9


def timed(clips: Path, model: str, turns: int) -> dict[str, list[float]]:
    """Seconds of each way in each turn."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns):
        for way in list(WAYS)[:: 1 if turn % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                seconds[way].append(seconds_of(WAYS[way], clips, model, Path(folder) / "rows"))
        print(f"turn {turn + 1} of {turns}: " + ", ".join(f"{w} {s[-1]:.2f} s" for w, s in seconds.items()), flush=True)
    return seconds


def record_of(seconds: dict[str, list[float]], number: int) -> Record:
    """What was measured, as records have it."""
    ways: dict[str, Any] = {}
    for way, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        middle = statistics.median(values)
        note = f"{number / middle:.1f} clips a second"
        of_way = {"median_s": middle, "iqr_s": high - low, "repeats": len(values), "note": note, "seconds": values}
        ways[way] = of_way
    ratios = [one / two for one, two in zip(seconds[ONE], seconds[TWO], strict=True)]
    _, low, high = interval(ratios)
    middle = statistics.median(ratios)
    verdict = {
        "case": f"{ONE} ÷ {TWO}",
        "target": f"≥ {LEAST}",
        "measured": f"{middle:.2f} [{low:.2f}, {high:.2f}]",
        "verdict": "met" if middle >= LEAST else "missed",
    }
    made = made_here(
        "A corpus into shards",
        "one thread a process",
        "PYTHONPATH=. python benchmarks/corpora.py",
        {"torch": torch.__version__, "emcl": emcl_kernels.__version__},
    )
    made["machine"] |= {"cores": str(len(os.sched_getaffinity(0))), "load before": f"{os.getloadavg()[0]:.1f}"}
    return made | {
        "method": METHOD.format(clips=number),
        "targets": [verdict],
        "cases": [{"shape": f"{number} clips, one thread a process", "dtype": "float32", "ways": ways}],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=200, help="of the folder, at most")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", help="of the record's files; by default <date>-<processor>-corpora")
    parser.add_argument("--try", dest="tried", action="store_true", help="write no record")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("a ratio with its spread needs at least two turns")
    name = None if options.tried else name_of("corpora", options.name, options.out)
    if name is None and not options.tried:
        return 1

    with tempfile.TemporaryDirectory() as folder:
        chosen = sorted(path for path in options.videos.iterdir() if path.suffix == ".mp4")[: options.clips]
        for path in chosen:
            shutil.copy(path, folder)
        record = record_of(timed(Path(folder), options.model, options.turns), len(chosen))
    (row,) = record["targets"]
    print(f"{row['case']}: {row['measured']}, target {row['target']}: {row['verdict']}")
    if name is not None:
        save(record, options.out, name)
        print(f"wrote {options.out / name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
