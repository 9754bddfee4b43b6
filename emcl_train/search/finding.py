"""Which videos lie in folders, and which of them a library knows already: by size, time and content."""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from emcl_train.data.annotation_files import VIDEO_SUFFIXES, visible_files
from emcl_train.data.passing import NOT_THERE
from emcl_train.errors import UserError
from emcl_train.search.tables import FileRow

CHUNK = 1 << 22
"""Bytes of a file that are read at a time."""


@dataclass(frozen=True)
class Seen:
    """A video file in a folder."""

    path: Path
    root: Path
    size: int
    mtime_ns: int


@dataclass
class Listing:
    """What lies in the folders."""

    videos: list[Seen] = field(default_factory=list)
    """By their paths."""
    outside: list[Path] = field(default_factory=list)
    """Links that lead out of their folder, which are left out."""
    gone: list[Path] = field(default_factory=list)
    """Folders that are not there now."""
    unseen: dict[Path, str] = field(default_factory=dict)
    """Files of which nothing can be said this time, and why; what the library knows of them stays."""


def list_videos(roots: Sequence[Path]) -> Listing:
    """The videos in folders and in those inside them; hidden ones and links that lead outside are left out.

    Args:
        roots: absolute.

    Raises:
        UserError: a folder cannot be read.
    """
    listing = Listing()
    known: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            listing.gone.append(root)
            continue
        real_root = root.resolve()
        for path in visible_files(root):
            if path.suffix.lower() not in VIDEO_SUFFIXES or path in known:
                continue
            known.add(path)
            if not Path(os.path.realpath(path)).is_relative_to(real_root):
                listing.outside.append(path)
            elif not is_utf8(path):
                listing.unseen[path] = "its name is not UTF-8, as the tables need it; rename it"
            else:
                _look_at(path, root, listing)
    listing.videos.sort(key=lambda seen: seen.path)
    return listing


def _look_at(path: Path, root: Path, listing: Listing) -> None:
    """Enter a file into the listing, unless it is none, or went away."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno not in (*NOT_THERE, errno.ELOOP):
            listing.unseen[path] = error.strerror or str(error)
        return
    if stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        listing.videos.append(Seen(path, root, status.st_size, status.st_mtime_ns))


def is_utf8(path: Path) -> bool:
    """Whether a name is text: names of files are bytes to the system."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def absolute_roots(folders: Iterable[Path]) -> list[Path]:
    """Folders as a library remembers them, each once, however often and by whatever links it was named.

    Raises:
        UserError: one is no folder, or its name is not UTF-8.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        root = Path(folder).expanduser().absolute()
        root = Path(os.path.realpath(root)) if ".." in root.parts else root
        if not root.is_dir():
            what = "a file" if root.is_file() else "no folder that is there"
            raise UserError(f"{folder} is {what}; expected the folder that holds the videos")
        if not is_utf8(root):
            raise UserError(f"the name of {folder} is not UTF-8, as the tables of a library need it; rename the folder")
        found.setdefault(os.path.realpath(root), root)
    return list(found.values())


def content_of(path: Path) -> str:
    """32 hexadecimal digits of all that is in a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass
class Changes:
    """What the folders hold beside what the library knows."""

    unchanged: list[FileRow] = field(default_factory=list)
    to_read: list[Seen] = field(default_factory=list)
    """New or changed: their content decides what they are."""
    missing: list[FileRow] = field(default_factory=list)
    """No longer there."""
    kept: dict[Path, int] = field(default_factory=dict)
    """Files of folders that are not there, or have no video any more, as where a disk is not mounted: they stay."""
    kept_rows: list[FileRow] = field(default_factory=list)
    """The same, one by one."""


def compare(listing: Listing, known: Iterable[FileRow], roots: Sequence[Path], *, forget: bool = False) -> Changes:
    """What is new, changed or gone.

    Args:
        listing: of the folders.
        known: all files of the library.
        roots: the folders that were looked at; files of others stay as they are.
        forget: whether files of a folder that is gone are gone as well.
    """
    changes = Changes()
    there = {seen.path: seen for seen in listing.videos}
    filled = {seen.root for seen in listing.videos}
    of_roots = {row.path: row for row in known if row.root in roots}

    for path, seen in there.items():
        row = of_roots.get(path)
        if row is not None and (row.size, row.mtime_ns) == (seen.size, seen.mtime_ns):
            changes.unchanged.append(row)
        else:
            changes.to_read.append(seen)

    for path, row in of_roots.items():
        if path in there or path in listing.unseen:
            continue
        if row.root not in filled and not forget:
            changes.kept[row.root] = changes.kept.get(row.root, 0) + 1
            changes.kept_rows.append(row)
        else:
            changes.missing.append(row)
    return changes
