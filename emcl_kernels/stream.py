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
    present,
    similarity_over,
)

CHUNK_WEIGHTS = 1 << 24  # frame weights [chunk, B, F] by default; a handful of such tensors live at a time
CHUNK_BLOCKS = 256  # blocks of EM in a chunk by default: enough for every core, few enough to show progress


class SimilarityStream:
    """The rows of a similarity `[A, B]`, computed while they are iterated over.

    Iterating gives `len(stream)` tensors `[rows, B]` in the order of the texts; each is computed when it is asked for.
    The first steps may only gather what EM is fitted to. They give tensors without rows, `[0, B]`, so that the
    concatenation of all steps is the similarity, and a count of the steps shows the progress. Iterating a second time
    computes everything again. There is no gradient.

    Args:
        steps: how many tensors an iteration gives.
        rows: starts an iteration.

    Examples:
        >>> for rows in pooled_similarity_stream(text, frames, frame_mask, init):
        ...     ranks.append(rows.argsort(dim=1, descending=True))
    """

    def __init__(self, steps: int, rows: Callable[[], Iterator[Tensor]]) -> None:
        self._steps = steps
        self._rows = rows

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
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> SimilarityStream:
    """`pooled_similarity`, or with `em_block` `pooled_similarity_blocks`, in rows and in bounded memory.

    Args:
        text: text features `[A, D]` in float32, bfloat16, float16 or float64.
        frames: frame features `[B, F, D]` in the same dtype.
        frame_mask: `[B, F]`, bool, or numbers that multiply the weights. On the CPU, what is not finite in a frame
            whose mask is zero counts as zero.
        init: start of the bases `[K]`.
        em_block: run one EM inside each block of this many texts and videos. None: one EM over all of them.
        chunk: texts in a step. No step holds more frame weights than those of `chunk` texts with all videos. With
            em_block it is rounded up to a multiple of that. None: as many as make about 64 MiB of frame weights.
        pooling_temperature: of the softmax over frames.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.
        relative: multiply the weight by ‖x‖ / ‖reconstruction‖, with em_block of each block.
        add_up: for several processes, each of which has texts of its own and all videos, and gets the rows of its
            texts. It is called once in an iteration, with one vector of D² + D + 1 numbers, and returns the sum of it
            over the processes. Not with em_block: blocks are independent, so each process has whole ones.

    Returns:
        An iterable of tensors `[rows, B]` with a length; their concatenation is the similarity `[A, B]`. Bad values
        (NaN, infinity) raise ValueError when the iteration reaches them.

    Raises:
        ValueError: shapes disagree, a setting is out of its range, chunk or em_block is below 1, or add_up is given
            with em_block.
        TypeError: an input is no tensor of floats, text and frames differ in dtype, or add_up returned no tensor of the
            shape that it was given.
        NotImplementedError: a derivative to an input is asked for by torch.func.

    Examples:
        >>> text, frames = torch.randn(20_000, 512), torch.randn(1000, 12, 512)
        >>> stream = pooled_similarity_stream(text, frames, torch.ones(1000, 12).bool(), torch.randn(32))
        >>> similarity = torch.cat(list(stream))
    """
    checks.tensors(text=text, frames=frames, frame_mask=frame_mask, init=init)
    checks.no_transform_to("pooled_similarity_stream", "call pooled_similarity", text=text, frames=frames, init=init)
    text, frames = _as_under_autocast(text, frames)
    frame_mask = frame_mask.detach()
    init = init.detach()
    checks.pooling(text, frames, frame_mask, pooling_temperature)
    checks.shared_start(text, init)
    checks.iteration(num_iters, temperature, eps)
    checks.finite(residual_weight, "residual_weight")
    frames = present(frames, frame_mask)

    # Blocks are independent of each other, so one pass is enough. A step has whole rows of blocks. A block that is
    # larger than all there is holds everything.
    if em_block is not None:
        checks.block(em_block)
        if add_up is not None:
            raise ValueError(
                f"add_up is given with em_block {em_block}, and blocks add nothing up; give each process whole blocks "
                "of texts, and leave add_up out"
            )
        em_block = min(em_block, max(text.shape[0], frames.shape[0]))
        size = _size(chunk, CHUNK_BLOCKS * em_block**2 // frames.shape[0], text.shape[0], multiple_of=em_block)
        texts = text.split(size)

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

    size = _size(chunk, CHUNK_WEIGHTS // frames.shape[:2].numel(), text.shape[0])
    texts = text.split(size)
    settings = Settings(num_iters, temperature, residual_weight, eps, "identity", relative)

    # If one step is enough, there is nothing to add up, and the inner products are kept from the moments to the cosine.
    if len(texts) == 1:

        def at_once() -> Iterator[Tensor]:
            inputs = (text, frames, frame_mask, init, pooling_temperature, *settings)
            yield similarity_over(*inputs, add_up=add_up)[0]

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
        if add_up is not None:
            total = total.summed(add_up)

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

    Args:
        text: text features `[A, D]` in float32, bfloat16, float16 or float64.
        frames: frame features `[B, F, D]` in the same dtype.
        frame_mask: `[B, F]`, bool, or numbers that multiply the weights. On the CPU, what is not finite in a frame
            whose mask is zero counts as zero.
        chunk: texts in a step. None: as many as make about 64 MiB of frame weights.
        pooling_temperature: of the softmax over frames.

    Returns:
        An iterable of tensors `[rows, B]` with a length; their concatenation is the similarity `[A, B]`. NaN and
        infinite values pass through.

    Raises:
        ValueError: shapes disagree, pooling_temperature <= 0, or chunk < 1.
        TypeError: an input is no tensor of floats, or text and frames differ in dtype.
        NotImplementedError: a derivative to an input is asked for by torch.func.
    """
    checks.tensors(text=text, frames=frames, frame_mask=frame_mask)
    checks.no_transform_to("pooled_cosine_similarity_stream", "call pooled_cosine_similarity", text=text, frames=frames)
    text, frames = _as_under_autocast(text, frames)
    frame_mask = frame_mask.detach()
    checks.pooling(text, frames, frame_mask, pooling_temperature)
    frames = present(frames, frame_mask)
    texts = text.split(_size(chunk, CHUNK_WEIGHTS // frames.shape[:2].numel(), text.shape[0]))

    def rows() -> Iterator[Tensor]:
        for part in texts:
            yield pooled_cosine_similarity(part, frames, frame_mask, pooling_temperature=pooling_temperature)

    return SimilarityStream(len(texts), rows)


def _parts(
    text: Tensor, frames: Tensor, frame_mask: Tensor, size: int
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], int]:
    """The inputs of `_pooled_moments` in parts of at most size · B · F weights.

    Each part repeats a Gram matrix: that of the A texts if it has all texts and some of the videos, that of the B·F
    frames if it has some of the texts and all videos. The second is done only if A is above size · B, when a part
    cannot hold one video with all texts.

    Args:
        text: `[A, D]`.
        frames: `[B, F, D]`.
        frame_mask: `[B, F]`.
        size: texts that are compared with all videos in one step.

    Returns:
        The parts, and how many times too often their sum counts the texts.
    """
    videos = size * frames.shape[0] // text.shape[0]
    if videos == 0:
        return [(part, frames, frame_mask) for part in text.split(size)], 0
    parts = [(text, f, m) for f, m in zip(frames.split(videos), frame_mask.split(videos), strict=True)]
    return parts, len(parts) - 1


def _as_under_autocast(text: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Without gradient; under autocast both in the wider dtype of the two, as the ops have it."""
    text = text.detach()
    frames = frames.detach()

    device = text.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return text, frames
    dtype = torch.promote_types(text.dtype, frames.dtype)
    return text.to(dtype), frames.to(dtype)


def _size(chunk: int | None, by_default: int, texts: int, multiple_of: int = 1) -> int:
    """Texts in a step, of which there are `texts` in all."""
    if chunk is None:
        chunk = max(1, by_default)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 text a step, or None for as many as suit the memory")
    return min(texts, multiple_of * -(-chunk // multiple_of))
