"""DiDeMo, for paragraph retrieval: `{train,val,test}_data.json`, the lists beside them, and a span of each video."""

from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import identifier, read_json, read_list, without_video_suffix
from emcl_train.data.paragraphs import joined, json_or_lines, read_paragraph_lines
from emcl_train.data.split_rules import Captions, Protocol, SplitFiles, captions_of, check_root, clip_finder
from emcl_train.errors import UserError
from emcl_train.reading.shown import shortened

PROTOCOL = Protocol("DiDeMo", train=(8392, 8393, 8394, 8395), val=(1065,), test=(1003, 1004))
SPANS = {"released": 32.0, "first-30s": 30.0}
"""By `data.didemo_span`, the second at which clips end: the releases take seconds 0 to 31, annotators saw 30."""


def read(config: DataConfig) -> SplitFiles:
    """All videos that a list names, each with the paragraph of its descriptions; without a list, all described ones."""
    check_root(config, "train_data.json")
    notes: list[str] = []
    return SplitFiles(
        train=_part(config.root, "train", notes),
        val=_part(config.root, "val", notes),
        test=_part(config.root, "test", notes),
        clip=clip_finder(config, end=SPANS[config.didemo_span]),
        train_file=config.root / "train_data.json",
        protocol=PROTOCOL,
        notes=notes,
    )


def read_captions(path: Path) -> Captions:
    """The paragraph of each video: its descriptions in the order of the file. Ids lose a video's suffix.

    Raises:
        UserError: an entry is not {"video", "description"}.
    """
    if path.suffix == ".jsonl":
        return {without_video_suffix(video): texts for video, texts in read_paragraph_lines(path).items()}
    content: Any = read_json(path, "DiDeMo annotations")
    expected = '[{"video": "…", "description": "…", "times": [[…], …]}, …]'
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: expected {expected}, got {shortened(content)}; copy or download the file again")
    sentences: Captions = {}
    for index, entry in enumerate(content):
        named, text = (entry.get(name) if isinstance(entry, dict) else None for name in ("video", "description"))
        video = identifier(named)
        if video is None or not isinstance(text, str):
            raise UserError(f"{path}: entry {index} is {shortened(entry)}; expected {expected}")
        sentences.setdefault(without_video_suffix(video), []).append(text)
    return {video: [joined(texts)] for video, texts in sentences.items()}


def _part(root: Path, split: str, notes: list[str]) -> Captions:
    path = json_or_lines(root / f"{split}_data.json")
    captions = read_captions(path)

    list_path = root / f"{split}_list.txt"
    if not list_path.is_file():
        notes.append(f"There is no {list_path.name}: all videos of {path.name} are taken.")
        return captions_of(list(captions), captions, path, path, notes)
    ids = [without_video_suffix(video) for video in read_list(list_path)]
    return captions_of(ids, captions, list_path, path, notes)
