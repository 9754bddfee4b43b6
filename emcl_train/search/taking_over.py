"""Rows that embed has written into shards become moments of a library, and no film is decoded for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from emcl_train.data.opening import fingerprint
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.reading.plain_files import require_regular
from emcl_train.search.outcome import Report
from emcl_train.search.tables import DAMAGED, INDEXED, MOMENTS, FileRow, Tables, of_moments
from emcl_train.tools.shards import Shard, Shards


def require_same_model(shards: Shards, encoder: Encoder) -> None:
    """Refuse shards whose rows cannot be compared with the library's, or that lack what its model compares.

    Raises:
        UserError: they are of another model, not all there, or without features of frames where the model needs them.
    """
    made_by = shards.manifest["model"]
    if shards.fingerprint != encoder.fingerprint:
        raise UserError(
            f"{shards.folder} was made by {made_by['label']} with the fingerprint {shards.fingerprint}, and the "
            f"library is of {encoder.label} with {encoder.fingerprint}, whose rows cannot be compared with it; embed "
            f"the corpus with the library's model"
        )
    shards.require_all()
    if encoder.has_head and not shards.manifest["frame_features"]:
        raise UserError(
            f"{shards.folder} has no features of frames, which the head of {encoder.label} compares; embed the corpus "
            f"with --frames into another folder"
        )


def take_over(tables: Tables, encoder: Encoder, shards: Shards, report: Report) -> None:
    """Enter the rows of shards, one shard after the other. Those that are there already are left as they are.

    Args:
        tables: of the library.
        encoder: of its model, which has made the shards too.
        shards: all of which are there.
        report: gets what was done.

    Raises:
        UserError: a shard is damaged.
    """
    known = set(tables.contents())
    folder = shards.folder.absolute()
    files = tables.files()
    there = {row.path: row.content for row in files}
    if earlier := [row for row in files if row.root == folder and row.status == DAMAGED]:
        tables.remove_files(earlier)  # what is damaged now is entered again
    for number, shard in enumerate(shards.each()):
        films = _films(shard)
        new = []
        for film in films:  # a copy has the moments of the first
            if film.content not in known:
                new.append(film)
                known.add(film.content)
        if new:
            tables.open(MOMENTS).add(_moments(shards, number, shard, new, encoder))
        rows = [_row(film, shards) for film in films]
        damaged = [FileRow(folder / key, folder, 0, 0, "", DAMAGED, why) for key, why in shard.damaged.items()]
        tables.put_files([*rows, *damaged])

        before = [there.get(row.path) == row.content for row in rows]
        report.unchanged += sum(before)
        report.added += len(rows) - sum(before)
        report.moments += sum(len(film.spans) for film in new)
        report.seconds += sum(film.seconds for film in new)
        report.damaged |= {row.path: row.reason for row in damaged}


@dataclass(frozen=True)
class _Film:
    """The rows of one file in a shard."""

    path: str
    content: str
    """Of the file and of how it is cut: other spans of it are other moments."""
    first: int
    """Its first row."""
    spans: list[tuple[float, float]]

    @property
    def seconds(self) -> float:
        return max(end for _, end in self.spans)


def _films(shard: Shard) -> list[_Film]:
    """The files of a shard, whose rows follow each other."""
    films = []
    rows = [row for batch in shard.batches(["path", "start", "end", "content"]) for row in batch.to_pylist()]
    first = 0
    for path, group in groupby(rows, key=lambda row: row["path"]):
        of_file = list(group)
        spans = [(float(row["start"]), float(row["end"])) for row in of_file]
        digest = blake2b(f"{of_file[0]['content']} {spans}".encode(), digest_size=16)
        films.append(_Film(str(path), digest.hexdigest(), first, spans))
        first += len(of_file)
    return films


def _row(film: _Film, shards: Shards) -> FileRow:
    """A file as the library knows it. It may lie on another machine, in an archive or in a store."""
    path = Path(film.path)
    size, modified = fingerprint(path) or (0, 0)
    corpus = Path(shards.manifest["corpus"]["place"])
    root = corpus if path.is_relative_to(corpus) else path.parent
    return FileRow(path, root, size, modified, film.content, INDEXED, seconds=film.seconds)


def _moments(shards: Shards, number: int, shard: Shard, films: Sequence[_Film], encoder: Encoder) -> pa.Table:
    """The moments of files as rows of the library's table, without pictures."""
    kept = np.concatenate([np.arange(film.first, film.first + len(film.spans)) for film in films])
    places = [(film.content, place, *span) for film in films for place, span in enumerate(film.spans)]
    vectors = np.ascontiguousarray(shard.vectors()[kept])
    columns: list[Any] = [
        pa.array([f"{content}-{place}" for content, place, _, _ in places]),
        pa.array([content for content, _, _, _ in places]),
        pa.array([place for _, place, _, _ in places], pa.int32()),
        pa.array([start for _, _, start, _ in places], pa.float64()),
        pa.array([end for _, _, _, end in places], pa.float64()),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), encoder.width),
        pa.array([b""] * len(places), pa.binary()),
    ]
    numbers = 0
    if encoder.has_head:
        frames, counts = _frames(shards, number, shard.rows, encoder)
        numbers = frames.shape[1] * frames.shape[2]
        values = pa.array(np.ascontiguousarray(frames[kept]).reshape(-1), pa.float16())
        columns.append(pa.FixedSizeListArray.from_arrays(values, numbers))
        columns.append(pa.array(counts[kept], pa.int32()))
    return pa.Table.from_arrays(columns, schema=of_moments(encoder.width, numbers))


def _frames(shards: Shards, number: int, rows: int, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """The features of frames `[n, F, D]` of a shard, and how many frames each row has."""
    path = shards.frames_path(number)
    try:
        require_regular(path)
        with safe_open(path, framework="np") as file:
            frames, counts = file.get_tensor("frames"), file.get_tensor("num_frames")
            noted = file.metadata() or {}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; remove it and the table beside it, and embed again"
        ) from error
    shape = (rows, encoder.config.data.num_frames, encoder.width)
    of_this = (noted.get("fingerprint"), noted.get("shard")) == (shards.fingerprint, str(number))
    if not of_this or frames.shape != shape or counts.shape != (rows,):
        raise UserError(
            f"{path} has features of shape {list(frames.shape)}, expected {list(shape)} of shard {number}; remove it "
            f"and the table beside it, and embed again"
        )
    return frames.astype(np.float16), counts
