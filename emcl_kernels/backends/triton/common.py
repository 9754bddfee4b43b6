"""What every Triton kernel file shares: launch parameters (tiles, splits, dot precision) and small device functions.

Sizes are chosen from the shape alone, never by timing, so that the same inputs give the same bits in every process.
"""
# Kernels take pointers and scalars of Triton's, which have no Python types.
# mypy: allow-untyped-defs, allow-untyped-calls

from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from emcl_kernels.backends import gpu

# Two programs for each multiprocessor of a large GPU; a constant, so that splits do not depend on the device.
TARGET_PROGRAMS = 264
# A program that reads fewer rows than this costs more in its partial sums than it saves.
MIN_ROWS_PER_SPLIT = 256


@triton.jit
def upper_tile(index, tiles):
    """Row and column of the index-th tile on or above the diagonal, counted row by row."""
    row = index * 0
    while index >= tiles - row:
        index -= tiles - row
        row += 1
    return row, row + index


@triton.jit
def sum_tiles(
    partials,  # [tiles, K]  one partial sum per tile of rows
    tiles,
    K,
    BLOCK_K: tl.constexpr,
):
    """Sum over the tiles, [BLOCK_K], in an order that depends on their number only."""
    tile, k = tl.arange(0, 32), tl.arange(0, BLOCK_K)
    total = tl.zeros((32, BLOCK_K), dtype=tl.float32)
    for start in range(0, tiles, 32):
        inside = (start + tile < tiles)[:, None] & (k < K)[None, :]
        total += tl.load(partials + (start + tile)[:, None] * K + k[None, :], mask=inside, other=0.0)
    return tl.sum(total, axis=0)


# True where triton was imported with TRITON_INTERPRET=1: kernels then run in numpy and take CPU tensors.
INTERPRETED = not isinstance(upper_tile, triton.JITFunction)
# The interpreter's time depends on the number of tiles, not on their size. Two along each dimension still have a seam.
COARSE_TILES = INTERPRETED


class MomentsTiles(NamedTuple):
    """Gram tile [width, width], summed over `rows` rows at a time."""

    width: int
    rows: int
    num_warps: int
    num_stages: int


class ProductTiles(NamedTuple):
    """Output tile [rows, width] of x·(d_gram + d_gramᵀ), summed over `inner` channels at a time."""

    rows: int
    width: int
    inner: int
    num_warps: int
    num_stages: int


class FitTiles(NamedTuple):
    """`rows` channels of gram·r per program, summed over `inner` channels at a time; K padded to `bases`."""

    rows: int
    inner: int
    bases: int
    num_warps: int
    num_stages: int


class ReconstructTiles(NamedTuple):
    """`rows` rows of x per program, `width` channels at a time; K padded to `bases`."""

    rows: int
    width: int
    bases: int
    num_warps: int
    num_stages: int


class PooledTiles(NamedTuple):
    """`texts` texts per program and video, `inner` channels at a time; F padded to `frames`."""

    texts: int
    frames: int
    inner: int
    num_warps: int
    num_stages: int


def padded(size: int) -> int:
    """Smallest power of two that holds size, at least 16, the least that tl.dot takes."""
    return max(16, triton.next_power_of_2(size))


def half(size: int) -> int:
    return min(512, max(16, padded(size) // 2))


def warps(width: int, num_bases: int = 16) -> int:
    """8 if 4 would spill: many bases, or rows that are not aligned and so are loaded value by value."""
    return 8 if width % 16 or num_bases % 16 or num_bases > 32 else 4


def moments_tiles(rows: int, width: int, dtype: torch.dtype) -> MomentsTiles:
    if COARSE_TILES:
        return MomentsTiles(half(width), half(rows), num_warps=4, num_stages=1)
    if dtype == torch.float32:
        block = min(64, padded(width))
        return MomentsTiles(block, 32, 8 if block == 64 else warps(width), num_stages=2)
    block = min(128, padded(width))
    return MomentsTiles(block, 64, 8 if block == 128 else warps(width), num_stages=3)


def moments_backward_tiles(rows: int, width: int, dtype: torch.dtype) -> ProductTiles:
    if COARSE_TILES:
        return ProductTiles(half(rows), half(width), half(width), num_warps=4, num_stages=1)
    if dtype == torch.float32:
        return ProductTiles(64, min(64, padded(width)), 16, warps(width), num_stages=2)
    return ProductTiles(128, min(64, padded(width)), 32, warps(width), num_stages=2)


def fit_tiles(batch: int, width: int, num_bases: int, *, accumulators: int) -> FitTiles:
    """Tiles of the EM loop; a program sums `accumulators` [rows, bases] tiles at once, 1 forward and 2 backward."""
    bases = padded(num_bases)
    if COARSE_TILES:
        return FitTiles(half(width), half(width), bases, num_warps=4, num_stages=1)
    # One matrix alone cannot fill the GPU: thin tiles then give more programs, each with less to wait for.
    rows = 16 if batch * triton.cdiv(width, 32) < TARGET_PROGRAMS or bases > 64 else 32
    # Exact float32 products hold their operands in registers, and these sizes are the largest that do not spill.
    inner = 32 if bases * accumulators <= 32 else 16
    return FitTiles(rows, inner, bases, num_warps=8 if bases * accumulators > 64 else 4, num_stages=2)


def reconstruct_tiles(
    batch: int, rows: int, width: int, num_bases: int, dtype: torch.dtype, *, accumulators: int
) -> ReconstructTiles:
    """Tiles of the mapped rows; a program sums `accumulators` [rows, bases] tiles at once, 1 forward and 2 backward."""
    bases = padded(num_bases)
    if COARSE_TILES:
        return ReconstructTiles(half(rows), half(width), bases, num_warps=4, num_stages=1)
    tall = 64 if bases * accumulators <= (32 if dtype == torch.float32 else 128) else 32
    few_rows = batch * triton.cdiv(rows, tall) < TARGET_PROGRAMS
    block_width = min(32 if dtype == torch.float32 else 64, padded(width))
    return ReconstructTiles(16 if few_rows else tall, block_width, bases, warps(width, num_bases), num_stages=2)


Pooled = Literal["moments", "moments_backward", "cosine", "cosine_backward"]
# Texts of a tile and warps of a program in float32, of 64 frames: what spills under no version of Triton.
WIDEST_POOLED: dict[Pooled, tuple[int, int]] = {
    "moments": (32, 8),
    "moments_backward": (32, 16),
    "cosine": (16, 8),
    "cosine_backward": (32, 8),
}


def pooled_tiles(texts: int, frames: int, width: int, dtype: torch.dtype, kernel: Pooled) -> PooledTiles:
    block = padded(frames)
    inner = min(64, padded(width))
    if COARSE_TILES:
        return PooledTiles(half(texts), block, half(width), num_warps=4, num_stages=1)

    if block == 64:
        block_texts, num_warps = WIDEST_POOLED[kernel] if dtype == torch.float32 else (32, 8)
        return PooledTiles(block_texts, block, 16 if dtype == torch.float32 else inner, num_warps, num_stages=2)
    if dtype == torch.float32:
        # What makes the rows that cancel would spill on sm_90: with 64 texts under Triton 3.6, with 32 later.
        older = kernel == "cosine" and triton.__version__.startswith("3.6.")
        block_texts = 64 if block == 16 and not older else 32
        return PooledTiles(block_texts, block, 16, num_warps=8, num_stages=2)
    # With 4 warps, what makes the rows that cancel would spill on sm_80.
    return PooledTiles(64, block, inner, 8 if kernel == "cosine" else warps(width), num_stages=3)


def text_splits(texts: int, videos: int, block: int) -> tuple[int, int]:
    """Number of splits, and texts of each, so that videos·splits fills the GPU; a split is a multiple of block."""
    blocks = triton.cdiv(texts, block)
    blocks_per_split = triton.cdiv(blocks, min(blocks, triton.cdiv(TARGET_PROGRAMS, videos)))
    return triton.cdiv(blocks, blocks_per_split), blocks_per_split * block


def row_splits(rows: int, programs: int, block: int) -> tuple[int, int]:
    """Number of splits, and rows of each, so that programs·splits fills the GPU; a split is a multiple of block."""
    splits = max(1, min(triton.cdiv(TARGET_PROGRAMS, programs), triton.cdiv(rows, MIN_ROWS_PER_SPLIT)))
    rows_per_split = triton.cdiv(triton.cdiv(rows, splits), block) * block
    return triton.cdiv(rows, rows_per_split), rows_per_split


def float32_precision() -> str:
    """tl.dot's input_precision for float32 operands: exact products unless torch is allowed to round them."""
    if INTERPRETED:
        return "ieee"
    return "tf32" if gpu.tf32_allowed() else "ieee"


def small_product_precision(dtype: torch.dtype) -> str:
    """input_precision of the small float32 products: TF32 rounds less than bfloat16 and float16 did before."""
    return float32_precision() if dtype == torch.float32 or INTERPRETED else "tf32"


def dot_options(dtype: torch.dtype) -> dict[str, Any]:
    """Type that operands are cast to before tl.dot, and its input_precision."""
    # float32 in the interpreter: its bfloat16 dot gives wrong values without an error.
    kinds = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return {"DOT_TYPE": tl.float32 if INTERPRETED else kinds[dtype], "PRECISION": float32_precision()}


def as_batch(tensor: Tensor, trailing: int) -> Tensor:
    """Leading dimensions flattened to one, and contiguous, as the kernels address it."""
    batch = prod(tensor.shape[: tensor.ndim - trailing])
    return tensor.reshape(batch, *tensor.shape[tensor.ndim - trailing :]).contiguous()


def result_like(x: Tensor) -> Tensor:
    """Memory for a kernel's result like x; the caller finishes with `.to(x.dtype)`."""
    # float32 in the interpreter: it cuts to bfloat16 where the GPU rounds, which doubles the error.
    return torch.empty_like(x, dtype=torch.float32 if INTERPRETED else x.dtype)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
