"""A run that is still training, or was stopped, is reported as far as it came, and that is said first."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from fake_run import make_run
from rich.console import Console

from emcl_train import cli
from emcl_train.report import plots, report_runs, watch, write, write_report
from emcl_train.runs.contents import save_config
from emcl_train.runs.files import write_json_atomic
from emcl_train.runs.lock import RECORD, Writer, writing
from emcl_train.runs.standing import standing_of

OF_EVALUATION = ("results.json", "queries.json", "embeddings.safetensors")


@pytest.fixture(scope="module")
def somebody():
    """A process that does nothing but be there."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def run(tmp_path):
    """A run that was stopped in its fourth epoch of six, after step 34 of 60."""
    path = tmp_path / "run"
    config = make_run(path)
    config.train.epochs = 6
    save_config(path, config)
    for name in (*OF_EVALUATION, "finished.json", "checksums.json"):
        (path / name).unlink()
    write_json_atomic(path / "environment.json", {"ends_with": "finished.json", "steps_per_epoch": 10})
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[: 34 + 3]))
    return path


def train(run: Path, process: int) -> None:
    """Leave the record of a process that trains there."""
    record = replace(Writer.here(), process=process, started="")
    (run / RECORD).write_text(json.dumps(asdict(record)))


def reported(*runs: Path) -> str:
    console = Console(width=250, file=StringIO())
    report_runs(list(runs), console)
    return console.file.getvalue()


def test_a_stopped_run_says_so_first_with_the_line_that_goes_on(run):
    text = reported(run)
    assert text.startswith(
        f"{run} was stopped: epoch 4 of 6, step 34 of 60. `emcl-train resume {run}` goes on with it.\n"
        "Last validation, after epoch 3: R@1 text→video 20.0, video→text 18.0."
    )
    assert f"report: {run / 'report.html'}" in text
    page = (run / "report.html").read_text()
    assert page.index("was stopped: epoch 4 of 6, step 34 of 60.") < page.index("<h1>")
    assert page.count("<figure") >= 3
    assert 'id="reload"' not in page


def test_a_run_that_is_still_training_says_who_trains_it_and_its_lock_stays(run, somebody):
    train(run, somebody.pid)
    before = {path: path.read_bytes() for path in run.iterdir()}
    text = reported(run)
    assert text.startswith(f"{run} is still training: epoch 4 of 6, step 34 of 60 (process {somebody.pid} on ")
    assert f"what follows is so far. Should it stop, `emcl-train resume {run}` goes on with it." in text
    assert "is still training: epoch 4 of 6" in (run / "report.html").read_text()
    after = {path: path.read_bytes() for path in run.iterdir() if path.name != "report.html"}
    assert after == before


def test_a_path_with_a_space_is_one_word_of_the_line(run):
    moved = run.rename(run.with_name("my run"))
    assert f"`emcl-train resume '{moved}'`" in " ".join(standing_of(moved).sentences())


def test_before_the_first_record_there_is_no_page(run, somebody):
    """A training may still begin in such a folder, where it would find a file that it does not know."""
    (run / "metrics.jsonl").unlink()
    train(run, somebody.pid)
    assert f"{run} has no page yet: nothing was recorded" in reported(run)
    assert not (run / "report.html").exists()
    assert "is still training: before its first step of 60" in standing_of(run).sentences()[0]


@pytest.mark.parametrize(
    "environment",
    [{"steps_per_epoch": 10}, {}, {"steps_per_epoch": "<b>"}],  # without: the first validation ends an epoch
)
def test_how_far_a_run_came(run, environment):
    write_json_atomic(run / "environment.json", {"ends_with": "finished.json"} | environment)
    assert standing_of(run).how_far == "epoch 4 of 6, step 34 of 60"


def test_an_older_run_in_its_first_epoch_knows_its_steps_from_their_beginning(run):
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 2, "epoch": 1, "loss": 1.0}\n')
    write_json_atomic(run / "environment.json", {"ends_with": "finished.json"})
    assert standing_of(run).how_far == "epoch 1 of 6, step 2"
    (run / "state").mkdir()
    write_json_atomic(run / "state" / "begun.json", {"steps": 60})
    assert standing_of(run).how_far == "epoch 1 of 6, step 2 of 60"


def test_figures_of_a_run_without_its_mark_are_shown_behind_that_sentence(tmp_path):
    run = tmp_path / "run"
    make_run(run)
    write_json_atomic(run / "environment.json", {"ends_with": "finished.json", "steps_per_epoch": 10})
    (run / "finished.json").unlink()
    text = reported(run)
    assert text.startswith(f"{run} was stopped: ")
    assert "EMCL-Net" in text
    page = (run / "report.html").read_text()
    assert page.index("was stopped: ") < page.index("<h1>")
    assert "All queries" in page


def test_a_training_that_ends_says_nothing_of_that_on_its_own_page(tmp_path):
    """Its mark comes last, when the page is there."""
    run = tmp_path / "run"
    make_run(run)
    write_json_atomic(run / "environment.json", {"ends_with": "finished.json"})
    (run / "finished.json").unlink()
    with writing(run):
        assert "was stopped" not in write_report(run).read_text()


def test_a_page_never_takes_the_place_of_the_one_that_training_ends_with(run, tmp_path, monkeypatch):
    """The training ends while the page of what there was is being made."""
    page_so_far = write.page_so_far

    def ends_meanwhile(*args, **kwargs):
        page = page_so_far(*args, **kwargs)
        make_run(run)
        (run / "report.html").write_text("the trainer's")
        return page

    monkeypatch.setattr(write, "page_so_far", ends_meanwhile)
    page = write_report(run).read_text()
    assert "was stopped" not in page
    assert "All queries" in page


def test_of_seeds_those_that_are_finished_are_counted(run, tmp_path):
    seeds = tmp_path / "seeds"
    for seed in (0, 1):
        make_run(seeds / f"seed-{seed}")
    run.rename(seeds / "seed-2")
    make_run(tmp_path / "other")
    text = reported(seeds, tmp_path / "other")
    assert text.startswith(f"{seeds / 'seed-2'} was stopped: epoch 4 of 6")
    assert "2 seeds, mean ± deviation" in text
    assert "Verdict: no difference shown" in text
    assert (seeds / "seed-2" / "report.html").is_file()


def test_a_run_without_figures_is_compared_by_its_settings_and_curves(run, tmp_path):
    make_run(tmp_path / "other")
    text = reported(run, tmp_path / "other")
    assert "Settings that differ" in text
    assert "Verdict" not in text
    page = (tmp_path / "comparison.html").read_text()
    assert page.index("was stopped: ") < page.index("<h1>")
    assert "no figures yet" in page
    assert page.count("<figure") == 3


def test_a_finished_run_that_somebody_writes_to_is_shown_and_keeps_its_page(tmp_path, somebody, capsys):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    train(tmp_path / "a", somebody.pid)
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    said = capsys.readouterr()
    assert "EMCL-Net" in said.out
    assert f"another process writes to {tmp_path / 'a'}" in said.err
    assert not (tmp_path / "a" / "report.html").exists()
    assert (tmp_path / "b" / "report.html").is_file()


# --watch


@pytest.fixture
def no_plots(monkeypatch):
    """Pages without their plots, which take most of the time."""
    for name in ("training", "steps", "similarities"):
        monkeypatch.setattr(plots, name, lambda run: [])
    monkeypatch.setattr(plots, "modalities", lambda run: None)


def test_watching_writes_the_page_when_records_change_and_ends_with_the_training(
    run, somebody, tmp_path, monkeypatch, no_plots
):
    train(run, somebody.pid)
    pages = []

    def one_more_step() -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 35, "epoch": 4, "loss": 1.0}\n')

    def the_end() -> None:
        config = make_run(run)
        config.train.epochs = 6
        save_config(run, config)
        (run / RECORD).unlink()

    happens = iter([lambda: None, one_more_step, lambda: None, the_end])

    def sleep(seconds: float) -> None:
        pages.append((run / "report.html").read_text())
        next(happens)()

    monkeypatch.setattr("emcl_train.report.watching.time.sleep", sleep)
    console = Console(width=250, file=StringIO())
    assert watch(run, console, seconds=3.0)
    lines = console.file.getvalue().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "epoch 4 of 6, step 34 of 60",
        "epoch 4 of 6, step 35 of 60",
        "finished: epoch 6 of 6, step 60 of 60",
    ]
    assert "R@1 20.0 after epoch 3" in lines[0]
    assert all('id="reload" class="no-print" data-seconds="3"' in page for page in pages)
    assert pages[0] == pages[1]
    assert pages[1] != pages[2]
    last = (run / "report.html").read_text()
    assert 'id="reload"' not in last
    assert "still training" not in last


def test_watching_a_run_that_stops_says_how_to_go_on(run, somebody, monkeypatch, capsys, no_plots):
    train(run, somebody.pid)
    monkeypatch.setattr("emcl_train.report.watching.time.sleep", lambda seconds: (run / RECORD).unlink())
    assert cli.main(["report", str(run), "--watch"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"stopped: epoch 4 of 6, step 34 of 60; `emcl-train resume {run}` goes on with it" in last
    assert 'id="reload"' not in (run / "report.html").read_text()


def test_watching_a_finished_run_writes_its_page_once(tmp_path, capsys, no_plots):
    make_run(tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run"), "--watch"]) == 0
    assert "finished: " in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{0}", "{1}", "--watch"], "--watch follows one run, got 2; start it once for each"),
        (["{0}", "--watch", "--json", "found.json"], "leave out one of them"),
        (["{0}", "--out", "one.html"], "is the file of a comparison, and one run was given"),
        (["{2}", "--watch"], "holds 2 runs with different seeds; pass one of them: "),
    ],
)
def test_what_cannot_be_watched_is_refused_with_a_way_out(tmp_path, capsys, arguments, said):
    places = [tmp_path / "s" / "seed-0", tmp_path / "s" / "seed-1", tmp_path / "s"]
    for place in places[:2]:
        make_run(place)
    assert cli.main(["report", *(argument.format(*places) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_ctrl_c_ends_watching_and_not_the_run(run, somebody):
    train(run, somebody.pid)
    command = [sys.executable, "-m", "emcl_train", "report", str(run), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert "epoch 4 of 6, step 34 of 60" in line
    assert process.returncode == 130
    assert f"the page of {run} is whole, and the run goes on without it" in error
    os.kill(somebody.pid, 0)
    assert standing_of(run).training
