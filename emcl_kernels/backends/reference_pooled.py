"""The pooled similarity in plain torch: operations on tensors of at most [A, B, F] (docs/math.md, P).

The fitted map is P = I + w·r·diag(s)·rᵀ, so with C = 2w·diag(s) + w²·diag(s)·rᵀr·diag(s) every inner product of
mapped vectors is ⟨x·P, y·P⟩ = ⟨x, y⟩ + (x·r)·C·(y·r)ᵀ: a correction of rank K to a product that is known already.
If only one of the two is mapped, the correction is w·diag(s). Without EM, r has no columns and the correction is zero.

Products of rows (texts t, frames f) with anything are `products.of`; those of two small matrices are torch's own. What
is [A, B, F] is changed in place where it is not needed again: at 8192 pairs of 12 frames each takes 3 GB.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.backends import cancelled
from emcl_kernels.backends.products import Upcast
from emcl_kernels.checks import ACCUMULATION

TINY = 1e-12  # shortest length that a vector is divided by, as torch.nn.functional.normalize has it


class PooledFunctions:
    """The parts of the pooled similarity, whatever the dtype of their products is.

    Args:
        products: of rows.
    """

    def __init__(self, products: Upcast) -> None:
        self.products = products

    def moments(
        self,
        text: Float[Tensor, "A D"],
        frames: Float[Tensor, "B F D"],
        frame_mask: Tensor,
        pooling_temperature: float,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments of the rows [pooled; text], which are never made.

        Args:
            text: `[A, D]`.
            frames: `[B, F, D]`.
            frame_mask: `[B, F]`, numbers that multiply the weights.
            pooling_temperature: of the softmax over frames.
            keep: whether to return the inner products of texts and frames for later passes.

        Returns:
            gram `[D, D]`, colsum `[D]`, and the inner products `[B, F, A]`, or an empty tensor without `keep`.
        """
        weighing = _Weighing(self.products, text, frames, frame_mask, pooling_temperature)
        t = weighing.t
        f = weighing.f
        weights = weighing.weights
        upcast = f.to(weights.dtype)

        # Σ over texts of pooledᵀ·pooled is fᵀ·(w·wᵀ)·f, with one F×F matrix w·wᵀ per video.
        weighted = (weights @ weights.mT) @ upcast  # (PG)
        gram = self.products.of(t.mT, t)
        gram += self.products.precise(f.flatten(0, 1).mT, weighted.flatten(0, 1))  # (PG)
        colsum = torch.einsum("bf,bfd->d", weights.sum(-1), upcast) + t.sum(0, dtype=gram.dtype)  # (PS)
        return gram, colsum, weighing.dots if keep else gram.new_empty(0)

    def moments_backward(
        self,
        d_gram: Float[Tensor, "D D"],
        d_colsum: Float[Tensor, " D"],
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        kept: Tensor,
        pooling_temperature: float,
        keep: bool,
        needs_text: bool,
        needs_frames: bool,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of `moments` to text and frames (docs/math.md, PM); one that is not needed is empty."""
        weighing = _Weighing(self.products, text, frames, frame_mask, pooling_temperature, kept)
        t = weighing.t
        f = weighing.f
        weights = weighing.weights

        # Through the weights, to the inner products that they were made from.
        twice = d_gram + d_gram.mT
        f_twice = self.products.of(f, twice)
        shifts = self.products.of(f, d_colsum.unsqueeze(-1))
        d_weights = (self.products.of(f_twice, f.mT) @ weights).add_(shifts)  # [B, F, A]
        d_dots = self.products.factor(weighing.backward(d_weights), t)

        # Directly, as a part of the rows, and through the inner products.
        d_text = text.new_empty((text.shape[0], 0))
        if needs_text:
            d_text = self.products.of(t, twice) + d_colsum + self.products.of(d_dots.flatten(0, 1).mT, f.flatten(0, 1))

        d_frames = frames.new_empty((*frames.shape[:2], 0))
        if needs_frames:
            d_frames = self.products.of(d_dots, t) + (weights @ weights.mT) @ f_twice
            d_frames += weights.sum(-1, keepdim=True) * d_colsum
        return d_text.to(text.dtype), d_frames.to(frames.dtype)

    def cosine(
        self,
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
        """Cosine of the mapped texts with the mapped pooled frames.

        Args:
            text: `[A, D]`.
            frames: `[B, F, D]`.
            frame_mask: `[B, F]`, numbers that multiply the weights.
            kept: inner products `[B, F, A]` that `moments` returned, or an empty tensor.
            responsibilities: of the fitted map `[D, K]`.
            scale: of the fitted map `[K]`.
            weight: of the reconstruction.
            pooling_temperature: of the softmax over frames.
            linear: for the gradient only: whether it goes through the map, which is a constant.

        Returns:
            The cosine `[A, B]`, and the lengths of the mapped pooled frames `[A, B]`, which backward needs.
        """
        weighing = _Weighing(self.products, text, frames, frame_mask, pooling_temperature, kept)
        f = weighing.f
        weights = weighing.weights
        fitted = _Map(self.products, weighing.t, f, responsibilities, scale, weight)
        f_twice = fitted.f_r @ fitted.correction

        text_products = (f_twice @ fitted.t_r.mT).add_(weighing.dots)
        plain_products = self.products.of(f, f.mT)
        frame_products = plain_products + f_twice @ fitted.f_r.mT
        numerator = text_products.mul_(weights).sum(1)  # (PN) [B, A]
        squares = (frame_products @ weights).mul_(weights).sum(1)  # (PL) [B, A]
        length = squares.clamp_min(TINY**2).sqrt()
        cosine = numerator / (fitted.text_length * length)

        # Where the pooled row cancels, the square is lost in rounding.
        frame_lengths = cancelled.lengths_of_frames(plain_products, frame_products, weighing.mask.squeeze(-1))
        lost = cancelled.is_lost(squares, (frame_lengths.unsqueeze(1) @ weighing.soft).squeeze(1))
        if len(videos := cancelled.videos_with(lost)):
            cancelled.remake(
                cosine, length, lost, videos, weights, f, fitted.mapped_text(), fitted.text_length,
                responsibilities, scale, weight, shortest=TINY,
            )  # fmt: skip

        # Rounding may put a cosine outside of [-1, 1], as little as that is.
        return cosine.clamp_(-1, 1).mT.contiguous(), length.mT.contiguous()

    def cosine_backward(
        self,
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
        needs_text: bool,
        needs_frames: bool,
        needs_more: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of `cosine` (docs/math.md, PB).

        Args:
            d_cosine: `[A, B]`.
            text: as for `cosine`.
            frames: as for `cosine`.
            frame_mask: as for `cosine`.
            kept: as for `cosine`.
            responsibilities: as for `cosine`.
            scale: as for `cosine`.
            cosine: what `cosine` returned.
            length: what `cosine` returned next to it.
            weight: as for `cosine`.
            pooling_temperature: as for `cosine`.
            linear: whether the gradient goes through the map; if not, the reconstruction is a constant.
            needs_text: whether d_text is needed.
            needs_frames: whether d_frames is needed.
            needs_more: whether the pulls are needed.

        Returns:
            d_text, d_frames, and the pulls on text·r `[A, K]` and frames·r `[B, F, K]`, from which the gradients to the
            map follow. What is not needed is empty.
        """
        weighing = _Weighing(self.products, text, frames, frame_mask, pooling_temperature, kept)
        t = weighing.t
        f = weighing.f
        weights = weighing.weights
        fitted = _Map(self.products, t, f, responsibilities, scale, weight)
        t_r = fitted.t_r
        f_r = fitted.f_r
        text_length = fitted.text_length

        # To numerator and squared lengths. A length at its lower bound is a constant.
        d_numerator = d_cosine.mT / (text_length * length.mT)  # [B, A]
        per_square = -(d_cosine * cosine).mT
        d_pooled_square = torch.where(length.mT > TINY, per_square / (2 * length.mT.square()), 0)
        d_text_square = torch.where(text_length > TINY, per_square.sum(0) / (2 * text_length.square()), 0)

        # To the weights, and from there to the inner products. `once` is the correction that carries gradient.
        once = fitted.correction if linear else torch.diag(weight * scale)
        f_once = f_r @ once
        d_weights = (f_once @ t_r.mT).add_(weighing.dots).mul_(d_numerator.unsqueeze(1))
        frame_products = self.products.of(f, f.mT) + f_once @ f_r.mT
        d_weights += (frame_products @ weights).mul_(2 * d_pooled_square.unsqueeze(1))
        d_dots = weighing.backward(d_weights)

        # To text, through the inner products and through its pull, that on text·r.
        numerator_weights = d_numerator.unsqueeze(1) * weights  # [B, F, A]
        through = self.products.factor(d_dots.add_(numerator_weights), t)
        d_text = text.new_empty((text.shape[0], 0))
        pull_text = t_r.new_empty((t_r.shape[0], 0))
        if needs_text or needs_more:
            pull_text = numerator_weights.flatten(0, 1).mT @ f_r.flatten(0, 1) + 2 * d_text_square.unsqueeze(-1) * t_r
        if needs_text:
            d_text = self.products.of(through.flatten(0, 1).mT, f.flatten(0, 1)) + 2 * d_text_square.unsqueeze(-1) * t
            d_text += pull_text @ once @ responsibilities.mT

        # To frames, likewise.
        d_frames = frames.new_empty((*frames.shape[:2], 0))
        pull_frames = f_r.new_empty((*f_r.shape[:2], 0))
        if needs_frames or needs_more:
            frame_weights = 2 * (d_pooled_square.unsqueeze(1) * weights) @ weights.mT  # [B, F, F]
            pull_frames = numerator_weights @ t_r + frame_weights @ f_r
        if needs_frames:
            d_frames = self.products.of(through, t) + self.products.of(frame_weights, f)
            d_frames += pull_frames @ once @ responsibilities.mT

        if not needs_more:
            pull_text = t_r.new_empty((t_r.shape[0], 0))
            pull_frames = f_r.new_empty((*f_r.shape[:2], 0))
        return d_text.to(text.dtype), d_frames.to(frames.dtype), pull_text, pull_frames


class _Weighing:
    """Frame weights of every text, video by video; dots, soft and weights are [B, F, A].

    kept: the inner products of frames and texts, if they are known; else None or an empty tensor.
    """

    def __init__(
        self,
        products: Upcast,
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        pooling_temperature: float,
        kept: Tensor | None = None,
    ) -> None:
        dtype = ACCUMULATION[text.dtype]
        self.t = products.rows(text, dtype)
        self.f = products.rows(frames, dtype)
        self.temperature = pooling_temperature
        self.mask = frame_mask.to(dtype).unsqueeze(-1)
        self.dots = products.of(self.f, self.t.mT) if kept is None or kept.numel() == 0 else kept
        self.soft = torch.softmax(self.dots / pooling_temperature, dim=1)
        self.weights = self.soft * self.mask  # (PW)

    def backward(self, d_weights: Float[Tensor, "B F A"]) -> Float[Tensor, "B F A"]:
        """Gradient to the inner products, from the gradient to the weights, in whose memory it is."""
        d_soft = d_weights.mul_(self.mask)
        mean = (d_soft * self.soft).sum(1, keepdim=True)
        return d_soft.sub_(mean).mul_(self.soft).div_(self.temperature)


class _Map:
    """What forward and backward need of a fitted map: text and frames in its bases, and the mapped texts' lengths."""

    def __init__(
        self, products: Upcast, t: Tensor, f: Tensor, responsibilities: Tensor, scale: Tensor, weight: float
    ) -> None:
        self.correction = correction(responsibilities, scale, weight)
        self.t_r = products.of(t, responsibilities)
        self.f_r = products.of(f, responsibilities)
        self.mapped_text = lambda: cancelled.mapped_rows(t.to(scale.dtype), responsibilities, scale, weight)

        # With a weight below zero text and reconstruction may cancel, and then the form is lost in rounding.
        if weight < 0:
            text_squares = self.mapped_text().square().sum(-1)
        else:
            text_squares = t.to(scale.dtype).square().sum(-1) + ((self.t_r @ self.correction) * self.t_r).sum(-1)
        length = text_squares.clamp_min(TINY**2).sqrt()
        self.text_length = torch.where(length.isfinite(), length, torch.nan)


def correction(
    responsibilities: Float[Tensor, "D K"], scale: Float[Tensor, " K"], weight: float
) -> Float[Tensor, "K K"]:
    """C in ⟨x·P, y·P⟩ = ⟨x, y⟩ + (x·r)·C·(y·r)ᵀ, `[K, K]`."""
    scaled = responsibilities * scale
    return 2 * weight * torch.diag(scale) + weight**2 * (scaled.mT @ scaled)  # (PC)
