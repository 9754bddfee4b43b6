"""Files and folders that appear when they are whole, and JSON that is read or refused with the reason."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from tiny_videos import write_video

from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.runs import files
from emcl_train.runs.files import json_if_whole, partial_of, read_json, whole, whole_folder


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


def test_a_full_disk_in_the_block_is_named(tmp_path):
    with pytest.raises(UserError, match=r"the disk is full: .*a could not be written"), whole(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names_in(tmp_path) == []


def test_processes_that_share_a_file_do_not_share_what_is_not_whole(tmp_path):
    assert str(os.getpid()) in partial_of(tmp_path / "a", shared=True).name
    assert partial_of(tmp_path / "a").name == ".a.partial"


def test_a_folder_appears_at_the_end_of_its_block_without_what_was_left_there(tmp_path):
    left = tmp_path / ".out.partial" / "old"
    left.mkdir(parents=True)
    (left / "half").touch()
    (left.parent / "half").touch()

    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").touch()
        assert not (tmp_path / "out").exists()
    assert names_in(tmp_path) == ["out", "out/a"]


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


# Folders that cannot be locked, as on some network file systems: there `flock` fails as it does here.

NO_LOCKS = {
    "ENOLCK": errno.ENOLCK,
    "EOPNOTSUPP": errno.EOPNOTSUPP,
    "ENOSYS": errno.ENOSYS,
    "EBADF": errno.EBADF,  # of a folder that is open for reading only
    "EINVAL": errno.EINVAL,
}


@pytest.fixture(params=list(NO_LOCKS.values()), ids=list(NO_LOCKS))
def no_locks(request, monkeypatch):
    def flock(descriptor, how):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("lock", [files.alone, files.one_at_a_time])
def test_a_folder_that_cannot_be_locked_is_one_line_with_the_way_out(lock, no_locks, tmp_path):
    told = pytest.raises(UserError, match=rf"{tmp_path} cannot be locked: .*another disk, or pass --no-lock if no")
    with told, lock(tmp_path):
        pass
    with files.without_locks(), lock(tmp_path):
        pass
    with pytest.raises(UserError, match=r"pass --no-lock"), lock(tmp_path):
        pass


def test_a_command_takes_no_lock_if_told_so(no_locks, tmp_path, capsys):
    write_video(tmp_path / "a.mp4", [1, 2])
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.mp4").rename(tmp_path / "videos" / "a.mp4")
    command = ["data", "compress", str(tmp_path / "videos"), str(tmp_path / "out")]
    assert cli.main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main([*command, "--no-lock"]) == 0
    assert (tmp_path / "out" / "a.mp4").is_file()


def test_a_busy_folder_is_still_busy(tmp_path):
    with files.alone(tmp_path), pytest.raises(UserError, match=r"another process writes to"), files.alone(tmp_path):
        pass


def test_halves_of_letters_come_back_from_json(tmp_path):
    value = {"\udcff.mp4": ["\ud83d alone", "\u4e00 whole"]}
    files.write_json_atomic(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json", "") == value
    assert "\u4e00" in (tmp_path / "a.json").read_text(encoding="utf-8")
