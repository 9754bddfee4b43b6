"""A run that is resumed by other processes, or on other clips: its steps have the same pairs, or it is refused."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launching import launched
from rich.console import Console
from several_processes import whole_run_config

from emcl_train.config import DataConfig
from emcl_train.data.clips import Clip, Split
from emcl_train.data.loader import training_loader
from emcl_train.errors import UserError
from emcl_train.runs import contents
from emcl_train.runs import state as checkpoint
from emcl_train.runs.code import OF_THE_START
from emcl_train.runs.records import MEASURED
from emcl_train.training import trainer
from emcl_train.training.going_on import Steps, require_same_sharding, require_same_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def split_of(clips: int, captions: int = 2) -> Split:
    names = [f"v{i}" for i in range(clips)]
    return Split(
        "train",
        clips=tuple(Clip(name, Path(f"{name}.mp4")) for name in names),
        captions=tuple(f"caption {j} of {name}" for name in names for j in range(captions)),
        caption_clip=tuple(i for i in range(clips) for _ in range(captions)),
    )


class Tokens:
    def encode(self, captions):
        return torch.zeros(len(captions), 4, dtype=torch.int64), torch.ones(len(captions), 4, dtype=torch.int64)


# ---- the order of an epoch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_captions", ["one", "all"])
@pytest.mark.parametrize(("processes", "start"), [(1, 2), (2, 2), (4, 1), (8, 3)])
def test_processes_share_the_very_batches_of_one(train_captions, processes, start):
    config = DataConfig(train_captions=train_captions)

    def batches(rank, world, start_batch):
        loader = training_loader(
            split_of(40), Tokens(), config, 8, seed=3, epoch=1, start_batch=start_batch, rank=rank, world=world
        )
        return list(loader.batch_sampler)

    parts = [batches(rank, processes, start) for rank in range(processes)]
    together = [[pair for part in step for pair in part] for step in zip(*parts, strict=True)]
    assert together == batches(0, 1, 0)[start:]


# ---- what is refused -------------------------------------------------------------------------------------------------


def check(saved: Steps, now: Steps, batch_size: int = 8, chunks: int = 1) -> None:
    require_same_steps(Path("runs/x"), asdict(saved), now, batch_size=batch_size, chunks=chunks)


@pytest.mark.parametrize(
    ("before", "after", "batch_size", "chunks", "way_out"),
    [
        ((6, 3), (8, 1), 8, 1, "Go on with 3 or 6 processes"),
        ((8, 1), (6, 3), 8, 1, "Go on with 1, 2, 4 or 8 processes"),
        ((7, 7), (8, 2), 8, 1, "Go on with 7 processes"),
        ((129, 3), (130, 2), 130, 1, "Go on with 3, 43 or 129 processes"),
        ((8, 2), (6, 3), 8, 4, "Go on with 1 or 2 processes"),
        ((40, 1), (39, 3), 64, 20, "Go on with 1 or 2 processes"),
        ((8, 1), (6, 3), 8, 8, "Go on with 1 process,"),
    ],
)
def test_other_pairs_a_step_are_refused_with_what_would_do(before, after, batch_size, chunks, way_out):
    saved, now = (Steps.of(split_of(40), *steps) for steps in (before, after))
    if batch_size == 130:
        saved, now = (Steps.of(split_of(200), *steps) for steps in (before, after))
    with pytest.raises(UserError, match=rf"takes {before[0]} pairs .* would go on with {after[0]} .*{way_out}"):
        check(saved, now, batch_size, chunks)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_as_many_pairs_a_step_go_on(processes):
    check(Steps.of(split_of(40), 8, 1), Steps.of(split_of(40), 8, processes))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (split_of(39), "on 40 clips and would go on with 39:"),
        (replace(split_of(40), clips=split_of(40).clips[::-1]), "which are others or in another order"),
        (split_of(40, captions=3), "which are others or in another order"),
    ],
    ids=["a clip less", "another order", "more captions"],
)
def test_other_clips_are_refused(other, said):
    with pytest.raises(UserError, match=said):
        check(Steps.of(split_of(40), 8, 1), Steps.of(other, 8, 1))


def test_a_state_without_the_record_goes_on():
    require_same_steps(Path("runs/x"), {}, Steps.of(split_of(40), 6, 3), batch_size=8, chunks=1)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_state_of_sharded_weights_goes_into_sharded_ones_only(sharded):
    states = {False: {"state": {0: {}, 1: {}}}, True: {"state": {"head.weight": {}}}}
    require_same_sharding(Path("runs/x"), states[sharded], sharded=sharded)
    require_same_sharding(Path("runs/x"), {"state": {}}, sharded=sharded)
    with pytest.raises(UserError, match="start the processes as then"):
        require_same_sharding(Path("runs/x"), states[not sharded], sharded=sharded)


def test_random_states_of_more_gpus_than_there_are(monkeypatch):
    restored = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state, device)))
    checkpoint.restore_random_states(checkpoint.random_states() | {"cuda": ["first", "second"]})
    assert restored == [("first", 0)]


# ---- a run -----------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def metrics(out):
    return [json.loads(line) for line in (out / contents.METRICS).read_text().splitlines()]


@pytest.fixture
def stopped(tiny_whole_run, tmp_path, monkeypatch):
    """The tiny run, ended in its second epoch; its last state is of step 6, the second of that epoch."""
    config = whole_run_config(tiny_whole_run[0], tmp_path)
    step = trainer.Run.training_step

    def stopping(run, batch):
        if run.step == 7:
            raise Stopped
        return step(run, batch)

    monkeypatch.setattr(trainer, "write_report", lambda out: out)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "training_step", stopping)
        with pytest.raises(Stopped):
            trainer.train(config, Console(file=io.StringIO()))
    return replace(config, resume=True)


def change_steps(out, **changes):
    state = checkpoint.load_state(out)
    state.steps = state.steps | changes if changes else {}
    checkpoint.save_state(out, state)


@pytest.mark.slow
def test_a_run_of_other_processes_is_refused_before_anything_is_written(stopped):
    change_steps(stopped.out, pairs=6, processes=3)
    before = {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"takes 6 pairs a step \(3 processes, .* with 8 \(1 process\): pairs of its"):
        trainer.train(stopped, Console(file=io.StringIO()))
    assert {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_with_an_older_state_goes_on_as_before(stopped, tiny_whole_run):
    change_steps(stopped.out)
    trainer.train(stopped, Console(file=io.StringIO()))
    # The whole run was made by two threads, which round otherwise than one.
    losses, expected = (
        [line["loss"] for line in metrics(out) if "loss" in line] for out in (stopped.out, tiny_whole_run[1])
    )
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_go_on_with_the_run_of_one(stopped, tiny_whole_run):
    before = contents.load_environment(stopped.out)
    script = Path(__file__).parents[1] / "resumed_processes.py"
    done = launched(script, tiny_whole_run[0], stopped.out)
    assert done.returncode == 0, done.stderr

    lines, expected = metrics(stopped.out), metrics(tiny_whole_run[1])
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        for name in line.keys() - {*MEASURED, "kind", "split"}:
            assert line[name] == pytest.approx(other[name], rel=1e-5), name

    record = contents.load_environment(stopped.out)
    assert (record["processes"], record["pairs_per_step"]) == (2, 8)
    assert record["resumed"] == [{"step": 6, "processes": [1, 2]}]
    assert [record[name] for name in OF_THE_START] == [before[name] for name in OF_THE_START]
