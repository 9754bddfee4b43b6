"""Every query of a run in both directions, for the page's list: its rank, its margin, and the five best."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emcl_train.report.pages import Quoted
from emcl_train.report.ranks import text_ranks, video_ranks
from emcl_train.runs.folder import Run

BEST = 5


@dataclass(frozen=True)
class Direction:
    """The queries of one direction."""

    rank: Float[Tensor, "N"]
    """Of the right item; ties share their mean rank."""
    margin: Float[Tensor, "N"]
    """How far the right item is before the best other one; negative behind it."""
    own: Float[Tensor, "N"]
    """Similarity of the right item."""
    best: Int[Tensor, "N B"]
    """The clips that are nearest to a caption; the captions that are nearest to a clip, one of each other clip."""
    scores: Float[Tensor, "N B"]
    right: Int[Tensor, "N"]
    """The right item: a caption's clip; of a clip's captions the nearest."""

    def data(self) -> dict[str, Any]:
        """For JSON. Names are short, since there may be many queries."""
        return {
            "rank": [_short(value) for value in self.rank.tolist()],
            "margin": [_short(value) for value in self.margin.tolist()],
            "own": [_short(value) for value in self.own.tolist()],
            "right": self.right.tolist(),
            "best": self.best.tolist(),
            "scores": [[_short(value) for value in row] for row in self.scores.tolist()],
        }


def text_to_video(run: Run) -> Direction:
    """Each caption and the clips that are nearest to it."""
    similarity, target = run.similarity.float(), run.tensors["caption_clip"]
    best = similarity.topk(min(BEST, similarity.shape[1]), dim=1)
    own = similarity.gather(1, target[:, None])[:, 0]
    others = similarity.scatter(1, target[:, None], float("-inf")).amax(dim=1)
    return Direction(text_ranks(run), own - others, own, best.indices, best.values, target)


def video_to_text(run: Run) -> Direction:
    """Each clip and the captions that are nearest to it: of every clip's captions the nearest one, as ranks count."""
    similarity, target = run.similarity.float(), run.tensors["caption_clip"]
    clips = similarity.shape[1]
    nearest = similarity.new_full((clips, clips), float("-inf"))  # [clip as query, clip whose captions they are]
    caption = torch.zeros(clips, clips, dtype=torch.int32)
    for owner in range(clips):
        captions = (target == owner).nonzero()[:, 0]
        if len(captions):
            value, place = similarity[captions].max(dim=0)
            nearest[:, owner] = value
            caption[:, owner] = captions[place].int()

    best = nearest.topk(min(BEST, clips), dim=1)
    own = nearest.diagonal().clone()
    others = nearest.clone().fill_diagonal_(float("-inf")).amax(dim=1)
    named = caption.gather(1, best.indices).long()
    return Direction(video_ranks(run), own - others, own, named, best.values, caption.diagonal().long())


def data_of(run: Run) -> dict[str, Any]:
    """What the list of queries needs, for JSON."""
    return {
        "clips": run.video_ids,
        "captions": [Quoted(caption) for caption in run.captions],
        "owner": run.tensors["caption_clip"].tolist(),
        "text": text_to_video(run).data(),
        "video": video_to_text(run).data(),
    }


def clips_that_matter(run: Run, first: list[int]) -> list[int]:
    """All clips, those first whose pictures are wanted first.

    Args:
        run: the run.
        first: clips that are shown in any case.
    """

    def wanted() -> Iterator[int]:
        yield from first
        found = text_to_video(run)
        # The list begins with the largest ranks.
        for query in found.rank.argsort(descending=True, stable=True).tolist():
            yield int(found.right[query])
            yield from found.best[query].tolist()
        yield from range(len(run.video_ids))

    return list(dict.fromkeys(wanted()))


def _short(value: float) -> float | int | None:
    """With as many digits as are read."""
    if value != value or value in (float("inf"), float("-inf")):
        return None
    rounded = round(value, 4)
    return int(rounded) if rounded == int(rounded) else rounded
