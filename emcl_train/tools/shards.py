"""A folder of shards, as `embed --shards` writes it: what lies where, and its rows as they are read, shard by shard.

manifest.json            which model, which sampling, which plan; written once
plan.parquet             id, path, start and end of every clip, a row group for each shard; written once
shard-00000.parquet      id, vector, path, start, end and content; it is whole or not there
shard-00000.safetensors  of the same rows: the features of their frames, where they were asked for
moments.safetensors      of all rows, where Ray has added them up

Nobody writes to the first two again, so processes need no word with each other but whose shard is whose.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from emcl_train.errors import UserError
from emcl_train.reading.plain_files import require_regular
from emcl_train.runs.files import read_json
from emcl_train.tools.arrays import MANIFEST, Embeddings, pyarrow_modules, require_values

VERSION = 1
MOMENTS = "moments.safetensors"
OF_SHARD = b"emcl"
"""Where the footer of a shard says which it is, and which clips are not in it."""
READ_AT_ONCE = 1 << 13
"""Rows that are in memory at a time."""
VECTOR = "vector"
PLACE = ("id", "path", "start", "end")


def name_of(number: int) -> str:
    """Of a shard's file."""
    return f"shard-{number:05d}.parquet"


@dataclass(frozen=True)
class Shards:
    """A folder of shards with its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Read the manifest.

        Raises:
            UserError: there is none, it is damaged, or of another version.
        """
        keys = ("version", "model", "frames", "corpus", "plan", "piece", "frame_features")
        manifest = read_json(folder / MANIFEST, "embed the corpus again", what="a manifest of shards", keys=keys)
        if manifest["version"] != VERSION:
            raise UserError(
                f"{folder} has version {manifest['version']} of the layout of shards, expected {VERSION}; embed the "
                f"corpus again into another folder, or use the emcl that made it"
            )
        try:
            whole = (
                isinstance(manifest["model"]["fingerprint"], str)
                and manifest["model"]["width"] > 0
                and manifest["plan"]["shards"] >= 0
            )
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(f"{folder / MANIFEST} is damaged: it says no model or no plan; embed the corpus again")
        return cls(folder, manifest)

    @property
    def count(self) -> int:
        """Shards of the plan."""
        return int(self.manifest["plan"]["shards"])

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.manifest["model"]["width"])

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return str(self.manifest["model"]["fingerprint"])

    def path(self, number: int) -> Path:
        """Of a shard."""
        return self.folder / name_of(number)

    def frames_path(self, number: int) -> Path:
        """Of the features of its frames."""
        return self.path(number).with_suffix(".safetensors")

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [number for number in range(self.count) if not self.path(number).is_file()]

    def require_all(self) -> None:
        """Raise a UserError where shards are not there yet."""
        if missing := self.missing():
            raise UserError(
                f"{self.folder} has {self.count - len(missing)} of {self.count} shards, and {name_of(missing[0])} is "
                f"not there yet; run `emcl-train embed … --out {self.folder} --shards` again, which goes on"
            )

    def opened(self, number: int) -> "Shard":
        """A shard.

        Raises:
            UserError: it is damaged, or none of this folder.
        """
        return Shard.open(self, number)

    def each(self) -> Iterator["Shard"]:
        """Every shard, one after the other."""
        return (self.opened(number) for number in range(self.count))


@dataclass(frozen=True)
class Shard:
    """One shard, opened; its rows are read when they are asked for."""

    path: Path
    rows: int
    damaged: dict[str, str]
    """Clips that cannot be decoded and are not in it, and why."""
    _file: Any

    @classmethod
    def open(cls, of: Shards, number: int) -> "Shard":
        """See `Shards.opened`."""
        pq, pa = pyarrow_modules()
        path = of.path(number)
        try:
            require_regular(path)
            file = pq.ParquetFile(path)
            require_values(file.metadata, path, VECTOR)
            noted = json.loads((file.metadata.metadata or {}).get(OF_SHARD, b"{}"))
            belongs = (noted["fingerprint"], noted["shard"]) == (of.fingerprint, number)
            kind = file.schema_arrow.field(VECTOR).type
            belongs = belongs and pa.types.is_fixed_size_list(kind) and kind.list_size == of.width
            damaged = {str(key): str(value) for key, value in noted["damaged"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # and what Arrow raises, of these
            raise UserError(
                f"{path} is no shard that can be read: {' '.join(str(error).split()) or type(error).__name__}; remove "
                f"it, and embed again, which makes that shard anew"
            ) from error
        if not belongs:
            raise UserError(
                f"{path} is shard {noted['shard']} of the model {noted['fingerprint']}, expected {number} of "
                f"{of.fingerprint}, as {MANIFEST} beside it says; remove it, and embed again"
            )
        return cls(path, file.metadata.num_rows, damaged, file)

    def batches(self, columns: list[str], size: int = READ_AT_ONCE) -> Iterator[Any]:
        """Its rows as record batches, some at a time."""
        try:
            yield from self._file.iter_batches(size, columns=columns)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} is damaged: {error}; remove it, and embed again") from error

    def vectors(self) -> np.ndarray:
        """`[n, D]`."""
        parts = [matrix(batch[VECTOR]) for batch in self.batches([VECTOR])]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self._file.schema_arrow.field(VECTOR).type.list_size)


def matrix(column: Any) -> np.ndarray:
    """Vectors of a column of lists of one length, `[n, D]`.

    Raises:
        ValueError: some are missing.
    """
    if column.null_count or column.flatten().null_count:
        raise ValueError("its vectors have missing values")
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, column.type.list_size)


class ShardRows:
    """Rows of all shards as one array `[N, D]` that is never in memory as a whole: slices of it are read.

    Args:
        shards: all of which are there.
    """

    def __init__(self, shards: Shards) -> None:
        shards.require_all()
        self._shards = shards
        self._begins = np.cumsum([0, *(shard.rows for shard in shards.each())])
        self._held: tuple[int, np.ndarray] | None = None
        self.dtype = np.dtype(np.float32)
        self.ndim = 2
        self.shape = (int(self._begins[-1]), shards.width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> np.ndarray:
        """Rows by a slice, or by their numbers."""
        if isinstance(wanted, slice):
            wanted = np.arange(*wanted.indices(len(self)))
        numbers = np.asarray(wanted, np.int64)
        found: np.ndarray = np.empty((len(numbers), self.shape[1]), np.float32)
        of = np.searchsorted(self._begins, numbers, side="right") - 1
        for number in np.unique(of):
            here = of == number
            found[here] = self._of(int(number))[numbers[here] - self._begins[number]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        return self[:].astype(dtype or self.dtype)

    def _of(self, number: int) -> np.ndarray:
        """The rows of one shard; the last one stays, as slices that follow each other need it again."""
        if self._held is None or self._held[0] != number:
            self._held = number, self._shards.opened(number).vectors()
        return self._held[1]


@dataclass(frozen=True)
class ShardEmbeddings(Embeddings):
    """One side that lies in shards. Refined rows go into one table, with the columns that they had."""

    shards: Shards | None = None

    def _write(self, path: Path, target: Path, refine: Callable[..., Any], width: int) -> None:
        pq, pa = pyarrow_modules()
        schema = None
        writer = None
        try:
            for shard in self._of.each():
                for batch in shard.batches([*PLACE, VECTOR]):
                    rows = np.ascontiguousarray(refine(matrix(batch[VECTOR])), np.float32)
                    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width)
                    table = pa.table({**{name: batch[name] for name in PLACE}, VECTOR: vectors})
                    if writer is None:
                        schema = table.schema
                        writer = pq.ParquetWriter(path, schema, compression="zstd")
                    writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    @property
    def _of(self) -> Shards:
        assert self.shards is not None
        return self.shards

    @cached_property
    def packed_moments(self) -> np.ndarray | None:
        """What Ray has added up of all rows, `[D² + D + 1]`; None where that is not there, or of other rows."""
        return read_moments(self._of, len(self.rows))


def read_shards(folder: Path) -> ShardEmbeddings:
    """The rows of a folder of shards as one side that `refine` takes.

    Raises:
        UserError: shards are missing or damaged.
    """
    shards = Shards.open(folder)
    return ShardEmbeddings(ShardRows(shards), folder, VECTOR, f"{VECTOR}s.parquet", shards)


def read_moments(shards: Shards, rows: int) -> np.ndarray | None:
    """The packed moments of unit rows beside the shards, `[D² + D + 1]`; None where there are none of so many rows."""
    path = shards.folder / MOMENTS
    if not path.is_file():
        return None
    try:
        require_regular(path)
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("fingerprint") != shards.fingerprint:
                return None
            found = np.asarray(file.get_tensor("moments"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}; remove it, it is made of the shards") from error
    fits = found.dtype == np.float64 and found.shape == (shards.width**2 + shards.width + 1,)
    return found if fits and np.isfinite(found).all() and int(found[-1]) == rows else None
