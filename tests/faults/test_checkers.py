"""The checkers of the fault tests find what they are there to find."""

import json

import pytest
from kills import JOURNAL, Undisturbed, Work, after_a_kill
from reports import structure_of
from server import Outcome
from spoken import problems_of
from trees import differences, tree_of

WORK = Work("any", (), (), together=(r"out/.*",))
OLD, NEW = {"a": "old a", "b": "old b"}, {"a": "new a", "b": "new b"}


def write(folder, files):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / "out" / name).write_text(text)
    return tree_of(folder)


@pytest.fixture
def usual(tmp_path):
    before = write(tmp_path / "before", OLD)
    return Undisturbed(before, write(tmp_path / "after", NEW), outcome(0, ""))


def outcome(code, err):
    return Outcome([], code, "", err, seconds=1.0, events=1, log=[], cpu=1.0, peak=0)


def test_all_old_and_all_new_are_right(tmp_path, usual):
    for files in (OLD, NEW, OLD | {".c.partial": "half"}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write(folder, files)
        assert after_a_kill(folder, WORK, usual) == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a": "new a", "b": "old b"}, "mixed"),
        ({"a": "old a"}, "lost"),
        ({"a": "new", "b": "old b"}, "neither old nor new"),
        ({"a": "new a", "b": "new b", "c": "x"}, "neither old nor new"),
    ],
)
def test_what_is_mixed_or_lost_or_cut_short_is_found(tmp_path, usual, files, found):
    write(tmp_path / "killed", files)

    assert any(found in problem for problem in after_a_kill(tmp_path / "killed", WORK, usual))


def test_a_change_that_its_journal_says_is_done_counts_as_done(tmp_path, usual):
    folder = tmp_path / "killed"
    write(folder, {"a": "new a", "b": "old b", ".b.1.partial": "new b"})
    (folder / "out" / JOURNAL).write_text(
        json.dumps({"renamed": {".b.1.partial": "b", ".a.1.partial": "a"}, "removed": []})
    )

    assert after_a_kill(folder, WORK, usual) == []


def test_a_rerun_leaves_neither_more_nor_less_nor_other_bytes(tmp_path):
    expected = write(tmp_path / "expected", NEW)
    found = write(tmp_path / "found", {"a": "new a", "b": "other", ".a.partial": ""})
    found.pop("out/a")

    assert differences(expected, found) == ["left over: out/.a.partial", "missing: out/a", "other: out/b"]


def test_the_seconds_of_a_step_are_no_difference(tmp_path):
    first = write(tmp_path / "first", {"metrics.jsonl": '{"step": 1, "loss": 2.5, "seconds": 0.1}\n'})

    assert write(tmp_path / "second", {"metrics.jsonl": '{"step": 1, "loss": 2.5, "seconds": 0.2}\n'}) == first
    assert write(tmp_path / "third", {"metrics.jsonl": '{"step": 1, "loss": 2.6, "seconds": 0.1}\n'}) != first


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Traceback (most recent call last):\n  x\nOSError: y\n", "a traceback"),
        ("", "0 lines instead of 1"),
        ("error: one; run it again\nerror: two\n", "2 lines instead of 1"),
        ("error: it did not work\n", "no way out"),
    ],
)
def test_what_a_command_says_has_to_be_one_line_with_a_way_out(said, found):
    assert any(found in problem for problem in problems_of(outcome(1, said)))
    assert problems_of(outcome(1, "warning: no cache\nerror: the disk is full; free some space\n")) == []


@pytest.mark.parametrize(
    "page",
    [
        "<p>a<script>alert(1)</script></p>",
        '<p title="x" onmouseover="alert(1)">a</p>',
        '<img src="http://x/y.png">',
        '<a href=" javascript:alert(1)">a</a>',
        "<p>abc\u202egnp.exe</p>",
        "<p>a\x07b</p>",
    ],
)
def test_what_runs_or_loads_or_turns_a_page_around_is_found(page):
    assert structure_of(page).bad
    assert not structure_of('<p>a <bdi>\u202eb</bdi> &lt;script&gt; <img src="data:image/jpeg;base64,x"></p>').bad
