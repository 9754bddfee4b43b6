"""Annotation files in the formats that data sets come in, each read or refused with the file and the way out."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emcl_train.data.passing import NOT_THERE, trouble_with
from emcl_train.data.plain_text import beginning_of, text_of
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.plain_files import LARGEST_LINE, LARGEST_LIST, parse_json, read_regular
from emcl_train.reading.shown import shortened

VIDEO_SUFFIXES = (
    ".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".wmv", ".3gp", ".mts",
)  # fmt: skip
"""Of several files of one clip in a folder, the one whose suffix comes first is taken."""

FRAME_SUFFIXES = (".jpg", ".jpeg")
"""Of the frames in a folder that stands for a video file."""


LARGEST_ID = 2**53
"""Of ids that are numbers: above it, other programs round them."""


def video_files(folder: Path) -> dict[str, list[Path]]:
    """The video files of each id in a folder and those inside it, which is their name without the suffix.

    Of several files the one whose suffix VIDEO_SUFFIXES names first comes first. A folder of frames stands for a file
    of its name, and comes last.

    Raises:
        UserError: the folder is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; put the clips there as <video_id>.mp4 (or {', '.join(VIDEO_SUFFIXES[1:])}) "
            f"or as folders of frames, <video_id>/00000001.jpg, or pass {flag('data.videos')} with the folder that has "
            f"them"
        )
    files: dict[str, list[Path]] = {}
    found, frames = clips_in(folder)
    for path in sorted(found, key=lambda path: (VIDEO_SUFFIXES.index(path.suffix.lower()), str(path))):
        files.setdefault(path.stem, []).append(path)
    for path in sorted(frames):
        files.setdefault(path.name, []).append(path)
    return files


def clips_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The video files in a folder and those inside it, and the folders of frames inside it."""
    found = []
    frames: dict[Path, None] = {}
    for path in visible_files(folder):
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            found.append(path)
        elif suffix in FRAME_SUFFIXES and path.parent != folder:
            frames.setdefault(path.parent)
    return found, list(frames)


def visible_files(folder: Path) -> Iterator[Path]:
    """Files in a folder and its sub-folders, links followed, without hidden ones."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_not_listed):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        if real not in seen:
            yield from (Path(place, name) for name in files if name[0] != ".")
        seen.add(real)


def _not_listed(error: OSError) -> None:
    """A folder that cannot be listed now is not an empty one. What lies in lost+found is nobody's video."""
    folder = Path(error.filename)
    if error.errno not in NOT_THERE and folder.name != "lost+found":
        raise trouble_with(error, folder) from error


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
        return read_regular(path, LARGEST_LIST)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the current user access to it") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; split it, and read the parts as data sets") from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; what it is instead is said, see `text_of`."""
    return text_of(read_bytes(path), path)


def read_list(path: Path) -> list[str]:
    """One id a line; empty lines are skipped."""
    ids = [line.strip() for line in io.StringIO(read_text(path), newline=None) if line.strip()]
    if not ids:
        raise UserError(f"{path} names no clip; write one id a line")
    return ids


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of `read_table`, which needs all of these columns."""
    return [row for _, row in read_table(path, columns).rows]


@dataclass(frozen=True)
class Table:
    """What a file of comma-separated values holds."""

    rows: list[tuple[int, dict[str, str]]]
    """Each with the number of the line where it begins, and its cells by their columns."""
    others: list[str]
    """Columns that nobody asked for."""


def read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> Table:
    """Rows with these columns, stripped of surrounding space.

    Args:
        path: comma-separated values, whose first line names the columns.
        columns: those that have to be there, each cell filled; the first of them is the id of a clip, or its file.
        optional: those that may be there, and whose cells may be empty.

    Raises:
        UserError: a column is missing, or a row does not have a cell for each. A quote that is never closed takes the
            rows below it into one cell, which is told by what that cell holds.
    """
    lines = _csv_rows(path)
    _, first = next(lines, (1, []))
    header = [name.strip() for name in first]
    missing = [column for column in columns if column not in header]
    if missing:
        apart = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        way_out = (
            f"Make {','.join(columns)} part of the first line"
            if apart is None
            else f"Its columns are separated by {apart!r}: save it with commas, as {','.join(columns)}"
        )
        raise UserError(
            f"{path} has no column {quoted(missing)}; its first line gives {quoted(header) or 'nothing'}. {way_out}"
        )
    wanted = [name for name in (*columns, *optional) if name in header]
    if repeated := [name for name, number in Counter(header).items() if number > 1 and name in wanted]:
        raise UserError(f"{path} has the column {quoted(repeated)} more than once; rename or delete one")

    places = {column: header.index(column) for column in wanted}
    found = []
    for number, cells in lines:
        row = {column: cells[place].strip() if place < len(cells) else "" for column, place in places.items()}
        for column in columns:
            if not row[column]:
                raise UserError(f"{path}, line {number}: {column} is empty; fill it, or delete the line")
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {number}: {count(len(cells), 'cell')}, expected {len(header)}, one for each column of "
                f"the first line; {_way_out_of_cells(cells, len(header))}"
            )
        _require_rows_apart(path, number, cells, len(header), places[columns[0]])
        found.append((number, row))

    if not found:
        raise UserError(f"{path} has no rows below its first line; write one line for each clip")
    return Table(found, [name for name in header if name and name not in wanted])


def _way_out_of_cells(cells: list[str], width: int) -> str:
    """What to do about a row of more or fewer cells than the first line has."""
    if len(cells) < width:
        return "write a cell for each, which may be empty"
    if not any(map(str.strip, cells[width:])):
        return "delete the commas at its end"
    return 'put a caption that has commas into quotes, "like, this"'


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of the line where it begins."""
    # Strict: text behind a closing quote, and a quote that is open at the end of the file, are errors.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}, line {number}: {_said_of_csv(error)}; correct the line. In a caption that stands in quotes "
                f'a quote is written twice, "he says ""hello"""'
            ) from error
        if cells:
            yield number, cells


def _said_of_csv(error: csv.Error) -> str:
    """What is wrong with a row, in the words of somebody who looks at the file."""
    said = str(error)
    if said == "unexpected end of data":
        return 'a quote (") opens, and no other one (") closes it before the file ends'
    if "expected after" in said:
        return 'text follows a closing quote ("), so that it is not known where the cell ends'
    return said


def _require_rows_apart(path: Path, number: int, cells: list[str], width: int, id_place: int) -> None:
    """Raise a UserError where a cell holds what looks like other rows: its quote was meant to close before them."""
    for place, cell in enumerate(cells):
        first, *behind = re.split(r"\r\n|\r|\n", cell)
        if not behind:
            continue

        swallowed = [line for line in behind if len(next(csv.reader([line]), [])) >= width]
        if place == id_place:
            swallowed = swallowed or behind

        # Where columns follow, the first line may be a row of its own: with as many cells, and one word as the id.
        beginning = [*cells[:place], *next(csv.reader([first]), [])]
        if place < id_place and len(beginning) == width and re.fullmatch(r"\S+", beginning[id_place]):
            swallowed = swallowed or [first]

        if swallowed:
            raise UserError(
                f'{path}, line {number}: a quote (") opens and is closed {count(len(behind), "line")} below, so that '
                f"one cell holds what looks like rows, such as {shortened(swallowed[0])}; close it in its own line, or "
                f"write the caption on one line"
            )


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; `what` it should be is said where it is something else.

    Raises:
        UserError: it is not JSON, or gives one key two values, of which a dict would keep the last in silence.
    """
    text = read_text(path)
    try:
        return parse_json(text, pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        begins = "" if text.lstrip()[:1] in ("", "{", "[") else f", it begins with {beginning_of(text)!r}"
        raise UserError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}{begins}; "
            f"it may be cut short: copy or download it again"
        ) from error
    except RepeatedKeyError as error:
        raise UserError(f"{path}: {error}; join or delete one") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be {what}: {error}; download it again") from error


class RepeatedKeyError(ValueError):
    """An object of a JSON file has two values under one name."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        known: dict[str, Any] = {}
        for key, value in pairs:
            if known.setdefault(key, value) != value:
                raise RepeatedKeyError(
                    f"{key!r} stands there twice, with {shortened(known[key])} and {shortened(value)}"
                )
    return found


def read_json_lines(path: Path, what: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with the number of its line."""
    entries = []
    # By line feeds alone: a caption may hold other characters that Python takes for the end of a line.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        if len(line) > LARGEST_LINE:
            raise UserError(
                f"{path}, line {number}: it has {len(line)} letters, expected at most {LARGEST_LINE}; write one clip a "
                f"line, with {what}"
            )
        try:
            entry = parse_json(line, pairs_hook=_each_key_once)
        except RepeatedKeyError as error:
            raise UserError(f"{path}, line {number}: {error}; expected {what}") from error
        except ValueError as error:
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


def identifier(value: Any) -> str | None:
    """An id as a text, which a file may have written as a number; None if it is neither.

    7 and "7" are one id. So is 7.0: tables with empty cells are written with such numbers.
    """
    if isinstance(value, str):
        return value.strip() or None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or abs(value) > LARGEST_ID:
        return None
    return str(int(value))


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def few(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
