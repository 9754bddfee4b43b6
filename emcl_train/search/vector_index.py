"""Which index a table of moments gets, and searching with it. Nothing here knows what a moment is.

Rows are compared by the inner product. Below 100 000 of them all are compared, which is exact and takes some tens of
milliseconds. More get an index of LanceDB's in two stages: rows are grouped around centres (IVF), and a query looks at
the nearest groups; there it compares codes of five bits a number (RaBitQ) instead of rows. The best of these are then
read from the table and compared as they are, so that scores are exact in every case.

Texts lie far from all moments, and their nearest moments are spread over many groups. So a query looks at many: half of
them at 500 000 rows, a sixth at five million. Codes make that cheap: 64 bytes a row of 512 numbers decide for most.

Rows that were added since the index was made are compared one by one, and are found at once; rows that were deleted are
not found. `create_index` takes new rows into the index, and makes it anew once the table has doubled.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from emcl_train.errors import UserError

LIMIT = 100_000
"""Rows from which on a table has an index."""
GROUP = 2048
"""Rows of a group, in the mean: the smaller, the fewer rows a query has to look at, and the more groups."""
FEWEST, MOST = 16, 8192
"""Groups of an index."""
PROBES = 8.0
"""A query looks at this times the root of the number of groups."""
BITS = 5
"""Of a code, for each number of a row."""
CODED = 64
"""Numbers that a row has at least for codes to be good. Narrower rows are compared as they are."""
READ = 50
"""Rows that a query reads from the table, at least, to compare them as they are..."""
READ_TIMES = 2
"""... and at least so many times the rows that it asks for."""
SAMPLED, ROUNDS = 128, 20
"""Rows a group that the centres are found by, and rounds of k-means."""
GROWN = 2.0
"""The index is made anew when it should have this times the groups, or by this fewer."""
BEHIND = 0.05
"""Share of the rows that may wait outside the index before they are taken into it..."""
WAITING = 20_000
"""... or so many, whichever are fewer."""

DISTANCE, SCORE = "_distance", "score"
"""LanceDB's column, which is one less the inner product, and ours."""


@dataclass(frozen=True)
class Plan:
    """What an index is like, by the number and the width of the rows."""

    kind: str
    """ "IVF_RQ" has codes, "IVF_FLAT" the rows themselves."""
    groups: int

    @property
    def probes(self) -> int:
        """Groups that a query looks at."""
        return min(self.groups, math.ceil(PROBES * math.sqrt(self.groups)))

    @property
    def name(self) -> str:
        """It says what the index is like, since LanceDB does not tell the number of groups."""
        return f"{self.kind.lower()}_{self.groups}"


@dataclass(frozen=True)
class Index:
    """An index that is there."""

    name: str
    plan: Plan
    indexed: int
    waiting: int
    """Rows outside it, which are compared one by one."""
    size: int
    """Bytes on the disk."""


def needs_index(rows: int) -> bool:
    """Whether so many rows get an index. Below, all are compared."""
    return rows >= LIMIT


def plan_of(rows: int, width: int) -> Plan:
    """The index that so many rows of a width get.

    Args:
        rows: of the table.
        width: numbers a row.

    Returns:
        Its kind, the groups and how many of them a query looks at.
    """
    # LanceDB codes rows whose width 8 divides.
    kind = "IVF_RQ" if width % 8 == 0 and width >= CODED else "IVF_FLAT"
    return Plan(kind, min(MOST, max(FEWEST, rows // GROUP)))


def create_index(table: Any, column: str = "vector", *, force: bool = False) -> str:
    """Give a table the index that it should have, after rows were added or deleted: most of the time, nothing is to do.

    Memory is bounded: what is held at once are 128 rows a group to find the centres, and blocks of codes on their way
    to the disk.

    Args:
        table: of LanceDB, with a column of fixed-size lists of float32.
        column: its name.
        force: make an index anew, of a table of any size.

    Returns:
        "none": it has too few rows for one. "kept": nothing was to do. "extended": new rows were taken in. "made": it
        was made, or made anew.

    Raises:
        UserError: an index is to be made of fewer rows than it has groups.
    """
    index = index_of(table, column)
    rows = table.count_rows()
    if force:
        _make(table, column)
        return "made"
    if not needs_index(rows):
        # A table that has become small is searched exactly without it, and as fast.
        if index is not None:
            table.drop_index(index.name)
        return "none"
    if index is None or _outgrown(index.plan, plan_of(rows, _width(table, column))):
        _make(table, column)
        return "made"
    _drop_others(table, column, index.name)
    if index.waiting > min(WAITING, BEHIND * rows):
        table.optimize()
        return "extended"
    return "kept"


def _make(table: Any, column: str) -> None:
    """Make the index; an earlier one of the column goes when the new one is there."""
    from lancedb.index import IvfFlat, IvfRq

    rows = table.count_rows()
    if rows < FEWEST:
        raise UserError(f"the table has {rows} rows; an index needs at least {FEWEST}. So few are searched without one")
    plan = plan_of(rows, _width(table, column))
    settings = {
        "distance_type": "dot",
        "num_partitions": plan.groups,
        "sample_rate": SAMPLED,
        "max_iterations": ROUNDS,
    }
    config = IvfRq(num_bits=BITS, **settings) if plan.kind == "IVF_RQ" else IvfFlat(**settings)

    name = f"{column}_{plan.name}"
    table.create_index(column, config=config, name=name, replace=True)
    _drop_others(table, column, name)


def _drop_others(table: Any, column: str, name: str) -> None:
    """Leave one index of a column. Two are there if a process was killed before it dropped the other."""
    for one in list(table.list_indices()):
        if one.columns == [column] and one.name != name:
            table.drop_index(one.name)


def _outgrown(plan: Plan, wanted: Plan) -> bool:
    apart = wanted.groups / plan.groups
    return plan.kind != wanted.kind or apart >= GROWN or apart <= 1 / GROWN


def index_of(table: Any, column: str = "vector") -> Index | None:
    """The index of a column; None if rows are compared one by one."""
    for one in table.list_indices():
        kind, _, groups = one.name.removeprefix(f"{column}_").rpartition("_")
        if one.columns == [column] and kind in ("ivf_rq", "ivf_flat") and groups.isdigit():
            plan = Plan(kind.upper(), int(groups))
            return Index(one.name, plan, one.num_indexed_rows or 0, one.num_unindexed_rows or 0, one.size_bytes or 0)
    return None


def describe(table: Any, column: str = "vector") -> dict[str, Any]:
    """How a table is searched, for people and programs.

    Args:
        table: of LanceDB.
        column: of the vectors.

    Returns:
        `search`, "exact" or "index"; `rows`; `said`, a sentence; with an index also its `kind`, `groups`, `probes`,
        `indexed`, `waiting` and `bytes`.
    """
    index = index_of(table, column)
    rows = table.count_rows()
    if index is None:
        said = f"{rows:,} moments are compared one by one, which is exact; an index comes with {LIMIT:,}"
        return {"search": "exact", "rows": rows, "said": said}
    codes = f"codes of {BITS} bits a number" if index.plan.kind == "IVF_RQ" else "the rows themselves"
    said = (
        f"{index.indexed:,} moments lie in {index.plan.groups:,} groups, of which a query looks at "
        f"{index.plan.probes:,} by {codes}; the best are compared exactly"
    )
    if index.waiting:
        said += f". {index.waiting:,} more wait outside and are compared one by one"
    return {
        "search": "index",
        "rows": rows,
        "said": said,
        **asdict(index.plan),
        "probes": index.plan.probes,
        "indexed": index.indexed,
        "waiting": index.waiting,
        "bytes": index.size,
    }


def search(
    table: Any, row: np.ndarray, k: int, columns: Sequence[str], where: str | None = None, column: str = "vector"
) -> pa.Table:
    """The k rows of largest inner product.

    Args:
        table: of LanceDB, with an index or without one.
        row: the query, `[D]` floats. Where it is narrower than the table's rows, zeros follow: refined rows lie in a
            multiple of 16.
        k: how many; all, if there are fewer.
        columns: of the table, that the result has.
        where: only rows of which this holds, in SQL, such as "content = '…'".
        column: of the vectors.

    Returns:
        The columns, and `score`, float32: the inner products, exact, in falling order.

    Raises:
        ValueError: the query has another shape, holds NaN or infinite values or is wider than the table's rows; or k is
            less than one.

    Examples:
        >>> search(table, query, 10, ["id", "start", "end"])["score"].to_pylist()
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    request = table.search(_query(table, row, column), vector_column_name=column).distance_type("dot")
    if where is not None:
        request = request.where(where, prefilter=True)

    index = index_of(table, column)
    if index is not None:
        probes = index.plan.probes
        # Few rows may be left in these groups by the condition: then the others are looked at too.
        request = request.nprobes(probes) if where is None else request.minimum_nprobes(probes).maximum_nprobes(0)
        if index.plan.kind == "IVF_RQ":
            request = request.refine_factor(max(READ_TIMES, math.ceil(READ / k)))

    found = request.select([*columns, DISTANCE]).limit(k).to_arrow()
    scores = 1 - found[DISTANCE].to_numpy()
    return found.select(list(columns)).append_column(SCORE, pa.array(scores.astype(np.float32)))


def _query(table: Any, row: np.ndarray, column: str) -> np.ndarray:
    """A query as wide as the table's rows."""
    width = _width(table, column)
    query = np.asarray(row, dtype=np.float32)
    if query.ndim != 1 or len(query) > width:
        raise ValueError(f"row has shape {list(query.shape)}; expected [D] with D of {width} at most, as the table has")
    if not np.isfinite(query).all():
        raise ValueError("row holds NaN or infinite values; a query is a vector of finite numbers")
    return np.pad(query, (0, width - len(query)))


def _width(table: Any, column: str) -> int:
    """Numbers of a row."""
    return int(table.schema.field(column).type.list_size)
