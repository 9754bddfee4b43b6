"""Files that belong together change together: whatever kills the process, all of them are old or all are new.

Inside `together(folder)` every file of that folder is written whole under a name of its own, and none takes its place.
At the end a journal, `.changing.json`, says which file gets which name, and which ones go. From the moment that it is
there the change has happened: what is left of it is renaming, and whoever comes next does that, if this process cannot.
docs/design/what-belongs-together.md says why.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emcl_train.errors import UserError
from emcl_train.runs.files import PARTIAL, Pending, flush, pending, write_json_atomic

JOURNAL = ".changing.json"


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
        for partial in change.files.values():
            partial.unlink(missing_ok=True)
        raise
    finally:
        pending.reset(before)
    _bring_about(change)


def _bring_about(change: Pending) -> None:
    removed = sorted(name for name in change.removed if os.path.lexists(change.folder / name))
    renamed = {partial.name: name for name, partial in change.files.items()}

    # One name alone changes at once without a journal.
    if len(renamed) + len(removed) > 1:
        try:
            write_json_atomic(change.folder / JOURNAL, {"renamed": renamed, "removed": removed})
        except BaseException:
            if not (change.folder / JOURNAL).exists():
                for partial in change.files.values():
                    partial.unlink(missing_ok=True)
            raise
        flush(change.folder)

    _rename(change.folder, renamed, removed)


def _rename(folder: Path, renamed: dict[str, str], removed: list[str]) -> None:
    """The rest of a change, or what is left of that."""
    for partial, name in renamed.items():
        if os.path.lexists(folder / partial):
            os.replace(folder / partial, folder / name)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    flush(folder)
    (folder / JOURNAL).unlink(missing_ok=True)


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
    except FileNotFoundError:  # another process was quicker
        return
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as what is left of a change of {folder} ({error}); remove it if this program did "
            "not write it"
        ) from error
    _rename(folder, renamed, removed)


def _checked(folder: Path, journal: Any) -> tuple[dict[str, str], list[str]]:
    """What a journal says. Somebody else's may not lead out of the folder, nor rename what is no partial file."""
    renamed, removed = journal["renamed"], journal["removed"]
    for name in [*renamed.values(), *removed]:
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no name of a file")
    for partial, name in renamed.items():
        made = PARTIAL.fullmatch(partial)
        if made is None or os.path.basename(partial) != partial or not name.startswith(made["name"]):
            raise ValueError(f"{partial!r} is not to become {name!r}")
        if (folder / partial).is_symlink():
            raise ValueError(f"{partial!r} is a link")
    return renamed, removed
