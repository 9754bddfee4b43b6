"""Names that are one to a reader and two to a computer: "é" is one letter in NFC, and two in NFD, as on a Mac."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from emcl_train.data.passing import NOT_THERE, trouble_with


def one_form(name: str) -> str:
    """The form in which equal names are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def can_be_a_file(name: str) -> bool:
    """Whether a file can have this name: JSON may write the half of a letter, and the end of a text."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


class Names:
    """Names among which each is found as it is, or else in another Unicode form."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._by_form = {one_form(name): name for name in self._names if not name.isascii()}

    def find(self, name: str) -> str | None:
        """The one of them that is this name; None if there is none."""
        if name in self._names:
            return name
        return None if name.isascii() else self._by_form.get(one_form(name))


class Files:
    """Files that annotations name, found in any Unicode form. Each folder is read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, Names] = {}

    def find(self, path: Path) -> Path:
        """The path of a file that is there under this name in any Unicode form; the path itself if none is."""
        if str(path).isascii() or is_there(path):
            return path
        parent = self.find(path.parent)
        name = self._names_in(parent).find(path.name)
        return path if name is None else parent / name

    def _names_in(self, folder: Path) -> Names:
        if folder not in self._folders:
            try:
                self._folders[folder] = Names(os.listdir(folder))
            except OSError as error:
                if error.errno not in NOT_THERE:
                    raise trouble_with(error, folder) from error
                self._folders[folder] = Names(())
        return self._folders[folder]


def is_there(path: Path) -> bool:
    """Whether there is a file that annotations name. One that cannot be asked for now is not called missing."""
    try:
        os.stat(path)
    except ValueError:  # a name that no file can have
        return False
    except OSError as error:
        return error.errno not in NOT_THERE
    return True
