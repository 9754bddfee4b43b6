"""Re-ranking that looks at more than one query. Its figures stand next to the raw ones, never in their place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def inverted_softmax(similarity: Float[Tensor, "Q G"], temperature: float, axis: int) -> Float[Tensor, "Q G"]:
    """Score each pair by how much its gallery item prefers this query over all the other queries.

        out = log softmax(similarity / temperature, axis of the queries)

    It needs every test query in advance and assumes that they and the gallery are pairs, so it lowers the scores of
    items that are near to everything ("hubs"). For text→video the queries are the captions, axis 0; for video→text
    they are the clips, axis 1. The release multiplies the softmax by the similarity once more, which turns the order
    of negative similarities round; that is left out here.

    Args:
        similarity: captions × clips.
        temperature: of the softmax, above 0.
        axis: the axis of the queries.

    Returns:
        float64 scores of the same shape, to be ranked like similarities.

    Raises:
        ValueError: temperature is not positive, axis is neither 0 nor 1, or a similarity is not finite.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"temperature of the inverted softmax must be a positive number, got {temperature}; the release uses 0.01"
        )
    if axis not in (0, 1):
        raise ValueError(
            f"axis must be 0 (queries are captions: text→video) or 1 (queries are clips: video→text), got {axis}"
        )
    if not torch.isfinite(similarity).all():
        raise ValueError(
            "similarity must be finite for the inverted softmax, got NaN or infinity, which would spread over the "
            "whole axis; look for non-finite features or a diverged training run"
        )

    # The logarithm keeps the order and cannot underflow into ties: at temperature 0.01 softmax reaches exp(-200).
    return torch.log_softmax(similarity.double() / temperature, dim=axis)


def qb_norm(
    similarity: Float[Tensor, "Q G"], bank_similarity: Float[Tensor, "R _"], *, temperature: float
) -> Float[Tensor, "Q G"]:
    """Query bank normalisation with the dynamic inverted softmax (Bogolin et al., CVPR 2022).

    A gallery item that is the nearest one of any bank query is a suspected hub. A query whose nearest item is one has
    all its scores normalised by what the bank makes of each item:

        out[q, g] = similarity[q, g] / temperature − log Σ_r exp(bank_similarity[r, g] / temperature)

    Other queries keep theirs, so that the items of a query may be ranked, and scores of two queries may not be
    compared. The bank holds queries of the training split: no test query sees another one.

    Args:
        similarity: queries × gallery.
        bank_similarity: bank queries × the same gallery.
        temperature: 1 / β; 0.05 is the paper's.

    Returns:
        float64 scores, to be ranked along the gallery.

    Raises:
        ValueError: temperature is not positive, the galleries differ, the bank is empty, or a similarity is not finite.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature of QB-Norm must be a positive number, got {temperature}; its paper uses 0.05")
    if bank_similarity.shape[0] == 0 or bank_similarity.shape[1:] != similarity.shape[1:]:
        raise ValueError(
            f"bank_similarity must hold at least one bank query against the same {similarity.shape[1]} gallery items, "
            f"got shape {list(bank_similarity.shape)}; compare the bank with the gallery of the test queries"
        )
    if not (torch.isfinite(similarity).all() and torch.isfinite(bank_similarity).all()):
        raise ValueError(
            "similarity and bank_similarity must be finite for QB-Norm, got NaN or infinity; look for non-finite "
            "features or a diverged training run"
        )

    suspected = torch.zeros(similarity.shape[1], dtype=torch.bool, device=similarity.device)  # [G]
    suspected[bank_similarity.argmax(dim=1)] = True
    activated = suspected[similarity.argmax(dim=1)]  # [Q]

    bank_mass = (bank_similarity.double() / temperature).logsumexp(dim=0)  # [G]
    normalised = similarity.double() / temperature - bank_mass
    return torch.where(activated[:, None], normalised, similarity.double())
