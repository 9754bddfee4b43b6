"""The GPU tests: python tests/gpu/run.py, or make test-gpu. What is not known here goes to pytest: -k compile, -x.

Every backend and file is a process of its own, several at a time. One that crashes, hangs or loses the CUDA context is
started again after the test that did it, so a failing kernel hides no other result. Without a GPU it says so and ends
with exit code 0.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from watch import run_watched

TESTS = HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BACKENDS = {"cuda": ("triton", "cuda"), "cpu": ("reference",)}
SILENCE = 180.0  # seconds that a single test may take
RESTARTS = 6
GIB_OF_A_PROCESS = 10
MOST_OF_A_LOG = 300_000  # characters
ENDED = (0, 1, 5)  # exit codes of pytest: all passed, some failed, none collected
LOST = 70  # exit code where the CUDA context is lost, from gpu_plugin.py


@dataclass
class Job:
    """The tests of one file on one backend, or every shards-th of them."""

    backend: str
    file: Path
    shard: int
    shards: int
    folder: Path
    seconds: float = 0.0
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        part = f" {self.shard + 1}/{self.shards}" if self.shards > 1 else ""
        return f"{self.backend} {self.file.stem}{part}"

    @property
    def log(self) -> Path:
        return self.folder / (self.name.replace(" ", "-").replace("/", "of") + ".log")

    def count(self, *outcomes: str) -> int:
        return sum(outcome in outcomes for outcome, _ in self.outcomes.values())


def run_job(job: Job, device: str, threads: int, silence: float, arguments: list[str]) -> Job:
    """Run pytest, again and again where a test ends the process, until every test has an outcome."""
    began = time.monotonic()
    progress = job.log.with_suffix(".jsonl")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
        "EMCL_TEST_PROGRESS": str(progress),
        "EMCL_TEST_BACKEND": job.backend,
        "EMCL_TEST_DEVICE": device,
        "EMCL_TEST_SHARD": f"{job.shard}/{job.shards}",
        "EMCL_TEST_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
    }
    # Without the type checks, which need beartype; and warnings are no errors, since they differ from torch to torch.
    options = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "gpu_plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-rN", *options, str(job.file), *arguments]
    with job.log.open("a") as log:
        for _ in range(1 + RESTARTS):
            code = run_watched(command, progress, silence, cwd=ROOT, env=environment, stdout=log, stderr=log)
            unfinished = read_outcomes(job, progress)
            for test in unfinished:
                how = f"nothing for {silence:.0f} s" if code is None else f"the process ended with {code}"
                with progress.open("a") as file:
                    file.write(json.dumps({"end": test, "outcome": "failed", "reason": how}) + "\n")
            read_outcomes(job, progress)
            if code in ENDED:
                break
            if not unfinished and code != LOST:
                job.outcomes[job.name] = ("failed", f"pytest ended with {code} before any test; see {job.log}")
                break
        else:
            job.outcomes[job.name] = ("failed", f"given up after {RESTARTS} restarts; see {job.log}")
    job.seconds = time.monotonic() - began
    return job


def read_outcomes(job: Job, progress: Path) -> list[str]:
    """Outcomes so far into the job. Returns: tests that started and did not end."""
    lines: list[dict[str, Any]] = []
    if progress.exists():
        lines = [json.loads(line) for line in progress.read_text().splitlines()]
    job.outcomes |= {line["end"]: (line["outcome"], line["reason"]) for line in lines if "end" in line}
    return [line["start"] for line in lines if "start" in line and line["start"] not in job.outcomes]


def plan(device: str, backends: tuple[str, ...], short: bool, folder: Path) -> tuple[list[Job], int]:
    """The jobs, and how many of them run at a time."""
    files = sorted(TESTS.glob("test_gpu_*.py"))
    cores = len(os.sched_getaffinity(0))
    at_once = max(1, cores // 2)
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        at_once = max(1, min(at_once, int(memory / GIB_OF_A_PROCESS)))
    shards = 1 if short else max(1, at_once // (len(backends) * len(files)) + 1)
    jobs = [
        Job(backend, file, shard, shards, folder) for file in files for backend in backends for shard in range(shards)
    ]
    return jobs, at_once


def report(jobs: list[Job]) -> bool:
    """Print what failed and what was left out, and why. Returns: whether all is well."""
    failures = [
        (job, test, why) for job in jobs for test, (outcome, why) in job.outcomes.items() if outcome == "failed"
    ]
    skipped: dict[str, int] = {}
    for job in jobs:
        for outcome, why in job.outcomes.values():
            if outcome == "skipped":
                skipped[why] = skipped.get(why, 0) + 1
    for why, count in skipped.items():
        print(f"skipped {count}: {why}")
    for job, test, why in failures:
        print(f"FAILED [{job.backend}] {test.rpartition('/')[2]}: {why}")
    totals = ", ".join(f"{sum(job.count(o) for job in jobs)} {o}" for o in ("passed", "failed", "skipped"))
    print(f"{totals}; logs in {jobs[0].folder}")
    return not failures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--short", action="store_true", help="only the few tests that run before every benchmark")
    parser.add_argument("--backends", help="separated by commas; by default triton,cuda")
    parser.add_argument("--out", type=Path, help="folder of gpu-tests.log: all that the files with failures printed")
    parser.add_argument("--summary", type=Path, help="write the outcomes of each backend to this file, as JSON")
    parser.add_argument("--silence", type=float, default=SILENCE, help="seconds after which a silent test is ended")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: the tests of these tests")
    options, arguments = parser.parse_known_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"no GPU tests: torch {torch.__version__} sees no CUDA device")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="emcl-gpu-tests-"))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.device == "cuda":
        name = torch.cuda.get_device_name()
        print(f"GPU tests on {name}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)

    backends = tuple(options.backends.split(",")) if options.backends else BACKENDS[options.device]
    jobs, at_once = plan(options.device, backends, options.short, folder)
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    selection = ["-m", "short"] if options.short else []
    with ThreadPoolExecutor(at_once) as pool:
        running = [
            pool.submit(run_job, job, options.device, threads, options.silence, [*selection, *arguments])
            for job in jobs
        ]
        for future in as_completed(running):
            job = future.result()
            counts = ", ".join(f"{job.count(o)} {o}" for o in ("passed", "failed", "skipped") if job.count(o))
            print(f"{job.name}: {counts or 'no tests'} in {job.seconds:.0f} s", flush=True)
            if options.out and job.count("failed"):
                with (options.out / "gpu-tests.log").open("a") as log:
                    log.write(f"==== {job.name}\n{job.log.read_text(errors='replace')[-MOST_OF_A_LOG:]}\n")
    well = report(jobs)
    if options.summary:
        outcomes = {
            backend: {
                test: {"outcome": outcome, "reason": why}
                for job in jobs
                if job.backend == backend
                for test, (outcome, why) in job.outcomes.items()
            }
            for backend in backends
        }
        options.summary.write_text(json.dumps(outcomes, indent=1))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
