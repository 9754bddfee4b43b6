"""Printing ends nothing, whatever the output is; a log file gets lines that say something and no bars."""

import errno
import io
import itertools
import re
import sys

import pytest
from rich.console import Console
from rich.table import Table
from tiny_run import tiny_run

from emcl_train import cli
from emcl_train.runs import contents
from emcl_train.runs import state as checkpoint
from emcl_train.terminal import (
    HIDDEN,
    Output,
    Rendered,
    console_of,
    escaped,
    is_watched,
    plainly,
    progress_bar,
    tell,
    tolerant_output,
    with_progress,
)
from emcl_train.training import trainer


class Closed(io.TextIOBase):
    """An output that fails."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


class Terminal(io.StringIO):
    def isatty(self):
        return True


def encoded(encoding, errors="strict"):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)


def written(stream):
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("latin-1", "text->video 1.0 \xb1 2 \xd7 3... \xe9 ?"),
        ("ascii", "text->video 1.0 +- 2 x 3... ? ?"),
        ("cp437", "text->video 1.0 \xb1 2 x 3... \xe9 ?"),
        ("utf-8", "text\u2192video 1.0 \xb1 2 \xd7 3\u2026 \xe9 \u4e00"),
        ("euc-jp", "text\u2192video 1.0 \xb1 2 \xd7 3\u2026 \xe9 \u4e00"),
    ],
)
def test_letters_that_an_output_lacks_are_written_plainly(encoding, shown):
    text = "text\u2192video 1.0 \xb1 2 \xd7 3\u2026 \xe9 \u4e00"
    stream = encoded(encoding)
    console_of(Console(file=stream, width=100)).print(text)
    assert written(stream) == f"{shown}\n"
    assert plainly(text, encoding) == shown


def test_half_letters_of_file_names_are_no_error_either():
    stream = encoded("utf-8")
    console_of(Console(file=stream)).print("\udcff.mp4")
    assert written(stream) == "?.mp4\n"


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        ValueError("I/O operation on closed file."),
    ],
)
def test_an_output_that_is_full_or_gone_ends_nothing(error):
    console = console_of(Console(file=Closed(error)))
    console.print("a line")
    console.print("another")


def test_other_errors_of_an_output_are_ours():
    with pytest.raises(ValueError, match="something else"):
        console_of(Console(file=Closed(ValueError("something else")))).print("a line")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_program_without_an_output_prints_nothing(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    console_of(stderr=name == "stderr").print("a line")
    assert cli.main(["--help"]) == (1 if name == "stdout" else 0)


def test_a_run_saves_before_it_prints_and_ends_whole_whatever_its_output(tmp_path, monkeypatch):
    """With an output that shows no arrow, and one that takes nothing at all."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)
    root = tmp_path / "set"
    events = []
    real = checkpoint.save_state
    monkeypatch.setattr(checkpoint, "save_state", lambda *a: (events.append("saved"), real(*a))[1])

    class Log(io.TextIOWrapper):
        def write(self, text):
            events.append("printed" if " R@1: text" in text else "")
            return super().write(text)

    log = Log(io.BytesIO(), encoding="latin-1", write_through=True)
    trainer.train(tiny_run(root, tmp_path / "run", save_every=100), Console(file=log, width=160))
    # What an encoding does not have is written a second time, in plain letters.
    assert [name for name, _ in itertools.groupby(filter(None, events))] == ["saved", "printed"] * 2
    assert "text->video" in log.buffer.getvalue().decode("latin-1")
    assert (tmp_path / "run" / contents.FINISHED).is_file()

    full = Closed(OSError(errno.ENOSPC, "No space left on device"))
    trainer.train(tiny_run(root, tmp_path / "full", max_steps=1), Console(file=full))
    assert (tmp_path / "full" / contents.FINISHED).is_file()


def test_help_is_shown_on_every_output(monkeypatch):
    stream = encoded("ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "shapes", "--help"])
    assert ended.value.code == 0
    assert "mean +- deviation" in written(stream)


def test_a_table_that_could_not_be_printed_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Closed(OSError(errno.ENOSPC, "No space left on device")))
    assert cli.main(["--help"]) == 1
    assert "error: not all could be printed: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("before", [[], ["--device", "cpu"], ["--device=cpu", "--quiet"], ["--dry-run"]])
@pytest.mark.parametrize("word", ["train", "resume"])
def test_a_training_whose_output_is_lost_is_whole(word, before, capsys):
    output = Output()
    output.lost = OSError(errno.ENOSPC, "No space left on device")
    assert cli.code_after_printing(0, [*before, word, "x"], output) == 0
    assert "the run is whole without it" in capsys.readouterr().err
    assert cli.code_after_printing(0, [*before, "verify", word], output) == 1


def test_what_is_asked_for_is_printed_quietly_too(capsys):
    assert cli.main(["--quiet", "completion", "bash"]) == 0
    assert "complete -o default" in capsys.readouterr().out


# Bars.


@pytest.mark.parametrize("settings", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "40"}])
def test_a_log_file_gets_no_bar_and_no_empty_line(settings, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(with_progress(iter(range(3)), "Encode")) == [0, 1, 2]
    assert list(with_progress(range(3), "Encode")) == [0, 1, 2]
    with progress_bar() as progress:
        progress.advance(progress.add_task("", total=2))
    assert stream.getvalue() == ""


def taken_at_most(number):
    """Steps that do not know how many they are."""
    yield from range(number)


@pytest.mark.parametrize(("steps", "end"), [(range(3), "3/3"), (iter([0, 1, 2]), "3/3"), (taken_at_most(3), "3/?")])
def test_a_terminal_gets_a_bar_with_the_number_of_steps_where_it_is_known(steps, end, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(with_progress(steps, "Encode")) == [0, 1, 2]
    assert "Encode" in stream.getvalue()
    assert end in stream.getvalue()
    assert is_watched(console_of(stderr=True))


@pytest.mark.parametrize(("stream", "lines"), [(io.StringIO(), 2), (Terminal(), 5)])
def test_empty_lines_are_for_terminals(stream, lines):
    console = console_of(Console(file=stream))
    console.print("\none\n\n   \ntwo")
    assert stream.getvalue().count("\n") == lines
    assert [line for line in stream.getvalue().split("\n") if line.strip()] == ["one", "two"]


def test_a_line_that_is_written_in_parts_stays_one():
    stream = io.StringIO()
    output = Rendered(stream)
    for part in ("a", " ", "b", "\n", "\n", "c\n"):
        output.write(part)
    assert stream.getvalue() == "a b\nc\n"


@pytest.mark.usefixtures("one_thread")
def test_the_log_of_a_whole_run_has_lines_that_say_something_alone(tmp_path, monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(trainer, "write_report", lambda out: out)
    config = tiny_run(tmp_path / "set", tmp_path / "run", max_steps=1)
    config.eval.em_block = 4
    trainer.train(config)
    lines = (out.getvalue() + err.getvalue()).split("\n")[:-1]
    assert lines[0].startswith("versions: emcl ")
    assert all(line.strip() for line in lines)
    assert "\r" not in out.getvalue() + err.getvalue()
    assert "\x1b" not in out.getvalue() + err.getvalue()


# Control characters and marks of direction.

HOSTILE = [
    ("\x1b[2J\x1b[1;1H", r"\x1b[2J\x1b[1;1H"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("\x9b31m", r"\x9b31m"),
    ("gone\rover", r"gone\rover"),
    ("back\x08\x08", r"back\x08\x08"),
    ("\x00\x7f", r"\x00\x7f"),
    ("\u202etxt.exe", r"\u202etxt.exe"),
    ("\u2066a\u2069\u200f\u061c", r"\u2066a\u2069\u200f\u061c"),
    ("a\u2028b\x85c", r"a\u2028b\x85c"),
]
KEPT = ["tab\tstays", "\u05d0\u05d1", "\u4e00", "\U0001f468\u200d\U0001f469", "e\u0301"]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
@pytest.mark.parametrize("place", ["text", "markup", "table", "bar", "print", "tell"])
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_control_characters_and_marks_of_direction_are_shown_as_escapes(monkeypatch, text, shown, place, kind):
    """Wherever a text of somebody else stands, on a terminal and in a log file."""
    stream = kind()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    console = console_of(Console(file=stream, width=100))
    if place == "text":
        console.print(text, markup=False)
    elif place == "markup":
        console.print(f"[bold]{escaped(text)}[/bold]")
    elif place == "table":
        table = Table("name")
        table.add_row(escaped(text))
        console.print(table)
    elif place == "bar":
        if kind is not Terminal:
            return
        list(with_progress(range(2), text))
    elif place == "print":
        with tolerant_output():
            print(text)
    else:
        tell(text)

    # What is left is rich's own: colours, and the cursor of a bar.
    written = stream.getvalue()
    if place in ("print", "tell") and kind is io.StringIO:
        assert written == f"{shown}\n"
    own = r"\x1b\[[0-9;?]*[A-Za-z]" if place == "bar" else r"\x1b\[[0-9;]*m"
    left = re.sub(own, "", written.replace("\r", "") if place in ("bar", "print") else written)
    assert not HIDDEN.search(left)
    assert text not in left


@pytest.mark.parametrize("text", KEPT)
def test_letters_of_all_languages_stay(text):
    stream = io.StringIO()
    console_of(Console(file=stream, width=100)).print(text)
    assert " ".join(stream.getvalue().split()) == " ".join(text.split())


def test_a_name_with_a_line_feed_makes_no_line_of_its_own(capsys):
    tell("error: a\nerror: b")
    assert capsys.readouterr().err == "error: a\\nerror: b\n"
    assert escaped("[red]a\nb") == r"\[red]a\nb"


def test_colours_and_bars_of_libraries_reach_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with tolerant_output():
        print("\x1b[1mhelp\x1b[0m\r\x1b[K", end="")
    assert stream.getvalue() == "\x1b[1mhelp\x1b[0m\r\x1b[K"
