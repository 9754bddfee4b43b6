"""benchmarks/gpu_hour.py: its parts on the CPU, with the emulator and the interpreter; limits, kills, and going on."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import gpu
import gpu_hour
import pytest
from gpu_case import Case
from gpu_cases import CASES
from gpu_hour import Hour, Part, Step

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(ROOT / "benchmarks" / "gpu_hour.py")]
PATIENCE = 1200.0


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def part(name: str, *steps: Step) -> Part:
    return Part(name, "made up", list(steps))


def index(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "index.json").read_text())["parts"])


# ---- made-up parts ---------------------------------------------------------------------------------------------------


def test_a_step_that_runs_past_its_limit_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """Also what is in a process group of its own, as the tests' processes are."""
    child = tmp_path / "child"
    starts = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
        f"open({str(child)!r}, 'w').write(str(p.pid)); print('before', flush=True); time.sleep(60)"
    )
    hour = Hour(tmp_path, "made up", True)
    hour.run(part("slow", Step("hangs", python(starts), 3.0), Step("after", python("print('after')"), 30.0)), 60)

    entry = index(tmp_path)["slow"]
    hangs, after = entry["steps"]
    assert entry["state"] == "cut"
    assert (hangs["state"], hangs["rc"], hangs["reason"]) == ("cut", None, "ran past its limit of 3 s")
    assert (after["state"], after["rc"]) == ("ended", 0), "what follows runs all the same"
    text = (tmp_path / "slow.txt").read_text()
    assert text.count("#### ") == 2
    assert "\nbefore\n" in text
    assert text.endswith("\nafter\n")
    assert entry["files"] == ["child", "slow.txt"]
    assert has_ended(int(child.read_text()))


def has_ended(pid: int) -> bool:
    began = time.monotonic()
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
        if time.monotonic() - began > PATIENCE:
            return False
        time.sleep(0.05)
    return True


def test_exit_codes_and_reasons_are_in_the_index(tmp_path: Path) -> None:
    missing = Step("tool", ["no-such-tool"], 9.0, skip="no-such-tool is not installed")
    hour = Hour(tmp_path, "made up", True, tmp_path / "all.zip")
    parts = [part("fails", Step("fails", python("raise SystemExit(3)"), 9.0), missing), part("skipped", missing)]
    for each in parts:
        hour.run(each, 60)

    found = index(tmp_path)
    assert [found[name]["state"] for name in ("fails", "skipped")] == ["ended", "skipped"]
    assert found["fails"]["steps"][0]["rc"] == 3
    assert found["skipped"]["steps"] == [
        {"name": "tool", "state": "skipped", "reason": "no-such-tool is not installed"}
    ]
    assert not hour.is_well(parts)
    assert hour.is_well(parts[1:])
    assert "fails: 3, tool: no-such-tool is not installed" in hour.summary(parts)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.namelist() == ["fails.txt", "index.json", "skipped.txt"]
        assert json.loads(archive.read("index.json"))["parts"] == found


def test_a_program_that_cannot_be_started_is_no_end_of_the_hour(tmp_path: Path) -> None:
    hour = Hour(tmp_path, "made up", True)
    hour.run(part("broken", Step("broken", [str(tmp_path / "nothing")], 9.0)), 60)
    step = index(tmp_path)["broken"]["steps"][0]
    assert (step["state"], step["rc"]) == ("ended", 127)
    assert "No such file" in (tmp_path / "broken.txt").read_text()


ENDED = """
import sys, gpu_hour
from gpu_hour import Part, Step
sleeps = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
gpu_hour.look = lambda device: gpu_hour.Machine("cpu", ("cuda",), True, "made up")
gpu_hour.parts_of = lambda *_: [Part("long", "made up", [Step("sleeps", [sys.executable, "-c", sleeps], 60.0)])]
sys.exit(gpu_hour.main())
"""


def test_a_request_to_end_is_written_down_and_ends_what_runs(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    process = subprocess.Popen([sys.executable, "-c", ENDED, "--out", str(tmp_path)], env=environment)
    log = tmp_path / "long.txt"
    began = time.monotonic()
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert process.poll() is None
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    (step,) = index(tmp_path)["long"]["steps"]
    assert (index(tmp_path)["long"]["state"], step["state"]) == ("cut", "cut")
    assert has_ended(int(log.read_text().splitlines()[1]))


def run_main(monkeypatch: pytest.MonkeyPatch, parts: list[Part], *arguments: object) -> int:
    machine = gpu_hour.Machine("cpu", ("cuda",), True, "made up")
    monkeypatch.setattr(gpu_hour, "look", lambda device: machine)
    monkeypatch.setattr(gpu_hour, "parts_of", lambda options, machine: parts)
    monkeypatch.setattr(gpu_hour.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["gpu_hour.py", *map(str, arguments)])
    return gpu_hour.main()


def test_a_second_call_goes_on_with_what_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = part("first", Step("first", python("print('ran')"), 30.0))
    second = part("second", Step("second", python("import time; time.sleep(60)"), 1.0))
    arguments = ("--out", tmp_path)
    assert run_main(monkeypatch, [first, second], *arguments) == 1
    began = index(tmp_path)["first"]["began"], (tmp_path / "first.txt").stat().st_mtime_ns

    capsys.readouterr()
    second = part("second", Step("second", python("print('now')"), 30.0))
    assert run_main(monkeypatch, [first, second], *arguments) == 0
    assert "first: has ended before; --again runs it again" in capsys.readouterr().out
    assert (index(tmp_path)["first"]["began"], (tmp_path / "first.txt").stat().st_mtime_ns) == began
    assert index(tmp_path)["second"]["state"] == "ended"

    assert run_main(monkeypatch, [first, second], *arguments, "--again", "--part", "first") == 0
    assert (tmp_path / "first.txt").stat().st_mtime_ns > began[1]


def test_no_part_begins_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [part("late", Step("late", python("print('ran')"), 100.0))]
    assert run_main(monkeypatch, parts, "--out", tmp_path, "--minutes", 0.1) == 1
    assert "late: not run, out of time" in capsys.readouterr().out
    assert not (tmp_path / "late.txt").exists()


def test_an_unknown_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="there is no part nothing; there are known"):
        run_main(monkeypatch, [part("known")], "--out", tmp_path, "--part", "nothing")


def test_every_part_has_less_than_ten_minutes(tmp_path: Path) -> None:
    """And every program that a part calls is there."""
    options = gpu_hour.argparse.Namespace(out=tmp_path, rehearse=False, commit="0123abc")
    parts = gpu_hour.parts_of(options, gpu_hour.Machine("cuda", gpu_hour.BACKENDS, True, ""))
    assert max(each.limit for each in parts) < 600
    names = [each.name for each in parts]
    assert names[:4] == ["load", "cases", "sanitizers", "short"]
    assert names[4:7] == ["tests-cuda", "tests-triton", "tests-torch"]
    (fit,) = (each for each in parts if each.name == "fit")
    assert [step.environment for step in fit.steps] == [{"EMCL_FIT": way} for way in gpu_hour.FITS]
    assert all(bool(step.skip) != gpu_hour.chooses_fit() for step in fit.steps)
    for step in (step for each in parts for step in each.steps):
        files = [Path(word) for word in step.command if word.endswith(".py")]
        assert all(file.is_file() for file in files), step.command


def test_every_case_is_in_one_of_the_records() -> None:
    found = [case.name for cases in (gpu_hour.MAIN_CASES, gpu_hour.MORE_CASES, "step-") for case in selected(cases)]
    assert sorted(found) == sorted(case.name for case in CASES)


def selected(pattern: str) -> tuple[Case, ...]:
    return gpu.selected(pattern, "cuda")


BARE = """
import sys
absent = ["beartype", "tyro", "av", "hypothesis", "transformers", "accelerate", "matplotlib", "onnx"]
sys.modules.update(dict.fromkeys(absent))
import gpu, gpu_hour, gpu_kernels, gpu_load, small_case, run_on_gpu
from gpu_cases import CASES
print(*{case.missing() for case in CASES if case.missing()})
"""


def test_the_programs_need_no_more_than_a_gpu_machine_has() -> None:
    folders = (ROOT, ROOT / "benchmarks", ROOT / "tests", ROOT / "tests" / "kernels")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "transformers is not installed\n"


@pytest.mark.skipif(gpu_hour.find("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run([*PROGRAM, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--rehearse runs the same commands on the CPU" in done.stdout
    assert not (tmp_path / "out").exists()


# ---- the real ones ---------------------------------------------------------------------------------------------------

TOOL = """#!/bin/sh
echo "$(basename "$0") was called with $*"
"""


def test_a_rehearsal_that_is_killed_in_the_middle_and_goes_on_to_its_end(tmp_path: Path) -> None:
    """The very commands of an hour on a GPU. Stand-ins for CUDA's tools print how they were called."""
    tools, out = tmp_path / "bin", tmp_path / "out"
    tools.mkdir()
    for name in ("compute-sanitizer", "ncu", "nvidia-smi"):
        (tools / name).write_text(TOOL)
        (tools / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "CUDA_HOME": str(tmp_path)}
    command = [*PROGRAM, "--rehearse", "--out", str(out), "--commit", "0123abc"]

    # Killed while the first record is being measured, with all that it had started.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    began = time.monotonic()
    while not measuring(out):
        assert process.poll() is None
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.05)
    started = list(gpu_hour.descendants(process.pid))
    for pid in (process.pid, *started):
        os.kill(pid, signal.SIGKILL)
    process.wait()

    before = index(out)
    assert before["record"]["state"] == "running"
    assert {entry["state"] for name, entry in before.items() if name != "record"} <= {"ended", "skipped"}
    (file,) = out.glob("*-none.json")
    assert json.loads(file.read_text())["running"]["case"] == "fit-512"
    assert "was cut off" in file.with_suffix(".md").read_text()

    # The same command goes on, and what had ended is not run again.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    after = index(out)
    assert {name: after[name] for name in before if name != "record"} == {
        name: entry for name, entry in before.items() if name != "record"
    }
    assert {entry["state"] for entry in after.values()} <= {"ended", "skipped"}
    record = json.loads(file.read_text())
    assert len(record["went_on"]) == 1
    assert "running" not in record
    ways = record["cases"][0]["ways"]
    for way in ("automatic", "cuda", "cuda + graph"):
        assert ways[way]["median_s"] > 0
        assert "tests" not in ways[way], "its tests had passed in the parts before"
    assert {file.name for file in out.iterdir()} >= {
        "load.txt", "cases.txt", "sanitizers.txt", "short.json", "short.log", "tests-cuda.json", "tests-triton.log",
        "kernels.txt", "counters.txt", "table.txt", "index.json",
    }  # fmt: skip
    assert (out / "sanitizers.txt").read_text().count("compute-sanitizer was called with --tool ") == 3
    assert "--once --backends cuda --cases fit-512" in (out / "counters.txt").read_text()
    assert "em_fit D=16 K=4, 9 iterations, cuda: " in (out / "kernels.txt").read_text()
    (step,) = (json.loads(each.read_text()) for each in out.glob("*-step.json"))
    assert step["cases"][0]["ways"]["cuda, EMCL off"]["median_s"] > 0


def measuring(out: Path) -> bool:
    """Whether the first record is at a way of a case."""
    files = list(out.glob("*-none.json")) if out.exists() else []
    return any((json.loads(file.read_text()).get("running") or {}).get("way") for file in files)
