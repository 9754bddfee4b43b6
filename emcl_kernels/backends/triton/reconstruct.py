"""x + weight·(x·(r*scale))·rᵀ in Triton, forward and backward.

The map r·diag(scale)·rᵀ is symmetric, so d_x is the same map applied to d_y, and scale can be applied after the product
with r: r, whose columns sum to one, then fits float16 whatever the scale is.
"""
# Kernels take pointers and scalars of Triton's, which have no Python types.
# mypy: allow-untyped-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from .common import as_batch, dot_options, on_device_of, reconstruct_tiles, result_like, row_splits


def reconstruct(
    x: Float[Tensor, "*G N D"], responsibilities: Float[Tensor, "*G D K"], scale: Float[Tensor, "*G K"], weight: float
) -> Float[Tensor, "*G N D"]:
    """y = x + weight·(x·(r*scale))·rᵀ in the type of x (docs/math.md, GR)."""
    (rows, width), num_bases = x.shape[-2:], responsibilities.shape[-1]
    flat = as_batch(x, 2)
    y = result_like(flat)
    if flat.numel() > 0:
        batch = flat.shape[0]
        tiles = reconstruct_tiles(batch, rows, width, num_bases, x.dtype, accumulators=1)
        with on_device_of(x):
            reconstruct_kernel[(triton.cdiv(rows, tiles.rows) * batch,)](
                flat, as_batch(responsibilities, 2), as_batch(scale, 1), y, rows, width, num_bases, weight,
                BLOCK_N=tiles.rows, BLOCK_D=tiles.width, BLOCK_K=tiles.bases, **dot_options(x.dtype),
                num_warps=tiles.num_warps, num_stages=tiles.num_stages,
            )  # fmt: skip
    return y.view(x.shape).to(x.dtype)


def reconstruct_backward(
    d_y: Float[Tensor, "*G N D"],
    x: Float[Tensor, "*G N D"],
    responsibilities: Float[Tensor, "*G D K"],
    scale: Float[Tensor, "*G K"],
    weight: float,
) -> tuple[Float[Tensor, "*G N D"], Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """d_x in the type of x; d_responsibilities and d_scale in float32.

    With h = x·r and u = d_y·r: d_r = weight·scale*(d_yᵀ·h + xᵀ·u) and d_scale = weight·Σ_n h*u.
    """
    (rows, width), num_bases = x.shape[-2:], responsibilities.shape[-1]
    flat, d_flat, r, s = as_batch(x, 2), as_batch(d_y.to(x.dtype), 2), as_batch(responsibilities, 2), as_batch(scale, 1)
    batch = flat.shape[0]
    d_x = result_like(flat)
    if flat.numel() == 0:
        return d_x.view(x.shape).to(x.dtype), torch.zeros_like(responsibilities), torch.zeros_like(scale)

    tiles = reconstruct_tiles(batch, rows, width, num_bases, x.dtype, accumulators=2)
    row_tiles, column_tiles = triton.cdiv(rows, tiles.rows), triton.cdiv(width, tiles.width)
    splits, rows_per_split = row_splits(rows, column_tiles * batch, 32)
    x_r, d_y_r = (d_x.new_empty(batch, rows, num_bases) for _ in range(2))
    d_scale_parts = s.new_empty(batch, row_tiles, num_bases)
    d_r_parts = r.new_empty(batch, splits, width, num_bases)
    options = dot_options(x.dtype) | {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    with on_device_of(x):
        reconstruct_backward_kernel[(row_tiles * batch,)](
            d_flat, flat, r, s, d_x, x_r, d_y_r, d_scale_parts, rows, width, num_bases, weight,
            BLOCK_N=tiles.rows, BLOCK_D=tiles.width, BLOCK_K=tiles.bases, **options,
        )  # fmt: skip
        responsibilities_gradient_kernel[(column_tiles * splits * batch,)](
            d_flat, flat, x_r, d_y_r, d_r_parts, rows, width, num_bases, splits, rows_per_split,
            BLOCK_N=32, BLOCK_D=tiles.width, BLOCK_K=tiles.bases, **options,
        )  # fmt: skip
    d_scale = d_scale_parts.sum(1) * weight
    d_r = d_r_parts.sum(1) * (weight * s)[:, None, :]
    return d_x.view(x.shape).to(x.dtype), d_r.view(responsibilities.shape), d_scale.view(scale.shape)


@triton.jit
def reconstruct_kernel(
    x,  # [B, N, D]
    responsibilities,  # [B, D, K]
    scale,  # [B, K]
    y,  # [B, N, D]  out
    N,
    D,
    K,
    weight,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_N)
    batch = (tl.program_id(0) // row_tiles).to(tl.int64)
    n = tl.program_id(0) % row_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = batch * N * D + n.to(tl.int64)[:, None] * D
    responsibilities += batch * D * K

    bases = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x_tile = tl.load(x + rows + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        r = tl.load(responsibilities + d[:, None] * K + k[None, :], mask=(d < D)[:, None] & (k < K)[None, :], other=0.0)
        bases = tl.dot(x_tile.to(DOT_TYPE), r.to(DOT_TYPE), bases, input_precision=PRECISION)
    bases = (bases * tl.load(scale + batch * K + k, mask=k < K, other=0.0)[None, :]).to(DOT_TYPE)

    # The tile of x comes from the cache here: BLOCK_N rows are what one program reads.
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (n < N)[:, None] & (d < D)[None, :]
        x_tile = tl.load(x + rows + d[None, :], mask=inside, other=0.0).to(tl.float32)
        r = tl.load(responsibilities + d[:, None] * K + k[None, :], mask=(d < D)[:, None] & (k < K)[None, :], other=0.0)
        change = tl.dot(bases, tl.trans(r.to(DOT_TYPE)), input_precision=PRECISION)
        tl.store(y + rows + d[None, :], (x_tile + weight * change).to(y.dtype.element_ty), mask=inside)


@triton.jit
def reconstruct_backward_kernel(
    d_y,  # [B, N, D]
    x,  # [B, N, D]
    responsibilities,  # [B, D, K]
    scale,  # [B, K]
    d_x,  # [B, N, D]  out
    x_r,  # [B, N, K]  out: x·r
    d_y_r,  # [B, N, K]  out: d_y·r
    d_scale,  # [B, row tiles, K]  out: partial sums of x_r*d_y_r
    N,
    D,
    K,
    weight,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_tiles = tl.cdiv(N, BLOCK_N)
    batch = (tl.program_id(0) // row_tiles).to(tl.int64)
    n = tl.program_id(0) % row_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = batch * N * D + n.to(tl.int64)[:, None] * D
    responsibilities += batch * D * K

    h = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    u = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (n < N)[:, None] & (d < D)[None, :]
        r = tl.load(
            responsibilities + d[:, None] * K + k[None, :], mask=(d < D)[:, None] & (k < K)[None, :], other=0.0
        ).to(DOT_TYPE)
        x_tile = tl.load(x + rows + d[None, :], mask=inside, other=0.0)
        h = tl.dot(x_tile.to(DOT_TYPE), r, h, input_precision=PRECISION)
        d_y_tile = tl.load(d_y + rows + d[None, :], mask=inside, other=0.0)
        u = tl.dot(d_y_tile.to(DOT_TYPE), r, u, input_precision=PRECISION)

    inside_k = (n < N)[:, None] & (k < K)[None, :]
    rows_k = batch * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(x_r + rows_k, h.to(x_r.dtype.element_ty), mask=inside_k)
    tl.store(d_y_r + rows_k, u.to(d_y_r.dtype.element_ty), mask=inside_k)
    tl.store(d_scale + tl.program_id(0).to(tl.int64) * K + k, tl.sum(h * u, axis=0), mask=k < K)
    bases = (u * tl.load(scale + batch * K + k, mask=k < K, other=0.0)[None, :]).to(DOT_TYPE)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (n < N)[:, None] & (d < D)[None, :]
        d_y_tile = tl.load(d_y + rows + d[None, :], mask=inside, other=0.0).to(tl.float32)
        r = tl.load(responsibilities + d[:, None] * K + k[None, :], mask=(d < D)[:, None] & (k < K)[None, :], other=0.0)
        change = tl.dot(bases, tl.trans(r.to(DOT_TYPE)), input_precision=PRECISION)
        tl.store(d_x + rows + d[None, :], (d_y_tile + weight * change).to(d_x.dtype.element_ty), mask=inside)


@triton.jit
def responsibilities_gradient_kernel(
    d_y,  # [B, N, D]
    x,  # [B, N, D]
    x_r,  # [B, N, K]
    d_y_r,  # [B, N, K]
    d_r,  # [B, splits, D, K]  out: d_yᵀ·x_r + xᵀ·d_y_r over the rows of the split
    N,
    D,
    K,
    splits,
    rows_per_split,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    columns = tl.cdiv(D, BLOCK_D)
    part = (tl.program_id(0) // columns).to(tl.int64)  # batch·splits + split
    batch = part // splits
    d = tl.program_id(0) % columns * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)

    total = tl.zeros((BLOCK_D, BLOCK_K), dtype=tl.float32)
    first = (part % splits).to(tl.int32) * rows_per_split
    for start in range(first, tl.minimum(first + rows_per_split, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        row = batch * N + n
        wide, inside = row[:, None] * D + d[None, :], (n < N)[:, None] & (d < D)[None, :]
        thin, inside_k = row[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
        d_y_tile = tl.load(d_y + wide, mask=inside, other=0.0).to(DOT_TYPE)
        h = tl.load(x_r + thin, mask=inside_k, other=0.0).to(DOT_TYPE)
        total = tl.dot(tl.trans(d_y_tile), h, total, input_precision=PRECISION)
        x_tile = tl.load(x + wide, mask=inside, other=0.0).to(DOT_TYPE)
        u = tl.load(d_y_r + thin, mask=inside_k, other=0.0).to(DOT_TYPE)
        total = tl.dot(tl.trans(x_tile), u, total, input_precision=PRECISION)

    inside = (d < D)[:, None] & (k < K)[None, :]
    tl.store(d_r + part * D * K + d[:, None] * K + k[None, :], total, mask=inside)
