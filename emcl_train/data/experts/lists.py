"""Which clips and captions each system's files name for training, validation and test, with the line of each.

CE and MMT have lists of ids and keep captions elsewhere; JSFusion's tables, and the lists of own experts, have both.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emcl_train.data.annotation_files import (
    count,
    few,
    identifier,
    quoted,
    read_json_lines,
    read_table,
    read_text,
    strings,
)
from emcl_train.data.datasets.msvd import load_plain
from emcl_train.data.experts.ce_pickles import feature_folder
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.reading.shown import shortened

Captions = Mapping[str, Sequence[str]]
"""Of each clip, in the order of their numbers."""

ONE_K_A, ONE_K_B, FULL = "1k-A", "1k-B", "full"
SPLITS = (ONE_K_A, ONE_K_B, FULL)
"""Of MSR-VTT; other data sets have one."""
CHOSEN = "jsfusion_val_caption_idx.pkl"
TEST_CSV = "MSRVTT_JSFUSION_test.csv"
BARE = (
    ("0024_THE_LORD", "00.31.10.217"),
    ("1014_2012", "00.01.21.399"),
    ("1014_2012", "00.27.58.174"),
    ("1018_Body_Of_Lies", "00.42.15.677"),
    ("1037_The_Curious_Case", "02.25.14.743"),
)
"""Training clips of LSMDC that have no captions, by how their ids begin and the time at which they start."""


@dataclass(frozen=True)
class Listed:
    """The clips of a split."""

    path: Path
    lines: Mapping[str, int]
    """The line that names each clip, the first one where several do."""

    def place(self, video_id: str) -> str:
        """Where a clip is named, as errors begin."""
        return f"{self.path}, line {self.lines[video_id]}"


@dataclass
class SystemLists:
    """What the lists of a system say."""

    train: Listed
    val: Listed
    test: Listed
    joined: bool = False
    """Whether all captions of a clip are one text."""
    chosen_from: tuple[Path, ...] = ()
    """Folders to look in for which caption of a test clip is its query; none: all are."""
    captions: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """By split, where the lists have them."""
    notes: list[str] = field(default_factory=list)


def ce_lists(root: Path, dataset: str, split: str = ONE_K_A) -> SystemLists:
    """The lists of CE.

    Args:
        root: the folder of the data set.
        dataset: "msrvtt", "activitynet" or "lsmdc".
        split: of MSR-VTT, one of `SPLITS`.

    Raises:
        UserError: a list is missing, or names nothing.
    """
    folder = feature_folder(root)
    if dataset == "msrvtt":
        names = {
            ONE_K_A: ("train_list_jsfusion.txt", "val_list_jsfusion.txt", "val_list_jsfusion.txt"),
            ONE_K_B: ("train_list_miech.txt", "test_list_miech.txt", "test_list_miech.txt"),
            FULL: ("train_list_full.txt", "val_list_full.txt", "test_list_full.txt"),
        }[_known(split)]
    else:
        names = {
            "activitynet": ("train_list.txt", "val_1_list.txt", "val_1_list.txt"),
            "lsmdc": ("train_list.txt", "val_list.txt", "test_list.txt"),
        }[dataset]
    lists = _of_names(folder, names)
    lists.joined = dataset == "activitynet"
    if dataset == "msrvtt" and split == ONE_K_A:
        lists.chosen_from = tuple(dict.fromkeys((folder, root)))
    return lists


def mmt_lists(root: Path, dataset: str, split: str = ONE_K_A) -> SystemLists:
    """The lists of MMT, in `symlinked-feats`. Arguments and errors as of `ce_lists`.

    For LSMDC all of the training file is trained on, but for five clips without captions.
    """
    folder = root / "symlinked-feats"
    if dataset == "lsmdc":
        train = read_tabs(folder / "LSMDC16_annos_training.csv")
        test = read_tabs(folder / "LSMDC16_challenge_1000_publictect.csv")
        bare = [video_id for video_id in train.lines if is_bare(video_id)]
        train = Listed(train.path, {i: line for i, line in train.lines.items() if i not in bare})
        lists = SystemLists(train, test, test, joined=True)
        if bare:
            lists.notes.append(f"{train.path.name}: left out {count(len(bare), 'clip')} that have no captions.")
        lists.notes.append(_same(test.path))
        return lists

    if dataset == "msrvtt":
        names = {
            ONE_K_A: ("train_list_jsfusion.txt", "val_list_jsfusion.txt", "val_list_jsfusion.txt"),
            ONE_K_B: ("train_list_miech.txt", "test_list_miech.txt", "test_list_miech.txt"),
            FULL: ("train_list.txt", "val_list.txt", "test_list.txt"),
        }[_known(split)]
    else:
        names = ("train_list.txt", "val_1_list.txt", "val_1_list.txt")
    lists = _of_names(folder, names)
    lists.joined = dataset == "activitynet"
    if dataset == "msrvtt" and split == ONE_K_A:
        lists.chosen_from = (folder, root)
    return lists


def jsfusion_lists(root: Path, dataset: str) -> SystemLists:
    """The tables of JSFusion for retrieval, in `DataFrame`; of MSR-VTT the test list is the field's, split 1k-A.

    Tables of the task RET are taken. Where there are none, those of CAP, which have the same columns, are trained on,
    and with a note validated on; a test on them would be another protocol.

    Args:
        root: the folder that holds `DataFrame`.
        dataset: "msrvtt" or "lsmdc".

    Raises:
        UserError: a table is missing, or a line is not as it should be.
    """
    folder = root / "DataFrame"
    if dataset not in ("msrvtt", "lsmdc"):
        raise UserError(f"JSFusion has no lists of {dataset}; it has those of msrvtt and lsmdc")
    if dataset == "lsmdc":
        paths = {split: _table(folder, "LSMDC16", split) for split in ("train", "val", "test")}
        tables = {split: _sentences(path) for split, path in paths.items()}
        notes = []
        if "_RET_" not in paths["val"].name:
            notes.append(f"There is no table of RET to validate on, and {paths['val'].name} stands in for it.")
    else:
        path = next((p for p in (root / TEST_CSV, folder / TEST_CSV) if p.is_file()), root / TEST_CSV)
        rows = read_table(path, ("vid_key", "sentence")).rows
        test: dict[str, list[str]] = {}
        lines: dict[str, int] = {}
        for line, row in rows:
            lines.setdefault(row["vid_key"], line)
            test.setdefault(row["vid_key"], []).append(row["sentence"])
        of_test = Listed(path, lines), test
        tables = {"train": _sentences(_table(folder, "MSR", "train")), "val": of_test, "test": of_test}
        notes = [_same(path)]
    lists = SystemLists(tables["train"][0], tables["val"][0], tables["test"][0], notes=notes)
    lists.captions = {split: captions for split, (_, captions) in tables.items()}
    return lists


def own_lists(root: Path) -> SystemLists:
    """`train.jsonl`, `test.jsonl` and perhaps `val.jsonl`: `{"id": …, "captions": […]}` a line.

    Without `val.jsonl`, every tenth clip of the training list is held out of it.

    Raises:
        UserError: a list is missing, or a line is not as it should be.
    """
    train, test = (_json_list(root / f"{split}.jsonl") for split in ("train", "test"))
    notes = []
    if (root / "val.jsonl").is_file():
        val = _json_list(root / "val.jsonl")
    else:
        listed, captions = train
        held = [*captions][9::10] or [*captions][-1:]
        if len(captions) < 2:
            raise UserError(f"{listed.path} names one clip, too few to hold one out; write val.jsonl, or more clips")
        val = Listed(listed.path, {i: listed.lines[i] for i in held}), {i: captions[i] for i in held}
        kept = {i: texts for i, texts in captions.items() if i not in val[1]}
        train = Listed(listed.path, {i: listed.lines[i] for i in kept}), kept
        notes.append(f"There is no val.jsonl: {count(len(held), 'clip')} of train.jsonl are held out to validate.")
    lists = SystemLists(train[0], val[0], test[0], notes=notes)
    lists.captions = {"train": train[1], "val": val[1], "test": test[1]}
    return lists


def is_bare(video_id: str) -> bool:
    """Whether this is one of LSMDC's five training clips without captions."""
    return any(video_id.startswith(start) and time in video_id for start, time in BARE)


def chosen_captions(folders: Sequence[Path], listed: Listed, captions: Captions) -> dict[str, int]:
    """Which caption of each test clip of 1k-A is its query.

    `jsfusion_val_caption_idx.pkl` says it; CE's archive has it not, and then each sentence of
    `MSRVTT_JSFUSION_test.csv` is looked up among the captions of its clip. Of equal captions, the first is meant.

    Args:
        folders: where to look for either file.
        listed: the test clips.
        captions: of each of them, all.

    Raises:
        UserError: neither file is there, or one does not fit the captions.
    """
    for folder in folders:
        if (path := folder / CHOSEN).is_file():
            return _chosen_by_index(path, listed, captions)
    for folder in folders:
        if (path := folder / TEST_CSV).is_file():
            return _chosen_by_sentence(path, listed, captions)
    raise UserError(
        f"neither {CHOSEN} nor {TEST_CSV} is in {' or '.join(map(str, folders))}; one of them says which caption of "
        f"each clip is the query of split 1k-A. Copy the second there: it comes with every implementation of that split"
    )


def _chosen_by_index(path: Path, listed: Listed, captions: Captions) -> dict[str, int]:
    content = load_plain(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict {{id: number of the caption}}, got {shortened(content)}")
    numbers = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    found = {}
    for video_id in listed.lines:
        number = numbers.get(video_id)
        there = len(captions[video_id])
        if type(number) is not int or not 0 <= number < there:
            raise UserError(
                f"{path} has {shortened(number)} for {video_id} of {listed.place(video_id)}, expected the number of "
                f"one of its {there} captions; without this file, {TEST_CSV} says it as well"
            )
        found[video_id] = number
    return found


def _chosen_by_sentence(path: Path, listed: Listed, captions: Captions) -> dict[str, int]:
    sentences = {
        row["video_id"]: (line, row["sentence"]) for line, row in read_table(path, ("video_id", "sentence")).rows
    }
    if absent := [video_id for video_id in listed.lines if video_id not in sentences]:
        raise UserError(
            f"{path} has no sentence for {few(absent)} of {listed.path}; both files have the 1000 clips of split 1k-A: "
            f"copy them again"
        )
    found = {}
    for video_id in listed.lines:
        line, sentence = sentences[video_id]
        known = [_letters(caption) for caption in captions[video_id]]
        if _letters(sentence) not in known:
            raise UserError(
                f"{path}, line {line}: {shortened(sentence)} is none of the {len(known)} captions of {video_id}; the "
                f"list and the captions are of different data, copy them again"
            )
        found[video_id] = known.index(_letters(sentence))
    return found


def _letters(text: str) -> str:
    """A sentence without what tokenizers change: capitals, spaces, punctuation."""
    return re.sub(r"[^\w]|_", "", text.lower())


def read_ids(path: Path) -> Listed:
    """One id a line; empty lines are skipped.

    Raises:
        UserError: there is no such file, or it names nothing.
    """
    _require_file(path)
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if video_id := line.strip():
            lines.setdefault(video_id, number)
    if not lines:
        raise UserError(f"{path} names no clip; unpack the archive again")
    return Listed(path, lines)


def read_tabs(path: Path) -> Listed:
    """The first column of a tab-separated file without a first line of names: LSMDC's lists.

    Raises:
        UserError: there is no such file, or a line has no tab.
    """
    _require_file(path)
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        video_id, tab, _ = line.partition("\t")
        if not tab or not video_id.strip():
            raise UserError(
                f"{path}, line {number}: {shortened(line)} has no id in front of a tab; expected the clip's id, four "
                f"times and the sentence, separated by tabs"
            )
        lines.setdefault(video_id.strip(), number)
    if not lines:
        raise UserError(f"{path} names no clip; download it again")
    return Listed(path, lines)


def _table(folder: Path, prefix: str, split: str) -> Path:
    paths = [folder / f"{prefix}_{task}_{split}.csv" for task in ("RET", "CAP")]
    found = next((path for path in paths if path.is_file()), None)
    if split == "test" and found == paths[1]:
        raise UserError(
            f"{folder} has no {paths[0].name}, which names the clips that are tested; those of {found.name} are of "
            f"another task. Download the authors' table, or copy {found.name} to that name if its clips are meant"
        )
    if found is None:
        raise UserError(
            f"{folder} has neither {paths[0].name} nor {paths[1].name}; pass {flag('data.root')} with the folder that "
            f"holds DataFrame with the authors' tables"
        )
    return found


def _sentences(path: Path) -> tuple[Listed, dict[str, list[str]]]:
    """The clips of a tab-separated table, and their sentences. Quotes mean nothing in it."""
    rows = csv.reader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    header = [name.strip() for name in next(rows, [])]
    if missing := [name for name in ("vid_key", "description") if name not in header]:
        raise UserError(
            f"{path} has no column {quoted(missing)}; its first line gives {quoted(header) or 'nothing'}, expected "
            f"key, vid_key and description, separated by tabs"
        )
    lines: dict[str, int] = {}
    captions: dict[str, list[str]] = {}
    for cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {rows.line_num}: {count(len(cells), 'cell')}, expected {len(header)}, separated by "
                f"tabs; correct the line"
            )
        video_id, sentence = (cells[header.index(name)].strip() for name in ("vid_key", "description"))
        if not video_id:
            raise UserError(f"{path}, line {rows.line_num}: vid_key is empty; correct the line")
        lines.setdefault(video_id, rows.line_num)
        captions.setdefault(video_id, [])
        if sentence:
            captions[video_id].append(sentence)
    if not lines:
        raise UserError(f"{path} has no rows below its first line; download it again")
    return Listed(path, lines), captions


def _json_list(path: Path) -> tuple[Listed, dict[str, list[str]]]:
    _require_file(path)
    lines: dict[str, int] = {}
    captions: dict[str, list[str]] = {}
    expected = '{"id": "a", "captions": ["a dog runs"]}'
    for number, entry in read_json_lines(path, expected):
        video_id = identifier(entry.get("id"))
        if video_id is None:
            raise UserError(f"{path}, line {number}: id is {shortened(entry.get('id'))}, expected {expected}")
        if video_id in lines:
            raise UserError(f"{path}, line {number}: {video_id} stands in line {lines[video_id]} too; join the lines")
        texts = strings(f"{path}, line {number}", entry.get("captions"), "a list of captions")
        lines[video_id] = number
        captions[video_id] = [text for text in texts if text]
    return Listed(path, lines), captions


def _of_names(folder: Path, names: tuple[str, str, str]) -> SystemLists:
    train, val, test = (read_ids(folder / name) for name in names)
    lists = SystemLists(train, val, test)
    if names[1] == names[2]:
        lists.notes.append(_same(test.path))
    return lists


def _same(path: Path) -> str:
    return f"{path.name} is both the validation and the test list, as released: a selected epoch is selected on it."


def _known(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r} of MSR-VTT; there are {', '.join(SPLITS)}")
    return split


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    there = sorted(entry.name for entry in path.parent.glob("*") if entry.is_file()) if path.parent.is_dir() else []
    raise UserError(
        f"there is no file {path}; {path.parent} has {few(there) or 'no file'}. Unpack the archive's lists there, or "
        f"pass {flag('data.root')} with the folder that has them"
    )


def overlap(lists: SystemLists) -> list[str]:
    """Sentences about clips that are trained on and tested."""
    both = [video_id for video_id in lists.test.lines if video_id in lists.train.lines]
    if not both:
        return []
    total = len(lists.test.lines)
    return [f"Clips of the test list that are in the training list too: {len(both)} of {total}, {few(both)}."]
