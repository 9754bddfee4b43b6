"""Which clips there are, which captions belong to them, and which split they are in."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from emcl_train.config import DataConfig
from emcl_train.data.shapes import render_shapes
from emcl_train.errors import UserError

DATA_JSON, TRAIN_CSV, TEST_CSV, VIDEOS = "MSRVTT_data.json", "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv", "videos"
VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv")


@dataclass(frozen=True)
class Clip:
    """One video file. Whether it exists and decodes is the loader's question."""

    video_id: str
    path: Path


@dataclass(frozen=True)
class Split:
    """Clips and captions; caption i belongs to clips[caption_clip[i]]."""

    name: str
    clips: tuple[Clip, ...]
    captions: tuple[str, ...]
    caption_clip: tuple[int, ...]

    def without(self, bad: set[str]) -> "Split":
        """The split without the clips of these ids and their captions."""
        kept = [index for index, clip in enumerate(self.clips) if clip.video_id not in bad]
        place = {old: new for new, old in enumerate(kept)}
        pairs = [(text, place[i]) for text, i in zip(self.captions, self.caption_clip, strict=True) if i in place]
        return Split(
            self.name,
            clips=tuple(self.clips[index] for index in kept),
            captions=tuple(text for text, _ in pairs),
            caption_clip=tuple(index for _, index in pairs),
        )


@dataclass(frozen=True)
class Annotations:
    """The three splits of a data set, and what a reader of its results should know about them."""

    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()
    """Sentences: repetitions counted, overlaps, whether validation clips were held out."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why each clip that cannot be decoded is in no split, by its id."""


@dataclass(frozen=True)
class MsrvttFiles:
    """What the files of the MSR-VTT layout say, in their order and with their repetitions."""

    train_ids: list[str]
    test_ids: list[str]
    test_sentences: list[str]
    """One for each of `test_ids`."""
    captions: dict[str, list[str]]
    """Every caption of each clip in the JSON file."""
    splits: dict[str, str]
    """The split that the JSON file gives each clip: "train", "validate" or "test"."""


def load_annotations(config: DataConfig) -> Annotations:
    """Read the splits of a data set; layout "shapes" is rendered first where it is absent.

    The validation split is what the JSON file calls "validate" and neither list names. Where there is none, clips are
    held out of the training list: `validation_clips` of them, at most a tenth, chosen by a hash of their ids, so that
    the choice is the same everywhere. `test_captions` holds for the validation captions as well, so that the number an
    epoch is selected by is of the kind that is reported.

    Raises: UserError for a missing folder, file or column, a file that cannot be read, and captions that are missing.
    """
    if config.layout == "shapes":
        render_shapes(config.root, config.shapes)
    return _splits(read_msrvtt(config.root), video_files(config.root), config)


def video_files(root: Path) -> dict[str, Path]:
    """The video file of each id in `root/videos`; where an id has several, the suffix that VIDEO_SUFFIXES names first.

    Raises: UserError where the folder is missing.
    """
    folder = root / VIDEOS
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; put the clips there as <video_id>.mp4 (or {', '.join(VIDEO_SUFFIXES[1:])})"
        )
    found = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "."]
    found.sort(key=lambda path: (-VIDEO_SUFFIXES.index(path.suffix.lower()), path.name))
    return {path.stem: path for path in found}


def read_msrvtt(root: Path) -> MsrvttFiles:
    """Read the three annotation files of the MSR-VTT layout, and nothing of the videos.

    Raises: UserError with the file, what is wrong with it, and the way out.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; pass --data.root with the folder that holds {DATA_JSON}")
    train = _read_csv(root / TRAIN_CSV, ("video_id",))
    test = _read_csv(root / TEST_CSV, ("video_id", "sentence"))
    captions, splits = _read_json(root / DATA_JSON)
    return MsrvttFiles(
        train_ids=[row["video_id"] for row in train],
        test_ids=[row["video_id"] for row in test],
        test_sentences=[row["sentence"] for row in test],
        captions=captions,
        splits=splits,
    )


def _splits(files: MsrvttFiles, videos: dict[str, Path], config: DataConfig) -> Annotations:
    notes: list[str] = []
    train_ids, test_ids = list(dict.fromkeys(files.train_ids)), list(dict.fromkeys(files.test_ids))
    listed = set(train_ids) | set(test_ids)
    val_ids = [video_id for video_id, split in files.splits.items() if split == "validate" and video_id not in listed]
    for name, ids in ((TRAIN_CSV, files.train_ids), (TEST_CSV, files.test_ids)):
        if repeated := len(ids) - len(set(ids)):
            notes.append(f"{name} repeats {_count(repeated, 'id')}; each clip is used once.")
    if overlap := len(set(train_ids) & set(test_ids)):
        notes.append(
            f"Clips of the test list that are in the training list too: {overlap} of {len(test_ids)}. "
            f"The test numbers do not measure generalisation."
        )
    if not val_ids:
        val_ids = _held_out(train_ids, config)
        train_ids = [video_id for video_id in train_ids if video_id not in set(val_ids)]
        notes.append(
            f"The annotations name no separate validation clips. Held out of the training list to select the epoch: "
            f"{_count(len(val_ids), 'clip')}."
        )
    _check_captioned(config.root / TRAIN_CSV, train_ids, files)
    _check_captioned(config.root / DATA_JSON, val_ids, files)

    texts_of = files.captions
    if config.test_captions == "all":
        _check_captioned(config.root / TEST_CSV, test_ids, files)
        val_texts = test_texts = texts_of
    else:
        val_texts = {video_id: texts[:1] for video_id, texts in texts_of.items()}
        test_texts = {}
        for video_id, sentence in zip(files.test_ids, files.test_sentences, strict=True):
            test_texts.setdefault(video_id, []).append(sentence)

    def split(name: str, ids: Sequence[str], texts: dict[str, list[str]]) -> Split:
        # A missing file keeps its place: the check of the clips reports it with those that cannot be decoded.
        clips = tuple(Clip(i, videos.get(i, config.root / VIDEOS / f"{i}{VIDEO_SUFFIXES[0]}")) for i in ids)
        pairs = [(text, index) for index, video_id in enumerate(ids) for text in texts[video_id]]
        return Split(name, clips, tuple(text for text, _ in pairs), tuple(index for _, index in pairs))

    test = split("test", test_ids, test_texts)
    if repeated := len(test.captions) - len(set(test.captions)):
        notes.append(
            f"Test captions that repeat another one: {repeated} of {len(test.captions)}. Their ranks cannot all be 1."
        )
    return Annotations(split("train", train_ids, texts_of), split("val", val_ids, val_texts), test, tuple(notes))


def _held_out(train_ids: list[str], config: DataConfig) -> list[str]:
    """The clips with the smallest hashes, in the order of the list."""
    number = max(1, min(config.validation_clips, len(train_ids) // 10))
    if number >= len(train_ids):
        raise UserError(
            f"{config.root / TRAIN_CSV} names {_count(len(train_ids), 'clip')}, too few to hold one out to validate; "
            f'add clips to it, or mark validation clips as "split": "validate" in {DATA_JSON}'
        )
    chosen = set(sorted(train_ids, key=lambda video_id: hashlib.sha256(video_id.encode()).digest())[:number])
    return [video_id for video_id in train_ids if video_id in chosen]


def _check_captioned(path: Path, ids: Iterable[str], files: MsrvttFiles) -> None:
    bare = [video_id for video_id in ids if not files.captions.get(video_id)]
    if bare:
        raise UserError(
            f"{path}: {_count(len(bare), 'clip')} without a caption in {DATA_JSON}: {_few(bare)}; "
            f'add their captions under "sentences" there, or take the clips off the list'
        )


def _read_text(path: Path) -> str:
    if not path.is_file():
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.name[0] != ".")
        raise UserError(
            f"there is no file {path}; {path.parent} holds {_few(beside) or 'nothing'}. "
            f"Put {path.name} there, or pass --data.root with the folder that has it"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the current user access to it") from error
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            f"convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows with these columns, stripped of surrounding space, each filled."""
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    rows = []
    try:
        present = list(reader.fieldnames or ())
        missing = [column for column in columns if column not in present]
        if missing:
            raise UserError(
                f"{path} has no column {_quoted(missing)}; its first line gives {_quoted(present) or 'nothing'}. "
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


def _read_json(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions and split of every clip."""
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            f"it may be cut short: copy or download it again"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be MSR-VTT annotations; download it again") from error
    splits = {entry["video_id"]: entry["split"] for entry in _entries(path, content, "videos", ("video_id", "split"))}
    captions: dict[str, list[str]] = {}
    for entry in _entries(path, content, "sentences", ("video_id", "caption")):
        captions.setdefault(entry["video_id"], []).append(entry["caption"])
    return captions, splits


def _entries(
    path: Path, content: Any, key: Literal["videos", "sentences"], names: tuple[str, ...]
) -> list[dict[str, str]]:
    """The objects of a list in the JSON file, each with these strings, stripped of surrounding space."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        found = (
            f"its keys are {_few(list(content))}" if isinstance(content, dict) else f"it is a {type(content).__name__}"
        )
        raise UserError(f'{path} has no list "{key}": {found}; pass the folder of MSR-VTT\'s own annotation files')
    if not content[key]:
        raise UserError(f'{path}: the list "{key}" is empty; copy or download the file again')
    entries = []
    for index, entry in enumerate(content[key]):
        for name in names:
            value = entry.get(name) if isinstance(entry, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise UserError(
                    f'{path}: "{key}"[{index}] has no text under "{name}": {json.dumps(entry)[:120]}; '
                    f"fill it, or delete the entry"
                )
        entries.append({name: entry[name].strip() for name in names})
    return entries


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _few(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
