"""Batches of JSFusion: features with padding in front, words with padding behind."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from emcl_train.data.experts.features import ExpertReader
from emcl_train.data.experts.jsfusion_hdf5 import EXPERT, Vocabulary
from emcl_train.errors import UserError

DROPPED = re.compile(r"[^a-z0-9(),!?'`_]")
"""What is no letter of a word: full stops too."""
OWN_WORDS = re.compile(r"'s|'ve|n't|'re|'d|'ll|[,!?()]")


@dataclass(frozen=True)
class JSFusionVideos:
    """Features of B videos."""

    features: Float32[Tensor, "B V C"]
    mask: Bool[Tensor, "B V"]


@dataclass(frozen=True)
class JSFusionTexts:
    """Words of B captions, by their rows in the vocabulary."""

    word_ids: Int64[Tensor, "B W"]
    mask: Bool[Tensor, "B W"]


def jsfusion_videos(ids: Sequence[str], reader: ExpertReader, *, steps: int) -> JSFusionVideos:
    """Features of videos: evenly chosen where there are more than `steps` of them, zeros before them where fewer.

    Args:
        ids: of the videos.
        reader: has the expert `resnet`.
        steps: of each video; the paper has 40.

    Raises:
        UserError: features of a video are missing or cannot be used.
    """
    features = torch.zeros(len(ids), steps, reader.widths[EXPERT])
    mask = torch.zeros(len(ids), steps, dtype=torch.bool)
    for row, video_id in enumerate(ids):
        found = reader.read(video_id)[EXPERT]
        if found is None:
            raise UserError(f"{video_id} has no features of {EXPERT}, and JSFusion has no other expert; leave it out")
        values = torch.from_numpy(found.values[chosen_steps(len(found.values), steps)])
        features[row, steps - len(values) :] = values
        mask[row, steps - len(values) :] = True
    return JSFusionVideos(features, mask)


def jsfusion_texts(captions: Sequence[str], vocabulary: Vocabulary, *, max_words: int) -> JSFusionTexts:
    """Words of captions. Those that the vocabulary does not have are left out, as if nobody had said them.

    Args:
        captions: as they were written.
        vocabulary: of the authors' files.
        max_words: of each caption, the first known ones; the paper has 40.
    """
    word_ids = torch.zeros(len(captions), max_words, dtype=torch.int64)
    mask = torch.zeros(len(captions), max_words, dtype=torch.bool)
    for row, caption in enumerate(captions):
        known = [vocabulary.index[word] for word in jsfusion_words(caption) if word in vocabulary.index][:max_words]
        word_ids[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
        mask[row, : len(known)] = True
    return JSFusionTexts(word_ids, mask)


def jsfusion_words(caption: str) -> list[str]:
    """The words of a caption: in lower case, with `'s 've n't 're 'd 'll` and `, ! ? ( )` as words of their own.

    Examples:
        >>> jsfusion_words("She doesn't look (at John's dog).")
        ['she', 'does', "n't", 'look', '(', 'at', 'john', "'s", 'dog', ')']
    """
    kept = DROPPED.sub(" ", caption.lower())
    return OWN_WORDS.sub(lambda found: f" {found.group()} ", kept).split()


def chosen_steps(there: int, steps: int) -> np.ndarray:
    """Which of the steps that are there are taken: all, or `steps` evenly chosen ones from the first on."""
    if there <= steps:
        return np.arange(there)
    return np.floor(np.linspace(0, there, steps, endpoint=False)).astype(np.int64)
