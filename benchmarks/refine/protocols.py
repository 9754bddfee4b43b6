"""What a way may see, and what it is measured on: three protocols, each with rows that a user would have."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.refine.methods import Seen, Sides

SPLITS = 20


@dataclass(frozen=True)
class Split:
    """One division of a set."""

    seen: Seen
    test: Sides
    """Texts and videos whose rows are pairs."""


def evaluated(text: Tensor, video: Tensor) -> Iterator[Split]:
    """The rows that are searched are the rows that are seen: an index that is refined as it stands.

    The bank are then the test queries themselves, which a search engine does not have beforehand.
    """
    yield Split(Seen(text, video), (text, video))


def halves(text: Tensor, video: Tensor) -> Iterator[Split]:
    """Fitted to one half of the pairs, without knowing them, and measured on the other: 20 random halves."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(SPLITS):
        order = torch.randperm(len(text), generator=generator)
        seen, test = order[: len(text) // 2], order[len(text) // 2 :]
        yield Split(Seen(text[seen], video[seen]), (text[test], video[test]))


def thirds(text: Tensor, video: Tensor) -> Iterator[Split]:
    """Texts of a third, videos of another, so that none of them are pairs, measured on the last: 20 random thirds."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(SPLITS):
        order = torch.randperm(len(text), generator=generator)
        texts, videos, test = order.tensor_split(3)
        yield Split(Seen(text[texts], video[videos]), (text[test], video[test]))


PROTOCOLS: dict[str, Callable[[Tensor, Tensor], Iterator[Split]]] = {
    "evaluated set": evaluated,
    "halves": halves,
    "unpaired thirds": thirds,
}
