"""Similarities that compare rows of captions with rows of clips, and EM over those rows.

EM needs the rows' moments alone, and those of a set of captions and a set of clips add up. So one EM over everything is
a pass that gathers moments and a pass that compares; blocks are sums of a text block's and a video block's moments;
and of several processes, which have captions of their own and all clips, only the captions' moments are summed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from emcl_kernels import EMCL, SimilarityStream, em_moments
from emcl_train.models.features import TextFeatures, VideoFeatures

TILE = 1 << 22
"""Numbers in the largest tensor of a tile of the evaluation; some such tensors live at a time."""


class Rows(NamedTuple):
    """Rows of length one, L for each of A captions or clips, after any leading dimensions; zero where masked."""

    rows: Float[Tensor, "*G A L D"]
    mask: Bool[Tensor, "*G A L"] | None = None
    weights: Float[Tensor, "*G A L"] | None = None


class Moments(NamedTuple):
    """What EM needs of rows; `total` is how many there are."""

    gram: Float[Tensor, "*G D D"]
    colsum: Float[Tensor, "*G D"]
    total: Float[Tensor, "*G"]


Compare = Callable[[Rows, Rows], Tensor]
Side = TypeVar("Side", TextFeatures, VideoFeatures)


def unit_rows(x: Float[Tensor, "A L D"], mask: Bool[Tensor, "A L"]) -> Float[Tensor, "A L D"]:
    """Rows of length one; zeros where masked, whatever stands there."""
    return normalize(x.masked_fill(~mask.unsqueeze(-1), 0.0), dim=-1)


def moments(rows: Rows) -> Moments:
    """Moments of all rows of each leading index. Masked rows are zero and add nothing."""
    gram, colsum = em_moments(rows.rows.flatten(-3, -2))
    if rows.mask is not None:
        return Moments(gram, colsum, rows.mask.sum((-2, -1)).to(colsum.dtype))
    return Moments(gram, colsum, colsum.new_full(colsum.shape[:-1], float(rows.rows.shape[-3] * rows.rows.shape[-2])))


def refit(rows: Rows, emcl: EMCL, fitted: tuple[Tensor, Tensor]) -> Rows:
    """What a fitted map makes of rows, of length one again. One set of rows may go through several maps [*G, D, K]."""
    leading = fitted[0].shape[:-2]
    x = rows.rows.flatten(-3, -2)
    x = emcl.transform(x.expand(*leading, *x.shape[-2:]), *fitted)
    return rows._replace(rows=normalize(x, dim=-1).unflatten(-2, rows.rows.shape[-3:-1]))


def rows_similarity(
    text: Rows,
    video: Rows,
    compare: Compare,
    emcl: EMCL | None,
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "A B"]:
    """All captions with all clips; with `emcl`, after one EM over the rows of both.

    Args: add_up: sums a vector of D² + D + 1 numbers over processes with other captions and the same clips.
    """
    if emcl is None:
        return compare(text, video)
    fixed = emcl.gradient != "full"
    t, v = (moments(rows._replace(rows=rows.rows.detach()) if fixed else rows) for rows in (text, video))
    if add_up is not None:
        summed = add_up(torch.cat([t.gram.flatten(), t.colsum, t.total.view(1)]))
        t = Moments(summed[: t.gram.numel()].view_as(t.gram), summed[t.gram.numel() : -1], summed[-1])
    fitted = emcl.fit(t.gram + v.gram, t.colsum + v.colsum, t.total + v.total)
    return compare(refit(text, emcl, fitted), refit(video, emcl, fitted))


def rows_stream(
    text_side: tuple[TextFeatures, Callable[[TextFeatures], Rows]],
    video_side: tuple[VideoFeatures, Callable[[VideoFeatures], Rows]],
    compare: Compare,
    *,
    emcl: EMCL | None,
    em_block: int | None,
) -> SimilarityStream:
    """Rows of `rows_similarity` in bounded memory, without gradient; the maintained bases stay as they are.

    Args: em_block: one EM inside each tile of this many captions and clips, in their order. None: over everything.
    """
    (text, text_rows), (video, video_rows) = text_side, video_side
    if emcl is not None and em_block is not None:
        return _block_stream(text, text_rows, video, video_rows, compare, emcl, em_block)
    texts, clips = text.split(_per_tile(text)), video.split(_per_tile(video))
    gathering = 0 if emcl is None else 1

    def steps() -> Iterator[Tensor]:
        finish: Callable[[Rows], Rows] = _plain
        if emcl is not None:
            parts = [*(moments(text_rows(part)) for part in texts), *(moments(video_rows(part)) for part in clips)]
            gram, colsum, total = (sum(values[1:], values[0]) for values in zip(*parts, strict=True))
            fitted = emcl.fit(gram, colsum, total, update=False)
            finish = partial(refit, emcl=emcl, fitted=fitted)
            yield text.pooled.new_empty((0, len(video)))
        for part in texts:
            t = finish(text_rows(part))
            yield torch.cat([compare(t, finish(video_rows(clip))) for clip in clips], dim=1)

    return SimilarityStream(gathering + len(texts), _without_gradient(steps))


def _block_stream(
    text: TextFeatures,
    text_rows: Callable[[TextFeatures], Rows],
    video: VideoFeatures,
    video_rows: Callable[[VideoFeatures], Rows],
    compare: Compare,
    emcl: EMCL,
    em_block: int,
) -> SimilarityStream:
    """A step is one block of captions with all clips, several blocks of clips at a time."""
    if em_block < 1:
        raise ValueError(f"em_block is {em_block}; expected at least 1 caption and clip, or None for one EM over all")
    texts = text.split(em_block)
    width = text.pooled.shape[-1]
    rows_of_tile = em_block * (_rows_each(text) + _rows_each(video))
    together = max(1, TILE // (width * max(width, rows_of_tile)))

    def steps() -> Iterator[Tensor]:
        for part in texts:
            t = text_rows(part)
            of_text = moments(t)
            columns = []
            for group in video.split(em_block * together):
                for v in _as_blocks(video_rows(group), em_block):
                    of_video = moments(v)
                    fitted = emcl.fit(
                        of_text.gram + of_video.gram,
                        of_text.colsum + of_video.colsum,
                        of_text.total + of_video.total,
                        update=False,
                    )
                    tiles = compare(refit(t, emcl, fitted), refit(v, emcl, fitted))  # [blocks, texts, em_block]
                    columns.append(tiles.transpose(0, 1).flatten(1))
            yield torch.cat(columns, dim=1)

    return SimilarityStream(len(texts), _without_gradient(steps))


def _as_blocks(rows: Rows, em_block: int) -> Iterator[Rows]:
    """[B, L, ...] as whole blocks [n, em_block, L, ...], then the rest as one smaller block."""
    whole = len(rows.rows) // em_block * em_block
    for part, size in ((slice(0, whole), em_block), (slice(whole, None), len(rows.rows) - whole)):
        if len(rows.rows[part]):
            blocks = [None if value is None else value[part].unflatten(0, (-1, size)) for value in rows]
            yield Rows(rows.rows[part].unflatten(0, (-1, size)), *blocks[1:])


def _plain(rows: Rows) -> Rows:
    return rows


def _rows_each(side: TextFeatures | VideoFeatures) -> int:
    """Rows of each caption or clip, at most."""
    return (
        side.frames.shape[1] if isinstance(side, VideoFeatures) else 1 if side.tokens is None else side.tokens.shape[1]
    )


def _per_tile(side: Side) -> int:
    """Captions or clips in a tile: with as many of the other side, about TILE numbers in rows and in products."""
    rows, width = _rows_each(side), next(iter(side.tensors().values())).shape[-1]
    return max(1, min(TILE // (rows * width), int(TILE**0.5) // rows))


def _without_gradient(steps: Callable[[], Iterator[Tensor]]) -> Callable[[], Iterator[Tensor]]:
    """A generator suspended inside `torch.no_grad()` would leave it on for its caller; each step enters it anew."""

    def iterate() -> Iterator[Tensor]:
        iterator = steps()
        while True:
            with torch.no_grad():
                rows = next(iterator, None)
            if rows is None:
                return
            yield rows

    return iterate
