"""The kernel tests on a GPU: python tests/run_on_gpu.py, or make test-gpu. Unknown arguments go to pytest: -k fit, -x.

They are the tests of tests/kernels, with --device cuda. Every backend and file is a process of its own, several at a
time. One that crashes, hangs or loses the CUDA context is started again after the test that did it, so a failing kernel
hides no other result. Summary and log are written after each job and every few seconds, whole or not at all, so a run
that is cut off leaves what it has. Without a GPU it says so and ends with exit code 0.

A GPU machine needs torch, triton, jaxtyping, numpy, safetensors and pytest, and nothing else.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.append(str(ROOT / "benchmarks"))
from record import write_whole  # noqa: E402

TESTS = HERE / "kernels"
BACKENDS = {"cuda": ("cuda", "triton", "torch"), "cpu": ("reference",)}
SILENCE = 180.0  # seconds that a single test may take
RESTARTS = 6
GIB_OF_A_PROCESS = 10
MOST_OF_A_LOG = 300_000  # characters
MOST_OF_ALL_LOGS = 8_000_000
WRITTEN_EVERY = 5.0  # seconds between two states of summary and log while jobs run
ENDED = (0, 1, 5)  # exit codes of pytest: all passed, some failed, none collected
LOST = 70  # exit code if the CUDA context is lost, from progress_plugin.py


@dataclass
class Job:
    """The tests of one file on one backend, or every shards-th of them."""

    backend: str
    file: Path
    shard: int
    shards: int
    folder: Path
    seconds: float = 0.0
    ended: bool = False
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        part = f" {self.shard + 1}/{self.shards}" if self.shards > 1 else ""
        return f"{self.backend} {self.file.stem}{part}"

    @property
    def log(self) -> Path:
        return self.folder / (self.name.replace(" ", "-").replace("/", "of") + ".log")

    @property
    def progress(self) -> Path:
        """What progress_plugin.py writes of the tests of this job."""
        return self.log.with_suffix(".jsonl")

    def count(self, *outcomes: str) -> int:
        return sum(outcome in outcomes for outcome, _ in self.outcomes.values())


def run_job(job: Job, device: str, threads: int, silence: float, arguments: list[str]) -> Job:
    """Run pytest, again and again where a test ends the process, until every test has an outcome."""
    began = time.monotonic()
    progress = job.progress
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
        "EMCL_TEST_PROGRESS": str(progress),
        "EMCL_TEST_SHARD": f"{job.shard}/{job.shards}",
        "EMCL_TEST_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
    }
    options = ["--device", device, "--backend", job.backend, "-p", "progress_plugin", "-p", "no:cacheprovider"]
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
    job.ended = True
    return job


def read_outcomes(job: Job, progress: Path) -> list[str]:
    """Outcomes so far into the job. Returns: tests that started and did not end."""
    outcomes, unfinished = outcomes_in(progress)
    job.outcomes |= outcomes
    return unfinished


def outcomes_in(progress: Path) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """What a file of progress says: outcomes by test, and the tests that started and did not end."""
    # Its last line may be written at this moment.
    text = progress.read_text() if progress.exists() else ""
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]

    outcomes = {line["end"]: (line["outcome"], line["reason"]) for line in lines if "end" in line}
    return outcomes, [line["start"] for line in lines if "start" in line and line["start"] not in outcomes]


def state_of(job: Job) -> dict[str, tuple[str, str]]:
    """Outcomes of a job, also while it runs. A test that runs at this moment is "unfinished"."""
    if job.ended:
        return job.outcomes
    outcomes, unfinished = outcomes_in(job.progress)
    return outcomes | dict.fromkeys(unfinished, ("unfinished", "the run had not ended when this was written"))


def files_with_backends() -> list[Path]:
    """The files whose tests run over backends."""
    return [file for file in sorted(TESTS.glob("test_*.py")) if "backend: str" in file.read_text(encoding="utf-8")]


def plan(device: str, backends: tuple[str, ...], short: bool, folder: Path, files: list[Path]) -> tuple[list[Job], int]:
    """The jobs, those of one backend together, and how many of them run at a time."""
    cores = len(os.sched_getaffinity(0))
    at_once = max(1, cores // 2)
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        at_once = max(1, min(at_once, int(memory / GIB_OF_A_PROCESS)))
    shards = 1 if short or device == "cpu" else max(1, at_once // (len(backends) * len(files)) + 1)
    jobs = [
        Job(backend, file, shard, shards, folder) for backend in backends for file in files for shard in range(shards)
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
    parser.add_argument("--backends", help="separated by commas; by default all that a GPU has")
    parser.add_argument("--files", help="only these files of tests/kernels, such as fit,moments")
    parser.add_argument("--out", type=Path, help="folder of the log: what pytest printed, files with failures first")
    parser.add_argument("--log", default="gpu-tests.log", help="name of the log (default: %(default)s)")
    parser.add_argument("--summary", type=Path, help="write outcomes to this file after each job, as JSON")
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

    backends = tuple(options.backends.split(",")) if options.backends else all_backends(options.device)
    jobs, at_once = plan(options.device, backends, options.short, folder, selected(options.files))
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    selection = ["-m", "short"] if options.short else []

    def write() -> None:
        if options.summary:
            write_summary(options.summary, jobs)
        if options.out:
            write_log(options.out / options.log, jobs)

    with ThreadPoolExecutor(at_once) as pool:
        left: set[Future[Job]] = {
            pool.submit(run_job, job, options.device, threads, options.silence, [*selection, *arguments])
            for job in jobs
        }
        while left:
            done, left = wait(left, WRITTEN_EVERY, FIRST_COMPLETED)
            for future in done:
                job = future.result()
                counts = ", ".join(f"{job.count(o)} {o}" for o in ("passed", "failed", "skipped") if job.count(o))
                print(f"{job.name}: {counts or 'no tests'} in {job.seconds:.0f} s", flush=True)
            write()
    return 0 if report(jobs) else 1


def all_backends(device: str) -> tuple[str, ...]:
    """Those of a device that the package has."""
    from emcl_kernels import dispatch  # a library that takes its process with it is a matter of the tests

    return tuple(backend for backend in BACKENDS[device] if backend in dispatch.BACKENDS)


def selected(names: str | None) -> list[Path]:
    """The files that --files names, "fit" or "test_fit"; by default all that run over backends."""
    files = files_with_backends()
    if names is None:
        return files
    wanted = {f"test_{name.removeprefix('test_')}" for name in names.split(",")}
    if unknown := wanted - {file.stem for file in files}:
        raise SystemExit(f"--files names {', '.join(sorted(unknown))}; there are {', '.join(f.stem for f in files)}")
    return [file for file in files if file.stem in wanted]


def write_summary(file: Path, jobs: list[Job]) -> None:
    """Outcomes so far, of each backend, as JSON."""
    outcomes: dict[str, dict[str, dict[str, str]]] = {job.backend: {} for job in jobs}
    for job in jobs:
        for test, (outcome, why) in state_of(job).items():
            outcomes[job.backend][test] = {"outcome": outcome, "reason": why}
    write_whole(file, json.dumps(outcomes, indent=1))


def write_log(file: Path, jobs: list[Job]) -> None:
    """What pytest has printed so far in each job that has begun: those with failures first, then those that run."""
    begun = [job for job in jobs if job.log.exists()]
    begun.sort(key=lambda job: (not any(o == "failed" for o, _ in state_of(job).values()), job.ended))
    most = min(MOST_OF_A_LOG, MOST_OF_ALL_LOGS // max(1, len(begun)))
    parts = []
    for job in begun:
        title = f"==== {job.name}" + ("" if job.ended else ", which had not ended when this was written")
        parts.append(f"{title}\n{job.log.read_text(errors='replace')[-most:]}\n")
    write_whole(file, "".join(parts))


def run_watched(command: list[str], progress: Path, silence: float, **options: Any) -> int | None:
    """Run a command until it ends, or until the file `progress` has not been written for `silence` seconds.

    Returns: the exit code (negative: the signal that ended it), or None where it was silent and was killed. What it
        started and left behind is killed in any case.
    """
    # a group of its own to be killed, in the session of its parent to be ended with it
    group = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
    process = subprocess.Popen(command, **group, **options)
    written, since = _written(progress), time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.1)
            if (now := _written(progress)) != written:
                written, since = now, time.monotonic()
            elif time.monotonic() - since > silence:
                return None
        return process.returncode
    finally:
        with suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
