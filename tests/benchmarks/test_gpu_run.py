"""tests/run_on_gpu.py on made-up tests: none hides another, whatever it does to its process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_on_gpu as run
import torch
from run_on_gpu import run_watched

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

MADE_UP = """
import os
import pytest

def test_first(backend): assert backend == "made-up"
def test_wrong(): assert 1 == 2
def test_crash(): os.kill(os.getpid(), 11)
@pytest.mark.short
def test_between(): pass
def test_skipped(): pytest.skip("no second device")
def test_last(): pass
"""

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--backend")

def pytest_configure(config):
    config.addinivalue_line("markers", "short: as in pyproject.toml")

def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", [metafunc.config.getoption("--backend")])
"""


def job(tmp_path: Path, content: str, shards: tuple[int, int] = (0, 1)) -> run.Job:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    file = tmp_path / "test_made_up.py"
    file.write_text(content)
    return run.Job("made-up", file, *shards, tmp_path)


def outcomes(done: run.Job) -> dict[str, str]:
    return {test.rpartition("::test_")[2]: outcome for test, (outcome, _) in done.outcomes.items()}


def test_a_crash_hides_no_other_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run.run_job(job(tmp_path, MADE_UP), "cpu", threads=1, silence=300, arguments=[])
    assert outcomes(done) == {
        "first[made-up]": "passed",
        "wrong": "failed",
        "crash": "failed",
        "between": "passed",
        "skipped": "skipped",
        "last": "passed",
    }
    reasons = {test.rpartition("::test_")[2]: why for test, (_, why) in done.outcomes.items()}
    assert "assert 1 == 2" in reasons["wrong"]
    assert reasons["crash"] == "the process ended with -11"
    assert not run.report([done])
    printed = capsys.readouterr().out
    assert "FAILED [made-up] test_made_up.py::test_crash: the process ended with -11" in printed
    assert "skipped 1: Skipped: no second device" in printed
    assert "3 passed, 2 failed, 1 skipped" in printed


def test_a_hang_and_a_lost_context_hide_no_other_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(*tests: tuple[str, str | None]) -> str:
        found = []
        for test, outcome in tests:
            found.append({"start": test})
            if outcome:
                found.append({"end": test, "outcome": outcome, "reason": "it says"})
        return "".join(json.dumps(line) + "\n" for line in found)

    rounds = iter(
        [
            (lines(("a", "passed"), ("hang", None)), None),
            (lines(("loses", "failed")), run.LOST),
            (lines(("last", "passed")), 1),
        ]
    )

    def run_watched(command: list[str], progress: Path, silence: float, **_: object) -> int | None:
        text, code = next(rounds)
        with progress.open("a") as file:
            file.write(text)
        return code

    monkeypatch.setattr(run, "run_watched", run_watched)
    done = run.run_job(job(tmp_path, ""), "cpu", 1, 12, [])
    assert done.outcomes == {
        "a": ("passed", "it says"),
        "hang": ("failed", "nothing for 12 s"),
        "loses": ("failed", "it says"),
        "last": ("passed", "it says"),
    }
    assert next(rounds, None) is None


def test_shards_share_the_tests_of_a_file(tmp_path: Path) -> None:
    content = "import pytest\n@pytest.mark.parametrize('i', range(5))\ndef test_each(i): pass\n"
    parts = [outcomes(run.run_job(job(tmp_path, content, (i, 2)), "cpu", 1, 300, [])) for i in range(2)]
    assert [len(part) for part in parts] == [3, 2]
    assert not parts[0].keys() & parts[1].keys()


def test_a_file_that_cannot_be_imported_is_a_failure(tmp_path: Path) -> None:
    done = run.run_job(job(tmp_path, "import nothing_of_that_name"), "cpu", 1, 300, [])
    assert "before any test" in done.outcomes[done.name][1]


def test_the_real_tests_run_on_the_cpu(tmp_path: Path) -> None:
    made = run.Job("reference", run.TESTS / "test_moments.py", 0, 1, tmp_path)
    done = run.run_job(made, "cpu", 1, 300, ["-k", "symmetric or (values and float16)"])
    assert set(outcomes(done).values()) == {"passed"}, done.outcomes
    # Four dtypes of the first, two of the second in every shape but those for a GPU, and no test without a backend.
    assert len(done.outcomes) == 4 + 2 * 12


def test_every_file_that_runs_over_backends_has_its_jobs() -> None:
    files = {file.stem for file in run.files_with_backends()}
    assert {"test_moments", "test_fit", "test_reconstruct", "test_project", "test_pooled", "test_ops"} <= files
    assert "test_plan" not in files


def test_a_backend_that_is_not_here_is_one_failure(tmp_path: Path) -> None:
    made = run.Job("triton", run.TESTS / "test_ops.py", 0, 1, tmp_path)
    done = run.run_job(made, "cpu", 1, 300, ["-k", "available or second or nan"])
    assert outcomes(done).pop("backend_is_available[triton]") == "failed"
    assert [*outcomes(done).values()].count("skipped") == len(done.outcomes) - 1 > 0


def test_the_summary_is_written_as_jobs_end(tmp_path: Path) -> None:
    first, second = job(tmp_path, ""), job(tmp_path, "")
    second.backend = "another"
    first.outcomes = {"a": ("passed", ""), "b": ("failed", "it says")}
    first.ended = True
    run.write_summary(tmp_path / "summary.json", [first, second])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {
        "made-up": {"a": {"outcome": "passed", "reason": ""}, "b": {"outcome": "failed", "reason": "it says"}},
        "another": {},
    }


def test_what_a_running_job_has_done_is_in_summary_and_log(tmp_path: Path) -> None:
    cut, done, new = job(tmp_path, ""), job(tmp_path, ""), job(tmp_path, "")
    done.backend, new.backend = "done", "new"
    done.ended = True
    done.outcomes = {"a": ("passed", "")}
    done.log.write_text("1 passed")
    lines = [{"start": "a"}, {"end": "a", "outcome": "failed", "reason": "it says"}, {"start": "b"}]
    # The last line is being written.
    cut.progress.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"end": "b", "outc')
    cut.log.write_text("assert 1 == 2")

    run.write_summary(tmp_path / "summary.json", [done, cut, new])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["made-up"]["a"] == {"outcome": "failed", "reason": "it says"}
    assert summary["made-up"]["b"]["outcome"] == "unfinished"
    assert summary["new"] == {}
    run.write_log(tmp_path / "gpu-tests.log", [done, cut, new])
    text = (tmp_path / "gpu-tests.log").read_text()
    assert text == (
        "==== made-up test_made_up, which had not ended when this was written\nassert 1 == 2\n"
        "==== done test_made_up\n1 passed\n"
    )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of writing: what was there before is still there."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run.write_whole(tmp_path / "summary.json", "before")
    monkeypatch.setattr(run.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_whole(tmp_path / "summary.json", "after")
    assert (tmp_path / "summary.json").read_text() == "before"


KILLED = """
import time
import pytest

@pytest.mark.short
def test_fails(backend: str): assert backend == "nothing"
@pytest.mark.short
def test_hangs(backend: str): time.sleep(60)
"""


def test_a_run_that_is_killed_leaves_what_it_had(tmp_path: Path) -> None:
    job(tmp_path, KILLED)
    script = (
        f"import sys, run_on_gpu as run; run.TESTS = run.Path({str(tmp_path)!r}); run.WRITTEN_EVERY = 0.2\n"
        "sys.exit(run.main())"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", script, "--device", "cpu", "--backends", "made-up", "--short"]
    out, summary = tmp_path / "out", tmp_path / "summary.json"
    process = subprocess.Popen([*command, "--out", out, "--summary", summary], env=environment)
    began = time.monotonic()
    while not summary.exists() or "test_hangs" not in summary.read_text():
        assert process.poll() is None
        assert time.monotonic() - began < 120
        time.sleep(0.1)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    process.kill()
    for child in children.split():
        os.kill(int(child), 9)
    process.wait()

    tests = json.loads(summary.read_text())["made-up"]
    found = {test.rpartition("::test_")[2]: outcome["outcome"] for test, outcome in tests.items()}
    assert found == {"fails[made-up]": "failed", "hangs[made-up]": "unfinished"}
    assert "==== made-up test_made_up, which had not ended" in (out / "gpu-tests.log").read_text()


def test_files_by_name() -> None:
    assert [file.stem for file in run.selected("fit,test_moments")] == ["test_fit", "test_moments"]
    assert run.selected(None) == run.files_with_backends()
    with pytest.raises(SystemExit, match="--files names test_nothing; there are "):
        run.selected("nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "run_on_gpu.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no GPU tests: torch {torch.__version__} sees no CUDA device\n"
    assert not (tmp_path / "out").exists()


BARE = """
import sys
sys.modules.update(dict.fromkeys(["beartype", "tyro", "av", "hypothesis", "transformers", "accelerate"]))
import pytest
raise SystemExit(pytest.main(sys.argv[1:]))
"""


def test_kernel_tests_need_no_more_than_a_gpu_machine_has() -> None:
    """Collected, for that imports everything, and one of them run."""
    files = [str(file) for file in run.files_with_backends()]
    for arguments, expected in (
        ([*files, "--device", "cuda", "--collect-only"], "[cuda"),
        ([str(run.TESTS / "test_fit.py"), "--backend", "native", "-k", "by_hand"], "2 passed"),
    ):
        command = [sys.executable, "-c", BARE, "-q", "-p", "no:cacheprovider", *arguments]
        environment = ENVIRONMENT | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        assert expected in done.stdout


def test_a_command_that_stays_silent_is_killed_with_its_children(tmp_path: Path) -> None:
    progress, child = tmp_path / "progress", tmp_path / "child"
    script = f"sleep 60 & echo $! > {child}; for i in 1 2 3; do echo $i >> {progress}; sleep 0.4; done; wait"
    began = time.monotonic()
    assert run_watched(["sh", "-c", script], progress, silence=5.0) is None
    assert time.monotonic() - began > 5
    assert progress.read_text() == "1\n2\n3\n"
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    while state.exists() and state.read_text().split()[2] not in "ZX":  # a kill takes a moment
        assert time.monotonic() - began < 300
        time.sleep(0.1)


def test_a_command_that_ends_gives_its_exit_code(tmp_path: Path) -> None:
    assert run_watched(["sh", "-c", "exit 3"], tmp_path / "none", silence=60) == 3
