"""Names that are one to a reader and two to a computer: "é" is one letter in NFC, and two in NFD, as on a Mac."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


def one_form(name: str) -> str:
    """The form in which equal names are equal."""
    return unicodedata.normalize("NFC", name)


def by_any_form(found: Mapping[str, Value], name: str) -> str | None:
    """The key of a mapping that is this name: as it is, or else in another Unicode form. None if there is none."""
    if name in found:
        return name
    if name.isascii():
        return None
    return next((key for key in found if not key.isascii() and one_form(key) == one_form(name)), None)


def is_there(path: Path) -> bool:
    """Whether a file that annotations name exists; no file has a name that is longer than the system allows."""
    return os.path.exists(path)  # Path.exists raises an error for such a name


def in_any_form(path: Path) -> Path:
    """The path of a file that is there under this name in any Unicode form; the path itself if none is."""
    if str(path).isascii() or is_there(path):
        return path
    parent = in_any_form(path.parent)
    if is_there(parent / path.name):
        return parent / path.name
    entry = _entries(parent).get(one_form(path.name))
    return path if entry is None else parent / entry


def _entries(folder: Path) -> dict[str, str]:
    """The names in a folder by their one form."""
    try:
        names: Iterable[str] = [entry.name for entry in folder.iterdir()]
    except OSError:
        return {}
    return {one_form(name): name for name in names}
