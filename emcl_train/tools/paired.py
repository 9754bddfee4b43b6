"""What refining does to retrieval where pairs are known: ranks before and after, and their table.

Ranks are computed in blocks of queries, so that memory holds the rows of both sides and one block of scores.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from emcl_train.errors import UserError, of_input
from emcl_train.evaluation.bootstrap import paired_bootstrap
from emcl_train.evaluation.metrics import chance, ranks, retrieval_metrics
from emcl_train.reading.arrays import open_npy
from emcl_train.tools.arrays import Embeddings, as_float_tensor

BLOCK = 1 << 24
"""Scores at a time: 64 MiB in float32."""
CHUNK = 1 << 12
"""Rows of a bank that are compared at a time."""
LOOKED_AT = 2000
"""Queries that are looked for in a bank."""
SAME = 1 - 1e-5
"""Cosine of a row with itself where one of them was rounded to half precision."""
COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
RECALLS = (1, 5, 10)
DIRECTIONS = {"T→V": "text_to_video", "V→T": "video_to_text"}


def video_of_each_text(sides: Mapping[str, Embeddings], paired: bool, pairs: Path | None) -> Tensor | None:
    """The video's row for each text, or None where pairs are not known.

    Raises:
        UserError: the pairs do not fit the rows, or cannot be read.
    """
    texts, videos = (len(sides[side].rows) for side in ("text", "video"))
    if paired and pairs is not None:
        raise UserError("--paired and --pairs were both given; --paired means that row i belongs to row i")
    if not paired and pairs is None:
        return None

    if pairs is None:
        if texts != videos:
            raise UserError(
                f"--paired needs as many texts as videos, got {texts} and {videos}; name each text's video with --pairs"
            )
        return torch.arange(texts)

    if not pairs.is_file():
        raise UserError(f"there is no file {pairs}; --pairs takes a .npy, or text with one number a line")
    try:
        found = np.array(open_npy(pairs)) if pairs.suffix == ".npy" else np.loadtxt(pairs, dtype=np.int64, ndmin=1)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise UserError(f"{pairs} holds no list of row numbers ({error}); write one number a line, from 0") from error
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != texts:
        raise UserError(
            f"{pairs} has {found.dtype} numbers of shape {list(found.shape)}; expected {texts} whole numbers, for each "
            "text the row of its video"
        )
    if found.min() < 0 or found.max() >= videos:
        raise UserError(f"{pairs} names rows {found.min()} to {found.max()}; expected rows of {videos} videos, from 0")
    return torch.from_numpy(found.astype(np.int64))


def query_ranks(
    sides: Mapping[str, Embeddings], caption_clip: Int64[Tensor, "Q"], *, by_cosine: bool = True
) -> dict[str, Tensor]:
    """Ranks of both directions.

    Texts rank all videos. A video without a text has nothing to find, so only the others are queries.

    Args:
        sides: "text" [Q, D] and "video" [G, D].
        caption_clip: the video's row for each text.
        by_cosine: by inner product otherwise, as of rows that were refined with a bank. Where that bank corrects
            videos, its number moves all scores of a video that searches alike, so that those ranks are without it.

    Raises:
        UserError: a row is no number.
    """
    text, video = (as_float_tensor(sides[side].rows) for side in ("text", "video"))
    if by_cosine:
        text, video = normalize(text, dim=-1), normalize(video, dim=-1)
    dtype = torch.promote_types(text.dtype, video.dtype)
    text, video = text.to(dtype), video.to(dtype)
    with of_input(" and ".join(str(of.path) for of in sides.values())):
        return {
            "text_to_video": text_to_video_ranks(text, video, caption_clip),
            "video_to_text": video_to_text_ranks(text, video, caption_clip),
        }


def rows_among(rows: Any, bank: Any) -> tuple[int, int]:
    """How many rows are rows of a bank as well, whatever their lengths and dtypes.

    Args:
        rows: [N, D], a tensor or an array.
        bank: [B, D], likewise.

    Returns:
        How many are, and of how many: of more than `LOOKED_AT` rows so many are looked at, evenly spaced.
    """
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).round().astype(np.int64))
    looked_at = normalize(as_float_tensor(rows[places]).float(), dim=-1)
    nearest = looked_at.new_full((len(looked_at),), -1.0)
    for start in range(0, len(bank), CHUNK):
        part = normalize(as_float_tensor(bank[start : start + CHUNK]).float(), dim=-1)
        nearest = torch.maximum(nearest, (looked_at @ part.T).amax(1))
    return int((nearest > SAME).sum()), len(looked_at)


def text_to_video_ranks(
    text: Float[Tensor, "Q D"], video: Float[Tensor, "G D"], caption_clip: Int64[Tensor, "Q"], block: int = BLOCK
) -> Float[Tensor, "Q"]:
    """`metrics.ranks` of `text @ video.T`, of which at most `block` scores, or one row, are there at a time."""
    found = [ranks(text[part] @ video.T, caption_clip[part]) for part in _parts(len(text), len(video), block)]
    return torch.cat(found)


def video_to_text_ranks(
    text: Float[Tensor, "Q D"], video: Float[Tensor, "G D"], caption_clip: Int64[Tensor, "Q"], block: int = BLOCK
) -> Float[Tensor, "C"]:
    """`metrics.video_to_text_ranks_by_similarity` of the C videos that have a text, in blocks in the same way."""
    with_text, owner = caption_clip.unique(return_inverse=True)
    found = []
    for part in _parts(len(with_text), len(text), block):
        similarity = video[with_text[part]] @ text.T  # [B, Q]
        best = similarity.new_full((len(similarity), len(with_text)), float("-inf"))
        best.scatter_reduce_(1, owner.expand(len(similarity), -1), similarity, reduce="amax")
        found.append(ranks(best, torch.arange(part.start, part.stop)))
    return torch.cat(found)


def _parts(queries: int, gallery: int, block: int) -> Iterator[slice]:
    """Slices of the queries."""
    size = max(1, block // max(1, gallery))
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


def results_of(
    before: dict[str, Tensor], after: dict[str, Tensor], refiner: object, sides: Mapping[str, Embeddings]
) -> dict[str, Any]:
    """What goes into results.json."""
    difference: dict[str, dict[str, Any]] = {}
    for direction in DIRECTIONS.values():
        difference[direction] = {}
        for k in RECALLS:
            # Of each query: 100 points if its right item is among the first k.
            points = [100.0 * (of[direction] <= k).double().numpy() for of in (before, after)]
            difference[direction][f"R@{k}"] = asdict(paired_bootstrap(*points))

    return {
        "refiner": repr(refiner),
        "texts": len(sides["text"].rows),
        "videos": len(sides["video"].rows),
        "videos_with_text": len(before["video_to_text"]),
        "before": {direction: retrieval_metrics(found) for direction, found in before.items()},
        "after": {direction: retrieval_metrics(found) for direction, found in after.items()},
        "difference": difference,
    }


def table_of(results: dict[str, Any]) -> Table:
    title = f"{results['texts']} texts, {results['videos']} videos"
    if results["videos_with_text"] < results["videos"]:
        title += f"; V→T of the {results['videos_with_text']} with a text"
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 0),
        pad_edge=False,
    )
    table.add_column("", min_width=6, no_wrap=True)
    for name in DIRECTIONS:
        for column in COLUMNS:
            table.add_column(f"{name}\n{column}", justify="right", no_wrap=True, min_width=6)
    for label in ("before", "after"):
        cells = [f"{results[label][key][column]:.1f}" for key in DIRECTIONS.values() for column in COLUMNS]
        table.add_row(label, *cells, style="bold" if label == "after" else None)

    # Texts look for one of all videos, and videos with a text for one set of texts among those.
    galleries = {"text_to_video": results["videos"], "video_to_text": results["videos_with_text"]}
    cells = [f"{chance(galleries[key])[column]:.1f}" for key in DIRECTIONS.values() for column in COLUMNS]
    table.add_row("chance", *cells, style="dim")
    return table
