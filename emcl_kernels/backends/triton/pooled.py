"""The pooled similarity in Triton: one program holds the frame weights of a tile of texts for one video.

Every pass computes the inner products of texts and frames again, unless the moments kept them. Plain products of
matrices, and the small ones in the bases, are left to torch. The formulas are in docs/math.md (P), and in torch
operations in reference_pooled.py.
"""
# Kernels take pointers and scalars of Triton's, which have no Python types.
# mypy: allow-untyped-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.backends.cancelled import TRUSTED, mapped_rows
from emcl_kernels.backends.reference_pooled import TINY, correction

from .common import dot_options, on_device_of, pooled_tiles, small_product_precision, text_splits
from .moments import moments

SHORTEST = tl.constexpr(TINY)
LEAST_SHARE = tl.constexpr(TRUSTED)
MADE = tl.constexpr(16)  # channels of a row that are made at a time; more would take registers from the usual path


def pooled_moments(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    pooling_temperature: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """gram [D, D] and colsum [D] of the rows [pooled; text], and with keep the inner products [B, F, A]."""
    texts, width = text.shape
    videos, count = frames.shape[:2]
    tiles = pooled_tiles(texts, count, width, text.dtype, "moments")
    splits, texts_per_split = text_splits(texts, videos, tiles.texts)
    f = frames.float()
    kept = f.new_empty((videos, count, texts) if keep else 0)
    square_parts = f.new_empty(videos, splits, count, count)
    sum_parts = f.new_empty(videos, splits, count)
    with on_device_of(text):
        pooled_moments_kernel[(videos * splits,)](
            text.contiguous(), frames.contiguous(), frame_mask.float().contiguous(), kept, square_parts, sum_parts,
            texts, count, width, splits, texts_per_split, pooling_temperature, KEEP=keep,
            BLOCK_A=tiles.texts, BLOCK_F=tiles.frames, BLOCK_D=tiles.inner, **dot_options(text.dtype),
            SMALL=small_product_precision(text.dtype), num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    # The texts are rows too. The F×F weights of each video then add the pooled rows.
    gram, colsum = moments(text)
    weighted = square_parts.sum(1) @ f  # (PG) F×F per video
    gram = torch.addmm(gram, f.flatten(0, 1).mT, weighted.flatten(0, 1))
    return gram, torch.addmv(colsum, f.flatten(0, 1).mT, sum_parts.sum(1).flatten()), kept


def pooled_moments_backward(
    d_gram: Float[Tensor, "D D"],
    d_colsum: Float[Tensor, " D"],
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    pooling_temperature: float,
    keep: bool,
    needs_text: bool,
    needs_frames: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `pooled_moments` to text and frames (docs/math.md, PM); one that is not needed is empty."""
    texts, width = text.shape
    videos, count = frames.shape[:2]
    t = text.float()
    f = frames.float()
    d_colsum = d_colsum.float()
    twice = d_gram.float() + d_gram.float().mT
    f_twice = f @ twice

    tiles = pooled_tiles(texts, count, width, text.dtype, "moments_backward")
    splits, texts_per_split = text_splits(texts, videos, tiles.texts)
    d_dots = f.new_empty(videos, count, texts)
    square_parts = f.new_empty(videos, splits, count, count)
    sum_parts = f.new_empty(videos, splits, count)
    with on_device_of(text):
        pooled_moments_backward_kernel[(videos * splits,)](
            text.contiguous(), frames.contiguous(), frame_mask.float().contiguous(), kept.contiguous(),
            f_twice @ f.mT, f @ d_colsum, d_dots, square_parts, sum_parts,
            texts, count, width, splits, texts_per_split, pooling_temperature, KEPT=kept.numel() > 0,
            BLOCK_A=tiles.texts, BLOCK_F=tiles.frames, BLOCK_D=tiles.inner, **dot_options(text.dtype),
            SMALL=small_product_precision(text.dtype), num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    # Directly, as a part of the rows, and through the inner products.
    d_text = text.new_empty((text.shape[0], 0))
    d_frames = frames.new_empty((*frames.shape[:2], 0))
    if needs_text:
        d_text = t @ twice + d_colsum + d_dots.flatten(0, 1).mT @ f.flatten(0, 1)
    if needs_frames:
        d_frames = d_dots @ t + square_parts.sum(1) @ f_twice + sum_parts.sum(1).unsqueeze(-1) * d_colsum
    return d_text.to(text.dtype), d_frames.to(frames.dtype)


def pooled_cosine(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Float[Tensor, "D K"],
    scale: Float[Tensor, " K"],
    weight: float,
    pooling_temperature: float,
    linear: bool,
) -> tuple[Float[Tensor, "A B"], Float[Tensor, "A B"]]:
    """Cosine of the mapped texts with the mapped pooled frames, and the lengths of those, both `[A, B]`.

    `kept` is what the moments returned, or empty. `linear` matters for the gradient only.
    """
    texts, width = text.shape
    videos, count = frames.shape[:2]
    bases = scale.shape[0]
    f = frames.float()
    matrix = correction(responsibilities, scale, weight)
    t_r = text.float() @ responsibilities
    f_r = f @ responsibilities
    f_twice = f_r @ matrix
    plain = f @ f.mT
    products = plain + f_twice @ f_r.mT  # (PL) F×F per video

    tiles = pooled_tiles(texts, count, width, text.dtype, "cosine")
    cosine = f.new_empty(texts, videos)
    length = f.new_empty(texts, videos)
    with on_device_of(text):
        pooled_cosine_kernel[(videos * triton.cdiv(texts, tiles.texts),)](
            text.contiguous(), frames.contiguous(), frame_mask.float().contiguous(), kept.contiguous(),
            t_r, f_twice, products, plain, mapped_length(text, t_r, matrix, responsibilities, scale, weight),
            f_r, responsibilities.contiguous(), scale.contiguous(), cosine, length,
            texts, videos, count, width, bases, weight, pooling_temperature, KEPT=kept.numel() > 0,
            BLOCK_A=tiles.texts, BLOCK_F=tiles.frames, BLOCK_D=tiles.inner, **dot_options(text.dtype),
            SMALL=small_product_precision(text.dtype), num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return cosine, length


def pooled_cosine_backward(
    d_cosine: Float[Tensor, "A B"],
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    cosine: Float[Tensor, "A B"],
    length: Float[Tensor, "A B"],
    weight: float,
    pooling_temperature: float,
    linear: bool,
    needs_text: bool,
    needs_frames: bool,
    needs_more: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients d_text and d_frames, and the pulls on text·r and frames·r (docs/math.md, PB); empty if not needed."""
    texts, width = text.shape
    videos, count = frames.shape[:2]
    bases = scale.shape[0]
    t = text.float()
    f = frames.float()
    d_cosine = d_cosine.float().contiguous()

    # `once` is the correction that carries gradient.
    matrix = correction(responsibilities, scale, weight)
    once = matrix if linear else torch.diag(weight * scale)
    t_r = t @ responsibilities
    f_r = f @ responsibilities
    f_once = f_r @ once
    text_length = mapped_length(text, t_r, matrix, responsibilities, scale, weight)

    tiles = pooled_tiles(texts, count, width, text.dtype, "cosine_backward")
    splits, texts_per_split = text_splits(texts, videos, tiles.texts)
    through = f.new_empty(videos, count, texts)
    # Without bases, nothing needs the numerator's weights alone.
    numerator_weights = torch.empty_like(through) if bases else through
    frame_parts = f.new_empty(videos, splits, count, count)
    with on_device_of(text):
        pooled_cosine_backward_kernel[(videos * splits,)](
            text.contiguous(), frames.contiguous(), frame_mask.float().contiguous(), kept.contiguous(),
            t_r, f_once, f @ f.mT + f_once @ f_r.mT, d_cosine, cosine.contiguous(), length.contiguous(), text_length,
            through, numerator_weights, frame_parts,
            texts, videos, count, width, bases, splits, texts_per_split, pooling_temperature,
            KEPT=kept.numel() > 0, BASES=bases > 0,
            BLOCK_A=tiles.texts, BLOCK_F=tiles.frames, BLOCK_D=tiles.inner, **dot_options(text.dtype),
            SMALL=small_product_precision(text.dtype), num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    # To the squared lengths of the texts. A length at its lower bound is a constant.
    per_square = -(d_cosine * cosine).sum(1)
    d_text_square = torch.where(text_length > TINY, per_square / text_length.square(), 0).unsqueeze(-1)  # twice

    # To text: through the inner products, and with bases through its pull, that on text·r.
    d_text = text.new_empty((text.shape[0], 0))
    pull_text = t_r.new_empty((t_r.shape[0], 0))
    if needs_text or needs_more:
        pull_text = d_text_square * t_r
        if bases:
            pull_text += numerator_weights.flatten(0, 1).mT @ f_r.flatten(0, 1)
    if needs_text:
        d_text = through.flatten(0, 1).mT @ f.flatten(0, 1) + d_text_square * t
        if bases:
            d_text += pull_text @ once @ responsibilities.mT

    # To frames, likewise.
    d_frames = frames.new_empty((*frames.shape[:2], 0))
    pull_frames = f_r.new_empty((*f_r.shape[:2], 0))
    if needs_frames or needs_more:
        frame_weights = frame_parts.sum(1)
        pull_frames = frame_weights @ f_r
        if bases:
            pull_frames += numerator_weights @ t_r
    if needs_frames:
        d_frames = through @ t + frame_weights @ f
        if bases:
            d_frames += pull_frames @ once @ responsibilities.mT

    if not needs_more:
        pull_text = t_r.new_empty((t_r.shape[0], 0))
        pull_frames = f_r.new_empty((*f_r.shape[:2], 0))
    return d_text.to(text.dtype), d_frames.to(frames.dtype), pull_text, pull_frames


def mapped_length(
    text: Float[Tensor, "A D"],
    t_r: Float[Tensor, "A K"],
    matrix: Float[Tensor, "K K"],
    responsibilities: Float[Tensor, "D K"],
    scale: Float[Tensor, " K"],
    weight: float,
) -> Float[Tensor, " A"]:
    """Length of each mapped text, at least TINY."""
    # With a weight below zero text and reconstruction may cancel, and then the quadratic form is lost in rounding.
    if weight < 0:
        squares = mapped_rows(text.float(), responsibilities, scale, weight).square().sum(-1)
    else:
        squares = text.float().square().sum(-1) + ((t_r @ matrix) * t_r).sum(-1)
    return squares.clamp_min(TINY**2).sqrt()


@triton.jit
def text_frame_products(
    text,  # [A, D]
    frames,  # [F, D]  of one video
    kept,  # [F, A]  of that video: the same as the moments made it, with KEPT
    a,  # [BLOCK_A]
    f,  # [BLOCK_F]
    A,
    F,
    D,
    KEPT: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Every text of the tile times every frame, [BLOCK_A, BLOCK_F]; zero outside."""
    if KEPT:
        inside = (a < A)[:, None] & (f < F)[None, :]
        dots = tl.load(kept + f.to(tl.int64)[None, :] * A + a[:, None], mask=inside, other=0.0)
    else:
        dots = tl.zeros((BLOCK_A, BLOCK_F), dtype=tl.float32)
        text += a.to(tl.int64)[:, None] * D
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            t_tile = tl.load(text + d[None, :], mask=(a < A)[:, None] & (d < D)[None, :], other=0.0)
            f_tile = tl.load(frames + f[:, None] * D + d[None, :], mask=(f < F)[:, None] & (d < D)[None, :], other=0.0)
            dots = tl.dot(t_tile.to(DOT_TYPE), tl.trans(f_tile.to(DOT_TYPE)), dots, input_precision=PRECISION)
    return dots


@triton.jit
def softmax_over_frames(dots, f, F, temperature):
    """(PW) before the mask; frames that are padding get none."""
    logits = tl.where((f < F)[None, :], dots / temperature, float("-inf"))
    soft = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return soft / tl.sum(soft, axis=1)[:, None]


@triton.jit
def add_products_in_bases(
    dots,  # [BLOCK_A, BLOCK_F]
    t_r,  # [A, K]
    f_c,  # [F, K]  of one video
    a,
    f,
    A,
    F,
    K,
    BLOCK_K: tl.constexpr,
    SMALL: tl.constexpr,
):
    """The correction of rank K on the products (PC)."""
    t_r += a.to(tl.int64)[:, None] * K
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        t_tile = tl.load(t_r + k[None, :], mask=(a < A)[:, None] & (k < K)[None, :], other=0.0)
        f_tile = tl.load(f_c + f[:, None] * K + k[None, :], mask=(f < F)[:, None] & (k < K)[None, :], other=0.0)
        dots = tl.dot(t_tile, tl.trans(f_tile), dots, input_precision=SMALL)
    return dots


@triton.jit
def load_square(square, f, F, BLOCK_F: tl.constexpr):
    """[F, F] of one video; zero outside."""
    g = tl.arange(0, BLOCK_F)
    return tl.load(square + f[:, None] * F + g[None, :], mask=(f < F)[:, None] & (g < F)[None, :], other=0.0)


@triton.jit
def store_square(square, tile, f, F, BLOCK_F: tl.constexpr):
    g = tl.arange(0, BLOCK_F)
    tl.store(square + f[:, None] * F + g[None, :], tile, mask=(f < F)[:, None] & (g < F)[None, :])


@triton.jit
def pooled_moments_kernel(
    text,  # [A, D]
    frames,  # [B, F, D]
    frame_mask,  # [B, F]
    kept,  # [B, F, A]  out with KEEP: the products
    square_parts,  # [B, splits, F, F]  out: Σ w·wᵀ over the texts of the split
    sum_parts,  # [B, splits, F]  out: Σ w
    A,
    F,
    D,
    splits,
    texts_per_split,
    temperature,
    KEEP: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)  # video·splits + split
    video = part // splits
    frames += video * F * D
    kept += video * F * A
    f = tl.arange(0, BLOCK_F)
    valid = tl.load(frame_mask + video * F + f, mask=f < F, other=0.0)

    squares = tl.zeros((BLOCK_F, BLOCK_F), dtype=tl.float32)
    sums = tl.zeros((BLOCK_F,), dtype=tl.float32)
    first = (part % splits).to(tl.int32) * texts_per_split
    for start in range(first, tl.minimum(first + texts_per_split, A), BLOCK_A):
        a = start + tl.arange(0, BLOCK_A)
        dots = text_frame_products(
            text, frames, kept, a, f, A, F, D, False, BLOCK_A, BLOCK_F, BLOCK_D, DOT_TYPE, PRECISION
        )
        weights = softmax_over_frames(dots, f, F, temperature) * valid[None, :]
        weights = tl.where((a < A)[:, None], weights, 0.0)
        if KEEP:
            inside = (a < A)[:, None] & (f < F)[None, :]
            tl.store(kept + f.to(tl.int64)[None, :] * A + a[:, None], dots, mask=inside)
        squares = tl.dot(tl.trans(weights), weights, squares, input_precision=SMALL)
        sums += tl.sum(weights, axis=0)

    store_square(square_parts + part * F * F, squares, f, F, BLOCK_F)
    tl.store(sum_parts + part * F + f, sums, mask=f < F)


@triton.jit
def pooled_moments_backward_kernel(
    text,  # [A, D]
    frames,  # [B, F, D]
    frame_mask,  # [B, F]
    kept,  # [B, F, A]  with KEPT: the products
    pulls,  # [B, F, F]  symmetric: f·(d_gram + d_gramᵀ)·fᵀ
    shifts,  # [B, F]  f·d_colsum
    d_dots,  # [B, F, A]  out: gradient to the products
    square_parts,  # [B, splits, F, F]  out: Σ w·wᵀ over the texts of the split
    sum_parts,  # [B, splits, F]  out: Σ w
    A,
    F,
    D,
    splits,
    texts_per_split,
    temperature,
    KEPT: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)  # video·splits + split
    video = part // splits
    frames += video * F * D
    kept += video * F * A
    d_dots += video * F * A
    f = tl.arange(0, BLOCK_F)
    valid = tl.load(frame_mask + video * F + f, mask=f < F, other=0.0)
    shift = tl.load(shifts + video * F + f, mask=f < F, other=0.0)

    squares = tl.zeros((BLOCK_F, BLOCK_F), dtype=tl.float32)
    sums = tl.zeros((BLOCK_F,), dtype=tl.float32)
    first = (part % splits).to(tl.int32) * texts_per_split
    for start in range(first, tl.minimum(first + texts_per_split, A), BLOCK_A):
        a = start + tl.arange(0, BLOCK_A)
        dots = text_frame_products(
            text, frames, kept, a, f, A, F, D, KEPT, BLOCK_A, BLOCK_F, BLOCK_D, DOT_TYPE, PRECISION
        )
        soft = softmax_over_frames(dots, f, F, temperature)
        weights = tl.where((a < A)[:, None], soft * valid[None, :], 0.0)

        pull = load_square(pulls + video * F * F, f, F, BLOCK_F)
        d_weights = tl.dot(weights, pull, tl.broadcast_to(shift[None, :], (BLOCK_A, BLOCK_F)), input_precision=SMALL)
        d_soft = d_weights * valid[None, :]
        change = soft * (d_soft - tl.sum(d_soft * soft, axis=1)[:, None]) / temperature
        inside = (a < A)[:, None] & (f < F)[None, :]
        tl.store(d_dots + f.to(tl.int64)[None, :] * A + a[:, None], change, mask=inside)
        # Last: any earlier, this product's operands would lie in registers beside all of the above.
        squares = tl.dot(tl.trans(weights), weights, squares, input_precision=SMALL)
        sums += tl.sum(weights, axis=0)

    store_square(square_parts + part * F * F, squares, f, F, BLOCK_F)
    tl.store(sum_parts + part * F + f, sums, mask=f < F)


@triton.jit
def made_rows(
    weights,  # [BLOCK_A, BLOCK_F]
    text,  # [A, D]
    frames,  # [F, D]  of one video
    t_r,  # [A, K]  text·r
    f_r,  # [F, K]  frames·r of that video
    responsibilities,  # [D, K]
    scale,  # [K]
    a,
    f,
    A,
    F,
    D,
    K,
    weight,
    BLOCK_A: tl.constexpr,
):
    """Squares of the mapped pooled rows of one video, and their products with the mapped texts, both [BLOCK_A].

    The rows are made a few channels at a time. This is rare, so it is written to take few registers.
    """
    squares = tl.zeros((BLOCK_A,), dtype=tl.float32)
    products = tl.zeros((BLOCK_A,), dtype=tl.float32)
    text += a.to(tl.int64)[:, None] * D
    t_r += a.to(tl.int64) * K
    for start in range(0, D, MADE):
        d = start + tl.arange(0, MADE)
        t = tl.load(text + d[None, :], mask=(a < A)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        row = tl.zeros((BLOCK_A, MADE), dtype=tl.float32)
        for i in range(F):
            share = tl.sum(tl.where((f == i)[None, :], weights, 0.0), axis=1)
            row += share[:, None] * tl.load(frames + i * D + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        for k in range(K):
            basis = tl.load(responsibilities + d * K + k, mask=d < D, other=0.0) * weight * tl.load(scale + k)
            share = tl.sum(weights * tl.load(f_r + f * K + k, mask=f < F, other=0.0)[None, :], axis=1)
            row += share[:, None] * basis[None, :]
            t += tl.load(t_r + k, mask=a < A, other=0.0)[:, None] * basis[None, :]
        squares += tl.sum(row * row, axis=1)
        products += tl.sum(row * t, axis=1)
    return squares, products


@triton.jit
def pooled_cosine_kernel(
    text,  # [A, D]
    frames,  # [B, F, D]
    frame_mask,  # [B, F]
    kept,  # [B, F, A]  with KEPT: the products
    t_r,  # [A, K]  text·r
    f_twice,  # [B, F, K]  frames·r·C
    products,  # [B, F, F]  symmetric: inner products of mapped frames
    plain,  # [B, F, F]  the same before the map
    text_length,  # [A]
    f_r,  # [B, F, K]  frames·r
    responsibilities,  # [D, K]
    scale,  # [K]
    cosine,  # [A, B]  out
    length,  # [A, B]  out
    A,
    B,
    F,
    D,
    K,
    weight,
    temperature,
    KEPT: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL: tl.constexpr,
):
    tiles = tl.cdiv(A, BLOCK_A)
    video = (tl.program_id(0) // tiles).to(tl.int64)
    a = tl.program_id(0) % tiles * BLOCK_A + tl.arange(0, BLOCK_A)
    f = tl.arange(0, BLOCK_F)
    kept += video * F * A
    frames += video * F * D
    dots = text_frame_products(text, frames, kept, a, f, A, F, D, KEPT, BLOCK_A, BLOCK_F, BLOCK_D, DOT_TYPE, PRECISION)
    valid = tl.load(frame_mask + video * F + f, mask=f < F, other=0.0)
    weights = softmax_over_frames(dots, f, F, temperature) * valid[None, :]

    dots = add_products_in_bases(dots, t_r, f_twice + video * F * K, a, f, A, F, K, 16, SMALL)
    numerator = tl.sum(weights * dots, axis=1)  # (PN)
    product = load_square(products + video * F * F, f, F, BLOCK_F)
    squares = tl.sum(weights * tl.dot(weights, product, input_precision=SMALL), axis=1)  # (PL)

    # Where frames cancel, a square is lost in rounding, and the row is made. Before the mask the weights of a video add
    # up to one, so that of most rows one look at the longest frame says that nothing is lost.
    diagonal = video * F * F + f * (F + 1)
    frame_squares = tl.load(products + diagonal, mask=f < F, other=0.0)
    frame_squares = tl.maximum(frame_squares, tl.load(plain + diagonal, mask=f < F, other=0.0))
    least = LEAST_SHARE * tl.max(frame_squares * valid * valid, axis=0)
    trusted = (squares - least >= 0) | (a >= A)
    if tl.min(trusted.to(tl.int32), axis=0) == 0:
        reach = tl.sum(tl.abs(weights) * tl.sqrt(frame_squares)[None, :], axis=1)
        trusted = (squares - LEAST_SHARE * reach * reach >= 0) | (a >= A)
        if tl.min(trusted.to(tl.int32), axis=0) == 0:
            made_squares, made_products = made_rows(
                weights, text, frames, t_r, f_r + video * F * K, responsibilities, scale, a, f, A, F, D, K, weight,
                BLOCK_A,
            )  # fmt: skip
            squares = tl.where(trusted, squares, made_squares)
            numerator = tl.where(trusted, numerator, made_products)

    # Of a square that overflows there is no length.
    pooled_length = tl.where(squares > SHORTEST * SHORTEST, tl.sqrt(squares), SHORTEST)
    pooled_length = tl.where(squares < float("inf"), pooled_length, float("nan"))
    lengths = tl.load(text_length + a, mask=a < A, other=1.0)
    compared = numerator / (lengths * pooled_length)
    compared = tl.where(lengths < float("inf"), compared, float("nan"))

    # Rounding may put a cosine outside of [-1, 1], as little as that is.
    compared = tl.where(compared > 1.0, 1.0, compared)
    compared = tl.where(compared < -1.0, -1.0, compared)
    out = a.to(tl.int64) * B + video
    tl.store(cosine + out, compared, mask=a < A)
    tl.store(length + out, pooled_length, mask=a < A)


@triton.jit
def pooled_cosine_backward_kernel(
    text,  # [A, D]
    frames,  # [B, F, D]
    frame_mask,  # [B, F]
    kept,  # [B, F, A]  with KEPT: the products
    t_r,  # [A, K]  text·r
    f_once,  # [B, F, K]  frames·r times the correction that carries gradient
    products,  # [B, F, F]  symmetric: frames times frames with that correction
    d_cosine,  # [A, B]
    cosine,  # [A, B]
    length,  # [A, B]
    text_length,  # [A]
    through,  # [B, F, A]  out: the numerator's weights plus the gradient to the products
    numerator_weights,  # [B, F, A]  out with BASES
    frame_parts,  # [B, splits, F, F]  out: Σ 2·m·w·wᵀ over the texts of the split, m the gradient to the square
    A,
    B,
    F,
    D,
    K,
    splits,
    texts_per_split,
    temperature,
    KEPT: tl.constexpr,
    BASES: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)  # video·splits + split
    video = part // splits
    frames += video * F * D
    kept += video * F * A
    f = tl.arange(0, BLOCK_F)
    valid = tl.load(frame_mask + video * F + f, mask=f < F, other=0.0)

    frame_weights = tl.zeros((BLOCK_F, BLOCK_F), dtype=tl.float32)
    first = (part % splits).to(tl.int32) * texts_per_split
    for start in range(first, tl.minimum(first + texts_per_split, A), BLOCK_A):
        a = start + tl.arange(0, BLOCK_A)
        dots = text_frame_products(
            text, frames, kept, a, f, A, F, D, KEPT, BLOCK_A, BLOCK_F, BLOCK_D, DOT_TYPE, PRECISION
        )
        soft = softmax_over_frames(dots, f, F, temperature)
        weights = soft * valid[None, :]

        pair = a.to(tl.int64) * B + video
        change = tl.load(d_cosine + pair, mask=a < A, other=0.0)
        pooled_length = tl.load(length + pair, mask=a < A, other=1.0)
        d_numerator = change / (tl.load(text_length + a, mask=a < A, other=1.0) * pooled_length)
        # a length at its lower bound is a constant
        d_square = -change * tl.load(cosine + pair, mask=a < A, other=0.0) / (pooled_length * pooled_length)  # twice
        d_square = tl.where(pooled_length > SHORTEST, d_square, 0.0)

        dots = add_products_in_bases(dots, t_r, f_once + video * F * K, a, f, A, F, K, 16, SMALL)
        product = load_square(products + video * F * F, f, F, BLOCK_F)
        scaled = d_square[:, None] * weights
        d_weights = tl.dot(scaled, product, d_numerator[:, None] * dots, input_precision=SMALL)
        d_soft = d_weights * valid[None, :]
        d_dots = soft * (d_soft - tl.sum(d_soft * soft, axis=1)[:, None]) / temperature

        inside = (a < A)[:, None] & (f < F)[None, :]
        out = (video * F + f)[None, :] * A + a[:, None]
        tl.store(through + out, d_numerator[:, None] * weights + d_dots, mask=inside)
        if BASES:
            tl.store(numerator_weights + out, d_numerator[:, None] * weights, mask=inside)
        # Last: any earlier, this product's operands would lie in registers beside all of the above.
        frame_weights = tl.dot(tl.trans(scaled), weights, frame_weights, input_precision=SMALL)

    store_square(frame_parts + part * F * F, frame_weights, f, F, BLOCK_F)
