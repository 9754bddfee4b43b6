"""From what the annotation files of a layout say to splits: the same rules for every data set."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import count, few, read_list, video_files, without_video_suffix
from emcl_train.data.clips import Annotations, Clip, Split
from emcl_train.data.layouts import video_folder
from emcl_train.data.names import Names, can_be_a_file, one_form
from emcl_train.errors import UserError
from emcl_train.flags import flag

Captions = dict[str, list[str]]
"""Clips of a split in order, each with its captions."""


@dataclass(frozen=True)
class Protocol:
    """How many of what the literature counts in each split; several where it disagrees, none where it has no split."""

    name: str
    train: tuple[int, ...] = ()
    val: tuple[int, ...] = ()
    test: tuple[int, ...] = ()
    unit: str = "clip"


@dataclass
class SplitFiles:
    """What the files of a layout say."""

    train: Captions
    val: Captions
    """Empty where the files name no validation clips: then some are held out of the training clips."""
    test: Captions
    clip: Callable[[str], Clip]
    """The file of an id, and the span of it."""
    train_file: Path
    """Where the training clips are listed, for messages."""
    protocol: Protocol | None = None
    counted: dict[str, int] = field(default_factory=dict)
    """What the protocol counts in each split, where it is not clips."""
    notes: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    are_queries: bool = True
    """Whether each caption of a test clip is to find it, so that two alike are worth a word."""
    hold_out_from: str = "mark validation clips in the annotations"
    """What else to do where there are too few clips to hold one out."""


def assemble(files: SplitFiles, config: DataConfig) -> Annotations:
    """Splits of clips and captions, with what a reader of results should know.

    Where there are no validation clips, they are held out of the training clips: `validation_clips` of them, at most a
    tenth, chosen by a hash of their ids, so that the choice is the same everywhere.

    Raises:
        UserError: clips have no captions, or are too few.
    """
    notes = list(files.notes)
    train = files.train
    val = files.val
    counts, differing = _compare(files)

    # By file, not by id: two lists may name one file in two ways.
    trained_on = {files.clip(video_id).path for video_id in train}
    if overlap := sum(files.clip(video_id).path in trained_on for video_id in files.test):
        notes.append(
            f"Clips of the test list that are in the training list too: {overlap} of {len(files.test)}. "
            f"The test numbers do not measure generalisation."
        )

    validated = {files.clip(video_id).path for video_id in val}
    if overlap := sum(path in trained_on for path in validated):
        notes.append(
            f"Files of the validation list that are in the training list too: {overlap} of {len(validated)}. "
            f"The epoch is not selected on unseen clips."
        )
    if overlap := sum(files.clip(video_id).path in validated for video_id in files.test):
        notes.append(
            f"Clips of the test list that are in the validation list too: {overlap} of {len(files.test)}. "
            f"The epoch was selected on them."
        )

    if not val and train:
        held = _held_out(files, config)
        # Their captions are queries now, of the kind that the test split has.
        val = {video_id: first_only(texts, config) for video_id, texts in train.items() if video_id in held}
        train = {video_id: texts for video_id, texts in train.items() if video_id not in held}
        notes.append(
            f"The annotations name no separate validation clips. Held out of the training list to select the epoch: "
            f"{count(len(val), 'clip')}."
        )

    test = split_of("test", files.test, files.clip)
    repeated = len(test.captions) - len(set(test.captions))
    if repeated and files.are_queries:
        notes.append(
            f"Test captions that repeat another one: {repeated} of {len(test.captions)}. Their ranks cannot all be 1."
        )

    return Annotations(
        split_of("train", train, files.clip),
        split_of("val", val, files.clip),
        test,
        notes=(*notes, *differing),
        counts=counts,
        unlisted=tuple(files.clip(video_id) for video_id in files.unlisted),
    )


def first_only(texts: list[str], config: DataConfig) -> list[str]:
    """The captions of a clip that are queries: all, or with `test_captions="one"` the first."""
    return texts if config.test_captions == "all" else texts[:1]


def queries(captions: Captions, config: DataConfig) -> Captions:
    """`first_only` of every clip of a split."""
    return {video_id: first_only(texts, config) for video_id, texts in captions.items()}


def captions_of(
    ids: Sequence[str], captions: Captions, list_file: Path, captions_file: Path, notes: list[str]
) -> Captions:
    """The captions of the clips that a list names; ids that it repeats, and captions that are empty, are noted.

    Raises:
        UserError: a clip has no caption that is not empty, or a name that no file can have.
    """
    if impossible := [video_id for video_id in ids if not can_be_a_file(video_id)]:
        raise UserError(f"{list_file}: {impossible[0]!r} is no name that a file can have; correct it")

    # One clip, in whatever Unicode form it is listed again.
    clips: dict[str, str] = {}
    for video_id in ids:
        clips.setdefault(one_form(video_id), video_id)
    if repeated := len(ids) - len(clips):
        notes.append(f"{list_file.name} repeats {count(repeated, 'id')}; each clip is used once.")

    known = Names(captions)
    keys = {video_id: known.find(video_id) or video_id for video_id in clips.values()}
    found = {video_id: [text for text in captions.get(key, []) if text] for video_id, key in keys.items()}
    bare = [video_id for video_id, texts in found.items() if not texts]
    if bare:
        raise UserError(
            f"{list_file}: {count(len(bare), 'clip')} without a caption in {captions_file.name}: {few(bare)}; "
            f"add their captions there, or take the clips off the list"
        )

    if empty := sum(len(captions[keys[video_id]]) - len(texts) for video_id, texts in found.items()):
        notes.append(f"Captions in {captions_file.name} that are empty and left out: {empty} of {list_file.name}'s.")
    return found


def from_id_lists(
    config: DataConfig, captions_file: str, read: Callable[[Path], Captions], protocol: Protocol
) -> SplitFiles:
    """The clips of `{train,val,test}_list.txt`, each with all of its captions in one file, which `read` reads."""
    check_root(config, captions_file)
    notes: list[str] = []
    path = config.root / captions_file
    captions = read(path)

    def part(split: str) -> Captions:
        list_file = config.root / f"{split}_list.txt"
        return captions_of(read_list(list_file), captions, list_file, path, notes)

    return SplitFiles(
        train=part("train"),
        val=queries(part("val"), config),
        test=queries(part("test"), config),
        clip=clip_finder(config),
        train_file=config.root / "train_list.txt",
        protocol=protocol,
        notes=notes,
    )


def clip_finder(
    config: DataConfig, *, end: float | None = None, also: Callable[[str], Sequence[str]] = lambda _: ()
) -> Callable[[str], Clip]:
    """Files by their ids, in `data.videos`. A missing file keeps its place: the check of the clips reports it.

    Args:
        config: says where the clips lie.
        end: seconds at which every clip ends.
        also: other names that the file of an id may have.

    Returns:
        A function from an id to its clip. It raises a UserError if an id has files in several folders.

    Raises:
        UserError: the folder is missing.
    """
    folder = video_folder(config)
    files = video_files(folder)
    known_names = Names(files)

    def clip(video_id: str) -> Clip:
        names = (video_id, without_video_suffix(video_id), *also(video_id))
        known = next(filter(None, map(known_names.find, names)), None)
        first, *others = [folder / f"{video_id}.mp4"] if known is None else files[known]
        require_one_place(f"clip {video_id}", [first, *others], folder)
        return Clip(video_id, first, end=end)

    return clip


def require_one_place(of: str, files: Sequence[Path], folder: Path) -> None:
    """Raise a UserError where files of one clip, which `of` names, lie in several folders inside one."""
    for other in files:
        if other.parent != files[0].parent:
            raise UserError(
                f"{folder} has two files of {of} in different folders, {files[0]} and {other}; remove or move one, or "
                f"pass {flag('data.videos')} with the folder that is meant"
            )


def check_root(config: DataConfig, holds: str) -> None:
    """Raise a UserError where the data set's folder is missing; `holds` names a file that it should have."""
    if not config.root.is_dir():
        raise UserError(
            f"there is no folder {config.root}; pass {flag('data.root')} with the folder that holds {holds}"
        )


def split_of(name: str, captions: Captions, clip: Callable[[str], Clip]) -> Split:
    """A split of these clips, in order."""
    pairs = [(text, index) for index, texts in enumerate(captions.values()) for text in texts]
    clips = tuple(clip(video_id) for video_id in captions)
    return Split(name, clips, tuple(text for text, _ in pairs), tuple(index for _, index in pairs))


def _held_out(files: SplitFiles, config: DataConfig) -> set[str]:
    """The clips with the smallest hashes."""
    ids = list(files.train)
    number = max(1, min(config.validation_clips, len(ids) // 10))
    if number >= len(ids):
        raise UserError(
            f"{files.train_file} names {count(len(ids), 'clip')}, too few to hold one out to validate; "
            f"add clips to it, or {files.hold_out_from}"
        )
    chosen = sorted(ids, key=lambda video_id: hashlib.sha256(os.fsencode(video_id)).digest())[:number]

    # Spans of one file go together: a validation clip is no part of a training video.
    paths = {files.clip(video_id).path for video_id in chosen}
    held = {video_id for video_id in ids if files.clip(video_id).path in paths}
    return held if len(held) < len(ids) else set(chosen)


def _compare(files: SplitFiles) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A sentence for each count of the protocol, and those of them that a reader of results should see."""
    if files.protocol is None:
        return (), ()

    protocol = files.protocol
    said = []
    differing = []
    for name in ("train", "val", "test"):
        expected: tuple[int, ...] = getattr(protocol, name)
        if not expected:
            continue

        found = files.counted.get(name, len(getattr(files, name)))
        literature = " or ".join(filter(None, [", ".join(map(str, expected[:-1])), str(expected[-1])]))
        if found in expected:
            of = f", of {literature} in the literature" if len(expected) > 1 else ""
            sentence = f"{name}: {count(found, protocol.unit)}, as in {protocol.name}{of}."
        else:
            sentence = f"{name}: {count(found, protocol.unit)}; {protocol.name} has {literature}."
        said.append(sentence)
        if found not in expected or len(expected) > 1:
            differing.append(sentence)
    return tuple(said), tuple(differing)
