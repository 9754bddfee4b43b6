"""One hour on a GPU, in parts of under ten minutes: python benchmarks/gpu_hour.py, or make gpu-hour.

What decides the most comes first: does the library load, is one small case of each op right, do CUDA's checkers find
anything; then tests, figures, and the table of choices. Each part is a process of its own with a time limit, prints
into <part>.txt in the folder --out, and leaves its files there; index.json says after every step what ran, how it
ended, how long it took, and which files it left. Called again with the same folder, it goes on with the parts that have
not ended. A part that needs a missing program or package is skipped with the reason.

It needs what a GPU machine has: torch, Triton, numpy, pytest, jaxtyping, safetensors; transformers for the training
step alone. --rehearse runs the same commands on the CPU at tiny sizes, in the emulator and in Triton's interpreter.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from record import write_whole

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TESTS = ROOT / "tests"
SMALL_CASE = TESTS / "kernels" / "small_case.py"
BACKENDS = ("cuda", "triton", "torch")
MAIN_CASES = "project-16512,project-1056x1024,project-1M-bf16,fit-512,pooled-"
MORE_CASES = ",".join(f"project-{rows}{full}" for full in ("", "-full") for rows in (256, 1056, 2000, 65536))
MORE_CASES += ",blocks-"
COUNTED = "gram_tiles|fit_cluster|reconstruct_resident|weigh_kernel|cosine_kernel|backward_kernel|multiply_kernel"
FITS = ("cluster8", "cluster16", "steps")  # of EMCL_FIT, which chooses the way of em_fit on CUDA
FOUND = "86"  # exit code by which CUDA's checkers say that they found something
NOT_STARTED = 127  # exit code, as a shell has it
LEAST = 20.0  # seconds that must be left for a part to begin
SHOWN = 12  # lines that are printed of what a step printed
DONE = ("ended", "skipped")

Entry = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One command. limit: seconds. skip: why it is not run, or nothing."""

    name: str
    command: list[str]
    limit: float
    skip: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Steps that are run together."""

    name: str
    what: str
    steps: list[Step]

    @property
    def limit(self) -> float:
        return sum(step.limit for step in self.steps)


@dataclass(frozen=True)
class Machine:
    """What a part can count on."""

    device: str
    backends: tuple[str, ...]
    has_gpu: bool
    about: str


def look(device: str) -> Machine:
    """Ask another process, because a library that does not load may take its process with it."""
    ask = (
        "import json, torch; from emcl_kernels import dispatch; there = torch.cuda.is_available(); "
        "name = torch.cuda.get_device_name() if there else 'no GPU'; "
        "print(json.dumps([list(dispatch.BACKENDS), there, f'{name}, torch {torch.__version__}']))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=environment({}))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Machine(device, BACKENDS, True, f"emcl_kernels cannot be imported: {last}")
    backends, there, about = json.loads(done.stdout.splitlines()[-1])
    return Machine(device, tuple(backends), there, about)


# ---- the parts -------------------------------------------------------------------------------------------------------


def parts_of(options: argparse.Namespace, machine: Machine) -> list[Part]:
    """All parts, in their order."""
    out: Path = options.out
    on = ["--device", machine.device]
    tiny: bool = options.rehearse

    def python(*arguments: str | Path) -> list[str]:
        return [sys.executable, *map(str, arguments)]

    def absent(backend: str) -> str:
        return "" if backend in machine.backends else f"emcl_kernels has no backend {backend}"

    def small(backend: str) -> list[str]:
        return python(SMALL_CASE, backend, machine.device, *(["tiny"] * tiny))

    def checked(tool: str) -> Step:
        checker = find("compute-sanitizer")
        options = ["--tool", tool, "--error-exitcode", FOUND, "--print-limit", "8"]
        if tool == "memcheck":
            options += ["--report-api-errors", "no"]
        # Without torch's cache every tensor is an allocation of its own, and an access beyond its end is seen.
        each_alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = [checker or "compute-sanitizer", *options, *small("cuda")]
        return Step(tool, command, 100, "" if checker else "compute-sanitizer is not installed", each_alone)

    def tests(name: str, limit: float, *arguments: str, skip: str = "") -> Step:
        files = ["--out", str(out), "--log", f"{name}.log", "--summary", str(out / f"{name}.json")]
        # CUDA's checkers have run already, with nothing beside them.
        few = ["-k", "not checker_of_cuda"]
        if tiny:
            # The interpreter computes with numpy, which warns of the infinite values that a test is about.
            few = ["--files", "fit", "-k", "by_hand", "-W", "ignore::RuntimeWarning"]
        return Step(name, python(TESTS / "run_on_gpu.py", *on, *files, *arguments, *few), limit, skip)

    def tests_of(backend: str, limit: float) -> Part:
        step = tests(f"tests-{backend}", limit, "--backends", backend, skip=absent(backend))
        return Part(step.name, f"all tests of the backend {backend}", [step])

    def record(name: str, cases: str, minutes: float, suffix: str = "") -> Step:
        command = python(HERE / "gpu.py", *on, "--out", out, "--go-on", "--cases", cases, "--minutes", f"{minutes:g}")
        summaries = [str(out / f"{name}.json") for name in ("short", *(f"tests-{backend}" for backend in BACKENDS))]
        command += ["--tests", ",".join(summaries)]
        command += ["--suffix", suffix] if suffix else []
        command += ["--commit", options.commit] if options.commit else []
        if tiny:
            command += ["--backends", "cuda", "--rounds", "2"]
        return Step(name, command, 60 * minutes + 20)

    known = [backend for backend in BACKENDS if backend in machine.backends]
    kernels = python(HERE / "gpu_kernels.py", *on, *(["--backends", "cuda", "--cases", "fit-512"] * tiny))
    fitted = python(HERE / "gpu_kernels.py", *on, "--backends", "cuda", "--cases", "fit-512")
    fitted[-1] += ",project-1056x1024" * (not tiny)
    one_fit = "" if chooses_fit() else "the kernels do not read EMCL_FIT"

    counter = find("ncu")
    sections = [f"--section={name}" for name in ("SpeedOfLight", "WarpStateStats", "Occupancy")]
    counting = [counter or "ncu", "--clock-control", "none", *sections, "-k", f"regex:{COUNTED}", "-c", "12"]
    counted = ["--once", "--backends", "cuda", "--cases", "fit-512" if tiny else "pooled-1024,project-16512"]
    no_counter = "" if counter else "ncu is not installed"

    return [
        Part("load", "the library, carried here or built for this chip", [
            Step("machine", ["nvidia-smi"], 20, "" if find("nvidia-smi") else "nvidia-smi is not installed"),
            Step("library", python(HERE / "gpu_load.py", *on), 260),
        ]),
        Part("cases", "one small case of each op, by backend", [
            Step(backend, small(backend), 90, absent(backend)) for backend in BACKENDS
        ]),
        Part("sanitizers", "CUDA's checkers, one after the other and nothing beside them", [
            checked(tool) for tool in ("memcheck", "racecheck", "synccheck")
        ]),
        Part("short", "the few tests that run before every benchmark", [
            tests("short", 150, "--short", "--backends", ",".join(known)),
        ]),
        tests_of("cuda", 330),
        tests_of("triton", 300),
        tests_of("torch", 150),
        Part("record", "the figures that have bounds", [record("record", "fit-512" if tiny else MAIN_CASES, 8.5)]),
        Part("record-sizes", "the figures of other sizes", [
            record("record-sizes", "project-256" if tiny else MORE_CASES, 8.5, "sizes"),
        ]),
        Part("kernels", "time by kernel", [Step("kernels", kernels, 150)]),
        Part("fit", "the ways of em_fit, by kernel", [
            Step(way, fitted, 60, one_fit, {"EMCL_FIT": way}) for way in FITS[: 1 if tiny else None]
        ]),
        Part("step", "a whole training step: EMCL on, off, and as released", [
            record("step", "step-head" if tiny else "step-", 3, "step"),
        ]),
        Part("counters", "the profiler's counters of the slowest kernels", [
            Step("ncu", [*counting, *python(HERE / "gpu_kernels.py", *on, *counted)], 110, no_counter),
        ]),
        Part("table", "which backend is the fastest, by op, type and size", [
            Step("tune", python("-m", "emcl_kernels.tune", "--resume", "--out", out / "table.json"), 270),
        ]),
    ]  # fmt: skip


def chooses_fit() -> bool:
    """Whether the sources know the variable, so that no other way is timed under a name that means nothing."""
    folder = ROOT / "csrc" / "cuda" / "fit"
    return any("EMCL_FIT" in file.read_text(encoding="utf-8") for file in folder.iterdir())


def find(program: str) -> str | None:
    """A program of CUDA's, on PATH or where nvcc is."""
    folders = [os.environ.get("PATH", ""), os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    return shutil.which(program, path=os.pathsep.join(folders))


# ---- running them ----------------------------------------------------------------------------------------------------


class Hour:
    """Runs parts, and keeps index.json true at every moment."""

    def __init__(self, out: Path, about: str, rehearsal: bool, bundle: Path | None = None) -> None:
        self.out = out
        self.bundle = bundle
        self.file = out / "index.json"
        self.rehearsal = rehearsal
        self.parts: dict[str, Entry] = {}
        if self.file.exists():
            self.parts = json.loads(self.file.read_text(encoding="utf-8"))["parts"]
        self.about = about

    def write(self) -> None:
        index = {"machine": self.about, "rehearsal": self.rehearsal, "parts": self.parts}
        write_whole(self.file, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
        if self.bundle is not None:
            pack(self.out, self.bundle)

    def is_done(self, part: Part) -> bool:
        return self.parts.get(part.name, {}).get("state") in DONE

    def run(self, part: Part, at_most: float) -> None:
        """Run the steps of a part for `at_most` seconds; they are cut where time ends."""
        entry: Entry = {"what": part.what, "state": "running", "began": now(), "steps": []}
        self.parts[part.name] = entry
        began = time.time()
        log = self.out / f"{part.name}.txt"
        log.write_text("", encoding="utf-8")
        print(f"\n#### {part.name}: {part.what}", flush=True)
        try:
            for step in part.steps:
                self.run_step(step, entry, log, min(step.limit, began + at_most - time.time()))
            states = [step["state"] for step in entry["steps"]]
            entry["state"] = "cut" if "cut" in states else "ended" if "ended" in states else "skipped"
        finally:
            if entry["state"] == "running":
                entry["state"] = "cut"
            entry["seconds"] = round(time.time() - began, 1)
            entry["files"] = sorted(
                file.name for file in self.out.iterdir() if file != self.file and file.stat().st_mtime >= began - 1
            )
            self.write()

    def run_step(self, step: Step, entry: Entry, log: Path, at_most: float) -> None:
        line: Entry = {"name": step.name, "state": "skipped", "reason": step.skip}
        entry["steps"].append(line)
        if step.skip:
            print(f"{step.name}: skipped, {step.skip}", flush=True)
            return
        line |= {"state": "running", "command": step.command, "limit": round(at_most, 1)}
        self.write()

        began = time.monotonic()
        with log.open("a", encoding="utf-8") as output:
            output.write(f"#### {step.name}, {now()}\n")
            output.flush()
            start = output.tell()
            try:
                line["rc"] = run(step, output, at_most)
            except BaseException:
                line["state"] = "cut"
                raise
            finally:
                line["seconds"] = round(time.monotonic() - began, 1)
        line["state"] = "cut" if line["rc"] is None else "ended"
        line["reason"] = f"ran past its limit of {at_most:.0f} s" if line["rc"] is None else ""
        self.write()

        printed = log.read_bytes()[start:].decode("utf-8", "replace").splitlines()
        print("\n".join(printed[-SHOWN:]))
        how = line["reason"] or f"ended with {line['rc']}"
        print(f"{step.name}: {how} after {line['seconds']:.0f} s", flush=True)

    def summary(self, parts: list[Part]) -> str:
        lines = []
        for part in parts:
            entry = self.parts.get(part.name, {"state": "not run", "steps": []})
            steps = ", ".join(
                f"{step['name']}: {step['reason'] or step.get('rc', step['state'])}" for step in entry["steps"]
            )
            lines.append(f"{part.name:13s} {entry['state']:8s} {entry.get('seconds', 0):6.0f} s  {steps}")
        return "\n".join(lines)

    def is_well(self, parts: list[Part]) -> bool:
        entries = [self.parts.get(part.name, {"state": "not run", "steps": []}) for part in parts]
        return all(
            entry["state"] in DONE and all(step.get("rc", 0) == 0 for step in entry["steps"]) for entry in entries
        )


def pack(folder: Path, bundle: Path) -> None:
    """All files of the folder in one, replaced by renaming."""
    partial = bundle.with_name(f"{bundle.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file() and file not in (bundle, partial):
                archive.write(file, file.name)
    os.replace(partial, bundle)


def run(step: Step, output: Any, at_most: float) -> int | None:
    """The exit code, or None if it ran out of time. Whatever it has started is ended with it."""
    if at_most <= 0:
        return None
    try:
        process = subprocess.Popen(
            step.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
            env=environment(step.environment),
        )  # fmt: skip
    except OSError as error:
        output.write(f"{error}\n")
        return NOT_STARTED
    try:
        return process.wait(at_most)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for pid in (*descendants(process.pid), process.pid):
            if process.returncode is None or pid != process.pid:
                end(pid)
        process.wait()


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process has started, and those that these have started, the last ones first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))

    def below(parent: int) -> Iterator[int]:
        for child in parents.get(parent, []):
            yield from below(child)
            yield child

    yield from below(pid)


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def environment(more: dict[str, str]) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"} | more


def now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-hour", help="folder (default: %(default)s)")
    parser.add_argument("--part", help="only these parts, separated by commas")
    parser.add_argument("--again", action="store_true", help="run parts that have ended too")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all parts together (default: %(default)g)")
    parser.add_argument("--bundle", type=Path, metavar="ZIP", help="keep all files of --out in this one, too")
    parser.add_argument("--commit", help="the commit, if there is no git to ask")
    parser.add_argument("--list", action="store_true", help="print the parts with their limits, and run nothing")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny sizes; figures mean nothing")
    options = parser.parse_args()
    options.out = options.out.resolve()
    return options


def rehearse_in_emulators() -> None:
    """For all commands from here on."""
    os.environ |= {"EMCL_CUDA_EMULATED": "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "EMCL_TEST_THREADS": "1"}


def main() -> int:
    options = parse()
    deadline = time.time() + 60 * options.minutes
    if options.rehearse:
        rehearse_in_emulators()
    machine = look("cpu" if options.rehearse else "cuda")
    parts = parts_of(options, machine)
    if options.part:
        wanted = options.part.split(",")
        if unknown := [name for name in wanted if name not in [part.name for part in parts]]:
            raise SystemExit(f"there is no part {', '.join(unknown)}; there are {', '.join(p.name for p in parts)}")
        parts = [part for part in parts if part.name in wanted]
    if options.list:
        print("\n".join(f"{part.name:13s} {part.limit:4.0f} s  {part.what}" for part in parts))
        return 0
    if not machine.has_gpu and not options.rehearse:
        print(f"no hour on a GPU: {machine.about}; --rehearse runs the same commands on the CPU")
        return 0

    # A request to end is written down, and ends what runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(machine.about, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    hour = Hour(options.out, machine.about, options.rehearse, options.bundle)
    for part in parts:
        if hour.is_done(part) and not options.again:
            print(f"{part.name}: has ended before; --again runs it again", flush=True)
            continue
        left = deadline - time.time()
        if left < min(LEAST, part.limit):
            print(f"{part.name}: not run, out of time", flush=True)
            continue
        hour.run(part, left)
    print(f"\n{hour.summary(parts)}\nfiles in {options.out}, listed in index.json")
    return 0 if hour.is_well(parts) else 1


if __name__ == "__main__":
    sys.exit(main())
