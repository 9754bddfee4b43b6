"""Archives of videos (.tar, as webdataset has them), of strangers too: nothing in them says where anything is written.

Members are found by their headers and read from their places in the archive. Their names are names alone: a video is
put into a file of our own. Links, devices and folders are no videos, and compressed archives are refused, since one
could unpack to more than any disk has.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from emcl_train.corpora.stores import scratch_file
from emcl_train.data.annotation_files import VIDEO_SUFFIXES
from emcl_train.data.timeline import VideoError

LARGEST_HEADER = 1 << 20
"""Bytes of a header, with long names and the like; tarfile would read any number at once."""
CHUNK = 1 << 22


@dataclass(frozen=True)
class Member:
    """A video in an archive."""

    key: str
    """What webdataset calls the sample: the name up to the first dot; the whole name where a sample has several videos,
    which are rows of their own."""
    name: str
    offset: int
    size: int


@dataclass
class Content:
    """What an archive holds."""

    videos: list[Member] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Members that are no whole videos, by their names, and why; "" is the archive itself, from some place on."""


class _Headers:
    """A file of which tarfile reads headers: what says that one is huge is not believed."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header says that it has {size} bytes")
        return bytes(self._file.read(size))

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def content_of_archive(path: Path) -> Content:
    """The videos of an archive, in its order.

    Raises:
        OSError: it cannot be read now.
    """
    found = Content()
    size = path.stat().st_size
    seen: set[str] = set()
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:", errorlevel=2) as archive:  # type: ignore[call-overload]
                begin = -1
                while (member := archive.next()) is not None:
                    archive.members = []  # it would keep all
                    if member.offset_data <= begin:
                        raise tarfile.ReadError("its headers lead in a circle")
                    begin = member.offset_data
                    _enter(found, member, size, seen)
                    if member.isreg() and not member.issparse() and size < member.offset_data + member.size:
                        found.damaged[""] = "the archive ends before its last member does"
                        break
                else:
                    _require_end(archive, file, size)
        except (tarfile.TarError, ValueError, OverflowError, UnicodeError) as error:
            whole = "is no .tar, or a compressed one" if not seen else "is damaged behind its last whole member"
            found.damaged[""] = f"the archive {whole}: {error}"
    videos = Counter(member.key for member in found.videos)
    found.videos = [member if videos[member.key] == 1 else replace(member, key=member.name) for member in found.videos]
    return found


def _require_end(archive: Any, file: Any, size: int) -> None:
    """Raise a ReadError where headers ended before the archive did: tarfile takes damage there for the end."""
    file.seek(min(archive.offset, size))
    if archive.offset >= size > 0:
        raise tarfile.ReadError("its end is missing")
    while chunk := file.read(CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("it has something behind its end")


def _enter(found: Content, member: tarfile.TarInfo, size: int, seen: set[str]) -> None:
    name = member.name.encode("utf-8", "backslashreplace").decode()
    base = PurePosixPath(name).name
    if PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES or base.startswith("."):
        seen.add(name)
        return
    key = name[: len(name) - len(base)] + base.partition(".")[0]
    if not member.isreg() or member.issparse():
        found.damaged[name] = "it is a link, a device or a file with holes, and no video"
    elif name in seen:
        found.damaged[f"{name} (again)"] = "an earlier member has the same name"
    elif member.size < 0 or member.offset_data + member.size > size:
        found.damaged[name] = "the archive ends before it does"
    else:
        found.videos.append(Member(key, name, member.offset_data, member.size))
    seen.add(name)


@contextmanager
def extracted(archive: Path, member: Member, scratch: Path) -> Iterator[Path]:
    """A file with a member's bytes, which is there inside the block.

    Args:
        archive: where it is.
        member: it.
        scratch: a folder to put files into.

    Raises:
        VideoError: the archive has become shorter.
        OSError: it cannot be read now, or the disk is full.
    """
    with scratch_file(scratch, PurePosixPath(member.name).suffix) as path:
        with archive.open("rb") as source, path.open("xb") as target:
            source.seek(member.offset)
            left = member.size
            while left:
                chunk = source.read(min(CHUNK, left))
                if not chunk:
                    raise VideoError(path, "the archive ends before it does")
                target.write(chunk)
                left -= len(chunk)
        yield path


def is_archive(name: str) -> bool:
    """Whether a file is one by its name."""
    return os.path.splitext(name)[1].lower() == ".tar"
