"""One shard: its clips decoded, embedded and written, whole or not at all."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from emcl_train.corpora.decoding import Part, decoded, files_of, require_settled
from emcl_train.corpora.missing import why_away
from emcl_train.corpora.plan import planned_items
from emcl_train.corpora.stores import fetched
from emcl_train.data.opening import fingerprint
from emcl_train.data.passing import PassingError
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.runs.files import discard_folder, give_usual_mode, partial_of, whole
from emcl_train.tools.arrays import pyarrow_modules
from emcl_train.tools.shards import MOMENTS, OF_SHARD, READ_AT_ONCE, VECTOR, Shards

TOGETHER = 16
"""Rows that are encoded together: always the same ones of a shard, so that rows do not depend on who makes it."""


class _Rows:
    """The rows of a shard as they come; those of a clip that turns out to be damaged go again."""

    def __init__(self, encoder: Encoder, frames: bool) -> None:
        self._encoder = encoder
        self._frames = frames
        self._waiting: list[Part] = []
        self._of_clip = 0
        self.clips = 0
        self.places: list[Part] = []
        """Of each row, without its pictures."""
        self.vectors: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.lengths: list[int] = []
        self.damaged: dict[str, str] = {}

    def take(self, part: Part) -> None:
        """A row to be, or the end of a clip."""
        if part.item is None:
            return
        if part.frames is not None:
            self._waiting.append(part)
            self.places.append(Part(part.item, part.span, content=part.content))
            if len(self._waiting) == TOGETHER:
                self.encode()
            return
        if part.damage:
            self.damaged[part.item.id] = part.damage
        self.clips += 1

    def encode(self) -> None:
        """Encode what waits."""
        if not self._waiting:
            return
        frames = torch.stack([part.frames for part in self._waiting if part.frames is not None])
        mask = torch.stack([part.mask for part in self._waiting if part.mask is not None])
        self._waiting = []
        encoded = self._encoder.encode_frames(frames, mask)
        self.vectors.append(encoded.rows.numpy().astype(np.float32))
        if self._frames:
            padded = torch.zeros(len(frames), self._encoder.config.data.num_frames, self._encoder.width)
            padded[:, : encoded.features.frames.shape[1]] = encoded.features.frames.float()
            halves = padded.numpy().astype(np.float16)
            if not np.isfinite(halves).all():
                raise UserError(
                    f"the video tower gives numbers of up to {float(padded.abs().max()):.3g}, which do not fit 16 "
                    f"bits; leave --frames out"
                )
            self.features.append(halves)
            self.lengths += encoded.features.frame_mask.sum(1).tolist()  # of X-CLIP one, however many were seen

    def kept(self) -> np.ndarray:
        """Which rows are of clips that came to their end."""
        return np.array([part.item is not None and part.item.id not in self.damaged for part in self.places], bool)


def write_shard(
    shards: Shards, number: int, encoder: Encoder, workers: int | None, on_clip: Callable[[], None] = lambda: None
) -> None:
    """Embed the clips of a shard and write it. Only one process may do so at a time, which the caller sees to.

    Args:
        shards: the folder.
        number: of the shard.
        encoder: of the folder's model.
        workers: see `decoded`.
        on_clip: called when a clip has come to its end.

    Raises:
        PassingError: a file cannot be read now; the shard is then not there, and can be made later.
        UserError: the plan is damaged, the disk is full, or the towers give numbers that are none.
    """
    manifest = shards.manifest
    items = planned_items(shards, number)
    place, kind = manifest["corpus"]["place"], manifest["corpus"]["kind"]
    rows = _Rows(encoder, manifest["frame_features"])
    with _scratch(shards.path(number)) as scratch:
        of_archive = kind == "archives"
        try:
            with fetched(items[0].path, scratch) if of_archive else nullcontext() as archive:
                before = None if archive is None else fingerprint(archive)
                files, rows.damaged = files_of(items, place, archive, scratch)
                for part in decoded(files, encoder, manifest["piece"], workers):
                    rows.take(part)
                    if part.item is not None and part.frames is None:
                        on_clip()
                if archive is not None:
                    named = Path(items[0].path)
                    require_settled(named, archive, before, bool(rows.damaged) and archive == named)
        except FileNotFoundError as error:
            if why := why_away(items[0].path, place):
                raise PassingError(Path(items[0].path), why) from error
            rows.damaged[items[0].id] = "there is no such archive"
        except OSError as error:
            raise PassingError(Path(items[0].path), error.strerror or str(error), error.errno) from error
    rows.encode()
    _write(shards, number, rows, encoder.config.data.num_frames)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder for files that are fetched; what a killed process leaves of it goes with the next start."""
    folder = partial_of(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        discard_folder(folder)


def _write(shards: Shards, number: int, rows: _Rows, num_frames: int) -> None:
    """The features of frames first: a shard whose table is there is whole."""
    kept = rows.kept()
    noted = {"shard": number, "fingerprint": shards.fingerprint, "clips": rows.clips, "damaged": rows.damaged}
    if shards.manifest["frame_features"]:
        width = (num_frames, shards.width)
        features = np.concatenate([np.zeros((0, *width), np.float16), *rows.features])[kept]
        with whole(shards.frames_path(number)) as partial:
            tensors = {"frames": features, "num_frames": np.array(rows.lengths, np.int32)[kept]}
            save_file(tensors, partial, metadata={"fingerprint": shards.fingerprint, "shard": str(number)})
            give_usual_mode(partial)

    pq, pa = pyarrow_modules()
    places = [part for part, keep in zip(rows.places, kept, strict=True) if keep]
    vectors = np.concatenate([np.zeros((0, shards.width), np.float32), *rows.vectors])[kept]
    columns = {
        "id": pa.array(_ids(places, shards.manifest["piece"]), pa.string()),
        VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), shards.width),
        "path": pa.array([part.item.path for part in places if part.item is not None], pa.string()),
        "start": pa.array([part.span[0] for part in places], pa.float64()),
        "end": pa.array([part.span[1] for part in places], pa.float64()),
        "content": pa.array([part.content for part in places], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({OF_SHARD: json.dumps(noted)})
    packed = dict.fromkeys(columns, "zstd") | {VECTOR: "none"}  # vectors hardly pack at all
    with whole(shards.path(number)) as partial:
        pq.write_table(
            table, partial, row_group_size=READ_AT_ONCE, compression=packed, use_dictionary=["path", "content"]
        )
        (shards.folder / MOMENTS).unlink(missing_ok=True)  # they are of other rows


def _ids(places: list[Part], piece: float | None) -> list[str]:
    """The ids of rows: those of their clips, with the number of the piece where there are several."""
    if piece is None:
        return [part.item.id for part in places if part.item is not None]
    found: list[str] = []
    numbers: dict[str, int] = {}
    for part in places:
        if part.item is not None:
            numbers[part.item.id] = numbers.get(part.item.id, -1) + 1
            found.append(f"{part.item.id}#{numbers[part.item.id]}")
    return found
