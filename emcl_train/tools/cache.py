"""`emcl-train data cache`: what is kept of data sets and libraries in the user's cache, and how to be rid of it."""

import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from emcl_train.data.annotation_files import count
from emcl_train.data.cache import OF_FRAMES, is_index, user_cache
from emcl_train.data.cache_use import NAME, PART, SERVED, nobody_uses, root_of
from emcl_train.data.experts.tables import OF_TABLE, is_table_index
from emcl_train.errors import UserError
from emcl_train.runs.files import clear_partial, json_if_whole
from emcl_train.terminal import console_of, escaped, warn

DAY = 86400.0
ID = re.compile(r"[0-9a-f]{16}")
"""Names of the folders: fingerprints of the data sets' roots."""
CHECKED = re.compile(r"checked-v.+\.json")
PICTURES = re.compile(r"frames-v\d+-(?P<sampling>1fps|uniform|2\.5fps)-(?P<frames>\d+)\b.*x(?P<size>\d+)\.json")
OTHERS = (NAME, "doctor.json", "bad-clips.txt")
"""Besides frames, their indices, and which clips are whole."""


@dataclass(frozen=True)
class Kept:
    """What is kept of one data set, or of one library that was served."""

    folder: Path
    root: str | None
    """The data set, or the library; None if nothing says it, as in folders of earlier versions."""
    files: tuple[Path, ...]
    """Those that this program wrote."""
    size: int
    """Bytes of them."""
    used: float
    """When one of them was written or used last, in seconds since 1970."""

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def of(self) -> str:
        """The data set or the library, for people."""
        return self.root or f"of an unknown {'library' if self.is_served else 'data set'}"

    @property
    def is_served(self) -> bool:
        """Whether it is of a library."""
        return self.folder.parent.name == SERVED

    def as_json(self) -> dict[str, Any]:
        """It for programs."""
        return {
            "id": self.id,
            "folder": self.folder,
            "of": self.root,
            "is_library": self.is_served,
            "bytes": self.size,
            "used": self.used,
            "files": len(self.files),
        }

    def described(self) -> list[str]:
        """What it is, a line each."""
        lines = []
        if parts := sum(PART.fullmatch(path.name) is not None for path in self.files):
            lines.append(f"{count(parts, 'part')} of films, as browsers play them")
        for path in self.files:
            if (found := PICTURES.fullmatch(path.name)) is not None:
                index = json_if_whole(path)
                clips = index.get("clips") if isinstance(index, dict) else None
                of = count(len(clips), "clip") if isinstance(clips, dict) else "clips"
                lines.append(f"{found['frames']} frames of {found['size']}² of {of}")
            elif CHECKED.fullmatch(path.name):
                checked = json_if_whole(path)
                lines.append(f"which of {count(len(checked) if isinstance(checked, dict) else 0, 'clip')} are whole")
            elif is_table_index(path.name):
                index = json_if_whole(path)
                clips = index.get("clips") if isinstance(index, dict) else None
                source = Path(str(index.get("of"))).name if isinstance(index, dict) else "a pickle"
                lines.append(
                    f"features of {count(len(clips) if isinstance(clips, dict) else 0, 'clip')}, from {source}"
                )
        return lines


def kept_in(home: Path) -> list[Kept]:
    """What is kept of each data set and library, the largest first. Links are not followed."""
    found = [
        _kept(path)
        for folder in (home, home / SERVED)
        if _is(folder, stat.S_ISDIR) or (folder == home and home.is_dir())
        for path in folder.iterdir()
        if ID.fullmatch(path.name) and _is(path, stat.S_ISDIR)
    ]
    return sorted(found, key=lambda kept: (-kept.size, kept.id))


def run_cache(
    ids: Sequence[str] = (),
    *,
    prune: bool = False,
    older_than: float | None = None,
    console: Console | None = None,
    result: Callable[[Any], object] = lambda found: None,
) -> int:
    """List what is kept, or remove it.

    Args:
        ids: of what is meant, or their beginnings; none: all.
        prune: remove it.
        older_than: only what was not used for this many days.
        console: where to print.
        result: takes what is kept, or what was removed, as JSON has it.

    Returns:
        1 if something that was to go is in use, else 0.

    Raises:
        UserError: there is no such id, or the user has no cache folder.
    """
    console = console_of(console)
    home = user_cache()
    if home is None:
        raise UserError("there is no cache folder: the user has no home; set XDG_CACHE_HOME to a folder")
    if older_than is not None and not older_than >= 0:
        raise UserError(f"--older-than is {older_than:g}, expected days, 0 or more")

    every = kept_in(home)
    chosen = _chosen(every, ids, home)
    if older_than is not None:
        chosen = [kept for kept in chosen if time.time() - kept.used >= older_than * DAY]
    if prune:
        gone, in_use = _prune(chosen, home, console)
        result({"home": home, "removed": [kept.as_json() for kept in gone], "in_use": [kept.id for kept in in_use]})
        return 1 if in_use else 0

    result({"home": home, "kept": [kept.as_json() for kept in chosen]})
    total = sum(kept.size for kept in chosen)
    _say(console, f"{home} keeps {_size(total)} of {_counted(chosen)}")
    for kept in chosen:
        _say(console, f"{kept.id}  {_size(kept.size):>8}  {_ago(kept.used):<12}  {kept.of}")
        for line in kept.described():
            _say(console, f"    {line}")
    if chosen:
        _say(console, "All of it can be found out again. `emcl-train data cache --prune [ID ...]` removes it.")
    return 0


def _prune(chosen: Sequence[Kept], home: Path, console: Console) -> tuple[list[Kept], list[Kept]]:
    """Remove what nobody uses. Returns what is gone, and what stays."""
    freed = 0
    in_use = []
    gone = []
    for kept in chosen:
        with nobody_uses(kept.folder) as free:
            if not free:
                in_use.append(kept)
                warn(escaped(f"{kept.id} is in use, and stays: {kept.of}"), console)
                continue
            clear_partial(kept.folder)
            for path in kept.files:
                path.unlink(missing_ok=True)
            (kept.folder / NAME).unlink(missing_ok=True)
            freed += kept.size
            gone.append(kept)

        left = sorted(path.name for path in kept.folder.iterdir())
        if left:
            text = f"{kept.folder} stays: it holds what this program did not write, such as {left[0]}"
            warn(escaped(text), console)
        else:
            with suppress(OSError):  # somebody begins to use it again
                kept.folder.rmdir()
    _say(console, f"{_size(freed)} freed in {home}: what was kept of {_counted(gone)} is gone")
    return gone, in_use


def _counted(kept: Sequence[Kept]) -> str:
    """How many data sets, and how many libraries where there are any."""
    libraries = sum(one.is_served for one in kept)
    sets = count(len(kept) - libraries, "data set")
    if not libraries:
        return sets
    named = "1 library" if libraries == 1 else f"{libraries} libraries"
    return named if libraries == len(kept) else f"{sets} and {named}"


def _chosen(every: Sequence[Kept], ids: Sequence[str], home: Path) -> list[Kept]:
    chosen = {}
    for asked in ids:
        meant = [kept for kept in every if asked and kept.id.startswith(asked)]
        if len(meant) != 1:
            why = "several begin so" if meant else "nothing kept has it"
            raise UserError(f"the id {asked!r}: {why} in {home}; `emcl-train data cache` lists all")
        chosen[meant[0].id] = meant[0]
    return list(chosen.values()) if ids else list(every)


def _kept(folder: Path) -> Kept:
    files = tuple(sorted(_ours(folder)))
    states = [path.lstat() for path in files]
    root = root_of(folder)
    if root is None:
        doctor = json_if_whole(folder / "doctor.json") if folder / "doctor.json" in files else None
        root = doctor.get("root") if isinstance(doctor, dict) and isinstance(doctor.get("root"), str) else None
    used = max((state.st_mtime for state in states), default=folder.lstat().st_mtime)
    return Kept(folder, root, files, sum(state.st_size for state in states), used)


def _ours(folder: Path) -> Iterator[Path]:
    """The files in a folder that have the names and the kind of those that this program writes."""
    for path in folder.iterdir():
        name = path.name
        known = name in OTHERS or is_index(name)
        known = known or any(form.fullmatch(name) for form in (CHECKED, OF_FRAMES, OF_TABLE))
        known = known or (folder.parent.name == SERVED and PART.fullmatch(name) is not None)
        if known and _is(path, stat.S_ISREG):
            yield path


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError:  # another process was quicker
        return False
    return kind(mode)


def _say(console: Console, text: str) -> None:
    console.print(escaped(text), soft_wrap=True, highlight=False)


def _size(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def _ago(then: float) -> str:
    days = int((time.time() - then) / DAY)
    return "today" if days < 1 else f"{count(days, 'day')} ago"
