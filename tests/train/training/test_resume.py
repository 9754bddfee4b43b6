"""A run that is killed at any moment and resumed ends as one that was left alone, bit for bit."""

import io
import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
from rich.console import Console
from safetensors.torch import load_file
from tiny_run import tiny_run

from emcl_train.runs import contents
from emcl_train.runs import files as run_files
from emcl_train.runs import state as checkpoint
from emcl_train.runs.records import MEASURED
from emcl_train.training import trainer


def run(config):
    trainer.train(config, Console(file=io.StringIO()))


def record(out):
    """Everything that must not depend on whether the run was interrupted."""
    lines = [json.loads(line) for line in (out / contents.METRICS).read_text().splitlines()]
    for line in lines:
        for name in MEASURED:
            line.pop(name, None)
    weights = {name: value.numpy().tobytes() for name, value in load_file(out / contents.WEIGHTS).items()}
    return lines, weights, json.loads((out / "results.json").read_text())


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """The report reads what is compared here, and its plots take longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda out: out)
        yield


@pytest.fixture(scope="module")
def left_alone(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "left_alone"
    run(tiny_run(root, out))
    return record(out)


def no_file_is_half_written(out):
    """Read every file of a run folder that carries its real name."""
    for path in out.rglob("[!.]*"):
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".jsonl":
                text = path.read_text()
                assert not text or text.endswith("\n")
                assert all(json.loads(line) for line in text.splitlines())
            case ".safetensors":
                load_file(path)
            case ".pt":
                checkpoint.load_state(out)


def run_until_killed(config, owner, name, is_moment):
    """Train in this process, and end it by SIGKILL in the middle of the call that `is_moment` picks."""
    original = getattr(owner, name)
    calls = 0

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if is_moment(calls, *args):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, call)
    run(config)


def before(name, number):
    """Before the file of this name takes its place for this time."""
    seen = 0

    def is_moment(_, source, target):
        nonlocal seen
        seen += str(target).endswith(name)
        return seen == number

    return is_moment


MOMENTS = {
    "before the first state": (run_files, "append_line", lambda call, *_: call == 2),
    "between two states": (run_files, "append_line", lambda call, *_: call == 8),
    "while a state is written in an epoch": (os, "replace", before(contents.STATE, 3)),
    "before the state of the epoch": (os, "replace", before(contents.STATE, 2)),
    "after the state of the first epoch, before its weights": (os, "replace", before(contents.WEIGHTS, 1)),
    "before the results": (trainer, "evaluate_run", lambda *_: True),
}


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_is_as_left_alone(moment, root, left_alone, tmp_path):
    config = tiny_run(root, tmp_path / "run")
    child = multiprocessing.get_context("fork").Process(target=run_until_killed, args=(config, *MOMENTS[moment]))
    child.start()
    child.join(timeout=120)
    assert child.exitcode == -signal.SIGKILL
    no_file_is_half_written(config.out)
    run(replace(config, resume=True))
    lines, weights, results = record(config.out)
    assert lines == left_alone[0]
    assert weights == left_alone[1]
    assert results == left_alone[2]
    assert not list(config.out.rglob("*.partial"))
