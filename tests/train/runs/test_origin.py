"""Every figure says which weights, step and code it comes from, and is marked if the weights beside it are others."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_run import make_run
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_evaluation import tiny_config, tiny_data, tiny_model

from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.evaluation.run import evaluate_run
from emcl_train.report import render_group, render_table, report_runs, write_report
from emcl_train.runs import contents, origin
from emcl_train.runs.files import append_line, write_json_atomic
from emcl_train.runs.finished import mark_finished
from emcl_train.runs.folder import load_run
from emcl_train.runs.origin import Origin, origin_of_run, sentence_of, what_is_stale
from emcl_train.runs.state import hash_of_tensors, save_tensors_atomic

__all__ = ["tiny_data"]  # a fixture

OLD_RUN = Path(__file__).parent / "old_run" / "run"


def printed(renderable: object) -> str:
    console = Console(width=300, file=StringIO())
    console.print(renderable)
    return console.file.getvalue()


def weights(number: int) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(number, dtype=torch.float32)}


@pytest.fixture
def run(tmp_path):
    """A finished run whose figures say that they are of the weights beside them, those of epoch 2."""
    path = tmp_path / "run"
    make_run(path)
    save_tensors_atomic(path / "model.safetensors", weights(3), epoch=2)
    mark_finished(path, epochs=6, steps=60)
    results = json.loads((path / "results.json").read_text())
    write_json_atomic(path / "results.json", results | {"origin": origin_of_run(path, weights(3))})
    return path


def results_of(path):
    return json.loads((path / "results.json").read_text())


def test_an_evaluation_records_weights_step_and_code(tiny_data, tmp_path):
    run = tmp_path / "run"
    config = tiny_config()
    run.mkdir()
    contents.save_config(run, config)
    state = tiny_model(config).state_dict()
    save_tensors_atomic(run / "model.safetensors", state, epoch=1)
    write_json_atomic(run / "environment.json", {})
    figures = {"R@1": 1.0, "R@5": 5.0, "R@10": 10.0, "MdR": 2.0, "MnR": 3.0}
    record = {"kind": "validation", "step": 4, "epoch": 1, "text_to_video": figures, "video_to_text": figures}
    append_line(run / "metrics.jsonl", record)

    evaluate_run(run, ends_training=True)
    mark_finished(run, epochs=1, steps=4)
    found = Origin.of_results(results_of(run))
    assert found.weights == hash_of_tensors(state)
    assert (found.epoch, found.step) == (1, 4)
    assert found.code in sentence_of(results_of(run))
    assert f"weights {found.weights[:8]} (epoch 1, step 4) by emcl " in sentence_of(results_of(run))
    assert what_is_stale(run, results_of(run)) is None

    # Fresh bases of an evaluation with other settings are no other weights.
    _, folder = evaluate_run(run, emcl=replace(config.emcl, num_bases=3))
    assert folder.parent.name == "evaluations"
    assert Origin.of_results(results_of(folder)).weights == found.weights

    # Weights trained on: figures of the run and of each evaluation are of others, wherever the run has moved to.
    other = {name: value + 1 for name, value in state.items()}
    moved = run.rename(tmp_path / "moved")
    append_line(moved / "metrics.jsonl", record | {"step": 8, "epoch": 2})
    save_tensors_atomic(moved / "model.safetensors", other, epoch=2)
    for place, settings in ((moved, ""), (moved / "evaluations" / folder.name, f" with the settings of {folder.name}")):
        assert what_is_stale(place, results_of(place)) == (
            f"older than the weights beside them: measured on {found.weights[:8]} at step 4, model.safetensors is now "
            f"{hash_of_tensors(other)[:8]} of step 8; `emcl-train eval {moved}`{settings} measures these, in a folder "
            f"of their own (after `emcl-train verify {moved} --accept`, if they were replaced on purpose)"
        )


def test_a_mark_of_weights_that_are_others(run):
    assert what_is_stale(run, results_of(run)) is None
    save_tensors_atomic(run / "model.safetensors", weights(4), epoch=3)
    stale = what_is_stale(run, results_of(run))
    assert stale.startswith("older than the weights beside them: measured on ")
    assert "at step 20, model.safetensors is now" in stale
    assert "of step 30; `emcl-train eval" in stale

    # Of an earlier epoch, or of none that the records know, they are not called older.
    for epoch in (1, None):
        save_tensors_atomic(run / "model.safetensors", weights(5), epoch=epoch)
        assert what_is_stale(run, results_of(run)).startswith("not those of the weights beside them: measured on ")


def without_blanks(text: str) -> str:
    """What was printed, without its blanks: a line may break in the middle of a path."""
    return "".join(text.split())


def test_every_table_and_page_has_the_origin_and_the_mark(run, tmp_path):
    results = results_of(run)
    said = sentence_of(results)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert said in printed(render_table(results, run))
    assert "older than" not in printed(render_table(results, run))
    assert said in write_report(run).read_text()

    save_tensors_atomic(run / "model.safetensors", weights(4), epoch=3)
    stale = what_is_stale(run, results)
    assert without_blanks(f"These figures are {stale}.") in without_blanks(printed(render_table(results, run)))
    of_group = printed(render_group(run.parent, [results, results], [run, other]))
    assert without_blanks(f"* {run}: {stale}.") in without_blanks(of_group)
    page = write_report(run).read_text()
    assert page.index("These figures are older than the weights beside them") < page.index("<h1>")

    console = Console(width=300, file=StringIO())
    report_runs([run, other], console)
    table = console.file.getvalue()
    assert without_blanks(f"* {run}: {stale}.") in without_blanks(table)
    assert f"* {other}" not in table
    assert f"{other}: measured on {Origin.of_results(results)!s}" in table
    assert "Not measured by the same code" not in table
    assert "are older than the weights beside them" in (tmp_path / "comparison.html").read_text()


def test_other_code_is_named(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    results = results_of(other)
    results["origin"] |= {"emcl": "9.9", "commit": "abc+"}
    write_json_atomic(other / "results.json", results)
    console = Console(width=300, file=StringIO())
    report_runs([run, other], console, json_path=tmp_path / "found.json")
    assert "Not measured by the same code: run: emcl " in console.file.getvalue()
    assert "other: emcl 9.9, commit abc+" in console.file.getvalue()
    (found,) = json.loads((tmp_path / "found.json").read_text())["comparisons"]
    assert found["origins"][str(other)] == results["origin"]


def test_weights_are_not_read_where_their_checksum_is_noted(run, monkeypatch):
    def forbidden(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(origin, "load_file", forbidden)
    monkeypatch.setattr(origin, "checksum_of", forbidden)
    assert what_is_stale(run, results_of(run)) is None


@pytest.mark.parametrize("noted", ["as before", "damaged", "gone"])
def test_a_file_in_the_place_of_the_weights_is_found_without_its_checksum(run, noted):
    """Somebody copied other weights there, and `checksums.json` does not know."""
    save_file(weights(4), run / "model.safetensors")
    if noted == "damaged":
        (run / "checksums.json").write_text("{")
    elif noted == "gone":
        (run / "checksums.json").unlink()
    assert what_is_stale(run, results_of(run)).startswith("not those of the weights beside them")


def test_the_same_weights_in_another_file_are_the_same(run):
    save_file(weights(3), run / "model.safetensors", {"note": "copied"})
    (run / "checksums.json").unlink()
    assert what_is_stale(run, results_of(run)) is None
    (run / "model.safetensors").unlink()  # to save space
    assert what_is_stale(run, results_of(run)) is None


def test_damaged_weights_are_said_and_lock_no_reader_out(run):
    (run / "model.safetensors").write_bytes(b"no tensors")
    assert "perhaps not those of" in what_is_stale(run, results_of(run))
    assert "These figures are perhaps not those of" in printed(render_table(results_of(run), run))


def test_older_runs_say_that_nothing_was_recorded(tmp_path):
    shutil.copytree(OLD_RUN, tmp_path / "run")
    results = results_of(tmp_path / "run")
    assert "origin" not in results
    text = printed(render_table(results, tmp_path / "run"))
    assert "Weights and code of these figures are not recorded, as in earlier versions; `emcl-train eval RUN`" in text
    assert what_is_stale(tmp_path / "run", results) is None
    load_run(tmp_path / "run")


@pytest.mark.parametrize("wrong", [{"weights": 3}, {"emcl": "1"}, {"step": "<b>"}, []])
def test_an_origin_of_other_things_is_named(run, wrong):
    results = results_of(run)
    good = results["origin"]
    results["origin"] = wrong if not wrong or "emcl" in wrong else good | wrong
    write_json_atomic(run / "results.json", results)
    with pytest.raises(UserError, match=r"results\.json cannot be used: origin"):
        load_run(run)


def test_the_fingerprint_is_of_the_file_that_lies_there(run):
    """A second file of the same size in the same place is read again."""
    for factor in (2, 3):
        save_tensors_atomic(run / "model.safetensors", {"w": factor * weights(3)["w"]})
        now = hash_of_tensors(load_file(run / "model.safetensors"))[:8]
        assert f"is now {now}" in what_is_stale(run, results_of(run))


def test_refined_files_say_which_map_and_code_their_figures_are_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(41, 24)).astype(np.float32)
    np.save("text.npy", rows)
    np.save("video.npy", rows[:, ::-1])
    assert (
        cli.main(["refine", "text.npy", "video.npy", "--map", "em", "--num-bases", "3", "--out", "new", "--paired"])
        == 0
    )
    found = Origin.of_results(results_of(tmp_path / "new"))
    assert found.weights == hash_of_tensors(load_file(tmp_path / "new" / "map.safetensors"))
    assert f"Measured on the map {found.weights[:8]} by {found.code}." in capsys.readouterr().out
