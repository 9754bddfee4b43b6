"""Names of CLIP2Video's weights (files `pytorch_model.bin.<number>`), beside those that it shares with CLIP4Clip.

Shared are `clip.`, `frame_position_embeddings` and `transformerClip.`, see release.py. The authors' variant
`sigmoid_mlp` has `frame2t_projection` in place of `frame2t_attention`; no checkpoint of it was released, and that it is
a linear layer without a bias is inferred from its shape alone.
"""

POSITIONS = "temporal.tokens.position_embedding"
# Ours, theirs.
NAMES = {
    "temporal.tokens.type_embedding": "type_position_embeddings.weight",
    "temporal.tokens.projection.weight": "frame2t_projection.weight",
    "temporal.tokens.norm.weight": "trans_layernorm.weight",
    "temporal.tokens.norm.bias": "trans_layernorm.bias",
    "head.center_weight": "weight_center",
    "head.centers": "emb_center",
}
BLOCKS = {
    "temporal.tokens.block": "frame2t_attention.resblocks.0",
    "head.block": "actionClip.resblocks.0",
}
"""Single transformer layers."""
_ADVICE = "Such weights are CLIP2Video's: --model.temporal difference with --model.head aligned."
HINTS = (
    ("type_position_embeddings", _ADVICE),
    ("actionClip", _ADVICE),
    ("frame2t_projection", "The projection of differences is --model.temporal difference-mlp."),
)
"""Beginnings of names, with what to do where a checkpoint and a model differ in them."""
