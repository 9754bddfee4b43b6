"""What a corpus is: a folder of videos, a table of clips, or archives; its clips, in shards, before any is decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from emcl_train.config import DataConfig
from emcl_train.corpora.archives import is_archive
from emcl_train.corpora.stores import fetched, files_below, joined
from emcl_train.data.annotation_files import VIDEO_SUFFIXES, count, visible_files
from emcl_train.data.frame_folders import is_frame_folder
from emcl_train.data.layouts import module_of
from emcl_train.data.own_videos import clips_of_table, tables
from emcl_train.data.passing import PassingError
from emcl_train.errors import UserError
from emcl_train.search.finding import is_utf8
from emcl_train.search.reaching import is_address

Kind = Literal["folder", "table", "archives"]


@dataclass(frozen=True)
class Item:
    """One clip; or a whole archive, whose clips are known when it is read."""

    id: str
    path: str
    """Of the file that it is in, or its address."""
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Corpus:
    """What a place holds."""

    place: str
    kind: Kind
    items: list[Item]
    """Clips of one file follow each other."""
    notes: tuple[str, ...] = ()

    def shards(self, clips: int) -> Iterator[list[Item]]:
        """The items of each shard: so many clips, and more where they are of one file; or one archive."""
        if self.kind == "archives":
            yield from ([item] for item in self.items)
            return
        shard: list[Item] = []
        for number, item in enumerate(self.items):
            if len(shard) >= clips and item.path != self.items[number - 1].path:
                yield shard
                shard = []
            shard.append(item)
        if shard:
            yield shard


def read_corpus(place: str, data: DataConfig, scratch: Path) -> Corpus:
    """Look at what lies at a place; no video is read.

    Args:
        place: a folder of videos or of `.tar` files, a table (`.jsonl`, `.csv`) of clips, a `.tar`, or an address.
        data: how a table's files are found.
        scratch: a folder to put files into that are fetched.

    Raises:
        UserError: there is no such thing, nothing in it, or it cannot be told what it is.
    """
    if is_address(place):
        return _of_store(place, scratch)
    path = Path(place).expanduser()
    if path.is_file() and path.suffix.lower() in tables():
        return _of_table(path, data)
    if path.is_file() and is_archive(path.name):
        return Corpus(str(path.absolute()), "archives", [Item(path.name, str(path.absolute()))])
    if not path.is_dir():
        what = "a file of another kind" if path.is_file() else "not there"
        raise UserError(f"the corpus {place} is {what}; pass a folder of videos or of .tar files, a table, or a .tar")

    root = path.absolute()
    try:
        files = [(file.relative_to(root), file) for file in visible_files(root)]
    except OSError as error:
        raise UserError(f"{place} cannot be listed: {error.strerror}; change its permissions") from error
    unnamed = [file for _, file in files if not is_utf8(file)]
    names = [inside.as_posix() for inside, file in files if is_utf8(file)]
    notes = [f"{len(unnamed)} files whose names are not UTF-8 are left out; rename them."] if unnamed else []
    return _of_names(str(root), names, notes)


def _of_names(place: str, names: Sequence[str], notes: Sequence[str] = ()) -> Corpus:
    """The corpus of files below a place."""
    videos = sorted(name for name in names if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES)
    archives = sorted(name for name in names if is_archive(name))
    if videos and archives:
        raise UserError(
            f"{place} holds {len(videos)} videos and {len(archives)} .tar files; pass a folder that has one of both"
        )
    if not videos and not archives:
        raise UserError(f"{place} holds no video ({', '.join(VIDEO_SUFFIXES)}) and no .tar, in it or below")
    items = [Item(name, joined(place, name)) for name in videos or archives]
    return Corpus(place, "folder" if videos else "archives", items, tuple(notes))


def _of_table(table: Path, data: DataConfig) -> Corpus:
    """The clips of a table of this machine, by the rules that training has for it."""
    data = replace(data, layout=table.suffix.lower()[1:], root=table.parent, videos=None)
    clips, notes = clips_of_table(table, data)
    folders = list(dict.fromkeys(clip.path for clip in clips if is_frame_folder(clip.path)))
    if folders:
        raise UserError(
            f"{table} names {count(len(folders), 'folder')} in place of video files, such as {folders[0]}; a corpus is "
            f"of video files, so name those, or leave such rows out"
        )
    items = [Item(clip.video_id, str(clip.path.absolute()), clip.start, clip.end) for clip in clips]
    return Corpus(str(table.absolute()), "table", _by_file(items), tuple(notes))


def _of_store(place: str, scratch: Path) -> Corpus:
    """What lies at an address."""
    suffix = PurePosixPath(place).suffix.lower()
    if suffix in tables():
        return _of_table_in_store(place, suffix, scratch)
    names = files_below(place)
    if names == [""]:
        if is_archive(place):
            return Corpus(place, "archives", [Item(place.rpartition("/")[2], place)])
        raise UserError(f"{place} is an object; pass the address of a .tar, of a table, or of what videos lie below")
    hidden = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
    return _of_names(place.rstrip("/"), sorted(set(names) - set(hidden)))


def _of_table_in_store(place: str, suffix: str, scratch: Path) -> Corpus:
    """The clips of a table in a store: its videos lie beside it or below, since it may name nothing else."""
    notes: list[str] = []
    try:
        with fetched(place, scratch) as local:
            rows = module_of(suffix[1:]).read_rows(local, notes)
    except FileNotFoundError as error:
        raise UserError(f"there is no table at {place}; check the address") from error
    except PassingError as error:
        raise UserError(f"{place} cannot be reached: {error.reason}; check the address") from error
    folder = place.rpartition("/")[0]
    items: dict[str, Item] = {}
    for row in rows:
        video = PurePosixPath(row.video)
        if video.is_absolute() or ".." in video.parts or "://" in row.video:
            raise UserError(
                f"{place} names {row.video}; a table in a store names videos beside it or below, by relative paths"
            )
        clip = row.clip(Path(row.video))
        item = Item(clip.video_id, joined(folder, row.video), clip.start, clip.end)
        if items.setdefault(item.id, item) != item:
            raise UserError(f"{place}: the id {item.id} stands for two clips; give each clip its own id")
    return Corpus(place, "table", _by_file(list(items.values())), tuple(notes))


def _by_file(items: list[Item]) -> list[Item]:
    """The same with clips of one file behind each other, files in the order in which they came."""
    place = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    return sorted(items, key=lambda item: place[item.path])
