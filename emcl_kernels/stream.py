"""The pooled similarity of galleries that do not fit into memory at once: its rows, chunk of texts after chunk.

EM needs only moments, which add up over chunks: one pass gathers them, EM is fitted once, a second pass compares.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks, em
from emcl_kernels.em import Moments, Settings
from emcl_kernels.ops.pooled import (
    cosine_op,
    moments_op,
    pooled_cosine_similarity,
    pooled_similarity_blocks,
    similarity_over,
)

CHUNK_WEIGHTS = 1 << 24  # frame weights [chunk, B, F] by default; a handful of such tensors live at a time
CHUNK_BLOCKS = 256  # blocks of EM in a chunk by default: enough for every core, few enough to show progress


class SimilarityStream:
    """The rows of a similarity `[A, B]`, computed while they are iterated over.

    Iterating gives `len(stream)` tensors `[rows, B]` in the order of the texts, each ready when it is asked for. A step
    that compares nothing yet, because it gathers what EM is fitted to, gives no rows, `[0, B]`; so `torch.cat(list(
    stream))` is the similarity, and progress is a count of steps. Iterating again computes again. There is no gradient.
    """

    def __init__(self, steps: int, rows: Callable[[], Iterator[Tensor]]) -> None:
        self._steps, self._rows = steps, rows

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Tensor]:
        return self._rows()


def pooled_similarity_stream(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    init: Float[Tensor, " K"],
    *,
    em_block: int | None = None,
    chunk: int | None = None,
    pooling_temperature: float = 3.0,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    relative: bool = False,
) -> SimilarityStream:
    """`pooled_similarity`, or with `em_block` `pooled_similarity_blocks`, in rows and in bounded memory.

    Args:
        em_block: one EM inside each block of this many texts and videos. None: one EM over all texts and videos.
        chunk: texts in a step, by default as many as make some 64 MiB of frame weights. No step holds more weights than
            those of `chunk` texts with all videos. With em_block, it is rounded up to a multiple of that.
        relative: see `pooled_similarity_blocks`.
    Raises: as `pooled_similarity`, and ValueError where chunk < 1 or em_block < 1. What is wrong with shapes is raised
        here, what is wrong with values in the step that meets it.
    """
    checks.tensors(text=text, frames=frames, frame_mask=frame_mask, init=init)
    text, frames, frame_mask, init = *_as_under_autocast(text, frames), frame_mask.detach(), init.detach()
    checks.pooling(text, frames, frame_mask, pooling_temperature)
    checks.shared_start(text, init)
    checks.iteration(num_iters, temperature, eps)
    if em_block is not None:
        checks.block(em_block)
        texts = text.split(_size(chunk, CHUNK_BLOCKS * em_block**2 // frames.shape[0], multiple_of=em_block))

        def blocks() -> Iterator[Tensor]:
            for part in texts:
                yield pooled_similarity_blocks(
                    part,
                    frames,
                    frame_mask,
                    init,
                    em_block=em_block,
                    pooling_temperature=pooling_temperature,
                    num_iters=num_iters,
                    temperature=temperature,
                    residual_weight=residual_weight,
                    eps=eps,
                    relative=relative,
                )

        return SimilarityStream(len(texts), blocks)

    size = _size(chunk, CHUNK_WEIGHTS // frames.shape[:2].numel())
    texts = text.split(size)
    settings = Settings(num_iters, temperature, residual_weight, eps, "identity", relative)
    if len(texts) == 1:  # nothing to add up, and the inner products are kept from the moments to the cosine

        def at_once() -> Iterator[Tensor]:
            yield similarity_over(text, frames, frame_mask, init, pooling_temperature, *settings)[0]

        return SimilarityStream(1, at_once)

    parts, repeats = _parts(text, frames, frame_mask, size)

    def rows() -> Iterator[Tensor]:
        # First pass: moments of the pooled rows add up over parts. Each part has counted the texts; once is enough.
        total = Moments.of(text).scaled(-repeats)
        for part in parts:
            part_gram, part_colsum, _ = moments_op.call(*part, pooling_temperature, False)
            part_text, part_frames, _ = part
            total = total + Moments(part_gram, part_colsum, part_text.shape[0] * (part_frames.shape[0] + 1))
            yield text.new_empty((0, frames.shape[0]))

        logits = total.colsum.unsqueeze(-1) * init.to(total.colsum.dtype)  # (G0)
        fitted, _ = em.fit(total, logits, settings)

        # Second pass: compare.
        nothing = total.gram.new_empty(0)
        for part_of_texts in texts:
            cosine, _ = cosine_op.call(
                part_of_texts, frames, frame_mask, nothing, *fitted, residual_weight, pooling_temperature, False
            )
            yield cosine.to(text.dtype)

    return SimilarityStream(len(parts) + len(texts), rows)


def pooled_cosine_similarity_stream(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    *,
    chunk: int | None = None,
    pooling_temperature: float = 3.0,
) -> SimilarityStream:
    """`pooled_cosine_similarity` in rows and in bounded memory.

    Args: chunk: as of `pooled_similarity_stream`.
    Raises: ValueError where shapes disagree or chunk < 1.
    """
    checks.tensors(text=text, frames=frames, frame_mask=frame_mask)
    text, frames, frame_mask = *_as_under_autocast(text, frames), frame_mask.detach()
    checks.pooling(text, frames, frame_mask, pooling_temperature)
    texts = text.split(_size(chunk, CHUNK_WEIGHTS // frames.shape[:2].numel()))

    def rows() -> Iterator[Tensor]:
        for part in texts:
            yield pooled_cosine_similarity(part, frames, frame_mask, pooling_temperature=pooling_temperature)

    return SimilarityStream(len(texts), rows)


def _parts(
    text: Tensor, frames: Tensor, frame_mask: Tensor, size: int
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], int]:
    """The inputs of `_pooled_moments` in parts of at most size · B · F weights.

    Each part costs a Gram matrix of what it does not divide. With all texts and some of the videos, that is one of the
    A texts; with some of the texts and all videos it is one of the B·F frames, so that is for A above size · B only.

    Returns: the parts; how many times too often their sum counts the texts.
    """
    videos = size * frames.shape[0] // text.shape[0]
    if videos == 0:
        return [(part, frames, frame_mask) for part in text.split(size)], 0
    parts = [(text, f, m) for f, m in zip(frames.split(videos), frame_mask.split(videos), strict=True)]
    return parts, len(parts) - 1


def _as_under_autocast(text: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Without gradient; under autocast the wider dtype serves both, as for the ops."""
    text, frames = text.detach(), frames.detach()
    device = text.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return text, frames
    dtype = torch.promote_types(text.dtype, frames.dtype)
    return text.to(dtype), frames.to(dtype)


def _size(chunk: int | None, by_default: int, multiple_of: int = 1) -> int:
    """Texts in a step."""
    if chunk is None:
        chunk = max(1, by_default)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 text a step, or None for as many as suit the memory")
    return multiple_of * -(-chunk // multiple_of)
