"""A library of moments: what is in it, and what is found by a sentence, by an example, or beside a moment."""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32

from emcl_kernels import Refiner
from emcl_train.data.clips import Clip
from emcl_train.data.video import pictures_of_spans
from emcl_train.encoder import Encoder, load
from emcl_train.errors import UserError
from emcl_train.search import vector_index
from emcl_train.search.cutoff import Cutoff
from emcl_train.search.finding import content_of
from emcl_train.search.moments import Cutting
from emcl_train.search.state import States
from emcl_train.search.tables import (
    DAMAGED,
    MOMENTS,
    NAMED_AT_ONCE,
    PLACE,
    REFINED,
    FileRow,
    Tables,
    matrix,
    quoted,
)

MOMENT = re.compile(r"([0-9a-f]{32})-([0-9]{1,9})")
"""The id of a moment: its content, and its number in it."""
CANDIDATES = 200
"""Moments that the model's own head ranks, of those whose rows are nearest."""
MOST = 1000
"""Results of one search."""
SCORE = "score"

Minimum = float | Literal["auto"] | None

P = ParamSpec("P")
T = TypeVar("T")


def of_one_state(
    method: Callable[Concatenate["Library", P], T],
) -> Callable[Concatenate["Library", P], T]:
    """Let a method of a library see one state of it, from its first look-up to its last."""

    @wraps(method)
    def steady(library: "Library", *args: P.args, **kwargs: P.kwargs) -> T:
        return library.steadily(method, library, *args, **kwargs)

    return steady


@dataclass(frozen=True)
class Found:
    """A moment, and how well it fits."""

    id: str
    path: Path
    """Of the file, or of the first of its copies."""
    start: float
    """Seconds from the file's first frame."""
    end: float
    score: float
    """The inner product, which without a bank is the cosine; or what the model's own head gives. NaN: no query."""
    content: str
    number: int
    """Of the moment in its film, from 0."""
    also_at: tuple[Path, ...] = ()
    """Copies of the file."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "id": self.id,
            "path": str(self.path),
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "score": None if np.isnan(self.score) else round(float(self.score), 6),
            "also_at": [str(path) for path in self.also_at],
        }


class Library:
    """Moments of videos that `emcl-train index` has embedded, to be searched.

    Args:
        place: the library's folder, or its address in an object store.
        model: where the model lies now, if it has moved; or the model, loaded.
        device: where to encode queries; None: as `emcl_train.load` chooses.

    Raises:
        UserError: there is no library, or the model is another one than that which made it.

    Examples:
        >>> for found in Library("library").search("a dog jumps into water", k=5):
        ...     print(found.path, found.start, found.end, found.score)
    """

    def __init__(
        self, place: str | Path, model: str | Path | Encoder | None = None, device: str | torch.device | None = None
    ) -> None:
        self.place = str(place)
        self.tables = Tables(place)
        self._states = States(self.tables)
        self.width = int(self.about["width"])
        self._model = model
        self._device = device
        self._loading = threading.Lock()
        self._encoder: Encoder | None = None

    @property
    def name(self) -> str:
        """For a reader."""
        return Path(self.place.rstrip("/")).name or self.place

    def __len__(self) -> int:
        """How many moments there are."""
        return int(self._moments.count_rows())

    @property
    def about(self) -> dict[str, Any]:
        """What the library is: model, cutting, folders, cut-offs."""
        return self._states.now.about

    @property
    def cutting(self) -> Cutting:
        """How films are cut into moments."""
        return Cutting(**self.about["cutting"])

    @property
    def encoder(self) -> Encoder:
        """The model; it is loaded when it is first needed, once however many threads ask.

        Raises:
            UserError: it is not there, or another one than that which made the library.
        """
        with self._loading:
            if self._encoder is None:
                self._encoder = self._loaded()
            return self._encoder

    def _loaded(self) -> Encoder:
        place = self._model if self._model is not None else self.about["model"]["path"]
        encoder = place if isinstance(place, Encoder) else load(place, device=self._device)
        made_by = self.about["model"]
        if encoder.fingerprint != made_by["fingerprint"]:
            raise UserError(
                f"{self.place} was made by {made_by['label']} with the fingerprint {made_by['fingerprint']}, and "
                f"{place} is {encoder.label} with {encoder.fingerprint}, whose rows cannot be compared with it; pass "
                f"--model with the one that made it, or index again into another folder"
            )
        return encoder

    # ---- what is there -----------------------------------------------------------------------------------------------

    def steadily(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function to which the library stays as it is, whatever `emcl-train index` writes meanwhile.

        Between two calls the library is followed: what is written is found within a second or two, in an object store
        within some ten.

        Args:
            function: which asks this library, in this thread.
            args: of the function.
            kwargs: of the function.

        Raises:
            BecameAnother: the library is gone, or was made anew by another model.
        """
        return self._states.steadily(function, *args, **kwargs)

    @property
    def _moments(self) -> Any:
        return self._states.now.moments

    @property
    def _refined(self) -> Any:
        return self._states.now.refined

    @property
    def refines(self) -> bool:
        """Whether there are refined rows, as there are with a bank."""
        return self._states.now.refines

    @property
    def refiner(self) -> Refiner:
        """The map with its bank.

        Raises:
            UserError: the library has none.
        """
        self._require_refined()
        return self._states.now.refiner[0]

    @property
    def _paths(self) -> dict[str, list[FileRow]]:
        """Files by their content."""
        return self._states.now.paths

    @property
    def files(self) -> list[FileRow]:
        """Files that are indexed, each content once for each of its copies."""
        return [row for rows in self._paths.values() for row in rows]

    @property
    def damaged(self) -> list[tuple[Path, str]]:
        """Files that cannot be decoded, and why."""
        return [(row.path, row.reason) for row in self._states.now.files if row.status == DAMAGED]

    def vectors(self, *, refined: bool = False, batch: int = 1 << 16) -> Iterator[tuple[list[str], np.ndarray]]:
        """All rows with their moments' ids, in bounded memory.

        Args:
            refined: those of the map, of D or D + 1 numbers, in place of the model's own.
            batch: rows at a time.
        """
        if refined:
            self._require_refined()
        width = self._refined_width if refined else self.width
        for rows, values in self.tables.vectors(REFINED if refined else MOMENTS, batch):
            yield rows["id"].to_pylist(), values[:, :width]

    @property
    def _refined_width(self) -> int:
        return int(self._states.now.refiner[1]["width"])

    def moment(self, moment_id: str) -> Found | None:
        """A moment by its id; None if there is no such one."""
        return self.places([moment_id])[0]

    @of_one_state
    def places(self, ids: Sequence[str]) -> list[Found | None]:
        """Moments by their ids, in this order; None for each that is not there."""
        known = [one for one in ids if isinstance(one, str) and MOMENT.fullmatch(one)]
        found: dict[str, Found] = {}
        for begin in range(0, len(known), NAMED_AT_ONCE):
            named = ", ".join(map(quoted, known[begin : begin + NAMED_AT_ONCE]))
            rows = self._moments.search().where(f"id IN ({named})").select(PLACE).to_arrow()
            found |= {one.id: one for one in self._found(rows, [float("nan")] * len(rows))}
        return [found.get(one) if isinstance(one, str) else None for one in ids]

    @of_one_state
    def moments_of(self, content: str) -> list[Found]:
        """All moments of a film, in their order; none where it is not there."""
        rows = self._moments.search().where(f"content = {quoted(content)}").select(PLACE).to_arrow()
        return self._found(rows.sort_by("number"), [float("nan")] * len(rows))

    @of_one_state
    def thumbnail(self, moment_id: str) -> bytes | None:
        """A WebP of the moment; None if there is no such one, or none of it, as where its row came from a shard."""
        if not isinstance(moment_id, str) or MOMENT.fullmatch(moment_id) is None:
            return None
        rows = self._moments.search().where(f"id = {quoted(moment_id)}").select(["thumbnail"]).limit(1).to_list()
        return (rows[0]["thumbnail"] or None) if rows else None

    @of_one_state
    def file_of(self, moment_id: str) -> Path | None:
        """The file of a moment, if it still lies inside the folder that was indexed and is no other; else None."""
        found = self.moment(moment_id)
        if found is None:
            return None
        for row in self._paths.get(found.content, []):
            try:
                real = Path(os.path.realpath(row.path, strict=True))
                status = real.stat()
            except OSError:
                continue
            if real.is_relative_to(row.root.resolve()) and (status.st_size, status.st_mtime_ns) == (
                row.size,
                row.mtime_ns,
            ):
                return real
        return None

    @of_one_state
    def neighbours(self, moment_id: str, around: int = 2) -> list[Found]:
        """The moments before and after one in its film, and itself."""
        found = self.moment(moment_id)
        if found is None:
            return []
        first, last = found.number - around, found.number + around
        where = f"content = {quoted(found.content)} AND number >= {first} AND number <= {last}"
        rows = self._moments.search().where(where).select(PLACE).limit(2 * around + 1).to_arrow().sort_by("number")
        return self._found(rows, [float("nan")] * len(rows))

    # ---- search ------------------------------------------------------------------------------------------------------

    @of_one_state
    def search(self, query: str, k: int = 10, *, refine: bool | None = None, minimum: Minimum = None) -> list[Found]:
        """The moments that fit a text best.

        Args:
            query: what is to be seen.
            k: how many at most.
            refine: compare refined rows; None: where the library has them.
            minimum: leave out what scores less; "auto": less than 95 % of unrelated queries find, see `cutoff`.

        Returns:
            Moments with falling scores.

        Raises:
            UserError: refined rows are asked for and there are none; the query is empty or k is out of its range.
        """
        if not isinstance(query, str) or not query.strip():
            raise UserError("the query is empty; say what is to be seen")
        refine = self._chosen(refine)
        features = self.encoder.text_features(query)
        row = torch.nn.functional.normalize(features.caption.float(), dim=-1).cpu().numpy()
        if refine:
            return self._kept(self._nearest(self._as_query(row, "text"), k, refine=True), refine, minimum)
        if self.ranks_by_head:
            return self._kept(self._ranked(features, row, k), refine, minimum)
        return self._kept(self._nearest(row, k, refine=False), refine, minimum)

    @of_one_state
    def like(
        self,
        example: str | Path,
        at: float | None = None,
        k: int = 10,
        *,
        refine: bool | None = None,
        minimum: Minimum = None,
    ) -> list[Found]:
        """The moments that are most like one of a video.

        Args:
            example: a video file, in the library or not.
            at: the second in it whose moment is meant; None: the middle.
            k: how many at most.
            refine: see `search`.
            minimum: see `search`; there is no automatic one for examples.

        Raises:
            VideoError: the file cannot be decoded.
            UserError: `at` lies behind its end.
        """
        path = Path(example).expanduser()
        if not path.is_file():
            raise UserError(f"there is no file {example}; pass a video to search by its example")
        known = self._known_at(path, at)
        if known is not None:
            return self.like_moment(known, k, refine=refine, minimum=minimum)
        return self._like(self._encoded_at(path, at), k, refine=refine, minimum=minimum)

    @of_one_state
    def like_moment(
        self, moment_id: str, k: int = 10, *, refine: bool | None = None, minimum: Minimum = None
    ) -> list[Found]:
        """The moments that are most like one of the library, which itself comes first.

        Raises:
            UserError: there is no such moment.
        """
        found = self.moment(moment_id)
        if found is None:
            raise UserError(f"there is no moment {moment_id!r} in {self.place}")
        rows = self._moments.search().where(f"id = {quoted(moment_id)}").select(["vector"]).limit(1).to_arrow()
        return self._like(matrix(rows["vector"].combine_chunks()), k, refine=refine, minimum=minimum, itself=moment_id)

    @of_one_state
    def cutoff(self, *, refine: bool | None = None) -> Cutoff | None:
        """What unrelated queries score at most, 95 of 100 of them; None if it was not calibrated."""
        refine = self._chosen(refine)
        found = self.about.get("cutoffs", {}).get("refined" if refine else "plain")
        return None if found is None else Cutoff.of_json(found)

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def ranks_by_head(self) -> bool:
        """Whether the model's own head, which compares frames, has the last word where rows are not refined."""
        return "frames" in self._moments.schema.names

    def _require_refined(self) -> None:
        if not self.refines:
            raise UserError(
                f"{self.place} has no refined rows; `emcl-train index --out {self.place} --refine queries.txt` makes "
                f"them"
            )

    def _chosen(self, refine: bool | None) -> bool:
        if refine is None:
            return self.refines
        if refine:
            self._require_refined()
        return refine

    def _as_query(self, row: Float32[np.ndarray, "1 D"], side: Literal["text", "video"]) -> Float32[np.ndarray, "1 P"]:
        """A row as it is compared with refined ones: refined, a query, as wide as they are."""
        refiner = self.refiner
        refined = refiner.transform_text(row) if side == "text" else refiner.transform_video(row, role="query")
        padded = np.zeros((1, self._refined.schema.field("vector").type.list_size), dtype=np.float32)
        padded[:, : refined.shape[1]] = refined
        return padded

    def _nearest(self, row: Float32[np.ndarray, "1 P"], k: int, *, refine: bool) -> list[Found]:
        """By inner product."""
        if not 1 <= k <= MOST:
            raise UserError(f"k is {k}, expected 1 to {MOST} results")
        table = self._refined if refine else self._moments
        rows = vector_index.search(table, row[0], k, PLACE)
        return self._found(rows, rows[SCORE].to_pylist())

    def _ranked(self, features: Any, row: Float32[np.ndarray, "1 D"], k: int) -> list[Found]:
        """By the model's own head, which compares frames; among the nearest rows."""
        if not 1 <= k <= MOST:
            raise UserError(f"k is {k}, expected 1 to {MOST} results")
        rows = vector_index.search(self._moments, row[0], max(CANDIDATES, k), [*PLACE, "frames", "num_frames"])
        if not len(rows):
            return []
        frames, mask = frames_in(rows, self.width)
        scores = self.encoder.rank(features, frames, mask)[0].numpy()
        order = np.argsort(-scores, kind="stable")[:k]
        return self._found(rows.select(PLACE).take(pa.array(order)), scores[order].tolist())

    def _like(
        self,
        row: Float32[np.ndarray, "1 D"],
        k: int,
        *,
        refine: bool | None,
        minimum: Minimum,
        itself: str | None = None,
    ) -> list[Found]:
        if minimum == "auto":
            raise UserError("the automatic cut-off is of texts; pass --min a number with --like, or none")
        refine = self._chosen(refine) and "text" in self.refiner_sides
        row = self._as_query(row, "video") if refine else row
        found = self._nearest(row, k, refine=refine)

        # Of moments that look the same, the one that was asked for comes first, though others may have taken its place.
        if itself is not None:
            own = [one for one in found if one.id == itself] or self._compared(row, itself, refine=refine)
            found = [*own, *(one for one in found if one.id != itself)][:k]
        return self._kept(found, refine, minimum)

    def _compared(self, row: Float32[np.ndarray, "1 P"], moment_id: str, *, refine: bool) -> list[Found]:
        """A moment with its inner product; none where it is not there."""
        table = self._refined if refine else self._moments
        rows = table.search().where(f"id = {quoted(moment_id)}").select([*PLACE, "vector"]).limit(1).to_arrow()
        return self._found(rows, (matrix(rows["vector"].combine_chunks()) @ row[0]).tolist())

    @property
    def refiner_sides(self) -> tuple[str, ...]:
        """Sides that have a bank."""
        return ("text",) if self.refines else ()

    def _kept(self, found: list[Found], refine: bool, minimum: Minimum) -> list[Found]:
        if minimum is None:
            return found
        if minimum == "auto":
            cutoff = self.cutoff(refine=refine)
            if cutoff is None:
                raise UserError(
                    f"{self.place} has no automatic cut-off yet; `emcl-train index --out {self.place}` finds it, or "
                    f"pass --min a number"
                )
            minimum = cutoff.score
        return [one for one in found if one.score >= minimum]

    def _found(self, rows: pa.Table, scores: Sequence[float]) -> list[Found]:
        """Rows of a table as results; those whose file has just been taken out are left out."""
        found = []
        for row, score in zip(rows.select(PLACE).to_pylist(), scores, strict=True):
            files = self._paths.get(row["content"])
            if not files:
                continue
            first, *others = sorted(file.path for file in files)
            found.append(
                Found(
                    id=row["id"],
                    path=first,
                    start=row["start"],
                    end=row["end"],
                    score=score,
                    content=row["content"],
                    number=row["number"],
                    also_at=tuple(others),
                )
            )
        return found

    def _known_at(self, path: Path, at: float | None) -> str | None:
        """The moment of the library at a second of a file, if its content is there."""
        where = f"content = {quoted(content_of(path))}"
        rows = self._moments.search().where(where).select(PLACE).to_arrow().sort_by("number").to_pylist()
        if not rows:
            return None
        return str(rows[_place_at([(row["start"], row["end"]) for row in rows], at, str(path))]["id"])

    def _encoded_at(self, path: Path, at: float | None) -> Float32[np.ndarray, "1 D"]:
        """The row of the moment at a second of a file, which is cut as the library's are."""
        cut = self.cutting.spans(path, self.encoder.config.data.max_pixels)
        request = self.encoder.request(Clip(str(path), path))

        def only(seconds: float) -> list[tuple[float, float]]:
            spans = cut(seconds)
            return [spans[_place_at(spans, at, str(path))]]

        _, pictures = next(pictures_of_spans(request, only))
        frames, mask = self.encoder.frames_of(pictures)
        return self.encoder.encode_frames(frames.unsqueeze(0), mask.unsqueeze(0)).rows.numpy()


def _place_at(spans: Sequence[tuple[float, float]], at: float | None, what: str) -> int:
    """The number of the span that holds a second; the one in the middle for None."""
    last = spans[-1][1]
    if at is None:
        at = last / 2
    if not 0 <= at <= last + 1e-6:
        raise UserError(f"at is {at:g} s, and {what} ends at {last:.2f} s; pass --at a second within it")
    return max(0, sum(start <= at + 1e-9 for start, _ in spans) - 1)


def frames_in(rows: pa.Table, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame features of moments.

    Returns:
        `[N, F, width]` in float32, and `[N, F]`, False on padding.
    """
    column = rows["frames"].combine_chunks()
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(rows), -1, width)
    counts = torch.tensor(rows["num_frames"].to_pylist())
    frames = torch.from_numpy(values.astype(np.float32))
    return frames, torch.arange(frames.shape[1]) < counts.unsqueeze(1)
