"""One writer in a folder at a time: who is refused, what is said, and whose place is taken over."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tiny_videos import write_video

from emcl_train import cli
from emcl_train.endings import Ended, signals_as_exceptions
from emcl_train.errors import UserError
from emcl_train.runs import lock
from emcl_train.runs.lock import RECORD, Writer, making, require_new, require_quiet, without_locks, writing

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
from emcl_train.runs import lock
with lock.without_locks() if sys.argv[1] == "no-lock" else nullcontext(), getattr(lock, sys.argv[2])(Path(sys.argv[3])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other():
    """Starts another process that holds a folder. Returns: a function to do so."""
    started = []

    def start(path: Path, *, mode: str = "lock", how: str = "writing") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, mode, how, str(path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout.readline() == b"in\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def enter(path: Path, how=writing) -> None:
    with how(path):
        pass


@pytest.fixture(params=["lock", "no-lock"])
def mode(request):
    """With the kernel's locks, and with records alone."""
    if request.param == "lock":
        yield request.param
    else:
        with without_locks():
            yield request.param


@pytest.mark.parametrize("theirs", ["lock", "no-lock"])
@pytest.mark.parametrize("how", ["writing", "making"])
def test_the_second_is_refused_and_told_who_is_there(tmp_path, other, mode, theirs, how):
    process = other(tmp_path / "new", mode=theirs, how=how)
    who = rf"process {process.pid} on {re.escape(os.uname().nodename)}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with pytest.raises(UserError, match=rf"another process writes to .*new: {who}.*; wait for it, or choose another"):
        enter(tmp_path / "new", getattr(lock, how))
    process.terminate()
    process.wait()


@pytest.mark.parametrize("theirs", ["lock", "no-lock"])
def test_a_killed_one_is_taken_over_before_its_parent_asks_for_it(tmp_path, other, mode, theirs):
    process = other(tmp_path, mode=theirs)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still in the list of processes
    assert (tmp_path / RECORD).exists()
    enter(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_children_that_were_forked_do_not_hold_a_folder(tmp_path, other):
    reader, writer = os.pipe()
    with writing(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        assert (tmp_path / RECORD).exists()
    other(tmp_path)
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)


@pytest.mark.parametrize("how", [writing, making])
def test_a_process_cannot_enter_twice(tmp_path, mode, how):
    with how(tmp_path / "a"), pytest.raises(UserError, match=rf"another process writes to .*process {os.getpid()} on"):
        enter(tmp_path / "a", how)


def test_a_folder_without_anything_in_it_goes_again(tmp_path, mode):
    enter(tmp_path / "new" / "inside")
    assert not (tmp_path / "new" / "inside").exists()
    with writing(tmp_path / "new"):
        (tmp_path / "new" / "a").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
    enter(tmp_path / "out", making)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_fails_inside_frees_the_folder(tmp_path, mode):
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), writing(tmp_path):
            raise error
    enter(tmp_path)


# Records of others: this process's own, with something changed.


def put_record(folder: Path, **changes: object) -> None:
    (folder / RECORD).write_text(json.dumps(asdict(Writer.here()) | changes))


ENDED = {"process": 2**22 - 1, "started": "1"}
GONE = {
    "its number is nobody's": ENDED,
    "its number is another one's by now": {"started": "1"},
    "the machine was started again": {"boot": "before"},
    "another container, and nobody has it locked": ENDED | {"space": "pid:[1]", "locked": True},
}
THERE = {
    "a machine of the same name, of which nothing else is known": {"identity": "", "boot": "theirs"},
    "another machine": ENDED | {"machine": "elsewhere", "boot": "theirs"},
    "another machine of the same name": {"identity": "theirs", "boot": "theirs"},
    "another container that takes no locks": ENDED | {"space": "pid:[1]", "locked": False},
}


@pytest.mark.parametrize("changes", GONE.values(), ids=GONE)
def test_whoever_has_ended_on_this_machine_is_taken_over(tmp_path, changes):
    if "boot" in changes and not Writer.here().identity:
        pytest.skip("this machine has no identity")
    put_record(tmp_path, **changes)
    enter(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", THERE.values(), ids=THERE)
def test_whoever_cannot_be_seen_is_not_taken_over_and_the_way_out_is_said(tmp_path, mode, changes):
    if changes.get("identity") and not Writer.here().identity:
        pytest.skip("this machine has no identity")
    put_record(tmp_path, **changes)
    before = (tmp_path / RECORD).read_bytes()
    with pytest.raises(UserError, match=rf"if that process has ended, remove {tmp_path / RECORD}$"):
        enter(tmp_path)
    assert (tmp_path / RECORD).read_bytes() == before


def test_a_machine_that_was_started_again_and_has_it_locked_is_another(tmp_path, other):
    process = other(tmp_path)
    record = tmp_path / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"boot": "before"}))
    with pytest.raises(UserError, match=rf"process {process.pid} on"):
        enter(tmp_path)


def test_a_process_of_the_same_number_in_another_container_is_not_this_one(tmp_path):
    put_record(tmp_path, locked=False)
    require_quiet(tmp_path, here=True)
    put_record(tmp_path, locked=False, space="pid:[1]")
    with pytest.raises(UserError, match="another process writes"):
        require_quiet(tmp_path, here=True)


@pytest.mark.parametrize(("first", "second"), [("writing", "making"), ("making", "writing")])
def test_who_writes_into_a_folder_and_who_makes_it_see_each_other(tmp_path, other, mode, first, second):
    process = other(tmp_path / "new", how=first)
    with pytest.raises(UserError, match=rf"another process writes to .*new: process {process.pid} on"):
        enter(tmp_path / "new", getattr(lock, second))


def test_a_disk_that_may_only_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"run cannot be written: Read-only file system; choose another place"):
        enter(tmp_path / "run")


def test_letters_that_move_a_terminal_are_not_shown(tmp_path):
    put_record(tmp_path, machine="\x1b[2Jcluster\u202e", boot="theirs")
    with pytest.raises(UserError, match=r"on \?\?2Jcluster\?, since"):
        enter(tmp_path)


def folder_in_the_way(path: Path) -> None:
    path.mkdir()


def link_in_the_way(path: Path) -> None:
    path.with_name("mine").write_text("mine")
    path.symlink_to("mine")


@pytest.mark.parametrize("put", [os.mkfifo, folder_in_the_way, link_in_the_way, Path.touch])
def test_what_is_no_record_is_neither_followed_nor_removed(tmp_path, monkeypatch, put):
    monkeypatch.setattr(lock, "A_MOMENT", 0)
    put(tmp_path / RECORD)
    with pytest.raises(UserError, match=rf"{tmp_path / RECORD} is in the way .*; remove it"):
        enter(tmp_path)
    assert os.path.lexists(tmp_path / RECORD)
    if (tmp_path / "mine").exists():
        assert (tmp_path / "mine").read_text() == "mine"


def test_two_that_take_over_at_once_are_not_both_in(tmp_path, monkeypatch):
    """Between its look at the old record and removing it, another process has taken over already."""
    put_record(tmp_path, **ENDED)
    real, there = lock._Record._remove, []

    def slow(self, descriptor):
        if not there:
            there.append(writing(tmp_path))
            there[0].__enter__()
        real(self, descriptor)

    monkeypatch.setattr(lock._Record, "_remove", slow)
    with pytest.raises(UserError, match="another process writes to"):
        enter(tmp_path)
    there[0].__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_taken_away_and_replaced_stays(tmp_path):
    """Somebody removed it by hand, and another process is in: what it wrote down is not this process's to remove."""
    with writing(tmp_path):
        (tmp_path / RECORD).unlink()
        put_record(tmp_path, machine="elsewhere", boot="theirs")
    assert (tmp_path / RECORD).exists()


def test_a_disk_without_hard_links(tmp_path, monkeypatch, other):
    def link(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with writing(tmp_path), pytest.raises(UserError, match="another process writes to"):
        enter(tmp_path)
    assert list(tmp_path.iterdir()) == []
    other(tmp_path)
    with pytest.raises(UserError, match="another process writes to"):
        enter(tmp_path)


# Runs inside of others.


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("seeds", "seeds/seed-3"), ("run", "run/evaluations/em-block-8"), ("s", "s/seed-0/evaluations/again")],
)
def test_who_writes_a_folder_writes_the_runs_and_evaluations_inside(tmp_path, other, outer, inner):
    (tmp_path / inner).mkdir(parents=True)
    with writing(tmp_path / outer):
        enter(tmp_path / inner)  # the same process
    other(tmp_path / outer)
    with pytest.raises(UserError, match=rf"another process writes to {tmp_path / outer}: "):
        enter(tmp_path / inner)


def test_whose_a_folder_is_does_not_hang_on_where_the_command_was_started(tmp_path, other, monkeypatch):
    inner = tmp_path / "s" / "seed-0" / "evaluations" / "again"
    inner.mkdir(parents=True)
    other(tmp_path / "s")
    for place in (tmp_path / "s" / "seed-0", inner.parent, tmp_path / "s"):
        monkeypatch.chdir(place)
        with pytest.raises(UserError, match=rf"another process writes to {tmp_path / 's'}: "):
            enter(inner.relative_to(place))


def test_a_look_alone_leaves_everything(tmp_path, other):
    require_quiet(tmp_path / "absent")
    put_record(tmp_path, **ENDED)
    require_quiet(tmp_path)
    assert (tmp_path / RECORD).exists()


# Folders that cannot be locked, as on some network file systems: there `flock` fails as it does here.

NO_LOCKS = {
    "ENOLCK": errno.ENOLCK,
    "EOPNOTSUPP": errno.EOPNOTSUPP,
    "ENOSYS": errno.ENOSYS,
    "EBADF": errno.EBADF,
    "EINVAL": errno.EINVAL,
}


@pytest.fixture(params=list(NO_LOCKS.values()), ids=list(NO_LOCKS))
def no_locks(request, monkeypatch):
    def flock(descriptor, how):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("how", [writing, making])
def test_a_folder_that_cannot_be_locked_is_one_line_with_the_way_out(how, no_locks, tmp_path):
    told = pytest.raises(UserError, match=rf"{tmp_path}/a cannot be locked: .*another disk, or pass --no-lock if no")
    with told:
        enter(tmp_path / "a", how)
    with without_locks():
        enter(tmp_path / "a", how)
    with pytest.raises(UserError, match=r"pass --no-lock"):
        enter(tmp_path / "a", how)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_a_record_is_enough(no_locks, tmp_path, other):
    process = other(tmp_path, mode="no-lock")
    with without_locks(), pytest.raises(UserError, match=rf"another process writes to .*process {process.pid} on"):
        enter(tmp_path)
    process.kill()
    process.wait()
    with without_locks():
        enter(tmp_path)


def test_a_command_takes_no_lock_if_told_so(no_locks, tmp_path, capsys):
    write_video(tmp_path / "a.mp4", [1, 2])
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.mp4").rename(tmp_path / "videos" / "a.mp4")
    command = ["data", "compress", str(tmp_path / "videos"), str(tmp_path / "out")]
    assert cli.main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main([*command, "--no-lock"]) == 0
    assert (tmp_path / "out" / "a.mp4").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=rf"{tmp_path} cannot be written: Permission denied; choose another place"):
        enter(tmp_path)
    tmp_path.chmod(0o700)


def test_many_at_once_are_in_one_after_the_other(tmp_path, mode):
    """Each adds one to a number in a file, which would come out too small if two were in at once."""
    program = (
        "import sys, time; from pathlib import Path; from contextlib import nullcontext\n"
        "from emcl_train.runs import lock; from emcl_train.errors import UserError\n"
        "folder = Path(sys.argv[1]); done = 0\n"
        "with lock.without_locks() if sys.argv[2] == 'no-lock' else nullcontext():\n"
        "    while done < 25:\n"
        "        try:\n"
        "            with lock.writing(folder):\n"
        "                path = folder / 'n'; n = int(path.read_text()); time.sleep(0.0005)\n"
        "                path.write_text(str(n + 1)); done += 1\n"
        "        except UserError as error:\n"
        "            assert 'another process writes' in str(error) or 'again and again' in str(error), error\n"
        "            time.sleep(0.001)\n"
    )
    (tmp_path / "n").write_text("0")
    command = [sys.executable, "-c", program, str(tmp_path), mode]
    processes = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert (tmp_path / "n").read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["n"]


def test_since_when_is_a_time_with_its_zone():
    since = Writer.here().since
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", since)
    assert Writer.of(json.dumps(asdict(replace(Writer.here(), process=7))).encode()).process == 7


@pytest.mark.parametrize("mode", [writing, making])
@pytest.mark.parametrize("moment", ["os.link", "os.close"])
def test_a_signal_while_a_record_is_put_or_taken_away_leaves_none(tmp_path, monkeypatch, mode, moment):
    call = getattr(os, moment.removeprefix("os."))

    def and_a_signal(*arguments):
        found = call(*arguments)
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    (tmp_path / "f").mkdir()
    with pytest.raises(Ended), signals_as_exceptions():  # noqa: PT012
        monkeypatch.setattr(moment, and_a_signal)
        with mode(tmp_path / "f"):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["f"]


def test_what_a_killed_process_left_beside_what_it_made_goes_with_the_refusal(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    path = tmp_path / "f"
    path.touch()
    lock._beside(path).path.write_text(json.dumps(asdict(replace(Writer.here(), process=process.pid, started="0"))))
    with pytest.raises(UserError, match="exists already and is not overwritten; choose another name"):
        require_new(path, "choose another name")
    assert list(tmp_path.iterdir()) == [path]
