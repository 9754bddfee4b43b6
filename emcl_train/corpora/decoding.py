"""The clips of one shard, file by file, decoded some files ahead of the towers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from torch import Tensor

from emcl_train.corpora.archives import content_of_archive, extracted
from emcl_train.corpora.missing import why_away
from emcl_train.corpora.sources import Item
from emcl_train.corpora.stores import fetched
from emcl_train.data.ahead import made_ahead
from emcl_train.data.clips import Clip
from emcl_train.data.opening import fingerprint, identity_of, not_settled
from emcl_train.data.passing import PassingError, passing
from emcl_train.data.timeline import MissingFile, VideoError
from emcl_train.data.video import Span, pictures_of_spans
from emcl_train.encoder import Encoder
from emcl_train.search.decoding import workers_of
from emcl_train.search.finding import content_of
from emcl_train.search.moments import pieces


@dataclass(frozen=True)
class File:
    """A video file with the clips that are in it."""

    items: Sequence[Item]
    here: Callable[[], AbstractContextManager[Path]]
    """Has it on this machine inside a block."""
    away: Callable[[], str]
    """Where it is not there: why it may come back; empty if it is gone for good."""


@dataclass
class Part:
    """A row to be of a clip; or, without frames, the end of the clip; or, as the last one, the end of the file."""

    item: Item | None = None
    span: Span = (0.0, 0.0)
    frames: Tensor | None = None
    mask: Tensor | None = None
    content: str = ""
    """Of the file."""
    damage: str = ""
    """Why the clip cannot be decoded; its rows count for nothing then."""
    last: bool = False
    error: BaseException | None = None
    """What ended the file, and says nothing of its clips."""


def files_of(
    items: Sequence[Item], place: str, archive: Path | None, scratch: Path
) -> tuple[list[File], dict[str, str]]:
    """The files of a shard.

    Args:
        items: of its plan.
        place: of the corpus.
        archive: where the archive lies on this machine, if the corpus is of archives.
        scratch: a folder to put files into.

    Returns:
        The files, and what is damaged in the archive, by its name or a member's.
    """
    if archive is None:
        groups = {path: list(group) for path, group in groupby(items, key=lambda item: item.path)}
        return [
            File(
                group,
                lambda path=path: fetched(path, scratch),  # type: ignore[misc]
                lambda path=path: why_away(path, place, groups),  # type: ignore[misc]
            )
            for path, group in groups.items()
        ], {}

    (whole,) = items
    content = content_of_archive(archive)
    files = [
        File(
            [Item(f"{whole.id}/{member.key}", f"{whole.path}/{member.name}")],
            lambda member=member: extracted(archive, member, scratch),  # type: ignore[misc]
            lambda: "its archive is not there any more; run the command again when it is",
        )
        for member in content.videos
    ]
    return files, {f"{whole.id}/{name}".rstrip("/"): why for name, why in content.damaged.items()}


def decoded(files: Sequence[File], encoder: Encoder, piece: float | None, workers: int | None = None) -> Iterator[Part]:
    """The parts of all files, in their order.

    Args:
        files: of a shard.
        encoder: says which frames it wants.
        piece: seconds of a row; None: a clip is a row.
        workers: threads that decode; 0: none but the one that asks; None: as the model's configuration says.

    Raises:
        PassingError: a file cannot be read now, so that nothing can be said of it.
    """
    workers = workers_of(encoder) if workers is None else workers
    for part in made_ahead(len(files), lambda number: _parts_of(files[number], encoder, piece), workers):
        if part.error is not None:
            raise part.error
        yield part


def _parts_of(file: File, encoder: Encoder, piece: float | None) -> Iterator[Part]:
    """The parts of one file. An error is its last part, so that it reaches who takes them."""
    named = Path(file.items[0].path)
    try:
        with file.here() as path:
            identity_of(path)  # a pipe would be waited for
            before = fingerprint(path)
            content = content_of(path)
            damaged = False
            for item in file.items:
                for part in _parts_of_clip(item, path, content, encoder, piece):
                    damaged = damaged or bool(part.damage)
                    yield part
            require_settled(named, path, before, damaged and path == named)  # nobody else writes to what was fetched
        yield Part(last=True)
    except (VideoError, FileNotFoundError) as error:
        gone = isinstance(error, MissingFile | FileNotFoundError)
        if gone and (why := file.away()):
            yield Part(last=True, error=PassingError(named, why))
            return
        reason = error.reason if isinstance(error, VideoError) and not gone else "there is no such file"
        for item in file.items:
            yield Part(item, damage=reason)
        yield Part(last=True)
    except PassingError as error:
        yield Part(last=True, error=PassingError(named, error.reason, error.code))
    except Exception as error:
        yield Part(last=True, error=passing(error, named) or error)


def require_settled(named: Path, path: Path, before: list[int] | None, damaged: bool) -> None:
    """Raise a PassingError where a file is still being written.

    Args:
        named: what the error calls it.
        path: it.
        before: its fingerprint before it was read.
        damaged: whether there is damage to be believed, for which it is looked at a moment later if it is new.
    """
    if fingerprint(path) != before or (damaged and not_settled({path: before})):
        raise PassingError(named, "it changed while it was read, as a file does that is still being written")


def _parts_of_clip(item: Item, path: Path, content: str, encoder: Encoder, piece: float | None) -> Iterator[Part]:
    def cut(seconds: float) -> list[Span]:
        start, end = item.start or 0.0, min(seconds, seconds if item.end is None else item.end)
        if piece is None or end <= start:
            return [(start, end)]
        return [(start + begin, start + over) for begin, over in pieces(end - start, piece)]

    try:
        for span, pictures in pictures_of_spans(encoder.request(Clip(item.id, path)), cut):
            frames, mask = encoder.frames_of(pictures)
            yield Part(item, span, frames, mask, content)
        yield Part(item, content=content)
    except MissingFile:
        raise
    except VideoError as error:
        yield Part(item, damage=error.reason)
