"""Pooled rows that cancel: where the length from the quadratic form is lost in rounding, the row itself is made.

wᵀ·(f·fᵀ)·w is as wrong as the rounding of its terms, which are as large as (Σ w·‖f‖)². The row Σ w·f is only as wrong
as the rounding of Σ w·‖f‖. So the form is as good as the row, unless frames cancel; then the two are worlds apart.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TRUSTED = 2.0**-7
"""Least share of (Σ w·‖f‖)² that a squared length from the form is trusted at: it is then off by 2⁷ roundings."""

AT_ONCE = 1 << 24
"""Numbers of rows that are made at a time (64 MiB in float32)."""


def is_lost(squares: Tensor, reach: Tensor) -> Tensor:
    """Whether a squared length is lost in rounding, or no number.

    Args:
        squares: of pooled rows, by the quadratic form.
        reach: Σ w·‖f‖ of the same rows, the length if nothing cancelled.
    """
    # As a difference, so that a length whose square overflows is lost, too.
    return ~(squares - TRUSTED * reach.square() >= 0)


def videos_with(lost: Bool[Tensor, "B A"]) -> Int[Tensor, " N"]:
    """Indices of the videos with a lost pair.

    While a CUDA graph is captured nobody may look, so all of them; and on the device "meta", which has no values. Ops
    are opaque to torch.compile: it sees this only where a benchmark compiles a backend's functions, on rows that do not
    cancel.
    """
    if torch.compiler.is_compiling():
        return torch.arange(0, device=lost.device)
    if lost.is_meta:
        return torch.arange(lost.shape[0], device=lost.device)
    if lost.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.arange(lost.shape[0], device=lost.device)
    return lost.any(1).nonzero().flatten()


def lengths_of_frames(
    plain: Float[Tensor, "B F F"], mapped: Float[Tensor, "B F F"], frame_mask: Float[Tensor, "B F"]
) -> Float[Tensor, "B F"]:
    """Length of each frame times its mask; that before the map if the map shortens it.

    Args:
        plain: inner products of the frames of a video.
        mapped: those of the mapped frames.
        frame_mask: numbers that multiply the weights.
    """
    squares = torch.maximum(plain.diagonal(dim1=-2, dim2=-1), mapped.diagonal(dim1=-2, dim2=-1))
    return squares.sqrt() * frame_mask.abs()


def mapped_rows(
    rows: Float[Tensor, "*G D"], responsibilities: Float[Tensor, "D K"], scale: Float[Tensor, " K"], weight: float
) -> Float[Tensor, "*G D"]:
    """Rows with their weighted reconstruction added."""
    return rows + (rows @ (responsibilities * (weight * scale))) @ responsibilities.mT


def remake(
    cosine: Float[Tensor, "B A"],
    length: Float[Tensor, "B A"],
    lost: Bool[Tensor, "B A"],
    videos: Int[Tensor, " N"],
    weights: Float[Tensor, "B F A"],
    frames: Float[Tensor, "B F D"],
    mapped_text: Float[Tensor, "A D"],
    text_length: Float[Tensor, " A"],
    responsibilities: Float[Tensor, "D K"],
    scale: Float[Tensor, " K"],
    weight: float,
    shortest: float,
) -> None:
    """Write cosines and lengths of the lost pairs anew, from the rows of some videos.

    Args:
        cosine: in and out.
        length: of the mapped pooled rows, in and out.
        lost: which pairs are written.
        videos: indices of those that are looked at.
        weights: of the frames.
        frames: in the dtype of sums, or narrower.
        mapped_text: texts through the map.
        text_length: their lengths.
        responsibilities: of the map.
        scale: of the map.
        weight: of the reconstruction.
        shortest: length that is divided by if a row is shorter.
    """
    texts, width = mapped_text.shape
    at_once = max(1, AT_ONCE // (texts * width))
    for some in videos.split(at_once):
        rows = weights[some].mT @ frames[some].to(weights.dtype)
        rows = mapped_rows(rows, responsibilities, scale, weight)
        made = torch.linalg.vector_norm(rows, dim=-1).clamp_min(shortest)
        product = (rows * mapped_text).sum(-1)
        compared = torch.where(made.isfinite(), product / (text_length * made), torch.nan)

        length[some] = torch.where(lost[some], made, length[some])
        cosine[some] = torch.where(lost[some], compared, cosine[some])
