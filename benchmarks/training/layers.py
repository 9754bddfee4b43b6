"""What stands in EMCL's place in training: the paper's comparators, and EM that starts from carried responsibilities.

Each has the two methods by which a `RetrievalModel` asks EMCL for its similarity. Nothing is fused here: the rows that
the layer acts on are materialised, which a batch of a small run affords.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from emcl_kernels import SimilarityStream, em_fit, em_moments, em_reconstruct


class RowLayer(nn.Module, ABC):
    """A layer that maps rows to rows, between text-conditioned pooling and the cosine."""

    @abstractmethod
    def forward(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]: ...

    def pooled_similarity(
        self,
        text: Float[Tensor, "A D"],
        frames: Float[Tensor, "B F D"],
        frame_mask: Tensor,
        *,
        pooling_temperature: float,
        add_up: Any = None,
    ) -> Float[Tensor, "A B"]:
        """As `EMCL.pooled_similarity`, in one process."""
        if add_up is not None:
            raise ValueError("this layer trains in one process only; start the run without torchrun")
        weights = torch.einsum("ad,bfd->abf", text, frames).div(pooling_temperature).softmax(-1) * frame_mask
        text, pooled = self.of_pairs(text, frames, weights)
        return torch.einsum("ad,abd->ab", normalize(text, dim=-1), normalize(pooled, dim=-1))

    def of_pairs(
        self, text: Float[Tensor, "A D"], frames: Float[Tensor, "B F D"], weights: Float[Tensor, "A B F"]
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A B D"]]:
        """Texts and pooled videos after the layer, which sees all A·B + A of them as rows, as EMCL does."""
        pooled = torch.einsum("abf,bfd->abd", weights, frames)
        rows = self(torch.cat([pooled.flatten(0, 1), text]))
        return rows[-len(text) :], rows[: -len(text)].view_as(pooled)

    def pooled_similarity_stream(self, *inputs: Tensor, em_block: int | None, **settings: Any) -> SimilarityStream:
        """As `EMCL.pooled_similarity_stream`, in one step."""
        if em_block is not None:
            raise ValueError(f"em_block is {em_block}; this layer is evaluated over all pairs at once: pass None")
        return SimilarityStream(1, lambda: iter([self.pooled_similarity(*inputs, **settings)]))


class PCALayer(RowLayer):
    """x + weight · its projection on the leading principal directions of the rows, these without gradient."""

    def __init__(self, num_directions: int, weight: float) -> None:
        super().__init__()
        self.num_directions, self.weight = num_directions, weight

    def forward(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gram, colsum = em_moments(rows.detach())
        mean = colsum / len(rows)
        directions = torch.linalg.eigh(gram / len(rows) - torch.outer(mean, mean)).eigenvectors[
            :, -self.num_directions :
        ]
        return rows + self.weight * ((rows - mean) @ directions @ directions.T + mean)


class LinearLayer(RowLayer):
    """x + a fully connected layer of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return rows + self.linear(rows)


class SparseAutoencoderLayer(RowLayer):
    """x + its reconstruction from the `active` largest of 4·D non-negative units."""

    def __init__(self, width: int, active: int) -> None:
        super().__init__()
        self.encode, self.decode, self.active = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), active

    def forward(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        units = relu(self.encode(rows))
        least = units.topk(self.active, dim=-1).values[:, -1:]
        return rows + self.decode(units * (units >= least))


class TransformerLayer(RowLayer):
    """One pre-norm transformer layer in which texts and frames attend to each other.

    It acts before the pooling, whose weights stay those of the features it got: attention among all A·B + A pooled
    rows would be quadratic in the pairs.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)

    def forward(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.layer(rows[None])[0]

    def of_pairs(
        self, text: Float[Tensor, "A D"], frames: Float[Tensor, "B F D"], weights: Float[Tensor, "A B F"]
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A B D"]]:
        rows = self(torch.cat([text, frames.flatten(0, 1)]))
        return rows[: len(text)], torch.einsum("abf,bfd->abd", weights, rows[len(text) :].view_as(frames))


class ChannelEMCL(RowLayer):
    """EMCL that starts from responsibilities carried from batch to batch: channels persist between them, rows do not.

    The first batch starts from `num_bases` channels, drawn at random. The E-step follows an M-step of the carried
    responsibilities on the batch's own Gram matrix. As released, the reconstruction is a constant in backward.
    """

    responsibilities: Tensor

    def __init__(
        self,
        width: int,
        *,
        num_bases: int,
        num_iters: int,
        temperature: float,
        residual_weight: float,
        momentum: float,
        relative: bool,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_iters, self.temperature, self.residual_weight = num_iters, temperature, residual_weight
        self.momentum, self.relative, self.eps = momentum, relative, eps
        start = torch.eye(width)[:, torch.randperm(width)[:num_bases]]
        self.register_buffer("responsibilities", start)

    @torch.no_grad()
    def reconstruction(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gram, _ = em_moments(rows)
        start = gram @ self.responsibilities  # [D, K]
        logits = start / (self.eps + (self.responsibilities * start).sum(0).sqrt())
        responsibilities, scale = em_fit(
            gram, logits, num_iters=self.num_iters, temperature=self.temperature, eps=self.eps
        )
        if self.training:
            self.responsibilities.lerp_(responsibilities, 1 - self.momentum)
        reconstruction = em_reconstruct(rows, responsibilities, scale, weight=1.0) - rows
        return reconstruction * (rows.norm() / reconstruction.norm()) if self.relative else reconstruction

    def forward(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return rows + self.residual_weight * self.reconstruction(rows)
