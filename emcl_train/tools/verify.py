"""`emcl-train verify FOLDER`: compare files with their checksums, and look whether JSON can be read."""

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from safetensors import SafetensorError, safe_open

from emcl_train.data.cache import frames_of_index, frames_unchanged, is_index
from emcl_train.data.features import BINARY as OF_FEATURES
from emcl_train.errors import UserError
from emcl_train.runs.checksums import ABSENT, CHECKSUMS, checksum_of, is_unchanged, note_all, read_checksums
from emcl_train.runs.contents import EMBEDDINGS, FEATURES, FINISHED, METRICS, STATE, WEIGHTS
from emcl_train.runs.files import json_if_whole, read_json, require_folder, write_json_atomic
from emcl_train.runs.lock import require_quiet, writing
from emcl_train.runs.records import read_records
from emcl_train.terminal import console_of, escaped, warn
from emcl_train.tools.refine import MAP, WRITTEN, fingerprint
from emcl_train.tools.sides import PAIRS, RECORD, TEXT, VIDEO

BINARY = (".safetensors", ".pt", ".npy", ".bin")
"""Suffixes of files that have a checksum."""
NOTED = (WEIGHTS, Path(STATE).name, EMBEDDINGS)
"""Files of a run whose checksums their writers note: those of others would be wrong once these are written again."""
NO_FILE = "it is a link, a pipe or another thing that is no file"
State = Literal["right", "damaged", "missing", "without a checksum"]
STATES: tuple[State, ...] = ("right", "damaged", "missing", "without a checksum")


@dataclass(frozen=True)
class Finding:
    """What is known of one file."""

    path: Path
    state: State
    reason: str = ""


def verify(
    folder: Path,
    *,
    accept: bool = False,
    console: Console | None = None,
    result: Callable[[object], object] | None = None,
) -> int:
    """Examine a run, features, exported or refined files, or a folder of such, and print what was found.

    Args:
        folder: it and all folders in it are looked at; links are not followed.
        accept: take all binary files as they are, and write their checksums anew.
        console: where to print.
        result: takes what was found, for JSON.

    Returns:
        1 if a file is damaged or missing, else 0.

    Raises:
        UserError: there is no such folder, or it holds nothing that could be looked at.
    """
    console = console_of(console)
    require_folder(folder, "a run, features or refined files")
    if accept:
        with writing(folder, deep=True):
            for inside, _ in _folders(folder):
                require_quiet(inside, here=True)
            for inside, names in _folders(folder):
                _accept(inside, names)

    findings = [finding for inside, names in _folders(folder) for finding in _examine(inside, names)]
    if not findings:
        raise UserError(f"{folder} holds no file that has a checksum or could be read here; pass a run's folder")

    for finding in findings:
        if finding.state != "right":
            reason = f": {finding.reason}" if finding.reason else ""
            warn(f"{finding.state}: {escaped(finding.path)}{escaped(reason)}", console)
    if result is not None:
        result({"folder": folder, "files": [vars(finding) for finding in findings]})
    counts = Counter(finding.state for finding in findings)
    listed = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    console.print(f"{escaped(folder)}: {listed}", soft_wrap=True, highlight=False)
    return 1 if counts["damaged"] or counts["missing"] else 0


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with the names of its files, but for those that are not whole yet."""
    for inside, _, names in os.walk(folder):
        yield Path(inside), sorted(name for name in names if not name.startswith("."))


def _examine(folder: Path, names: list[str]) -> Iterator[Finding]:
    try:
        noted = read_checksums(folder)
    except UserError as error:
        yield Finding(folder / CHECKSUMS, "damaged", str(error))
        return

    # Files with a checksum.
    for name, checksums in noted.items():
        path = folder / name
        if not path.exists():
            if ABSENT not in checksums:  # else its writer was ended before it was there
                yield Finding(path, "missing")
        else:
            yield _compared(path, is_unchanged)

    # Refined files, of which the map has fingerprints.
    refined = _refined(folder / MAP) if MAP in names else {}
    for name, expected in refined.items():
        path = folder / name
        if not path.exists():
            yield Finding(path, "missing")
        elif expected and name not in noted:
            yield _compared(path, _has(expected, fingerprint), MAP)

    # Frames of clips, of which an index has the checksum.
    cached = dict(_of_indices(folder, names))
    for path, index in cached.items():
        yield _compared(path, partial(frames_unchanged, index), index.name)

    for name in names:
        path = folder / name
        if name in noted or name in refined or path in cached:
            continue
        if not _is_file(path):
            if name.endswith((*BINARY, ".json")) or name == METRICS:
                yield Finding(path, "damaged", NO_FILE)
        elif name.endswith(BINARY):
            yield Finding(path, "without a checksum")
        elif name == METRICS or name.endswith(".json"):
            yield _read(path, noted.get(WEIGHTS, ()))


def _is_file(path: Path) -> bool:
    """Whether it is a file: what is read of a pipe has no end, and a link leads to what is somebody else's."""
    return stat.S_ISREG(path.lstat().st_mode)


def _compared(path: Path, unchanged: Callable[[Path], bool | None], noted_in: str = CHECKSUMS) -> Finding:
    try:
        if not _is_file(path):
            return Finding(path, "damaged", NO_FILE)
        found = unchanged(path)
    except OSError as error:
        return Finding(path, "damaged", f"it cannot be read: {error.strerror}")
    if found is None:
        return Finding(path, "without a checksum")
    return Finding(path, "right") if found else Finding(path, "damaged", f"it is not what {noted_in} beside it says")


def _has(expected: str, of: Callable[[Path], str]) -> Callable[[Path], bool]:
    return lambda path: of(path) == expected


def _of_indices(folder: Path, names: list[str]) -> Iterator[tuple[Path, Path]]:
    """The files of frames in a folder of a cache, with their indices."""
    for name in filter(is_index, names):
        if _is_file(folder / name) and (frames := frames_of_index(folder / name)) is not None:
            yield frames, folder / name


def _read(path: Path, of_weights: Collection[str]) -> Finding:
    """Whether a text file of ours can be read, and, of the mark of a finished run, is of the weights beside it.

    Args:
        path: the file.
        of_weights: checksums of the weights; if they are those of the mark, the weights were compared already.
    """
    try:
        if path.name == METRICS:
            read_records(path)
            return Finding(path, "right")
        value = read_json(path, "copy it again")
    except UserError as error:
        return Finding(path, "damaged", str(error))

    weights = path.with_name(WEIGHTS)
    noted = value.get("weights") if path.name == FINISHED and isinstance(value, dict) else None
    if noted is not None and noted not in of_weights and os.path.lexists(weights):
        if _compared(weights, _has(str(noted), checksum_of)).state == "right":
            return Finding(path, "right")
        return Finding(weights, "damaged", f"it is not what the training ended with, as {FINISHED} beside it says")
    return Finding(path, "right")


def _refined(path: Path) -> dict[str, str]:
    """The files beside a map that refine wrote, with their fingerprints; {} if it is no map of refine."""
    try:
        if not _is_file(path):
            return {}
        with safe_open(path, framework="pt") as file:
            files = json.loads((file.metadata() or {}).get(WRITTEN, "{}"))
    except (OSError, ValueError, RecursionError, SafetensorError):
        return {}
    known = isinstance(files, dict) and all(
        isinstance(one, str) and os.path.basename(n) == n for n, one in files.items()
    )
    return dict(files) if known else {}


def _accept(folder: Path, names: list[str]) -> None:
    """Write the checksums of what is there."""
    refined = _refined(folder / MAP) if MAP in names else {}
    ours = {*NOTED, *(OF_FEATURES if FEATURES in names else ()), *((TEXT, VIDEO, PAIRS) if RECORD in names else ())}
    ours |= {MAP, *(name for name in refined if not name.endswith(".json"))} if refined else set()
    binary = [name for name in names if name in ours and _is_file(folder / name)]
    if binary or CHECKSUMS in names:
        note_all(folder, binary)

    mark = json_if_whole(folder / FINISHED)
    if isinstance(mark, dict) and "weights" in mark and (folder / WEIGHTS).is_file():
        write_json_atomic(folder / FINISHED, mark | {"weights": checksum_of(folder / WEIGHTS)})
