"""Embed films into a library: each of them is there whole or not at all, whatever ends the program."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from emcl_train.data.opening import fingerprint
from emcl_train.data.passing import PassingError
from emcl_train.data.timeline import VideoError
from emcl_train.data.video import Span
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.search.decoding import Part, decoded_ahead
from emcl_train.search.finding import Seen
from emcl_train.search.moments import Cutting
from emcl_train.search.outcome import Report
from emcl_train.search.progress import Progress
from emcl_train.search.tables import DAMAGED, INDEXED, MOMENTS, FileRow, Tables, of_moments

ROWS_A_COMMIT = 1000
SECONDS_A_COMMIT = 30.0
"""What is lost at most when the program is killed."""


@dataclass
class Done:
    """What one process has done, and what is left to do when all have."""

    report: Report = field(default_factory=Report)
    copies: list[FileRow] = field(default_factory=list)
    """Files whose content was known, or is another file's too."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Contents that cannot be decoded, and why."""

    def add(self, other: "Done") -> None:
        """Put together what several processes have done."""
        self.report.add(other.report)
        self.copies += other.copies
        self.damaged |= other.damaged


def embed(tables: Tables, encoder: Encoder, cutting: Cutting, files: Sequence[Seen], *, quiet: bool) -> Done:
    """Embed what is new. Whatever ends it, what is ready is written."""
    done = Done(damaged={row.content: row.reason for row in tables.files() if row.status == DAMAGED})
    known = {*tables.contents(), *done.damaged}
    buffer = _Buffer(tables)
    progress = Progress(len(files), sum(seen.size for seen in files), quiet=quiet)
    parts: list[_Embedded] = []
    try:
        with progress:
            for part in decoded_ahead(files, encoder, cutting, known):
                if part.pictures:
                    parts.append(_embedded(part, encoder))
                    progress.moments(len(part.spans))
                if not part.last:
                    continue
                _enter(buffer, done, part, parts, encoder)
                progress.file(part.seen.size)
                parts = []
    finally:
        buffer.write()
    return done


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
        """Moments first: a file whose row is there has them.

        What fails here is not tried again: nobody knows whether it was written, and moments must not be there twice.
        """
        moments, files = self._moments, self._files
        self._moments, self._files = [], []
        self._since = time.monotonic()
        if moments:
            self._tables.open(MOMENTS).add(pa.Table.from_batches(moments))
        self._tables.put_files(files)


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
                f"the video tower gives numbers of up to {float(padded.abs().max()):.3g}, which do not fit 16 bits; "
                f"use a model whose features are smaller, or one with the head mean"
            )
    counts = encoded.features.frame_mask.sum(1).tolist()  # of X-CLIP one, however many were seen
    return _Embedded(part.spans, encoded.rows.numpy(), part.thumbnails, frames, counts)


def _enter(buffer: _Buffer, done: Done, part: Part, parts: Sequence[_Embedded], encoder: Encoder) -> None:
    """Put a film that has come to its end into the buffer, or what is wrong with it into the report."""
    seen, content, report = part.seen, part.content, done.report
    if isinstance(part.error, PassingError):
        report.trouble[seen.path] = part.error.reason
        return
    if fingerprint(seen.path) != [seen.size, seen.mtime_ns]:
        report.trouble[seen.path] = "it changed while it was read, as a file does that is still being written"
        return
    if part.is_known:
        done.copies.append(row_of(seen, content, INDEXED))
        return
    if isinstance(part.error, VideoError):
        report.damaged[seen.path] = part.error.reason
        done.damaged[content] = part.error.reason
        buffer.add(row_of(seen, content, DAMAGED, part.error.reason), None)
        return

    spans = [span for one in parts for span in one.spans]
    report.added += 1
    report.moments += len(spans)
    report.seconds += spans[-1][1]
    buffer.add(row_of(seen, content, INDEXED, seconds=spans[-1][1]), _batch(content, spans, parts, encoder))


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


def row_of(seen: Seen, content: str, status: str, reason: str = "", seconds: float = 0.0) -> FileRow:
    return FileRow(seen.path, seen.root, seen.size, seen.mtime_ns, content, status, reason, seconds)
