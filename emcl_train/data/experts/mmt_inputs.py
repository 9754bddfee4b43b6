"""Batches of MMT: some steps of each expert with their times, its greatest values, and tokens of captions.

How the release draws steps is known, and that numpy draws them; that it is one call of `choice` is inferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emcl_train.data.bert_tokens import sentence
from emcl_train.data.experts.features import ExpertReader, ExpertSteps
from emcl_train.data.experts.mmt_captions import TimedCaption

UNKNOWN = 1.0
"""The time of a step whose time is not known, and of padding."""
FIRST = 2.0
"""The time of second 0: 0 stands for no time, 1 for an unknown one."""
LATEST = 500.0
"""Seconds after which words that begin are dropped."""
TEST_SEED = 0


@dataclass(frozen=True)
class MMTVideos:
    """The videos of a batch, by the names of experts in sorted order."""

    features: dict[str, Float[Tensor, "n F D"]]
    """Steps, zeros behind the last."""
    present: dict[str, Bool[Tensor, "n F"]]
    """Which steps there are: the release's `features_ind`."""
    times: dict[str, Float[Tensor, "n F"]]
    """Middle of each step in seconds, plus 2; 1 where it is not known. The model cuts them to whole positions."""
    maxpool: dict[str, Float[Tensor, "n D"]]
    """Greatest value of each channel over all steps, drawn or not; zeros if there are none."""


def mmt_videos(
    ids: Sequence[str],
    reader: ExpertReader,
    *,
    max_steps: int,
    random: np.random.RandomState | None = None,
) -> MMTVideos:
    """What experts say of some videos.

    Args:
        ids: of the videos.
        reader: of their features.
        max_steps: F; of more steps some are drawn, without repetition and in order.
        random: draws them in training, for one expert after the other; None: as in the release's evaluation, where each
            draw begins with `RandomState(0)`, so that equal numbers of steps give equal places.

    Raises:
        ExpertError: features are of another width or no numbers.
        UserError: there is nothing of a video.
    """
    found = [reader.read(video_id) for video_id in ids]
    names = sorted(reader.experts)
    features, present, times, maxpool = ({name: [] for name in names} for _ in range(4))  # type: ignore[var-annotated]
    for of_video in found:
        for name in names:
            width = reader.widths[name]
            steps = of_video[name]
            drawn, drawn_times = drawn_steps(steps, max_steps, width, random)
            there = 0 if steps is None else min(len(steps.values), max_steps)
            features[name].append(drawn)
            present[name].append(np.arange(max_steps) < there)
            times[name].append(drawn_times)
            maxpool[name].append(np.zeros(width, np.float32) if steps is None else steps.values.max(0))
    parts = (features, present, times, maxpool)
    return MMTVideos(*({n: torch.from_numpy(np.stack(rows)) for n, rows in part.items()} for part in parts))


def drawn_steps(
    steps: ExpertSteps | None, most: int, width: int, random: np.random.RandomState | None
) -> tuple[Float[np.ndarray, "F D"], Float[np.ndarray, " F"]]:
    """At most so many steps of an expert, with zeros behind, and the time of each; see `mmt_videos`."""
    values = np.zeros((most, width), np.float32)
    times = np.full(most, UNKNOWN, np.float32)
    if steps is None:
        return values, times

    total = len(steps.values)
    chosen = np.arange(total)
    if total > most:
        random = np.random.RandomState(TEST_SEED) if random is None else random
        chosen = np.sort(random.choice(total, size=most, replace=False))
    values[: len(chosen)] = steps.values[chosen]
    if steps.times is not None:
        times[: len(chosen)] = steps.times[chosen].mean(1) + FIRST
    return values, times


def joined(captions: Sequence[TimedCaption]) -> TimedCaption:
    """A video's captions as one text, in their order."""
    words = tuple(word for caption in captions for word in caption.words)
    return TimedCaption(words, np.concatenate([caption.times for caption in captions]))


def sentence_of(caption: TimedCaption, max_words: int) -> str:
    """A caption as BERT reads it; see `bert_tokens.sentence`.

    Args:
        caption: its words; those that begin later than 500 seconds are dropped.
        max_words: words that are read.
    """
    timed = zip(caption.words, caption.times[:, 0], strict=True)
    return sentence([word for word, start in timed if start <= LATEST], max_words)
