"""EMCL-Net's similarity without its [A, B, D] tensor, composed of torch and the EM ops (docs/math.md, P).

The fitted map is P = I + w·r·diag(s)·rᵀ, so with C = 2w·diag(s) + w²·diag(s)·rᵀr·diag(s) every inner product of
mapped vectors is ⟨x·P, y·P⟩ = ⟨x, y⟩ + (x·r)·C·(y·r)ᵀ: a correction of rank K to a product that is known already.
Without EM, r has no columns and the correction is zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks, reference
from emcl_kernels.checks import accumulation_dtype

TINY = 1e-12  # shortest length that a vector is divided by, as torch.nn.functional.normalize has it


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
) -> tuple[Tensor, Tensor]:
    """Fit on the moments of all A·B + A pooled rows, then compare. `relative`: see `relative_scale`."""
    checks.gradient(gradient)
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    checks.shared_start(text, init)
    full = gradient == "full"
    em_text, em_frames, em_init = (text, frames, init) if full else (text.detach(), frames.detach(), init.detach())
    gram, colsum = pooled_moments(em_text, em_frames, frame_mask, pooling_temperature)
    logits = colsum.unsqueeze(-1) * em_init.to(colsum.dtype)  # (G0)
    responsibilities, scale = torch.ops.emcl.em_fit(gram, logits, num_iters, temperature, eps)
    num_rows = text.shape[0] * (frames.shape[0] + 1)
    mean_bases = reference.mean_of_bases(colsum, responsibilities, scale, num_rows)
    if relative:
        scale = scale * relative_scale(gram, responsibilities, scale).unsqueeze(-1)
    if gradient == "identity":
        similarity = torch.ops.emcl._pooled_cosine(
            text, frames, frame_mask, responsibilities, scale, residual_weight, pooling_temperature
        )
    else:
        similarity = _mapped_cosine(
            text, frames, frame_mask, responsibilities, scale, residual_weight, pooling_temperature
        )
    return similarity, mean_bases


def relative_scale(
    gram: Float[Tensor, "*G D D"], responsibilities: Float[Tensor, "*G D K"], scale: Float[Tensor, "*G K"]
) -> Float[Tensor, "*G"]:
    """‖x‖ / ‖reconstruction‖ over all rows, both from the Gram matrix: what makes a weight independent of N."""
    scaled = responsibilities * scale.unsqueeze(-2)
    squared = ((scaled.mT @ gram @ scaled) * (responsibilities.mT @ responsibilities)).sum((-2, -1))
    return (gram.diagonal(dim1=-2, dim2=-1).sum(-1) / squared).sqrt()


def pooled_moments(
    text: Float[Tensor, "A D"], frames: Float[Tensor, "B F D"], frame_mask: Tensor, pooling_temperature: float
) -> tuple[Float[Tensor, "D D"], Float[Tensor, " D"]]:
    """Gram matrix and column sums of the rows [pooled; text], from F×F weights per video."""
    dtype = accumulation_dtype(text.dtype)
    t, f = text.to(dtype), frames.to(dtype)
    weights = _weights(t, f, frame_mask, pooling_temperature)[1].transpose(0, 1)  # [B, A, F]
    weighted = (weights.mT @ weights) @ f  # (PG) F×F per video
    gram = torch.addmm(t.mT @ t, f.flatten(0, 1).mT, weighted.flatten(0, 1))  # (PG)
    colsum = torch.einsum("bf,bfd->d", weights.sum(1), f) + t.sum(0)  # (PS)
    return gram, colsum


def pooled_cosine(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
) -> Tensor:
    """Cosine of mapped text with mapped pooled frames, for a map that is given."""
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    return _Forward(text, frames, frame_mask, responsibilities, scale, weight, pooling_temperature).cosine.to(
        text.dtype
    )


def pooled_cosine_backward(
    d_similarity: Tensor,
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gradients to text and frames where the reconstruction of every row is a constant (docs/math.md, PB)."""
    z = _Forward(text, frames, frame_mask, responsibilities, scale, weight, pooling_temperature)
    d_cosine = d_similarity.to(z.t.dtype)
    d_numerator = d_cosine / (z.text_length.unsqueeze(1) * z.pooled_length)
    per_square = -d_cosine * z.cosine
    # a length at its lower bound is a constant
    d_pooled_square = torch.where(z.pooled_length > TINY, per_square / (2 * z.pooled_length.square()), 0)
    d_text_square = torch.where(z.text_length > TINY, per_square.sum(1) / (2 * z.text_length.square()), 0)

    once_mapped = z.dots + _low_rank(z.t_r * (weight * z.scale), z.f_r)  # ⟨t'_a, f_bf⟩
    frame_grams_once = z.frame_grams + (z.f_r * (weight * z.scale)) @ z.f_r.mT  # ⟨f'_bf, f_bg⟩
    d_weights = d_numerator.unsqueeze(-1) * once_mapped
    d_weights += 2 * d_pooled_square.unsqueeze(-1) * _per_video(z.weights, frame_grams_once)
    d_weights *= z.mask
    soft = z.soft
    d_dots = soft * (d_weights - (d_weights * soft).sum(-1, keepdim=True)) / pooling_temperature

    video_major = z.weights.transpose(0, 1)  # [B, A, F]
    frame_weights = (d_pooled_square.mT.unsqueeze(-1) * video_major).mT @ video_major  # [B, F, F]
    numerator_weights = (d_numerator.unsqueeze(-1) * z.weights).flatten(1)  # [A, B·F]
    flat_frames, flat_dots = z.f.flatten(0, 1), d_dots.flatten(1)
    mapped_text = _apply(z.t, responsibilities, z.scale, weight)
    d_text = _apply(numerator_weights @ flat_frames, responsibilities, z.scale, weight)
    d_text = d_text + flat_dots @ flat_frames + 2 * d_text_square.unsqueeze(-1) * mapped_text
    d_frames = (numerator_weights.mT @ mapped_text + flat_dots.mT @ z.t).view_as(z.f)
    d_frames = d_frames + 2 * frame_weights @ _apply(z.f, responsibilities, z.scale, weight)
    return d_text.to(text.dtype), d_frames.to(frames.dtype)


class _Forward:
    """The quantities that forward and backward share. Largest: [A, B, F]."""

    def __init__(
        self,
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        responsibilities: Tensor,
        scale: Tensor,
        weight: float,
        pooling_temperature: float,
    ) -> None:
        dtype = accumulation_dtype(text.dtype)
        self.t, self.f, self.scale = text.to(dtype), frames.to(dtype), scale
        self.mask = frame_mask.to(dtype)
        self.dots = (self.t @ self.f.flatten(0, 1).mT).view(-1, *frames.shape[:2])
        self.soft = torch.softmax(self.dots / pooling_temperature, dim=-1)
        self.weights = self.soft * self.mask
        self.frame_grams = self.f @ self.f.mT  # [B, F, F]
        self.t_r, self.f_r = self.t @ responsibilities, self.f @ responsibilities
        scaled = responsibilities * scale
        correction = 2 * weight * torch.diag(scale) + weight**2 * (scaled.mT @ scaled)  # C, [K, K]
        f_c = self.f_r @ correction
        mapped_dots = self.dots + _low_rank(self.t_r, f_c)
        mapped_grams = self.frame_grams + f_c @ self.f_r.mT
        numerator = (self.weights * mapped_dots).sum(-1)
        squares = (self.weights * _per_video(self.weights, mapped_grams)).sum(-1)
        self.pooled_length = squares.clamp_min(TINY**2).sqrt()
        text_squares = self.t.square().sum(-1) + ((self.t_r @ correction) * self.t_r).sum(-1)
        self.text_length = text_squares.clamp_min(TINY**2).sqrt()
        self.cosine = numerator / (self.text_length.unsqueeze(1) * self.pooled_length)


def _mapped_cosine(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
) -> Tensor:
    """`pooled_cosine`, left to autograd with gradients through the map."""
    dtype = accumulation_dtype(text.dtype)
    t, f = text.to(dtype), frames.to(dtype)
    _, weights = _weights(t, f, frame_mask, pooling_temperature)
    mapped_text = _apply(t, responsibilities, scale, weight)
    mapped_frames = _apply(f, responsibilities, scale, weight)
    mapped_dots = (mapped_text @ mapped_frames.flatten(0, 1).mT).view_as(weights)
    numerator = (weights * mapped_dots).sum(-1)
    squares = (weights * _per_video(weights, mapped_frames @ mapped_frames.mT)).sum(-1)
    lengths = squares.clamp_min(TINY**2).sqrt() * torch.linalg.vector_norm(mapped_text, dim=-1).clamp_min(
        TINY
    ).unsqueeze(1)
    return (numerator / lengths).to(text.dtype)


def _weights(t: Tensor, f: Tensor, frame_mask: Tensor, pooling_temperature: float) -> tuple[Tensor, Tensor]:
    """Frame weights [A, B, F] before and after masking."""
    dots = (t @ f.flatten(0, 1).mT).view(t.shape[0], *f.shape[:2])
    soft = torch.softmax(dots / pooling_temperature, dim=-1)
    return soft, soft * frame_mask.to(t.dtype)


def _per_video(weights: Float[Tensor, "A B F"], grams: Float[Tensor, "B F F"]) -> Float[Tensor, "A B F"]:
    return (weights.transpose(0, 1) @ grams).transpose(0, 1)


def _low_rank(left: Float[Tensor, "A K"], right: Float[Tensor, "B F K"]) -> Float[Tensor, "A B F"]:
    return (left @ right.flatten(0, 1).mT).view(left.shape[0], *right.shape[:2])


def _apply(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
    """x·P for rows of any leading shape, by the backend's kernel."""
    if scale.shape[-1] == 0:
        return x
    flat = torch.ops.emcl.em_reconstruct(x.reshape(-1, x.shape[-1]), responsibilities, scale, weight)
    return flat.view(x.shape)
