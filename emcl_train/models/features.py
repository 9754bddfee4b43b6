"""What the towers make of captions and clips: one structure for every similarity head."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Features = TypeVar("Features", bound="_Features")


class _Features:
    """Tensors whose first dimension counts captions or clips; those that a head does without are None."""

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def to(self: Features, device: torch.device | str) -> Features:
        return type(self)(**{name: value.to(device) for name, value in self.tensors().items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def __getitem__(self: Features, rows: slice) -> Features:
        """Some of the captions or clips."""
        return type(self)(**{name: value[rows] for name, value in self.tensors().items()})

    def split(self: Features, size: int) -> list[Features]:
        """Parts of `size` captions or clips, the last of what is left."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @classmethod
    def cat(cls: type[Features], parts: Sequence[Features]) -> Features:
        """Parts one after the other."""
        names = parts[0].tensors()
        return cls(**{name: torch.cat([part.tensors()[name] for part in parts]) for name in names})


@dataclass(frozen=True)
class TextFeatures(_Features):
    """A captions. `tokens`, their mask and weights are there for heads that compare token by token."""

    pooled: Float[Tensor, "A D"]
    """CLIP's feature of the whole caption, not normalised."""
    tokens: Float[Tensor, "A L D"] | None = None
    """The same projection of every token, start and end included."""
    mask: Bool[Tensor, "A L"] | None = None
    """Which tokens are no padding."""
    weights: Float[Tensor, "A L"] | None = None
    """Share of each token in the caption's similarity; zero for padding."""


@dataclass(frozen=True)
class VideoFeatures(_Features):
    """B clips."""

    frames: Float[Tensor, "B F D"]
    """Frames after temporal aggregation, not normalised."""
    mask: Bool[Tensor, "B F"]
    """Which frames are no padding."""
    weights: Float[Tensor, "B F"] | None = None
    """Share of each frame in the clip's similarity, for heads that compare token by token; zero for padding."""
