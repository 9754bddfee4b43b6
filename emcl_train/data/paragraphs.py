"""Data sets whose captions are paragraphs: several sentences about parts of a video, joined into one."""

from pathlib import Path

from emcl_train.data.annotation_files import identifier, read_json_lines, strings
from emcl_train.data.split_rules import Captions
from emcl_train.errors import UserError


def joined(sentences: list[str]) -> str:
    """One paragraph, with single spaces between its sentences."""
    return " ".join(filter(None, (sentence.strip() for sentence in sentences)))


def json_or_lines(path: Path) -> Path:
    """`x.json`, or `x.jsonl` beside it where only that is there."""
    lines = path.with_suffix(".jsonl")
    return lines if not path.is_file() and lines.is_file() else path


def read_paragraph_lines(path: Path) -> Captions:
    """JSON lines {"clip_id": id, "text": [sentence, …]}: the paragraph of each clip.

    Raises:
        UserError: a line is not of that form, or describes a clip a second time.
    """
    expected = '{"clip_id": "…", "text": ["…", …]}'
    found: Captions = {}
    for number, entry in read_json_lines(path, expected):
        clip_id = identifier(entry.get("clip_id"))
        place = f"{path}, line {number}"
        if clip_id is None:
            raise UserError(f'{place} has no "clip_id"; expected {expected}')
        if clip_id in found:
            raise UserError(f"{place} describes {clip_id} a second time; join or delete the lines")
        found[clip_id] = [joined(strings(place, entry.get("text"), expected))]
    return found
