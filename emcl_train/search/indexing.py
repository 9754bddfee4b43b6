"""The command index: bring a library up to date with the videos in its folders.

Whatever ends it, the next one goes on: what was embedded is kept in commits that are whole or not there at all.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from emcl_kernels import Refiner
from emcl_train.data.annotation_files import count
from emcl_train.data.clips import Clip
from emcl_train.data.passing import PassingError, passing
from emcl_train.data.timeline import VideoError
from emcl_train.data.video import Span
from emcl_train.encoder import Encoder, load
from emcl_train.errors import UserError
from emcl_train.processes import agreed, first_then_others, gather_objects, rank_and_world
from emcl_train.runs.lock import writing
from emcl_train.search import refining, vector_index
from emcl_train.search.decoding import Part, decoded_ahead
from emcl_train.search.finding import Changes, Listing, Seen, absolute_roots, compare, content_of, list_videos
from emcl_train.search.moments import Cutting, Way, choose
from emcl_train.search.progress import Progress
from emcl_train.search.refining import read_queries
from emcl_train.search.tables import (
    ABOUT,
    DAMAGED,
    FILES,
    INDEXED,
    MOMENTS,
    OF_FILES,
    FileRow,
    Tables,
    of_moments,
)
from emcl_train.terminal import console_of, escaped, warn

ROWS_A_COMMIT = 1000
SECONDS_A_COMMIT = 30.0
"""What is lost at most when the program is killed."""
SHOWN = 10
"""Damaged files that are named one by one."""


@dataclass(frozen=True)
class Asked:
    """What a user wants indexed."""

    out: str
    folders: tuple[Path, ...] = ()
    """Beside those that the library knows."""
    model: str | None = None
    """A run or a CLIP; None: the one that made the library."""
    cut: Way = "auto"
    piece: float | None = None
    """Seconds of a piece; None: as the library has it, or 4."""
    refine: Path | None = None
    """A text file with a query a line: the bank."""
    forget: bool = False
    """Take out the files of folders that are gone or have become empty."""


@dataclass
class Report:
    """What one call of index has done."""

    added: int = 0
    moved: int = 0
    """Files whose content was there already, under another name."""
    removed: int = 0
    unchanged: int = 0
    moments: int = 0
    """Embedded now."""
    seconds: float = 0.0
    """Of film that was embedded."""
    damaged: dict[Path, str] = field(default_factory=dict)
    trouble: dict[Path, str] = field(default_factory=dict)
    """Files that could not be read this time."""
    outside: list[Path] = field(default_factory=list)
    kept: dict[Path, int] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Put together what several processes have done."""
        self.added += other.added
        self.moments += other.moments
        self.seconds += other.seconds
        self.damaged |= other.damaged
        self.trouble |= other.trouble

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        names = ("added", "moved", "removed", "unchanged", "moments", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            **{name: {str(path): why for path, why in getattr(self, name).items()} for name in ("damaged", "trouble")},
            "outside": [str(path) for path in self.outside],
            "kept": {str(path): number for path, number in self.kept.items()},
        }


def index(asked: Asked) -> Report:
    """Bring a library up to date, or make it.

    Returns:
        What was done; in several processes, in the first one what all have done.

    Raises:
        UserError: a folder, the model or the library is not what it should be.
    """
    # Read before anything is embedded, which may take hours.
    texts = [] if asked.refine is None else read_queries(asked.refine, Refiner().num_neighbors)
    rank, _ = rank_and_world()
    local = "://" not in asked.out
    if not local or rank > 0:
        return _index(asked, texts)
    with writing(Path(asked.out).expanduser()):
        return _index(asked, texts)


def _index(asked: Asked, texts: list[str]) -> Report:
    rank, world = rank_and_world()

    # What is wrong with folders, model or library is said before anything is made. The first process makes tables.
    tables, encoder, about = first_then_others(lambda: _opened(asked))
    cutting = Cutting(**about["cutting"])
    roots = [Path(root) for root in about["roots"]]

    # Every process looks at the same folders, and takes its own part of what is new.
    shared = agreed(lambda: _look(tables, roots, asked.forget) if rank == 0 else None)
    listing, changes = gather_objects(shared)[0] if world > 1 else shared
    report = agreed(lambda: _embed(tables, encoder, cutting, changes, rank, world))

    if world > 1:
        others = gather_objects(report)
        report = others[0]
        for other in others[1:]:
            report.add(other)
    if rank == 0:
        _settle(tables, listing, changes, report)
        _bring_up_to_date(tables, encoder, about, asked, texts)
    agreed(lambda: None)
    return report


def _opened(asked: Asked) -> tuple[Tables, Encoder, dict[str, Any]]:
    """The library, made if it is new, the model, and what the library is."""
    there = Tables(asked.out, create=True)
    new = not there.has(ABOUT)
    if new and not asked.folders:
        raise UserError(f"{asked.out} holds no library yet; name the folders of videos: `emcl-train index FOLDER --out LIBRARY`")
    if new and asked.model is None:
        raise UserError("a new library needs --model: the folder of a run, or a CLIP's folder or name on the hub")
    roots = [str(root) for root in absolute_roots(asked.folders)]
    _require_apart(asked, roots)

    if new:
        encoder = load(str(asked.model))
        cutting = choose(asked.cut, *([] if asked.piece is None else [asked.piece]))
        about = {"model": _model(asked, encoder), "cutting": cutting.as_json(), "width": encoder.width, "roots": roots}
        data = encoder.config.data
        numbers = data.num_frames * encoder.width if encoder.has_head else 0
        there.create(FILES, OF_FILES)
        there.create(MOMENTS, of_moments(encoder.width, numbers))
        there.write_about(about)
        return there, encoder, about

    about = there.about()
    encoder = load(asked.model or about["model"]["path"])
    _require_same(asked, about, encoder)
    known = about["roots"]
    about |= {"roots": [*known, *(root for root in roots if root not in known)], "model": _model(asked, encoder, about)}
    there.write_about(about)
    return there, encoder, about


def _model(asked: Asked, encoder: Encoder, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the library remembers of its model."""
    path = asked.model if asked.model is not None else (about or {})["model"]["path"]
    place = Path(path).expanduser()
    return {
        "path": str(place.absolute()) if place.exists() else path,
        "label": encoder.label,
        "fingerprint": encoder.fingerprint,
        "frames": encoder.about()["frames"],
        "smoke_test": encoder.is_smoke_test,
    }


def _require_same(asked: Asked, about: dict[str, Any], encoder: Encoder) -> None:
    """Refuse a model, or a way of cutting, that is not the library's."""
    made_by = about["model"]
    if encoder.fingerprint != made_by["fingerprint"]:
        raise UserError(
            f"{asked.out} was made by {made_by['label']} with the fingerprint {made_by['fingerprint']}, and "
            f"{asked.model or made_by['path']} is {encoder.label} with {encoder.fingerprint}, whose rows cannot be "
            f"compared with it; pass --model with the one that made it, or another --out"
        )
    cutting = Cutting(**about["cutting"])
    if (asked.cut != "auto" and asked.cut != cutting.way) or (asked.piece is not None and asked.piece != cutting.seconds):
        raise UserError(f"{asked.out} is cut into {cutting.said()}; leave --cut and --piece out, or choose another --out")
    if cutting.way == "shots":
        now = choose("shots")
        if now.detector != cutting.detector:
            raise UserError(
                f"{asked.out} is cut by {cutting.detector}, and {now.detector} is installed, whose cuts may be others; "
                f"install that version again, or index into another --out"
            )


def _require_apart(asked: Asked, roots: Sequence[str]) -> None:
    """Refuse to look for videos inside the library."""
    if "://" in asked.out:
        return
    out = Path(asked.out).expanduser().resolve()
    for root in roots:
        if Path(root).resolve() == out:
            raise UserError(f"{asked.out} is the library, and the folder of videos too; choose another --out")


# ---- what has changed ------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """What is to be done, as the first process sees it."""

    changes: Changes
    contents: dict[str, str] = field(default_factory=dict)
    """Of files that are to be embedded, by path."""
    entered: list[FileRow] = field(default_factory=list)
    """Files whose content is known: they get a row, and nothing is embedded."""
    trouble: dict[Path, str] = field(default_factory=dict)


def _look(tables: Tables, roots: list[Path], forget: bool) -> tuple[Listing, _Work]:
    """List the folders, and read what is new or changed to its end."""
    listing = list_videos(roots)
    known = tables.files()
    changes = compare(listing, known, roots, forget=forget)
    work = _Work(changes)
    there = tables.contents()
    reasons = {row.content: row.reason for row in known if row.status == DAMAGED}

    queued: dict[str, Path] = {}
    for seen in changes.to_read:
        try:
            content = content_of(seen.path)
        except OSError as error:
            work.trouble[seen.path] = error.strerror or str(error)
            continue
        if content in there or content in queued:
            work.entered.append(_row(seen, content, INDEXED, seconds=there.get(content, (0, 0.0))[1]))
        elif content in reasons:
            work.entered.append(_row(seen, content, DAMAGED, reasons[content]))
        else:
            queued[content] = seen.path
            work.contents[str(seen.path)] = content
    return listing, work


def _row(seen: Seen, content: str, status: str, reason: str = "", seconds: float = 0.0) -> FileRow:
    return FileRow(seen.path, seen.root, seen.size, seen.mtime_ns, content, status, reason, seconds)


# ---- embedding -------------------------------------------------------------------------------------------------------


class _Buffer:
    """Moments that are not written yet, and the files that they are of."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._moments: list[pa.RecordBatch] = []
        self._files: list[FileRow] = []
        self._since = time.monotonic()

    def add(self, row: FileRow, moments: pa.RecordBatch | None) -> None:
        self._files.append(row)
        if moments is not None:
            self._moments.append(moments)
        rows = sum(len(batch) for batch in self._moments)
        if rows >= ROWS_A_COMMIT or time.monotonic() - self._since >= SECONDS_A_COMMIT:
            self.write()

    def write(self) -> None:
        """Moments first: a file whose row is there has them."""
        if self._moments:
            self._tables.open(MOMENTS).add(pa.Table.from_batches(self._moments))
        self._tables.put_files(self._files)
        self._moments, self._files = [], []
        self._since = time.monotonic()


def _embed(
    tables: Tables, encoder: Encoder, cutting: Cutting, work: _Work, rank: int, world: int
) -> Report:
    """Embed this process's part of what is new. Whatever ends it, what is ready is written."""
    new = [seen for seen in work.changes.to_read if str(seen.path) in work.contents]
    own = sorted(new, key=lambda seen: (-seen.size, seen.path))[rank::world]
    own.sort(key=lambda seen: seen.path)

    report = Report()
    buffer = _Buffer(tables)
    progress = Progress(len(own), sum(seen.size for seen in own), quiet=rank > 0)
    parts: list[_Embedded] = []
    try:
        with progress:
            for part in decoded_ahead(own, encoder, cutting):
                if part.pictures:
                    parts.append(_embedded(part, encoder))
                    progress.moments(len(part.spans), part.spans[-1][1] - part.spans[0][0])
                if not part.last:
                    continue
                _enter(buffer, report, part, parts, work.contents[str(part.seen.path)], encoder)
                progress.file(part.seen.size)
                parts = []
    finally:
        buffer.write()
    return report


@dataclass(frozen=True)
class _Embedded:
    """Some moments of one film."""

    spans: Sequence[Span]
    rows: np.ndarray
    thumbnails: list[bytes]
    frames: np.ndarray | None
    counts: list[int]


def _embedded(part: Part, encoder: Encoder) -> _Embedded:
    encoded = encoder.encode_frames(part.frames, part.frame_mask)
    frames = None
    if encoder.has_head:
        padded = torch.zeros(len(part.spans), encoder.config.data.num_frames, encoder.width)
        padded[:, : encoded.features.frames.shape[1]] = encoded.features.frames.float()
        frames = padded.numpy().astype(np.float16)
        if not np.isfinite(frames).all():
            raise UserError(
                f"the video tower gives numbers of up to {float(padded.abs().max()):.3g}, which do not fit 16 bits; use a "
                f"model whose features are smaller, or one with the head mean"
            )
    return _Embedded(part.spans, encoded.rows.numpy(), part.thumbnails, frames, part.frame_mask.sum(1).tolist())


def _enter(
    buffer: _Buffer, report: Report, part: Part, parts: Sequence[_Embedded], content: str, encoder: Encoder
) -> None:
    """Put a film that has come to its end into the buffer, or what is wrong with it into the report."""
    seen = part.seen
    if isinstance(part.error, PassingError):
        report.trouble[seen.path] = part.error.reason
        return
    if isinstance(part.error, VideoError):
        report.damaged[seen.path] = part.error.reason
        buffer.add(_row(seen, content, DAMAGED, part.error.reason), None)
        return

    # It may have been written to while it was read.
    if (seen.path.stat().st_size, seen.path.stat().st_mtime_ns) != (seen.size, seen.mtime_ns):
        report.trouble[seen.path] = "it changed while it was read, as a file does that is still being written"
        return
    spans = [span for one in parts for span in one.spans]
    report.added += 1
    report.moments += len(spans)
    report.seconds += spans[-1][1]
    buffer.add(_row(seen, content, INDEXED, seconds=spans[-1][1]), _batch(content, spans, parts, encoder))


def _batch(content: str, spans: Sequence[Span], parts: Sequence[_Embedded], encoder: Encoder) -> pa.RecordBatch:
    """The moments of one film as rows of the table."""
    rows = np.concatenate([one.rows for one in parts])
    columns: list[Any] = [
        pa.array([f"{content}-{number}" for number in range(len(spans))]),
        pa.array([content] * len(spans)),
        pa.array(range(len(spans)), pa.int32()),
        pa.array([start for start, _ in spans], pa.float64()),
        pa.array([end for _, end in spans], pa.float64()),
        pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), rows.shape[1]),
        pa.array([picture for one in parts for picture in one.thumbnails], pa.binary()),
    ]
    numbers = 0
    if encoder.has_head:
        frames = np.concatenate([one.frames for one in parts if one.frames is not None])
        numbers = frames.shape[1] * frames.shape[2]
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(frames.reshape(-1), pa.float16()), numbers))
        columns.append(pa.array([number for one in parts for number in one.counts], pa.int32()))
    return pa.RecordBatch.from_arrays(columns, schema=of_moments(encoder.width, numbers))


# ---- the end ---------------------------------------------------------------------------------------------------------


def _settle(tables: Tables, listing: Listing, work: _Work, report: Report) -> None:
    """Enter what was moved, and take out what is gone; the first process does it, when all have embedded."""
    failed = set(report.damaged.values()) and {work.contents[str(path)] for path in report.damaged}
    lost = {work.contents[str(path)] for path in report.trouble if str(path) in work.contents}
    there = tables.contents()
    entered = []
    for row in work.entered:
        if row.status == DAMAGED or row.content in there:
            entered.append(replace(row, seconds=there.get(row.content, (0, 0.0))[1]))
        elif row.content in failed:
            reason = next(why for path, why in report.damaged.items() if work.contents[str(path)] == row.content)
            entered.append(replace(row, status=DAMAGED, reason=reason))
            report.damaged[row.path] = reason
        elif row.content in lost:
            report.trouble[row.path] = "its copy could not be read"
    tables.put_files(entered)
    tables.remove_files(work.changes.missing)

    # Contents that no file has any more.
    used = {row.content for row in tables.files()}
    tables.remove_contents([content for content in tables.contents() if content not in used])

    gone = {row.content for row in work.changes.missing}
    report.moved = sum(row.status == INDEXED for row in entered)
    back = {row.content for row in entered if row.status == INDEXED}
    report.removed = sum(row.content not in back for row in work.changes.missing) if gone else 0
    report.unchanged = len(work.changes.unchanged)
    report.outside = listing.outside
    report.trouble |= work.trouble
    report.kept = work.changes.kept


def _bring_up_to_date(tables: Tables, encoder: Encoder, about: dict[str, Any], asked: Asked, texts: list[str]) -> None:
    """Keep the indexes right, refine the rows anew where they or the queries have changed, and find the cut-offs."""
    tables.tidy()
    if not tables.open(MOMENTS).count_rows():
        return
    vector_index.create_index(tables.open(MOMENTS))

    texts = texts or refining.known_queries(tables)
    rows = refining.hash_of_rows(tables)
    if texts and not refining.is_current(tables, texts, rows):
        refining.refine(tables, encoder, texts, rows)
    of = f"{rows} {len(texts)}"
    if about.get("cutoffs", {}).get("of") != of:
        from emcl_train.search.calibrating import cutoffs_of

        tables.write_about({**about, "cutoffs": {**cutoffs_of(asked.out, encoder, texts), "of": of}})


def print_report(report: Report, out: str, moments: int) -> None:
    """Say what was done."""
    console = console_of()
    for path, why in list(report.damaged.items())[:SHOWN]:
        warn(f"[red]{escaped(path)} cannot be decoded and is left out: {escaped(why)}[/red]", console)
    if len(report.damaged) > SHOWN:
        warn(f"[red]and {len(report.damaged) - SHOWN} more, which `emcl-train search {escaped(out)} --damaged` lists[/red]", console)
    for path, why in list(report.trouble.items())[:SHOWN]:
        warn(f"[yellow]{escaped(path)} could not be read this time: {escaped(why)}[/yellow]", console)
    if report.outside:
        warn(
            f"[yellow]{count(len(report.outside), 'link')} out of the folder left out, such as "
            f"{escaped(report.outside[0])}[/yellow]",
            console,
        )
    for root, number in report.kept.items():
        warn(
            f"[yellow]{escaped(root)} is not there, or has no video any more, as where a disk is not mounted; "
            f"{count(number, 'file')} of it stay. If they are gone for good: --forget[/yellow]",
            console,
        )
    done = [
        f"{count(number, 'file')} {what}"
        for number, what in (
            (report.added, "added"),
            (report.moved, "moved or copied"),
            (report.removed, "removed"),
            (report.unchanged, "as before"),
            (len(report.damaged), "damaged"),
        )
        if number
    ]
    console.print(f"{escaped(out)}: {', '.join(done) or 'nothing to do'}; {count(moments, 'moment')}", soft_wrap=True, highlight=False)
