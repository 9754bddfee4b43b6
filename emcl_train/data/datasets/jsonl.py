"""One's own videos: `train.jsonl`, `test.jsonl` and, if there is one, `val.jsonl`, a clip a line.

    {"video": "films/a.mp4", "captions": ["…", …], "start": 3.0, "end": 12.5, "id": "a-3"}

`start`, `end` (seconds from the first frame) and `id` may be left out. A relative path begins at `data.videos`, which
is the folder of the lists unless another is given, such as one of compressed copies.
"""

from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import VIDEO_SUFFIXES, count, read_json_lines, strings
from emcl_train.data.clips import Clip
from emcl_train.data.names import Files, can_be_a_file, is_there
from emcl_train.data.split_rules import Captions, SplitFiles, captions_of, check_root, queries
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.shown import shortened

LONGEST = 1e9
"""Seconds of a film, of which no float is too small to tell frames apart."""
EXPECTED = '{"video": "path", "captions": ["…", …], "start": seconds, "end": seconds}'


def read(config: DataConfig) -> SplitFiles:
    """The lines of each file in order. Lines about the same span of the same video, or of the same id, are one clip."""
    check_root(config, "train.jsonl and test.jsonl")
    if not config.video_folder.is_dir():
        raise UserError(
            f"there is no folder {config.video_folder}; pass {flag('data.videos')} with the one that the paths in "
            f"the lists begin at, or leave it out where that is {config.root}"
        )
    clips: dict[str, Clip] = {}
    notes: list[str] = []
    moved: list[str] = []
    files = Files()

    def part(split: str) -> Captions:
        path = config.root / f"{split}.jsonl"
        found: Captions = {}
        for number, entry in read_json_lines(path, EXPECTED):
            clip = _clip(config.video_folder, f"{path}, line {number}", entry, files, moved)
            known = clips.setdefault(clip.video_id, clip)
            if known != clip:
                raise UserError(
                    f"{path}, line {number}: the id {clip.video_id} stands for another clip already, "
                    f"{known.path}; give each clip its own id"
                )
            texts = strings(f"{path}, line {number}", entry.get("captions"), EXPECTED)
            found.setdefault(clip.video_id, []).extend(texts)
        return captions_of(list(found), found, path, path, notes)

    train = part("train")
    test = queries(part("test"), config)
    val = queries(part("val"), config) if (config.root / "val.jsonl").is_file() else {}
    if moved:
        notes.append(f"{count(len(set(moved)), 'video')} found under another suffix than the annotations give.")
    return SplitFiles(
        train, val, test, clips.__getitem__, config.root / "train.jsonl", notes=notes, hold_out_from="write a val.jsonl"
    )


def _clip(folder: Path, place: str, entry: dict[str, Any], files: Files, moved: list[str]) -> Clip:
    video = entry.get("video")
    if not isinstance(video, str) or not video or not can_be_a_file(video):
        raise UserError(f'{place} has no text under "video": {shortened(entry)}; expected {EXPECTED}')
    start = _seconds(place, entry, "start")
    end = _seconds(place, entry, "end")
    if end is not None and end <= (start or 0.0):
        raise UserError(f"{place}: end is {end:g} and start {start or 0:g}; expected an end after the start")

    # Without an id of its own a clip is called by its file and span.
    span = "" if start is None and end is None else f"#{start or 0:g}-{'' if end is None else f'{end:g}'}"
    video_id = entry.get("id", f"{video}{span}")
    if not isinstance(video_id, str) or not video_id:
        raise UserError(f'{place}: "id" is {shortened(video_id)}, expected a text; correct it, or leave it out')

    path = files.find(folder / video)
    if not is_there(path) and path.suffix.lower() in VIDEO_SUFFIXES:
        # Compressed copies are mp4 files, whatever the originals that the annotations name were.
        beside = (path.with_suffix(suffix) for suffix in VIDEO_SUFFIXES)
        found = next((other for other in beside if is_there(other)), None)
        if found is not None:
            path = found
            moved.append(video)
    return Clip(video_id, path, start, end)


def _seconds(place: str, entry: dict[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST:
        raise UserError(f'{place}: "{name}" is {shortened(value)}, expected seconds of 0 or more; correct it')
    return float(value)
