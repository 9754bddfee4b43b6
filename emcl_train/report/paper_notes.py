"""What a reader must know of the paper's tables; the terminal and the page say the same."""

from emcl_train.report.paper_table import NOT_AVAILABLE, Row, Table

INTRODUCTION = (
    "Published figures have the number of their source; none was computed here. “ours” are figures of runs, beside a "
    "published row only where system, split, gallery and towers agree. A dash: not available."
)


def called(row: Row, sources: dict[str, int], *, first: bool) -> str:
    """How a line of a table is named, so that it says what kind of a line it is.

    Args:
        row: the line.
        sources: their numbers.
        first: whether it is the first of its system; others need not repeat the name of that.
    """
    if row.kind == "own":
        return f"ours: {row.name}"
    if row.kind == "absent":
        return f"{row.name}: {NOT_AVAILABLE}"
    name = row.name if first or not row.variant else row.variant
    return f"{name} [{sources[row.source]}]"


def stale_marks(table: Table) -> list[str]:
    """What to say of our own figures that are not those of the weights beside them."""
    return [f"{row.name}: {mark}" for row in _own_of(table) for mark in row.stale]


def sentences_below(table: Table) -> list[str]:
    """What belongs below a table."""
    said = list(table.remarks)

    # Why there is no figure, once for all rows of one reason.
    reasons: dict[str, list[str]] = {}
    for entry in table.entries:
        for row in entry.rows:
            if row.kind == "absent":
                reasons.setdefault(row.source, []).append(row.name)
    for reason, names in reasons.items():
        said.append(f"{NOT_AVAILABLE.capitalize()}, published: {', '.join(names)}: {reason}.")
    if table.without_own:
        said.append(f"{NOT_AVAILABLE.capitalize()}, ours: {', '.join(table.without_own)}.")

    return said + [f"{row.name}: {remark}" for row in _own_of(table) for remark in row.remarks]


def _own_of(table: Table) -> list[Row]:
    """Our own runs, each once, whatever systems it stands beside."""
    rows = (row for entry in table.entries for row in entry.rows if row.kind == "own")
    return list({row.name: row for row in rows}.values())
