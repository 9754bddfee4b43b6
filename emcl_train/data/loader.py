"""From annotations to batches: clips are checked before a run, and come in an order that only seed and epoch decide."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from emcl_train.config import DataConfig, RunConfig
from emcl_train.data import shared_memory
from emcl_train.data.annotations import Annotations, Clip, Split, load_annotations
from emcl_train.data.augment import rand_augment
from emcl_train.data.cache import CheckedClips, FrameCache, FrameCacheWriter, only_remembered, place_of
from emcl_train.data.cache_use import use_cache
from emcl_train.data.experts.inputs import ExpertClips, ExpertInputs, expert_loader
from emcl_train.data.experts.prepare import prepare_experts
from emcl_train.data.features import FeatureSplit, feature_loader, open_features, require_data_of
from emcl_train.data.opening import fingerprint, not_settled
from emcl_train.data.passing import PassingError, passing, raise_together
from emcl_train.data.tokens import EncodedCaptions, Tokenizer, encoded_captions
from emcl_train.data.video import VideoError, decode_clip
from emcl_train.endings import held_back
from emcl_train.errors import UserError
from emcl_train.flags import again, flag
from emcl_train.processes import agreed, first_then_others, gather_lists, of_first, rank_and_world
from emcl_train.runs.files import write_text_atomic
from emcl_train.terminal import progress_bar

Item = dict[str, Tensor]

SHOWN = 10
"""Bad clips that an error names; of more, a file has them all."""


def prepare(config: RunConfig, *, together: bool = False) -> Annotations:
    """Read the annotations and check every clip they name; or open the features that stand in for them.

    Args:
        config: what to read.
        together: whether several processes do this, each with a part of the clips.

    Returns:
        The splits of clips that decode. If `on_bad_video` is "skip", `left_out` and a note say which do not.

    Raises:
        UserError: the annotations cannot be used, or clips cannot be decoded and `on_bad_video` is "stop".
    """
    turn = first_then_others if together else _at_once
    if config.from_features is not None:
        return turn(lambda: _features_of_data(config))
    if config.model.system != "clip":
        return turn(lambda: prepare_experts(config))
    annotations = turn(lambda: load_annotations(config.data))
    splits = (annotations.train, annotations.val, annotations.test)
    clips = list({clip.video_id: clip for split in splits for clip in split.clips}.values())
    bad = check_clips(clips, config.data, together=together)
    bad |= check_clips(annotations.unlisted, replace(config.data, cache_frames=False), together=together)
    if not bad:
        return annotations
    if config.data.on_bad_video == "stop":
        raise UserError(_bad_clips_message(bad, len(clips) + len(annotations.unlisted), config.data))
    return _leave_out(annotations, bad, config.data)


def _at_once(work: Callable[[], Annotations]) -> Annotations:
    return work()


def _features_of_data(config: RunConfig) -> Annotations:
    """The features, compared with the annotations in `data.root` where those are there: features stand in for them."""
    features = open_features(config)
    if config.data.layout == "shapes":  # decided by its settings, which are compared already
        return features
    try:
        annotations = load_annotations(config.data)
    except UserError as error:
        note = f"The features were not compared with the data set, which cannot be read: {error}"
        return replace(features, notes=(*features.notes, note))
    require_data_of(features, annotations, config)
    return features


def check_clips(clips: Sequence[Clip], config: DataConfig, *, together: bool = False) -> dict[str, str]:
    """Decode what a run will sample of every clip, unless an earlier check of the same file is remembered.

    Fills the frame cache on the way where `config.cache_frames` asks for it.

    Args:
        clips: which ones.
        config: how frames are sampled.
        together: whether several processes do this: each decodes a part, and the first one remembers all. A frame cache
            is filled by the first one alone.

    Returns:
        Why clips cannot be decoded, by id; the same in all processes.

    Raises:
        PassingError: a clip cannot be read now.
        UserError: so it is with several of them.
    """
    several = together and rank_and_world()[1] > 1
    first = not several or rank_and_world()[0] == 0
    use_cache(config)
    # What an earlier run found of a file holds until the file changes: such a clip is not decoded again.
    checked = CheckedClips(config)
    pending = [clip for clip in clips if not checked.knows(clip)]

    writer: FrameCacheWriter | None = None

    def decode(clip: Clip) -> _Found:
        """What is found of a clip; trouble that every other one would meet ends the check."""
        before = fingerprint(clip.path)
        try:
            frames, mask = decode_clip(clip, config, whole=True)
            if writer:
                writer.write(clip, frames, mask)
        except VideoError as error:
            return _Found(before, error.reason)
        except PassingError as error:
            if error.everywhere:
                raise
            return _Found(before, trouble=error)
        return _Found(before)

    def decode_all(some: Sequence[Clip]) -> dict[str, _Found]:
        """What is found of clips, of which those that decode are remembered as they get ready."""
        found: dict[str, _Found] = {}
        for clip, own in in_parallel(decode, some, config.workers, "Check clips"):
            found[clip.video_id] = own
            if own.reason is None and own.trouble is None:
                checked.add(clip, None, own.file)
        _take_back(found, some)
        return found

    def settle(found: dict[str, _Found]) -> dict[str, str]:
        """Remember what was found, and say what is wrong, in the order of the clips and not as they got ready."""
        for clip in pending:
            of_clip = found[clip.video_id]
            if of_clip.trouble is None:
                checked.add(clip, of_clip.reason, of_clip.file)
        raise_together({name: own.trouble for name, own in found.items() if own.trouble is not None}, len(clips))
        if writer:
            writer.finish()
        reasons = {
            clip.video_id: found[clip.video_id].reason if clip.video_id in found else checked.reason(clip)
            for clip in clips
        }
        return {video_id: reason for video_id, reason in reasons.items() if reason is not None}

    try:
        # A cache of frames is made of all clips or of none, so it decodes those that are known to be whole as well.
        broken = {clip.path for clip in clips if checked.knows(clip) and checked.reason(clip)}
        wanted = [clip for clip in clips if clip.path not in broken]
        if first and config.cache_frames and wanted and FrameCache.open(config, wanted) is None:
            with held_back():
                writer = FrameCacheWriter.begin(config, wanted)
            pending = wanted if writer else pending

        return settle(decode_all(pending)) if not several else _divided(pending, writer is None, decode_all, settle)
    finally:
        if writer:
            writer.abandon()
        if pending and first:
            checked.save()  # an interrupted check goes on from here
        use_cache(config)


def _divided(
    pending: list[Clip],
    divides: bool,
    decode: Callable[[Sequence[Clip]], "dict[str, _Found]"],
    settle: "Callable[[dict[str, _Found]], dict[str, str]]",
) -> dict[str, str]:
    """A check by several processes: the first one says which clips, and is told what the others find of theirs.

    Args:
        pending: the clips, of which those of the first process count.
        divides: whether each process decodes a part; else the first one decodes all.
        decode: what is found of some clips.
        settle: what the first process makes of all that was found.
    """
    rank, world = rank_and_world()
    shared, divides = of_first(lambda: (pending, divides))
    own = shared[rank::world] if divides else shared if rank == 0 else []

    found = gather_lists(agreed(lambda: [decode(own)]))
    return of_first(lambda: settle({name: one for of_process in found or () for name, one in of_process.items()}))


@dataclass
class _Found:
    """What a check found of a clip."""

    file: list[int] | None
    """The fingerprint of its file before it was read; None if there was none."""
    reason: str | None = None
    """Why it cannot be decoded."""
    trouble: PassingError | None = None
    """Why nothing could be found."""


def _take_back(found: dict[str, _Found], clips: Sequence[Clip]) -> None:
    """Turn verdicts on files that are still being written into passing trouble: they may be whole soon."""
    condemned = [clip for clip in clips if found[clip.video_id].reason is not None]
    changing = not_settled({clip.path: found[clip.video_id].file for clip in condemned})
    for clip in condemned:
        if clip.path in changing:
            trouble = PassingError(clip.path, "it is still being written, or comes and goes")
            found[clip.video_id] = _Found(None, trouble=trouble)


def in_parallel(
    work: Callable[[Clip], Any], clips: Sequence[Clip], workers: int, description: str
) -> Iterator[tuple[Clip, Any]]:
    """Clips with what `work` returns for them, as they get ready, below a progress bar.

    Threads do: FFmpeg and torch work outside Python's lock.
    """
    columns = TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        with progress_bar(*columns, disable=not clips) as progress:
            task = progress.add_task(description, total=len(clips))
            futures = {pool.submit(work, clip): clip for clip in clips}
            for future in as_completed(futures):
                progress.advance(task)
                yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def steps_per_epoch(split: Split, config: DataConfig, batch_size: int) -> int:
    """How many batches `training_loader` has in an epoch from its first one on, without making them."""
    return len(split.captions if config.train_captions == "all" else split.clips) // batch_size


def training_loader(
    split: Split,
    tokenizer: Tokenizer | ExpertInputs,
    config: DataConfig,
    batch_size: int,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
    pairs: Literal["distinct", "any"] = "distinct",
) -> DataLoader:
    """One epoch in whole batches, from batch `start_batch` on.

    Every clip comes once with one of its captions; with `train_captions="all"` once with each of them. Then a clip is
    twice in a batch only where no order avoids that, or with `pairs="any"` wherever one shuffle of all pairs puts it.
    Pairs that do not fill a batch are left out, others in every epoch.

    Order and captions depend on seed and epoch alone, so that a resumed epoch goes on with the very batches that the
    interrupted one had left. Batches that are skipped are not decoded, and of the others each of `world` processes
    decodes its own part, `batch_size / world` pairs.
    """
    # A batch holds places in these two: the caption of each pair and its clip.
    chosen: Sequence[int]
    clips: Sequence[int]
    if config.train_captions == "all":
        make = shuffled_captions if pairs == "any" else batches_of_captions
        batches = make(split, batch_size, seed, epoch)
        chosen = range(len(split.captions))
        clips = split.caption_clip
    else:
        order = np.random.default_rng((seed, epoch)).permutation(len(split.clips))
        batches = [order[i : i + batch_size].tolist() for i in range(0, len(order) - batch_size + 1, batch_size)]
        chosen = draw_captions(split, seed, epoch)
        clips = range(len(split.clips))

    # The part of each batch that this process decodes.
    own = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
    own_batches = [batch[own] for batch in batches[start_batch:]]

    if isinstance(split, FeatureSplit):
        return feature_loader(split, clips=clips, captions=chosen, batch_sampler=own_batches)
    if isinstance(split, ExpertClips):
        of_clips = [[int(clips[place]) for place in batch] for batch in own_batches]
        of_captions = [[int(chosen[place]) for place in batch] for batch in own_batches]
        return expert_loader(split, config, clips=of_clips, captions=of_captions, draw=(seed, epoch))
    assert not isinstance(tokenizer, ExpertInputs)
    dataset = ClipDataset(
        split,
        config,
        captions=encoded_captions(tokenizer, split),
        pairs=(chosen, clips),
        augment=(seed, epoch) if config.augment == "randaugment" else None,
        draw=(seed, epoch),
    )
    return clip_batches(dataset, config, batch_sampler=own_batches)


def draw_captions(split: Split, seed: int, epoch: int) -> list[int]:
    """One caption for each clip, by (seed, epoch, clip)."""
    captions: list[list[int]] = [[] for _ in split.clips]
    for caption, clip in enumerate(split.caption_clip):
        captions[clip].append(caption)
    return [own[np.random.default_rng((seed, epoch, clip)).integers(len(own))] for clip, own in enumerate(captions)]


def shuffled_captions(split: Split, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """All captions in one shuffle by (seed, epoch), cut into batches: some have two captions of a clip, as released."""
    order = np.random.default_rng((seed, epoch)).permutation(len(split.captions)).tolist()
    return [order[start : start + batch_size] for start in range(0, len(order) - batch_size + 1, batch_size)]


def batches_of_captions(split: Split, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """All captions in batches of distinct clips, by (seed, epoch); of distinct pairs where clips are too few.

    A clip is the likelier drawn the more captions it has left, as in one shuffle of all pairs. One with as many left as
    there are batches to come is taken into each of them, or it would have to be twice in one of them.
    """
    random = np.random.default_rng((seed, epoch))
    captions: list[list[int]] = [[] for _ in split.clips]
    for caption in random.permutation(len(split.captions)).tolist():
        captions[split.caption_clip[caption]].append(caption)

    left = np.array([len(own) for own in captions])
    batches = []
    for to_come in range(len(split.captions) // batch_size, 0, -1):
        # The smallest exponential variables over weights are a draw without replacement by these weights.
        rank = random.exponential(size=len(left)) / np.maximum(left, 1)
        rank[left == 0] = np.inf

        # Clips that have to be in every batch to come are drawn before all others.
        certain = left >= to_come
        rank[certain] = -random.random(np.count_nonzero(certain))

        size = min(batch_size, int(np.count_nonzero(left)))
        clips = np.argpartition(rank, size - 1)[:size].tolist()
        left[clips] -= 1
        while len(clips) < batch_size:  # only captions of clips that are in it already
            clips.append(int(left.argmax()))
            left[clips[-1]] -= 1
        batches.append([captions[clip].pop() for clip in clips])
    return batches


def clip_loader(split: Split, config: DataConfig, batch_size: int, rows: range | None = None) -> DataLoader:
    """Every clip of a split once, in order: frames, frame_mask, index; of stored features, see `FeatureDataset`.

    Args:
        split: the clips.
        config: how frames are sampled.
        batch_size: clips at a time.
        rows: those of these numbers alone; None: all.
    """
    rows = range(len(split.clips)) if rows is None else rows
    if isinstance(split, FeatureSplit):
        return feature_loader(split, clips=rows, batch_size=batch_size)
    if isinstance(split, ExpertClips):
        return expert_loader(split, config, clips=_in_batches(rows, batch_size))
    return clip_batches(ClipDataset(split, config, pairs=(rows, rows)), config, batch_size=batch_size)


def caption_loader(
    split: Split,
    tokenizer: Tokenizer | ExpertInputs,
    config: DataConfig,
    batch_size: int,
    rows: range | None = None,
) -> DataLoader:
    """Every caption of a split once, in order: input_ids, attention_mask, index; or as `FeatureDataset` says.

    Args:
        split: the captions.
        tokenizer: of them.
        config: of the data.
        batch_size: captions at a time.
        rows: those of these numbers alone; None: all.
    """
    rows = range(len(split.captions)) if rows is None else rows
    if isinstance(split, FeatureSplit):
        return feature_loader(split, captions=rows, batch_size=batch_size)
    if isinstance(split, ExpertClips):
        return expert_loader(split, config, captions=_in_batches(rows, batch_size))
    assert not isinstance(tokenizer, ExpertInputs)
    dataset = CaptionDataset(encoded_captions(tokenizer, split), rows)
    return ClipDataLoader(dataset, batch_size=batch_size)


def _in_batches(rows: range, batch_size: int) -> list[list[int]]:
    return [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


class ClipDataset(Dataset):
    """Clips of a split as uint8 frames, from the frame cache where it holds them all, with captions if given.

    An item is a clip, or with `pairs`, numbers of captions and of their clips, one of each. With `augment`, seed and
    epoch, frames are augmented as these and the item's index decide. With `draw`, the same, these decide which frames
    are sampled, where `data.frame_sampling` draws them.
    """

    def __init__(
        self,
        split: Split,
        config: DataConfig,
        captions: EncodedCaptions | None = None,
        pairs: tuple[Sequence[int], Sequence[int]] | None = None,
        augment: tuple[int, int] | None = None,
        draw: tuple[int, int] | None = None,
    ) -> None:
        self.draw = draw
        self.clips = split.clips
        self.config = config
        self.captions = captions
        self.augment = augment
        every_clip = range(len(split.clips))
        self.chosen, self.caption_clip = (every_clip, every_clip) if pairs is None else pairs
        self.cache = FrameCache.open(config, split.clips) if config.cache_frames else None

    def __len__(self) -> int:
        return len(self.caption_clip)

    @property
    def bytes_of_a_clip(self) -> int:
        """Size of its frames."""
        return self.config.num_frames * 3 * self.config.image_size**2

    def tokenize(self, indices: Iterable[int]) -> None:
        """Tokenize the captions of these items, as far as that was not done before."""
        if self.captions is not None:
            self.captions.encode(self.chosen[index] for index in indices)

    def __getitem__(self, index: int) -> Item | UserError:
        """An item; or what is wrong with the clip, as a value, which reaches the main process without a traceback."""
        clip = self.clips[self.caption_clip[index]]
        try:
            return self._item(clip, index)
        except VideoError as error:
            return UserError(
                f"clip {clip.video_id} ({clip.path}) was whole before the run and cannot be decoded now: "
                f"{error.reason}; restore the file and {again()}"
            )
        except Exception as error:
            trouble = passing(error, clip.path)
            if trouble is None:
                raise
            return trouble

    def _item(self, clip: Clip, index: int) -> Item:
        frames, mask = self._frames(clip, index)
        if self.augment is not None:
            frames = rand_augment(frames, mask, np.random.default_rng((*self.augment, index)))
        item = {"frames": frames, "frame_mask": mask, "index": torch.tensor(self.caption_clip[index])}
        if self.captions is not None:
            item["input_ids"], item["attention_mask"] = self.captions.row(self.chosen[index])
        return item

    def _frames(self, clip: Clip, index: int) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            return self.cache.read(clip)
        if self.draw is None or self.config.frame_sampling != "2.5fps":
            return decode_clip(clip, self.config)
        return decode_clip(clip, self.config, draw=(*self.draw, index))


class CaptionDataset(Dataset):
    """Captions of a split as token ids, those of these numbers."""

    def __init__(self, captions: EncodedCaptions, numbers: Sequence[int]) -> None:
        self.captions = captions
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def tokenize(self, indices: Iterable[int]) -> None:
        """Tokenize these captions, as far as that was not done before."""
        self.captions.encode(self.numbers[index] for index in indices)

    def __getitem__(self, index: int) -> Item:
        number = self.numbers[index]
        input_ids, attention_mask = self.captions.row(number)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "index": torch.tensor(number)}


class ClipDataLoader(DataLoader):
    """A DataLoader that has captions tokenized before its first batch, and raises errors which the dataset returned."""

    dataset: ClipDataset | CaptionDataset

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        # Here and not in the workers: each would tokenize for itself, and forget it at the end of the epoch.
        batches: Iterable[list[int]] = self.batch_sampler or ()
        self.dataset.tokenize(index for batch in batches for index in batch)

        if self.num_workers and isinstance(self.dataset, ClipDataset):
            clips = len(next(iter(batches), ()))
            shared_memory.require_room(clips * self.dataset.bytes_of_a_clip, clips)

        with shared_memory.explained() if self.num_workers else nullcontext():
            for batch in super().__iter__():
                if isinstance(batch, UserError):
                    raise batch
                yield batch


def _collate(items: list[Item | UserError]) -> Item | UserError:
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)


def clip_batches(dataset: ClipDataset, config: DataConfig, **batching: Any) -> DataLoader:
    workers = 0 if dataset.cache is not None else config.workers
    # With a generator of its own the loader draws nothing from the state that weights and dropout depend on.
    generator = torch.Generator().manual_seed(0)
    return ClipDataLoader(
        dataset,
        num_workers=workers,
        collate_fn=_collate,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
        **batching,
    )


def _bad_clips_message(bad: dict[str, str], total: int, config: DataConfig) -> str:
    shown = "; ".join(f"{video_id} ({reason})" for video_id, reason in list(bad.items())[:SHOWN])
    more = ""
    if len(bad) > SHOWN:
        more = f"; and {len(bad) - SHOWN} more"
        with only_remembered("the list of all"):
            path = place_of("bad-clips.txt", config)
            write_text_atomic(path, "".join(f"{video_id}\t{reason}\n" for video_id, reason in bad.items()))
            more += f", all of which stand in {path}"
    return (
        f"{len(bad)} of {total} clips in {config.root} cannot be decoded: {shown}{more}. Replace the files, or pass "
        f"{flag('data.on_bad_video')} skip to leave them out and have them counted in the results; `"
        f"{_doctor(config)}` shows every clip"
    )


def _doctor(config: DataConfig) -> str:
    split = f"-{config.msrvtt_split}" if config.layout == "msrvtt" and config.msrvtt_split != "9k" else ""
    videos = f" --videos {config.videos}" if config.videos is not None else ""
    return f"emcl-train data doctor {config.layout}{split} {config.root}{videos}"


def _leave_out(annotations: Annotations, bad: dict[str, str], config: DataConfig) -> Annotations:
    splits = {name: getattr(annotations, name) for name in ("train", "val", "test")}
    counts = Counter({name: sum(clip.video_id in bad for clip in split.clips) for name, split in splits.items()})
    left = {name: split.without(set(bad)) for name, split in splits.items()}
    for name, split in left.items():
        if not split.clips and splits[name].clips:
            raise UserError(
                f"none of the {counts[name]} clips of the {name} split in {config.root} can be decoded, for example "
                f"{next(f'{i} ({bad[i]})' for i in bad)}; see `{_doctor(config)}`"
            )
    where = ", ".join(f"{counts[name]} of {name}" for name in splits)
    if unlisted := len(bad.keys() - {clip.video_id for split in splits.values() for clip in split.clips}):
        where += f", {unlisted} in no list"
    note = f"{len(bad)} of the annotated clips cannot be decoded. Left out are {where}."
    return replace(annotations, **left, notes=(*annotations.notes, note), left_out=bad)
