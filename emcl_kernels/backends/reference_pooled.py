"""The pooled similarity of the reference backend: torch operations on tensors of at most [A, B, F] (docs/math.md, P).

The fitted map is P = I + w·r·diag(s)·rᵀ, so with C = 2w·diag(s) + w²·diag(s)·rᵀr·diag(s) every inner product of
mapped vectors is ⟨x·P, y·P⟩ = ⟨x, y⟩ + (x·r)·C·(y·r)ᵀ: a correction of rank K to a product that is known already.
Where only one of the two is mapped, the correction is w·diag(s). Without EM, r has no columns and it is zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.checks import ACCUMULATION

TINY = 1e-12  # shortest length that a vector is divided by, as torch.nn.functional.normalize has it


def moments(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    pooling_temperature: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """gram [D, D] and colsum [D] of the rows [pooled; text]; with keep, the inner products [B, F, A], else nothing."""
    z = _Weighing(text, frames, frame_mask, pooling_temperature)
    weighted = (z.weights @ z.weights.mT) @ z.f  # (PG) F×F per video
    gram = torch.addmm(z.t.mT @ z.t, z.f.flatten(0, 1).mT, weighted.flatten(0, 1))  # (PG)
    colsum = torch.einsum("bf,bfd->d", z.weights.sum(-1), z.f) + z.t.sum(0)  # (PS)
    return gram, colsum, z.dots if keep else gram.new_empty(0)


def moments_backward(
    d_gram: Float[Tensor, "D D"],
    d_colsum: Float[Tensor, " D"],
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    pooling_temperature: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `moments` to text and frames (docs/math.md, PM)."""
    z = _Weighing(text, frames, frame_mask, pooling_temperature, kept)
    twice = d_gram + d_gram.mT
    f_twice = z.f @ twice
    d_weights = (f_twice @ z.f.mT) @ z.weights + (z.f @ d_colsum).unsqueeze(-1)  # [B, F, A]
    d_dots = z.backward(d_weights)
    d_text = z.t @ twice + d_colsum + d_dots.flatten(0, 1).mT @ z.f.flatten(0, 1)
    d_frames = d_dots @ z.t + (z.weights @ z.weights.mT) @ f_twice + z.weights.sum(-1, keepdim=True) * d_colsum
    return d_text.to(text.dtype), d_frames.to(frames.dtype)


def cosine(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
    linear: bool,
) -> tuple[Float[Tensor, "A B"], Float[Tensor, "A B"]]:
    """Cosine of mapped text with mapped pooled frames, and the length of those.

    kept: as of `moments`, or empty. linear: matters to the gradient only.
    """
    z = _Weighing(text, frames, frame_mask, pooling_temperature, kept)
    map_ = _Map(z.t, z.f, responsibilities, scale, weight)
    f_twice = map_.f_r @ map_.correction
    numerator = (z.weights * (z.dots + f_twice @ map_.t_r.mT)).sum(1)  # (PN)
    squares = (z.weights * ((z.f @ z.f.mT + f_twice @ map_.f_r.mT) @ z.weights)).sum(1)  # (PL)
    length = squares.clamp_min(TINY**2).sqrt()
    return (numerator / (map_.text_length * length)).mT.contiguous(), length.mT.contiguous()


def cosine_backward(
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
) -> tuple[Tensor, Tensor, Float[Tensor, "A K"], Float[Tensor, "B F K"]]:
    """d_text, d_frames and the pulls on text·r and frames·r (docs/math.md, PB)."""
    weighing = _Weighing(text, frames, frame_mask, pooling_temperature, kept)
    t, f, weights = weighing.t, weighing.f, weighing.weights
    z = _Map(t, f, responsibilities, scale, weight)
    once = z.correction if linear else torch.diag(weight * scale)
    d_numerator = d_cosine.mT / (z.text_length * length.mT)  # [B, A]
    per_square = -(d_cosine * cosine).mT
    # a length at its lower bound is a constant
    d_pooled_square = torch.where(length.mT > TINY, per_square / (2 * length.mT.square()), 0)
    d_text_square = torch.where(z.text_length > TINY, per_square.sum(0) / (2 * z.text_length.square()), 0)

    f_once = z.f_r @ once
    d_weights = d_numerator.unsqueeze(1) * (weighing.dots + f_once @ z.t_r.mT)
    d_weights += 2 * d_pooled_square.unsqueeze(1) * ((f @ f.mT + f_once @ z.f_r.mT) @ weights)
    d_dots = weighing.backward(d_weights)

    numerator_weights = d_numerator.unsqueeze(1) * weights  # [B, F, A]
    frame_weights = 2 * (d_pooled_square.unsqueeze(1) * weights) @ weights.mT  # [B, F, F]
    through = numerator_weights + d_dots
    pull_text = numerator_weights.flatten(0, 1).mT @ z.f_r.flatten(0, 1) + 2 * d_text_square.unsqueeze(-1) * z.t_r
    pull_frames = numerator_weights @ z.t_r + frame_weights @ z.f_r
    d_text = through.flatten(0, 1).mT @ f.flatten(0, 1) + 2 * d_text_square.unsqueeze(-1) * t
    d_text = d_text + pull_text @ once @ responsibilities.mT
    d_frames = through @ t + frame_weights @ f + pull_frames @ once @ responsibilities.mT
    return d_text.to(text.dtype), d_frames.to(frames.dtype), pull_text, pull_frames


class _Weighing:
    """Frame weights of every text, video by video: all [B, F, A]. kept: the inner products, where they are known."""

    def __init__(
        self, text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float, kept: Tensor | None = None
    ) -> None:
        dtype = ACCUMULATION[text.dtype]
        self.t, self.f, self.temperature = text.to(dtype), frames.to(dtype), pooling_temperature
        self.mask = frame_mask.to(dtype).unsqueeze(-1)
        self.dots = self.f @ self.t.mT if kept is None or kept.numel() == 0 else kept
        self.soft = torch.softmax(self.dots / pooling_temperature, dim=1)
        self.weights = self.soft * self.mask  # (PW)

    def backward(self, d_weights: Float[Tensor, "B F A"]) -> Float[Tensor, "B F A"]:
        """Gradient to the products from that to the weights."""
        d_soft = d_weights * self.mask
        return self.soft * (d_soft - (d_soft * self.soft).sum(1, keepdim=True)) / self.temperature


class _Map:
    """What forward and backward share of a fitted map: text and frames in its bases, and the mapped texts' length."""

    def __init__(self, t: Tensor, f: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> None:
        self.correction = correction(responsibilities, scale, weight)
        self.t_r, self.f_r = t @ responsibilities, f @ responsibilities
        text_squares = t.square().sum(-1) + ((self.t_r @ self.correction) * self.t_r).sum(-1)
        self.text_length = text_squares.clamp_min(TINY**2).sqrt()


def correction(
    responsibilities: Float[Tensor, "D K"], scale: Float[Tensor, " K"], weight: float
) -> Float[Tensor, "K K"]:
    """C of ⟨x·P, y·P⟩ = ⟨x, y⟩ + (x·r)·C·(y·r)ᵀ."""
    scaled = responsibilities * scale
    return 2 * weight * torch.diag(scale) + weight**2 * (scaled.mT @ scaled)  # (PC)
