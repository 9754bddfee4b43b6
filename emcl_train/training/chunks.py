"""Large batches: one loss over the features of the whole batch, with the towers' activations of one chunk at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from emcl_train.models import BatchFeatures
from emcl_train.models.features import Batch


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
        model: a batch to its features, one row for each row; only logit scale and bias belong to no chunk.
        batch: the whole batch.
        chunks: how many, at most as many as rows; they differ by one row at most.
    """

    features: BatchFeatures
    """Of the whole batch, without a graph behind them: the loss's gradients to them are kept in them."""

    def __init__(self, model: nn.Module, batch: Batch, chunks: int) -> None:
        self._model = model
        self._chunks = split_rows(batch, chunks)
        self._device = next(iter(batch.values())).device

        # Encode without a graph. Where dropout's generators stood is kept, for the second time.
        self._random_states: list[list[Tensor]] = []
        encoded: list[BatchFeatures] = []
        with torch.no_grad():
            for chunk in self._chunks:
                self._random_states.append(_random_states(self._device))
                encoded.append(model(chunk))

        self.features = BatchFeatures(
            encoded[0].text.cat([chunk.text for chunk in encoded]).map(_leaf),
            encoded[0].video.cat([chunk.video for chunk in encoded]).map(_leaf),
            _leaf(encoded[0].logit_scale.detach()),
            None if encoded[0].logit_bias is None else _leaf(encoded[0].logit_bias.detach()),
        )

    def backward(self, no_sync: Callable[[], AbstractContextManager]) -> None:
        """Take the gradients that the features, the logit scale and its bias have by now into the model's parameters.

        Args:
            no_sync: keeps DistributedDataParallel from exchanging gradients; it does so once, with the last chunk.
        """
        d_text = self.features.text.map(_gradient)
        d_video = self.features.video.map(_gradient)
        d_logit_scale = _gradient(self.features.logit_scale)
        d_logit_bias = None if self.features.logit_bias is None else _gradient(self.features.logit_bias)

        last = len(self._chunks) - 1
        start = 0
        for i, chunk in enumerate(self._chunks):
            _restore_random_states(self._random_states[i], self._device)

            with nullcontext() if i == last else no_sync():
                outputs = self._model(chunk)

                # Scale and bias take part in every chunk, since DistributedDataParallel expects every parameter to.
                rows = slice(start, start + len(outputs.text))
                d_scale = d_logit_scale if i == last else torch.zeros_like(d_logit_scale)
                d_bias = d_logit_bias if d_logit_bias is None or i == last else torch.zeros_like(d_logit_bias)
                gradients = BatchFeatures(d_text[rows], d_video[rows], d_scale, d_bias)
                start = rows.stop

                # What frozen towers gave, and masks, have no graph.
                pairs = zip(outputs.tensors(), gradients.tensors(), strict=True)
                learning = [(output, gradient) for output, gradient in pairs if output.requires_grad]
                torch.autograd.backward(
                    [output for output, _ in learning],
                    [gradient for _, gradient in learning],
                )


def split_rows(batch: Batch, chunks: int) -> list[dict[str, Tensor]]:
    """A batch as several, one after the other, that differ by one row at most."""
    parts = {name: value.tensor_split(chunks) for name, value in batch.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(chunks)]


def _leaf(value: Tensor) -> Tensor:
    """A tensor that keeps its gradient; a mask has none."""
    return value.requires_grad_() if value.is_floating_point() else value


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _random_states(device: torch.device) -> list[Tensor]:
    """States of the generators that dropout draws from, on the CPU and on the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _restore_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
