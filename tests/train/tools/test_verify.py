"""`emcl-train verify`: what is right, damaged, missing or without a checksum; and changed bytes when a run is read."""

import json
import os

import pytest
import torch
from fake_run import make_run

from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.report import write_report
from emcl_train.runs.checksums import CHECKSUMS, checksum_of
from emcl_train.runs.contents import EMBEDDINGS, FINISHED, STATE, WEIGHTS
from emcl_train.runs.state import TrainingState, load_state, read_weights, save_state, save_tensors_atomic


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path / "run")
    save_tensors_atomic(tmp_path / "run" / WEIGHTS, {"w": torch.arange(9.0)})
    save_state(tmp_path / "run", TrainingState(0, 0, 0, 0.0, 0, 0, {"w": torch.arange(9.0)}, {}, {}, {}))
    mark = {"weights": checksum_of(tmp_path / "run" / WEIGHTS)}
    (tmp_path / "run" / FINISHED).write_text(json.dumps(mark))
    return tmp_path / "run"


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


READERS = {WEIGHTS: read_weights, STATE: load_state, EMBEDDINGS: write_report}


def test_a_whole_run_is_right(run, capsys):
    assert cli.main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run}: ")
    read_weights(run)
    load_state(run)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("place", [-1, 20])
def test_a_flipped_byte_is_found_by_verify_and_by_whatever_reads_the_file(run, capsys, name, place):
    flip(run / name, place)
    assert cli.main(["verify", str(run)]) == 1
    assert f"damaged: {run / name}" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"^[^(]*{name} is damaged or was replaced: .*verify .* --accept"):
        READERS[name](run)


def test_what_was_replaced_on_purpose_is_accepted(run, capsys):
    flip(run / WEIGHTS)
    assert cli.main(["verify", str(run), "--accept"]) == 0
    read_weights(run)
    assert cli.main(["verify", str(run)]) == 0
    assert "damaged" not in capsys.readouterr().out


def test_an_older_run_has_no_checksums_and_may_get_them(run, capsys):
    for path in run.rglob(CHECKSUMS):
        path.unlink()
    assert cli.main(["verify", str(run)]) == 0
    assert f"without a checksum: {run / WEIGHTS}" in capsys.readouterr().out
    read_weights(run)
    assert capsys.readouterr().err.count("without checksums") == 1
    assert cli.main(["verify", str(run), "--accept"]) == 0
    assert "without" not in capsys.readouterr().out


def test_missing_and_unreadable_files_are_named(run, capsys):
    (run / EMBEDDINGS).unlink()
    (run / "results.json").write_text("{")
    assert cli.main(["verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert f"missing: {run / EMBEDDINGS}" in out
    assert f"damaged: {run / 'results.json'}" in out


def test_a_folder_of_seeds_is_looked_through(run, capsys):
    (run.parent / "seeds").mkdir()
    run.rename(run.parent / "seeds" / "seed-0")
    flip(run.parent / "seeds" / "seed-0" / WEIGHTS)
    assert cli.main(["verify", str(run.parent / "seeds")]) == 1
    assert "seed-0/model.safetensors" in capsys.readouterr().out


def test_a_folder_of_other_things_is_said(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "holds no file that has a checksum" in capsys.readouterr().err


def test_a_flipped_byte_of_weights_is_one_line(run, capsys):
    flip(run / WEIGHTS)
    assert cli.main(["verify", str(run)]) == 1
    assert "1 damaged" in capsys.readouterr().out


def test_weights_that_are_not_those_of_the_end_are_damaged(run, capsys):
    save_tensors_atomic(run / WEIGHTS, {"w": torch.ones(9)})
    assert cli.main(["verify", str(run)]) == 1
    assert "it is not what the training ended with" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x.json", "x.pt", "metrics.jsonl", WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_pipes_and_links_are_neither_waited_for_nor_followed(run, capsys, name, kind):
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("results.json")
    assert cli.main(["verify", str(run)]) == 1
    assert f"damaged: {run / name}: it is a link, a pipe" in capsys.readouterr().out


def test_files_whose_checksums_nobody_would_renew_get_none(run, capsys):
    (run / "exported.bin").write_bytes(b"one")
    assert cli.main(["verify", str(run), "--accept"]) == 0
    (run / "exported.bin").write_bytes(b"two")
    assert cli.main(["verify", str(run)]) == 0
