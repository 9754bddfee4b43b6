"""Gram matrix and column sums in Triton: half of the symmetric product, split over rows without atomics."""
# Kernels take pointers and scalars of Triton's, which have no Python types.
# mypy: allow-untyped-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from .common import (
    INTERPRETED,
    as_batch,
    dot_options,
    float32_precision,
    moments_backward_tiles,
    moments_tiles,
    on_device_of,
    result_like,
    row_splits,
    upper_tile,
)


def moments(x: Float[Tensor, "*G N D"]) -> tuple[Float[Tensor, "*G D D"], Float[Tensor, "*G D"]]:
    """gram = xᵀx and colsum = xᵀ1, both float32 (docs/math.md, §2).

    Only tiles on and above the diagonal are computed; the others are copies of them.

    Args:
        x: rows `[*, N, D]` in float32, bfloat16 or float16.

    Returns:
        gram `[*, D, D]` and colsum `[*, D]`.
    """
    *lead, rows, width = x.shape
    flat = as_batch(x, 2)
    batch = flat.shape[0]
    gram = flat.new_empty((batch, width, width), dtype=torch.float32)
    colsum = flat.new_empty((batch, width), dtype=torch.float32)
    if flat.numel() == 0:
        return gram.zero_().view(*lead, width, width), colsum.zero_().view(*lead, width)

    tiles = moments_tiles(rows, width, x.dtype)
    side = triton.cdiv(width, tiles.width)
    pairs = side * (side + 1) // 2
    splits, rows_per_split = row_splits(rows, pairs * batch, tiles.rows)
    if splits == 1:
        gram_parts = gram
        colsum_parts = colsum
    else:
        gram_parts = gram.new_empty(batch, splits, width, width)
        colsum_parts = gram.new_empty(batch, splits, width)

    # Each split of the rows has its own sums, which are added up in a fixed order afterwards.
    with on_device_of(x):
        moments_kernel[(pairs * splits * batch,)](
            flat, gram_parts, colsum_parts, rows, width, splits, rows_per_split,
            MIRROR=splits == 1, BLOCK_N=tiles.rows, BLOCK_D=tiles.width, **dot_options(x.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        if splits > 1:
            block = min(32, tiles.width)
            side = triton.cdiv(width, block)
            moments_sum_kernel[(side * (side + 1) // 2 * batch,)](
                gram_parts, colsum_parts, gram, colsum, width, splits, BLOCK_D=block, num_warps=4
            )

    return gram.view(*lead, width, width), colsum.view(*lead, width)


def moments_backward(
    d_gram: Float[Tensor, "*G D D"], d_colsum: Float[Tensor, "*G D"], x: Float[Tensor, "*G N D"]
) -> Float[Tensor, "*G N D"]:
    """d_x = x·(d_gram + d_gramᵀ) + 1·d_colsumᵀ, in the type of x."""
    rows, width = x.shape[-2:]
    flat = as_batch(x, 2)
    batch = flat.shape[0]
    d_x = result_like(flat)
    if flat.numel() == 0:
        return d_x.view(x.shape).to(x.dtype)

    d_gram = as_batch(d_gram.float(), 2)
    tiles = moments_backward_tiles(rows, width, x.dtype)
    # TF32 holds every bfloat16 and float16 exactly, and keeps the range of d_gram, which float16 does not.
    precision = float32_precision() if x.dtype == torch.float32 or INTERPRETED else "tf32"
    grid = (triton.cdiv(rows, tiles.rows) * triton.cdiv(width, tiles.width) * batch,)
    with on_device_of(x):
        moments_backward_kernel[grid](
            flat, (d_gram + d_gram.mT).contiguous(), as_batch(d_colsum.float(), 1), d_x, rows, width,
            BLOCK_N=tiles.rows, BLOCK_D=tiles.width, BLOCK_J=tiles.inner, PRECISION=precision,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return d_x.view(x.shape).to(x.dtype)


@triton.jit
def store_symmetric(
    out,  # [D, D]
    tile,  # [BLOCK_D, BLOCK_D] at (row, column), row <= column
    row,
    column,
    D,
    BLOCK_D: tl.constexpr,
    MIRROR: tl.constexpr,
):
    i = row * BLOCK_D + tl.arange(0, BLOCK_D)
    j = column * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (i < D)[:, None] & (j < D)[None, :]
    tl.store(out + i.to(tl.int64)[:, None] * D + j[None, :], tile, mask=inside)
    if MIRROR and row != column:
        mirrored = (j < D)[:, None] & (i < D)[None, :]
        tl.store(out + j.to(tl.int64)[:, None] * D + i[None, :], tl.trans(tile), mask=mirrored)


@triton.jit
def moments_kernel(
    x,  # [B, N, D]
    gram,  # [B, splits, D, D]  out, float32; below the diagonal only with MIRROR
    colsum,  # [B, splits, D]  out, float32
    N,
    D,
    splits,
    rows_per_split,
    MIRROR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    side = tl.cdiv(D, BLOCK_D)
    pairs = side * (side + 1) // 2
    row, column = upper_tile(tl.program_id(0) % pairs, side)
    part = (tl.program_id(0) // pairs).to(tl.int64)  # batch·splits + split
    x += part // splits * N * D
    i = row * BLOCK_D + tl.arange(0, BLOCK_D)
    j = column * BLOCK_D + tl.arange(0, BLOCK_D)

    product = tl.zeros((BLOCK_D, BLOCK_D), dtype=tl.float32)
    sums = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    first = (part % splits).to(tl.int32) * rows_per_split
    for start in range(first, tl.minimum(first + rows_per_split, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        pointers = x + n.to(tl.int64)[:, None] * D
        left = tl.load(pointers + i[None, :], mask=(n < N)[:, None] & (i < D)[None, :], other=0.0)
        right = tl.load(pointers + j[None, :], mask=(n < N)[:, None] & (j < D)[None, :], other=0.0)
        product = tl.dot(tl.trans(left.to(DOT_TYPE)), right.to(DOT_TYPE), product, input_precision=PRECISION)
        sums += left.to(tl.float32)

    store_symmetric(gram + part * D * D, product, row, column, D, BLOCK_D, MIRROR)
    if row == column:
        tl.store(colsum + part * D + i, tl.sum(sums, axis=0), mask=i < D)


@triton.jit
def moments_sum_kernel(
    gram_parts,  # [B, splits, D, D]  valid on and above the diagonal of tiles
    colsum_parts,  # [B, splits, D]
    gram,  # [B, D, D]  out
    colsum,  # [B, D]  out
    D,
    splits,
    BLOCK_D: tl.constexpr,
):
    side = tl.cdiv(D, BLOCK_D)
    pairs = side * (side + 1) // 2
    row, column = upper_tile(tl.program_id(0) % pairs, side)
    batch = (tl.program_id(0) // pairs).to(tl.int64)
    gram_parts += batch * splits * D * D
    colsum_parts += batch * splits * D
    i = row * BLOCK_D + tl.arange(0, BLOCK_D)
    j = column * BLOCK_D + tl.arange(0, BLOCK_D)

    total = tl.zeros((BLOCK_D, BLOCK_D), dtype=tl.float32)
    sums = tl.zeros((BLOCK_D,), dtype=tl.float32)
    offsets = i.to(tl.int64)[:, None] * D + j[None, :]
    for _ in range(0, splits):
        total += tl.load(gram_parts + offsets, mask=(i < D)[:, None] & (j < D)[None, :], other=0.0)
        sums += tl.load(colsum_parts + i, mask=i < D, other=0.0)
        offsets += tl.cast(D, tl.int64) * D  # a width of 1 is a number of Python, which has no `to`
        colsum_parts += D

    store_symmetric(gram + batch * D * D, total, row, column, D, BLOCK_D, True)
    if row == column:
        tl.store(colsum + batch * D + i, sums, mask=i < D)


@triton.jit
def moments_backward_kernel(
    x,  # [B, N, D]
    symmetric,  # [B, D, D]  d_gram + d_gramᵀ
    d_colsum,  # [B, D]
    d_x,  # [B, N, D]  out
    N,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    columns, row_tiles = tl.cdiv(D, BLOCK_D), tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) % (columns * row_tiles)
    batch = (tl.program_id(0) // (columns * row_tiles)).to(tl.int64)
    n = tile // columns * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tile % columns * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = batch * N * D + n.to(tl.int64)[:, None] * D
    symmetric += batch * D * D

    product = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, D, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        x_tile = tl.load(x + rows + j[None, :], mask=(n < N)[:, None] & (j < D)[None, :], other=0.0)
        right = tl.load(
            symmetric + j.to(tl.int64)[:, None] * D + d[None, :], mask=(j < D)[:, None] & (d < D)[None, :], other=0.0
        )
        product = tl.dot(x_tile.to(tl.float32), right, product, input_precision=PRECISION)

    product += tl.load(d_colsum + batch * D + d, mask=d < D, other=0.0)[None, :]
    out = product.to(d_x.dtype.element_ty)
    tl.store(d_x + rows + d[None, :], out, mask=(n < N)[:, None] & (d < D)[None, :])
