"""Files that change together: at whatever step the process is killed, all are old or all are new."""

import ctypes
import errno
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_run import make_run
from killed import killed_at_each_step

from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.runs import lock
from emcl_train.runs import together as together_file
from emcl_train.runs.evaluations import Evaluation, set_aside
from emcl_train.runs.files import JOURNAL, current, partial_of, remove, write_text_atomic
from emcl_train.runs.folder import load_run
from emcl_train.runs.lock import settle, writing
from emcl_train.runs.together import together

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def content(folder: Path) -> dict[str, str]:
    """What a folder holds for others: no records of writers, and nothing half written."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_text() for name, path in found.items() if path.name[0] != "."}


@pytest.fixture(params=["files alone", "a folder inside", "no exchange", "no hard links"])
def folder(request, tmp_path, monkeypatch):
    """A folder with an older set of files and one of somebody else, on disks of different kinds."""
    place = tmp_path / "set"
    place.mkdir()
    for name in ("a", "b", "gone"):
        (place / name).write_text("old")
    (place / "theirs").write_text("theirs")
    if request.param == "a folder inside":
        (place / "more").mkdir()
        (place / "more" / "file").write_text("theirs")
    if request.param == "no exchange":
        library = ctypes.CDLL(None, use_errno=True)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
        library.renameat2 = lambda *_: -1
    if request.param == "no hard links":

        def link(source, target):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
    return place


def renew(folder: Path) -> None:
    with writing(folder), together(folder):
        write_text_atomic(folder / "a", "half")
        write_text_atomic(folder / "a", "new")
        remove(folder / "gone")
        write_text_atomic(folder / "b", "new")
        write_text_atomic(folder / "c", "new")
        assert current(folder / "a").read_text() == "new"


OLD = {"a": "old", "b": "old", "gone": "old"}
NEW = {"a": "new", "b": "new", "c": "new"}


def test_killed_at_any_step_all_are_old_or_all_are_new(folder, tmp_path):
    theirs = {name: text for name, text in content(folder).items() if text == "theirs"}
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    seen = []
    for _ in killed_at_each_step(lambda: renew(folder)):
        settle(folder)
        found = content(folder)
        assert found in (OLD | theirs, NEW | theirs)
        seen.append(found == NEW | theirs)

        # Nothing is left by the next one, and it comes to the same.
        with writing(folder):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "set"]
        assert not list(folder.rglob(".*"))
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
    assert content(folder) == NEW | theirs
    assert seen == sorted(seen)
    assert {False, True} == set(seen)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="the system cannot exchange two names")
def test_where_a_folder_holds_files_alone_nobody_ever_sees_both(tmp_path):
    """Those who read the files by other means than ours, without whoever would finish a change."""
    folder = tmp_path / "set"

    def old():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in OLD:
            (folder / name).write_text("old")

    old()
    for _ in killed_at_each_step(lambda: renew(folder)):
        assert content(folder) in (OLD, NEW)
        old()
    assert content(folder) == NEW


def test_what_others_put_there_meanwhile_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in OLD:
        (folder / name).write_text("old")
    (folder / "notes").write_text("before")
    flush = together_file.flush

    def flush_late(path):
        flush(path)
        if path.parent == tmp_path and path != folder:  # the second folder is whole, and has not its place yet
            (folder / "of an editor").write_text("saved")
            (folder / "notes.new").write_text("after")
            os.replace(folder / "notes.new", folder / "notes")

    monkeypatch.setattr(together_file, "flush", flush_late)
    renew(folder)
    assert content(folder) == NEW | {"notes": "after", "of an editor": "saved"}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_block_that_raises_leaves_everything_as_it_was(folder):
    before = content(folder)

    def fail():
        with writing(folder), together(folder):
            write_text_atomic(folder / "a", "new")
            remove(folder / "gone")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content(folder) == before
    assert not list(folder.rglob(".*"))


def test_the_folder_that_one_stands_in_stays_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("old")
    (tmp_path / "gone").write_text("old")
    inode = tmp_path.stat().st_ino
    renew_here = Path()
    with writing(renew_here), together(renew_here):
        write_text_atomic(renew_here / "a", "new")
        remove(renew_here / "gone")
    assert tmp_path.stat().st_ino == inode
    assert content(tmp_path) == {"a": "new"}


def test_a_disk_that_fails_once_in_the_middle_of_a_change_is_asked_again(tmp_path, monkeypatch):
    """Where two folders cannot change places: the journal is there, so the change has to come about."""
    place = tmp_path / "set"
    (place / "more").mkdir(parents=True)
    for name in ("a", "b"):
        (place / name).write_text("old")
    replace, failed = os.replace, []

    def fails_once(source, target, **options):
        if Path(target).name == "b" and not failed:
            failed.append(target)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", fails_once)
    with writing(place), together(place):
        write_text_atomic(place / "a", "new")
        write_text_atomic(place / "b", "new")
    assert failed
    assert content(place) == {"a": "new", "b": "new"}
    assert not (place / JOURNAL).exists()


def test_modes_of_folder_and_files_stay(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir(mode=0o750)
    (folder / "theirs").write_text("theirs")
    (folder / "theirs").chmod(0o600)
    renew(folder)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert (folder / "theirs").stat().st_mode & 0o777 == 0o600
    assert (folder / "theirs").stat().st_nlink == 1


def half_done(folder):
    """A folder in which a command was killed between its journal and the renaming."""
    folder.mkdir()
    partial = partial_of(folder / "a")
    partial.write_text("new")
    (folder / JOURNAL).write_text(json.dumps({"renamed": {partial.name: "a"}, "removed": []}))
    return folder


def test_a_half_done_change_that_cannot_be_ended_here_is_one_line_at_once(tmp_path, monkeypatch):
    folder = half_done(tmp_path / "set")
    real = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(time, "sleep", None)  # nothing to wait for
    with pytest.raises(UserError, match=r"set was left in the middle of a change .*Read-only.*; copy the folder to"):
        settle(folder)


def test_a_half_done_change_that_another_process_ends_is_waited_for(tmp_path, monkeypatch):
    folder = half_done(tmp_path / "set")
    real, left = lock.writing, [3]

    @contextmanager
    def busy(path):
        left[0] -= 1
        if left[0]:
            raise lock.BusyError("another process writes")
        with real(path):
            yield

    monkeypatch.setattr(lock, "writing", busy)
    settle(folder)
    assert (folder / "a").read_text() == "new"


# A journal of somebody else.


@pytest.mark.parametrize(
    "journal",
    [
        {"renamed": {}, "removed": ["../mine"]},
        {"renamed": {}, "removed": ["inside"]},
        {"renamed": {"a": "b"}, "removed": []},
        {"renamed": {"PARTIAL": "other"}, "removed": []},
        {"renamed": {"PARTIAL": "../a"}, "removed": []},
        {"renamed": {"LINK": "link"}, "removed": []},
        {"renamed": 3, "removed": []},
        {"renamed": {}, "removed": [3]},
        [],
        {},
        3,
    ],
)
def test_a_journal_that_is_none_of_ours_is_refused(tmp_path, journal):
    folder = tmp_path / "set"
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    (folder / "a").write_text("mine")
    names = {"PARTIAL": partial_of(folder / "a").name, "LINK": partial_of(folder / "link").name}
    (folder / names["PARTIAL"]).write_text("theirs")
    (folder / names["LINK"]).symlink_to(tmp_path / "mine")
    text = json.dumps(journal)
    for name, partial in names.items():
        text = text.replace(name, partial)
    (folder / JOURNAL).write_text(text)
    with (
        pytest.raises(UserError, match=r"changing\.json cannot be read as what is left of a change .*; remove it"),
        writing(folder),
    ):
        pass
    assert (tmp_path / "mine").read_text() == (folder / "a").read_text() == "mine"


# What is written so.


def evaluation(value: float) -> Evaluation:
    figures = {"R@1": value, "R@5": 50.0, "R@10": 60.0, "MdR": 1.0, "MnR": 1.0}
    rows = [{"name": "EMCL-Net", "text_to_video": figures, "video_to_text": figures}]
    results = {"rows": rows, "split": "test", "queries": 1, "gallery": 1, "em_block": None, "selection": ""}
    queries = {"video_ids": [str(value)], "captions": [str(value)]}
    tensors = {
        "similarity_off": torch.full((1, 1), value),
        "caption_clip": torch.zeros(1, dtype=torch.int64),
        "text": torch.ones(1, 4),
        "frames": torch.ones(1, 2, 4),
        "frame_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    return Evaluation(results, queries, tensors)


def value_of(folder: Path) -> float:
    """Of the one evaluation whose files lie in a folder."""
    run = load_run(folder)
    values = {run.results["rows"][0]["text_to_video"]["R@1"], float(run.captions[0]), float(run.similarity[0, 0])}
    assert len(values) == 1
    return values.pop()


@pytest.mark.parametrize("place", [".", "evaluations/again"])
def test_an_evaluation_changes_as_a_whole(tmp_path, place):
    run = tmp_path / "run"
    config = make_run(run)
    folder = run / place
    evaluation(1.0).write(run, folder, config)
    (run / "evaluations").mkdir(exist_ok=True)
    seen = set()

    def work():
        with writing(run):
            evaluation(2.0).write(run, folder, config)

    for _ in killed_at_each_step(work):
        seen.add(value_of(folder))
        with writing(run, deep=True):
            evaluation(1.0).write(run, folder, config)
        assert not list(run.rglob(".*"))
    assert seen == {1.0, 2.0}
    assert value_of(folder) == 2.0


def test_a_new_evaluation_is_there_as_a_whole_or_not_at_all(tmp_path):
    run = tmp_path / "run"
    config = make_run(run)
    folder = run / "evaluations" / "em-block-8"

    def work():
        with writing(run):
            evaluation(2.0).write(run, folder, config)

    for _ in killed_at_each_step(work):
        if folder.exists():
            assert value_of(folder) == 2.0
            shutil.rmtree(folder)
        with writing(run, deep=True):
            pass
        assert not list((run / "evaluations").rglob("*"))
    assert value_of(folder) == 2.0


def test_figures_that_are_set_aside_are_never_lost_nor_doubled(tmp_path):
    run = tmp_path / "run"
    make_run(run)
    results = (run / "results.json").read_bytes()
    before = tmp_path / "before"
    shutil.copytree(run, before)

    def work():
        with writing(run, deep=True):
            set_aside(run)

    for _ in killed_at_each_step(work):
        settle(run)
        assert results in [path.read_bytes() for path in run.rglob("results.json")]
        work()
        assert not (run / "results.json").exists()
        assert [path.name for path in (run / "evaluations").iterdir()] == ["before-the-last-epoch"]
        load_run(run / "evaluations" / "before-the-last-epoch")
        shutil.rmtree(run)
        shutil.copytree(before, run)


@pytest.mark.parametrize("where", ["out", "."])
def test_refined_files_change_with_their_map(tmp_path, monkeypatch, where):
    """In a folder of their own, and in one with other files, over those of another setting."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(41, 24)).astype(np.float32)
    np.save("t.npy", rows)
    np.save("v.npy", (rows + 1)[::-1])

    def refine(bases: int, *more: str) -> None:
        settings = ["--map", "em", "--num-bases", str(bases), "--num-starts", "1"]
        assert cli.main(["refine", "t.npy", "v.npy", "--out", where, *settings, *more]) == 0

    def files() -> dict[str, bytes]:
        names = ("text.npy", "video.npy", "map.safetensors", "results.json")
        return {name: path.read_bytes() for name in names if (path := Path(where, name)).exists()}

    refine(5, "--paired")
    old = files()
    refine(7)
    new = files()
    assert old.keys() == new.keys() | {"results.json"}
    refine(5, "--paired")

    seen = set()
    for _ in killed_at_each_step(lambda: refine(7)):
        if where == ".":
            settle(Path(where))
        found = files()
        assert found in (old, new)
        seen.add(found == new)
        refine(5, "--paired")
        assert files() == old
        assert not list(tmp_path.rglob(".*"))
    assert files() == new
    assert seen == {False, True}


def test_what_is_left_of_a_change_keeps_its_partial_files(tmp_path):
    """Somebody who writes there without a lock clears away what others left, but not what is needed still."""
    partial = tmp_path / f".a.{8 * '0'}-1-{16 * '0'}.partial"
    partial.write_text("new")
    os.utime(partial, (1, 1))
    (tmp_path / JOURNAL).write_text(json.dumps({"renamed": {partial.name: "a"}, "removed": []}))
    write_text_atomic(tmp_path / "b", "x")
    settle(tmp_path)
    assert content(tmp_path) == {"a": "new", "b": "x"}
