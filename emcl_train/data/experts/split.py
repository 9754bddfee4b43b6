"""A data set of experts' features, whoever's files it has: the reader, the clips of each split, their captions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import count, few
from emcl_train.data.datasets.msvd import read_captions
from emcl_train.data.experts.ce_pickles import CEFeatures, CEWords, feature_folder
from emcl_train.data.experts.features import ExpertReader
from emcl_train.data.experts.jsfusion_hdf5 import JSFusionFeatures, Vocabulary, read_vocabulary
from emcl_train.data.experts.lists import (
    ONE_K_A,
    Captions,
    Listed,
    SystemLists,
    ce_lists,
    chosen_captions,
    jsfusion_lists,
    mmt_lists,
    overlap,
    own_lists,
)
from emcl_train.data.experts.mmt_captions import KeptCaptions
from emcl_train.data.experts.mmt_h5 import MMTFeatures
from emcl_train.data.experts.own import OwnFeatures
from emcl_train.errors import UserError

System = Literal["ce", "mmt", "jsfusion", "own"]
DataSet = Literal["msrvtt", "activitynet", "lsmdc", "own"]
SPLITS: tuple[str, ...] = ("train", "val", "test")
RAW_CAPTIONS = {"activitynet": "raw-captions-train-val_1.pkl"}
"""CE's file of captions, where it is not raw-captions.pkl."""


@dataclass(frozen=True)
class ExpertFiles:
    """Whose files lie where."""

    system: System
    dataset: DataSet
    """"own" with the system "own"."""
    root: Path
    split: str = ONE_K_A
    """Of MSR-VTT: "1k-A", "1k-B" or "full". JSFusion knows 1k-A alone."""
    cache_dir: Path | None = None
    """As `data.cache_dir`: where converted tables, and what was found of clips, are kept."""
    only_read: bool = False
    """Whether nothing is to be written there."""

    @property
    def config(self) -> DataConfig:
        """For the cache folder."""
        return DataConfig(root=self.root, cache_dir=self.cache_dir)


@dataclass(frozen=True)
class Query:
    """A text that looks for its clip."""

    clip: int
    """Its number in `ExpertSplit.ids`."""
    captions: tuple[int, ...]
    """Numbers of the clip's captions that make the text: one, or all of them joined."""


@dataclass(frozen=True)
class ExpertSplit:
    """The clips of a split."""

    name: str
    listed: Listed
    captions: Captions
    """Of each clip; those of MMT are read from its file when they are asked for."""
    joined: bool
    """Whether all captions of a clip are one text."""
    chosen: Mapping[str, int]
    """The caption that is the query, where the split has one a clip; else empty."""

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Of its clips, in the order of the list."""
        return tuple(self.listed.lines)

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self, video_id: str) -> list[tuple[int, ...]]:
        """The captions that make each text of a clip."""
        if video_id in self.chosen:
            return [(self.chosen[video_id],)]
        every = range(len(self.captions[video_id]))
        return [tuple(every)] if self.joined and every else [(number,) for number in every]

    def queries(self) -> list[Query]:
        """Every text of the split, clip by clip."""
        return [Query(clip, captions) for clip, i in enumerate(self.ids) for captions in self.numbers(i)]

    def text(self, query: Query) -> str:
        """What a query says."""
        captions = self.captions[self.ids[query.clip]]
        return " ".join(captions[number] for number in query.captions)


@dataclass(frozen=True)
class ExpertData:
    """A whole data set."""

    files: ExpertFiles
    reader: ExpertReader
    train: ExpertSplit
    val: ExpertSplit
    test: ExpertSplit
    words: CEWords | None = None
    """CE's features of words."""
    vocabulary: Vocabulary | None = None
    """JSFusion's words."""
    notes: tuple[str, ...] = ()
    """What a reader of results should know."""

    @property
    def splits(self) -> tuple[ExpertSplit, ExpertSplit, ExpertSplit]:
        return self.train, self.val, self.test


@dataclass(frozen=True)
class Problem:
    """A clip that a list names and that cannot be used."""

    split: str
    video_id: str
    kind: str
    """"no features", "no caption", or what is wrong with the features."""
    sentence: str
    """With the file and the line."""


class _CaptionsOfFiles(Mapping[str, Sequence[str]]):
    """The captions of MMT's clips, each read from its file when it is asked for."""

    def __init__(self, reader: MMTFeatures, ids: Mapping[str, int]) -> None:
        self._reader = reader
        self._ids = ids
        self._read: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __getitem__(self, video_id: str) -> list[str]:
        if video_id not in self._ids:
            raise KeyError(video_id)
        if video_id not in self._read:
            self._read[video_id] = [caption.text for caption in self._reader.captions(video_id)]
        return self._read[video_id]


def open_expert_data(files: ExpertFiles, widths: Mapping[str, int] | None = None) -> ExpertData:
    """Open a data set, and see that every clip of its lists is there.

    Args:
        files: whose, and where.
        widths: which experts a model takes, and how wide; None: all there are, as wide as they are.

    Raises:
        UserError: a file is missing or is something else; a clip that a list names has no features or no caption.

    Examples:
        >>> data = open_expert_data(ExpertFiles("mmt", "msrvtt", Path("data/MSRVTT")))
        >>> data.reader.read(data.train.ids[0])["s3d"].values.shape
        (21, 1024)
    """
    data = opened(files, widths)
    problems = [problem for split in data.splits for problem in problems_of(data, split, look_inside=False)]
    problems = list({problem.sentence: problem for problem in problems}.values())
    if problems:
        others = [problem.video_id for problem in problems[1:]]
        more = f" (and {few(others)} likewise)" if others else ""
        raise UserError(f"{problems[0].sentence}{more}; unpack the archive again, or take the clips off the list")
    return data


def opened(files: ExpertFiles, widths: Mapping[str, int] | None = None) -> ExpertData:
    """The same without a look at the clips, for somebody who counts what is wrong with them."""
    lists, reader, captions = _parts(files, widths)
    words = None
    if files.system == "ce":
        words = CEWords(files.root, files.dataset, files.config, convert=not files.only_read)
    vocabulary = read_vocabulary(files.root) if files.system == "jsfusion" else None
    chosen: dict[str, int] = {}
    if lists.chosen_from:
        # A clip without captions is a problem of its own.
        known = Listed(
            lists.test.path, {i: line for i, line in lists.test.lines.items() if _has_captions(captions["test"], i)}
        )
        chosen = chosen_captions(lists.chosen_from, known, captions["test"])

    def split(name: str, listed: Listed) -> ExpertSplit:
        of_test = name == "test" or listed.path == lists.test.path
        return ExpertSplit(name, listed, captions[name], lists.joined, chosen if of_test else {})

    return ExpertData(
        files,
        reader,
        split("train", lists.train),
        split("val", lists.val),
        split("test", lists.test),
        words,
        vocabulary,
        (*lists.notes, *overlap(lists)),
    )


def problems_of(data: ExpertData, split: ExpertSplit, *, look_inside: bool = True) -> Iterator[Problem]:
    """The clips of a split that have no features or no caption.

    Args:
        data: the data set.
        split: one of its splits.
        look_inside: whether captions are counted that have to be read from a file for each clip; those of MMT are else
            left to whoever reads them.
    """
    lazy = isinstance(split.captions, _CaptionsOfFiles) and not look_inside
    for video_id in split.ids:
        place = split.listed.place(video_id)
        if video_id not in data.reader:
            yield Problem(split.name, video_id, "no features", f"{place}: {video_id} has no features")
        elif not lazy and not _has_captions(split.captions, video_id):
            yield Problem(split.name, video_id, "no caption", f"{place}: {video_id} has no caption")
        elif data.words is not None and video_id not in data.words:
            yield Problem(split.name, video_id, "no caption", f"{place}: {video_id} has no features of words")


def raw_captions(files: ExpertFiles) -> Path:
    """CE's file of captions."""
    return feature_folder(files.root) / RAW_CAPTIONS.get(files.dataset, "raw-captions.pkl")


def _parts(
    files: ExpertFiles, widths: Mapping[str, int] | None
) -> tuple[SystemLists, ExpertReader, dict[str, Captions]]:
    """The lists, the reader, and the captions of each split."""
    root = files.root
    if files.system == "ce":
        lists = ce_lists(root, files.dataset, files.split)
        raw = read_captions(raw_captions(files))
        features = CEFeatures(root, files.dataset, files.config, widths, convert=not files.only_read)
        return lists, features, dict.fromkeys(SPLITS, raw)
    if files.system == "mmt":
        reader = MMTFeatures(root, files.dataset, widths, KeptCaptions(files.config))
        lists = mmt_lists(root, files.dataset, files.split)
        of_splits = {name: getattr(lists, name).lines for name in SPLITS}
        return lists, reader, {name: _CaptionsOfFiles(reader, ids) for name, ids in of_splits.items()}
    if files.system == "jsfusion":
        if files.dataset == "msrvtt" and files.split != ONE_K_A:
            raise UserError(f"JSFusion's lists of MSR-VTT are those of split {ONE_K_A}, not of {files.split}")
        lists = jsfusion_lists(root, files.dataset)
        width = None if widths is None else next(iter(widths.values()))
        return lists, JSFusionFeatures(root, files.dataset, width), dict(lists.captions)
    lists = own_lists(root)
    return lists, OwnFeatures(root, widths), dict(lists.captions)


def _has_captions(captions: Captions, video_id: str) -> bool:
    try:
        return bool(captions.get(video_id))
    except UserError:  # no file, or one that cannot be read, which is said of its features
        return False


def require_as_many(data: ExpertData, video_id: str, split: ExpertSplit) -> None:
    """Raise a UserError where CE's captions and features of words are not of the same captions, or cannot be used."""
    assert data.words is not None
    texts, features = len(split.captions[video_id]), len(data.words.read(video_id))
    if texts != features:
        raise UserError(
            f"{video_id} has {count(texts, 'caption')} in words and {features} as features; they are of different "
            f"archives: unpack one of them again"
        )
