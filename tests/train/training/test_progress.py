"""What a run shows of itself: a header and lines in a log file, a bar on a terminal, measures of every step."""

import io
import json
import math
import re

import pytest
from rich.console import Console
from tiny_run import tiny_run

from emcl_train.runs import contents
from emcl_train.terminal import console_of
from emcl_train.training import trainer
from emcl_train.training.progress import Pace, Progress, Step, duration


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress(file, clock, *, total=100, an_epoch=100):
    return Progress(
        console_of(Console(file=file, width=140)),
        shown=True,
        epochs=math.ceil(total / an_epoch),
        steps_per_epoch=an_epoch,
        total_steps=total,
        pairs=8,
        clock=clock,
    )


def one_epoch(progress, clock, *, steps, seconds, epoch=1, done=0):
    """Steps that take so long each."""
    with progress.epoch(epoch, done) as follow:
        for batch in range(done + 1, done + steps + 1):
            clock.now += seconds
            progress.pace.step_done()
            follow(Step(batch, batch, 2.0, 1e-4))


def lines_of(file):
    return file.getvalue().splitlines()


def steps_of(lines):
    return [int(re.search(r"step (\d+)/", line)[1]) for line in lines]


def test_a_log_file_has_a_line_every_ten_seconds_and_at_each_quarter_of_an_epoch():
    file, clock = io.StringIO(), Clock()
    one_epoch(progress(file, clock), clock, steps=100, seconds=1.0)
    # The first step, ten seconds after each line, and 25, 50, 75, 100.
    assert steps_of(lines_of(file)) == [1, 11, 21, 25, 35, 45, 50, 60, 70, 75, 85, 95, 100]


def test_fast_steps_have_a_few_lines_an_epoch_and_slow_ones_a_line_each():
    file, clock = io.StringIO(), Clock()
    one_epoch(progress(file, clock), clock, steps=100, seconds=0.001)
    assert steps_of(lines_of(file)) == [1, 25, 50, 75, 100]

    file, clock = io.StringIO(), Clock()
    one_epoch(progress(file, clock, total=3, an_epoch=3), clock, steps=3, seconds=60.0)
    assert steps_of(lines_of(file)) == [1, 2, 3]


def test_a_line_has_the_step_its_loss_and_rate_the_pace_and_the_time_that_is_left():
    file, clock = io.StringIO(), Clock()
    shown = progress(file, clock, total=200)
    one_epoch(shown, clock, steps=100, seconds=2.0)
    # 100 steps of 2 s are left, and two validations of which none was timed yet.
    assert lines_of(file)[-1] == (
        "epoch 1/2  step 100/200  loss 2.000  lr 1.00e-04  2 s a step  4 clips/s  3 min 20 s left"
    )
    shown.pace.begin()
    clock.now += 30
    shown.pace.validation_done()
    assert shown.pace.seconds_left(100, 2) == pytest.approx(260)


def test_a_terminal_has_the_same_figures_in_its_bar_and_no_number_before_the_first_step(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file, clock = Terminal(), Clock()
    shown = progress(file, clock)
    shown.header(["not for a terminal"])
    with shown.epoch(1, 0) as follow:
        first = file.getvalue()
        clock.now += 2
        shown.pace.step_done()
        follow(Step(1, 1, 2.0, 1e-4))
    text = file.getvalue()
    assert "loss –" in first
    assert "nan" not in text
    assert "not for a terminal" not in text
    for figure in ("epoch 1/1", "1/100", "loss 2.000", "lr 1.00e-04", "2 s a step", "4 clips/s", "3 min 18 s left"):
        assert figure in text, figure


def test_steps_are_timed_with_what_they_waited_for_and_without_what_is_none_of_theirs():
    clock = Clock()
    pace = Pace(clock)
    assert pace.seconds_per_step == 0
    pace.begin()
    clock.now += 3
    assert pace.step_done() == 3
    clock.now += 50
    pace.begin()
    clock.now += 1
    assert pace.step_done() == 1
    assert pace.seconds_per_step == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"), (59.4, "59 s"), (60.0, "1 min 0 s"), (3599.6, "1 h 0 min"), (12e3, "3 h 20 min"),
        (9e4, "1 d 1 h"), (-1.0, "0 s"),
    ],
)  # fmt: skip
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def quick(monkeypatch):
    """The report's plots take longer than all the rest."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)


@pytest.mark.usefixtures("one_thread", "quick")
def test_a_run_logs_a_header_and_then_its_steps(tmp_path, monkeypatch):
    def logged(config):
        console = Console(file=io.StringIO(), width=60)
        trainer.train(config, console)
        return console.file.getvalue()

    root = tmp_path / "[set]"
    text = logged(tiny_run(root, tmp_path / "run"))
    lines = [line for line in text.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == len(text.splitlines()) - 1
    assert [line.partition(":")[0] for line in lines[:6]] == ["versions", "device", "data", "model", "steps", "folder"]
    assert re.match(r"versions: emcl \S+( at commit [0-9a-f]+\+?)?, torch 2\.\S+, python 3\.\d+\.\d+$", lines[0])
    assert "1 process; float32" in lines[1]
    assert f"{root}; training 32 clips with 64 captions, validation 8 clips with 8 captions, test 12 clips" in lines[2]
    assert re.search(r"head text-conditioned, EMCL train, 4 bases; 14,\d+ parameters trained, 0 frozen", lines[3])
    assert "8 of 8 pairs, 4 an epoch" in lines[4]
    assert lines[5] == f"folder: {tmp_path / 'run'}"
    assert re.match(
        r"epoch 1/2  step 1/8  loss \d\.\d+  lr 1\.00e-03  \S+ s a step  \S+ clips/s  \d+ s left$", lines[6]
    )

    assert all(line.strip() for line in lines)
    for mark in ("nan", "\r", "\x1b"):
        assert mark not in text, mark

    # What is frozen is counted apart.
    frozen = tiny_run(root, tmp_path / "frozen", clip_lr_factor=0.0, epochs=1)
    assert re.search(r"; [1-9][\d,]* parameters trained, [1-9][\d,]* frozen", logged(frozen))


@pytest.mark.usefixtures("one_thread", "quick")
def test_every_step_has_its_measures(tmp_path):
    config = tiny_run(tmp_path / "set", tmp_path / "run")
    trainer.train(config, Console(file=io.StringIO()))
    lines = [json.loads(line) for line in (config.out / contents.METRICS).read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    names = ["loss", "lr", "logit_scale", "grad_norm", "seconds", "clips_per_second", "memory_bytes"]
    assert [list(step)[3:] for step in steps] == [names] * 8
    for step in steps:
        assert all(math.isfinite(step[name]) and step[name] > 0 for name in names)
        # With the wait for data a step takes longer than without.
        assert step["clips_per_second"] <= 8 / step["seconds"] * 1.01
        assert 50e6 < step["memory_bytes"] < 1e12
    # Before it is scaled down to train.max_grad_norm.
    assert max(step["grad_norm"] for step in steps) > config.train.max_grad_norm
