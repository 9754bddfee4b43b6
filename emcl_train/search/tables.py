"""A library on disk, or in an object store: tables of LanceDB, and what their columns are.

A moment belongs to the content of a file and not to its path, so that a file that was moved keeps its moments, and two
copies share them. All moments of a content are written in one commit, and the row of its file after it: whoever is
killed in between finds the content there, and does not embed it again.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from emcl_train.errors import UserError
from emcl_train.search.reaching import is_address, reaching

VERSION = 1
ABOUT, FILES, MOMENTS, REFINED, REFINER = "about", "files", "moments", "refined", "refiner"
MAP = "map"
"""Key that says which map has made refined rows: in their schema, and in what is recorded beside the map."""
INDEXED, DAMAGED = "indexed", "damaged"
READ_AT_ONCE = 1 << 14
"""Rows of a table that are in memory at a time."""
NAMED_AT_ONCE = 500
"""Contents that one condition names."""

OF_ABOUT = pa.schema([("json", pa.string())])
OF_FILES = pa.schema(
    [
        ("path", pa.string()),
        ("root", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("content", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("seconds", pa.float64()),
    ]
)
OF_REFINER = pa.schema([("map", pa.binary()), ("json", pa.string())])


def of_moments(width: int, numbers: int = 0) -> pa.Schema:
    """Columns of the moments.

    Args:
        width: of a vector.
        numbers: of a moment's frames, all together, where the model's head compares frames; else 0.
    """
    columns = [*_place(), ("vector", pa.list_(pa.float32(), width)), ("thumbnail", pa.binary())]
    frames = [("frames", pa.list_(pa.float16(), numbers)), ("num_frames", pa.int32())] if numbers else []
    return pa.schema([*columns, *frames])


def of_refined(width: int) -> pa.Schema:
    """Columns of the refined vectors."""
    return pa.schema([*_place(), ("vector", pa.list_(pa.float32(), width))])


def _place() -> list[tuple[str, Any]]:
    return [
        ("id", pa.string()),
        ("content", pa.string()),
        ("number", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
    ]


PLACE = [name for name, _ in _place()]
"""Columns that say which moment it is."""


@dataclass(frozen=True)
class FileRow:
    """A video file of a library."""

    path: Path
    root: Path
    size: int
    mtime_ns: int
    content: str
    status: str
    reason: str = ""
    """Why it cannot be decoded."""
    seconds: float = 0.0

    def as_row(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "root": str(self.root)}


class Tables:
    """The tables of one library."""

    def __init__(self, place: str | Path, *, create: bool = False) -> None:
        """Connect to a folder or an address.

        Raises:
            UserError: there is no library, and none is to be made; or an object store does not answer.
        """
        import lancedb

        self.place = str(place)
        self.is_folder = not is_address(place)
        folder = Path(self.place).expanduser()
        if self.is_folder and folder.exists() and not folder.is_dir():
            raise UserError(f"{place} is a file; pass the folder of a library")
        if self.is_folder and not create and not (folder / f"{ABOUT}.lance").is_dir():
            what = "holds no library" if folder.is_dir() else "is not there"
            raise UserError(f"{place} {what}; make one with `emcl-train index FOLDER --out {place}`")
        with reaching(place):
            self._database = lancedb.connect(str(folder.absolute()) if self.is_folder else self.place)
            there = self.has(ABOUT)
        if not create and not there:
            raise UserError(f"{place} holds no library; make one with `emcl-train index FOLDER --out {place}`")

    def has(self, name: str) -> bool:
        """Whether there is such a table."""
        return name in self.names()

    def names(self) -> list[str]:
        """The tables that there are; not what is left of one whose first rows were never written to their end."""
        names = list(self._database.list_tables(limit=100).tables)
        if not self.is_folder:
            return names
        folder = Path(self.place).expanduser()
        return [name for name in names if any((folder / f"{name}.lance" / "_versions").glob("*.manifest"))]

    def open(self, name: str) -> Any:
        """A table, as it is now."""
        return self._database.open_table(name)

    def create(self, name: str, schema: pa.Schema) -> Any:
        """An empty table, or the one that is there."""
        return self._database.create_table(name, schema=schema, exist_ok=True)

    def replace(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Any:
        """A table of these rows in place of the one that is there, whole or not at all."""
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        mode = "overwrite" if self.has(name) else "create"
        return self._database.create_table(name, data=reader, schema=schema, mode=mode)

    def drop(self, name: str) -> None:
        """Remove a table, if it is there."""
        if self.has(name):
            self._database.drop_table(name)

    # ---- about -------------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What the library is.

        Raises:
            UserError: it was written by a later version, or is damaged.
        """
        rows = self.open(ABOUT).search().limit(2).to_list()
        try:
            found = json.loads(rows[0]["json"])
            version = found["version"]
        except (IndexError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.place} is damaged: nothing says what library it is; index again into another"
            ) from error
        if version != VERSION:
            raise UserError(
                f"{self.place} has version {version} of a library's layout, expected {VERSION}; index again into "
                f"another folder, or use the emcl that made it"
            )
        return dict(found)

    def write_about(self, about: dict[str, Any]) -> None:
        """Say what the library is."""
        row = pa.RecordBatch.from_pylist([{"json": json.dumps({"version": VERSION, **about})}], schema=OF_ABOUT)
        self.replace(ABOUT, OF_ABOUT, [row])

    # ---- files -------------------------------------------------------------------------------------------------------

    def files(self) -> list[FileRow]:
        """All of them, by their paths."""
        if not self.has(FILES):
            return []
        return files_in(self.open(FILES))

    def put_files(self, rows: Sequence[FileRow]) -> None:
        """Enter files, each in place of what is there of its path."""
        if not rows:
            return
        table = pa.Table.from_pylist([row.as_row() for row in rows], schema=OF_FILES)
        enter = self.open(FILES).merge_insert("path")
        enter.when_matched_update_all().when_not_matched_insert_all().execute(table)

    def remove_files(self, rows: Sequence[FileRow]) -> None:
        """Take files out."""
        table = self.open(FILES)
        for begin in range(0, len(rows), NAMED_AT_ONCE):
            named = ", ".join(quoted(str(row.path)) for row in rows[begin : begin + NAMED_AT_ONCE])
            table.delete(f"path IN ({named})")

    # ---- moments -----------------------------------------------------------------------------------------------------

    def contents(self) -> dict[str, tuple[int, float]]:
        """Contents that have moments, with how many, and when the last one ends."""
        found: dict[str, tuple[int, float]] = {}
        for batch in self.open(MOMENTS).search().select(["content", "end"]).to_batches(READ_AT_ONCE):
            for content, end in zip(batch["content"].to_pylist(), batch["end"].to_pylist(), strict=True):
                count, last = found.get(content, (0, 0.0))
                found[content] = count + 1, max(last, end)
        return found

    def remove_contents(self, contents: Sequence[str]) -> None:
        """Take out all moments of contents."""
        for name in (MOMENTS, REFINED):
            if not self.has(name):
                continue
            table = self.open(name)
            for begin in range(0, len(contents), NAMED_AT_ONCE):
                named = ", ".join(quoted(content) for content in contents[begin : begin + NAMED_AT_ONCE])
                table.delete(f"content IN ({named})")

    def vectors(self, name: str = MOMENTS, batch: int = READ_AT_ONCE) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Rows of moments and their vectors `[n, width]`, in the order of the table."""
        for rows in self.open(name).search().select([*PLACE, "vector"]).to_batches(batch):
            if len(rows):
                yield rows, matrix(rows["vector"])

    def index_ids(self) -> None:
        """Let moments be found by id, and by content, without a look at all of them."""
        table = self.open(MOMENTS)
        known = {column for index in table.list_indices() for column in index.columns}
        for column in ("id", "content"):
            if column not in known:
                table.create_scalar_index(column)

    def tidy(self) -> None:
        """Join small parts of tables, and bring indexes up to date; old versions stay for a day, for those who read."""
        for name in (FILES, MOMENTS, REFINED):
            if self.has(name):
                self.open(name).optimize(cleanup_older_than=timedelta(days=1))


def files_in(table: Any) -> list[FileRow]:
    """All rows of a table of files, by their paths."""
    rows = table.search().to_arrow().to_pylist()
    found = [FileRow(**{**row, "path": Path(row["path"]), "root": Path(row["root"])}) for row in rows]
    return sorted(found, key=lambda row: row.path)


def matrix(column: Any) -> Float32[np.ndarray, "N D"]:
    """Vectors of a column `[N, D]`."""
    width = column.type.list_size
    return np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, width)


def quoted(text: str) -> str:
    """A text as a condition of LanceDB has it."""
    return "'" + text.replace("'", "''") + "'"
