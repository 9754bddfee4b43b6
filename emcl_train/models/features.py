"""What the towers make of captions and clips: one structure for every similarity head.

`TextFeatures` and `VideoFeatures` are pytrees: what wraps a model (data parallelism, sharding) finds the tensors in
them, so that a forward pass returns them as they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Features = TypeVar("Features", bound="ItemTensors")

Batch = Mapping[str, Tensor]
"""What a loader gives, by name; rows of all its tensors belong together. The towers say which names they read."""


def on_device(batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """A batch on a device; from pinned memory, the copy runs while Python goes on."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def widened(values: Tensor) -> Tensor:
    """Values in float32 at least: what mixed precision gives in 16 bits; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class ItemTensors:
    """Tensors whose first dimension counts captions or clips; those that a head does without are None."""

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def map(self: Features, function: Callable[[Tensor], Tensor]) -> Features:
        """The same features with every tensor replaced by what `function` makes of it."""
        return type(self)(**{name: function(value) for name, value in self.tensors().items()})

    def to(self: Features, device: torch.device | str) -> Features:
        """A copy on a device."""
        return self.map(lambda value: value.to(device))

    def compared(self) -> list[Tensor]:
        """The numbers that similarities are made of, without those of padding."""
        return [value for value in self.tensors().values() if value.is_floating_point()]

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def __getitem__(self: Features, chosen: slice) -> Features:
        """Some of the captions or clips."""
        return self.map(lambda value: value[chosen])

    def split(self: Features, size: int) -> list[Features]:
        """Parts of `size` captions or clips, the last of what is left."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @classmethod
    def cat(cls: type[Features], parts: Sequence[Features]) -> Features:
        """Parts one after the other."""
        names = parts[0].tensors()
        return cls(**{name: torch.cat([part.tensors()[name] for part in parts]) for name in names})


@dataclass(frozen=True)
class TextFeatures(ItemTensors):
    """A captions. Tokens, their mask and their weights are there for heads that compare token by token."""

    caption: Float[Tensor, "A D"]
    """CLIP's feature of the whole caption, not normalised."""
    tokens: Float[Tensor, "A L D"] | None = None
    """The same projection of every token, start and end included."""
    token_mask: Bool[Tensor, "A L"] | None = None
    """Which tokens are no padding."""
    token_weights: Float[Tensor, "A L"] | None = None
    """Share of each token in the caption's similarity; zero for padding."""
    aligned_tokens: Float[Tensor, "A D"] | None = None
    """Embedding of length one of all tokens together, for the head that aligns them to centres."""

    def compared(self) -> list[Tensor]:
        return [self.caption, *([] if self.aligned_tokens is None else [self.aligned_tokens])]


@dataclass(frozen=True)
class VideoFeatures(ItemTensors):
    """B clips."""

    frames: Float[Tensor, "B F D"]
    """Frames after temporal aggregation, not normalised."""
    frame_mask: Bool[Tensor, "B F"]
    """Which frames are no padding."""
    frame_weights: Float[Tensor, "B F"] | None = None
    """Share of each frame in the clip's similarity, for heads that compare token by token; zero for padding."""
    aligned_frames: Float[Tensor, "B D"] | None = None
    """Embedding of length one of all frames together, for the head that aligns them to centres."""

    def compared(self) -> list[Tensor]:
        # Padding is no frame, and whatever a tower makes of it is never read.
        frames = self.frames.masked_fill(~self.frame_mask[..., None], 0.0)
        return [frames, *([] if self.aligned_frames is None else [self.aligned_frames])]


torch.export.register_dataclass(TextFeatures, serialized_type_name="emcl_train.TextFeatures")
torch.export.register_dataclass(VideoFeatures, serialized_type_name="emcl_train.VideoFeatures")


class BatchFeatures(NamedTuple):
    """What a forward pass makes of a batch of pairs: all that the loss is computed from."""

    text: ItemTensors
    video: ItemTensors
    logit_scale: Float[Tensor, ""]
    """The factor from cosine to logits."""
    logit_bias: Float[Tensor, ""] | None = None
    """What the sigmoid loss adds to them."""

    def tensors(self) -> list[Tensor]:
        """All of them, in the same order for features of the same model."""
        of_logits = [self.logit_scale] if self.logit_bias is None else [self.logit_scale, self.logit_bias]
        return [*self.text.tensors().values(), *self.video.tensors().values(), *of_logits]


def squares_are_finite(features: Tensor) -> bool:
    """Whether features are finite, and so is the sum of their squares in float32, as lengths need it."""
    return math.isfinite(features.detach().float().square().sum().item())
