"""pooled_similarity: EMCL-Net's similarity without its tensor [A, B, D] (docs/math.md, P).

Three steps, each an op of its own: moments of the pooled rows, EM, and the cosine of what the fitted map makes of them.
Several processes add up their moments between the first step and the second.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from emcl_kernels import checks, em
from emcl_kernels.checks import ACCUMULATION, LARGEST
from emcl_kernels.em import Gradient, Moments, Settings
from emcl_kernels.ops.define import Composite, Op, Rule, Spec, one_by_one
from emcl_kernels.ops.define import Gradient as ByBackwardOp

KEPT_PRODUCTS = 1 << 26
"""Inner products of texts and frames, at most, that the moments keep for the cosine and for backward (256 MiB)."""

_WIDEST = ("text", "frames")


# ---- public functions ------------------------------------------------------------------------------------------------


def pooled_similarity(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    init: Float[Tensor, " K"],
    *,
    pooling_temperature: float = 3.0,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    gradient: Gradient = "identity",
    relative: bool = False,
) -> tuple[Float[Tensor, "A B"], Float[Tensor, " K"]]:
    """EMCL-Net's similarity of every text with every video, without the tensor `[A, B, D]` (docs/math.md, P).

    Frames are pooled per text by a softmax over `text·frame / pooling_temperature` (masked afterwards and not
    normalised again, as released), EM runs over all A·B + A rows, and the cosine is taken.

    Args:
        text: text features `[A, D]` in float32, bfloat16, float16 or float64.
        frames: frame features `[B, F, D]` in the same dtype; under autocast the wider of two serves.
        frame_mask: `[B, F]`, bool, or numbers that multiply the weights. On the CPU, what is not finite in a frame
            whose mask is zero counts as zero.
        init: start of the bases `[K]`.
        pooling_temperature: of the softmax over frames.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.
        gradient: "identity" (the reconstruction is a constant, as released), "linear" (the fitted map is a constant),
            or "full" (through every iteration, exact; also to `init`).
        relative: multiply the weight by ‖x‖ / ‖reconstruction‖ over all pooled rows and texts.

    Returns:
        similarity `[A, B]`, and mean_bases `[K]`, from which the next start is made.

    Raises:
        ValueError: shapes disagree, or a setting is out of its range. On the CPU also if the input holds NaN or
            infinite values; on other devices these pass through.
        TypeError: an input is no tensor of floats, or text and frames differ in dtype.

    Examples:
        >>> text, frames = torch.randn(128, 512), torch.randn(128, 12, 512)
        >>> similarity, mean_bases = pooled_similarity(text, frames, torch.ones(128, 12).bool(), torch.randn(32))
    """
    checks.inputs(text=text, frames=frames, frame_mask=frame_mask, init=init)
    return composed.call(
        text,
        frames,
        frame_mask,
        init,
        pooling_temperature,
        num_iters,
        temperature,
        residual_weight,
        eps,
        gradient,
        relative,
    )


def pooled_cosine_similarity(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    *,
    pooling_temperature: float = 3.0,
) -> Float[Tensor, "A B"]:
    """`pooled_similarity` with EM left out: text-conditioned pooling and cosine, through the same code.

    Args:
        text: text features `[A, D]` in float32, bfloat16, float16 or float64.
        frames: frame features `[B, F, D]`, in the dtype of `text`; under autocast it may be another.
        frame_mask: `[B, F]`, bool, or numbers that multiply the weights. On the CPU, what is not finite in a frame
            whose mask is zero counts as zero.
        pooling_temperature: of the softmax over frames.

    Returns:
        similarity `[A, B]`. NaN and infinite values pass through.

    Raises:
        ValueError: shapes disagree, or pooling_temperature <= 0.
        TypeError: an input is no tensor of floats, or text and frames differ in dtype.

    Examples:
        >>> text, frames = torch.randn(128, 512), torch.randn(128, 12, 512)
        >>> similarity = pooled_cosine_similarity(text, frames, torch.ones(128, 12).bool())
    """
    checks.inputs(text=text, frames=frames, frame_mask=frame_mask)
    frames = present(frames, frame_mask)
    no_bases = text.new_zeros((text.shape[-1], 0), dtype=checks.accumulation_dtype(text.dtype))
    cosine, _ = cosine_op.call(
        text, frames, frame_mask, no_bases[0], no_bases, no_bases[0], 0.0, pooling_temperature, False
    )
    return cosine.to(text.dtype)


def pooled_similarity_blocks(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    init: Float[Tensor, " K"],
    *,
    em_block: int = 32,
    pooling_temperature: float = 3.0,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    relative: bool = False,
) -> Float[Tensor, "A B"]:
    """`pooled_similarity` with one EM inside each block of `em_block` texts and videos, as the release evaluates.

    The order of texts and videos is part of the result; the last blocks are smaller. For evaluation: without gradient.

    Args:
        text: text features `[A, D]` in float32, bfloat16, float16 or float64.
        frames: frame features `[B, F, D]`, in the dtype of `text`; under autocast it may be another.
        frame_mask: `[B, F]`, bool, or numbers that multiply the weights. On the CPU, what is not finite in a frame
            whose mask is zero counts as zero.
        init: start of the bases `[K]`.
        em_block: texts and videos in a block.
        pooling_temperature: of the softmax over frames.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.
        relative: multiply the weight by ‖x‖ / ‖reconstruction‖ of each block.

    Returns:
        similarity `[A, B]`.

    Raises:
        ValueError: shapes disagree, a setting is out of its range, or em_block < 1. On the CPU also if the input holds
            NaN or infinite values; on other devices these pass through.
        TypeError: an input is no tensor of floats, or text and frames differ in dtype.
        NotImplementedError: in backward; there is no gradient.

    Examples:
        >>> text, frames = torch.randn(1000, 512), torch.randn(1000, 12, 512)
        >>> frame_mask = torch.ones(1000, 12).bool()
        >>> similarity = pooled_similarity_blocks(text, frames, frame_mask, torch.randn(32), em_block=32)
    """
    checks.inputs(text=text, frames=frames, frame_mask=frame_mask, init=init)
    return blocks_composed.call(
        text,
        frames,
        frame_mask,
        init,
        em_block,
        pooling_temperature,
        num_iters,
        temperature,
        residual_weight,
        eps,
        relative,
    )


# ---- frames that are masked ------------------------------------------------------------------------------------------


def present(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """Frames, with zeros for numbers that are not finite in frames whose mask is zero.

    A masked frame takes part in the softmax over frames, as released, and its weight is set to zero afterwards. Zero
    times NaN is NaN, so what is only padding would reach the whole clip, and through EM all others.

    On a GPU frames are taken as they are: looking would stall the device, and a copy would cost as much as a pass.

    Args:
        frames: `[B, F, D]`.
        frame_mask: `[B, F]`.

    Returns:
        `frames` itself on a GPU, or if there is nothing to be replaced; what is replaced has a gradient of zero.
    """
    # What is of a wrong shape or device is refused by the op, which says why.
    if frames.device.type != "cpu" or frame_mask.device != frames.device or frame_mask.shape != frames.shape[:2]:
        return frames

    # Without numbers to look at, as under torch.compile, the replacement is a part of what is compiled.
    looked_at = checks.has_numbers(frames, frame_mask)
    if looked_at and frame_mask.all():
        return frames

    masked = frame_mask == 0
    if looked_at and math.isfinite(frames.detach()[masked].sum(dtype=checks.accumulation_dtype(frames.dtype)).item()):
        return frames
    return torch.where(masked.unsqueeze(-1) & ~frames.isfinite(), 0, frames)


# ---- the similarity from its three steps -----------------------------------------------------------------------------


def similarity_over(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    init: Tensor,
    pooling_temperature: float = 3.0,
    *args: Any,
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Fit on the moments of all pooled rows and texts, then compare.

    Args:
        text: text features `[A, D]` in float32, bfloat16, float16 or float64.
        frames: frame features `[B, F, D]`, in the dtype of `text`; under autocast it may be another.
        frame_mask: `[B, F]`, bool, or numbers that multiply the weights.
        init: start of the bases `[K]`.
        pooling_temperature: of the softmax over frames.
        *args: of `Settings`, in its order.
        add_up: sums a vector over processes, each of which has texts of its own and all videos; EM then runs over the
            rows of all of them.

    Returns:
        similarity `[A, B]` in the dtype of `text`, and mean_bases `[K]`.
    """
    settings = Settings(*args)
    if forward_ad._current_level >= 0:
        checks.inputs(text=text, frames=frames, frame_mask=frame_mask, init=init)
    if settings.gradient not in checks.GRADIENTS:
        checks.gradient(settings.gradient)
    if not -LARGEST <= settings.residual_weight <= LARGEST:
        checks.finite(settings.residual_weight, "residual_weight")
    checks.shared_start(text, init)
    frames = present(frames, frame_mask)
    full = settings.gradient == "full"
    em_text, em_frames, em_init = (text, frames, init) if full else (text.detach(), frames.detach(), init.detach())

    # The pooled rows are never there: their moments come from F×F weights a video.
    gram, colsum, kept = moments_op.call(em_text, em_frames, frame_mask, pooling_temperature, True)
    moments = Moments(gram, colsum, text.shape[0] * (frames.shape[0] + 1))
    if add_up is not None:
        moments = moments.summed(add_up)

    logits = moments.colsum.unsqueeze(-1) * em_init.to(moments.colsum.dtype)  # (G0)
    fitted, mean_bases = em.fit(moments, logits, settings)

    weight = settings.residual_weight
    linear = settings.gradient != "identity"
    cosine, _ = cosine_op.call(text, frames, frame_mask, kept.detach(), *fitted, weight, pooling_temperature, linear)
    return cosine.to(text.dtype), mean_bases


composed = Composite(
    "pooled_similarity(Tensor text, Tensor frames, Tensor frame_mask, Tensor init, float pooling_temperature=3.0, "
    "int num_iters=9, float temperature=1.0, float residual_weight=3.0, float eps=1e-6, "
    'str gradient="identity", bool relative=False) -> (Tensor similarity, Tensor mean_bases)',
    similarity_over,
    batch=one_by_one,
    widest=_WIDEST,
    public=pooled_similarity,
)


# ---- step one: moments of the pooled rows ----------------------------------------------------------------------------


def _accept_moments(
    text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float, keep: bool
) -> tuple[Any, ...]:
    """The mask as numbers; `keep` only if the inner products are few. If they are not, later passes recompute them."""
    checks.pooling(text, frames, frame_mask, pooling_temperature)
    products = text.shape[0] * frames.shape[0] * frames.shape[1]
    mask = frame_mask.to(ACCUMULATION[text.dtype])
    return text, frames, mask, pooling_temperature, bool(keep and products <= KEPT_PRODUCTS)


def _shapes_of_moments(
    text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float, keep: bool
) -> tuple[Spec, ...]:
    texts, width = text.shape
    videos, num_frames, _ = frames.shape
    dtype = ACCUMULATION[text.dtype]
    kept = (videos, num_frames, texts) if keep else (0,)
    return ((width, width), dtype), ((width,), dtype), (kept, dtype)


moments_op = Op(
    "_pooled_moments(Tensor text, Tensor frames, Tensor frame_mask, float pooling_temperature, bool keep) "
    "-> (Tensor gram, Tensor colsum, Tensor kept)",
    accept=_accept_moments,
    shapes=_shapes_of_moments,
    gradient=ByBackwardOp(to=("text", "frames"), saved=("kept",), constant=("kept",), switched=True),
    batch=one_by_one,
    family="pooled_similarity",
    widest=_WIDEST,
)


# ---- step three: the cosine ------------------------------------------------------------------------------------------


def _accept_cosine(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
    linear: bool,
) -> tuple[Any, ...]:
    """The mask as numbers."""
    checks.pooling(text, frames, frame_mask, pooling_temperature)
    checks.fitted(text, responsibilities, scale, weight, (text.shape[1],))
    dtype = ACCUMULATION[text.dtype]
    products = (*frames.shape[:2], text.shape[0])
    if kept.dtype != dtype or (kept.shape != products and kept.numel() != 0):
        raise ValueError(
            f"kept is {kept.dtype} of shape {list(kept.shape)}; expected {dtype} of shape {list(products)}, as "
            "_pooled_moments gave it for these texts and frames, or an empty tensor"
        )
    mask = frame_mask.to(dtype)
    return text, frames, mask, kept, responsibilities, scale, weight, pooling_temperature, linear


def _shapes_of_cosine(text: Tensor, frames: Tensor, *_: Any) -> tuple[Spec, ...]:
    pairs = (text.shape[0], frames.shape[0])
    dtype = ACCUMULATION[text.dtype]
    return (pairs, dtype), (pairs, dtype)


def _shapes_of_pulls(d_cosine: Tensor, text: Tensor, frames: Tensor, *rest: Any) -> tuple[Spec, ...]:
    """Of the gradients to text·r and frames·r."""
    scale = rest[3]
    num_bases = scale.shape[0]
    return ((text.shape[0], num_bases), scale.dtype), ((*frames.shape[:2], num_bases), scale.dtype)


def _finish_cosine(
    ctx: Any, saved: tuple[Tensor, ...], d_text: Tensor, d_frames: Tensor, pull_text: Tensor, pull_frames: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients to the fitted map follow from the pulls, in torch; they are needed for "full" alone."""
    text, frames, _, _, responsibilities, scale = saved[:6]
    weight = ctx.settings[0]
    if not (ctx.needs_input_grad[4] or ctx.needs_input_grad[5]):
        return d_text, d_frames, None, None
    return d_text, d_frames, *map_backward(pull_text, pull_frames, text, frames, responsibilities, scale, weight)


def map_backward(
    pull_text: Float[Tensor, "A K"],
    pull_frames: Float[Tensor, "B F K"],
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    responsibilities: Float[Tensor, "D K"],
    scale: Float[Tensor, " K"],
    weight: float,
) -> tuple[Float[Tensor, "D K"], Float[Tensor, " K"]]:
    """Gradients of the cosine to the fitted map (docs/math.md, PC).

    Args:
        pull_text: gradient to text·r `[A, K]`.
        pull_frames: gradient to frames·r `[B, F, K]`.
        text: `[A, D]`.
        frames: `[B, F, D]`.
        responsibilities: r `[D, K]`.
        scale: `[K]`.
        weight: of the reconstruction.

    Returns:
        d_responsibilities `[D, K]` and d_scale `[K]`.
    """
    x = torch.cat([text, frames.flatten(0, 1)]).to(ACCUMULATION[text.dtype])
    pull = torch.cat([pull_text, pull_frames.flatten(0, 1)])

    inner = responsibilities.mT @ responsibilities
    scaled = weight * scale
    correction = 2 * torch.diag(scaled) + scaled.unsqueeze(-1) * inner * scaled

    d_correction = (x @ responsibilities).mT @ pull / 2
    d_correction = (d_correction + d_correction.mT) / 2
    d_inner = scaled.unsqueeze(-1) * d_correction * scaled
    d_responsibilities = x.mT @ (pull @ correction) + 2 * responsibilities @ d_inner
    d_scaled = 2 * d_correction.diagonal() + 2 * (d_correction * inner) @ scaled
    return d_responsibilities, weight * d_scaled


cosine_op = Op(
    "_pooled_cosine(Tensor text, Tensor frames, Tensor frame_mask, Tensor kept, Tensor responsibilities, "
    "Tensor scale, float weight, float pooling_temperature, bool linear) -> (Tensor cosine, Tensor length)",
    accept=_accept_cosine,
    shapes=_shapes_of_cosine,
    gradient=ByBackwardOp(
        to=("text", "frames"),
        saved=("cosine", "length"),
        constant=("length",),
        more=(("pull_text", "pull_frames"), _shapes_of_pulls),
        finished=("responsibilities", "scale"),
        finish=_finish_cosine,
        switched=True,
    ),
    batch=one_by_one,
    family="pooled_similarity",
    widest=_WIDEST,
)


# ---- blocks ----------------------------------------------------------------------------------------------------------


_BLOCKS = (
    "Tensor text, Tensor frames, Tensor frame_mask, Tensor init, int em_block=32, float pooling_temperature=3.0, "
    "int num_iters=9, float temperature=1.0, float residual_weight=3.0, float eps=1e-6, bool relative=False"
)


def _accept_blocks(
    text: Tensor, frames: Tensor, frame_mask: Tensor, init: Tensor, em_block: int, pooling_temperature: float, *em: Any
) -> tuple[Any, ...]:
    """The mask as numbers, and the start in the dtype that is summed in."""
    num_iters, temperature, residual_weight, eps, _ = em
    checks.pooling(text, frames, frame_mask, pooling_temperature)
    checks.shared_start(text, init)
    checks.iteration(num_iters, temperature, eps)
    checks.finite(residual_weight, "residual_weight")
    checks.block(em_block)
    dtype = ACCUMULATION[text.dtype]
    return text, frames, frame_mask.to(dtype), init.to(dtype), em_block, pooling_temperature, *em


def _shapes_of_blocks(text: Tensor, frames: Tensor, *_: Any) -> tuple[Spec, ...]:
    return (((text.shape[0], frames.shape[0]), ACCUMULATION[text.dtype]),)


def _one_block_after_the_other(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    init: Tensor,
    em_block: int,
    pooling_temperature: float,
    num_iters: int,
    temperature: float,
    residual_weight: float,
    eps: float,
    relative: bool,
) -> Tensor:
    """For backends without a kernel for all blocks."""
    settings = (num_iters, temperature, residual_weight, eps, "identity", relative)
    em_block = min(em_block, max(text.shape[0], frames.shape[0]))
    videos = list(zip(frames.split(em_block), frame_mask.split(em_block), strict=True))
    rows = []
    for texts in text.split(em_block):
        blocks = [similarity_over(texts, f, mask, init, pooling_temperature, *settings)[0] for f, mask in videos]
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(rows).to(ACCUMULATION[text.dtype])


def _evaluation_only(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "pooled_similarity_blocks is for evaluation and has no derivative; call pooled_similarity on each block"
    )


blocks_op = Op(
    f"_pooled_blocks({_BLOCKS}) -> Tensor cosine",
    accept=_accept_blocks,
    shapes=_shapes_of_blocks,
    verify=(0, checks.finite_similarity),
    gradient=Rule(_evaluation_only),
    batch=one_by_one,
    family="pooled_similarity",
    widest=_WIDEST,
    fallback=_one_block_after_the_other,
)


def _compose_blocks(text: Tensor, frames: Tensor, frame_mask: Tensor, *rest: Any) -> Tensor:
    frames = present(frames, frame_mask)
    return blocks_op.call(text, frames, frame_mask, *rest).to(text.dtype)


blocks_composed = Composite(
    f"pooled_similarity_blocks({_BLOCKS}) -> Tensor",
    _compose_blocks,
    batch=one_by_one,
    widest=_WIDEST,
    public=pooled_similarity_blocks,
)
