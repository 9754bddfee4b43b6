"""What training and evaluation need of a model, whatever it is made of."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emcl_kernels import SimilarityStream
from emcl_train.models.features import Batch, BatchFeatures, ItemTensors


@runtime_checkable
class EMLayer(Protocol):
    """A layer of EM, of whichever model."""

    bases: Tensor
    """What EM starts from."""

    def reset_parameters(self) -> None:
        """Draw the start anew."""


class TrainedModel(nn.Module):
    """What a step of the trainer needs of every model, beside its forward pass."""

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The factor from similarity to logits; 1 for losses that have none."""
        return torch.ones((), device=next(self.parameters()).device)

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What is added to logits; None for losses that have none."""
        return None

    def first_weights(self, frozen: str) -> tuple[str, ...]:
        """Beginnings of the names of parameters that `train.frozen` means; none where there are no towers."""
        return ()

    def hold_logit_scale(self) -> None:
        """Keep the factor below its limit after a step of the optimizer, if it has one."""


class PairModel(TrainedModel):
    """Captions [A] and videos [B] to similarities [A, B].

    `forward` (or `encode_text` and `encode_video`) makes features of a batch, `similarity` compares them.
    """

    emcl: EMLayer | None
    """None where EM cannot act."""

    @abstractmethod
    def encode_text(self, batch: Batch) -> ItemTensors:
        """Features of the captions of a batch."""

    @abstractmethod
    def encode_video(self, batch: Batch) -> ItemTensors:
        """Features of the videos of a batch."""

    def forward(self, batch: Batch) -> BatchFeatures:
        """What one process computes of a training step with the model's parameters: features and the logit scale."""
        return BatchFeatures(self.encode_text(batch), self.encode_video(batch), self.logit_scale, self.logit_bias)

    @abstractmethod
    def similarity(
        self, text: Any, video: Any, *, emcl: bool, add_up: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "A B"]:
        """Each caption with each video.

        Args:
            text: what `encode_text` gave.
            video: what `encode_video` gave.
            emcl: run EM over the rows that are compared first.
            add_up: sums over processes with other captions and the same videos, for one EM over the rows of all.
        """

    def similarities(
        self, text: Any, video: Any, *, emcl: bool, add_up: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Those that the loss is the mean over, [A, B] each; mostly the one that `similarity` gives."""
        return [self.similarity(text, video, emcl=emcl, add_up=add_up)]

    @abstractmethod
    def similarity_stream(self, text: Any, video: Any, *, emcl: bool, em_block: int | None = None) -> SimilarityStream:
        """Rows of `similarity` in bounded memory, for evaluation: without gradient, and the bases stay as they are.

        Args:
            text: what `encode_text` gave.
            video: what `encode_video` gave.
            emcl: run EM over the rows that are compared first.
            em_block: with emcl, run EM inside blocks, as the authors' codes evaluate; None: over everything at once.

        Returns:
            Steps that give the rows of [A, B] in order.
        """
