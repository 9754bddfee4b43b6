"""Which epoch is kept: the best by validation, and the last where a handful of clips would choose by chance."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_run import tiny_run

from emcl_train.config import RunConfig, TrainConfig
from emcl_train.data.clips import Clip, Split
from emcl_train.runs import contents
from emcl_train.runs import state as checkpoint
from emcl_train.runs.finished import epoch_of_weights
from emcl_train.runs.records import selecting_score, selection_of, weights_sentence
from emcl_train.training import selection as selecting
from emcl_train.training import trainer
from emcl_train.training.selection import Score, Selection

OLD_RUN = Path(__file__).parents[1] / "runs" / "old_run" / "run"
pytestmark = pytest.mark.usefixtures("one_thread")


def split(clips, name="val"):
    clips_of_it = tuple(Clip(str(clip), Path("clip.mp4")) for clip in range(clips))
    return Split(name, clips_of_it, captions=("a",) * clips, caption_clip=tuple(range(clips)))


def score(value, clips):
    return Score(value, f"R@1: text→video {value:.1f}", 100 / clips, {})


def taken(selection, values):
    """What is printed of each epoch; its weights are its number."""
    return [
        selection.take(epoch, score(value, selection.number), {"weight": torch.tensor(epoch)})
        for epoch, value in enumerate(values, start=1)
    ]


def test_with_enough_clips_the_first_of_the_best_epochs_is_kept():
    chosen = Selection.of(split(50), on_test=False)
    printed = taken(chosen, [10.0, 30.0, 30.0, 20.0])
    assert (chosen.best_epoch, chosen.best_score, chosen.weights["weight"]) == (2, 30.0, 2)
    assert printed[1] == "validation R@1: text→video 30.0 (chance 2.0)  best so far"
    assert ["best so far" in text for text in printed] == [True, True, False, False]
    assert chosen.warning() is None


def test_the_geometric_mean_of_three_recalls_can_choose(tmp_path):
    """R@1 would choose the second epoch."""
    chosen = Selection.of(split(50), on_test=False)
    recalls = [{"R@1": 10.0, "R@5": 40.0, "R@10": 60.0}, {"R@1": 11.0, "R@5": 30.0, "R@10": 40.0}]
    for epoch, found in enumerate(recalls, start=1):
        chosen.take(epoch, score(selecting_score(found, "geometric-mean"), 50), {"weight": torch.tensor(epoch)})
    assert chosen.best_epoch == 1

    records = [
        {"kind": "validation", "epoch": epoch, "split": "val", "text_to_video": found, "selects_by": "geometric-mean"}
        for epoch, found in enumerate(recalls, start=1)
    ]
    (tmp_path / contents.METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    said = "validation geometric mean of text→video R@1, R@5 and R@10: epoch 1"
    assert selection_of(tmp_path) == said
    assert weights_sentence(said) == f"Weights chosen by {said}."


@pytest.mark.parametrize(
    ("every", "steps_per_epoch", "validated"),
    [(None, 3, [3, 6, 9, 12, 13]), (5, 3, [6, 12, 13]), (5, 5, [5, 10, 13]), (100, 3, [13]), (1, 4, [4, 8, 12, 13])],
)
def test_a_validation_may_follow_every_so_many_steps(every, steps_per_epoch, validated):
    def validates(step):
        run = SimpleNamespace(config=config, step=step, steps_per_epoch=steps_per_epoch, total_steps=13)
        return trainer.Run.validates(run)

    config = RunConfig(train=TrainConfig(validate_every=every))
    ends = [*range(steps_per_epoch, 13, steps_per_epoch), 13]
    assert [step for step in ends if validates(step)] == validated


@pytest.mark.parametrize("clips", [1, 49])
def test_with_few_clips_the_last_epoch_is_kept_and_chance_stands_beside_each_figure(clips):
    kept = Selection.of(split(clips), on_test=False)
    printed = taken(kept, [100.0, 0.0])
    assert (kept.best_epoch, kept.weights["weight"]) == (2, 2)
    assert not any("best" in text for text in printed)
    assert f"(chance {100 / clips:.1f} of {clips} clip{'s' if clips > 1 else ''})" in printed[0]

    warning = kept.warning()
    assert f"has {clips} clip{'s' if clips > 1 else ''}, fewer than 50, and one of them is" in warning
    assert "the weights of the last one are kept. Name 50 or more validation clips in the annotations" in warning


def test_whoever_asks_for_the_test_split_gets_it_whatever_its_size():
    chosen = Selection.of(split(8, "test"), on_test=True)
    printed = taken(chosen, [50.0, 20.0])
    assert chosen.best_epoch == 1
    assert chosen.warning() is None
    assert printed[0].startswith("TEST SET (which makes the figures too high) R@1: text→video 50.0")


def test_of_questions_each_one_counts_and_not_each_clip():
    asked = Split("val", (Clip("0", Path("clip.mp4")),), captions=("a",) * 50, caption_clip=(0,) * 50)
    assert Selection.of(asked, on_test=False, unit="question").chooses
    few = Selection.of(replace(asked, captions=("a",) * 4, caption_clip=(0,) * 4), on_test=False, unit="question")
    assert "has 4 questions, fewer than 50, and one of them is 25 points of accuracy" in few.warning()


@pytest.fixture
def falling(monkeypatch):
    """The first epoch has the best validation, whatever the weights are; the test split is evaluated as ever."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)
    real, calls = trainer.evaluate, []

    def evaluate(*arguments):
        calls.append(1)
        found = real(*arguments)[0]
        return [replace(found, text_to_video=found.text_to_video | {"R@1": 90.0 / len(calls)})]

    monkeypatch.setattr(trainer, "evaluate", evaluate)


def trained(config):
    console = Console(file=io.StringIO(), width=300)
    trainer.train(config, console)
    return console.file.getvalue()


def outcome(out):
    """The epoch of the weights by the file, the state and the results; the last validation."""
    selection = json.loads((out / "results.json").read_text())["selection"]
    records = [json.loads(text) for text in (out / contents.METRICS).read_text().splitlines()]
    return epoch_of_weights(out), checkpoint.load_state(out).best_epoch, selection, records[-1]


@pytest.mark.usefixtures("falling")
def test_a_run_on_few_validation_clips_ends_with_the_last_epoch(tmp_path):
    config = tiny_run(tmp_path / "set", tmp_path / "run")
    printed = trained(config)
    epoch, best, selection, record = outcome(config.out)
    assert (epoch, best) == (2, 2)
    assert selection == "the last epoch, since 8 validation clips are too few to choose by: epoch 2"
    assert (record["clips"], record["selects"]) == (8, False)
    assert f"Weights of {selection}." in printed
    weights = load_file(config.out / contents.WEIGHTS)
    state = checkpoint.load_state(config.out)
    assert all(torch.equal(weights[name], value) for name, value in state.model.items())


@pytest.mark.usefixtures("falling")
def test_a_run_on_enough_validation_clips_ends_with_the_best_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(selecting, "FEWEST_CLIPS", 8)
    config = tiny_run(tmp_path / "set", tmp_path / "run")
    printed = trained(config)
    epoch, best, selection, record = outcome(config.out)
    assert (epoch, best, record["selects"]) == (1, 1, True)
    assert selection == "validation text→video R@1: epoch 1"
    assert "Weights chosen by validation text→video R@1: epoch 1." in printed
    assert "warning: the validation split" not in printed


class Stopped(Exception):
    """In place of a kill."""


@pytest.mark.usefixtures("falling")
@pytest.mark.parametrize("began", [1, 1000])
def test_a_run_goes_on_by_the_rule_that_it_began_with(tmp_path, monkeypatch, began):
    """The number of clips that are enough changes in between, as it did with this version: one was enough before."""
    monkeypatch.setattr(selecting, "FEWEST_CLIPS", began)
    real, saved = checkpoint.save_state, []

    def save(run_dir, state):
        real(run_dir, state)
        saved.append(state.step)
        if state.step == 4:
            raise Stopped

    config = tiny_run(tmp_path / "set", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", save)
        with pytest.raises(Stopped):
            trained(config)
    monkeypatch.setattr(selecting, "FEWEST_CLIPS", 1001 - began)
    trained(replace(config, resume=True))
    epoch, best, selection, _ = outcome(config.out)
    assert (epoch, best) == ((1, 1) if began == 1 else (2, 2))
    assert selection.startswith("validation text→video R@1" if began == 1 else "the last epoch, since 8")


def test_a_state_of_an_earlier_version_chose():
    assert checkpoint.load_state(OLD_RUN).chooses


def test_records_of_accuracies_say_it_too(tmp_path):
    def write(lines):
        (tmp_path / contents.METRICS).write_text("".join(json.dumps(record) + "\n" for record in lines))
        return selection_of(tmp_path)

    lines = [
        {"kind": "validation", "epoch": epoch, "split": "test", "accuracies": {"top1_of_kept": value}}
        for epoch, value in ((1, 20.0), (2, 30.0), (3, 30.0))
    ]
    assert write(lines) == "TEST SET (which makes the figures too high) accuracy over the kept questions: epoch 2"
    lines[-1] |= {"selects": False, "questions": 4}
    assert write(lines) == "the last epoch, since 4 validation questions are too few to choose by: epoch 3"


@pytest.mark.parametrize(
    ("records", "up_to", "selection"),
    [
        ([(1, 50.0), (2, 20.0)], None, "validation text→video R@1: epoch 1"),
        (
            [(1, 50.0, 1), (2, 20.0, 1)],
            None,
            "the last epoch, since 1 validation clip is too few to choose by: epoch 2",
        ),
        ([(1, 50.0, 8), (2, 20.0, 8)], 1, "the last epoch, since 8 validation clips are too few to choose by: epoch 1"),
    ],
)
def test_records_say_how_the_weights_came_about(tmp_path, records, up_to, selection):
    lines = [
        {"kind": "validation", "epoch": epoch, "split": "val", "text_to_video": {"R@1": score}}
        | ({"clips": few[0], "selects": False} if few else {})
        for epoch, score, *few in records
    ]
    (tmp_path / contents.METRICS).write_text("".join(json.dumps(record) + "\n" for record in lines))
    assert selection_of(tmp_path, up_to=up_to) == selection
    start = "Weights of the last" if "last" in selection else "Weights chosen by validation"
    assert weights_sentence(selection).startswith(start)
