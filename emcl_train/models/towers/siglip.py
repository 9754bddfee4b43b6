"""SigLIP's towers, and those of SigLIP 2 at one size of pictures, which are of the same kind with another tokenizer.

Both were trained on captions that are padded to full length, and look at the padding too: a caption's feature is read
at its last place. The vision tower pools by attention. Logits have a bias, and the factor is not held below 100.
"""

from jaxtyping import Float, Int64
from torch import Tensor

from emcl_train.models.features import widened
from emcl_train.models.towers.described import PATCHES, DescribedTowers


class SigLIPTowers(DescribedTowers):
    """Captions and frames to SigLIP's shared space, not normalised."""

    model_class = "SiglipModel"
    largest_scale = None
    inputs = {  # noqa: RUF012 (a constant, as the base class has it)
        "conv1": PATCHES,
        "clip4clip": (
            *PATCHES,
            "vision_model.embeddings.position_embedding.",
            "text_model.embeddings.token_embedding.",
            "text_model.embeddings.position_embedding.",
        ),
    }

    def encode_text(
        self, input_ids: Int64[Tensor, "A L"], attention_mask: Int64[Tensor, "A L"], *, tokens: bool = False
    ) -> tuple[Float[Tensor, "A D"], Float[Tensor, "A L D"] | None]:
        """Features of captions, without a mask, as the model was trained; see `Towers.encode_text`."""
        encoded = self.model.text_model(input_ids=input_ids)
        caption = widened(encoded.pooler_output)
        if not tokens:
            return caption, None
        return caption, widened(self.model.text_model.head(encoded.last_hidden_state))

    def pooled_pixels(self, pixels: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N D"]:
        pooled: Tensor = self.model.vision_model(pixel_values=pixels).pooler_output
        return pooled
