"""The benchmark on one GPU: python benchmarks/gpu.py, or make bench-gpu. Under 9 minutes.

A few of the GPU tests run first; a backend that fails them is timed all the same, and each of its figures says so. Then
two ceilings are measured, and every case of gpu_cases.py. All is written to
benchmarks/results/<date>-<gpu>.{json,md,png} as it comes, so that a run which is cut off leaves what it has. Another
process measures: if a kernel crashes, hangs or loses the CUDA context, that way is recorded as failed, and a new
process goes on with the rest.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gpu_kernels
import torch
from gpu_case import Case
from gpu_cases import CASES
from gpu_timing import Gpu, Host
from gpu_worker import BACKENDS, LOST, ROUNDS, Worker
from record import RESULTS, AlreadyThere, Record, commit_of, refuse_to_overwrite, save, slug, targets

import emcl_kernels
from emcl_kernels import dispatch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from run_on_gpu import run_watched  # noqa: E402

SILENCE = 120.0  # seconds that a single step may take
RESTARTS = 8
METHOD = """
K = 32, T = 9, clustered rows, starts that differ; float32 products without TF32, as is torch's default. "eager" is
the release's formula in plain torch, over many problems one after the other, as the release evaluates ("batched": all
at once); "compiled + graph" is the same under torch.compile with all of it captured in one CUDA graph. "automatic" is
ours as a user gets it, with the backends that were chosen; "cuda", "triton" and "torch" (the Gram form in plain torch)
are ours by name, "torch, compiled" is that form under torch.compile, "+ graph" the way of that name captured in one.
Each way is compared with the float64 truth before it is timed: an error is ‖out − truth‖ / ‖truth‖ of what EMCL adds to
the rows, or of the output where it adds to nothing. Times are by CUDA events, in rounds over all ways of a case. Before
each sample the device is idle, so launches count, and the L2 cache is flushed, unless the case says warm. Medians; IQR
is the interquartile range. Peak memory is what a call takes beside its inputs. FLOP/s and byte/s are the cost model's
work over the median, in brackets the share of the ceiling (float32: of TF32).
""".replace("\n", " ").strip()


def short_tests(folder: Path, device: str, backends: tuple[str, ...]) -> dict[str, str]:
    """Run them. By backend: what its figures are flagged with, or an empty string."""
    summary = folder / "gpu-tests.json"
    command = [sys.executable, str(ROOT / "tests" / "run_on_gpu.py"), "--short", "--device", device]
    command += ["--backends", ",".join(backends), "--summary", str(summary), "--silence", str(SILENCE)]
    subprocess.run(command, check=False)
    found = flags([summary], backends)
    summary.unlink(missing_ok=True)
    return found


def flags(summaries: list[Path], backends: tuple[str, ...]) -> dict[str, str]:
    """By backend: what its figures are flagged with. summaries: what tests/run_on_gpu.py wrote, the last one last."""
    outcomes: dict[str, dict[str, Any]] = {backend: {} for backend in backends}
    for file in summaries:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for backend in backends:
            outcomes[backend] |= found.get(backend, {})
    return {backend: flag(tests) for backend, tests in outcomes.items()}


def flag(tests: dict[str, dict[str, str]]) -> str:
    """What the figures of a backend are flagged with; nothing if each of its tests passed or was skipped.

    Args: tests: outcomes by name, as tests/run_on_gpu.py writes them.
    """
    if not tests:
        return "tests failed: none of them ran"
    failed = [
        f"{name.rpartition('::')[2]}: {test['reason']}"
        for name, test in tests.items()
        if test["outcome"] in ("failed", "unfinished")
    ]
    return f"tests failed: {len(failed)} of {len(tests)}, such as {failed[0]}" if failed else ""


def new_record(options: argparse.Namespace, device_name: str, tests: dict[str, str]) -> Record:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    return {
        "title": f"GPU: {device_name}",
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC",
        "commit": commit_of(options.commit),
        "command": "make bench-gpu" + (f" ARGS='{shlex.join(sys.argv[1:])}'" if sys.argv[1:] else ""),
        "machine": {},
        "versions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "Triton": triton,
            "emcl": emcl_kernels.__version__,
        },
        "method": METHOD,
        "tests": tests,
        "plot": False,
        "cases": [],
        "deadline": options.deadline,
    }


def watch(options: argparse.Namespace, name: str) -> bool:
    """Start measuring processes until everything has been measured or has failed. Returns: whether that came about."""
    file = options.out / f"{name}.json"
    command = [sys.executable, str(Path(__file__)), "--worker", name, "--out", str(options.out)]
    command += ["--device", options.device, "--cases", options.cases]
    command += ["--backends", ",".join(options.backends), "--rounds", str(options.rounds)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for _ in range(1 + RESTARTS):
        code = run_watched(command, file, SILENCE, env=environment)
        if code == 0:
            return True
        if code == LOST:  # which the process has written down itself
            continue
        how = f"nothing for {SILENCE:.0f} s" if code is None else f"its process ended with {code}"
        record = json.loads(file.read_text(encoding="utf-8"))
        of_a_case = note_failure(record, how)
        save(record, options.out, name)
        if not of_a_case:
            break
    print(f"given up; {file} has what was measured")
    return False


def note_failure(record: Record, how: str) -> bool:
    """Write down what the measuring process did last.

    Returns: whether that was a part of a case, which the next process will leave out.
    """
    running = record.get("running") or {}
    for case in record["cases"]:
        if case["name"] == running.get("case"):
            if running["way"] in case["ways"]:
                case["ways"][running["way"]] = {"failed": how}
            else:
                case["ways"][running["way"] or "inputs"] = {"failed": how}
                case["done"] = True
            print(f"{case['name']}, {running['way']}: {how}", flush=True)
            return True
    return False


def go_on(options: argparse.Namespace, name: str) -> bool:
    """Whether there is a record that was cut off; it gets more time, and what it has is kept."""
    file = options.out / f"{name}.json"
    if not options.go_on or not file.exists():
        return False
    record = json.loads(file.read_text(encoding="utf-8"))
    if "running" not in record:
        raise AlreadyThere(f"{file} has ended, and records are never edited; pass --name for another one")
    record["deadline"] = options.deadline
    record.setdefault("went_on", []).append(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC")
    save(record, options.out, name)
    return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record (default: %(default)s)")
    parser.add_argument("--name", help="of the record's files; by default <date>-<gpu>")
    parser.add_argument("--suffix", help="of that name")
    parser.add_argument("--go-on", action="store_true", help="with a record of that name that was cut off")
    parser.add_argument("--commit", help="the commit, where there is no git to ask")
    parser.add_argument("--cases", default="", help="only these, by name or a part of it, separated by commas")
    parser.add_argument("--backends", help="separated by commas; by default all that there are")
    parser.add_argument("--tests", help="what tests/run_on_gpu.py --summary wrote; tests run only if it wrote nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything, tests included")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="samples of each way, at least (default: %(default)s)"
    )
    parser.add_argument("--profile", metavar="CASE", help="print the kernels of one case instead, and record nothing")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.deadline = time.time() + 60 * options.minutes
    options.backends = tuple(options.backends.split(",")) if options.backends else BACKENDS[options.device]
    return options


def selected(pattern: str, device: str) -> tuple[Case, ...]:
    names = [case.name for case in CASES]

    def fits(part: str, name: str) -> bool:
        return part == name if part in names else part in name

    chosen = tuple(case for case in CASES if any(fits(part, case.name) for part in pattern.split(",")))
    if not chosen:
        raise SystemExit(f"no case has {pattern} in its name; there are {', '.join(case.name for case in CASES)}")
    return chosen if device == "cuda" else tuple(case.tiny() for case in chosen)


def tested(options: argparse.Namespace) -> dict[str, str]:
    """What each backend's figures are flagged with. A backend that is not there has no figures."""
    there = tuple(backend for backend in options.backends if backend in dispatch.BACKENDS)
    summaries = [Path(file) for file in options.tests.split(",")] if options.tests else []
    if any(file.exists() for file in summaries):
        tests = flags(summaries, there)
    else:
        tests = short_tests(options.out, options.device, there)
    for backend, failed in tests.items():
        if failed:
            print(f"{backend} is timed all the same, and flagged: {failed}", flush=True)
    return tests


def main() -> int:
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"no GPU benchmark: torch {torch.__version__} sees no CUDA device; nothing was written")
        return 0
    if options.profile:
        (case,) = gpu_kernels.named([options.profile])
        device = Gpu() if options.device == "cuda" else Host()
        gpu_kernels.show(case if options.device == "cuda" else case.tiny(), device, options.backends)
        return 0
    cases = selected(options.cases, options.device)
    if options.worker:
        device = Gpu() if options.device == "cuda" else Host()
        Worker(device, cases, options.out, options.worker, options.backends, options.rounds).run()
        return 0
    if options.device == "cpu" and options.out.resolve() == RESULTS.resolve():
        raise SystemExit("a run on the CPU tests this program and is no record; pass --out")

    device_name = torch.cuda.get_device_name() if options.device == "cuda" else "none"
    name = options.name or f"{datetime.now(timezone.utc):%Y-%m-%d}-{slug(device_name)}"
    name += f"-{options.suffix}" if options.suffix else ""
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        if not go_on(options, name):
            refuse_to_overwrite(options.out, name)
            save(new_record(options, device_name, tested(options)), options.out, name)
    except AlreadyThere as there:
        print(there, file=sys.stderr)
        return 1
    whole = watch(options, name)
    record = json.loads((options.out / f"{name}.json").read_text(encoding="utf-8"))
    tests = record["tests"]
    print(f"{targets(record.get('targets', []))}\n\nwrote {options.out / name}.md, .json" + ", .png" * record["plot"])
    return 0 if whole and not any(tests.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
