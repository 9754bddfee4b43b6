"""Large batches: one loss over the features of the whole batch, with the towers' activations of one chunk at a time."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class ChunkedFeatures:
    """Features of a batch whose gradients reach the towers chunk by chunk (the scheme of GradCache).

    A contrastive loss needs the features of all pairs at once; the towers' activations are needed only for those pairs
    whose gradients are just passing. So every chunk is encoded without a graph, the caller computes the loss and its
    gradient to the features of the whole batch, and `backward` encodes each chunk again, now with a graph, and pushes
    its part of that gradient through the towers. The gradients are exact, up to rounding: dropout draws the same
    numbers both times.

    It costs a second forward pass of the towers, about a third more computation in all, and holds the activations of
    one chunk in place of those of the batch. Features, similarity and loss are still those of the whole batch.

    Args:
        model: inputs to features, rows to rows, and last the logit scale, which belongs to no chunk.
        inputs: of the whole batch. chunks: how many, at most as many as rows; they differ by one row at most.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], chunks: int) -> None:
        self._model, self._count = model, chunks
        self._chunks = list(zip(*(value.tensor_split(chunks) for value in inputs), strict=True))
        self._random_states: list[list[Tensor]] = []
        found: list[Sequence[Tensor]] = []
        with torch.no_grad():
            for chunk in self._chunks:
                self._random_states.append(_random_states(chunk[0].device))
                found.append(model(*chunk))
        *features, scales = zip(*found, strict=True)
        self.features = [torch.cat(parts).requires_grad_() for parts in features]
        self.logit_scale: Tensor = scales[0].detach().requires_grad_()

    def backward(self, no_sync: Callable[[], AbstractContextManager]) -> None:
        """Take the gradients that the features and the logit scale have by now into the model's parameters.

        Args: no_sync: keeps DistributedDataParallel from exchanging gradients; it does so once, with the last chunk.
        """
        d_features = zip(*(_gradient(feature).tensor_split(self._count) for feature in self.features), strict=True)
        d_logit_scale = _gradient(self.logit_scale)
        last = self._count - 1
        for i, (chunk, d_chunk) in enumerate(zip(self._chunks, d_features, strict=True)):
            _restore_random_states(self._random_states[i], chunk[0].device)
            with nullcontext() if i == last else no_sync():
                outputs = self._model(*chunk)
                # Zeros, since DistributedDataParallel expects every parameter to take part.
                d_scale = d_logit_scale if i == last else torch.zeros_like(d_logit_scale)
                pairs = zip(outputs, [*d_chunk, d_scale], strict=True)
                learning = [pair for pair in pairs if pair[0].requires_grad]  # not what frozen towers gave
                torch.autograd.backward([output for output, _ in learning], [gradient for _, gradient in learning])


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _random_states(device: torch.device) -> list[Tensor]:
    """States of the generators that dropout draws from, on the CPU and on the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
