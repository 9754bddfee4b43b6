"""The EM loop on a Gram matrix in Triton: one launch per iteration, forward and backward.

Column sums run over all channels, which several programs hold. Instead of a barrier, every program forms the sums it
needs itself. That costs little, because p is cheap next to gram·p, and division by a column sum commutes with the
product: gram·(p/c) = (gram·p)/c.
"""
# Kernels take pointers and scalars of Triton's, which have no Python types.
# mypy: allow-untyped-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from .common import FitTiles, as_batch, fit_tiles, float32_precision, on_device_of, sum_tiles


def fit(
    gram: Float[Tensor, "*G D D"], logits: Float[Tensor, "*G D K"], num_iters: int, temperature: float, eps: float
) -> tuple[Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """Responsibilities and scale after num_iters of GE and GM (docs/math.md), in float32."""
    *lead, width, num_bases = logits.shape
    matrices = as_batch(gram, 2)
    start = as_batch(logits, 2)
    batch = start.shape[0]
    responsibilities = torch.empty_like(start)
    scale = start.new_empty(batch, num_bases)
    if start.numel() > 0:
        # Two of each: an iteration reads what the one before it has written.
        tiles = fit_tiles(batch, width, num_bases, accumulators=1)
        squares = start.new_empty(2, batch, triton.cdiv(width, tiles.rows), num_bases)
        product = start.new_empty(2, batch, width, num_bases)
        column_sums = start.new_empty(batch, num_bases)

        with on_device_of(gram):
            for t in range(num_iters):
                fit_step(
                    matrices, start if t == 0 else product[(t - 1) % 2], squares[(t - 1) % 2],
                    product[t % 2], responsibilities, squares[t % 2], column_sums, temperature, eps, tiles,
                    first=t == 0, keep=t == num_iters - 1,
                )  # fmt: skip
            fit_scale_kernel[(batch,)](
                squares[(num_iters - 1) % 2], scale, squares.shape[2], num_bases, eps, BLOCK_K=tiles.bases, num_warps=1
            )

    return responsibilities.view(*lead, width, num_bases), scale.view(*lead, num_bases)


def fit_backward(
    d_responsibilities: Float[Tensor, "*G D K"],
    d_scale: Float[Tensor, "*G K"],
    gram: Float[Tensor, "*G D D"],
    logits: Float[Tensor, "*G D K"],
    num_iters: int,
    temperature: float,
    eps: float,
) -> tuple[Float[Tensor, "*G D D"], Float[Tensor, "*G D K"]]:
    """d_gram and d_logits of `fit`, through every iteration; exact for a gram that is not symmetric, too."""
    width, num_bases = logits.shape[-2:]
    matrices = as_batch(gram, 2)
    start = as_batch(logits, 2)
    batch = start.shape[0]
    if start.numel() == 0:
        return torch.zeros_like(gram), torch.zeros_like(logits)

    # What the forward iterations leave for the backward ones.
    tiles = fit_tiles(batch, width, num_bases, accumulators=2)
    row_tiles = triton.cdiv(width, tiles.rows)
    # [B, D, T, K]: the gradient of gram, the sum of d_product_t·r_tᵀ over iterations, is then one product over T·K.
    history = (batch, width, num_iters, num_bases)
    responsibilities = start.new_empty(history)
    product = start.new_empty(history)
    d_product = start.new_empty(history)
    squares = start.new_empty(num_iters, batch, row_tiles, num_bases)
    column_sums = start.new_empty(num_iters, batch, num_bases)

    # Two of each: an iteration reads what the one after it has written.
    d_r = start.new_empty(2, batch, width, num_bases)
    inner = start.new_empty(2, batch, row_tiles, num_bases)
    d_r[num_iters % 2] = as_batch(d_responsibilities, 2)
    d_scale = as_batch(d_scale, 1)
    d_logits = torch.empty_like(start)

    with on_device_of(gram):
        for t in range(num_iters):
            fit_step(
                matrices, start if t == 0 else product[:, :, t - 1], squares[t - 1],
                product[:, :, t], responsibilities[:, :, t], squares[t], column_sums[t], temperature, eps, tiles,
                first=t == 0, keep=True,
            )  # fmt: skip

        for t in reversed(range(num_iters)):
            last = t == num_iters - 1
            now = t % 2
            after = (t + 1) % 2
            following = t if last else t + 1
            fit_backward_step_kernel[(row_tiles * batch,)](
                matrices, responsibilities[:, :, t], product[:, :, t], squares[t],
                responsibilities[:, :, following], column_sums[following], d_r[after], inner[after], d_scale,
                d_product[:, :, t], d_r[now], inner[now], width, num_bases, num_iters * num_bases, 1 / temperature, eps,
                LAST=last, BLOCK_I=tiles.rows, BLOCK_J=tiles.inner, BLOCK_K=tiles.bases, PRECISION=float32_precision(),
                num_warps=tiles.num_warps, num_stages=tiles.num_stages,
            )  # fmt: skip

        fit_backward_start_kernel[(row_tiles * batch,)](
            responsibilities, column_sums[0], d_r[0], inner[0], d_logits,
            width, num_bases, num_iters * num_bases, 1 / temperature, eps,
            BLOCK_I=tiles.rows, BLOCK_K=tiles.bases, num_warps=tiles.num_warps,
        )  # fmt: skip

    d_gram = torch.matmul(d_product.flatten(2), responsibilities.flatten(2).mT)
    return d_gram.view(gram.shape), d_logits.view(logits.shape)


def fit_step(
    gram: Float[Tensor, "B D D"],
    previous: Float[Tensor, "B D K"],
    previous_squares: Float[Tensor, "B tiles K"],
    product: Float[Tensor, "B D K"],
    responsibilities: Float[Tensor, "B D K"],
    squares: Float[Tensor, "B tiles K"],
    column_sums: Float[Tensor, "B K"],
    temperature: float,
    eps: float,
    tiles: FitTiles,
    *,
    first: bool,
    keep: bool,
) -> None:
    """Launch one iteration.

    Args:
        gram: the matrices.
        previous: the logits for the first iteration, else gram·r of the iteration before, not yet scaled.
        previous_squares: partial sums of the squared lengths of the iteration before; not read for the first.
        product: out, gram·r.
        responsibilities: out if `keep`.
        squares: out, partial sums of the squared lengths.
        column_sums: out, sums over the channels before the division.
        temperature: of the softmax.
        eps: added to what is divided by.
        tiles: launch parameters.
        first: whether this is the first iteration.
        keep: whether to write the responsibilities.
    """
    batch, width, num_bases = previous.shape
    fit_step_kernel[(triton.cdiv(width, tiles.rows) * batch,)](
        gram, previous, previous_squares, product, responsibilities, squares, column_sums,
        width, num_bases, previous.stride(1), product.stride(1), responsibilities.stride(1), 1 / temperature, eps,
        FIRST=first, KEEP=keep, BLOCK_I=tiles.rows, BLOCK_J=tiles.inner, BLOCK_K=tiles.bases,
        PRECISION=float32_precision(), num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


@triton.jit
def length_of(squares, tiles, K, BLOCK_K: tl.constexpr):
    """√diag(rᵀ·gram·r), [BLOCK_K]."""
    total = sum_tiles(squares, tiles, K, BLOCK_K)
    # Rounding can leave a basis of no length slightly below zero; its root would be NaN. A NaN itself stays, and a
    # length that overflows is NaN too: its scale would be zero, and what is zero looks like a fit.
    length = tl.sqrt_rn(tl.where(total < 0, 0.0, total))
    return length + (length - length)


@triton.jit
def load_rows(
    matrix,  # [D, K] with rows `stride` apart
    d,
    D,
    K,
    stride,
    BLOCK_K: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K)
    inside = (d < D)[:, None] & (k < K)[None, :]
    return tl.load(matrix + d.to(tl.int64)[:, None] * stride + k[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(matrix, value, d, D, K, stride, BLOCK_K: tl.constexpr):
    k = tl.arange(0, BLOCK_K)
    inside = (d < D)[:, None] & (k < K)[None, :]
    tl.store(matrix + d.to(tl.int64)[:, None] * stride + k[None, :], value, mask=inside)


@triton.jit
def softmax_rows(previous, factor, d, D, K, stride, BLOCK_K: tl.constexpr):
    """softmax_k(previous·factor), zero outside of [D, K]."""
    k = tl.arange(0, BLOCK_K)
    z = load_rows(previous, d, D, K, stride, BLOCK_K) * factor[None, :]
    # The selection keeps the product from being fused with the difference below, where it would keep more digits than
    # the largest of them has: from 1e9 on nothing would be left of the difference but rounding.
    z = tl.where((k < K)[None, :], z, float("-inf"))
    p = tl.exp(z - tl.max(z, axis=1)[:, None])
    return tl.where((d < D)[:, None], p / tl.sum(p, axis=1)[:, None], 0.0)


@triton.jit
def logits_gradient(d_r, r, inner, denominator, inverse_temperature):
    """Through r = softmax(logits / temperature) / denominator. inner: Σ_d d_r*r over all channels."""
    through_sum = r * (d_r - inner[None, :])
    p = r * denominator[None, :]
    return (through_sum - p * tl.sum(through_sum, axis=1)[:, None]) * inverse_temperature


@triton.jit
def fit_step_kernel(
    gram,  # [B, D, D]
    previous,  # [B, D, K]  rows previous_stride apart: the logits with FIRST, else gram·r of the iteration before
    previous_squares,  # [B, tiles, K]  partial sums of r*(gram·r) of the iteration before; not read with FIRST
    product,  # [B, D, K]  out: gram·r, rows product_stride apart
    responsibilities,  # [B, D, K]  out with KEEP, rows responsibilities_stride apart
    squares,  # [B, tiles, K]  out: partial sums of r*(gram·r)
    column_sums,  # [B, K]  out: Σ_d p
    D,
    K,
    previous_stride,
    product_stride,
    responsibilities_stride,
    inverse_temperature,
    eps,
    FIRST: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(D, BLOCK_I)
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    i, k = tile * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_K)
    gram += batch * D * D
    previous += batch * D * previous_stride

    factor = tl.full((BLOCK_K,), 1.0, dtype=tl.float32) * inverse_temperature
    if not FIRST:
        factor /= eps + length_of(previous_squares + batch * tiles * K, tiles, K, BLOCK_K)
    # Of a basis that has no channel it may overflow, and what it multiplies is zero; NaN stays NaN.
    factor = tl.where(factor > 3.4028234e38, 3.4028234e38, factor)
    g = tl.zeros((BLOCK_I, BLOCK_K), dtype=tl.float32)
    sums = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for start in range(0, D, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        p = softmax_rows(previous, factor, j, D, K, previous_stride, BLOCK_K)
        sums += tl.sum(p, axis=0)
        gram_tile = tl.load(
            gram + i.to(tl.int64)[:, None] * D + j[None, :], mask=(i < D)[:, None] & (j < D)[None, :], other=0.0
        )
        g = tl.dot(gram_tile, p, g, input_precision=PRECISION)

    denominator = tl.where(k < K, eps + sums, 1.0)
    g /= denominator[None, :]
    r = softmax_rows(previous, factor, i, D, K, previous_stride, BLOCK_K) / denominator[None, :]
    store_rows(product + batch * D * product_stride, g, i, D, K, product_stride, BLOCK_K)
    if KEEP:
        store_rows(responsibilities + batch * D * responsibilities_stride, r, i, D, K, responsibilities_stride, BLOCK_K)
    tl.store(squares + (batch * tiles + tile) * K + k, tl.sum(r * g, axis=0), mask=k < K)
    if tile == 0:
        tl.store(column_sums + batch * K + k, sums, mask=k < K)


@triton.jit
def fit_scale_kernel(
    squares,  # [B, tiles, K]
    scale,  # [B, K]  out
    tiles,
    K,
    eps,
    BLOCK_K: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    length = length_of(squares + batch * tiles * K, tiles, K, BLOCK_K)
    tl.store(scale + batch * K + k, 1 / (eps + length), mask=k < K)


@triton.jit
def fit_backward_step_kernel(
    gram,  # [B, D, D]
    responsibilities,  # [B, D, K]  of this iteration, rows `stride` apart
    product,  # [B, D, K]  gram·r of this iteration, rows `stride` apart
    squares,  # [B, tiles, K]  of this iteration
    next_responsibilities,  # [B, D, K]  of the iteration after, rows `stride` apart; not read with LAST
    next_column_sums,  # [B, K]  not read with LAST
    next_d_r,  # [B, D, K]  gradient of its responsibilities; with LAST the gradient of the result
    next_inner,  # [B, tiles, K]  partial sums of next_d_r*next_responsibilities; not read with LAST
    d_scale,  # [B, K]  read with LAST only
    d_product,  # [B, D, K]  out: gradient of gram·r as gram sees it, rows `stride` apart
    d_r,  # [B, D, K]  out
    inner,  # [B, tiles, K]  out: partial sums of d_r*r
    D,
    K,
    stride,
    inverse_temperature,
    eps,
    LAST: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(D, BLOCK_I)
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    i, k = tile * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_K)
    gram += batch * D * D
    responsibilities += batch * D * stride
    product += batch * D * stride
    next_responsibilities += batch * D * stride
    next_d_r += batch * D * K

    if LAST:
        ds = tl.load(d_scale + batch * K + k, mask=k < K, other=0.0)
    else:
        ds = tl.zeros((BLOCK_K,), dtype=tl.float32)
        next_total = sum_tiles(next_inner + batch * tiles * K, tiles, K, BLOCK_K)
        denominator = eps + tl.load(next_column_sums + batch * K + k, mask=k < K, other=1.0)
    through_logits = tl.zeros((BLOCK_I, BLOCK_K), dtype=tl.float32)  # gramᵀ·d_logits
    through_length = tl.zeros((BLOCK_I, BLOCK_K), dtype=tl.float32)  # gramᵀ·r, which is g only if gram is symmetric
    for start in range(0, D, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        gram_tile = tl.load(
            gram + j.to(tl.int64)[:, None] * D + i[None, :], mask=(j < D)[:, None] & (i < D)[None, :], other=0.0
        )
        r = load_rows(responsibilities, j, D, K, stride, BLOCK_K)
        through_length = tl.dot(tl.trans(gram_tile), r, through_length, input_precision=PRECISION)
        if not LAST:
            d_logits = logits_gradient(
                load_rows(next_d_r, j, D, K, K, BLOCK_K),
                load_rows(next_responsibilities, j, D, K, stride, BLOCK_K),
                next_total, denominator, inverse_temperature,
            )  # fmt: skip
            ds += tl.sum(d_logits * load_rows(product, j, D, K, stride, BLOCK_K), axis=0)
            through_logits = tl.dot(tl.trans(gram_tile), d_logits, through_logits, input_precision=PRECISION)

    length = length_of(squares + batch * tiles * K, tiles, K, BLOCK_K)
    scale = 1 / (eps + length)
    d_square = tl.where(length == 0, 0.0, -0.5 * ds * scale * scale / tl.where(length == 0, 1.0, length))
    r = load_rows(responsibilities, i, D, K, stride, BLOCK_K)
    g = load_rows(product, i, D, K, stride, BLOCK_K)
    dg = d_square[None, :] * r
    dr = d_square[None, :] * (g + through_length)
    if LAST:
        dr += load_rows(next_d_r, i, D, K, K, BLOCK_K)
    else:
        dg += scale[None, :] * logits_gradient(
            load_rows(next_d_r, i, D, K, K, BLOCK_K),
            load_rows(next_responsibilities, i, D, K, stride, BLOCK_K),
            next_total, denominator, inverse_temperature,
        )  # fmt: skip
        dr += scale[None, :] * through_logits
    store_rows(d_product + batch * D * stride, dg, i, D, K, stride, BLOCK_K)
    store_rows(d_r + batch * D * K, dr, i, D, K, K, BLOCK_K)
    tl.store(inner + (batch * tiles + tile) * K + k, tl.sum(dr * r, axis=0), mask=k < K)


@triton.jit
def fit_backward_start_kernel(
    responsibilities,  # [B, D, K]  of the first iteration, rows `stride` apart
    column_sums,  # [B, K]
    d_r,  # [B, D, K]
    inner,  # [B, tiles, K]
    d_logits,  # [B, D, K]  out
    D,
    K,
    stride,
    inverse_temperature,
    eps,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles = tl.cdiv(D, BLOCK_I)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * BLOCK_I + tl.arange(0, BLOCK_I)
    k = tl.arange(0, BLOCK_K)
    gradient = logits_gradient(
        load_rows(d_r + batch * D * K, i, D, K, K, BLOCK_K),
        load_rows(responsibilities + batch * D * stride, i, D, K, stride, BLOCK_K),
        sum_tiles(inner + batch * tiles * K, tiles, K, BLOCK_K),
        eps + tl.load(column_sums + batch * K + k, mask=k < K, other=1.0),
        inverse_temperature,
    )
    store_rows(d_logits + batch * D * K, gradient, i, D, K, K, BLOCK_K)
