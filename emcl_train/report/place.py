"""Where a page goes that a user names: never over a file that this program did not write."""

from pathlib import Path

from emcl_train.errors import UserError

OURS = '<meta name="generator" content="emcl-train report">'
"""In every such page: another file in its place is nobody's to replace."""
BEGINNING = 1 << 14


def require_free(path: Path, what: str) -> None:
    """See that a page may be written.

    Args:
        path: of the page.
        what: it is, such as "comparison".

    Raises:
        UserError: something else lies there.
    """
    if path.is_dir():
        inside = path / f"{what.replace(' ', '-')}.html"
        raise UserError(f"{path} is a folder, expected a file for the {what}; pass --out {inside}")
    if path.exists() and not _is_ours(path):
        raise UserError(
            f"{path} exists and is no {what} that this program wrote, so it is not replaced; pass another --out"
        )


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return OURS.encode() in file.read(BEGINNING)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}), and is not replaced; pass another --out") from error
