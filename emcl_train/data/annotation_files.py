"""Annotation files in the formats that data sets come in, each read or refused with the file and the way out."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emcl_train.errors import UserError
from emcl_train.flags import flag

VIDEO_SUFFIXES = (
    ".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".wmv", ".3gp", ".mts",
)  # fmt: skip
"""Of several files of one clip in a folder, the one whose suffix comes first is taken."""


def video_files(folder: Path) -> dict[str, list[Path]]:
    """The video files of each id in a folder and those inside it, which is their name without the suffix.

    Of several files the one whose suffix VIDEO_SUFFIXES names first comes first.

    Raises:
        UserError: the folder is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; put the clips there as <video_id>.mp4 (or {', '.join(VIDEO_SUFFIXES[1:])}), "
            f"or pass {flag('data.videos')} with the folder that has them"
        )
    found = [path for path in visible_files(folder) if path.suffix.lower() in VIDEO_SUFFIXES]
    found.sort(key=lambda path: (VIDEO_SUFFIXES.index(path.suffix.lower()), str(path)))
    files: dict[str, list[Path]] = {}
    for path in found:
        files.setdefault(path.stem, []).append(path)
    return files


def visible_files(folder: Path) -> Iterator[Path]:
    """Files in a folder and its sub-folders, links followed, without hidden ones."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        if real not in seen:
            yield from (Path(place, name) for name in files if name[0] != ".")
        seen.add(real)


def without_video_suffix(name: str) -> str:
    """Turn "x.avi" into "x", and leave "0001_Film_00.01.02.345" as it is."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES else name


def read_bytes(path: Path) -> bytes:
    if not path.is_file():
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.name[0] != ".")
        raise UserError(
            f"there is no file {path}; {path.parent} holds {few(beside) or 'nothing'}. "
            f"Put {path.name} there, or pass {flag('data.root')} with the folder that has it"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the current user access to it") from error


def read_text(path: Path) -> str:
    data = read_bytes(path)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            f"convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def read_list(path: Path) -> list[str]:
    """One id a line; empty lines are skipped."""
    ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not ids:
        raise UserError(f"{path} names no clip; write one id a line")
    return ids


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows with these columns, stripped of surrounding space, each filled."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    rows = []
    try:
        present = list(reader.fieldnames or ())
        missing = [column for column in columns if column not in present]
        if missing:
            raise UserError(
                f"{path} has no column {quoted(missing)}; its first line gives {quoted(present) or 'nothing'}. "
                f"Make {','.join(columns)} part of the first line"
            )
        for row in reader:
            for column in columns:
                if not (row[column] or "").strip():
                    raise UserError(f"{path}, line {reader.line_num}: {column} is empty; fill it, or delete the line")
            rows.append({column: row[column].strip() for column in columns})
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; correct the line") from error
    if not rows:
        raise UserError(f"{path} has no rows below its first line; write one line for each clip")
    return rows


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; `what` it should be is said where it is something else."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            f"it may be cut short: copy or download it again"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be {what}; download it again") from error


def read_json_lines(path: Path, what: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with the number of its line."""
    entries = []
    # By line feeds alone: a caption may hold other characters that Python takes for the end of a line.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: it is not JSON ({error}); expected {what}") from error
        if not isinstance(entry, dict):
            raise UserError(f"{path}, line {number}: it is a {type(entry).__name__}; expected {what}")
        entries.append((number, entry))
    if not entries:
        raise UserError(f"{path} has no line; expected in each {what}")
    return entries


def strings(place: str, value: Any, expected: str) -> list[str]:
    """A list of texts, stripped of surrounding space; empty ones stay for the caller to count."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{place}: expected {expected}, got {shortened(value)}; correct the entry")
    return [text.strip() for text in value]


def shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 120 else f"{text[:120]}…"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def few(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
