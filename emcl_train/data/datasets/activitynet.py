"""ActivityNet Captions, for paragraph retrieval: `train.json`, `val_1.json`, and the id lists beside them."""

from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import identifier, read_json, strings
from emcl_train.data.paragraphs import joined, json_or_lines, read_paragraph_lines
from emcl_train.data.split_rules import Captions, Protocol, SplitFiles, captions_of, check_root, clip_finder
from emcl_train.errors import UserError
from emcl_train.reading.shown import shortened

PROTOCOL = Protocol("ActivityNet Captions", train=(10009,), test=(4917,))
TRAIN = ("train.json", "train_ids.json")
TEST = ("val_1.json", "val_ids.json")


def read(config: DataConfig) -> SplitFiles:
    """Training videos of `train_ids.json`, and as the test split those of `val_ids.json`.

    Without an id list all videos of the captions file are taken, which is noted. Ids and files may have the "v_" of the
    captions' keys or not.
    """
    check_root(config, TRAIN[0])
    notes: list[str] = []
    return SplitFiles(
        train=_part(config.root, *TRAIN, notes),
        val={},
        test=_part(config.root, *TEST, notes),
        clip=clip_finder(config, also=_other_names),
        train_file=config.root / TRAIN[0],
        protocol=PROTOCOL,
        notes=notes,
    )


def read_captions(path: Path) -> Captions:
    """The paragraph of each video, in the file's order.

    Raises:
        UserError: an entry is not {"duration", "timestamps", "sentences"}.
    """
    if path.suffix == ".jsonl":
        return read_paragraph_lines(path)
    content: Any = read_json(path, "ActivityNet captions")
    if not isinstance(content, dict) or not content:
        raise UserError(
            f'{path}: expected {{"v_…": {{"duration", "timestamps", "sentences"}}, …}}, got {shortened(content)}'
        )
    expected = '{"sentences": ["…", …]}'
    found: Captions = {}
    for video_id, entry in content.items():
        place = f"{path}, {video_id}"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: expected {expected}, got {shortened(entry)}; correct the entry")
        found[video_id] = [joined(strings(place, entry.get("sentences"), expected))]
    return found


def _part(root: Path, captions_name: str, ids_name: str, notes: list[str]) -> Captions:
    path = json_or_lines(root / captions_name)
    captions = read_captions(path)

    ids_path = root / ids_name
    if not ids_path.is_file():
        notes.append(f"There is no {ids_name}: all videos of {path.name} are taken.")
        return captions_of(list(captions), captions, path, path, notes)
    ids = read_json(ids_path, "a list of ids")
    texts = [identifier(video_id) for video_id in ids] if isinstance(ids, list) else []
    if not texts or None in texts:
        raise UserError(f'{ids_path}: expected a list of ids ["v_…", …], got {shortened(ids)}')

    # Under the name that the captions have it by; an id without captions stays as it is, and is refused next.
    known = []
    for video_id in filter(None, texts):
        names = (video_id, *_other_names(video_id))
        known.append(next((name for name in names if name in captions), video_id))
    return captions_of(known, captions, ids_path, path, notes)


def _other_names(video_id: str) -> tuple[str, ...]:
    return f"v_{video_id}", video_id.removeprefix("v_")
