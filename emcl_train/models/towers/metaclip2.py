"""MetaCLIP 2's towers: CLIP's, for texts in many languages, by the tokenizer of XLM-RoBERTa."""

from typing import Any

from torch import Tensor

from emcl_train.models.towers.described import PATCHES
from emcl_train.models.towers.projected import ProjectedTowers


class MetaCLIP2Towers(ProjectedTowers):
    """Captions, read at their end tokens, and frames to one space, not normalised."""

    model_class = "MetaClip2Model"
    inputs = {  # noqa: RUF012 (a constant, as the base class has it)
        "conv1": PATCHES,
        "clip4clip": (
            *PATCHES,
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.position_embedding.",
            "vision_model.pre_layrnorm.",
            "text_model.embeddings.token_embedding.",
            "text_model.embeddings.position_embedding.",
        ),
    }

    def pooled_text(self, encoded: Any) -> Tensor:
        end: Tensor = encoded.pooler_output
        return end
