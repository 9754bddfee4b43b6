"""NetVLAD: a set of rows as one row, the sum of their differences from cluster centres."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emcl_train.models.experts.mixture import unit


class NetVLAD(nn.Module):
    """Rows are shared out among clusters; a cluster's part is the weighted sum of rows minus its centre.

    There is no mask. Padding, which is zeros, is shared out like any row: it enters the batch norm's statistics, and
    takes a cluster's centre away once more. So results depend on how many rows a set is padded to, as in the release.

    Args:
        width: of a row, D.
        clusters: K.
        ghost_clusters: further clusters, G, whose share of a row is dropped.
    """

    def __init__(self, width: int, clusters: int, ghost_clusters: int = 0) -> None:
        super().__init__()
        # This start is from memory of NetVLAD's usual code; the specification has no word on it.
        self.assignment = nn.Parameter(torch.randn(width, clusters + ghost_clusters) / width**0.5)
        self.assignment_norm = nn.BatchNorm1d(clusters + ghost_clusters)
        self.centres = nn.Parameter(torch.randn(width, clusters) / width**0.5)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B DK"]:
        """One row of length one for each set, D·K wide: the K clusters of the first channel, of the second, …"""
        logits = self.assignment_norm((x @ self.assignment).flatten(0, 1)).unflatten(0, x.shape[:2])
        shares = torch.softmax(logits, dim=-1)[..., : self.centres.shape[1]]  # [B, N, K]

        parts = x.mT @ shares - shares.sum(1, keepdim=True) * self.centres  # [B, D, K]
        return unit(unit(parts, dim=1).flatten(1))
