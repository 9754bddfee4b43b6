"""CLIP's towers, as transformers' `CLIPModel` has them."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from transformers import CLIPModel

from emcl_train.models.features import widened
from emcl_train.models.towers.interface import Towers, normalised
from emcl_train.runs.clip_config import build_clip, clip_config_of_fields
from emcl_train.weights.openai import PIXEL_MEAN, PIXEL_STD

CONV1 = ("vision_model.embeddings.patch_embedding.",)
SAID_BY = "the configuration of the towers (clip_config.json)"


class CLIPTowers(Towers):
    """Captions and frames to CLIP's shared space, not normalised."""

    inner_name = "clip"
    inputs = {  # noqa: RUF012 (a constant, as the base class has it)
        "conv1": CONV1,
        "clip4clip": (
            *CONV1,
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.position_embedding.",
            "vision_model.pre_layrnorm.",
            "text_model.embeddings.token_embedding.",
            "text_model.embeddings.position_embedding.",
        ),
    }

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.width: int = clip.visual_projection.out_features

    @classmethod
    def of_description(cls, towers: Mapping[str, Any]) -> "CLIPTowers":
        return cls(build_clip(clip_config_of_fields(towers, SAID_BY)))

    def description(self) -> dict[str, Any]:
        return dict(self.clip.config.to_dict())

    @property
    def clip_layers(self) -> CLIPModel:
        return self.clip

    def encode_text(
        self, input_ids: Int64[Tensor, "A L"], attention_mask: Int64[Tensor, "A L"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        """Features of captions, read at their end tokens; see `Towers.encode_text`."""
        encoded = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask)
        caption = widened(self.clip.text_projection(encoded.pooler_output))
        if not tokens:
            return caption, None
        return caption, widened(self.clip.text_projection(encoded.last_hidden_state))

    def encode_frames(self, frames: UInt8[Tensor, "B F 3 S S"]) -> Float[Tensor, "B F D"]:
        """Features of single frames, each for itself, from their uint8 pixels in RGB."""
        pixels = normalised(frames, PIXEL_MEAN, PIXEL_STD, self.clip.visual_projection.weight)  # [B·F, 3, S, S]
        encoded = self.clip.vision_model(pixel_values=pixels)
        features = widened(self.clip.visual_projection(encoded.pooler_output))
        return features.unflatten(0, frames.shape[:2])
