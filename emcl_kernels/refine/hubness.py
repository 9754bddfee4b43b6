"""Hubs: items that are among the nearest of far more queries than others."""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.refine.nearest import nearest


def hubness(query: Float[Tensor, "Q D"], gallery: Float[Tensor, "G D"], *, neighbors: int = 10) -> float:
    """Skewness of N_k: how often an item of the gallery is among the k nearest of a query (Radovanović et al., 2010).

    Args:
        query: `[Q, D]`, compared by inner products.
        gallery: `[G, D]`.
        neighbors: k; of a gallery of fewer, all but one.

    Returns:
        The third standardised moment of N_k over the gallery: about 0 without hubs, and 0 if all items are alike.

    Raises:
        ValueError: there is no query, or fewer than two items.

    Examples:
        >>> hubness(torch.eye(3), torch.eye(3), neighbors=1)
        0.0
    """
    if len(query) < 1 or len(gallery) < 2:
        raise ValueError(
            f"hubness is of {len(query)} queries and {len(gallery)} items; expected at least one query and two items"
        )

    count = min(neighbors, len(gallery) - 1)
    _, places = nearest(query.float(), gallery.float(), count)
    found = torch.bincount(places.flatten(), minlength=len(gallery)).double()
    deviation = found - found.mean()
    spread = deviation.square().mean().sqrt()
    return float((deviation / spread).pow(3).mean()) if spread > 0 else 0.0
