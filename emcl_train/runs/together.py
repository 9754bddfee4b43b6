"""Files that belong together change together: whatever kills the process, all of them are old or all are new.

Inside `together(folder)` every file of that folder is written whole under a name of its own, and none takes its place.
At the end one step of the system brings about the whole change:

- Where the folder holds files alone, a second folder is filled with the new ones and links to those that stay, and the
  two change places.
- Elsewhere a journal, `.changing.json`, says which file gets which name, and which ones go. From the moment that it is
  there the change has happened: what is left of it is renaming, and whoever comes next does that, if this process
  cannot.

docs/design/what-belongs-together.md says why.
"""

import ctypes
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emcl_train.endings import held_back
from emcl_train.errors import UserError
from emcl_train.runs.files import (
    JOURNAL,
    PARTIAL,
    Pending,
    discard,
    discard_folder,
    flush,
    partial_of,
    pending,
    write_json_atomic,
)

RENAME_EXCHANGE = 2
"""Of the system call renameat2."""
RELATIVE_TO_HERE = -100


@contextmanager
def together(folder: Path) -> Iterator[None]:
    """Let what the block writes into a folder, or removes from it, come about at its end, all of it or nothing.

    It holds for `whole` and all that is built on it, and for `remove`; `current` says where to read what the block has
    written. Other folders are written as usual, those inside this one too. The folder has to be locked.

    Raises:
        UserError: the disk is full; everything is then as it was.
    """
    if pending.get() is not None:
        raise AssertionError("a change inside a change")

    change = Pending(folder)
    before = pending.set(change)
    try:
        yield
    except BaseException:
        pending.reset(before)
        _give_up(change)
        raise
    with held_back():
        pending.reset(before)
        _bring_about(change)


def _give_up(change: Pending) -> None:
    for partial in change.files.values():
        discard(partial)


def _bring_about(change: Pending) -> None:
    folder = change.folder
    removed = sorted(name for name in change.removed if os.path.lexists(folder / name))
    renamed = {partial.name: name for name, partial in change.files.items()}

    # One name alone changes at once.
    if len(renamed) + len(removed) > 1:
        if _exchange(folder, renamed, removed):
            return
        try:
            write_json_atomic(folder / JOURNAL, {"renamed": renamed, "removed": removed})
        except BaseException:
            if not (folder / JOURNAL).exists():
                _give_up(change)
            raise
        flush(folder)

    try:
        _rename(folder, renamed, removed)
    except OSError:
        if not os.path.lexists(folder / JOURNAL):
            _give_up(change)
            raise
        _rename(folder, renamed, removed)  # it has happened; a disk that failed once is asked once more


def _exchange(folder: Path, renamed: dict[str, str], removed: list[str]) -> bool:
    """Put a folder with the new files into the place of the old one, if that can be done here.

    Returns:
        Whether it has been done. If not, all is as it was.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2") or not _holds_files_alone(folder):
        return False

    new = partial_of(folder)
    try:
        new.mkdir()
        shutil.copystat(folder, new)
        if os.stat(new).st_uid != os.stat(folder).st_uid or os.stat(new).st_gid != os.stat(folder).st_gid:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        # All as links, so that nothing is lost if the two cannot change places: what stays, and what is new.
        gone = {*removed, *renamed.values(), *renamed}
        for name in set(os.listdir(folder)) - gone:
            os.link(folder / name, new / name)
        for partial, name in renamed.items():
            os.link(folder / partial, new / name)
        flush(new)

        paths = os.fsencode(folder), os.fsencode(new)
        if library.renameat2(RELATIVE_TO_HERE, paths[0], RELATIVE_TO_HERE, paths[1], RENAME_EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError:  # no such call on this disk, no hard links, or a folder that others may not write beside
        discard_folder(new)
        return False

    flush(folder.parent)
    _keep_what_others_put(there=new, into=folder, gone=gone)
    discard_folder(new)  # the old one, by now
    return True


def _keep_what_others_put(there: Path, into: Path, gone: set[str]) -> None:
    """Move files that came into a folder, or were replaced there, while the one in its place was being filled."""
    with os.scandir(there) as entries:
        for entry in entries:
            kept = into / entry.name
            if entry.name in gone:
                continue
            if not os.path.lexists(kept) or not os.path.samestat(entry.stat(follow_symlinks=False), kept.lstat()):
                os.replace(entry.path, kept)


def _holds_files_alone(folder: Path) -> bool:
    """Whether a folder may be replaced: nobody stands in it, and links can stand for all that it holds."""
    try:
        if folder.is_symlink() or os.path.ismount(folder) or os.path.samefile(folder, os.curdir):
            return False
    except OSError:  # the folder that this process was started in has gone
        return False
    with os.scandir(folder) as entries:
        return all(entry.is_file(follow_symlinks=False) for entry in entries)


def _rename(folder: Path, renamed: dict[str, str], removed: list[str]) -> None:
    """The rest of a change, or what is left of that."""
    for partial, name in renamed.items():
        if os.path.lexists(folder / partial):
            os.replace(folder / partial, folder / name)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    flush(folder)
    discard(folder / JOURNAL)


def finish_change(folder: Path) -> None:
    """Bring about what is left of a change whose process was ended. The folder has to be locked.

    Raises:
        UserError: the journal is none of ours.
    """
    path = folder / JOURNAL
    if not os.path.lexists(path):
        return

    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is no file")
        renamed, removed = _checked(folder, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as what is left of a change of {folder} ({error}); remove it if this program did "
            "not write it"
        ) from error
    _rename(folder, renamed, removed)


def _checked(folder: Path, journal: Any) -> tuple[dict[str, str], list[str]]:
    """What a journal says. Somebody else's may not lead out of the folder, nor rename what is no partial file."""
    renamed, removed = dict(journal["renamed"]), list(journal["removed"])
    for name in [*renamed.values(), *removed]:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no name of a file")
        if (folder / name).is_dir():
            raise ValueError(f"{name!r} is a folder")
    for partial, name in renamed.items():
        made = PARTIAL.fullmatch(partial)
        if made is None or os.path.basename(partial) != partial or not name.startswith(made["name"]):
            raise ValueError(f"{partial!r} is not to become {name!r}")
        if os.path.lexists(folder / partial) and not stat.S_ISREG((folder / partial).lstat().st_mode):
            raise ValueError(f"{partial!r} is no file")
    return renamed, removed
