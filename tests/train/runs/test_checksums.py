"""Changed bytes of binary files are noticed, and a kill between two writes is not taken for one."""

import json
import zlib

import pytest

from emcl_train.errors import UserError
from emcl_train.runs import checksums
from emcl_train.runs.checksums import (
    CHECKSUMS,
    checksum_of,
    narrow,
    read_checksums,
    read_unchanged,
    require_unchanged,
    say_without_checksums,
    whole_noted,
)


def write(path, data):
    with whole_noted(path) as partial:
        partial.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_a_checksum_is_of_all_bytes(tmp_path, size):
    data = bytes(n % 251 for n in range(size))
    path = tmp_path / "file"
    path.write_bytes(data)
    assert checksum_of(path) == f"crc32:{zlib.crc32(data):08x}"


@pytest.mark.parametrize("place", [0, 4999, 9999])
def test_one_changed_byte_is_refused_with_the_way_out(tmp_path, place):
    path = write(tmp_path / "weights", bytes(10_000))
    require_unchanged(path, "copy it again")

    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"weights is damaged or was replaced: .*; copy it again; .*verify .* --accept"):
        require_unchanged(path, "copy it again")


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("moment", ["before the checksum", "before the file", "after the file"])
def test_a_kill_at_any_moment_leaves_a_file_and_its_checksum(tmp_path, monkeypatch, moment, noted):
    """Twice in a row, over a file of an earlier version too."""
    path = tmp_path / "weights"
    if noted:
        write(path, b"one")
    else:
        path.write_bytes(b"one")

    class Killed(BaseException):
        pass

    real = checksums.note

    def killed(path, sums):
        if moment == "after the file" and len(sums) > 1:
            return real(path, sums)
        if moment == "before the file":
            real(path, sums)
        raise Killed

    for data in (b"two", b"three"):
        monkeypatch.setattr(checksums, "note", killed)
        with pytest.raises(Killed):
            write(path, data)
        monkeypatch.undo()
        require_unchanged(path, "")
        assert path.read_bytes() == (data if moment == "after the file" else b"one")

    write(path, b"four")
    assert read_checksums(tmp_path) == {"weights": [checksum_of(path)]}


def test_a_file_without_a_checksum_is_said_once_and_read(tmp_path, capsys):
    path = tmp_path / "weights"
    path.write_bytes(b"of an earlier version")
    require_unchanged(path, "")
    require_unchanged(path, "")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path} has files without checksums" in said


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "5",
        "null",
        '{"weights"',
        '{"weights": 5}',
        '{"../weights": ["crc32:00000000"]}',
        '{"/dev/zero": ["crc32:00000000"]}',
        '{"..": ["crc32:00000000"]}',
        '{"weights": []}',
        '{"weights": ["md5:0"]}',
        "\xff",
        "{" * 9999,
    ],
)
def test_damaged_checksums_are_one_line_that_names_them(tmp_path, content):
    path = write(tmp_path / "weights", b"one")
    (tmp_path / CHECKSUMS).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{CHECKSUMS} (cannot be read|must hold|names).*verify .* --accept"):
        require_unchanged(path, "")


def replaced(monkeypatch, name, path, times):
    """Let another process replace a file, and its checksum, whenever `checksums.<name>` has just been called."""
    real, left = getattr(checksums, name), [times]

    def then_replace(*args):
        found = real(*args)
        if left[0]:
            left[0] -= 1
            write(path, b"number %d" % left[0])
        return found

    monkeypatch.setattr(checksums, name, then_replace)


@pytest.mark.parametrize("name", ["read_checksums", "identity_of"])
def test_a_file_that_is_replaced_while_it_is_compared_is_not_damaged(tmp_path, monkeypatch, name):
    path = write(tmp_path / "weights", b"before")
    replaced(monkeypatch, name, path, 3)
    require_unchanged(path, "")


def test_what_is_read_are_the_bytes_that_were_compared(tmp_path, monkeypatch):
    path = write(tmp_path / "weights", b"before")
    replaced(monkeypatch, "require_unchanged", path, 3)
    read = []
    assert read_unchanged(path, "", lambda path: read.append(path.read_bytes()) or read[-1]) == b"number 0"
    assert len(read) > 1
    replaced(monkeypatch, "require_unchanged", path, 99)
    with pytest.raises(UserError, match="is replaced again and again while it is read; wait"):
        read_unchanged(path, "", lambda path: path.read_bytes())


def test_damaged_checksums_end_no_training_at_its_next_save(tmp_path, capsys):
    path = write(tmp_path / "weights", b"one")
    (tmp_path / CHECKSUMS).write_text("{")
    write(path, b"two")
    said = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / CHECKSUMS} cannot be read" in said
    assert said.count("warning:") == 1
    require_unchanged(path, "")


def test_an_older_run_is_one_line_of_the_first_process(tmp_path, capsys, monkeypatch):
    (tmp_path / "run" / "state").mkdir(parents=True)
    monkeypatch.setenv("RANK", "1")
    say_without_checksums(tmp_path / "run")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    say_without_checksums(tmp_path / "run" / "state")
    say_without_checksums(tmp_path / "run")
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'run'} has files without checksums" in said


def test_checksums_of_other_files_stay(tmp_path):
    write(tmp_path / "one", b"1")
    write(tmp_path / "two", b"2")
    checksums.forget(tmp_path / "one")
    assert json.loads((tmp_path / CHECKSUMS).read_text()) == {"two": [checksum_of(tmp_path / "two")]}


def test_a_replacement_that_was_cut_short_is_noted_to_its_end(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_bytes(b"new")
    old.write_bytes(b"old")
    of_new, of_old = checksum_of(new), checksum_of(old)
    both = [of_new, of_old]
    (tmp_path / CHECKSUMS).write_text(
        json.dumps({"new": both, "old": both, "none": [of_new, ""], "damaged": [of_new, ""], "lost": [of_new]})
    )
    (tmp_path / "damaged").write_bytes(b"other")
    narrow(tmp_path)
    assert read_checksums(tmp_path) == {
        "new": [of_new], "old": [of_old], "damaged": [of_new, ""], "lost": [of_new]
    }  # fmt: skip
