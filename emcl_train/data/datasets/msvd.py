"""MSVD: `{train,val,test}_list.txt`, and `raw-captions.pkl`, a pickle that is read without running code from it."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import read_bytes, shortened
from emcl_train.data.plain_text import refuse_other_files
from emcl_train.data.split_rules import Captions, Protocol, SplitFiles, from_id_lists
from emcl_train.errors import UserError

PROTOCOL = Protocol("MSVD", train=(1200,), val=(100,), test=(670,))
CAPTIONS = "raw-captions.pkl"
RUNS_CODE = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID"}


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
    return {
        _text(video_id): [_caption(path, video_id, words) for words in texts]
        for video_id, texts in _checked(path, content)
    }


def load_plain(path: Path) -> Any:
    """A pickle of dicts, lists, tuples, sets, strings and numbers. Strings of Python 2 come as bytes.

    Raises:
        UserError: a global or an instruction is refused; the message names it, and where it stands.
    """
    data = read_bytes(path)
    refuse_other_files(data, path)
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # whatever the bytes lead to: without globals, nothing in them can be called
        refused = str(error) if isinstance(error, pickle.UnpicklingError) else ""
        if refused.startswith("it asks for"):
            what = refused
        else:
            what = _first_refused(data) or f"it cannot be read as a pickle: {error or type(error).__name__}"
        raise UserError(
            f"{path}: {what}; only plain lists of words are read, and no code is run. Download it again, or write "
            f"it as a dict of lists of lists of str"
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every name that a pickle would import, and so everything that it could call."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for the global {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it asks for the object {pid!r} from outside the file")


def _first_refused(data: bytes) -> str:
    """The first instruction that would run code, as words; empty where there is none before the data break off."""
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name in RUNS_CODE:
                return f"it asks for {opcode.name} {argument or ''}".rstrip() + f" at byte {position}"
    except Exception:  # the data end or make no sense from here on, which the caller says
        return ""
    return ""


def _checked(path: Path, content: dict[Any, Any]) -> list[tuple[Any, list[Any]]]:
    for video_id, texts in content.items():
        if not isinstance(video_id, (str, bytes)) or not isinstance(texts, (list, tuple)):
            raise UserError(f"{path}: expected id: [[word, …], …], got {video_id!r}: {shortened(texts)}")
    return list(content.items())


def _caption(path: Path, video_id: Any, words: Any) -> str:
    if isinstance(words, (str, bytes)):
        return _text(words).strip()
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, (str, bytes)) for word in words):
        raise UserError(f"{path}, {_text(video_id)}: expected a list of words, got {shortened(words)}")
    return " ".join(map(_text, words)).strip()


def _text(value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
