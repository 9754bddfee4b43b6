"""Towers of transformers with a projection behind each, as CLIP's successors have them."""

from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from emcl_train.models.features import widened
from emcl_train.models.towers.described import DescribedTowers


class ProjectedTowers(DescribedTowers):
    """Captions and frames through `text_projection` and `visual_projection`, not normalised."""

    def encode_text(
        self, input_ids: Int64[Tensor, "A L"], attention_mask: Int64[Tensor, "A L"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        encoded = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask)
        caption = widened(self.model.text_projection(self.pooled_text(encoded)))
        if not tokens:
            return caption, None
        return caption, widened(self.model.text_projection(encoded.last_hidden_state))

    def pooled_text(self, encoded: Any) -> Tensor:
        """What stands for a caption in the output of the text tower: its first token, or what a family has instead."""
        first: Tensor = encoded.last_hidden_state[:, 0]
        return first

    def pooled_pixels(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N D"]:
        pooled: Tensor = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        return pooled
