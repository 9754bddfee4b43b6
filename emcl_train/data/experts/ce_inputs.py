"""Batches of Collaborative Experts: experts in the order of their sorted names, features of words.

An expert that was averaged over time is a row `[D]`; one of many steps is its first steps, with zeros behind. The
network that takes such a batch sees these zeros: its figures depend on how many steps there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emcl_train.data.annotation_files import count
from emcl_train.data.experts.ce_pickles import CEWords
from emcl_train.data.experts.features import ExpertReader, ExpertSteps
from emcl_train.errors import UserError

NAN = float("nan")


@dataclass(frozen=True)
class CEVideos:
    """The videos of a batch."""

    experts: dict[str, Float[Tensor, "B ..."]]
    """By name, in sorted order: `[B, D]`, or `[B, steps, D]`; NaN throughout where an expert is missing."""
    available: dict[str, Bool[Tensor, " B"]]
    """By name: which videos the expert has something on, as far as the model is told."""

    def to(self, device: torch.device | str) -> "CEVideos":
        return CEVideos(_moved(self.experts, device), _moved(self.available, device))


@dataclass(frozen=True)
class CETexts:
    """The texts of a batch, the same number for each video."""

    words: Float[Tensor, "B captions W D"]
    """Features of words, zeros behind the last, and throughout where a video has fewer captions."""
    present: Bool[Tensor, "B captions"]
    """Which captions there are."""

    def to(self, device: torch.device | str) -> "CETexts":
        return CETexts(self.words.to(device), self.present.to(device))


def ce_videos(
    ids: Sequence[str],
    reader: ExpertReader,
    *,
    max_steps: Mapping[str, int],
    always_available: Sequence[str] = (),
) -> CEVideos:
    """What experts say of some videos.

    Args:
        ids: of the videos.
        reader: of their features.
        max_steps: of each expert with many steps; the others have one, which loses its dimension.
        always_available: experts that count as available in training, whatever a video has: those that are not flaky.
            In evaluation there are none.

    Raises:
        UserError: an expert that is always available has nothing on a video, or an expert of one step has several.
        ExpertError: features are of another width or no numbers.
    """
    found = [reader.read(video_id) for video_id in ids]
    experts: dict[str, Tensor] = {}
    available: dict[str, Tensor] = {}
    for expert in sorted(reader.experts):
        of_videos = [of_video[expert] for of_video in found]
        steps = max_steps.get(expert)
        width = reader.widths[expert]
        rows = [
            _row(one, expert, i, width) if steps is None else _first_steps(one, steps, width)
            for i, one in zip(ids, of_videos, strict=True)
        ]
        there = [one is not None for one in of_videos]
        if expert in always_available and not all(there):
            raise UserError(
                f"{expert} has nothing on {ids[there.index(False)]}, and CE takes it for available in every training "
                f"video; leave the video out, or train without {expert}"
            )
        experts[expert] = torch.from_numpy(np.stack(rows))
        available[expert] = torch.tensor(there)
    return CEVideos(experts, available)


def ce_texts(
    texts: Sequence[Sequence[tuple[str, Sequence[int]]]],
    words: CEWords,
    *,
    max_words: int,
) -> CETexts:
    """Features of the words of texts.

    Args:
        texts: for each video, its texts: the id, and the numbers of the captions that are joined to one text.
        words: what a frozen network made of every word.
        max_words: of a text; the first are taken.

    Raises:
        UserError: there are no features of a caption.
    """
    most = max(len(of_video) for of_video in texts)
    features = np.zeros((len(texts), most, max_words, words.width), np.float32)
    present = np.zeros((len(texts), most), bool)
    for video, of_video in enumerate(texts):
        for number, (video_id, captions) in enumerate(of_video):
            read = words.read(video_id, captions[0]) if len(captions) == 1 else _several(words, video_id, captions)
            joined = np.concatenate(read)[:max_words]
            features[video, number, : len(joined)] = joined
            present[video, number] = True
    return CETexts(torch.from_numpy(features), torch.from_numpy(present))


def _several(words: CEWords, video_id: str, captions: Sequence[int]) -> list[np.ndarray]:
    """The words of some captions of a clip, in this order."""
    every = words.read(video_id)
    if outside := [number for number in captions if not 0 <= number < len(every)]:
        raise UserError(
            f"{words.folder}: {video_id} has {count(len(every), 'caption')}, and caption {outside[0]} is asked for; "
            f"the lists and the features are of different archives"
        )
    return [every[number] for number in captions]


def _row(steps: ExpertSteps | None, expert: str, video_id: str, width: int) -> np.ndarray:
    """The one row of an expert that was averaged over time."""
    if steps is None:
        return np.full(width, NAN, np.float32)
    if len(steps.values) != 1:
        raise UserError(
            f"{expert} has {len(steps.values)} steps on {video_id}, expected one: CE takes its average over time; "
            f"average it, or name how many steps are read"
        )
    return steps.values[0]


def _first_steps(steps: ExpertSteps | None, most: int, width: int) -> np.ndarray:
    if steps is None:
        return np.full((most, width), NAN, np.float32)
    rows = np.zeros((most, width), np.float32)
    first = steps.values[:most]
    rows[: len(first)] = first
    return rows


def _moved(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
