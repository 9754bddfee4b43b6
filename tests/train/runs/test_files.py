"""Files and folders that appear when they are whole, and JSON that is read or refused with the reason."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from emcl_train.endings import Ended, is_want_of_memory, signals_as_exceptions
from emcl_train.errors import UserError
from emcl_train.runs import files
from emcl_train.runs.files import json_if_whole, partial_of, read_json, whole, whole_folder
from emcl_train.runs.machine import this_machine


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_appears_at_the_end_of_its_block(tmp_path, shared):
    path = tmp_path / "new" / "a.npz"
    with whole(path, shared=shared) as partial:
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("all")
    assert path.read_text() == "all"
    assert names_in(tmp_path) == ["new", "new/a.npz"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, shared):
    path = tmp_path / "a"
    path.write_text("old")

    def write_half():
        with whole(path, shared=shared) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("of_a_library", [False, True])
def test_a_full_disk_in_the_block_is_named(tmp_path, code, of_a_library):
    error = SafetensorError(f"I/O error: x (os error {code})") if of_a_library else OSError(code, os.strerror(code))
    with pytest.raises(UserError, match=r"the disk is full: .*a could not be written"), whole(tmp_path / "a"):
        raise error
    assert names_in(tmp_path) == []


def test_causes_that_go_round_in_a_circle_are_looked_at_once():
    first, second = OSError(errno.EIO, "x"), RuntimeError("y")
    first.__cause__ = second
    second.__cause__ = first
    files.raise_if_disk_full(first, Path("a"))
    assert not is_want_of_memory(first)
    second.__cause__ = OSError(errno.ENOSPC, "z")
    with pytest.raises(UserError, match="the disk is full"):
        files.raise_if_disk_full(first, Path("a"))


def test_the_name_of_a_partial_file_cannot_be_known(tmp_path):
    names = {partial_of(tmp_path / "a").name for _ in range(20)}
    assert len(names) == 20
    assert all(files.PARTIAL.fullmatch(name)["name"] == "a" for name in names)
    assert all(str(os.getpid()) in name for name in names)


def test_the_longest_name_has_a_partial_file_too(tmp_path):
    path = tmp_path / ("é" * 127)
    files.write_text_atomic(path, "x")
    assert names_in(tmp_path) == [path.name]


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(tmp_path, monkeypatch):
    """Even of one whose name is known, as nobody's is."""
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: 16 * "0")
    partial_of(tmp_path / "a").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError), whole(tmp_path / "a") as partial:
        partial.write_text("half")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a").symlink_to("mine")
    files.write_text_atomic(tmp_path / "a", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def left_by(process: int, name: str = "a", machine: str | None = None) -> str:
    return f".{name}.{machine or this_machine().tag}-{process}-{16 * '1'}.partial"


def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else(tmp_path, ended):
    keep = [left_by(os.getppid()), left_by(ended, machine="00000000"), ".a.partial", ".a.1-1.partial", "a.partial"]
    for name in [*keep, left_by(ended)]:
        (tmp_path / name).touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    (tmp_path / left_by(ended, "b")).symlink_to("mine")
    (tmp_path / left_by(ended, "c")).mkdir()
    (tmp_path / left_by(ended, "c") / "link").symlink_to("../mine")
    (tmp_path / f".{left_by(ended, 'd')}.{16 * '2'}.partial").touch()  # a library wrote it beside
    files.write_text_atomic(tmp_path / "new", "x")
    assert names_in(tmp_path) == sorted([*keep, "mine", "mine/thesis", "new"])


def test_what_was_left_by_processes_that_cannot_be_seen_goes_after_a_day_or_under_a_lock(tmp_path, ended):
    new, old = left_by(ended, machine="00000000"), left_by(1, "b", machine="00000000")
    for name in (new, old):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (1, 1))
    files.clear_partial(tmp_path)
    assert names_in(tmp_path) == [new]
    files.clear_partial(tmp_path, of="b", ours=True)
    assert names_in(tmp_path) == [new]
    files.clear_partial(tmp_path, of="a", ours=True)
    assert names_in(tmp_path) == []


def test_a_folder_appears_at_the_end_of_its_block_whatever_was_left_there(tmp_path, ended):
    (tmp_path / left_by(ended, "out") / "old").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / ".out.partial").symlink_to("mine")

    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").touch()
        assert not (tmp_path / "out").exists()
    assert names_in(tmp_path) == [".out.partial", "mine", "out", "out/a"]


def test_a_folder_whose_block_raises_is_not_there(tmp_path):
    def write_half():
        with whole_folder(tmp_path / "out") as partial:
            (partial / "a").touch()
            raise OSError("stop")

    with pytest.raises(OSError, match="stop"):
        write_half()
    assert names_in(tmp_path) == []


def test_a_folder_that_somebody_made_meanwhile_is_not_overwritten(tmp_path):
    def write_too_late():
        with whole_folder(tmp_path / "out", "choose another name"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(UserError, match="out exists by now and is not overwritten; choose another name, or remove it"):
        write_too_late()
    assert names_in(tmp_path) == ["out", "out/theirs"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"a\.json cannot be read as the record: Expecting property name .*; copy it again$"),
        (b'{"\xe9": 1}', r"a\.json cannot be read as the record: 'utf-8' codec .*; copy it again$"),
        (b'{"b": 1}', r"a\.json must hold a JSON object with a, b; it lacks \['a'\]; copy it again$"),
        (b"[]", r"a\.json must hold a JSON object with a, b; it lacks \['a', 'b'\]; copy it again$"),
        (None, r"a\.json cannot be read as the record: .*No such file.*; copy it again$"),
    ],
)
def test_json_that_cannot_be_read_says_why_and_the_way_out(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(path, "copy it again", what="the record", keys=("a", "b"))


def test_json_that_is_there_comes_back(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": ["é"], "b": null}', encoding="utf-8")
    assert read_json(path, "copy it again", keys=("a", "b")) == json_if_whole(path) == {"a": ["é"], "b": None}


def test_an_object_without_keys_of_its_own_is_asked_for_by_an_empty_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]")
    assert read_json(path, "copy it again") == []
    with pytest.raises(UserError, match="must hold a JSON object, got a list; copy it again"):
        read_json(path, "copy it again", keys=())


@pytest.mark.parametrize("content", ["{", None])
def test_json_that_can_be_found_out_again_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    assert json_if_whole(tmp_path / "a.json") is None


def test_halves_of_letters_come_back_from_json(tmp_path):
    value = {"\udcff.mp4": ["\ud83d alone", "\u4e00 whole"]}
    files.write_json_atomic(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json", "") == value
    assert "\u4e00" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_lines_that_are_kept_are_kept_to_the_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n{"a": 2}\n')
    files.keep_lines(path, 1)
    assert path.read_bytes() == b'{"a": "\xff"}\n'


def test_an_error_that_says_how_much_room_is_wanted_is_not_replaced(tmp_path):
    full = UserError("a takes 7 GB")
    full.__cause__ = OSError(errno.ENOSPC, "full")
    with pytest.raises(UserError, match="takes 7 GB"), whole(tmp_path / "a"):
        raise full


@pytest.mark.parametrize(
    "of_a_library",
    [
        RuntimeError("[enforce fail at inline_container.cc:672]"),
        SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)"),
        Exception("Input/output error (os error 5)"),  # of tokenizers
    ],
    ids=repr,
)
def test_what_a_library_could_not_write_is_said_by_the_system(tmp_path, of_a_library):
    path = tmp_path / "f"
    with pytest.raises(OSError, match=r"Input/output error: '.*/f'"), whole(path):  # noqa: PT012
        if not isinstance(of_a_library, RuntimeError):
            raise of_a_library
        try:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        except OSError:
            raise of_a_library  # noqa: B904
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_failing_disk_keeps_once_is_removed_all_the_same(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.touch()
    unlink, calls = Path.unlink, []

    def fails_once(self, missing_ok=False):
        calls.append(self)
        if len(calls) == 1:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", fails_once)
    files.discard(path)
    assert not path.exists()


def test_a_folder_that_a_failing_disk_keeps_once_is_removed_all_the_same(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.mkdir()
    (path / "a").touch()
    unlink, calls = os.unlink, []

    def fails_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(*arguments, **options)

    monkeypatch.setattr(os, "unlink", fails_once)
    files.discard_folder(path)
    assert not path.exists()


@pytest.mark.parametrize("moment", ["os.open", "os.close"])
def test_a_signal_while_a_partial_file_is_made_leaves_none(tmp_path, monkeypatch, moment):
    call = getattr(os, moment.removeprefix("os."))

    def and_a_signal(*arguments):
        found = call(*arguments)
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    with pytest.raises(Ended), signals_as_exceptions():  # noqa: PT012
        monkeypatch.setattr(moment, and_a_signal)
        with whole(tmp_path / "f") as partial:
            partial.write_text("never")
    assert list(tmp_path.iterdir()) == []
