"""Which clips and captions belong to which split: the annotation files of a data set, checked and counted."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv")
MSRVTT_CAPTIONS = "MSRVTT_data.json"
MSRVTT_TRAIN = "MSRVTT_train.9k.csv"
MSRVTT_TEST = "MSRVTT_JSFUSION_test.csv"


@dataclass(frozen=True)
class Clip:
    """A video file and the name that the annotations have for it."""

    video_id: str
    path: Path
    """Where the file lies, or where it was expected."""


@dataclass(frozen=True)
class Split:
    """Clips and their captions."""

    name: str
    clips: tuple[Clip, ...]
    captions: tuple[str, ...]
    caption_clip: tuple[int, ...]
    """Caption i belongs to `clips[caption_clip[i]]`."""

    def without(self, bad: Iterable[str]) -> "Split":
        """The split with some clips, by their ids, and their captions left out."""
        bad = set(bad)
        kept = [i for i, clip in enumerate(self.clips) if clip.video_id not in bad]
        place = {old: new for new, old in enumerate(kept)}
        pairs = [(text, place[i]) for text, i in zip(self.captions, self.caption_clip, strict=True) if i in place]
        return Split(
            self.name,
            tuple(self.clips[i] for i in kept),
            tuple(text for text, _ in pairs),
            tuple(clip for _, clip in pairs),
        )


@dataclass(frozen=True)
class Annotations:
    """The three splits of a data set and what a reader of its figures must know."""

    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...]
    """Sentences: what overlaps, what was held out, how many captions occur more than once."""
    unlisted: tuple[Clip, ...] = ()
    """Clips that are annotated, and have a file, but that no list names: never used, checked all the same."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Clips that cannot be decoded, with the reason, after `loader.prepare` was told to skip them."""

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.val, self.test

    def clips(self) -> tuple[Clip, ...]:
        """Every clip once, those of all splits and the unlisted ones."""
        every = [clip for split in self.splits for clip in split.clips] + list(self.unlisted)
        return tuple({clip.video_id: clip for clip in every}.values())

    def without(self, left_out: dict[str, str]) -> "Annotations":
        """The same with some clips left out, and the reasons kept."""
        train, val, test = (split.without(left_out) for split in self.splits)
        unlisted = tuple(clip for clip in self.unlisted if clip.video_id not in left_out)
        return replace(self, train=train, val=val, test=test, unlisted=unlisted, left_out=dict(left_out))


def load_annotations(config: DataConfig) -> Annotations:
    """Read the annotation files under `config.root`.

    Raises: UserError for a missing, empty or broken file, a missing column, and for text that is not UTF-8.
    """
    if not config.root.is_dir():
        raise UserError(f"data.root is {config.root}, which is not a folder; pass the data set's with --data.root")
    # "shapes" is the MSR-VTT layout; loader.prepare renders it first.
    return load_msrvtt(config)


def load_msrvtt(config: DataConfig) -> Annotations:
    """MSR-VTT: one JSON file with all captions, one CSV list for training, and the 1k-A test pairs."""
    root = config.root
    document = read_json(root / MSRVTT_CAPTIONS)
    captions, splits = _captions_by_clip(document, root / MSRVTT_CAPTIONS)
    train_ids = _unique([row["video_id"] for row in read_csv(root / MSRVTT_TRAIN, ("video_id",))])
    test_rows = read_csv(root / MSRVTT_TEST, ("video_id", "sentence"))
    test_ids = _unique([row["video_id"] for row in test_rows])
    notes: list[str] = []

    val_ids = [name for name, split in splits.items() if split == "validate" and name not in {*train_ids, *test_ids}]
    if not val_ids:
        train_ids, val_ids = _hold_out(train_ids, config.validation_clips)
        notes.append(
            f"The annotations name no validation clips: {len(val_ids)} of the {len(train_ids) + len(val_ids)} training "
            f"clips are held out to select the epoch, by a hash of their ids."
        )
    overlap = len({*train_ids, *val_ids} & set(test_ids))
    if overlap:
        notes.append(
            f"{overlap} of the {len(test_ids)} test clips are also in the training list: "
            f"figures on this test split measure memory, not generalisation."
        )

    find = _ClipFinder(root / "videos")
    train = _split("train", train_ids, captions, find, root / MSRVTT_CAPTIONS)
    val = _split("val", val_ids, captions, find, root / MSRVTT_CAPTIONS)
    if config.test_captions == "one":
        sentences: dict[str, list[str]] = {}
        for row in test_rows:
            sentences.setdefault(row["video_id"], []).append(row["sentence"])
        test = _split("test", test_ids, sentences, find, root / MSRVTT_TEST)
    else:
        test = _split("test", test_ids, captions, find, root / MSRVTT_CAPTIONS)

    listed = {*train_ids, *val_ids, *test_ids}
    others = [find(name) for name in splits if name not in listed]
    unlisted = tuple(clip for clip in others if clip.path.is_file())
    if others:
        notes.append(
            f"{len(others)} annotated {_plural('clip is', 'clips are', len(others))} in no list and never used; "
            f"{len(unlisted)} of them {_plural('has', 'have', len(unlisted))} a file."
        )
    for split in (train, val, test):
        notes.extend(_caption_notes(split))
    return Annotations(train, val, test, tuple(notes), unlisted)


def repeated_captions(split: Split) -> int:
    """How many captions of a split also belong to another of its clips."""
    owners: dict[str, set[int]] = {}
    for text, clip in zip(split.captions, split.caption_clip, strict=True):
        owners.setdefault(text, set()).add(clip)
    return sum(len(owners[text]) > 1 for text in split.captions)


def read_json(path: Path) -> Any:
    """A JSON document.

    Raises: UserError naming the file, and the line where it is broken.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}; fetch the file again"
        ) from error


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, of which `columns` must be there and filled.

    Raises: UserError naming the file, and the line or column that is wrong.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        for column in columns:
            if column not in header:
                raise UserError(
                    f"{path} has no column {column!r}, its columns are {', '.join(map(repr, header))}; "
                    f"the first line must name the columns"
                )
        reader.fieldnames = header
        rows = []
        for row in reader:
            for column in columns:
                if not (row[column] or "").strip():
                    raise UserError(f"{path}, line {reader.line_num}: {column!r} is empty; fill it or remove the line")
            rows.append({column: row[column].strip() for column in columns})
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}; fetch the file again") from error
    if not rows:
        raise UserError(f"{path} has a header but no rows; fetch the file again")
    return rows


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises: UserError where it is missing, empty or in another encoding.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; data.root must hold it (is --data.root right?)") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from error
    if not data.strip():
        raise UserError(f"{path} is empty; fetch the file again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file to UTF-8"
        ) from error


class _ClipFinder:
    """Finds the file of a clip by its id, whatever its container; looks at the folder once."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is missing; it must hold the clips as <video_id>.mp4, .webm, .avi or .mkv")
        self.folder = folder
        self.files = {path.name for path in folder.iterdir()}
        if not any(name.endswith(VIDEO_SUFFIXES) for name in self.files):
            raise UserError(f"{folder} holds no video; it must hold the clips as <video_id>.mp4, .webm, .avi or .mkv")

    def __call__(self, video_id: str) -> Clip:
        for suffix in VIDEO_SUFFIXES:
            if video_id + suffix in self.files:
                return Clip(video_id, self.folder / (video_id + suffix))
        return Clip(video_id, self.folder / (video_id + VIDEO_SUFFIXES[0]))


def _captions_by_clip(document: Any, path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and the split that the file itself names, by video id, in the order of the file."""

    def entries(key: str, names: Sequence[str]) -> list[dict[str, Any]]:
        if not isinstance(document, dict) or not isinstance(document.get(key), list) or not document[key]:
            raise UserError(f"{path} has no list {key!r}; expected MSR-VTT's file with 'videos' and 'sentences'")
        for i, entry in enumerate(document[key]):
            for name in names:
                if not isinstance(entry, dict) or not isinstance(entry.get(name), str):
                    raise UserError(f"{path}: {key}[{i}] has no text {name!r}; fetch the file again")
        return document[key]

    splits = {entry["video_id"]: str(entry.get("split", "")) for entry in entries("videos", ("video_id",))}
    captions: dict[str, list[str]] = {}
    for entry in entries("sentences", ("video_id", "caption")):
        text = " ".join(entry["caption"].split())
        if text:
            captions.setdefault(entry["video_id"], []).append(text)
    return captions, splits


def _split(name: str, ids: Sequence[str], captions: dict[str, list[str]], find: _ClipFinder, path: Path) -> Split:
    texts, owners = [], []
    for i, video_id in enumerate(ids):
        if not captions.get(video_id):
            raise UserError(f"{path} has no caption for {video_id}, which is in the {name} list; fetch the file again")
        texts += captions[video_id]
        owners += [i] * len(captions[video_id])
    return Split(name, tuple(find(video_id) for video_id in ids), tuple(texts), tuple(owners))


def _hold_out(ids: Sequence[str], at_most: int) -> tuple[list[str], list[str]]:
    """Training ids in two parts; which id goes where depends on nothing but the ids."""
    count = min(at_most, max(1, len(ids) // 10))
    if len(ids) < 2 or count < 1:
        raise UserError(
            f"no validation clips can be held out of {len(ids)} training clips with data.validation_clips = {at_most}; "
            f"use at least two training clips and --data.validation-clips of at least 1"
        )
    by_hash = sorted(ids, key=lambda video_id: hashlib.sha256(video_id.encode()).digest())
    held = set(by_hash[:count])
    return [name for name in ids if name not in held], [name for name in ids if name in held]


def _caption_notes(split: Split) -> list[str]:
    repeated = repeated_captions(split)
    if not repeated:
        return []
    different = len(Counter(split.captions))
    return [
        f"{split.name}: {repeated} of {len(split.captions)} captions also belong to another clip "
        f"({different} are different); their right clip is one of several that fit."
    ]


def _unique(ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ids))


def _plural(one: str, many: str, count: int) -> str:
    return one if count == 1 else many
