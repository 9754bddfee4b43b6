"""Similarities that compare rows of captions with rows of clips, and EM over those rows.

EM needs the rows' moments alone, and those of a set of captions and a set of clips add up. So one EM over everything is
a pass that gathers moments and a pass that compares; blocks are sums of a text block's and a video block's moments;
and of several processes, which have captions of their own and all clips, only the captions' moments are summed.
"""

import operator
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from emcl_kernels import EMCL, Moments, SimilarityStream, em_moments
from emcl_train.models.features import TextFeatures, VideoFeatures

TILE = 1 << 22
"""Numbers in the largest tensor of a tile of the evaluation; some such tensors live at a time."""

AddUp = Callable[[Tensor], Tensor]
"""Sums a vector over processes."""


class UnitRows(NamedTuple):
    """Rows of length one, L for each of A captions or clips, after any leading dimensions; zero where masked."""

    values: Float[Tensor, "*G A L D"]
    mask: Bool[Tensor, "*G A L"] | None = None
    """Which rows are no padding; None: all."""
    shares: Float[Tensor, "*G A L"] | None = None
    """The token weights or frame weights; None for heads that have none."""

    @property
    def flat(self) -> Float[Tensor, "*G N D"]:
        """All rows, whichever caption or clip they are of."""
        return self.values.flatten(-3, -2)

    def detach(self) -> "UnitRows":
        """The same rows as constants."""
        return self._replace(values=self.values.detach())


Compare = Callable[[UnitRows, UnitRows], Tensor]
"""Rows of captions and of clips to similarities [*G, A, B]."""
Refit = Callable[[UnitRows], UnitRows]
Side = TypeVar("Side", TextFeatures, VideoFeatures)


def unit_rows(x: Float[Tensor, "A L D"], mask: Bool[Tensor, "A L"]) -> Float[Tensor, "A L D"]:
    """Rows of length one; zeros where masked, whatever stands there."""
    return normalize(x.masked_fill(~mask.unsqueeze(-1), 0.0), dim=-1)


def moments(rows: UnitRows) -> Moments:
    """Moments of all rows of each leading index. Masked rows are zero and add nothing."""
    x = rows.flat
    gram, colsum = em_moments(x)

    if rows.mask is None:
        num_rows = colsum.new_full(colsum.shape[:-1], float(x.shape[-2]))
    else:
        num_rows = rows.mask.sum((-2, -1)).to(colsum.dtype)
    return Moments(gram, colsum, num_rows)


def fit(emcl: EMCL, found: Moments, *, update: bool = True) -> tuple[Tensor, Tensor]:
    """The map that EM finds for rows with these moments: responsibilities [*G, D, K] and scale [*G, K]."""
    num_rows = found.num_rows
    assert isinstance(num_rows, Tensor)  # as `moments` counts them
    return emcl.fit(found.gram, found.colsum, num_rows, update=update)


def refit(rows: UnitRows, emcl: EMCL, fitted: tuple[Tensor, Tensor], *, unit: bool = True) -> UnitRows:
    """What a fitted map makes of rows, with `unit` of length one again.

    One set of rows may go through several maps [*G, D, K].
    """
    responsibilities, scale = fitted
    leading = responsibilities.shape[:-2]
    x = rows.flat

    mapped = emcl.transform(x.expand(*leading, *x.shape[-2:]), responsibilities, scale)
    if unit:
        mapped = normalize(mapped, dim=-1)
    return rows._replace(values=mapped.unflatten(-2, rows.values.shape[-3:-1]))


def rows_similarity(
    text: UnitRows,
    video: UnitRows,
    compare: Compare,
    emcl: EMCL | None,
    add_up: AddUp | None = None,
    *,
    unit: bool = True,
) -> Float[Tensor, "A B"]:
    """All captions with all clips; with `emcl`, after one EM over the rows of both.

    Args:
        text: rows of the captions, of this process if there are several.
        video: rows of the clips, of all processes.
        compare: what the head does with rows.
        emcl: the layer, or None to compare the rows as they are.
        add_up: sums a vector of D² + D + 1 numbers over processes with other captions and the same clips.
        unit: bring rows to length one again after EM.

    Returns:
        Similarities [A, B].
    """
    if emcl is None:
        return compare(text, video)

    # Only with gradient "full" does a gradient pass through EM itself.
    fixed = emcl.gradient != "full"
    of_text = moments(text.detach() if fixed else text)
    of_video = moments(video.detach() if fixed else video)

    if add_up is not None:
        of_text = of_text.summed(add_up)
    fitted = fit(emcl, of_text + of_video)
    return compare(refit(text, emcl, fitted, unit=unit), refit(video, emcl, fitted, unit=unit))


def rows_stream(
    text_side: tuple[TextFeatures, Callable[[TextFeatures], UnitRows]],
    video_side: tuple[VideoFeatures, Callable[[VideoFeatures], UnitRows]],
    compare: Compare,
    *,
    emcl: EMCL | None,
    em_block: int | None,
    unit: bool = True,
    add_up: AddUp | None = None,
) -> SimilarityStream:
    """Rows of `rows_similarity` in bounded memory, without gradient; the maintained bases stay as they are.

    Args:
        text_side: features of the captions, and what makes rows of them.
        video_side: the same of the clips.
        compare: what the head does with rows.
        emcl: the layer, or None to compare the rows as they are.
        em_block: one EM inside each tile of this many captions and clips, in their order. None: over everything.
        unit: bring rows to length one again after EM.
        add_up: as of `rows_similarity`; blocks need none, if each process has whole blocks of captions.

    Returns:
        Steps that each give the similarities of some captions with all clips; with one EM over everything, the first
        step gathers the moments and gives no row.

    Raises:
        ValueError: em_block < 1.
    """
    text, text_rows = text_side
    video, video_rows = video_side
    if emcl is not None and em_block is not None:
        return _block_stream(text, text_rows, video, video_rows, compare, emcl, em_block, unit)

    texts = text.split(_per_tile(text))
    clips = video.split(_per_tile(video))

    def steps() -> Iterator[Tensor]:
        finish: Refit = _unchanged
        if emcl is not None:
            of_texts = reduce(operator.add, [moments(text_rows(part)) for part in texts])
            of_clips = [moments(video_rows(part)) for part in clips]
            if add_up is not None:
                of_texts = of_texts.summed(add_up)
            fitted = fit(emcl, reduce(operator.add, of_clips, of_texts), update=False)
            finish = partial(refit, emcl=emcl, fitted=fitted, unit=unit)
            yield text.caption.new_empty((0, len(video)))

        for part in texts:
            some_texts = finish(text_rows(part))
            columns = [compare(some_texts, finish(video_rows(clip))) for clip in clips]
            yield torch.cat(columns, dim=1)

    gathering = 0 if emcl is None else 1
    return SimilarityStream(gathering + len(texts), without_gradient(steps))


def added_to_stream(stream: SimilarityStream, finish: Callable[[Tensor, int], Tensor]) -> SimilarityStream:
    """A stream whose steps go through `finish`, which is told the index of their first row."""

    def steps() -> Iterator[Tensor]:
        first = 0
        for rows in stream:
            yield finish(rows, first)
            first += len(rows)

    return SimilarityStream(len(stream), without_gradient(steps))


def _block_stream(
    text: TextFeatures,
    text_rows: Callable[[TextFeatures], UnitRows],
    video: VideoFeatures,
    video_rows: Callable[[VideoFeatures], UnitRows],
    compare: Compare,
    emcl: EMCL,
    em_block: int,
    unit: bool,
) -> SimilarityStream:
    """A step is one block of captions with all clips, several blocks of clips at a time."""
    if em_block < 1:
        raise ValueError(f"em_block is {em_block}; expected at least 1 caption and clip, or None for one EM over all")

    # As many blocks at a time as keep their Gram matrices and their rows within a tile.
    width = text.caption.shape[-1]
    rows_of_block = em_block * (_rows_each(text) + _rows_each(video))
    blocks_together = max(1, TILE // (width * max(width, rows_of_block)))
    texts = text.split(em_block)

    def steps() -> Iterator[Tensor]:
        for part in texts:
            some_texts = text_rows(part)
            of_text = moments(some_texts)

            columns = []
            for group in video.split(em_block * blocks_together):
                for blocks in _as_blocks(video_rows(group), em_block):
                    fitted = fit(emcl, of_text + moments(blocks), update=False)
                    finish = partial(refit, emcl=emcl, fitted=fitted, unit=unit)
                    tiles = compare(finish(some_texts), finish(blocks))  # [blocks, A, block]
                    columns.append(tiles.transpose(0, 1).flatten(1))
            yield torch.cat(columns, dim=1)

    return SimilarityStream(len(texts), without_gradient(steps))


def _as_blocks(rows: UnitRows, em_block: int) -> Iterator[UnitRows]:
    """[B, L, ...] as whole blocks [n, em_block, L, ...], then the rest as one smaller block."""
    clips = len(rows.values)
    whole = clips // em_block * em_block
    if whole:
        yield _cut(rows, slice(0, whole), em_block)
    if whole < clips:
        yield _cut(rows, slice(whole, clips), clips - whole)


def _cut(rows: UnitRows, part: slice, size: int) -> UnitRows:
    """Some captions or clips in blocks of one size: [n, size, L, ...]."""
    cut = [None if value is None else value[part].unflatten(0, (-1, size)) for value in rows]
    return UnitRows(*cut)  # type: ignore[arg-type]


def _unchanged(rows: UnitRows) -> UnitRows:
    return rows


def _rows_each(side: TextFeatures | VideoFeatures) -> int:
    """Rows of each caption or clip, at most."""
    if isinstance(side, VideoFeatures):
        return side.frames.shape[1]
    return 1 if side.tokens is None else side.tokens.shape[1]


def _per_tile(side: Side) -> int:
    """Captions or clips in a tile: with as many of the other side, about TILE numbers in rows and in products."""
    width = side.frames.shape[-1] if isinstance(side, VideoFeatures) else side.caption.shape[-1]
    each = _rows_each(side)
    return max(1, min(TILE // (each * width), int(TILE**0.5) // each))


def without_gradient(steps: Callable[[], Iterator[Tensor]]) -> Callable[[], Iterator[Tensor]]:
    """A generator suspended inside `torch.no_grad()` would leave it on for its caller; each step enters it anew."""

    def iterate() -> Iterator[Tensor]:
        iterator = steps()
        while True:
            with torch.no_grad():
                similarities = next(iterator, None)
            if similarities is None:
                return
            yield similarities

    return iterate
