"""One's own videos: `train.jsonl`, `test.jsonl` and, if there is one, `val.jsonl`, a clip a line.

    {"video": "films/a.mp4", "captions": ["…", …], "start": 3.0, "end": 12.5, "id": "a-3"}

`start`, `end` (seconds from the first frame) and `id` may be left out. A relative path begins at `data.videos`, which
is the folder of the lists unless another is given, such as one of compressed copies (`NamedVideos`).
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import identifier, quoted, read_json_lines, strings
from emcl_train.data.names import can_be_a_file
from emcl_train.data.own_videos import Part, Row, seconds, splits_of
from emcl_train.data.split_rules import SplitFiles, check_root
from emcl_train.errors import UserError
from emcl_train.reading.shown import shortened

NAMES_PATHS = True
"""Paths in the rows begin at the root unless `data.videos` is given."""
KEYS = ("video", "captions", "start", "end", "id")
EXPECTED = '{"video": "path", "captions": ["…", …], "start": seconds, "end": seconds}'


def read(config: DataConfig) -> SplitFiles:
    """The lines of each file in order. Lines about the same span of the same video, or of the same id, are one clip."""
    check_root(config, "train.jsonl and test.jsonl")
    notes: list[str] = []

    def part(split: str) -> Part:
        path = config.root / f"{split}.jsonl"
        return Part(path, read_rows(path, notes))

    return splits_of(
        config,
        part("train"),
        part("val") if (config.root / "val.jsonl").is_file() else None,
        part("test"),
        notes=notes,
        hold_out_from="write a val.jsonl",
    )


def read_rows(path: Path, notes: list[str]) -> list[Row]:
    """The lines of one file; `notes` gets the keys that are not read."""
    lines = read_json_lines(path, EXPECTED)
    rows = [_row(f"{path}, line {number}", entry) for number, entry in lines]
    if unknown := dict.fromkeys(key for _, entry in lines for key in entry if key not in KEYS):
        notes.append(f"Keys of {path.name} that are not read: {shortened(list(unknown))[1:-1]}.")
    return rows


def _row(place: str, entry: dict[str, Any]) -> Row:
    for key in ("video", "captions"):
        _require_key(place, entry, key)
    video = identifier(entry["video"])
    if video is None or not can_be_a_file(video):
        raise UserError(f'{place} has no text under "video": {shortened(entry)}; expected {EXPECTED}')

    start = seconds(place, "start", entry.get("start"))
    end = seconds(place, "end", entry.get("end"))
    video_id = identifier(entry["id"]) if "id" in entry else None
    if "id" in entry and video_id is None:
        raise UserError(
            f'{place}: "id" is {shortened(entry["id"])}, expected a text or a whole number; correct it, or leave it out'
        )
    return Row(place, video, strings(place, entry["captions"], EXPECTED), start, end, video_id)


def _require_key(place: str, entry: dict[str, Any], key: str) -> None:
    """Raise a UserError where a key is missing; one that looks as if it were meant is named."""
    if key in entry:
        return
    others = [other for other in entry if other not in KEYS]
    meant = get_close_matches(key, others, n=1)
    hint = f'write "{key}" in place of "{meant[0]}"' if meant else f"its keys are {quoted(list(entry)) or 'none'}"
    raise UserError(f'{place} has no "{key}"; {hint}; expected {EXPECTED}')
