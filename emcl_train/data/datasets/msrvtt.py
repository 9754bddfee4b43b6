"""MSR-VTT: `MSRVTT_data.json`, and for 1k-A the list `MSRVTT_train.9k.csv` or `.7k.csv` and the test file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import count, few, identifier, read_csv, read_json
from emcl_train.data.names import is_there
from emcl_train.data.split_rules import Captions, Protocol, SplitFiles, captions_of, check_root, clip_finder, queries
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.shown import shortened

DATA_JSON = "MSRVTT_data.json"
TEST_CSV = "MSRVTT_JSFUSION_test.csv"
TRAIN_CSV = {"9k": "MSRVTT_train.9k.csv", "7k": "MSRVTT_train.7k.csv"}

PROTOCOLS = {
    "9k": Protocol("MSR-VTT 1k-A", train=(9000,), test=(1000,)),
    "7k": Protocol("MSR-VTT 1k-A with 7k training clips", train=(7010,), test=(1000,)),
    "full": Protocol("MSR-VTT full", train=(6513,), val=(497,), test=(2990,)),
}


@dataclass(frozen=True)
class MsrvttFiles:
    """What the files say, in their order and with their repetitions; without lists for the full split."""

    train_ids: list[str]
    test_ids: list[str]
    test_sentences: list[str]
    """One for each of `test_ids`."""
    captions: Captions
    """Every caption of each clip in the JSON file."""
    splits: dict[str, str]
    """The split that the JSON file gives each clip: "train", "validate", "test", or nothing."""


def read(config: DataConfig) -> SplitFiles:
    """The lists of the split that `msrvtt_split` names.

    1k-A: the validation clips are what the JSON file calls "validate" and neither list names. `test_captions` holds
    for them as well, so that the number an epoch is selected by is of the kind that is reported.
    """
    split = config.msrvtt_split
    if split == "1k-B":
        raise UserError(
            f"data.msrvtt_split is 1k-B, whose lists the files of CE and MMT alone have; pass "
            f"{flag('data.msrvtt_split')} 9k, 7k or full"
        )
    files = read_msrvtt(config.root, split)
    return _full(files, config) if config.msrvtt_split == "full" else _one_k_a(files, config)


def read_msrvtt(root: Path, split: Literal["9k", "7k", "full"] = "9k") -> MsrvttFiles:
    """Read the annotation files, and nothing of the videos.

    Raises:
        UserError: a file is missing or not as it should be; the message has the way out.
    """
    check_root(DataConfig(root=root), DATA_JSON)

    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    if split != "full":
        train = read_csv(root / TRAIN_CSV[split], ("video_id",))
        test = read_csv(root / TEST_CSV, ("video_id", "sentence"))
    captions, splits = _read_data(root / DATA_JSON)

    return MsrvttFiles(
        train_ids=[row["video_id"] for row in train],
        test_ids=[row["video_id"] for row in test],
        test_sentences=[row["sentence"] for row in test],
        captions=captions,
        splits=splits,
    )


def _one_k_a(files: MsrvttFiles, config: DataConfig) -> SplitFiles:
    notes: list[str] = []
    data = config.root / DATA_JSON
    train_csv = config.root / TRAIN_CSV[config.msrvtt_split]
    test_csv = config.root / TEST_CSV

    train = captions_of(files.train_ids, files.captions, train_csv, data, notes)
    listed = train.keys() | set(files.test_ids)
    val_ids = [video_id for video_id, split in files.splits.items() if split == "validate" and video_id not in listed]
    val = captions_of(val_ids, files.captions, data, data, notes)

    # The test file has one sentence for each clip, which 1k-A asks for; with "all" the JSON file has the captions.
    if config.test_captions == "all":
        test = captions_of(files.test_ids, files.captions, test_csv, data, notes)
    else:
        test = {}
        for video_id, sentence in zip(files.test_ids, files.test_sentences, strict=True):
            test.setdefault(video_id, []).append(sentence)
        if repeated := len(files.test_ids) - len(test):
            notes.append(f"{TEST_CSV} repeats {count(repeated, 'id')}; each clip is used once.")

    clip = clip_finder(config)

    # The 7k list leaves out clips on purpose: nobody who trains on it wants them all decoded.
    others = [i for i in files.splits if i not in listed and i not in val] if config.msrvtt_split == "9k" else []
    return SplitFiles(
        train,
        queries(val, config),
        test,
        clip,
        train_csv,
        PROTOCOLS[config.msrvtt_split],
        notes=notes,
        unlisted=[video_id for video_id in others if is_there(clip(video_id).path)],
        hold_out_from=f'mark validation clips as "split": "validate" in {DATA_JSON}',
    )


def _full(files: MsrvttFiles, config: DataConfig) -> SplitFiles:
    data = config.root / DATA_JSON
    notes: list[str] = []
    unknown = sorted(set(files.splits.values()) - {"train", "validate", "test"})
    if unknown:
        raise UserError(
            f'{data}: "split" of a clip is {unknown[0]!r}, expected "train", "validate" or "test"; correct the entry'
        )

    def part(name: str) -> Captions:
        ids = [video_id for video_id, split in files.splits.items() if split == name]
        if not ids and name != "validate":
            raise UserError(
                f'{data} marks no clip as "split": "{name}", which the full split needs; pass another recipe'
            )
        return captions_of(ids, files.captions, data, data, notes)

    return SplitFiles(
        part("train"),
        queries(part("validate"), config),
        queries(part("test"), config),
        clip_finder(config),
        data,
        PROTOCOLS["full"],
        notes=notes,
        hold_out_from=f'mark validation clips as "split": "validate" in {DATA_JSON}',
    )


def _read_data(path: Path) -> tuple[Captions, dict[str, str]]:
    """Captions and split of every clip."""
    content = read_json(path, "MSR-VTT annotations")
    _entries(path, content, "videos", ("video_id",))
    # SplitFiles name the clips of 1k-A: copies of the file without splits do for it.
    splits: dict[str, str] = {}
    for index, entry in enumerate(content["videos"]):
        video_id = entry["video_id"].strip()
        split = str(entry.get("split", "")).strip()
        if splits.setdefault(video_id, split) != split:
            raise UserError(
                f'{path}: "videos"[{index}] puts the clip {video_id} into the split {split!r}, and an entry above it '
                f"into {splits[video_id]!r}; delete one of them"
            )
    captions: Captions = {}
    for entry in _entries(path, content, "sentences", ("video_id", "caption")):
        captions.setdefault(entry["video_id"], []).append(entry["caption"])
    return captions, splits


def _entries(
    path: Path, content: Any, key: Literal["videos", "sentences"], names: tuple[str, ...]
) -> list[dict[str, str]]:
    """The objects of a list in the JSON file, each with these strings, stripped of surrounding space."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        found = (
            f"its keys are {few(list(content))}" if isinstance(content, dict) else f"it is a {type(content).__name__}"
        )
        raise UserError(f'{path} has no list "{key}": {found}; pass the folder of MSR-VTT\'s own annotation files')
    if not content[key]:
        raise UserError(f'{path}: the list "{key}" is empty; copy or download the file again')

    entries = []
    flaws = []
    for index, entry in enumerate(content[key]):
        values = {name: entry.get(name) if isinstance(entry, dict) else None for name in names}
        if "video_id" in values:
            values["video_id"] = identifier(values["video_id"])
        texts = {name: value.strip() for name, value in values.items() if isinstance(value, str)}
        bare = [name for name in names if not texts.get(name)]
        if bare:
            flaws.append((index, bare[0]))
        else:
            entries.append(texts)

    if flaws:
        index, name = flaws[0]
        more = f" (and {len(flaws) - 1} more like it)" if len(flaws) > 1 else ""
        raise UserError(
            f'{path}: "{key}"[{index}] has no text under "{name}": {shortened(content[key][index])}{more}; '
            f"fill it, or delete the entry"
        )
    return entries
