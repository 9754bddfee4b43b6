"""Files of a plan that are not there: for good, or for as long as a disk is not mounted."""

import os
from collections.abc import Iterable
from pathlib import Path

from emcl_train.data.names import is_there
from emcl_train.search.reaching import is_address


def why_away(path: str, place: str, others: Iterable[str] = ()) -> str:
    """Why a file that is not there may come back.

    It is gone for good where all about it is as it was: the corpus is there, there is something in the folder that
    would hold it, and another file of its shard is there.

    Args:
        path: of the file, or its address.
        place: of the corpus.
        others: the files of its shard, with itself or without.

    Returns:
        Why, and what to do; empty where it was removed, or never was.
    """
    if is_address(path):
        return ""  # a store that does not have it has said so
    file = Path(path)
    others = [other for other in others if other != path]
    if is_there(file):
        what = "it was not there, and now it is"
    elif not is_there(Path(place)):
        what = "there is no such file, and its corpus is not there either"
    elif (folder := next(parent for parent in file.parents if is_there(parent))) and not _holds_something(folder):
        what = f"there is no such file, and nothing in {folder}"
    elif others and not any(is_there(Path(other)) for other in others):
        what = "there is no such file, and no other one of its shard is there either"
    else:
        return ""
    return (
        f"{what}, as where a disk is not mounted; run the command again when it is there, or, if it will never be, "
        f"take it out of the corpus and pass another --out"
    )


def _holds_something(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:  # nobody knows
        return False
