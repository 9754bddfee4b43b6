"""comparison.html: what differs in the settings first, then figures, curves, and the queries that were won and lost."""

import json
import re
from dataclasses import replace
from io import StringIO

import pytest
import torch
from fake_run import make_run
from rich.console import Console
from safetensors.torch import load_file
from test_report import Elements

from emcl_train import cli
from emcl_train.report import report_runs
from emcl_train.report.differences import differing_settings_of, names_of
from emcl_train.report.groups import load_group
from emcl_train.report.overlaid import letter
from emcl_train.report.wins import wins
from emcl_train.runs.contents import save_config
from emcl_train.runs.lock import RECORD, Writer
from emcl_train.runs.state import save_tensors_atomic


@pytest.fixture(autouse=True)
def no_pages_of_runs(monkeypatch):
    """They take longer than all the rest, and have tests of their own."""
    written = []
    monkeypatch.setattr("emcl_train.report.write_locked", lambda path, **_: written.append(path))
    return written


def change(path, **train):
    """Give a run other settings of its training."""
    config = make_run(path)
    config.train = replace(config.train, **train)
    save_config(path, config)
    return config


def reported(*runs, **how):
    console = Console(width=250, file=StringIO())
    report_runs(list(runs), console, **how)
    return console.file.getvalue()


def put_similarity(path, similarity):
    file = path / "embeddings.safetensors"
    save_tensors_atomic(file, load_file(file) | {"similarity_on": similarity})


def test_settings_that_differ_come_first_and_only_those_that_matter(tmp_path):
    change(tmp_path / "a", lr=1e-3)
    config = change(tmp_path / "b", lr=2e-3, save_every=7, tracker="none")
    config.model.lstm_padding = "run-on"  # of a part that neither run has
    save_config(tmp_path / "b", config)
    groups = [load_group(tmp_path / name) for name in "ab"]
    assert [(one.name, one.values) for one in differing_settings_of(groups)] == [("train.lr", ("0.001", "0.002"))]

    text = reported(tmp_path / "a", tmp_path / "b")
    assert "Settings that differ\n· train.lr: 0.001 (a), 0.002 (b)\n" in text
    assert text.index("Settings that differ") < text.index("against")
    page = (tmp_path / "comparison.html").read_text()
    places = [
        page.index(f">{title}<") for title in ("Settings that differ", "Results", "Training", "Queries won and lost")
    ]
    assert places == sorted(places)
    assert "save_every" not in page


def test_runs_of_the_same_settings_say_so(tmp_path):
    for name in "ab":
        make_run(tmp_path / name)
    assert "No setting that matters differs" in reported(tmp_path / "a", tmp_path / "b")
    assert "None that matters for any of these runs." in (tmp_path / "comparison.html").read_text()


def test_queries_won_and_lost_are_those_of_a_hand_computed_case(tmp_path):
    for name in "ab":
        make_run(tmp_path / name, clips=4)
    right = torch.eye(4)
    put_similarity(tmp_path / "a", right.clone())
    other = right.clone()
    other[1] = torch.tensor([0.9, 0.1, 0.5, 0.0])  # its clip is third now, behind 0 and 2
    put_similarity(tmp_path / "b", other)
    groups = [load_group(tmp_path / name) for name in "ab"]
    lost = wins(*groups)
    assert (lost.won, len(lost.lost)) == ((), 1)
    assert lost.lost[0].caption == "<b>caption</b> 1 & a red square grows"
    assert (lost.lost[0].first_rank, lost.lost[0].second_rank) == (1.0, 3.0)
    assert (lost.lost[0].right, lost.lost[0].first_gave, lost.lost[0].second_gave) == ("video1", "video1", "video0")
    tally = lost.tallies[0]
    assert (tally.direction, tally.better, tally.worse, tally.alike) == ("T→V", 0, 1, 3)
    assert (tally.hits_won, tally.hits_lost) == (0, 1)
    won = wins(*reversed(groups))
    assert (won.won[0].first_rank, won.won[0].second_rank) == (3.0, 1.0)
    assert won.lost == ()


def test_the_page_is_one_file_and_no_text_becomes_markup(tmp_path):
    hostile = """<i onload='x("&amp;")'>$\\frac$"""
    for name in ("a", hostile.replace("/", "")):
        config = make_run(tmp_path / name)
        config.recipe = config.model.clip = hostile if name != "a" else "random"
        save_config(tmp_path / name, config)
        results = json.loads((tmp_path / name / "results.json").read_text())
        results |= {"split": hostile}
        results["rows"][0]["name"] = hostile
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    put_similarity(tmp_path / hostile, torch.eye(40).roll(1, 0))
    reported(tmp_path / "a", tmp_path / hostile)
    text = (tmp_path / "comparison.html").read_text()
    page = Elements(text)
    assert "i" not in page.tags
    assert "b" in page.tags  # the template's own
    assert "<b>caption" not in text
    assert "&lt;b&gt;caption&lt;/b&gt;" in text
    assert "link" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_has_the_frames_of_queries_that_were_lost(tmp_path, shared_data):
    for name in "ab":
        make_run(tmp_path / name, clips=10, root=shared_data / "real_videos")
    put_similarity(tmp_path / "b", torch.eye(10).roll(1, 0))
    reported(tmp_path / "a", tmp_path / "b")
    text = (tmp_path / "comparison.html").read_text()
    assert text.count("data:image/jpeg") >= 8
    assert "right clip, given by A" in text
    assert "given by B" in text


def test_where_the_page_goes(tmp_path, monkeypatch):
    for name in ("runs/a", "runs/b", "elsewhere/c"):
        make_run(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert f"comparison: {tmp_path / 'runs' / 'comparison.html'}" in reported(tmp_path / "runs/a", tmp_path / "runs/b")
    assert "comparison: comparison.html\n" in reported(tmp_path / "runs/a", tmp_path / "elsewhere/c")
    assert (tmp_path / "comparison.html").is_file()
    out = tmp_path / "own.html"
    assert cli.main(["report", "runs/a", "runs/b", "--out", str(out)]) == 0
    assert "Comparison of 2 runs" in out.read_text()


def test_only_a_page_of_this_program_is_replaced(tmp_path, capsys, no_pages_of_runs):
    for name in "ab":
        make_run(tmp_path / name)
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.main(["report", *runs]) == 0
    assert cli.main(["report", *runs]) == 0
    (tmp_path / "comparison.html").write_text("my own notes")
    no_pages_of_runs.clear()
    assert cli.main(["report", *runs]) == 1
    error = capsys.readouterr().err
    assert "is no comparison that this program wrote, so it is not replaced; pass another --out" in error
    assert (tmp_path / "comparison.html").read_text() == "my own notes"
    assert no_pages_of_runs == []  # said before anything is written
    assert cli.main(["report", *runs, "--out", str(tmp_path)]) == 1
    assert "is a folder, expected a file for the comparison" in capsys.readouterr().err


def test_another_process_that_writes_the_page_is_named(tmp_path, capsys):
    for name in "ab":
        make_run(tmp_path / name)
    record = replace(Writer.here(), process=1, started="")
    (tmp_path / f".comparison.html{RECORD}").write_text(json.dumps(vars(record)))
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "another process writes to" in capsys.readouterr().err
    assert not (tmp_path / "comparison.html").exists()


def test_a_set_of_seeds_is_one_run_of_the_page(tmp_path):
    for seed in (0, 1):
        change(tmp_path / "seeds" / f"seed-{seed}", seed=seed)
    change(tmp_path / "one", seed=5)
    reported(tmp_path / "seeds", tmp_path / "one")
    text = (tmp_path / "comparison.html").read_text()
    assert "2 seeds, 40 captions" in text
    assert 'data-label="A seeds"><bdi>0, 1</bdi>' in text
    assert "averaged over 2 seeds" in text


def test_share_leaves_absolute_paths_out(tmp_path):
    for name in "ab":
        make_run(tmp_path / name)
    reported(tmp_path / "a", tmp_path / "b")
    assert str(tmp_path) in (tmp_path / "comparison.html").read_text()
    reported(tmp_path / "a", tmp_path / "b", share=True)
    assert str(tmp_path) not in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("x/a", "x/b"), ["a", "b"]),
        (("x/a", "y/a"), ["x/a", "y/a"]),
        (("x/a", "x/a"), ["a (1)", "a (2)"]),
    ],
)
def test_names_tell_runs_apart(tmp_path, paths, names):
    for path in set(paths):
        make_run(tmp_path / path, clips=2)
    assert names_of([load_group(tmp_path / path) for path in paths]) == names


def test_letters_do_not_end():
    assert [letter(number) for number in (0, 25, 26, 27)] == ["A", "Z", "AA", "BB"]
