"""What a run would end at in its clips: one pass over the features of all, remembered by what their files are."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from emcl_train.data.cache import cache_folder, only_remembered, place_of
from emcl_train.data.cache_use import use_cache
from emcl_train.data.experts.features import Examined
from emcl_train.data.experts.jsfusion_hdf5 import EXPERT
from emcl_train.data.experts.mmt_captions import TimedCaption
from emcl_train.data.experts.mmt_h5 import MMTFeatures
from emcl_train.data.experts.split import (
    ExpertData,
    ExpertSplit,
    Problem,
    problems_of,
    raw_captions,
    require_as_many,
)
from emcl_train.data.opening import fingerprint
from emcl_train.data.passing import PassingError, raise_together
from emcl_train.errors import UserError
from emcl_train.experts.ce import CE
from emcl_train.extras import require_packages
from emcl_train.runs.files import json_if_whole, write_text_atomic
from emcl_train.terminal import progress_bar

VERSION = 1
AT_ONCE = 32
"""Clips that a process examines before it says so."""
MANY = 1000
"""Clips from which on processes examine them side by side: these have to be started."""


@dataclass(frozen=True)
class Rules:
    """What a system asks of a clip, besides features of the right width."""

    averaged: frozenset[str] = frozenset()
    """Experts of one step, an average over time."""
    firm: frozenset[str] = frozenset()
    """Experts that every training clip must have."""
    needed: frozenset[str] = frozenset()
    """Experts that every clip must have."""

    @classmethod
    def of(cls, data: ExpertData) -> "Rules":
        """Those of whoever's files a data set has."""
        if data.files.system == "ce":
            known = CE[data.files.dataset].experts
            return cls(
                averaged=frozenset(name for name, expert in known.items() if expert.clusters is None),
                firm=frozenset(name for name, expert in known.items() if not expert.flaky),
            )
        return cls(needed=frozenset([EXPERT])) if data.files.system == "jsfusion" else cls()


@dataclass
class Found:
    """What an examination found of a clip, whoever asks. Each sentence names the clip."""

    missing: list[str] = field(default_factory=list)
    """Experts that have nothing."""
    several: dict[str, int] = field(default_factory=dict)
    """Steps of experts that have more than one."""
    faults: dict[str, list[str]] = field(default_factory=dict)
    """Kind and sentence for each expert that cannot be used."""
    unreadable: str = ""
    """Why nothing can be read of it; "" if it can."""
    words: str = ""
    """Why CE's features of its words cannot be used; "" if they can."""

    @classmethod
    def of(cls, examined: Examined) -> "Found":
        several = {e: len(s.values) for e, s in examined.steps.items() if s is not None and len(s.values) > 1}
        faults = {expert: [fault.kind, str(fault)] for expert, fault in examined.faults.items()}
        return cls(examined.missing, several, faults)

    def against(self, rules: Rules, video_id: str, *, in_training: bool) -> Iterator[tuple[str, str]]:
        """Kind and sentence of everything at which a run would end.

        Args:
            rules: of the system.
            video_id: the clip.
            in_training: whether the training list names it.
        """
        if self.unreadable:
            yield "not readable", self.unreadable
        for expert, (kind, sentence) in self.faults.items():
            yield f"{kind}: {expert}", sentence
        for expert in self.missing:
            if expert in rules.needed:
                yield f"missing: {expert}", f"{video_id} has nothing of {expert}, and there is no other expert"
            elif in_training and expert in rules.firm:
                yield (
                    f"missing: {expert}",
                    f"{expert} has nothing on {video_id}, and CE takes it for available in every training video",
                )
        for expert, steps in self.several.items():
            if expert in rules.averaged:
                yield (
                    f"several steps: {expert}",
                    f"{expert} has {steps} steps on {video_id}, expected one: CE takes its average over time",
                )
        if self.words:
            yield "words", self.words


def check_experts(data: ExpertData, workers: int = 0) -> list[Problem]:
    """Examine all clips of the lists, unless an earlier check of the same files is remembered.

    Args:
        data: the data set. Of MMT, captions are kept on the way.
        workers: processes that read, where there are many clips.

    Returns:
        Everything at which a run would end, in the order of the lists.

    Raises:
        PassingError: a clip cannot be read now.
        UserError: so it is with several of them.
    """
    found = [problem for split in data.splits for problem in problems_of(data, split, look_inside=False)]
    absent = {problem.video_id for problem in found}
    named: dict[str, list[ExpertSplit]] = {}
    for split in data.splits:
        for video_id in split.ids:
            if video_id not in absent:
                named.setdefault(video_id, []).append(split)

    rules = Rules.of(data)
    for video_id, of_clip in _examined(data, named, workers).items():
        splits = named[video_id]
        in_training = any(split.name == "train" for split in splits)
        for kind, sentence in of_clip.against(rules, video_id, in_training=in_training):
            place = splits[0].listed.place(video_id)
            found.append(Problem(splits[0].name, video_id, kind, f"{place}: {sentence}"))
    return list({problem.sentence: problem for problem in found}.values())


def words_fault(data: ExpertData, video_id: str, split: ExpertSplit) -> str:
    """Why CE's features of the words of a clip cannot be used; "" if they can."""
    try:
        require_as_many(data, video_id, split)
    except UserError as error:
        return str(error)
    return ""


def _examined(data: ExpertData, named: Mapping[str, Sequence[ExpertSplit]], workers: int) -> dict[str, Found]:
    """What is found of each clip."""
    if data.files.system in ("mmt", "jsfusion"):
        require_packages("experts")  # else it would be said of each clip
    memory = Remembered(data)
    before = {video_id: memory.state(video_id) for video_id in named}
    kept = data.reader.kept if isinstance(data.reader, MMTFeatures) else None
    pending = [
        video_id
        for video_id in named
        if not memory.knows(video_id, before[video_id])
        or (kept is not None and not any(kept.knows(video_id, path) for path in data.reader.files_of(video_id)))
    ]

    found: dict[str, Found] = {}
    troubles: dict[str, PassingError] = {}
    try:
        for video_id, own, captions in _in_processes(data, pending, named, workers):
            if isinstance(own, Found) and own.unreadable and memory.state(video_id) != before[video_id]:
                own = PassingError(_file_of(data, video_id), "it changed while it was read")
            if isinstance(own, PassingError):
                if own.everywhere:
                    raise own
                troubles[video_id] = own
                continue
            found[video_id] = own
            memory.add(video_id, before[video_id], own)
            if kept is not None and captions is not None:
                kept.add(video_id, *captions)
        raise_together(troubles, len(named))
    finally:
        if pending and not data.files.only_read:
            memory.save()  # an interrupted check goes on from here
            if kept is not None:
                kept.save()
        use_cache(data.files.config)
    return {video_id: found[video_id] if video_id in found else memory.found(video_id) for video_id in named}


def _file_of(data: ExpertData, video_id: str) -> Path:
    return next(iter((*data.reader.files_of(video_id), *data.reader.shared_files)), data.files.root)


Captions = tuple[list[int] | None, list[TimedCaption]]
"""The fingerprint of a file before it was read, and its captions."""
OfClip = tuple[str, Found | PassingError, Captions | None]


def _in_processes(
    data: ExpertData, pending: Sequence[str], named: Mapping[str, Sequence[ExpertSplit]], workers: int
) -> Iterator[OfClip]:
    """What is found of some clips, below a progress bar."""
    columns = TextColumn("Check clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    pieces = [list(pending[start : start + AT_ONCE]) for start in range(0, len(pending), AT_ONCE)]
    loader = DataLoader(
        _Examinations(data, named),
        sampler=pieces,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers if len(pending) >= MANY else 0,
        collate_fn=_unchanged,
        # With a generator of its own it draws nothing from the state that weights and dropout depend on.
        generator=torch.Generator().manual_seed(0),
    )
    with progress_bar(*columns, disable=not pending) as progress:
        task = progress.add_task("Check clips", total=len(pending))
        for piece in loader:
            yield from piece
            progress.advance(task, len(piece))


class _Examinations(Dataset):
    """Clips by their ids, with what is found of them."""

    def __init__(self, data: ExpertData, named: Mapping[str, Sequence[ExpertSplit]]) -> None:
        self._data = data
        self._named = named

    def __getitem__(self, ids: list[str]) -> list[OfClip]:
        return [(video_id, *self._of(video_id)) for video_id in ids]

    def _of(self, video_id: str) -> tuple[Found | PassingError, Captions | None]:
        """Trouble is a value here, which reaches the main process without a traceback."""
        data = self._data
        captions: Captions | None = None
        try:
            found = Found.of(data.reader.examine(video_id))
            if isinstance(data.reader, MMTFeatures):
                before = fingerprint(data.reader.path(video_id))
                captions = before, data.reader.captions(video_id)
        except PassingError as error:
            return error, None
        except UserError as error:
            return Found(unreadable=str(error)), None

        if data.words is not None:
            found.words = words_fault(data, video_id, self._named[video_id][0])
        return found, captions


class Remembered:
    """What was found of clips, in the cache folder; it holds for one size and time of all files that a clip lies in."""

    def __init__(self, data: ExpertData) -> None:
        self._reader = data.reader
        self._config = data.files.config
        shared = list(data.reader.shared_files)
        if data.words is not None:
            shared += [*data.words.paths, raw_captions(data.files)]
        self._shared = _of_files(shared)
        asked = json.dumps([data.files.system, data.files.dataset, sorted(data.reader.widths.items())])
        self._name = f"checked-v{VERSION}-experts-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"

        folder = cache_folder(self._config)
        content = None if folder is None else json_if_whole(folder / self._name)
        self._entries: dict[str, Any] = content if isinstance(content, dict) else {}
        self._known: dict[str, Found] = {}

    def state(self, video_id: str) -> str:
        """What the files of a clip are known by, as they are now."""
        text = self._shared + _of_files(self._reader.files_of(video_id))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def knows(self, video_id: str, state: str) -> bool:
        """Whether it is remembered what was found of a clip in files of this state."""
        entry = self._entries.get(video_id)
        if not isinstance(entry, dict) or entry.get("file") != state:
            return False
        found = _found_of(entry)
        if found is not None:
            self._known[video_id] = found
        return found is not None

    def found(self, video_id: str) -> Found:
        """What was found of a clip that is known."""
        return self._known[video_id]

    def add(self, video_id: str, state: str, found: Found) -> None:
        """Remember what was found of a clip in files of this state."""
        self._entries[video_id] = {"file": state, **{name: value for name, value in asdict(found).items() if value}}

    def save(self) -> None:
        """Write what is known, if that can be done."""
        with only_remembered("which clips can be used"):
            write_text_atomic(place_of(self._name, self._config), json.dumps(self._entries, ensure_ascii=False))


def _of_files(paths: Sequence[Path]) -> str:
    return json.dumps([[path.name, fingerprint(path)] for path in paths])


def _found_of(entry: dict[str, Any]) -> Found | None:
    """An entry as what it says; None if it is not as we write it: the file may be a stranger's."""
    found = Found(**{name: entry[name] for name in Found.__dataclass_fields__ if name in entry})
    texts = isinstance(found.unreadable, str) and isinstance(found.words, str)
    missing = isinstance(found.missing, list) and all(isinstance(one, str) for one in found.missing)
    several = isinstance(found.several, dict) and all(type(steps) is int for steps in found.several.values())
    faults = isinstance(found.faults, dict) and all(
        isinstance(fault, list) and len(fault) == 2 and all(isinstance(one, str) for one in fault)
        for fault in found.faults.values()
    )
    return found if texts and missing and several and faults else None


def _unchanged(batch: Any) -> Any:
    return batch
