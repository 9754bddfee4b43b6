"""Names of the weights of EMCL's video question answering, beside those that it shares with CLIP4Clip (see release.py).

Their code saves no start of the bases, and no checkpoint was released: the names are those that it would write.
"""

PREFIXES = {
    "temporal.projection.": "mean_proj.",
    "head.video_pool.": "v_w.",
    "head.question_pool.": "t_w.",
    "head.video_projection.": "v_proj.",
    "head.question_projection.": "t_proj.",
    "head.classifier.": "classifier.",
}
"""Beginnings of names: ours, theirs."""
HINTS = tuple(
    (theirs, "Such weights are of video question answering: use a recipe for it, with as many answers.")
    for theirs in PREFIXES.values()
)
