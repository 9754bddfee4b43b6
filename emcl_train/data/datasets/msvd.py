"""MSVD: `{train,val,test}_list.txt`, and `raw-captions.pkl`, a pickle that is read without running code from it."""

import pickle
import reprlib
from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import identifier, read_bytes
from emcl_train.data.plain_text import refuse_other_files
from emcl_train.data.split_rules import Captions, Protocol, SplitFiles, from_id_lists
from emcl_train.errors import UserError
from emcl_train.reading.pickles import BoundedUnpickler, Visits
from emcl_train.reading.shown import shortened

PROTOCOL = Protocol("MSVD", train=(1200,), val=(100,), test=(670,))
CAPTIONS = "raw-captions.pkl"


def read(config: DataConfig) -> SplitFiles:
    """Clips of the three lists, each with all of its captions."""
    return from_id_lists(config, CAPTIONS, read_captions, PROTOCOL)


def read_captions(path: Path) -> Captions:
    """{id: [[word, …], …]} with each caption's words joined, from a pickle of Python 2 or 3.

    Raises:
        UserError: the pickle asks for anything but plain data, which is named; nothing of it has run then.
    """
    content = load_plain(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected a dict {{id: [[word, …], …]}}, got {shortened(content)}")
    visits = Visits(path.stat().st_size)
    found: Captions = {}
    try:
        for key, texts in _checked(path, content):
            video_id = _id(key)
            assert video_id is not None
            if video_id in found:
                raise UserError(f"{path}: the id {video_id} stands there twice, once as {key!r}; join the entries")
            found[video_id] = [_caption(path, video_id, words, visits) for words in visits.each(texts)]
        return found
    except ValueError as error:
        raise UserError(f"{path}: {error}; download it again") from error


def load_plain(path: Path) -> Any:
    """A pickle of dicts, lists, tuples, sets, strings and numbers. Strings of Python 2 come as bytes.

    Raises:
        UserError: a global or an instruction is refused; the message names it.
    """
    data = read_bytes(path)
    refuse_other_files(data, path)
    try:
        return BoundedUnpickler(data, encoding="bytes").load()
    except Exception as error:  # whatever the bytes lead to: without globals, nothing in them can be called
        refused = isinstance(error, pickle.UnpicklingError) and str(error).startswith("it asks for")
        what = str(error) if refused else f"it cannot be read as a pickle: {error or type(error).__name__}"
        raise UserError(
            f"{path}: {what}; only plain lists of words are read, and no code is run. Download it again, or write "
            f"it as a dict of lists of lists of str"
        ) from error


def _checked(path: Path, content: dict[Any, Any]) -> list[tuple[Any, list[Any]]]:
    for video_id, texts in content.items():
        if _id(video_id) is None or not isinstance(texts, (list, tuple)):
            raise UserError(f"{path}: expected id: [[word, …], …], got {reprlib.repr(video_id)}: {shortened(texts)}")
    return list(content.items())


def _id(key: Any) -> str | None:
    """An id as a text, see `identifier`; strings of Python 2 are bytes."""
    return _text(key) if isinstance(key, (str, bytes)) else identifier(key)


def _caption(path: Path, video_id: str, words: Any, visits: Visits) -> str:
    if isinstance(words, (str, bytes)):
        return _text(words).strip()
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, (str, bytes)) for word in words):
        raise UserError(f"{path}, {video_id}: expected a list of words, got {shortened(words)}")
    return " ".join(_text(word) for word in visits.each(words)).strip()


def _text(value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
