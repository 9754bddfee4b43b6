"""EMCL-Net's similarity: moments of the pooled rows, EM, cosine of what the fitted map makes of them (docs/math.md, P).

The three steps are ops of their own, because several processes add up their moments between the first and the second.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks, reference
from emcl_kernels.checks import accumulation_dtype

KEPT_PRODUCTS = 1 << 26  # of texts and frames that the moments keep for the cosine and for backward (256 MiB)


def pooled_similarity(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    init: Tensor,
    pooling_temperature: float,
    num_iters: int,
    temperature: float,
    residual_weight: float,
    eps: float,
    gradient: str,
    relative: bool = False,
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Fit on the moments of all pooled rows and texts, then compare.

    relative: see `relative_scale`. add_up: sums a tensor over processes, each of which has texts of its own and all
    videos; EM then runs over the rows of all of them.
    """
    checks.no_tangent(text=text, frames=frames, init=init)
    checks.gradient(gradient)
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    checks.shared_start(text, init)
    full = gradient == "full"
    em_text, em_frames, em_init = (text, frames, init) if full else (text.detach(), frames.detach(), init.detach())
    gram, colsum, kept = torch.ops.emcl._pooled_moments(em_text, em_frames, frame_mask, pooling_temperature, True)
    num_rows: Tensor | int | torch.SymInt = text.shape[0] * (frames.shape[0] + 1)
    if add_up is not None:
        rows = torch.full_like(colsum[:1], float(num_rows))
        packed = torch.cat([gram.flatten(), colsum, rows])
        summed = add_up(packed)
        checks.sum_of(packed, summed)
        gram, colsum, num_rows = summed[: gram.numel()].view_as(gram), summed[gram.numel() : -1], summed[-1]
    logits = colsum.unsqueeze(-1) * em_init.to(colsum.dtype)  # (G0)
    responsibilities, scale = torch.ops.emcl.em_fit(gram, logits, num_iters, temperature, eps)
    mean_bases = reference.mean_of_bases(colsum, responsibilities, scale, 1) / num_rows
    if relative:
        scale = scale * relative_scale(gram, responsibilities, scale).unsqueeze(-1)
    cosine, _ = torch.ops.emcl._pooled_cosine(
        text,
        frames,
        frame_mask,
        kept.detach(),
        responsibilities,
        scale,
        residual_weight,
        pooling_temperature,
        gradient != "identity",
    )
    return cosine.to(text.dtype), mean_bases


def keeps_products(texts: int | torch.SymInt, videos: int | torch.SymInt, frames: int | torch.SymInt) -> bool:
    """Whether the inner products [B, F, A] are few enough to be kept for later passes, which make them again else."""
    return bool(texts * videos * frames <= KEPT_PRODUCTS)


def relative_scale(
    gram: Float[Tensor, "*G D D"], responsibilities: Float[Tensor, "*G D K"], scale: Float[Tensor, "*G K"]
) -> Float[Tensor, "*G"]:
    """‖x‖ / ‖reconstruction‖ over all rows, both from the Gram matrix: what makes a weight independent of N.

    0 where every row is zero, and so is its reconstruction.
    """
    scaled = responsibilities * scale.unsqueeze(-2)
    squared = ((scaled.mT @ gram @ scaled) * (responsibilities.mT @ responsibilities)).sum((-2, -1))
    rows = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    empty = squared <= 0
    return torch.where(empty, 0, (rows.masked_fill(empty, 1) / squared.masked_fill(empty, 1)).sqrt())


def map_backward(
    pull_text: Float[Tensor, "A K"],
    pull_frames: Float[Tensor, "B F K"],
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    responsibilities: Float[Tensor, "D K"],
    scale: Float[Tensor, " K"],
    weight: float,
) -> tuple[Float[Tensor, "D K"], Float[Tensor, " K"]]:
    """Gradients of the cosine to the fitted map, from the pulls on text·r and frames·r (docs/math.md, PC)."""
    dtype = accumulation_dtype(text.dtype)
    x = torch.cat([text, frames.flatten(0, 1)]).to(dtype)
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


def blocks(
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
    """EM inside each block of `em_block` texts and videos, one block after the other."""
    clips = list(zip(frames.split(em_block), frame_mask.split(em_block), strict=True))
    settings = (pooling_temperature, num_iters, temperature, residual_weight, eps, "identity", relative)
    rows = [
        torch.cat([pooled_similarity(t, f, m, init, *settings)[0] for f, m in clips], dim=1)
        for t in text.split(em_block)
    ]
    return torch.cat(rows)
