"""Refined vectors in FAISS, LanceDB and parquet, and a plain search to compare with (docs/search.md).

All compare by **inner product**. Rows of a refiner with a bank are `[N, D + 1]` and are taken as they are. Those of one
without a bank are compared by cosine, so they are to have length one: `Refiner.compared` gives both kinds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from emcl_kernels import checks
from emcl_kernels.integrations.missing import needs
from emcl_kernels.refine import files

ID = "id"
VECTOR = "vector"
DISTANCE = "_distance"
"""Columns of tables; the last is LanceDB's."""
VALUE_BYTES = 8
"""Of a value in memory, at most."""
MOST_TIMES = 32
"""Bytes that a byte of a parquet file may unpack to: vectors hardly pack at all."""
ALWAYS_READ = 1 << 26
"""Bytes that any file may unpack to: a small one of zeros is no danger."""
Found = tuple[Float32[np.ndarray, "Q K"], np.ndarray]
"""Scores of the nearest in falling order, and the places or ids of these items, `[Q, K]`."""


def padded(rows: Any, pad_to: int = 16) -> Float32[np.ndarray, "N P"]:
    """Rows with zeros behind them, so that their width is a multiple. Inner products stay as they are.

    An index that quantises by parts wants a width which its parts divide, and D + 1 is none.

    Args:
        rows: `[N, D]`, a torch tensor or a numpy array of floats.
        pad_to: what the width shall be a multiple of; 1 leaves it.

    Returns:
        `[N, P]` in float32.

    Raises:
        TypeError: rows is no array of floats.
        ValueError: it has another shape or holds NaN or infinite values, or pad_to is no whole number of at least 1.
    """
    return _padded(_rows(rows, "rows"), pad_to)


def search(queries: Any, gallery: Any, k: int = 10) -> Found:
    """The k items of largest inner product of each query, by comparing with all of them.

    Args:
        queries: `[Q, D]` or `[Q, D + 1]`.
        gallery: `[N, D]` or `[N, D + 1]`, rows of one kind with the queries.
        k: how many; all, if there are fewer items.

    Returns:
        Scores `[Q, K]` in falling order, and the places of the items in the gallery, `[Q, K]`. Where scores are equal,
        the first place comes first.

    Raises:
        TypeError: one is no array of floats.
        ValueError: the widths differ, there are values that are not finite, or k is no whole number of at least 1.
    """
    of_queries, of_items = _rows(queries, "queries"), _rows(gallery, "gallery")
    _require_one_width(of_queries, of_items.shape[1], "the gallery")
    checks.count(k, "k")

    scores = of_queries @ of_items.T
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, places, axis=1), places


# ---- FAISS -----------------------------------------------------------------------------------------------------------


def faiss_index(gallery: Any, description: str = "Flat", *, pad_to: int = 1) -> Any:
    """A FAISS index of a gallery, by inner product.

    Args:
        gallery: `[N, D]` or `[N, D + 1]`.
        description: what `faiss.index_factory` takes. "Flat" is exact, as `IndexFlatIP` is. Others are trained with
            the gallery, if they need it.
        pad_to: what the width shall be a multiple of; 16 where an index quantises by parts, such as "IVF256,PQ16".

    Returns:
        The index, whose items are numbered by their rows. It is for `search_faiss`, which knows that it may be padded.

    Raises:
        ImportError: the package faiss-cpu is missing.
        TypeError: gallery is no array of floats.
        ValueError: as for `padded`, or FAISS refuses the description for this width.
    """
    faiss = _faiss("faiss_index")
    rows = padded(gallery, pad_to)
    try:
        index = faiss.index_factory(rows.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(rows)
    except RuntimeError as error:
        reason = str(error).rpartition("failed: ")[2].strip()
        raise ValueError(
            f'FAISS makes no index "{description}" of {len(rows)} rows of {rows.shape[1]} numbers ({reason}); pass '
            "pad_to=16 for one that quantises by parts, or another description"
        ) from error
    index.add(rows)
    return index


def search_faiss(index: Any, queries: Any, k: int = 10, *, pad_to: int = 1) -> Found:
    """The k items of largest inner product of each query.

    Args:
        index: from `faiss_index`, or one of your own of the same rows by inner product.
        queries: `[Q, D]` or `[Q, D + 1]`.
        k: how many.
        pad_to: as for `faiss_index`.

    Returns:
        Scores `[Q, K]` in falling order, and the places of the items. Where an index has found fewer, a place is -1.

    Raises:
        ImportError: the package faiss-cpu is missing.
        TypeError: queries is no array of floats.
        ValueError: as for `padded`; or queries and the index differ in width, the index compares by something else, or
            k is no whole number of at least 1.
    """
    faiss = _faiss("search_faiss")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(
            f"the index has metric_type {index.metric_type}; refined rows are compared by inner product: make it with "
            "faiss_index, or with faiss.METRIC_INNER_PRODUCT"
        )
    checks.count(k, "k")
    rows = _padded(_rows(queries, "queries"), pad_to)
    _require_one_width(rows, index.d, "the index")
    scores, places = index.search(rows, min(k, max(1, index.ntotal)))
    return scores, places


# ---- LanceDB ---------------------------------------------------------------------------------------------------------


def lancedb_table(
    database: Any,
    name: str,
    gallery: Any,
    ids: Sequence[Any] | None = None,
    *,
    pad_to: int = 1,
    mode: str = "create",
) -> Any:
    """A LanceDB table of a gallery, with the columns `id` and `vector`.

    Args:
        database: from `lancedb.connect`, or a folder to connect to.
        name: of the table.
        gallery: `[N, D]` or `[N, D + 1]`.
        ids: one an item, each once; None: the numbers of the rows.
        pad_to: what the width shall be a multiple of; 16 if you will call `table.create_index(metric="dot")`, which
            quantises by parts.
        mode: "create" fails if there is such a table; "overwrite" replaces it.

    Returns:
        The table. Search it by the metric "dot", as `search_lancedb` does; LanceDB's default is another.

    Raises:
        ImportError: the package lancedb is missing.
        TypeError: gallery is no array of floats.
        ValueError: as for `padded`; or ids are of another number, or one is there twice.
    """
    lancedb = _lancedb("lancedb_table")
    import pyarrow as pa

    rows = padded(gallery, pad_to)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), rows.shape[1])
    table = pa.table({ID: _ids(ids, len(rows)), VECTOR: vectors})
    if isinstance(database, str | Path):
        database = lancedb.connect(str(database))
    return database.create_table(name, table, mode=mode)


def search_lancedb(table: Any, queries: Any, k: int = 10, *, pad_to: int = 1) -> Found:
    """The k items of largest inner product of each query.

    Args:
        table: from `lancedb_table`, with an index by the metric "dot" or without one.
        queries: `[Q, D]` or `[Q, D + 1]`.
        k: how many; all, if there are fewer items.
        pad_to: as for `lancedb_table`.

    Returns:
        Scores `[Q, K]` in falling order, and the ids of the items.

    Raises:
        ImportError: the package lancedb is missing.
        TypeError: queries is no array of floats.
        ValueError: as for `padded`; or queries and the table differ in width, the table has no such columns, or k is no
            whole number of at least 1.
    """
    _lancedb("search_lancedb")
    checks.count(k, "k")
    rows = _padded(_rows(queries, "queries"), pad_to)
    if not {ID, VECTOR} <= set(table.schema.names):
        raise ValueError(f"the table has the columns {table.schema.names}; expected id and vector, as of lancedb_table")
    _require_one_width(rows, table.schema.field(VECTOR).type.list_size, "the table")

    scores = []
    found = []
    for row in rows:
        nearest = (
            table.search(row, vector_column_name=VECTOR).distance_type("dot").select([ID, DISTANCE]).limit(k).to_arrow()
        )
        found.append(nearest[ID].to_pylist())

        # LanceDB's distance is one less the product.
        scores.append(1 - nearest[DISTANCE].to_numpy())
    return np.array(scores, dtype=np.float32).reshape(len(rows), -1), np.array(found).reshape(len(rows), -1)


# ---- parquet ---------------------------------------------------------------------------------------------------------


def write_parquet(path: str | Path, rows: Any, ids: Sequence[Any] | None = None) -> None:
    """Write vectors as a parquet file with the columns `id` and `vector`, a list of float32; whole or not at all.

    Args:
        path: file to write; its folder is made if it does not exist.
        rows: `[N, D]` or `[N, D + 1]`.
        ids: one a row, each once; None: the numbers of the rows.

    Raises:
        ImportError: the package pyarrow is missing.
        TypeError: rows is no array of floats.
        ValueError: it has another shape or holds NaN or infinite values; or ids are of another number, or one is there
            twice.
    """
    pa, parquet = _parquet("write_parquet")
    vectors = _rows(rows, "rows")
    starts = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
    column = pa.ListArray.from_arrays(pa.array(starts), pa.array(vectors.reshape(-1), pa.float32()))
    table = pa.table({ID: _ids(ids, len(vectors)), VECTOR: column})
    files.write_whole(Path(path), lambda partial: parquet.write_table(table, str(partial)))


def read_parquet(path: str | Path) -> tuple[Float32[np.ndarray, "N D"], list[Any]]:
    """Read what `write_parquet` wrote.

    Args:
        path: the file.

    Returns:
        Rows `[N, D]`, and their ids.

    Raises:
        ImportError: the package pyarrow is missing.
        FileNotFoundError: there is no such file.
        ValueError: it is no parquet file, has other columns, vectors of more than one width, or far more numbers than
            its bytes could hold.
    """
    pa, parquet = _parquet("read_parquet")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; pass a file that write_parquet wrote")
    try:
        columns = parquet.read_schema(str(path)).names
        if not {ID, VECTOR} <= set(columns):
            raise ValueError(f"{path} has the columns {columns}; expected id and vector")
        _require_size(Path(path), parquet.read_metadata(str(path)))
        table = parquet.read_table(str(path), columns=[ID, VECTOR])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no parquet file ({error}); pass a file that write_parquet wrote") from error

    vectors = table[VECTOR]
    kind = vectors.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_float32(kind.value_type):
        raise ValueError(f"{path} has vectors of the type {kind}; expected lists of float32")
    chunks = [chunk for chunk in vectors.chunks if len(chunk)]
    if not chunks or vectors.null_count or any(chunk.flatten().null_count for chunk in chunks):
        raise ValueError(
            f"{path} has {'missing values' if chunks else 'no rows'}; expected the same count of numbers a row"
        )
    widths = {width for chunk in chunks for width in _widths(pa, chunk)}
    if len(widths) != 1:
        raise ValueError(f"{path} has vectors of {', '.join(map(str, sorted(widths)))} numbers; expected one width")
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1) for chunk in chunks]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)), table[ID].to_pylist()


# ---- inside ----------------------------------------------------------------------------------------------------------


def _rows(x: Any, name: str) -> Float32[np.ndarray, "N D"]:
    """Rows in float32, one after the other in memory."""
    if isinstance(x, Tensor):
        x = x.detach().to("cpu", torch.float32).numpy() if x.is_floating_point() else x
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        found = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"{name} is {found}; expected a torch tensor or a numpy array of floats: vectors of a refiner")
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}; expected [N, D], one row an item")

    rows = np.ascontiguousarray(x, dtype=np.float32)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name} holds NaN or infinite values in {int(bad.sum())} rows, first in row {int(bad.argmax())}; leave "
            "such rows out"
        )
    return rows


def _padded(rows: Float32[np.ndarray, "N D"], pad_to: int) -> Float32[np.ndarray, "N P"]:
    checks.count(pad_to, "pad_to")
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % pad_to)))


def _require_one_width(queries: Float32[np.ndarray, "Q D"], width: int, of: str) -> None:
    """Refuse queries that were not refined and padded as the items were."""
    if queries.shape[1] != width:
        raise ValueError(
            f"queries are {queries.shape[1]} wide and {of} is {width} wide; refine both with one refiner, for with a "
            "bank both have one more number, and pass one pad_to for both"
        )


def _ids(ids: Any, count: int) -> Any:
    """A column of ids."""
    import pyarrow as pa

    if ids is None:
        return pa.array(np.arange(count))
    given = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else list(ids)
    if len(given) != count:
        raise ValueError(f"there are {len(given)} ids for {count} rows; pass one for each")
    if len(set(given)) != count:
        twice = next(one for place, one in enumerate(given) if one in given[:place])
        raise ValueError(f"ids have {twice!r} more than once; pass a name of its own for each row")
    return pa.array(given)


def _faiss(what: str) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise needs(f"{__name__}.{what}", "faiss-cpu", "search") from error
    return faiss


def _lancedb(what: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise needs(f"{__name__}.{what}", "lancedb", "search") from error
    return lancedb


def _widths(pa: Any, chunk: Any) -> set[int]:
    fixed = pa.types.is_fixed_size_list(chunk.type)
    return {chunk.type.list_size} if fixed else set(chunk.value_lengths().unique().to_pylist())


def _require_size(path: Path, metadata: Any) -> None:
    """Refuse a table that unpacks to far more than its size, before it is unpacked."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    if VALUE_BYTES * values > MOST_TIMES * path.stat().st_size + ALWAYS_READ:
        raise ValueError(
            f"{path} declares {values} values and has {path.stat().st_size} bytes, too few even if they are packed; "
            "without compression it would be read"
        )


def _parquet(what: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise needs(f"{__name__}.{what}", "pyarrow", "search") from error
    return pyarrow, parquet
