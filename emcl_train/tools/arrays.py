"""Embeddings in the files that people keep them in: read as `[N, D]`, and written as they came.

A file with several arrays is named with the array's name behind a colon: `clip.npz:text`, `both.npy:0`.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from emcl_train.errors import UserError
from emcl_train.extras import sentence_on
from emcl_train.flags import flag
from emcl_train.reading.archives import most_bytes
from emcl_train.reading.arrays import open_npy, read_npz
from emcl_train.reading.plain_files import require_regular
from emcl_train.runs.checksums import has_checksum, read_unchanged
from emcl_train.runs.files import give_usual_mode, whole
from emcl_train.runs.mapped import new_mapped

MANIFEST, PLAN = "manifest.json", "plan.parquet"
"""In a folder of shards, see `emcl_train.tools.shards`."""
FORMATS = (".npy", ".npz", ".safetensors", ".parquet")
WIDEST_VALUE = 8
"""Bytes of a number in memory, at most."""


@dataclass(frozen=True)
class Embeddings:
    """Rows of one side. `.npy` stays in its file and is mapped into memory; the others are read whole."""

    rows: Any
    """`[N, D]`: a numpy array, or a torch tensor where the file is safetensors."""
    path: Path
    name: str | None
    """Of the array in its file; None where the file holds one array without a name."""
    written_as: str = ""
    """A name whose suffix is the format that rows which were made from those of a file are written in."""

    @property
    def suffix(self) -> str:
        """The format that the rows are written in: that of the source, unless `written_as` says another one."""
        return Path(self.written_as or self.path).suffix

    def target(self, folder: Path, stem: str) -> Path:
        """Where `write` puts the refined rows: `stem` with the suffix of the source."""
        return folder / f"{stem}{self.suffix}"

    def write(self, folder: Path, stem: str, refine: Callable[..., Any], width: int | None = None) -> Path:
        """Refined rows in the format, dtype and under the array's name that they came with, in place of what was there.

        Args:
            folder: where to write.
            stem: name of the file without its suffix.
            refine: called with the rows, and with `out` if they can be written as they are made.
            width: of refined rows; None: as they came.

        Returns:
            The file, `target`.
        """
        target = self.target(folder, stem)
        with whole(target) as partial:
            self._write(partial, target, refine, width or self.rows.shape[1])
        return target

    def _write(self, path: Path, target: Path, refine: Callable[..., Any], width: int) -> None:
        if self.suffix == ".npy":
            shape, dtype = (len(self.rows), width), self.rows.dtype
            way_out = f"free some space there, or choose another folder with {flag('out')}"
            out = new_mapped(path, shape, dtype, what=target, way_out=way_out)
            refine(self.rows, out=out)
            out.flush()
        elif self.suffix == ".npz":
            with path.open("wb") as file:  # to a name that does not end in .npz NumPy adds it
                np.savez(file, **{self.name or "embeddings": refine(self.rows)})
        elif self.suffix == ".safetensors":
            save_file({self.name or "embeddings": refine(self.rows)}, path)
            give_usual_mode(path)
        else:
            _write_column(self.path, path, self.name or "embeddings", refine(self.rows))


def is_shards(path: Path) -> bool:
    """Whether a folder is one of shards."""
    return (path / MANIFEST).is_file() and (path / PLAN).is_file()


def read_embeddings(argument: str) -> Embeddings:
    """Open the embeddings that an argument names.

    Args:
        argument: FILE, or FILE:NAME of an array in it; or the folder of shards that embed wrote.

    Raises:
        UserError: there is no such file or array, or it is not `[N, D]`.
    """
    path, name = Path(argument), None
    if is_shards(path):
        from emcl_train.tools.shards import read_shards  # which reads tables as this module does

        return read_shards(path)
    if not path.is_file() and ":" in argument:
        path, name = Path(argument.rsplit(":", 1)[0]), argument.rsplit(":", 1)[1]
    if not path.is_file():
        raise UserError(f"there is no file {path}; pass embeddings as one of {', '.join(FORMATS)}")
    if path.suffix not in FORMATS:
        raise UserError(f"{path} is a {path.suffix or 'file without a suffix'}; expected one of {', '.join(FORMATS)}")
    try:
        require_regular(path)
        rows, name = _read(path, name)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # readers raise whatever damaged bytes lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as {path.suffix}: {reason}; write it again") from error
    if rows.ndim != 2:
        raise UserError(f"{argument} has shape {list(rows.shape)}; expected [N, D], one row per text or video")
    return Embeddings(rows, path, name)


def _read(path: Path, name: str | None) -> tuple[Any, str | None]:
    def read(path: Path) -> tuple[Any, str | None]:
        return READ[path.suffix](path, name)

    # What this program wrote is compared with its checksum; files of the user have none.
    return read_unchanged(path, "copy it again, or write it again", read) if has_checksum(path) else read(path)


def read_written(path: Path, at: Path, name: str | None) -> Embeddings:
    """What `Embeddings.write` wrote, which lies under another name as long as it is not in its place.

    Args:
        path: its place, whose suffix says the format.
        at: where it lies.
        name: of the array; None where the file holds one array without a name.
    """
    rows, name = READ[path.suffix](at, name)
    return Embeddings(rows, path, name)


def _read_npy(path: Path, name: str | None) -> tuple[Any, str | None]:
    rows = open_npy(path)
    if rows.ndim == 3 or name is not None:
        parts = [str(i) for i in range(len(rows))] if rows.ndim == 3 else []
        return rows[int(_chosen(path, name, parts))], None
    return rows, None


def _read_npz(path: Path, name: str | None) -> tuple[Any, str | None]:
    with zipfile.ZipFile(path) as archive:
        name = _chosen(path, name, [member.removesuffix(".npy") for member in archive.namelist()])
    return read_npz(path, name), name


def _read_safetensors(path: Path, name: str | None) -> tuple[Any, str | None]:
    with safe_open(path, framework="pt") as file:
        name = _chosen(path, name, list(file.keys()))
        return file.get_tensor(name), name


def _read_parquet(path: Path, name: str | None) -> tuple[Any, str | None]:
    pq, pa = pyarrow_modules()
    schema = pq.read_schema(path)
    name = _chosen(path, name, [field.name for field in schema if _is_vector(pa, field.type)])
    require_values(pq.read_metadata(path), path, name)
    column = pq.read_table(path, columns=[name]).column(name)
    chunks = [chunk for chunk in column.chunks if len(chunk)]  # together they may have more values than 32 bits count
    lengths = {length for chunk in chunks for length in _lengths(pa, chunk)}
    if column.null_count or len(lengths) != 1 or any(chunk.flatten().null_count for chunk in chunks):
        raise UserError(
            f"{path}: column {name} has missing values or lists of different lengths; expected D numbers a row"
        )
    values = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1) for chunk in chunks]
    return values[0] if len(values) == 1 else np.concatenate(values), name


def require_values(metadata: Any, path: Path, name: str) -> None:
    """Raise a ValueError where a column declares far more values than its file could hold."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    values = sum(column.num_values for column in columns if column.path_in_schema.split(".")[0] == name.split(".")[0])
    if WIDEST_VALUE * values > most_bytes(path):
        raise ValueError(
            f"its column {name} declares {values} values, and it has {path.stat().st_size} bytes, too few even if they "
            f"are packed; without compression it would be read"
        )


def _lengths(pa: Any, chunk: Any) -> set[int]:
    fixed = pa.types.is_fixed_size_list(chunk.type)
    return {chunk.type.list_size} if fixed else set(chunk.value_lengths().unique().to_pylist())


def _write_column(source: Path, path: Path, name: str, rows: np.ndarray) -> None:
    """The source's table with the refined rows in the column they came from."""
    pq, pa = pyarrow_modules()
    table = pq.read_table(source)
    field = table.schema.field(name)
    column = column_of(pa, field.type, [len(chunk) for chunk in table.column(name).chunks], rows)
    table = table.set_column(table.schema.get_field_index(name), field.with_type(column.type), column)
    if column.type != field.type and table.schema.metadata:  # where another library notes the widths of columns
        table = table.replace_schema_metadata({k: v for k, v in table.schema.metadata.items() if k != b"huggingface"})
    pq.write_table(table, path)


def column_of(pa: Any, kind: Any, lengths: list[int], rows: np.ndarray) -> Any:
    """Rows as a column of lists, in chunks of these lengths.

    In one piece, lists with 32-bit offsets end at 2³¹ values; the source's own chunks are within that.
    """
    chunks, start = [], 0
    for length in lengths:
        part = rows[start : start + length]
        start += length
        values = pa.array(part.reshape(-1), type=kind.value_type)
        if pa.types.is_fixed_size_list(kind):
            chunks.append(pa.FixedSizeListArray.from_arrays(values, rows.shape[1]))
        else:
            large = pa.types.is_large_list(kind)
            offsets = pa.array(np.arange(length + 1) * rows.shape[1], type=pa.int64() if large else pa.int32())
            chunks.append((pa.LargeListArray if large else pa.ListArray).from_arrays(offsets, values))
    return pa.chunked_array(chunks)


def _is_vector(pa: Any, kind: Any) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def _chosen(path: Path, name: str | None, names: list[str]) -> str:
    """The one array of a file, or the one that was asked for."""
    listed = ", ".join(names) or "none"
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        example = f"; name one of them, such as {path}:{names[0]}" if names else ""
        raise UserError(f"{path} holds {len(names)} arrays of embeddings ({listed}){example}")
    if name not in names:
        raise UserError(f"{path} has no array {name}; it holds {listed}")
    return name


def pyarrow_modules() -> tuple[Any, Any]:
    """`pyarrow.parquet` and `pyarrow`.

    Raises:
        UserError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"parquet files need the package pyarrow; {sentence_on(['pyarrow'], 'train')}") from error
    return pyarrow.parquet, pyarrow


def as_float_tensor(rows: Any) -> torch.Tensor:
    """In float32, or float64 where the rows are."""
    if isinstance(rows, torch.Tensor):
        return rows if rows.dtype == torch.float64 else rows.float()
    return torch.from_numpy(np.array(rows, dtype=np.float64 if rows.dtype.itemsize == 8 else np.float32))


READ = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
"""How a format is read: of a path and a name, the rows and the name that was found."""
