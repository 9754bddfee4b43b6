"""Re-ranking that looks at all test queries at once. Its figures stand beside the raw ones, never in their place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_train.errors import UserError


def inverted_softmax(similarity: Float[Tensor, "Q G"], temperature: float, axis: int) -> Float[Tensor, "Q G"]:
    """Score each pair by how much its gallery item prefers this query over all the other queries.

        out = log softmax(similarity / temperature, axis of the queries)

    It needs every test query in advance and assumes that they and the gallery are pairs, so it lowers the scores of
    items that are near to everything ("hubs"). For text→video the queries are the captions, axis 0; for video→text
    they are the clips, axis 1. The release multiplies the softmax by the similarity once more, which turns the order
    of negative similarities round; that is left out here.

    Args: similarity: captions × clips. temperature: of the softmax, above 0. axis: the axis of the queries.
    Returns: float64 scores of the same shape, to be ranked like similarities.
    Raises: UserError where temperature is not positive, axis is neither 0 nor 1, or a similarity is not finite.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(
            f"temperature of the inverted softmax must be a positive number, got {temperature}; the release uses "
            "0.01 (--eval.inverted-softmax-temperature 0.01)"
        )
    if axis not in (0, 1):
        raise UserError(
            f"axis must be 0 (queries are captions: text→video) or 1 (queries are clips: video→text), got {axis}"
        )
    if not torch.isfinite(similarity).all():
        raise UserError(
            "similarity must be finite for the inverted softmax, got NaN or infinity, which would spread over the "
            "whole axis; look for non-finite features or a diverged training run"
        )
    # The logarithm keeps the order and cannot underflow into ties: at temperature 0.01 softmax reaches exp(-200).
    return torch.log_softmax(similarity.double() / temperature, dim=axis)
