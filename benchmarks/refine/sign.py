"""What the directions hold that EM finds: of the rows, of the gap between the sides, and of the hubs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from emcl_kernels import EMRefiner
from emcl_kernels.refine import hubness as skewness_of

LEADING = 8


def hubness(text: Tensor, video: Tensor) -> float:
    """Skewness of how often an item is among the 10 nearest of a query, mean of both directions; 0 without hubs."""
    text, video = normalize(text, dim=-1), normalize(video, dim=-1)
    return (skewness_of(text, video) + skewness_of(video, text)) / 2


def recall(text: Tensor, video: Tensor) -> float:
    """R@1, mean of both directions."""
    similarity = normalize(text, dim=-1) @ normalize(video, dim=-1).T
    own = similarity.diagonal()
    return sum(100 * float(((similarity > other).sum(axis) == 0).double().mean()) for other, axis in
               ((own[:, None], 1), (own, 0))) / 2  # fmt: skip


def what_directions_hold(text: Tensor, video: Tensor) -> dict[str, Any]:
    """Of the leading directions of the map, one after the other, and of all bases against as many random directions.

    `gap` is a share of ‖mean text − mean video‖², `rows` one of the rows' squared length. `hubness` and `recall` are
    measured with the direction left out whole, and `hubness` also against the weight.
    """
    refiner = EMRefiner(mean_share=0.0, weight=-1.0).fit(text, video)
    change = torch.eye(text.shape[1], dtype=torch.float64) - refiner.matrix
    values, directions = torch.linalg.eigh(change)
    directions = directions.flip(1)
    gap = text.mean(0) - video.mean(0)
    rows = torch.cat([text, video])

    def held(basis: Tensor) -> dict[str, float]:
        left = tuple(side - (side @ basis) @ basis.T for side in (text, video))
        return {
            "gap": float((gap @ basis).square().sum() / gap.square().sum()),
            "rows": float((rows @ basis).square().sum() / rows.square().sum()),
            "hubness": hubness(*left),
            "recall": recall(*left),
        }

    generator = torch.Generator().manual_seed(0)
    random = torch.linalg.qr(torch.randn(text.shape[1], LEADING, generator=generator, dtype=torch.float64)).Q
    weights = (-0.3, -0.2, -0.15, -0.1, -0.07, -0.05, -0.03, 0.0, 0.03, 0.07, 0.15, 0.3)
    return {
        "before": {"hubness": hubness(text, video), "recall": recall(text, video)},
        "directions": [held(directions[:, i : i + 1]) | {"value": float(values.flip(0)[i])} for i in range(LEADING)],
        "leading together": held(directions[:, :LEADING]),
        "random": held(random),
        "weight": {
            str(weight): {
                "hubness": hubness(*EMRefiner(weight=weight, mean_share=share).fit_transform(text, video)),
                "gap": float(
                    (gap @ EMRefiner(weight=weight, mean_share=share).fit(text, video).matrix).norm() / gap.norm()
                ),
            }
            for share in (EMRefiner().map.mean_share,)
            for weight in weights
        },
    }
