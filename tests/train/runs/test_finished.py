"""Which runs are finished, and which are never begun anew."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_run import make_run
from rich.console import Console
from safetensors.torch import load_file
from tiny_evaluation import tiny_config, tiny_data, tiny_model

from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.evaluation.run import evaluate_run
from emcl_train.report.groups import load_group
from emcl_train.runs import contents
from emcl_train.runs.checksums import checksum_of
from emcl_train.runs.files import append_line, write_json_atomic
from emcl_train.runs.finished import (
    BEGUN,
    ENDS_WITH,
    is_finished,
    mark_finished,
    require_state,
    require_weights_of_the_end,
)
from emcl_train.runs.state import read_weights, save_tensors_atomic
from emcl_train.training.seeds import train_seeds
from emcl_train.training.start import open_run_folder
from emcl_train.training.trainer import Run

__all__ = ["tiny_data"]  # a fixture


@pytest.fixture
def run(tmp_path):
    """A run of a version without marks: six epochs of ten steps, with results."""
    config = make_run(tmp_path / "run")
    config.train.epochs = 6
    contents.save_config(tmp_path / "run", config)
    (tmp_path / "run" / "finished.json").unlink()
    change(tmp_path / "run" / "results.json", selection="validation text→video R@1: epoch 6")
    return tmp_path / "run"


def change(path, **changes):
    write_json_atomic(path, json.loads(path.read_text()) | changes)


def train_with(run, **settings):
    config = contents.load_config(run)
    contents.save_config(run, replace(config, train=replace(config.train, **settings)))


def cut(run, lines):
    path = run / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


# From before there were marks.


def test_a_run_from_before_is_finished_if_its_last_step_is_the_planned_one(run, capsys):
    assert is_finished(run)
    assert is_finished(run)
    (said,) = capsys.readouterr().err.splitlines()
    assert "run has files without checksums, as folders of earlier versions" in said
    load_group(run)
    train_with(run, max_steps=60)
    assert is_finished(run)


def test_an_older_run_that_goes_on_is_finished_until_it_has_its_mark(run):
    config = replace(contents.load_config(run), out=run, resume=True)
    training = SimpleNamespace(
        config=config,
        out=run,
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        console=Console(stderr=True),
        processes=1,
        batch_size=8,
        was_finished=is_finished(run),
    )
    write_json_atomic(run / "environment.json", Run.environment(training, None))
    assert is_finished(run)
    training.was_finished = False
    write_json_atomic(run / "environment.json", Run.environment(training, None))
    assert not is_finished(run)


UNFINISHED = {
    "an epoch is missing": lambda run: cut(run, 55),
    "steps of an epoch are missing": lambda run: cut(run, 63),
    "its last validation is missing": lambda run: cut(run, 65),
    "more epochs were planned": lambda run: train_with(run, epochs=7),
    "it has no validation": lambda run: cut(run, 10),
    "it has no metrics": lambda run: (run / "metrics.jsonl").unlink(),
    "it has no results": lambda run: (run / "results.json").unlink(),
    "its results are of an earlier epoch": lambda run: change(
        run / "results.json", selection="validation R@1: epoch 1"
    ),
    "it is of a version that marks its end": lambda run: change(
        run / "environment.json", **{ENDS_WITH: "finished.json"}
    ),
}


@pytest.mark.parametrize("make", UNFINISHED.values(), ids=UNFINISHED)
def test_other_runs_without_a_mark_are_not_finished_and_not_reported(run, make):
    assert is_finished(run)
    make(run)
    assert not is_finished(run)
    with pytest.raises(UserError, match=r"is not the folder of a finished run: .*(emcl-train resume|missing)"):
        load_group(run)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_mark_is_named(run, content):
    (run / "finished.json").write_text(content)
    with pytest.raises(UserError, match=r"finished\.json .*; remove it, and let"):
        is_finished(run)


# With a mark.


def test_the_mark_has_the_checksum_of_the_weights(run):
    (run / "model.safetensors").write_bytes(b"weights")
    mark_finished(run, epochs=6, steps=60)
    mark = json.loads((run / "finished.json").read_text())
    assert mark == {"epochs": 6, "steps": 60, "weights": checksum_of(run / "model.safetensors")}
    require_weights_of_the_end(run)
    (run / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or was replaced: it is not what the training"):
        require_weights_of_the_end(run)
    (run / "model.safetensors").unlink()  # to save space
    require_weights_of_the_end(run)


def test_of_seeds_all_must_be_finished_to_be_reported(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"seed-{seed}")
        change(tmp_path / f"seed-{seed}" / "environment.json", **{ENDS_WITH: "finished.json"})
    load_group(tmp_path)
    (tmp_path / "seed-1" / "finished.json").unlink()
    with pytest.raises(UserError, match=r"seed-1 is not the folder of a finished run: it has no finished\.json"):
        load_group(tmp_path)


def test_weights_that_were_replaced_stop_seeds_that_go_on(tmp_path):
    config = make_run(tmp_path / "s" / "seed-0")
    (tmp_path / "s" / "seed-0" / "model.safetensors").write_bytes(b"others")
    config.out, config.seeds, config.resume = tmp_path / "s", 1, True
    with pytest.raises(UserError, match="is damaged or was replaced"):
        train_seeds(config)


@pytest.mark.parametrize("noted", [True, False])
def test_weights_that_are_not_those_of_the_mark_are_not_read(run, noted):
    save_tensors_atomic(run / "model.safetensors", {"w": torch.arange(3.0)})
    mark_finished(run, epochs=6, steps=60)
    assert read_weights(run)["w"].tolist() == [0, 1, 2]

    # Whole weights of another training, with a checksum or, as of an earlier version, without one.
    save_tensors_atomic(run / "model.safetensors", {"w": torch.arange(4.0)})
    if not noted:
        (run / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"^[^(]*model\.safetensors is damaged or was replaced: .* as finished\.json"):
        read_weights(run)


# Going on without a state.


def test_a_finished_run_without_its_state_is_not_begun_anew(run):
    with pytest.raises(
        UserError, match=r"run is finished, and without state/latest\.pt there is nothing to go on with"
    ):
        require_state(run)
    (run / "state").mkdir()
    (run / "state" / "begun.json").touch()
    with pytest.raises(UserError, match="is finished"):
        require_state(run)


@pytest.mark.parametrize("left", ["model.safetensors", "metrics.jsonl", "results.json"])
def test_a_run_without_its_state_is_not_begun_anew_over_what_it_has(tmp_path, left):
    require_state(tmp_path)
    (tmp_path / left).touch()
    require_state(tmp_path)
    (tmp_path / left).write_text('{"kind": "train"}')
    with pytest.raises(
        UserError,
        match=rf"has {left} but no state/latest\.pt, .* begin anew over them, .*earlier version .*\. Bring",
    ):
        require_state(tmp_path)
    (tmp_path / BEGUN).parent.mkdir()
    (tmp_path / BEGUN).touch()  # no state had been saved yet
    require_state(tmp_path)


def test_opening_such_a_run_changes_nothing(run):
    config = replace(contents.load_config(run), out=run)
    contents.save_config(run, config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="there is nothing to go on with"):
        open_run_folder(replace(config, resume=True))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("left", ["metrics.jsonl", "model.safetensors", "state/latest.pt"])
def test_a_run_without_its_configuration_does_not_go_on(tmp_path, capsys, left):
    (tmp_path / "run" / left).parent.mkdir(parents=True)
    (tmp_path / "run" / left).write_text("something")
    assert cli.main(["train", "shapes", "--out", str(tmp_path / "run"), "--resume"]) == 1
    error = capsys.readouterr().err
    assert "and no config.json, which says what the run there was started with; copy it back" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == [left.partition("/")[0]]


# Evaluating a run that is not finished.


def test_figures_of_an_unfinished_run_lie_beside_its_own_place(tiny_data, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    config = tiny_config()
    contents.save_config(run, config)
    save_tensors_atomic(run / "model.safetensors", tiny_model(config).state_dict())
    write_json_atomic(run / "environment.json", {ENDS_WITH: "finished.json"})
    figures = {"R@1": 1.0, "R@5": 5.0, "R@10": 10.0, "MdR": 2.0, "MnR": 3.0}
    record = {"kind": "validation", "step": 4, "text_to_video": figures, "video_to_text": figures}
    append_line(run / "metrics.jsonl", record | {"epoch": 1})

    results, folder = evaluate_run(run)
    assert folder == run / "evaluations" / "unfinished-epoch-1"
    assert (
        results["notes"][-1] == f"The run was not finished: its weights were those of epoch 1 of {config.train.epochs}."
    )
    said = " ".join(capsys.readouterr().err.split())
    assert f"run is not finished: these are figures of epoch 1 of {config.train.epochs}, and lie in {folder}" in said
    assert not (run / "results.json").exists()
    assert not is_finished(run)
    load_group(folder)
    assert evaluate_run(run, replace(config.eval, em_block=3))[1].name == "unfinished-epoch-1_em-block-3"

    # Its end has the run's own place, whatever was measured before.
    assert evaluate_run(run, ends_training=True)[1] == run
    mark_finished(run, epochs=1, steps=4)
    assert evaluate_run(run)[1] == run
    assert load_file(run / "embeddings.safetensors")
