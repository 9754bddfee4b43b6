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
    """Blocks of texts that are compared, of which the time for all is estimated; 0: all."""


GALLERIES = (Gallery("1k-A", 1000, 12), Gallery("ActivityNet", 4917, 64, sampled=4))
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def features_of(gallery: Gallery, width: int = WIDTH) -> Inputs:
    """Random rows of length one: text, frames, mask, start of the bases."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(gallery.items, width, generator=generator), dim=-1)
    frames = normalize(torch.randn(gallery.items, gallery.frames, width, generator=generator), dim=-1)
    mask = torch.ones(gallery.items, gallery.frames, dtype=torch.bool)
    return text, frames, mask, torch.randn(BASES, generator=generator)


def compared(inputs: Inputs, blocks: int = 0) -> Tensor:
    """The similarity as `eval` makes it; of the first blocks of texts alone, if so many are named."""
    text, frames, mask, init = inputs
    return ours_in_blocks(text[: blocks * BLOCK or None], frames, mask, init, em_block=BLOCK)


def ranks(similarity: Tensor) -> tuple[float, float]:
    """Median ranks of both directions, as `eval` finds them."""
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
    """Seconds of each way, once; of a sample of the texts as many times the seconds as there are more of them."""
    more = gallery.items / (gallery.sampled * BLOCK or gallery.items)
    begin = clock()
    found = compared(inputs, gallery.sampled)
    between = clock()
    released(inputs, gallery.sampled)
    end = clock()

    # Ranks are of the whole in any case.
    whole = found.repeat(-(-gallery.items // len(found)), 1)[: gallery.items]
    begin_ranks = clock()
    ranks(whole)
    between_ranks = clock()
    released_ranks(whole.numpy())
    released_ranks(whole.T.numpy())
    end_ranks = clock()
    return {
        "ours": more * (between - begin) + between_ranks - begin_ranks,
        "eager": more * (end - between) + end_ranks - between_ranks,
    }
