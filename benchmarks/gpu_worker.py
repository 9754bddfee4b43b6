"""The process that measures: every way of every case is checked, then timed, and written down step by step."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_way
from gpu_case import Case
from gpu_targets import AUTOMATIC, target_rows
from gpu_timing import Gpu, Host, ceilings, interleaved, spread
from record import Record, plot, save, shown_time

from emcl_kernels import dispatch, use_backend
from emcl_kernels.testing import TOLERANCE

BACKENDS = {"cuda": ("triton", "cuda", "torch"), "cpu": ("reference",)}
ROUNDS = 20  # samples of each way, at least
LOST = 70  # exit code where the CUDA context is lost
TIME_TO_COMPILE = 40.0  # seconds that must be left for torch.compile
PLOTTED = {
    "compiled + graph": "torch.compile in a CUDA graph",
    "torch": "EMCL, plain torch",
    "triton": "EMCL, Triton",
    "cuda": "EMCL, CUDA",
}


@dataclass(frozen=True)
class Way:
    """One of the things that are timed against each other."""

    name: str
    kind: str  # of Case.run
    backend: str | None = None
    compiled: bool = False
    captured: bool = False


def ways_of(case: Case, backends: tuple[str, ...]) -> list[Way]:
    """eager comes first, since its error is the measure of the others'; then the automatic choice, and each backend."""
    torch_compiled = Way("torch, compiled", "torch", compiled=True)
    if case.captured:
        torch_compiled = Way("torch, compiled + graph", "torch", compiled=True, captured=True)
    known = {
        "loop": Way("eager", "loop"),
        "batched": Way("eager, batched", "batched"),
        "loop compiled": Way("compiled + graph", "loop", compiled=True, captured=True),
        "torch compiled": torch_compiled,
    }
    ways = [known[name] for name in case.baselines]
    for backend in (None, *backends):
        for kind in case.kinds:
            name = (backend or AUTOMATIC) + ("" if kind == "ours" else f", {kind}")
            ways.append(Way(name, kind, backend))
            if case.captured:
                ways.append(Way(f"{name} + graph", kind, backend, captured=True))
    return ways


def build(way: Way, case: Case, inputs: tuple[torch.Tensor, ...], device: Gpu | Host) -> Any:
    """The call that is timed, not captured yet."""
    call = case.run(way.kind, inputs, device.compiled if way.compiled else lambda function: function)
    if way.backend is None:
        return call

    def run() -> Any:
        with use_backend(way.backend):  # type: ignore[arg-type]
            return call()

    return run


def too_wrong(case: Case, errors: dict[str, float], eager: dict[str, float] | None) -> str:
    """Why a way is not timed, or an empty string. The tolerances are those of the tests."""
    full = getattr(case, "full", False)
    factor = 8 if full else 4 if case.dtype == torch.float32 else 2
    for output, error in errors.items():
        if eager is not None:
            allowed = max(TOLERANCE[torch.float32], factor * eager[output])
        else:  # what a single rounding of the output costs, several times over
            allowed = 1e-4 if case.dtype == torch.float32 else 1e-2
        if not error <= allowed:
            return f"wrong: error of {output} {error:.1e}, allowed {allowed:.1e}"
    return ""


# ---- the measuring process -------------------------------------------------------------------------------------------


class Worker:
    """Measures what the record does not have yet, and writes it down step by step."""

    def __init__(
        self,
        device: Gpu | Host,
        cases: tuple[Case, ...],
        folder: Path,
        name: str,
        backends: tuple[str, ...] | None = None,
        rounds: int = ROUNDS,
    ) -> None:
        self.device = device
        self.cases = cases
        self.folder = folder
        self.name = name
        self.backends = backends or BACKENDS[device.kind]
        self.rounds = rounds
        self.record: Record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    def step(self, case: str | None = None, way: str | None = None) -> None:
        """Write what there is, and what comes next: if it does not end, it was that."""
        self.record["running"] = {"case": case, "way": way}
        save(self.record, self.folder, self.name)

    def time_left(self) -> float:
        return self.record["deadline"] - time.time()

    def run(self) -> None:
        if "GPU" not in self.record["machine"]:
            self.step("facts and ceilings")
            self.record["machine"] |= self.device.facts()
            self.record["machine"]["clocks at rest"] = self.device.clocks()
            tiny = {"copy_bytes": 2**16, "size": 64} if self.device.kind == "cpu" else {}
            self.record["ceilings"] = ceilings(self.device, **tiny)
            self.record["machine"]["clocks after the matrix products"] = self.device.clocks()
        for case in self.cases:
            entry = self.entry(case)
            if entry["done"]:
                continue
            if reason := case.missing():
                entry["ways"]["all"] = {"failed": f"not measured: {reason}"}
            elif self.time_left() < 0:
                entry["ways"]["all"] = {"failed": "not measured: out of time"}
            else:
                self.measure(case, entry)
            entry["done"] = True
            gpu = self.record["machine"]["GPU"]
            self.record["targets"] = [row for each in self.cases for row in target_rows(each, self.entry(each), gpu)]
            save(self.record, self.folder, self.name)
            self.device.clean()
        self.record["machine"]["clocks at the end"] = self.device.clocks()
        self.record["plot"] = draw(self.record, self.folder / f"{self.name}.png")
        del self.record["running"], self.record["deadline"]
        save(self.record, self.folder, self.name)

    def entry(self, case: Case) -> Record:
        for entry in self.record["cases"]:
            if entry["name"] == case.name:
                return entry
        entry = {"name": case.name, "shape": case.shape, "dtype": case.type_name, "ways": {}, "done": False}
        if not case.flush:
            entry["note"] = "warm: the inputs may be in the L2 cache"
        self.record["cases"].append(entry)
        return entry

    def measure(self, case: Case, entry: Record) -> None:
        self.step(case.name)
        began = time.monotonic()
        inputs = case.inputs(self.device.kind)
        entry["inputs_mib"] = sum(tensor.nbytes for tensor in inputs) / 2**20
        if (limit := case.least_bytes()) is not None:
            entry["limit_s"] = limit / self.record["ceilings"]["copy"]["per_second"]
        runs: dict[str, Any] = {}
        copies: dict[str, int] = {}
        for way in ways_of(case, self.backends):
            if "failed" in entry["ways"].get(way.name, {}):  # by an earlier process
                continue
            entry["ways"][way.name] = {}
            if reason := self.not_now(way, entry):
                entry["ways"][way.name] = {"failed": reason}
                continue
            self.step(case.name, way.name)
            try:
                entry["ways"][way.name], run = self.prepare(way, case, inputs, entry)
                if run is not None:
                    runs[way.name] = run
                    copies[way.name] = case.copies if way.captured else 1
            except Exception as error:  # whatever it is, it is written down, and the others go on
                entry["ways"][way.name] = {"failed": reason_of(error)}
                if self.device.is_lost():
                    self.step()
                    sys.exit(LOST)
        print(f"{case.name}: {len(runs)} ways ready after {time.monotonic() - began:.0f} s", flush=True)
        if not runs:
            return
        self.step(case.name, "timing")
        samples = interleaved(
            self.device, runs, seconds=case.seconds, at_most=self.time_left(), flush=case.flush,
            fewest=self.rounds, each_round=(self.folder / f"{self.name}.json").touch,
        )  # fmt: skip
        for name, times in samples.items():
            entry["ways"][name] |= spread([seconds / copies[name] for seconds in times])
            if flag := self.record["tests"].get(backend_of(name)):
                entry["ways"][name]["tests"] = flag
            print(f"  {name}: {shown_time(entry['ways'][name]['median_s'])}", flush=True)

    def not_now(self, way: Way, entry: Record) -> str:
        if torch_way.NAME in (way.kind, way.backend) and (reason := torch_way.missing()):
            return f"not measured: {reason}"
        if way.compiled and "failed" in entry["ways"]["eager"]:
            return "not measured: eager failed"
        if way.compiled and self.time_left() < TIME_TO_COMPILE:
            return "not measured: no time to compile"
        return ""

    def prepare(self, way: Way, case: Case, inputs: tuple[torch.Tensor, ...], entry: Record) -> tuple[Record, Any]:
        """What is known of a way before it is timed, and the call to time, or None where its results are wrong."""
        run = build(way, case, inputs, self.device)
        found: Record = {"cost": case.cost(way.kind)}
        chosen: set[str] = set()
        with noting(chosen):
            outputs = run()
        found["errors"] = case.errors(way.kind, inputs, outputs)
        del outputs
        if way.name.startswith(AUTOMATIC):
            found["chosen"] = sorted(chosen)
        eager = entry["ways"].get("eager", {}).get("errors")
        if way.name != "eager" and (reason := too_wrong(case, found["errors"], eager)):
            return found | {"failed": reason}, None
        found["peak_mib"] = self.device.peak_bytes(run) / 2**20
        if way.captured:
            run = self.device.captured(run, case.copies)
            found["errors"] = case.errors(way.kind, inputs, run())
            if reason := too_wrong(case, found["errors"], eager):
                return found | {"failed": f"captured, {reason}"}, None
        return found, run


def backend_of(way: str) -> str:
    """ "cuda, EMCL off + graph" → "cuda"."""
    return way.partition(" + graph")[0].partition(",")[0]


@contextmanager
def noting(chosen: set[str]) -> Iterator[None]:
    """Add the backends that are chosen inside the block."""
    first_that_runs = dispatch._first_that_runs

    def note(*args: Any) -> Any:
        found = first_that_runs(*args)
        chosen.add(found[0])
        return found

    dispatch.choices.clear()  # so that every op is asked for again
    dispatch._first_that_runs = note  # type: ignore[assignment]
    try:
        yield
    finally:
        dispatch._first_that_runs = first_that_runs


def reason_of(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory: " + str(error).partition(". GPU")[0].partition("\n")[0]
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def draw(record: Record, file: Path) -> bool:
    """The plot, where matplotlib is there. Of ours called and captured the faster one is drawn."""
    fastest = {"cases": [], "title": record["title"]}
    for case in record["cases"]:
        ways = dict(case["ways"])
        for backend in BACKENDS["cuda"]:
            both = [ways[name] for name in (backend, f"{backend} + graph") if "median_s" in ways.get(name, {})]
            if both:
                ways[backend] = min(both, key=lambda way: way["median_s"])
        fastest["cases"].append(case | {"ways": ways})
    labels = {
        way: label + (" (tests failed)" if record["tests"].get(backend_of(way)) else "")
        for way, label in PLOTTED.items()
    }
    try:
        return plot(fastest, file, labels)
    except ImportError as error:
        print(f"no plot: {error}")
        return False
