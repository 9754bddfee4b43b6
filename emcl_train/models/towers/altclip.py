"""AltCLIP's towers: CLIP's for pictures, an XLM-RoBERTa for texts that was taught CLIP's, read at its first token."""

from emcl_train.models.towers.described import PATCHES
from emcl_train.models.towers.projected import ProjectedTowers


class AltCLIPTowers(ProjectedTowers):
    """Captions and frames to one space, not normalised."""

    model_class = "AltCLIPModel"
    attention = (
        r"(vision_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj)"
        r"|(text_model\.roberta\.encoder\.layers?\.\d+\.attention\.(self\.(query|key|value)|output\.dense))"
    )
    inputs = {  # noqa: RUF012 (a constant, as the base class has it)
        "conv1": PATCHES,
        "clip4clip": (
            *PATCHES,
            "vision_model.embeddings.class_embedding",
            "vision_model.embeddings.position_embedding.",
            "vision_model.pre_layrnorm.",
            "text_model.roberta.embeddings.",
        ),
    }
