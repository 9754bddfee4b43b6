"""Evaluation from stored features: the similarity in the release's blocks, and the ranks of both directions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.ways import ours_in_blocks, release
from emcl_train.evaluation.metrics import text_to_video, video_to_text_best_similarity

WIDTH, BASES, BLOCK = 512, 32, 32


@dataclass(frozen=True)
class Gallery:
    """As many texts as videos, each text of the video of its number."""

    name: str
    items: int
    frames: int
    sampled: int = 0
    """Blocks of texts that the released way compares, of which its time for all is estimated; 0: all."""


GALLERIES = (Gallery("1k-A", 1000, 12), Gallery("ActivityNet", 4917, 64, sampled=1))
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def features_of(gallery: Gallery, width: int = WIDTH) -> Inputs:
    """Random rows of length one: text, frames, mask, start of the bases."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(gallery.items, width, generator=generator), dim=-1)
    frames = normalize(torch.randn(gallery.items, gallery.frames, width, generator=generator), dim=-1)
    mask = torch.ones(gallery.items, gallery.frames, dtype=torch.bool)
    return text, frames, mask, torch.randn(BASES, generator=generator)


def ours(inputs: Inputs) -> tuple[float, float]:
    """Median ranks of both directions, as `eval` finds them."""
    similarity = ours_in_blocks(*inputs, em_block=BLOCK)
    pairs = torch.arange(len(similarity))
    there, back = text_to_video(similarity, pairs), video_to_text_best_similarity(similarity, pairs)
    return there["MdR"], back["MdR"]


def released(inputs: Inputs, blocks: int = 0) -> Tensor:
    """The similarity by the release's formula, block by block; with `blocks`, of the first so many of texts alone."""
    text, frames, mask, init = inputs
    clips = list(zip(frames.split(BLOCK), mask.split(BLOCK), strict=True))
    rows = [
        torch.cat([release(part, f, m, init) for f, m in clips], dim=1) for part in text.split(BLOCK)[: blocks or None]
    ]
    return torch.cat(rows)


def released_ranks(similarity: np.ndarray) -> float:
    """Median rank of the diagonal, as released: all of a row is sorted, and its own value looked for."""
    ordered = np.sort(-similarity, axis=1)
    own = -np.diag(similarity)[:, None]
    return float(np.median(np.where(ordered - own == 0)[1]) + 1)


def timed(gallery: Gallery, inputs: Inputs, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each way, once."""
    begin = clock()
    ours(inputs)
    between = clock()
    found = released(inputs, gallery.sampled)
    compared = clock()
    part = (gallery.sampled * BLOCK or gallery.items) / gallery.items
    whole = found.repeat(-(-gallery.items // len(found)), 1)[: gallery.items].numpy()
    begin_ranks = clock()
    released_ranks(whole)
    released_ranks(whole.T)
    end = clock()
    return {"ours": between - begin, "eager": (compared - between) / part + end - begin_ranks}
