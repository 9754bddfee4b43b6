"""One writer in a folder at a time: who it is, on which machine, and since when. Nothing here needs torch.

A writer leaves a record in the folder, `.writing.json`, which is there whole or not at all and which the kernel locks
for as long as the process lives. The lock says for certain that somebody is there, also in another container or, on
network disks, on another machine; the record says who, and works where nothing can be locked. A record of a process of
this machine that has ended is taken over. docs/design/one-writer.md has the reasons.
"""

import errno
import fcntl
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from emcl_train.endings import held_back
from emcl_train.errors import UserError
from emcl_train.flags import flag, takes
from emcl_train.runs.files import (
    JOURNAL,
    NEW,
    clear_partial,
    discard,
    partial_of,
    raise_if_disk_full,
    require_free,
)
from emcl_train.runs.machine import runs, started, this_machine
from emcl_train.runs.places import EVALUATIONS, SEED_FOLDER
from emcl_train.runs.together import finish_change

RECORD = ".writing.json"
"""In a folder that is written to. That of a file, or of a folder that appears when it is whole, lies beside it and has
its name in front."""
LARGEST_RECORD = 1 << 12
NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
A_MOMENT = 0.05
MOMENTS = 60

_locking = True
_held: set[int] = set()
"""Descriptors of this process's locks."""


def _forget() -> None:
    """Close a forked process's copies: they would hold the locks after this process has ended."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def without_locks() -> Iterator[None]:
    """Ask the kernel for no lock inside the block, for file systems that have none; records alone are kept then."""
    global _locking
    before, _locking = _locking, False
    try:
        yield
    finally:
        _locking = before


class BusyError(UserError):
    """Another process writes there."""

    writer: "Writer | None" = None
    """Which one."""


@dataclass(frozen=True)
class Writer:
    """Who writes."""

    process: int
    machine: str
    since: str
    started: str
    """Of the process, by the kernel's clock: its number alone is another one's later."""
    identity: str
    boot: str
    space: str
    locked: bool
    """Whether the record is locked."""

    @classmethod
    def here(cls) -> "Writer":
        """This process."""
        machine = this_machine()
        return cls(
            process=os.getpid(),
            machine=machine.name,
            since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            started=started(os.getpid()),
            identity=machine.identity,
            boot=machine.boot,
            space=machine.space,
            locked=_locking,
        )

    @classmethod
    def of(cls, text: bytes) -> "Writer | None":
        """The one that a record names; None where it is no record."""
        try:
            values = json.loads(text)
            found = {entry.name: values[entry.name] for entry in fields(cls)}
            if any(type(value) is not type(getattr(cls.here(), name)) for name, value in found.items()):
                return None
            return cls(**found)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def has_ended(self, *, unlocked: bool | None) -> bool:
        """Whether it is certain that the process has ended, and its number or its lock says so.

        Args:
            unlocked: whether nobody has the record locked; None if the kernel was not asked, or does not know.
        """
        here = this_machine()
        if self.boot == here.boot:
            if self.space == here.space and (here.boot or self.machine == here.name):
                return not runs(self.process, self.started)
            # A process that cannot be seen from here, as in another container: the kernel knows it by its lock.
            return bool(here.boot) and self.locked and unlocked is True

        # This machine was started again since. Names alone do not say that: containers on two machines may share one.
        same = bool(self.identity) and self.identity == here.identity
        return self.machine == here.name and same and unlocked is not False

    @property
    def is_this_process(self) -> bool:
        """Whether it is the one that asks. Processes of two containers may have the same number."""
        here = Writer.here()
        return all(
            getattr(self, name) == getattr(here, name) for name in ("process", "machine", "started", "boot", "space")
        )

    @property
    def is_near(self) -> bool:
        """Whether its number is one of those that can be seen from here."""
        here = this_machine()
        return (self.machine, self.boot, self.space) == (here.name, here.boot, here.space)

    def __str__(self) -> str:
        machine, since = (re.sub(r"[^\w.:+ -]", "?", text)[:64] for text in (self.machine, self.since))
        return f"process {self.process} on {machine}, since {since}"


@contextmanager
def writing(folder: Path, *, deep: bool = False) -> Iterator[None]:
    """Be the only one who writes into a folder, from before its first byte on; whatever ends this process frees it.

    The folder is made if it is not there, and goes again if nothing was put into it. What an earlier writer left half
    done is finished, or removed.

    Args:
        folder: it, or for what lies in it, the run that it belongs to.
        deep: look for what was left half written in the folders inside too.

    Raises:
        UserError: another process writes there, which is named, or the folder cannot be locked.
    """
    made = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _recorded(folder / RECORD, folder):
            require_quiet(folder, here=True)
            _beside(folder).require_free(here=True)  # who makes a folder of this name, to appear when it is whole
            finish_change(folder)
            clear_partial(folder.parent, of=folder.name, ours=True)
            for inside in _folders(folder) if deep else [folder]:
                clear_partial(inside, ours=True)
            yield
    finally:
        if made:
            _remove_if_empty(folder)


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Be the only one who makes a file, or a folder that appears when it is whole; the like of `writing`.

    Args:
        path: what is made.

    Raises:
        UserError: another process makes it, which is named, or it cannot be locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _recorded(_beside(path).path, path):
        require_quiet(path, here=True)
        clear_partial(path.parent, of=path.name, ours=True)
        yield


def require_new(path: Path, another: str = "choose another --out") -> None:
    """Raise a UserError where what is to be made is there already. What a killed process left beside it goes.

    Args:
        path: the file or folder.
        another: how to name another one, for errors.
    """
    if not os.path.lexists(path):
        return
    with suppress(UserError, OSError), making(path):
        pass
    require_free(path, another)


def _beside(path: Path) -> "_Record":
    """The record of whoever makes a file or a folder."""
    named = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    return _Record(named.parent / f".{named.name}{RECORD}", path)


def require_quiet(folder: Path, *, here: bool = False) -> None:
    """Raise a UserError while another process writes into a folder, or into one that stands for it.

    Args:
        folder: it.
        here: not if it is this process.
    """
    for held in (folder, *_around(folder)):
        _Record(held / RECORD, held).require_free(here=here)


def writer_of(folder: Path) -> Writer | None:
    """Who writes into a folder, or into one that stands for it: this process too. None: nobody, as far as is known."""
    try:
        require_quiet(folder)
    except BusyError as error:
        return error.writer
    except UserError:  # something is in the way of records, which whoever writes will say
        return None
    return None


def settle(folder: Path) -> None:
    """Before files of a folder are read: bring to its end a change of several that a killed process left half done.

    Raises:
        UserError: that cannot be done.
    """
    for moment in range(MOMENTS):
        if not os.path.lexists(folder / JOURNAL):
            return
        try:
            with writing(folder):
                return
        except BusyError:  # which is at it
            if moment == MOMENTS - 1:
                raise
            time.sleep(A_MOMENT)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise UserError(
                f"{folder} was left in the middle of a change of several files, and the rest of it cannot be written "
                f"here ({error.__cause__.strerror}); copy the folder to where you may write, and read it there"
            ) from error


def _around(folder: Path) -> list[Path]:
    """The folders whose writers write into this one too: an evaluation's run, and the folder of a run's seeds."""
    found = []
    folder = folder.absolute()  # a name such as "evaluations/x" does not say whose they are
    if folder.parent.name == EVALUATIONS:
        folder = folder.parent.parent
        found.append(folder)
    if SEED_FOLDER.fullmatch(folder.name):
        found.append(folder.parent)
    return found


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those inside it, without what links lead to."""
    for path, _, _ in os.walk(folder):
        yield Path(path)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


@contextmanager
def _recorded(path: Path, what: Path) -> Iterator[None]:
    """Have a record at a path, whose folder is there."""
    record = _Record(path, what)
    owner = os.getpid()
    descriptor = None
    try:
        with held_back():
            descriptor = record.take()
            _held.add(descriptor)
        yield
    finally:
        if descriptor is not None and os.getpid() == owner:  # a forked process that ends here has no lock
            with held_back():
                _held.discard(descriptor)
                record.leave(descriptor)


@dataclass(frozen=True)
class _Record:
    """The record at a path, of whoever writes."""

    path: Path
    what: Path
    """What is written, for errors."""

    def take(self) -> int:
        """Put this process's record there. Returns: the open file, which is locked."""
        for _ in range(MOMENTS):
            descriptor = self._place()
            if descriptor is not None:
                return descriptor
            self.require_free(take_over=True)
        raise UserError(f"{self.path} is there again and again; remove it if no other process writes to {self.what}")

    def leave(self, descriptor: int) -> None:
        """Take this process's record away, if nobody has done so."""
        try:
            if os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                discard(self.path)
        except OSError:  # the folder has gone, or cannot be written any more: the process's end frees it
            pass
        finally:
            os.close(descriptor)

    def require_free(self, *, here: bool = False, take_over: bool = False) -> None:
        """Raise a UserError if somebody has the record.

        Args:
            here: this process may have it.
            take_over: remove the record of a process that has ended.
        """
        for _ in range(MOMENTS):
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return
            except OSError as error:
                raise self._in_the_way(str(error.strerror)) from error

            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise self._in_the_way("it is no file")
                writer = Writer.of(os.read(descriptor, LARGEST_RECORD))
                unlocked = self._is_unlocked(descriptor)
                if writer is not None:
                    if writer.has_ended(unlocked=unlocked):
                        if take_over:
                            self._remove(descriptor)
                        return
                    if here and writer.is_this_process:
                        return
                    raise self._busy(writer, certain=unlocked is False or writer.is_near)
            finally:
                os.close(descriptor)

            time.sleep(A_MOMENT)  # it is being written
        raise self._in_the_way("it cannot be read")

    def _place(self) -> int | None:
        """A locked record with this process in it, at its path; None if there is one already."""
        text = (json.dumps(asdict(Writer.here())) + "\n").encode()
        temporary = partial_of(self.path)
        try:
            descriptor = self._new(temporary, text)
            try:
                os.link(temporary, self.path)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in NO_HARD_LINKS:
                    raise
                # Here others may see the record before it is whole.
                descriptor = self._new(self.path, text)
            return descriptor
        except FileExistsError:
            return None
        except OSError as error:
            raise_if_disk_full(error, self.what)
            raise UserError(
                f"{self.what} cannot be written: {error.strerror}; choose another place, or change the permissions"
            ) from error
        finally:
            with suppress(OSError):  # on a disk that may only be read, also for what is not there
                temporary.unlink(missing_ok=True)

    def _new(self, path: Path, text: bytes) -> int:
        """A new file with this text, open and locked."""
        descriptor = os.open(path, os.O_RDWR | NEW, 0o666)
        try:
            self._lock(descriptor)
            os.write(descriptor, text)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return descriptor

    def _lock(self, descriptor: int) -> None:
        if not _locking:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # Network file systems without a lock service, and some that are programs themselves.
            raise UserError(
                f"{self.what} cannot be locked: {error.strerror}; its file system has no locks. Choose a folder on "
                f"another disk, or pass --no-lock if no other process writes there"
            ) from error

    def _is_unlocked(self, descriptor: int) -> bool | None:
        """Whether nobody has an open record locked; None if the kernel was not asked, or does not know."""
        if not _locking:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def _remove(self, descriptor: int) -> None:
        """Remove the record of a process that has ended, unless somebody else has put another one there meanwhile."""
        with _one_at_a_time():
            if self.path.exists() and os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                self.path.unlink()

    def _busy(self, writer: Writer, *, certain: bool) -> BusyError:
        another = f"choose another folder with {flag('out')}" if takes("out") else "pass another folder"
        gone = "" if certain else f"; if that process has ended, remove {self.path}"
        error = BusyError(f"another process writes to {self.what}: {writer}; wait for it, or {another}{gone}")
        error.writer = writer
        return error

    def _in_the_way(self, why: str) -> UserError:
        return UserError(
            f"{self.path} is in the way ({why}), where this program notes who writes to {self.what}; remove it"
        )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait for other processes of this machine that are in here. They are for an instant."""
    descriptor = None
    try:
        descriptor = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_CLOEXEC)
        for _ in range(MOMENTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(A_MOMENT)
    except OSError:  # it cannot be locked; the instant is short
        pass
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
