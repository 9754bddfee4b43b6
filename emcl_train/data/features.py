"""A folder of features: what frozen towers make of the frames and captions of a data set, computed once.

It stands in for the data set: splits with the clips and captions that were encoded, in loaders that give features in
place of frames and token ids. Arrays are memory-mapped; `features.json` says what made them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from emcl_train.config import BEFORE, RunConfig
from emcl_train.data.clips import Annotations, Clip, Split
from emcl_train.data.passing import NOT_THERE, passing
from emcl_train.data.video import OF_VERSION_1, PICTURES, sampler_version
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.kinds import HEADS
from emcl_train.reading.arrays import open_npy
from emcl_train.reading.plain_files import require_regular
from emcl_train.reading.shown import shortened
from emcl_train.runs.checksums import require_unchanged
from emcl_train.runs.contents import FEATURES
from emcl_train.runs.files import read_json

TOWERS = "towers.safetensors"
ARRAYS = {"frames": "clips", "frame_mask": "clips", "text": "captions", "token_mask": "captions"}
"""Names of the arrays, and what their rows are."""
SPLITS = ("train", "val", "test")
BINARY = (*(f"{split}_{array}.npy" for split in SPLITS for array in ARRAYS), TOWERS)
"""Files that have checksums."""
WAY_OUT = "copy it again, or embed again"
VERSION = 1
RECORDED: dict[str, type] = {
    "settings": dict,
    "weights": str,
    "clip_config": dict,
    "tokens": bool,
    "frames": dict,
    "notes": list,
    "left_out": dict,
}
"""What is read of `features.json`, and its kinds."""
LISTED = ("name", "video_ids", "paths", "captions", "caption_clip")
KINDS = {dict: "an object", str: "a text", bool: "true or false", list: "a list"}
SHAPES = {"frames": (3, "f"), "frame_mask": (2, "b"), "text": (3, "f"), "token_mask": (2, "i")}
"""Dimensions of the arrays, and the kinds of their values."""


@dataclass(frozen=True)
class FeatureSplit(Split):
    """A split whose arrays lie in a folder.

    They are frames [G, F, D], frame_mask [G, F], text [Q, 1, D] with the feature of the whole caption, or [Q, 1 + L, D]
    with those of its tokens behind, and token_mask [Q, L].
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def of_pairs(self, name: str, pairs: Sequence[tuple[int, int]]) -> "FeatureSplit":
        """See `Split.of_pairs`; its features are read into memory."""
        split = super().of_pairs(name, pairs)
        rows = dict(zip(("clips", "captions"), map(list, zip(*pairs, strict=True)), strict=True))
        arrays = {array: self.arrays[array][rows[unit]] for array, unit in ARRAYS.items()}
        return FeatureSplit(split.name, split.clips, split.captions, split.caption_clip, arrays)


class FeatureDataset(Dataset):
    """Clips and captions by number, one of each in an item, or one kind alone.

    A caption gives `caption_features` [D], `token_features` [L, D] (no row if they were not asked for) and
    `attention_mask` [L]; a clip gives `frame_features` [F, D] and `frame_mask` [F].
    """

    def __init__(self, split: FeatureSplit, clips: Sequence[int] | None, captions: Sequence[int] | None) -> None:
        self.arrays = split.arrays
        self.clips = clips
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions if self.clips is None else self.clips)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item: dict[str, Tensor] = {}

        if self.captions is not None:
            caption = self.captions[index]
            text = self._read("text", caption)
            item["caption_features"] = text[0]
            item["token_features"] = text[1:]
            item["attention_mask"] = self._read("token_mask", caption)
            item["index"] = torch.tensor(caption)

        if self.clips is not None:
            clip = self.clips[index]
            item["frame_features"] = self._read("frames", clip)
            item["frame_mask"] = self._read("frame_mask", clip)
            item["index"] = torch.tensor(clip)

        return item

    def _read(self, name: str, row: int) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name][row]))


def feature_loader(
    split: FeatureSplit,
    *,
    clips: Sequence[int] | None = None,
    captions: Sequence[int] | None = None,
    **batching: Any,
) -> DataLoader:
    """Features in the order of these numbers, named as `FeatureDataset` says."""
    generator = torch.Generator().manual_seed(0)  # draws nothing from the state that dropout depends on
    return DataLoader(FeatureDataset(split, clips, captions), generator=generator, **batching)


def settings_of_features(config: RunConfig) -> dict[str, object]:
    """What decides which features a recipe has, as flags name it."""
    data, model = asdict(config.data), asdict(config.model)
    names = (
        "layout",
        "msrvtt_split",
        "num_frames",
        "frame_sampling",
        "image_size",
        *PICTURES,
        "max_words",
        "clean_captions",
    )
    if config.data.layout == "didemo":
        names = (*names, "didemo_span")
    found: dict[str, object] = {"recipe": config.recipe}
    found |= {f"data.{name}": data[name] for name in (*names, "test_captions", "validation_clips")}
    if config.data.layout == "shapes":
        found |= {f"data.shapes.{name}": value for name, value in data["shapes"].items()}
    found |= {f"model.{name}": model[name] for name in ("clip", "tokenizer", "init_from")}
    if config.model.clip == "random" and config.model.init_from is None:
        found |= {f"model.random_clip.{name}": value for name, value in model["random_clip"].items()}
        found["model.random_clip.patch_size"] = config.model.random_clip.patch_of(config.data.image_size)
        found["train.seed"] = config.train.seed
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


def read_features(folder: Path) -> dict[str, Any]:
    """What `features.json` says.

    Raises:
        UserError: the folder was not written by `embed`, or not to its end.
    """
    path = folder / FEATURES
    if not path.is_file():
        raise UserError(f"{folder} is no folder of features: it has no {FEATURES}; `emcl-train embed` writes one")
    record: dict[str, Any] = read_json(path, "embed again", keys=("version",))
    version = record["version"]
    if version != VERSION:
        raise UserError(f"{path} is of version {version}, expected {VERSION}; embed again with this version")

    # Of the rest, what is read here, each of its kind.
    for name, kind in RECORDED.items():
        if not isinstance(record.get(name), kind):
            raise UserError(
                f"{path} cannot be read: {name} is {shortened(record.get(name))}, expected {KINDS[kind]}; copy it "
                f"again, or embed again"
            )
    for name, kind in (("notes", record["notes"]), ("left_out", record["left_out"].values())):
        if not all(isinstance(text, str) for text in kind):
            raise UserError(f"{path} cannot be read: {name} holds other values than texts; copy it again")
    return {name: record[name] for name in ("version", *RECORDED)}


def open_features(config: RunConfig) -> Annotations:
    """The splits of the folder that `config.from_features` names.

    Raises:
        UserError: the folder differs from the run; every such setting is named.
    """
    folder = Path(config.from_features or "")
    record = read_features(folder)
    made = {f"data.{name}": value for name, value in OF_VERSION_1.items()} | BEFORE | record["settings"]
    asked = settings_of_features(config)
    different = [
        f"{name} is {made.get(name)} there, {value} here" for name, value in asked.items() if made.get(name) != value
    ]
    there = record["frames"].get("sampler")
    here = sampler_version(config.data)
    if there != here:
        different.append(f"the video sampler's version is {there} there, {here} here")
    tokens = HEADS[config.model.head].tokens
    if tokens and not record["tokens"]:
        different.append(f"model.head is {config.model.head} here, and there are no tokens there (embed with --tokens)")
    if different:
        raise UserError(
            f"the features in {folder} are not those of this run: {'; '.join(different)}. Embed again, or pass the "
            f"settings that made them"
        )
    train, val, test = (open_split(folder, name, tokens=tokens) for name in SPLITS)
    return Annotations(train, val, test, notes=tuple(record["notes"]), left_out=dict(record["left_out"]))


def require_data_of(features: Annotations, annotations: Annotations, config: RunConfig) -> None:
    """Raise a UserError that names the first difference where features are not of these annotations."""
    for name in SPLITS:
        made, asked = getattr(features, name), getattr(annotations, name).without(set(features.left_out))
        for unit, there, here in (
            ("clip", [clip.video_id for clip in made.clips], [clip.video_id for clip in asked.clips]),
            ("caption", made.captions, asked.captions),
            ("clip of caption", made.caption_clip, asked.caption_clip),
        ):
            if list(there) == list(here):
                continue
            first = next((i for i, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), None)
            said = (
                f"{len(there)} there, {len(here)} here"
                if first is None
                else f"{unit} {first} is {there[first]!r} there, {here[first]!r} here"
            )
            raise UserError(
                f"the features in {config.from_features} are of other data than {config.data.root}: in the split "
                f"{made.name}, {unit}s differ: {said}. Embed again, or pass "
                f"{flag('data.root')} the folder that they are of"
            )


def open_split(folder: Path, name: str, *, tokens: bool) -> FeatureSplit:
    """One split of a folder that `read_features` knows.

    Raises:
        UserError: its arrays or lists are damaged.
    """
    lists = _lists(folder / f"{name}.json")
    try:
        arrays = {array: _open_array(folder / f"{name}_{array}.npy") for array in ARRAYS}
    except (OSError, ValueError) as error:
        trouble = passing(error, folder)
        if trouble is not None and trouble.code not in NOT_THERE:
            raise trouble from error
        raise UserError(f"the features in {folder} are damaged: {error}; {WAY_OUT}") from error
    counts = {"clips": len(lists["video_ids"]), "captions": len(lists["captions"])}
    for array, rows in ((array, counts[unit]) for array, unit in ARRAYS.items()):
        dimensions, kind = SHAPES[array]
        if arrays[array].ndim != dimensions or arrays[array].dtype.kind != kind:
            raise UserError(
                f"the features in {folder} are damaged: {name}_{array}.npy has {arrays[array].dtype} of shape "
                f"{list(arrays[array].shape)}, expected {dimensions} dimensions; {WAY_OUT}"
            )
        if len(arrays[array]) != rows:
            raise UserError(
                f"the features in {folder} are damaged: {name}_{array}.npy has {len(arrays[array])} rows, expected "
                f"{rows}, those of {name}.json; {WAY_OUT}"
            )
    if (
        arrays["frames"].shape[2] != arrays["text"].shape[2]
        or arrays["frames"].shape[1] != arrays["frame_mask"].shape[1]
    ):
        raise UserError(
            f"the features in {folder} are damaged: the arrays of {name} are of different frames or widths; {WAY_OUT}"
        )
    if not tokens:
        arrays["text"] = arrays["text"][:, :1]  # a view: what no head asks for is not read
    return FeatureSplit(
        lists["name"],
        clips=tuple(Clip(i, Path(path)) for i, path in zip(lists["video_ids"], lists["paths"], strict=True)),
        captions=tuple(lists["captions"]),
        caption_clip=tuple(lists["caption_clip"]),
        arrays=arrays,
    )


def _open_array(path: Path) -> np.ndarray:
    """An array, mapped into memory; all of it is read once, and compared with its checksum."""
    require_regular(path)
    require_unchanged(path, WAY_OUT)
    try:
        return open_npy(path)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _lists(path: Path) -> dict[str, Any]:
    """The clips and captions that number the rows of a split's arrays.

    Raises:
        UserError: they are something else, or do not fit each other.
    """
    lists = read_json(path, WAY_OUT, keys=LISTED)
    texts = all(
        isinstance(lists[name], list) and all(isinstance(text, str) for text in lists[name])
        for name in ("video_ids", "paths", "captions")
    )
    numbers = (
        texts
        and isinstance(lists["caption_clip"], list)
        and all(isinstance(clip, int) and 0 <= clip < len(lists["video_ids"]) for clip in lists["caption_clip"])
    )
    together = texts and numbers and len(lists["paths"]) == len(lists["video_ids"])
    if not (isinstance(lists["name"], str) and together and len(lists["caption_clip"]) == len(lists["captions"])):
        raise UserError(f"{path} does not list clips, and captions with the number of their clip; {WAY_OUT}")
    return dict(lists)
