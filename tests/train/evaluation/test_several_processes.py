"""Commands that several processes were started for: evaluation shares the work, the others refuse in one line."""

import json
import os
import shutil
import signal
from pathlib import Path

import ending_processes
import pytest
import torch.distributed as dist
from launching import launched
from safetensors.torch import load_file

from emcl_train import cli
from emcl_train.commands import COMMANDS
from emcl_train.errors import UserError
from emcl_train.processes import (
    agreed,
    first_then_others,
    of_first,
    own_rows,
    own_share,
    passed_to_first,
    require_seen,
    rounds_of,
)
from emcl_train.runs import machine

ROOT = Path(__file__).resolve().parents[3]
needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)
pytestmark = pytest.mark.usefixtures("one_thread")


def commanded(*arguments, processes=2):
    return launched("-m", "emcl_train", *arguments, processes=processes)


def errors_of(done):
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@needs_gloo
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_an_evaluation_and_the_figures_are_those_of_one(tiny_whole_run, tmp_path, capsys, processes):
    """Twelve clips in batches of five, which neither two nor three processes have equally many of."""
    run = tmp_path / "run"
    shutil.copytree(tiny_whole_run[1], run)
    asked = ["--batch-size", "5", "--em-block", "4"]
    assert cli.main(["eval", str(run), *asked, "--out", str(tmp_path / "alone")]) == 0
    table = capsys.readouterr().out

    done = commanded("eval", run, *asked, "--out", tmp_path / "together", processes=processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("together", "alone") == table  # once, and the same
    assert not errors_of(done)

    for name in ("results.json", "queries.json", "config.json"):
        one, other = (json.loads((tmp_path / out / name).read_text()) for out in ("alone", "together"))
        assert one == other, name
    one, other = (load_file(tmp_path / out / "embeddings.safetensors") for out in ("alone", "together"))
    assert one.keys() == other.keys()
    assert all(value.equal(other[name]) for name, value in one.items())
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {
        path.name for path in (tmp_path / "together").iterdir()
    }


@needs_gloo
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list a process's threads there")
@pytest.mark.parametrize("command", ["eval", "train"])
def test_no_thread_of_the_exchange_is_left_when_a_process_ends(tiny_whole_run, tmp_path, command):
    """One that lets go of a tensor while the interpreter ends aborts the process."""
    root, run = tiny_whole_run
    arguments = [root, tmp_path / "run"] if command == "train" else ["eval", run, "--out", tmp_path / "evaluation"]
    done = launched(ending_processes.__file__, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        names = (tmp_path / f"threads{rank}").read_text().split("\n")
        assert not [name for name in names if "gloo" in name], names


@needs_gloo
def test_what_ends_an_evaluation_is_said_once(tiny_whole_run, tmp_path):
    """In the first process, and in one that is not."""
    run = tmp_path / "run"
    shutil.copytree(tiny_whole_run[1], run)
    (tmp_path / "there").mkdir()
    done = commanded("eval", run, "--out", tmp_path / "there")
    assert done.returncode != 0
    assert len(errors_of(done)) == 1, done.stderr
    assert "there" in errors_of(done)[0]

    done = commanded("eval", tmp_path / "no-run")
    assert done.returncode != 0
    assert errors_of(done) == [
        f"error: {tmp_path / 'no-run'} is not a run folder: no such folder; pass the --out folder of `emcl-train train`"
    ]


ALONE = {
    "export": ["export", "run", "{out}", "--layout", "emcl"],
    "publish": ["publish", "run", "{out}"],
    "report": ["report", "run"],
    "refine": ["refine", "a.npy", "b.npy", "--out", "{out}"],
    "verify": ["verify", "run"],
    "search": ["search", "library", "a dog"],
    "serve": ["serve", "library"],
    "data shapes": ["data", "shapes", "{out}"],
    "data cache": ["data", "cache"],
    "completion": ["completion", "bash"],
}


def test_each_command_is_for_one_process_or_for_several():
    together = {"train", "resume", "eval", "index", "embed", "data doctor", "data compress"}
    assert {name for name, entry in COMMANDS.items() if entry.in_processes} == together
    assert set(ALONE) == set(COMMANDS) - together


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ALONE)
def test_a_command_for_one_process_refuses_several(monkeypatch, capsys, tmp_path, name, rank):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    arguments = [argument.format(out=tmp_path / "out") for argument in ALONE[name]]
    assert cli.main(arguments) == 1
    assert waited == [cli.FOR_THE_FIRST] * rank  # or a launcher would end the first before it has said it
    said = capsys.readouterr().err
    expected = f"error: `{name}` runs in one process, and 2 were started; start it without torchrun or another launcher"
    assert said.startswith(expected) if rank == 0 else said == ""
    assert not (tmp_path / "out").exists()


def test_a_signal_ends_the_wait_for_the_first(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("time.sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["data", "shapes", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == ""


@needs_gloo
def test_under_torchrun_it_is_one_line(tmp_path):
    done = commanded("data", "shapes", tmp_path / "out")
    assert done.returncode != 0
    assert [line.partition(";")[0] for line in errors_of(done)] == [
        "error: `data shapes` runs in one process, and 2 were started"
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "8"}, 1),  # which clusters set on their own
        ({"RANK": "0", "WORLD_SIZE": "8"}, 8),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 1),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 2),
        ({"RANK": "0", "WORLD_SIZE": "many"}, 1),
    ],
)
def test_how_many_processes_there_are(monkeypatch, variables, count):
    for name in (*machine.RANKS, *machine.COUNTS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.process_count() == count


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize(("count", "batch"), [(0, 4), (1, 4), (4, 4), (13, 4), (100, 7)])
def test_each_row_has_one_process_and_each_batch_is_whole(monkeypatch, world, count, batch):
    rows = []
    for rank in range(world):
        monkeypatch.setattr("emcl_train.processes.rank_and_world", lambda rank=rank: (rank, world))
        own = own_rows(count, batch)
        assert own.start % batch == 0 or not own
        assert own.stop % batch == 0 or own.stop == count or not own
        rows += own
        assert -(-len(own) // batch) <= rounds_of(count, batch)
    assert rows == list(range(count))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_each_piece_of_work_has_one_process_and_all_have_about_as_much(monkeypatch, world):
    work = list(enumerate([5, 1, 9, 9, 0, 3, 2, 7, 4]))
    shares = []
    for rank in range(world):
        monkeypatch.setattr("emcl_train.processes.rank_and_world", lambda rank=rank: (rank, world))
        shares.append(own_share(work, lambda piece: piece[1]))
    assert sorted(piece for share in shares for piece in share) == work
    assert all(share == sorted(share) for share in shares)
    loads = [sum(size for _, size in share) for share in shares]
    assert max(loads) - min(loads) <= 9


def test_a_folder_that_a_process_does_not_see_is_refused(monkeypatch, tmp_path):
    """As on two machines without a common disk: there is none, or one that another process has."""
    monkeypatch.setattr("emcl_train.processes.of_first", lambda work: b"of the first")
    with pytest.raises(UserError, match=r"does not see the .*small of the first process; choose a folder on a disk"):
        require_seen(tmp_path / "small")
    (tmp_path / ".writing.json").write_bytes(b"of an earlier run")
    with pytest.raises(UserError, match="does not see"):
        require_seen(tmp_path)
    (tmp_path / ".writing.json").write_bytes(b"of the first")
    require_seen(tmp_path)


def test_one_process_agrees_with_itself():
    assert agreed(lambda: 3) == first_then_others(lambda: 3) == of_first(lambda: 3) == 3
    assert list(passed_to_first(iter("abc"), 3)) == ["a", "b", "c"]
    with pytest.raises(UserError, match="no"):
        agreed(lambda: (_ for _ in ()).throw(UserError("no")))
