"""Features and vocabulary of JSFusion: one file of HDF5 for all clips, and Hickle's files of words.

Hickle is HDF5 with Python's values in groups: a dict has a group for each key, and in it a data set. The data sets are
read; whatever Hickle had to pickle is not. That the authors' dictionaries lie so is inferred from Hickle 2's format.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from emcl_train.data.annotation_files import few, read_list
from emcl_train.data.experts.features import (
    Examined,
    ExpertError,
    ExpertReader,
    ExpertSteps,
    ShapeFault,
    checked_steps,
    most_common_width,
    no_features,
)
from emcl_train.data.passing import trouble_with
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.arrays import open_npy
from emcl_train.reading.hdf5 import Hdf5Error, Hdf5Group, open_hdf5, opened_hdf5

EXPERT = "resnet"
"""The one expert: ResNet-152, and behind it VGGish where the file has sound."""
FOLDERS = ("LSMDC16_features", ".")
FILES: dict[str, tuple[str, ...]] = {
    "msrvtt": ("MSR_RESNET_pool5.hdf5",),
    "lsmdc": ("RESNET_pool5wav.hdf5", "RESNET_pool5.hdf5"),
}
"""By data set; the first that is there is taken: with sound where there is some."""
VOCABULARY = "Vocabulary"
LOOKED_AT = 50
"""Clips whose features tell how wide they are."""
MOST_WORDS = 1 << 20


class JSFusionFeatures(ExpertReader):
    """The features of a data set; see `ExpertReader`. The file stays open, once in each process."""

    def __init__(self, root: Path, dataset: str, width: int | None = None) -> None:
        """Look for the file.

        Args:
            root: the folder that holds `LSMDC16_features`, `DataFrame` and `Vocabulary`.
            dataset: "msrvtt" or "lsmdc".
            width: of a step; None: what most clips have.

        Raises:
            UserError: it is not there, or JSFusion has no features of this data set.
        """
        if dataset not in FILES:
            raise UserError(f"JSFusion has no features of {dataset}; it has those of {', '.join(FILES)}")
        places = [root / folder / name for name in FILES[dataset] for folder in FOLDERS]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise UserError(
                f"{root} has no {' or '.join(FILES[dataset])}, neither in {FOLDERS[0]} nor beside it; pass "
                f"{flag('data.root')} with the folder that holds {FOLDERS[0]}"
            )
        self.file_path = found
        self.experts: tuple[str, ...] = (EXPERT,)
        self._asked = width
        self._open: tuple[int, Hdf5Group] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None}

    @property
    def _file(self) -> Hdf5Group:
        """The open file of this process: one that was opened before a fork is not shared."""
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = os.getpid(), opened_hdf5(self.file_path)
            except Hdf5Error as error:
                raise UserError(f"{self.file_path}: {error}; download it again") from error
            except OSError as error:
                raise trouble_with(error, self.file_path) from error
        return self._open[1]

    @cached_property
    def widths(self) -> Mapping[str, int]:
        if self._asked is not None:
            return {EXPERT: self._asked}
        widths: list[int] = []
        for number, video_id in enumerate(self._file):
            if number == LOOKED_AT:
                break
            try:
                shape = self._file.shape(video_id)
            except Hdf5Error:  # which is said where this clip is read
                continue
            widths += shape[1:2]
        width = most_common_width(widths)
        if width is None:
            raise UserError(
                f"{self.file_path} has no features [steps, width] under the ids of clips; download it again"
            )
        return {EXPERT: width}

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._file

    @property
    def shared_files(self) -> tuple[Path, ...]:
        return (self.file_path,)

    def ids(self) -> Iterable[str]:
        return iter(self._file)

    def examine(self, video_id: str) -> Examined:
        if video_id not in self._file:
            raise no_features(video_id, self.file_path)
        try:
            values = self._file.array(video_id)
            steps = checked_steps(
                values, expert=EXPERT, video_id=video_id, place=self.file_path, width=self.widths[EXPERT]
            )
        except Hdf5Error as error:
            fault = ShapeFault(f"{self.file_path}: {error}; download it again")
            return Examined(faults={EXPERT: fault})
        except ExpertError as error:
            return Examined(faults={EXPERT: error})
        return Examined({EXPERT: steps})

    def read(self, video_id: str) -> dict[str, ExpertSteps | None]:
        return self.examine(video_id).whole()


@dataclass(frozen=True)
class Vocabulary:
    """Words and their vectors."""

    index: Mapping[str, int]
    """Of each word, its row. 0 is padding."""
    matrix: Float32[np.ndarray, "words D"]

    def __len__(self) -> int:
        return len(self.matrix)


def read_vocabulary(root: Path) -> Vocabulary:
    """The words of `Vocabulary` in a folder.

    Either Hickle's files, or `words.txt` with a word a line, from row 0 on, and `word_matrix.npy`.

    Raises:
        UserError: they are missing, are something else, or do not fit each other.
    """
    folder = root / VOCABULARY
    if (folder / "words.txt").is_file():
        words = read_list(folder / "words.txt")
        try:
            matrix = open_npy(folder / "word_matrix.npy")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder / 'word_matrix.npy'} cannot be read: {error}; write it with numpy.save"
            ) from error
        index = {word: number for number, word in enumerate(words)}
        if len(index) < len(words):
            raise UserError(f"{folder / 'words.txt'} has a word twice; write each once")
        return _fitting(index, matrix, folder)

    matrix = _hickle_array(folder / "common_word_matrix.hkl")
    path = folder / "common_word_to_index.hkl"
    index = {word: _whole(value, word, path) for word, value in _hickle_dict(path).items()}
    return _fitting(index, matrix, folder)


def _fitting(index: dict[str, int], matrix: np.ndarray, folder: Path) -> Vocabulary:
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise UserError(
            f"{folder}: the vectors of words have the shape {list(matrix.shape)} or are not finite, expected [words, "
            f"width]; download them again"
        )
    outside = [word for word, row in index.items() if not 0 <= row < len(matrix)]
    if outside:
        raise UserError(
            f"{folder}: {few(outside)} have rows outside the {len(matrix)} of the vectors; the files are of different "
            f"vocabularies, download them again"
        )
    return Vocabulary(index, np.asarray(matrix, dtype=np.float32))


def _hickle_array(path: Path) -> np.ndarray:
    """The one array of a file."""
    try:
        with open_hdf5(path) as file:
            return file.array(_only(file))
    except (Hdf5Error, OSError) as error:
        raise _not_read(path, error) from error


def _hickle_dict(path: Path) -> dict[str, int | str]:
    """A dictionary with words or numbers for values: a group a key, with one data set in it."""
    found: dict[str, int | str] = {}
    try:
        with open_hdf5(path) as file:
            groups = file.group(_only(file))
            if len(groups) > MOST_WORDS:
                raise Hdf5Error(f"it has {len(groups)} words, expected {MOST_WORDS} at most")
            for name in groups:
                # Later versions of Hickle write keys in quotes.
                key = name[1:-1] if len(name) > 2 and name[0] in "'\"" and name[0] == name[-1] else name
                found[key] = _value(groups.group(name), name)
    except (Hdf5Error, OSError) as error:
        raise _not_read(path, error) from error
    return found


def _value(item: Hdf5Group, key: str) -> int | str:
    name = _only(item)
    try:
        number = item.array(name)
    except Hdf5Error:
        words = item.words(name)
        if len(words) != 1:
            raise Hdf5Error(f"{key} has {len(words)} texts, expected one") from None
        return words[0]
    if number.size != 1 or number.dtype.kind not in "iu":
        raise Hdf5Error(f"{key} has {number.dtype} of shape {list(number.shape)}, expected a whole number")
    return int(number.reshape(-1)[0])


def _only(group: Hdf5Group) -> str:
    """The one member of a group, which Hickle calls data_0 or data."""
    for name in ("data_0", "data"):
        if name in group:
            return name
    raise Hdf5Error(f"it has {few(list(group)[:10]) or 'nothing'}, expected data_0, as Hickle writes it")


def _whole(value: int | str, word: str, path: Path) -> int:
    if not isinstance(value, int):
        raise UserError(f"{path}: {word} has {value!r}, expected the number of its row; download it again")
    return value


def _not_read(path: Path, error: Exception) -> UserError:
    said = error if isinstance(error, Hdf5Error) else getattr(error, "strerror", None) or error
    return UserError(
        f"{path} cannot be read: {said}. Only data sets of HDF5 are read, and nothing that Hickle pickled; "
        f"{path.parent}/words.txt, a word a line, and word_matrix.npy in its order do as well"
    )
