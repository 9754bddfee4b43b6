"""What the rest of the program needs of towers, whatever model they are of.

docs/design/towers-behind-one-interface.md says why. A family is a subclass in a file of its own, with an entry in
`TOWERS` of kinds.py and its settings in `reading/tower_fields.py`; docs/adding.md has the walk.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from transformers import CLIPModel

from emcl_train.errors import UserError
from emcl_train.flags import flag

MAX_LOGIT_SCALE = 100.0
"""CLIP's factor never rises above this in training; see `TowersModel.hold_logit_scale`."""


class Towers(nn.Module):
    """Captions and frames to features of one space, not normalised."""

    text_inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    """Entries of a batch that `encode_text` takes."""
    frame_inputs: tuple[str, ...] = ("frames",)
    """Entries of a batch that `encode_frames` takes."""
    inner_name: ClassVar[str] = "model"
    """The attribute with the library's model, under which a run's weights have its names."""
    largest_scale: ClassVar[float | None] = MAX_LOGIT_SCALE
    """The factor from cosine to logits never rises above this in training; None: it may."""
    per_frame: ClassVar[bool] = True
    """As its registration says: F features of F frames; else one, F = 1."""
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By the value of `train.frozen`, beginnings of the names of the library's weights that stay as they are."""
    parts: ClassVar[tuple[str, ...]] = ("text_model", "vision_model")
    """Of the library's model, those that take nearly all of a step: each is compiled as a whole."""
    attention: ClassVar[str] = r"(text_model|vision_model)\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj"
    """A regular expression: names of the library's maps to queries, keys and values, and of those behind attention."""
    width: int
    """Of the features."""

    @classmethod
    @abstractmethod
    def of_description(cls, towers: Mapping[str, Any]) -> "Towers":
        """Towers with random weights.

        Args:
            towers: a description, see `runs/clip_config.py`.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What `of_description` builds them of again."""

    @abstractmethod
    def encode_text(
        self, input_ids: Int64[Tensor, "A L"], attention_mask: Int64[Tensor, "A L"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        """Features of captions.

        Args:
            input_ids: of the tokens, those that begin and end a caption included.
            attention_mask: 1 for tokens, 0 for padding.
            tokens: whether the features of every token are wanted too.

        Returns:
            The feature of each whole caption; with `tokens` that of every token, else None.
        """

    @abstractmethod
    def encode_frames(self, *inputs: Any, **named: Any) -> Float[Tensor, "B G D"]:
        """Features of single frames, each for itself, from uint8 pixels in RGB, G = F; or of whole clips, G = 1.

        It takes the entries of a batch that `frame_inputs` names: `frames` [B, F, 3, S, S], and `frame_mask` [B, F]
        where all frames of a clip are looked at together.
        """

    def rows_mask(self, frame_mask: Bool[Tensor, "B F"]) -> Bool[Tensor, "B G"]:
        """Which of the features that `encode_frames` gives count, by the frames that do."""
        return frame_mask if self.per_frame else frame_mask.any(1, keepdim=True)

    def rows_of(self, num_frames: int) -> int:
        """G, the features of a clip of so many frames."""
        return num_frames if self.per_frame else 1

    @property
    def inner(self) -> Any:
        """The library's model."""
        return getattr(self, self.inner_name)

    @property
    def clip_layers(self) -> CLIPModel | None:
        """The CLIP whose text layers temporal layers and heads may begin from; None if it is none."""
        return None

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The factor from cosine to logits."""
        # Not clamped: OpenAI's weights store a value whose exp is 100.0000076, from which a clamp at 100 would keep
        # every gradient.
        scale: Tensor = self.inner.logit_scale.exp()
        return scale.reshape(())  # [1] if it is sharded

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to logits, as the parameter that learns it; None if the model has none."""
        found: Tensor | None = getattr(self.inner, "logit_bias", None)
        return found

    @torch.no_grad()
    def hold_logit_scale(self) -> None:
        """Bring the factor back to its limit if a step of the optimizer has taken it higher, as all peers do."""
        if self.largest_scale is not None:
            self.inner.logit_scale.clamp_(max=math.log(self.largest_scale))

    def recompute_layers(self) -> None:
        """Keep only the input of each layer in training, and compute the layer again in the backward pass.

        Raises:
            UserError: the library cannot do so with this model.
        """
        inner = self.inner
        recompute = getattr(inner, "activation_checkpointing_enable", None)  # its name since transformers 5
        recompute = recompute or getattr(inner, "gradient_checkpointing_enable", None)
        if recompute is None or not getattr(inner, "supports_gradient_checkpointing", False):
            raise UserError(
                f"train.gradient_checkpointing is True, and the library of {type(inner).__name__} cannot compute its "
                f"layers again; leave out {flag('train.gradient_checkpointing')}, and pass {flag('train.chunks')}, "
                f"which takes less memory with every model"
            )
        recompute({"use_reentrant": False})

    def first_weights(self, frozen: str) -> tuple[str, ...]:
        """Beginnings of the names of parameters that `train.frozen` means."""
        return tuple(f"{self.inner_name}.{name}" for name in self.inputs.get(frozen, ()))


SCALARS = ("logit_scale", "logit_bias")
"""Names of what is learnt beside the towers' own weights, on which no feature depends."""


def is_scalar(name: str) -> bool:
    """Whether a weight of this name is one of `SCALARS` of towers."""
    return name.startswith("towers.") and name.endswith(SCALARS)


class Scalars(nn.Module):
    """`SCALARS` where the library's model has them, without the rest."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        for name in SCALARS:
            if (value := getattr(inner, name, None)) is not None:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))


class StoredTowers(Towers):
    """In place of towers whose features lie in files: passes them on, and keeps what may learn of the logits."""

    text_inputs = ("caption_features", "token_features")
    frame_inputs = ("frame_features",)

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.width = towers.width
        self.inner_name = towers.inner_name  # type: ignore[misc]
        self.largest_scale = towers.largest_scale  # type: ignore[misc]
        self.add_module(towers.inner_name, Scalars(towers.inner))

    @classmethod
    def of_description(cls, towers: Mapping[str, Any]) -> Towers:
        raise NotImplementedError("features are made of no description")

    def description(self) -> dict[str, Any]:
        raise NotImplementedError("what made features is described in their folder")

    def encode_text(
        self, caption_features: Float[Tensor, "A D"], token_features: Float[Tensor, "A L D"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        """What the towers' `encode_text` gave of the captions. Without `tokens`, L may be 0: nothing was read."""
        return caption_features, token_features if tokens else None

    def encode_frames(self, frame_features: Float[Tensor, "B F D"]) -> Float[Tensor, "B F D"]:
        """What the towers' `encode_frames` gave of the clips."""
        return frame_features


def normalised(
    frames: UInt8[Tensor, "B F 3 S S"], mean: Sequence[float], std: Sequence[float], like: Tensor
) -> Float[Tensor, "N 3 S S"]:
    """Pixels as a vision tower takes them, frames of all clips one after the other.

    Args:
        frames: uint8, in RGB.
        mean: of each channel, where pixels go from 0 to 1.
        std: likewise.
        like: a weight, whose precision they have, or float32 if that is less.
    """
    # Constants of the precision of the weights: rounded to float32 first, they would be off by 1e-7 in float64.
    exact = torch.promote_types(like.dtype, torch.float32)
    of_mean = torch.tensor(mean, dtype=exact, device=frames.device).view(3, 1, 1)
    of_std = torch.tensor(std, dtype=exact, device=frames.device).view(3, 1, 1)
    return (frames.flatten(0, 1).to(exact) / 255 - of_mean) / of_std
