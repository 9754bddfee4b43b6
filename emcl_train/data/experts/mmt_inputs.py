"""Batches of MMT: some steps of each expert with their times, its greatest values, and tokens of captions.

How the release draws steps is known, and that numpy draws them; that it is one call of `choice` is inferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emcl_train.data.bert_tokens import sentence
from emcl_train.data.experts.features import ExpertReader, ExpertSteps
from emcl_train.data.experts.mmt_captions import TimedCaption
from emcl_train.data.text import CaptionTokenizer

UNKNOWN = 1.0
"""The time of a step whose time is not known, and of padding."""
FIRST = 2.0
"""The time of second 0: 0 stands for no time, 1 for an unknown one."""
LATEST = 500.0
"""Seconds after which words that begin are dropped."""
TEST_SEED = 0

CaptionRule = Literal["shufk1", "indiv", "cat"]
"""MMT's names: one caption at random, each on its own, all joined in order."""


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
    avgpool: dict[str, Float[Tensor, "n D"]]
    """Mean over all steps, likewise."""

    def to(self, device: torch.device | str) -> "MMTVideos":
        parts = (self.features, self.present, self.times, self.maxpool, self.avgpool)
        return MMTVideos(*({name: tensor.to(device) for name, tensor in part.items()} for part in parts))


@dataclass(frozen=True)
class MMTTexts:
    """Tokens of texts."""

    input_ids: Int[Tensor, "n W"]
    attention_mask: Int[Tensor, "n W"]

    def to(self, device: torch.device | str) -> "MMTTexts":
        return MMTTexts(self.input_ids.to(device), self.attention_mask.to(device))


def of_numpy() -> np.random.RandomState:
    """Numpy's global state, from which the release draws the steps of training videos."""
    state: np.random.RandomState = np.random.mtrand._rand  # type: ignore[attr-defined]
    return state


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
    features, present, times, maxpool, avgpool = ({name: [] for name in names} for _ in range(5))  # type: ignore[var-annotated]
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
            avgpool[name].append(np.zeros(width, np.float32) if steps is None else steps.values.mean(0))
    parts = (features, present, times, maxpool, avgpool)
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


def captions_by(
    rule: CaptionRule, captions: Sequence[TimedCaption], random: np.random.RandomState | None = None
) -> list[TimedCaption]:
    """The texts that a video's captions make.

    Args:
        rule: "shufk1", "indiv" or "cat".
        captions: of the video, in order.
        random: chooses for "shufk1".

    Raises:
        ValueError: there is no caption, or nothing to choose one with.
    """
    if not captions:
        raise ValueError("there is no caption; leave the video out")
    if rule == "cat":
        words = tuple(word for caption in captions for word in caption.words)
        return [TimedCaption(words, np.concatenate([caption.times for caption in captions]))]
    if rule == "indiv":
        return list(captions)
    if random is None:
        raise ValueError('"shufk1" chooses a caption at random; pass what draws it')
    return [captions[int(random.randint(len(captions)))]]


def sentence_of(caption: TimedCaption, max_words: int) -> str:
    """A caption as BERT reads it; see `bert_tokens.sentence`.

    Args:
        caption: its words; those that begin later than 500 seconds are dropped.
        max_words: words that are read.
    """
    timed = zip(caption.words, caption.times[:, 0], strict=True)
    return sentence([word for word, start in timed if start <= LATEST], max_words)


def mmt_texts(captions: Sequence[TimedCaption], tokenizer: CaptionTokenizer) -> MMTTexts:
    """Tokens of captions: [CLS], word pieces of lower-case text, [SEP], padding.

    Args:
        captions: one for each row.
        tokenizer: of `bert_tokens`. Its length W bounds the words that are read as well as the tokens of a row.
    """
    return MMTTexts(*tokenizer.encode([sentence_of(caption, tokenizer.max_words) for caption in captions]))
