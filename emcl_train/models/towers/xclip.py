"""X-CLIP's towers: frames look at each other inside the vision tower, and a clip has one feature.

Its own similarity adds to each text what a layer makes of the video that it is compared with (prompts). Here texts and
videos are encoded each for itself, as `get_text_features` and `get_video_features` do, and that layer stays as it is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from emcl_train.models.features import widened
from emcl_train.models.towers.described import PATCHES
from emcl_train.models.towers.interface import normalised
from emcl_train.models.towers.projected import ProjectedTowers

OF_PROMPTS = ("prompts_visual_layernorm.", "prompts_visual_projection", "prompts_generator.")


class XCLIPTowers(ProjectedTowers):
    """Captions, read at their end tokens, and clips to one space, not normalised."""

    model_class = "XCLIPModel"
    attention = r"(text_model|vision_model|mit)\.encoder\.layers\.\d+\.(self|message)_attn\.(q|k|v|out)_proj"
    frame_inputs = ("frames", "frame_mask")
    per_frame = False
    inputs = {  # noqa: RUF012 (a constant, as the base class has it)
        "conv1": PATCHES,
        "clip4clip": (
            *PATCHES,
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.position_embedding.",
            "vision_model.pre_layernorm.",
            "text_model.embeddings.token_embedding.",
            "text_model.embeddings.position_embedding.",
        ),
    }

    def __init__(self, model: Any, towers: Mapping[str, Any]) -> None:
        super().__init__(model, towers)
        for name, parameter in model.named_parameters():
            if name.startswith(OF_PROMPTS):
                parameter.requires_grad_(False)

    def pooled_text(self, encoded: Any) -> Tensor:
        end: Tensor = encoded.pooler_output
        return end

    def encode_frames(  # type: ignore[override]
        self, frames: UInt8[Tensor, "B F 3 S S"], frame_mask: Bool[Tensor, "B F"]
    ) -> Float[Tensor, "B 1 D"]:
        """One feature a clip. Where a clip has fewer frames than the model takes, its last one is shown again."""
        count = frame_mask.sum(1, keepdim=True).clamp_min(1)
        shown = torch.minimum(torch.arange(frames.shape[1], device=frames.device), count - 1)  # [B, F]
        frames = frames.gather(1, shown[:, :, None, None, None].expand_as(frames))

        pixels = normalised(frames, self._mean, self._std, self.model.visual_projection.weight)
        of_frames = self.pooled_pixels(pixels).unflatten(0, frames.shape[:2])  # [B, F, D]
        return widened(self.model.mit(of_frames).pooler_output).unsqueeze(1)
