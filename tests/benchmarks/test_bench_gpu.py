"""benchmarks/gpu.py without a GPU: its code on tiny cases on the CPU, its decisions on made-up timings."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gpu
import gpu_cases
import gpu_kernels
import gpu_timing
import gpu_worker
import pytest
import torch
import torch_way
from gpu_targets import Target, target_row, target_rows
from gpu_timing import Host, interleaved, spread
from gpu_worker import Way, Worker, too_wrong, ways_of

from emcl_kernels import dispatch, use_backend
from emcl_kernels.backends import reference

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
TINY = {case.name: case.tiny() for case in gpu_cases.CASES}


def options(out: Path, **changes: Any) -> argparse.Namespace:
    values = {"commit": "0123abc", "deadline": time.time() + 100, "out": out, "device": "cpu", "cases": ""}
    values |= {"backends": ("reference",), "rounds": 20}
    return argparse.Namespace(**values | changes)


def worker(tmp_path: Path, *names: str, device: Host | None = None, **changes: Any) -> Worker:
    """A worker for some tiny cases, on a record that holds nothing yet."""
    made = gpu.new_record(options(tmp_path, **changes), "made-up", {"reference": ""})
    gpu.save(made, tmp_path, "r")
    return Worker(device or Host(), tuple(TINY[name] for name in names), tmp_path, "r")


# ---- without a GPU ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sees no CUDA device; nothing was written" in done.stdout
    assert not (tmp_path / "out").exists()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", *map(str, arguments)])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return gpu.main()


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "short_tests", lambda *_: {"reference": ""})
    arguments = ("--out", tmp_path, "--name", "run", "--cases", "fit,pooled-1024", "--commit", "0123abc")
    assert run_main(monkeypatch, *arguments) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert "running" not in record
    assert record["ceilings"]["tf32"]["per_second"] > 0
    assert [case["name"] for case in record["cases"]] == ["fit-512", "pooled-1024"]
    fit = record["cases"][0]["ways"]
    ours = ("automatic", "automatic + graph", "reference", "reference + graph")
    assert list(fit) == ["eager", "compiled + graph", "torch, compiled + graph", *ours]
    assert fit["automatic"]["chosen"] == ["native"]
    for name, way in fit.items():
        if name.startswith("torch") and torch_way.missing():
            assert way == {"failed": "not measured: emcl_kernels has no backend torch"}
            continue
        assert way["repeats"] >= 20
        assert way["median_s"] > 0
        assert way["errors"].keys() == {"responsibilities", "scale"}
    text = (tmp_path / "run.md").read_text()
    assert "| em_fit D=16 K=4, 9 iterations | ≤ 40 µs | automatic: " in text
    assert "not judged: it is for the H200 |" in text
    assert "| ran on native |" in text
    assert "short tests of reference: passed" in text
    assert "not ended yet" not in text
    assert (tmp_path / "run.png").exists()

    assert run_main(monkeypatch, *arguments) == 1
    assert "records are never edited" in capsys.readouterr().err


def test_a_run_on_the_cpu_is_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="is no record"):
        run_main(monkeypatch, "--cases", "fit")


def test_an_unknown_case_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no case has nonsense in its name; there are project-16512, "):
        run_main(monkeypatch, "--out", tmp_path, "--cases", "nonsense")


def test_a_run_whose_tests_fail_is_recorded_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "short_tests", lambda *_: {"reference": "tests failed: 2 of 9, such as a: error 3e-2"})
    monkeypatch.setattr(
        gpu, "watch", lambda given, name: Worker(Host(), (TINY["fit-512"],), given.out, name).run() or 1
    )
    assert run_main(monkeypatch, "--out", tmp_path, "--name", "run", "--cases", "fit") == 1
    assert "reference is timed all the same, and flagged: tests failed: 2 of 9" in capsys.readouterr().out
    text = (tmp_path / "run.md").read_text()
    assert "short tests of reference: tests failed: 2 of 9, such as a: error 3e-2" in text
    row = next(line for line in text.splitlines() if line.startswith("| reference |"))
    assert row.endswith("| tests failed: 2 of 9, such as a: error 3e-2 |")


def test_short_tests_are_read_by_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, failed, cut = ({"outcome": o, "reason": "error 3e-2"} for o in ("passed", "failed", "unfinished"))

    def run(command: list[str], check: bool) -> None:
        outcomes = {"cuda": {"f.py::good": passed, "f.py::bad[cuda]": failed}, "triton": {"f.py::good": passed}}
        if silent:
            outcomes["triton"]["f.py::hangs"] = cut
        Path(command[command.index("--summary") + 1]).write_text(json.dumps(outcomes))

    monkeypatch.setattr(gpu.subprocess, "run", run)
    silent = False
    backends = ("triton", "cuda")
    found = gpu.short_tests(tmp_path, "cuda", backends)
    assert found == {"triton": "", "cuda": "tests failed: 1 of 2, such as bad[cuda]: error 3e-2"}
    silent = True
    assert gpu.short_tests(tmp_path, "cuda", backends)["triton"] == "tests failed: 1 of 2, such as hangs: error 3e-2"
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: None)
    assert gpu.short_tests(tmp_path, "cuda", backends)["triton"] == "tests failed: none of them ran"


def test_what_was_tested_before_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.subprocess, "run", mock.Mock(side_effect=AssertionError))
    monkeypatch.setitem(dispatch.BACKENDS, "torch", reference.backend)
    for name, outcomes in (
        ("short", {"cuda": {"a": {"outcome": "failed", "reason": "error 3e-2"}}, "triton": {}}),
        ("all", {"cuda": {"a": {"outcome": "passed", "reason": ""}}, "torch": {"a": {"outcome": "skipped"}}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(outcomes))
    summaries = ",".join(str(tmp_path / f"{name}.json") for name in ("short", "all", "never-written"))
    given = options(tmp_path, tests=summaries, backends=("cuda", "triton", "torch", "no-such-backend"))
    assert gpu.tested(given) == {"cuda": "", "triton": "tests failed: none of them ran", "torch": ""}


def test_a_record_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = worker(tmp_path, "fit-512", "project-256", deadline=time.time() - 1000)
    cut.entry(TINY["fit-512"]).update(done=True, ways={"eager": {"median_s": 1.0, "iqr_s": 0.0, "repeats": 20}})
    cut.step("project-256", "eager")

    def measure(given: argparse.Namespace, name: str) -> bool:
        Worker(Host(), cut.cases, given.out, name).run()
        return True

    monkeypatch.setattr(gpu, "watch", measure)
    arguments = ("--out", tmp_path, "--name", "r", "--go-on", "--cases", "fit-512,project-256")
    assert run_main(monkeypatch, *arguments) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    fit, project = record["cases"]
    assert fit["ways"]["eager"]["median_s"] == 1.0, "what was measured is kept"
    assert project["ways"]["reference"]["median_s"] > 0, "and there is time again"
    assert "It was cut off, and went on at 20" in (tmp_path / "r.md").read_text()
    assert run_main(monkeypatch, *arguments) == 1, "a record that has ended is never edited"


COMPILED = """
import sys
import torch, torch_way
from emcl_kernels import dispatch
from emcl_kernels.backends import reference
from gpu_cases import CASES

dispatch.BACKENDS.setdefault("torch", reference.backend)

def wrap(function):  # not compiled on, which would take minutes
    return torch.compile(function, fullgraph=True, dynamic=False, backend="eager")

for case in (case.tiny() for case in CASES if case.name in sys.argv[1:]):
    inputs = case.inputs("cpu")
    compiled = case.run("torch", inputs, wrap)()
    torch.testing.assert_close(compiled, case.run("torch", inputs, lambda function: function)())
    print(case.name)
"""


def test_the_third_way_is_seen_through_by_the_compiler() -> None:
    """Without a break. In a process of its own, for the types that the tests check in every call are no graph."""
    names = ["project-16512", "project-1M-bf16", "fit-512", "pooled-1024", "project-256-full", "blocks-1000"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    command = [sys.executable, "-c", COMPILED, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == names


def test_the_kernels_of_one_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_kernels, "SHOWN", 1000)  # all: which are the slowest is another matter at each run
    assert run_main(monkeypatch, "--profile", "fit-512") == 0
    printed = capsys.readouterr().out
    assert "em_fit D=16 K=4, 9 iterations, reference" in printed
    assert "aten::softmax" in printed
    with pytest.raises(SystemExit, match="there is no case nonsense"):
        run_main(monkeypatch, "--profile", "nonsense")


def test_commit_by_git_or_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with_git = gpu.commit_of("given")
    monkeypatch.setattr(gpu.subprocess, "run", mock.Mock(side_effect=FileNotFoundError))
    without = gpu.commit_of("given")
    assert without == {"id": "given", "dirty": None, "sources": with_git["sources"]}
    assert gpu.commit_of(None)["id"].startswith("not known")


# ---- the process that measures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_every_case_has_ways_that_agree_with_its_truth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the functions of the reference, the third way is what it is without a backend of its own."""
    if torch_way.missing():
        monkeypatch.setitem(dispatch.BACKENDS, "torch", reference.backend)
    case = TINY[name]
    inputs = case.inputs("cpu")
    eager: dict[str, float] = {}
    for way in ways_of(case, ("reference",)):
        found = case.errors(way.kind, inputs, gpu_worker.build(way, case, inputs, Host())())
        eager = eager or found
        assert too_wrong(case, found, eager) == "", way.name
        cost = case.cost(way.kind)
        assert cost is None or min(cost["flops"], cost["bytes"]) > 0
    if case.name.startswith("project") and not case.full:  # type: ignore[attr-defined]
        x = inputs[0]
        assert case.least_bytes() == 3 * x.nbytes


@pytest.mark.parametrize("name", TINY)
def test_a_result_that_is_slightly_wrong_is_seen(name: str) -> None:
    case = TINY[name]
    inputs = case.inputs("cpu")
    outputs = case.run("loop", inputs, lambda function: function)()
    eager = case.errors("loop", inputs, outputs)
    wrong = tuple(output + 0.05 * output.abs().max() for output in outputs)
    assert too_wrong(case, case.errors("loop", inputs, wrong), eager).startswith("wrong: error of ")


def test_ways_of_a_case() -> None:
    compared = ["eager", "compiled + graph", "torch, compiled + graph"]
    names = [way.name for way in ways_of(gpu_cases.PooledRun("p", pairs=4), ("triton", "torch"))]
    ours = (name for way in ("automatic", "triton", "torch") for name in (way, f"{way}, EMCL off"))
    assert names == [*compared, *(name for way in ours for name in (way, f"{way} + graph"))]
    names = [way.name for way in ways_of(gpu_cases.FitRun("f", captured=False), ("cuda",))]
    assert names == ["eager", "compiled + graph", "torch, compiled", "automatic", "cuda"]
    names = [way.name for way in ways_of(gpu_cases.ProjectRun("p", problems=9, captured=False), ())]
    assert names == ["eager", "eager, batched", "compiled + graph", "torch, compiled", "automatic"]


def test_many_problems_are_taken_one_after_the_other_by_the_release() -> None:
    calls: list[torch.Size] = []

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(x: torch.Tensor, *rest: Any, **named: Any) -> Any:
            calls.append(x.shape)
            return function(x, *rest, **named)

        return counted

    case = TINY["project-1056x1024"]
    inputs = case.inputs("cpu")
    alone = case.run("loop", inputs, wrap)()
    assert calls == [torch.Size([40, 16])] * 3
    at_once = case.run("batched", inputs, wrap)()
    assert calls[3:] == [torch.Size([3, 40, 16])]
    torch.testing.assert_close(alone, at_once)


def test_a_backend_that_is_not_here_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(dispatch.BACKENDS, "torch", raising=False)
    monkeypatch.setitem(gpu_worker.BACKENDS, "cpu", ("torch",))
    worker(tmp_path, "fit-512").run()
    ways = json.loads((tmp_path / "r.json").read_text())["cases"][0]["ways"]
    missing = {"failed": "not measured: emcl_kernels has no backend torch"}
    assert [ways[name] for name in ("torch, compiled + graph", "torch", "torch + graph")] == [missing] * 3
    assert "median_s" in ways["automatic"]


def test_a_case_whose_package_is_missing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_step.importlib.util.find_spec", lambda name: None)
    worker(tmp_path, "step-whole-128").run()
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["cases"][0]["ways"] == {"all": {"failed": "not measured: transformers is not installed"}}
    assert record["targets"][0]["verdict"] == "not measured"


def test_the_choice_that_was_made_is_noted() -> None:
    call = TINY["project-256"].run("ours", TINY["project-256"].inputs("cpu"), lambda function: function)
    for backend in ("native", "reference"):
        chosen: set[str] = set()
        with use_backend(backend), gpu_worker.noting(chosen):
            call()
        assert chosen == {backend}


def test_what_is_written_of_calls_of_a_second(tmp_path: Path) -> None:
    class Slow(Host):
        def seconds(self, run: Callable[[], Any], calls: int = 1, flush: bool = True) -> float:
            return 1.0

    made = worker(tmp_path, "fit-512", "project-16512", device=Slow())
    made.run()
    fit, project = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert fit["ways"]["reference"]["median_s"] == 1.0
    assert fit["ways"]["automatic + graph"]["median_s"] == 0.1
    assert fit["ways"]["reference + graph"]["median_s"] == 0.1, "ten copies in a graph"
    assert project["ways"]["reference + graph"]["median_s"] == 1.0
    # 40 rows of 16 float32 numbers, and a copy that reads and writes 2¹⁶ bytes in a second
    assert project["limit_s"] == 3 * 40 * 16 * 4 / 2**17


def test_a_failing_way_is_recorded_and_the_others_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = worker(tmp_path, "fit-512")
    build = gpu_worker.build

    def fail(way: Way, *rest: Any) -> Callable[[], Any]:
        if way.name == "eager":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 GiB. GPU 0 has less")
        if way.name == "reference":
            raise RuntimeError("CUDA error: misaligned address\nmore of it")
        return build(way, *rest)

    monkeypatch.setattr(gpu_worker, "build", fail)
    made.run()
    ways = json.loads((tmp_path / "r.json").read_text())["cases"][0]["ways"]
    assert ways["eager"] == {"failed": "out of memory: CUDA out of memory. Tried to allocate 64 GiB"}
    assert ways["reference"] == {"failed": "RuntimeError: CUDA error: misaligned address"}
    assert ways["compiled + graph"] == {"failed": "not measured: eager failed"}
    assert "median_s" in ways["reference + graph"]


def test_a_wrong_way_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = worker(tmp_path, "fit-512")
    build = gpu_worker.build

    def wrong(way: Way, *rest: Any) -> Callable[[], Any]:
        run = build(way, *rest)
        return run if way.backend is None else lambda: tuple(2 * output for output in run())

    monkeypatch.setattr(gpu_worker, "build", wrong)
    made.run()
    ways = json.loads((tmp_path / "r.json").read_text())["cases"][0]["ways"]
    assert ways["reference"]["failed"].startswith("wrong: error of responsibilities 1.0e+00, allowed")
    assert "median_s" not in ways["reference"]


def test_what_a_lost_context_leaves_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Host):
        def is_lost(self) -> bool:
            return True

    made = worker(tmp_path, "fit-512", device=Lost())
    build, built = gpu_worker.build, []

    def fail(way: Way, *rest: Any) -> Callable[[], Any]:
        built.append(way.name)
        if way.name == "reference":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return build(way, *rest)

    monkeypatch.setattr(gpu_worker, "build", fail)
    with pytest.raises(SystemExit) as end:
        made.run()
    assert end.value.code == gpu_worker.LOST
    Worker(Host(), made.cases, tmp_path, "r").run()
    assert built.count("reference") == 1, "the way that took the context is not tried again"
    ways = json.loads((tmp_path / "r.json").read_text())["cases"][0]["ways"]
    assert "illegal memory access" in ways["reference"]["failed"]
    assert all("median_s" in way for name, way in ways.items() if name not in ("reference", "torch, compiled + graph"))


def test_out_of_time(tmp_path: Path) -> None:
    made = worker(tmp_path, "fit-512", "project-256", deadline=time.time() - 1)
    made.run()
    record = json.loads((tmp_path / "r.json").read_text())
    assert [case["ways"] for case in record["cases"]] == [{"all": {"failed": "not measured: out of time"}}] * 2
    assert {row["verdict"] for row in record["targets"]} == {"not measured"}


def test_no_time_to_compile(tmp_path: Path) -> None:
    made = worker(tmp_path, "fit-512", deadline=time.time() + 20)
    made.run()
    ways = json.loads((tmp_path / "r.json").read_text())["cases"][0]["ways"]
    assert ways["compiled + graph"] == {"failed": "not measured: no time to compile"}


def test_a_backend_that_failed_its_tests_is_timed_and_flagged(tmp_path: Path) -> None:
    made = worker(tmp_path, "fit-512")
    made.record["tests"] = {"reference": "tests failed: 3 of 9, such as a: b"}
    made.run()
    record = json.loads((tmp_path / "r.json").read_text())
    ways = record["cases"][0]["ways"]
    for name in ("reference", "reference + graph"):
        assert ways[name]["median_s"] > 0
        assert ways[name]["tests"] == "tests failed: 3 of 9, such as a: b"
    assert "tests" not in ways["eager"]
    record["machine"]["GPU"] = "NVIDIA H200"
    del record["cases"][0]["ways"]["automatic"]
    (row, *_) = target_rows(TINY["fit-512"], record["cases"][0], "NVIDIA H200")
    assert row["verdict"].endswith(", by a backend whose tests failed")


# ---- the process that watches ----------------------------------------------------------------------------------------


def test_a_crash_is_written_down_and_measuring_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = worker(tmp_path, "fit-512", "project-256")
    ends = iter([("fit-512", "cuda", -11), (None, None, 70), ("fit-512", "timing", None), ("facts", None, 1)])

    def run_watched(command: list[str], progress: Path, silence: float, **_: Any) -> int | None:
        case, way, code = next(ends)
        record = json.loads(progress.read_text())
        record["running"] = {"case": case, "way": way}
        if not record["cases"]:
            record["cases"] = [
                {"name": "fit-512", "shape": "s", "dtype": "float32", "ways": {"cuda": {}}, "done": False}
            ]
        gpu.save(record, tmp_path, "r")
        return code

    monkeypatch.setattr(gpu, "run_watched", run_watched)
    assert not gpu.watch(options(tmp_path), "r")
    (case,) = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert case["ways"]["cuda"] == {"failed": "its process ended with -11"}
    assert case["ways"]["timing"] == {"failed": "nothing for 120 s"}
    assert case["done"]
    assert next(ends, None) is None, "it gives up where no case was running"
    assert made.name == "r"


def test_what_was_cut_off_says_so(tmp_path: Path) -> None:
    made = worker(tmp_path, "fit-512")
    made.step("fit-512", "eager")
    assert "was cut off" in (tmp_path / "r.md").read_text()


# ---- targets ---------------------------------------------------------------------------------------------------------


def timed(**seconds: float) -> dict[str, Any]:
    ways = {name.replace("_", " "): {"median_s": value, "peak_mib": 1024.0} for name, value in seconds.items()}
    return {"shape": "s", "dtype": "float32", "ways": ways, "limit_s": 2e-3, "inputs_mib": 512.0}


@pytest.mark.parametrize(
    ("target", "seconds", "measured", "verdict"),
    [
        (Target("eager", 10), {"eager": 50e-3, "cuda": 4e-3}, "cuda: 12.5", "met"),
        (
            Target("eager", 10),
            {"eager": 50e-3, "cuda": 8e-3, "cuda + graph": 1e-3},
            "cuda: 6.25, cuda + graph: 50",
            "missed",
        ),
        (
            Target("compiled", 3),
            {"compiled + graph": 9e-3, "cuda": 8e-3, "cuda + graph": 2e-3},
            "cuda: 1.12, cuda + graph: 4.5",
            "met",
        ),
        (Target("compiled", 3), {"compiled + graph": 9e-3, "cuda": 4e-3}, "cuda: 2.25", "missed"),
        (Target("limit", 1.5), {"cuda": 2.5e-3}, "cuda: 1.25", "met"),
        (Target("µs", 30), {"cuda": 80e-6, "cuda + graph": 31e-6}, "cuda: 80, cuda + graph: 31", "missed"),
        (Target("EMCL off", 1.15), {"cuda": 11e-3, "cuda, EMCL off": 10e-3}, "cuda: 1.1", "met"),
        (
            Target("EMCL off", 1.15),
            {"cuda": 11e-3, "cuda + graph": 9e-3, "cuda, EMCL off": 10e-3, "cuda, EMCL off + graph": 6e-3},
            "cuda: 1.1, cuda + graph: 1.5",
            "missed",
        ),
        (Target("eager", 10), {"eager": 50e-3, "triton": 4e-3}, "triton: 12.5", "met"),
        # What a user gets decides, whatever else was measured.
        (Target("eager", 10), {"eager": 50e-3, "automatic": 10e-3, "cuda": 4e-3}, "automatic: 5", "missed"),
        (Target("eager", 10), {"cuda": 4e-3}, "", "not measured"),
        (Target("eager", 10), {"eager": 4e-3}, "", "not measured"),
        # Never slower: against the best of what there is, and captured against captured.
        (Target("best", 1.05), {"automatic": 4e-3}, "", "not measured"),
        (Target("best", 1.05), {"eager": 4e-3, "automatic": 4.08e-3}, "automatic: 1.02 (best: eager)", "met"),
        (
            Target("best", 1.05),
            {"eager": 9e-3, "compiled + graph": 3e-3, "torch, compiled + graph": 2e-3, "automatic": 5e-3}
            | {"automatic + graph": 2.2e-3},
            "automatic: 2.5, automatic + graph: 1.1 (best: torch, compiled + graph)",
            "missed",
        ),
        (
            Target("best", 1.05),
            {"eager": 90e-3, "eager, batched": 3e-3, "automatic": 3e-3},
            "automatic: 1 (best: eager, batched)",
            "met",
        ),
        # 1024 MiB, and 512 MiB of inputs: 1.61 GB.
        (Target("ms", 30, otherwise=Target("ms", 55, gb=4)), {"cuda": 29e-3}, "cuda: 29, in 1.61 GB", "met"),
        (Target("ms", 30, otherwise=Target("ms", 55, gb=4)), {"cuda": 50e-3}, "cuda: 50, in 1.61 GB", "met"),
        (Target("ms", 30, otherwise=Target("ms", 55, gb=1)), {"cuda": 50e-3}, "cuda: 50, in 1.61 GB", "missed"),
        (Target("ms", 30, otherwise=Target("ms", 55, gb=4)), {"cuda": 60e-3}, "cuda: 60, in 1.61 GB", "missed"),
    ],
)  # fmt: skip
def test_targets_by_hand(target: Target, seconds: dict[str, float], measured: str, verdict: str) -> None:
    row = target_row(target, timed(**seconds), "NVIDIA H200")
    assert (row["measured"], row["verdict"]) == (measured, verdict)


def test_a_bound_for_one_gpu_is_not_judged_on_another() -> None:
    entry = timed(**{"eager": 50e-3, "cuda": 40e-3})
    row = target_row(Target("eager", 10), entry, "NVIDIA H100 80GB HBM3")
    assert (row["measured"], row["verdict"]) == ("cuda: 1.25", "not judged: it is for the H200")
    assert target_row(Target("eager", 10, gpu=""), entry, "NVIDIA H100 80GB HBM3")["verdict"] == "missed"


def test_a_figure_that_replaced_a_target_names_both() -> None:
    target = Target("eager", 7.5, was=Target("eager", 6), since="2027-01-01-nvidia-h200")
    assert target.words == "≥ 7.5 × eager (measured in 2027-01-01-nvidia-h200; before: ≥ 6 × eager)"


NEVER = "≤ 1.05 × the best of eager, compiled with graphs, torch compiled"


def test_every_case_has_its_targets() -> None:
    rows = [row for case in gpu_cases.CASES for row in target_rows(case, timed() | {"shape": case.name}, "")]
    assert [row["case"] for row in rows if row["target"] == NEVER] == [case.name for case in gpu_cases.CASES]
    assert [(row["case"], row["target"]) for row in rows if row["target"] != NEVER] == [
        ("project-16512", "≥ 6 × eager"),
        ("project-16512", "≥ 4 × compiled with graphs"),
        ("project-1056x1024", "≥ 50 × eager"),
        ("project-1056x1024", "≤ 4 × reading twice and writing once"),
        ("project-1M-bf16", "≤ 2 × reading twice and writing once"),
        ("fit-512", "≤ 40 µs"),
        ("pooled-1024", "≥ 20 × eager"),
        ("pooled-1024", "≤ 1.3 × without EMCL"),
        ("pooled-8192-bf16", "≤ 30 ms, or ≤ 55 ms in ≤ 4 GB"),
        ("step-whole-128", "≤ 1.01 × without EMCL"),
    ]


# ---- timing ----------------------------------------------------------------------------------------------------------


class Scripted(Host):
    """A device whose runs take what they say."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def seconds(self, run: Callable[[], Any], calls: int = 1, flush: bool = True) -> float:
        name, duration = run()
        self.order.append(name)
        return duration


def test_rounds_begin_with_another_way_each_time() -> None:
    device = Scripted()
    runs = {name: (lambda name=name: (name, {"a": 1.0, "b": 2.0, "c": 4.0}[name])) for name in "abc"}
    samples = interleaved(device, runs, seconds=0, at_most=100, flush=True)
    assert "".join(device.order[:12]) == "abcbcacababc"
    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys("abc", 20)
    assert spread(samples["b"]) == {"median_s": 2.0, "iqr_s": 0.0, "repeats": 20}


def test_rounds_end_where_time_does() -> None:
    runs = {"a": lambda: ("a", 1.0)}
    assert len(interleaved(Scripted(), runs, seconds=100, at_most=100, flush=True, most=30)["a"]) == 30
    assert len(interleaved(Scripted(), runs, seconds=0, at_most=-1, flush=True)["a"]) == 2


def test_short_calls_are_repeated_where_the_cache_is_warm() -> None:
    calls: list[int] = []

    class Counting(Scripted):
        def seconds(self, run: Callable[[], Any], calls_: int = 1, flush: bool = True) -> float:
            calls.append(calls_)
            return 10e-6

    interleaved(Counting(), {"a": lambda: None}, seconds=0, at_most=9, flush=False, fewest=2)
    assert calls == [1, 1, 1, 20, 20]


def test_spread_by_hand() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median_s": 3.0, "iqr_s": 2.0, "repeats": 5}


def test_the_device_is_idle_and_its_cache_flushed_before_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that Gpu makes, on a stand-in that has the names of torch.cuda and no others."""
    steps: list[str] = []
    cuda = mock.MagicMock(spec=torch.cuda)
    cuda.synchronize.side_effect = lambda: steps.append("synchronize")
    event = cuda.Event.return_value
    event.record.side_effect = lambda: steps.append("record")
    event.elapsed_time.return_value = 6.0  # milliseconds
    cuda.max_memory_allocated.return_value, cuda.memory_allocated.return_value = 700, 300
    cuda.get_device_capability.return_value = (9, 0)
    properties = cuda.get_device_properties.return_value
    properties.L2_cache_size, properties.total_memory, properties.name = 50 * 2**20, 80 * 2**30, "Made-up"
    monkeypatch.setattr(gpu_timing, "cuda", cuda)
    flush = mock.Mock()
    flush.zero_.side_effect = lambda: steps.append("flush")
    monkeypatch.setattr(gpu_timing.torch, "empty", lambda *_, **__: flush)
    monkeypatch.setattr(gpu_timing.torch._dynamo, "reset", lambda: steps.append("reset"))
    monkeypatch.setattr(gpu_timing, "smi", lambda query: query)

    device = gpu_timing.Gpu()
    assert device.seconds(lambda: steps.append("run"), calls=2) == 3e-3
    assert steps == ["flush", "synchronize", "record", "run", "run", "record"]
    assert device.peak_bytes(lambda: None) == 400
    steps.clear()
    replay = device.captured(lambda: steps.append("run") or "outputs", copies=2)
    assert steps == ["run"] * 5, "three times to warm up, and two copies in the graph"
    assert replay() == "outputs"
    cuda.CUDAGraph.return_value.replay.assert_called_once_with()
    device.clean()
    assert not device.is_lost()
    cuda.synchronize.side_effect = RuntimeError
    assert device.is_lost()
    facts = device.facts()
    assert (facts["compute capability"], facts["memory"], facts["L2 cache"]) == ("9.0", "80 GiB", "50 MiB")
    assert "clocks.sm" in device.clocks()
    assert device.compiled(abs) is not abs


def test_without_nvidia_smi_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_timing.smi("driver_version") == "not read (FileNotFoundError)"
